"""Errors are what the design says they are, in both languages, and say what was asked and what was found."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore import _native, errors
from oracle import DTYPES

ROWS = np.zeros((4, 3, 8), np.float32)


# ---- Classes and kinds ----


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (errors.ActstoreError, (Exception,)),
        (errors.NotFoundError, (errors.ActstoreError, LookupError)),
        (errors.InvalidInputError, (errors.ActstoreError, ValueError)),
        (errors.ShapeError, (errors.InvalidInputError,)),
        (errors.FormatError, (errors.ActstoreError,)),
        (errors.StorageError, (errors.ActstoreError, OSError)),
        (errors.NumericalError, (errors.ActstoreError, ArithmeticError)),
    ],
)
def test_classes(error: type[errors.ActstoreError], bases: tuple[type, ...]) -> None:
    assert error.__bases__ == bases
    assert getattr(actstore, error.__name__) is error
    made = error("what was asked", hint="what to do")
    assert str(made) == "what was asked"
    assert made.hint == "what to do"
    assert "hint: what to do" in made.__notes__
    assert errors.KINDS.get(made.kind) is error or error is errors.ActstoreError
    assert error("x", kind="special").kind == "special"


def test_the_kinds_of_both_languages_are_equal() -> None:
    native = _native.error_kinds()
    # Ctrl-C is Python's own; what is not raised in Rust yet is Python's alone.
    assert native.pop("interrupted") == "KeyboardInterrupt"
    python = {kind: error.__name__ for kind, error in errors.KINDS.items()}
    assert {kind: name for kind, name in python.items() if kind in native} == native
    assert set(python) - set(native) <= {"singular"}


def test_kinds_are_words_and_belong_to_leaf_classes() -> None:
    for kind, error in errors.KINDS.items():
        assert kind.isidentifier()
        assert kind == kind.lower()
        assert issubclass(error, errors.ActstoreError)
    used = set(errors.KINDS.values())
    assert used == {
        errors.NotFoundError,
        errors.InvalidInputError,
        errors.ShapeError,
        errors.FormatError,
        errors.StorageError,
        errors.NumericalError,
    }


@pytest.mark.parametrize("kind", errors.KINDS)
def test_errors_cross_processes(kind: str) -> None:
    """Workers send their errors home pickled."""
    made = errors.KINDS[kind]("what was found", kind=kind, hint="what to do")
    back = pickle.loads(pickle.dumps(made))
    assert type(back) is type(made)
    assert (str(back), back.kind, back.hint) == (str(made), made.kind, made.hint)


# ---- Messages ----


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("errors") / "run.act"
    sites = {
        "resid": actstore.SiteSpec(3, 8, "bfloat16", labels=[0, 6, 12]),
        "pooled": actstore.SiteSpec(1, 4, "float32", axis="examples"),
    }
    with actstore.create(path, sites, identity={"weights": "abc"}) as writer:
        writer.append(
            {"resid": ROWS.astype(DTYPES["bfloat16"]), "pooled": np.zeros((2, 1, 4), np.float32)},
            [3, 1],
            ids=["one", "two"],
            token_columns={"id": np.arange(4)},
            columns={"label": ["x", "y"]},
        )
    return path


@pytest.fixture
def writer(path: Path) -> Iterator[actstore.StoreWriter]:
    writer = actstore.append(path)
    yield writer
    writer.abort()


def fails(call: Callable[[], object], error: type[Exception], kind: str, *words: str) -> None:
    """The error is of this very class and kind, and its message and hint have these words."""
    with pytest.raises(error) as caught:
        call()
    found = caught.value
    assert type(found) is error
    assert isinstance(found, errors.ActstoreError)
    assert found.kind == kind
    said = f"{found} {found.hint or ''}"
    assert [word for word in words if word not in said] == [], said
    assert len(said) < 400


NotFound, Invalid, Shape = errors.NotFoundError, errors.InvalidInputError, errors.ShapeError

READING: dict[str, tuple[Callable[[actstore.Store], object], type[Exception], tuple[str, ...]]] = {
    "a site": (lambda s: s["mlp"], NotFound, ("'mlp'", "resid", "pooled")),
    "a layer": (lambda s: s["resid"][:, 5], NotFound, ("5", "0, 6, 12", "resid", "run.act")),
    "a layer in a list": (lambda s: s["resid"][:, [0, 7]], NotFound, ("7", "0, 6, 12")),
    "a layer too far from the end": (lambda s: s["resid"][:, -4], NotFound, ("-4", "0, 6, 12")),
    "a layer to select": (lambda s: s["resid"].select(layers=[13]), NotFound, ("13", "0, 6, 12")),
    "a layer by name": (lambda s: s["resid"][:, "last"], Invalid, ("'last'", "layers")),
    "a layer by a float": (lambda s: s["resid"][:, 6.0], Invalid, ("6.0", "layers")),
    "a row": (lambda s: s["resid"][4], Invalid, ("4", "there are 4")),
    "a row in a list": (lambda s: s["resid"][[0, -5]], Invalid, ("-5", "there are 4")),
    "a row by name": (lambda s: s["resid"]["one"], Invalid, ("'one'",)),
    "a row by a float": (lambda s: s["resid"][[1.0]], Invalid, ("float64", "integers")),
    "a mask": (lambda s: s["resid"][np.ones(3, bool)], Shape, ("[4]", "[3]")),
    "rows of two axes": (lambda s: s["resid"][np.zeros((2, 2), int)], Shape, ("[2, 2]",)),
    "too many indices": (lambda s: s["resid"][0, 0, 0, 0], Invalid, ("4 indices", "3 axes")),
    "a new axis": (lambda s: s["resid"][None], Invalid, ("None",)),
    "a dim": (lambda s: s["resid"][:, 6, 8], Invalid, ("8", "dims")),
    "an example": (lambda s: s["resid"].example(2), Invalid, ("2", "there are 2")),
    "an id": (lambda s: s["resid"].example("three"), NotFound, ("'three'", "run.act")),
    "an id that is a number": (lambda s: s["resid"].example("1"), NotFound, ("'1'", "'one'", "position")),
    "an id outside the view": (
        lambda s: s["resid"].select(examples=[0]).example("two"),
        NotFound,
        ("'two'", "view"),
    ),
    "an example by a float": (lambda s: s["resid"].example(1.5), Invalid, ("1.5",)),
    "examples by a mask": (lambda s: s["resid"].select(examples=[True]), Shape, ("[2]", "[1]")),
    "a dtype to read": (lambda s: s["resid"].read("int8"), Invalid, ("int8", "bfloat16", "float32")),
    "out of another shape": (
        lambda s: s["resid"].read(out=np.zeros((4, 3, 7), np.float32)),
        Shape,
        ("[4, 3, 8]", "[4, 3, 7]"),
    ),
    "out of another dtype": (
        lambda s: s["resid"].read("float32", out=np.zeros((4, 3, 8))),
        Invalid,
        ("float64", "float32"),
    ),
    "out that is a list": (lambda s: s["resid"].read(out=[0]), Invalid, ("list",)),
    "a column": (lambda s: s.tokens["pos"], NotFound, ("'pos'", "id", "tokens")),
    "a column of examples": (lambda s: s.examples["score"], NotFound, ("'score'", "label")),
}


@pytest.mark.parametrize("asked", READING)
def test_reading(store: actstore.Store, asked: str) -> None:
    call, error, words = READING[asked]
    fails(lambda: call(store), error, errors_kind(error), *words)


def errors_kind(error: type[Exception]) -> str:
    """The kind a class has unless told otherwise."""
    assert issubclass(error, errors.ActstoreError)
    return error.default_kind


def acts(rows: int = 4, examples: int = 2, **changes: Any) -> dict[str, Any]:
    both = {
        "resid": np.zeros((rows, 3, 8), DTYPES["bfloat16"]),
        "pooled": np.zeros((examples, 1, 4), np.float32),
    }
    return both | changes


MORE: dict[str, Any] = {"ids": ["a", "b"], "token_columns": np.arange(4), "columns": {"label": ["x", "y"]}}

WRITING: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "dims": (
        {"acts": acts(resid=np.zeros((4, 3, 9), DTYPES["bfloat16"]))},
        Shape,
        ("[rows, 3, 8]", "[4, 3, 9]"),
    ),
    "layers": (
        {"acts": acts(resid=np.zeros((4, 2, 8), DTYPES["bfloat16"]))},
        Shape,
        ("[rows, 3, 8]", "[4, 2, 8]"),
    ),
    "axes": ({"acts": acts(resid=np.zeros((4, 24), DTYPES["bfloat16"]))}, Shape, ("[rows, 3, 8]", "[4, 24]")),
    "dtype": ({"acts": acts(resid=ROWS)}, Invalid, ("resid", "bfloat16", "float32", "cast=True")),
    "bits": ({"acts": acts(resid=np.zeros((4, 3, 8), np.uint16)), "cast": True}, Invalid, ("uint16", "view")),
    "integers": (
        {"acts": acts(resid=np.zeros((4, 3, 8), np.int32)), "cast": True},
        Invalid,
        ("int32", "floats"),
    ),
    "overflow": (
        {"acts": acts(pooled=np.full((2, 1, 4), 1e300)), "cast": True},
        Invalid,
        ("pooled", "8 values", "float32", "1e+300"),
    ),
    "a site missing": ({"acts": {"resid": acts()["resid"]}}, Invalid, ("pooled", "['resid']")),
    "a site too many": ({"acts": acts(mlp=ROWS)}, Invalid, ("'mlp'",)),
    "no mapping": ({"acts": ROWS}, Invalid, ("ndarray", "mapping")),
    "lengths": ({"lengths": [3, 2]}, Shape, ("add up to 5", "4 rows")),
    "lengths of other examples": ({"lengths": [4]}, Shape, ("1", "2")),
    "negative lengths": ({"lengths": [5, -1]}, Invalid, ("-1", "negative")),
    "no lengths": ({"lengths": None}, Invalid, ("lengths",)),
    "lengths of floats": ({"lengths": [2.0, 2.0]}, Invalid, ("float64", "integers")),
    "lengths of another axis": ({"lengths": {"encoder": [2, 2]}}, Invalid, ("'encoder'", "'tokens'")),
    "ids taken": ({"ids": ["a", "two"]}, Invalid, ("'two'", "already")),
    "ids twice": ({"ids": ["a", "a"]}, Invalid, ("'a'", "twice")),
    "too few ids": ({"ids": ["a"]}, Shape, ("expected 2", "got 1")),
    "ids of ints": ({"ids": [1, 2]}, Invalid, ("strings",)),
    "a single id": ({"ids": "ab"}, Invalid, ("str", "'ab'")),
    "token column too short": ({"token_columns": np.arange(3)}, Shape, ("tokens/id", "[4]", "[3]")),
    "token column of another dtype": (
        {"token_columns": np.zeros(4, np.float32)},
        Invalid,
        ("int64", "float32"),
    ),
    "another token column": (
        {"token_columns": {"position": np.arange(4)}},
        Invalid,
        ("tokens/id", "tokens/position"),
    ),
    "token column missing": ({"token_columns": None}, Invalid, ("tokens/id",)),
    "token column on another axis": (
        {"token_columns": {"encoder": {"id": np.arange(4)}}},
        Invalid,
        ("'encoder'",),
    ),
    "example column missing": ({"columns": None}, Invalid, ("examples/label",)),
    "example column too long": ({"columns": {"label": ["x"] * 3}}, Shape, ("expected 2", "got 3")),
    "example column of numbers": ({"columns": {"label": [1, 2]}}, Invalid, ("examples/label",)),
    "a column called id": ({"columns": {"label": ["x", "y"], "id": [1, 2]}}, Invalid, ("'id'", "ids=")),
    "a column with a slash": ({"columns": {"a/b": [1, 2]}}, Invalid, ("'a/b'", "slash")),
}


@pytest.mark.parametrize("given", WRITING)
def test_writing(writer: actstore.StoreWriter, given: str) -> None:
    """A refused append changes nothing; the next one is taken."""
    changes, error, words = WRITING[given]
    arguments = {"acts": acts(), "lengths": [3, 1], **MORE} | changes
    before = (writer.n_examples, writer.n_tokens)
    fails(lambda: writer.append(**arguments), error, errors_kind(error), *words)
    assert (writer.n_examples, writer.n_tokens) == before
    writer.append(acts(), [3, 1], **MORE)
    assert (writer.n_examples, writer.n_tokens) == (before[0] + 2, before[1] + 4)


SPECS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no layers": ({"n_layers": 0}, ("n_layers", "0")),
    "no dim": ({"dim": -1}, ("dim", "-1")),
    "a float": ({"dim": 4.0}, ("dim", "4.0")),
    "a dtype": ({"dtype": "float64"}, ("float64", "bfloat16, float16, float32")),
    "too many labels": ({"labels": [0, 1, 2]}, ("[0, 1, 2]", "2")),
    "labels twice": ({"labels": [1, 1]}, ("[1, 1]",)),
    "negative labels": ({"labels": [-1, 1]}, ("[-1, 1]",)),
    "labels of floats": ({"labels": [0.5, 1]}, ("float64",)),
    "chunks that do not fit": ({"chunk_rows": 4, "shard_rows": 6}, ("6", "4")),
    "an axis with a slash": ({"axis": "a/b"}, ("'a/b'", "slash")),
}


@pytest.mark.parametrize("given", SPECS)
def test_specs(given: str) -> None:
    changes, words = SPECS[given]
    fails(
        lambda: actstore.SiteSpec(**({"n_layers": 2, "dim": 4, "dtype": "float32"} | changes)),
        Invalid,
        "invalid_input",
        *words,
    )


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".hidden", "__x", "commits", "examples", "zarr.json", "c", "x" * 300]
)
def test_names_of_sites(tmp_path: Path, name: str) -> None:
    spec = actstore.SiteSpec(1, 4, "float32")
    fails(lambda: actstore.create(tmp_path / "x", {name: spec}), Invalid, "invalid_input", repr(name)[:50])
    assert not (tmp_path / "x").exists()


def test_stores_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "runs.act").mkdir()
    (tmp_path / "file").write_text("")
    fails(
        lambda: actstore.open(tmp_path / "run.act"), NotFound, "not_found", "run.act", "there is", "runs.act"
    )
    fails(lambda: actstore.open(tmp_path / "file"), NotFound, "not_found", "is a file", "actstore import")
    fails(lambda: actstore.open(tmp_path / "runs.act"), NotFound, "not_found", "zarr.json")
    fails(lambda: actstore.open([]), Invalid, "invalid_input", "empty list")
    fails(lambda: actstore.open(3), Invalid, "invalid_input", "int")  # type: ignore[arg-type]
    fails(lambda: actstore.append(tmp_path / "run.act"), NotFound, "not_found", "run.act")
    fails(lambda: actstore.compact(tmp_path / "run.act"), NotFound, "not_found", "run.act")


def test_stores_that_are_there_already(tmp_path: Path) -> None:
    spec = {"r": actstore.SiteSpec(1, 4, "float32")}
    actstore.create(tmp_path / "x", spec).close()
    fails(lambda: actstore.create(tmp_path / "x", spec), errors.StorageError, "exists", str(tmp_path / "x"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        fails(
            lambda overwrite=overwrite: actstore.create(tmp_path / "mine", spec, overwrite=overwrite),
            errors.StorageError,
            "exists",
            "mine",
        )
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_what_is_locked_or_closed(tmp_path: Path) -> None:
    spec = {"r": actstore.SiteSpec(1, 4, "float32")}
    with actstore.create(tmp_path / "x", spec) as writer:
        fails(lambda: actstore.append(tmp_path / "x"), errors.StorageError, "locked", str(tmp_path / "x"))
        fails(lambda: actstore.compact(tmp_path / "x"), errors.StorageError, "locked", str(tmp_path / "x"))
        writer.append({"r": np.ones((1, 1, 4), np.float32)}, [1])
    fails(writer.commit, errors.StorageError, "closed", "closed")
    fails(lambda: writer.append({}, []), errors.StorageError, "closed", "closed")
    store = actstore.open(tmp_path / "x")
    site = store["r"]
    store.close()
    fails(site.read, errors.StorageError, "closed", str(tmp_path / "x"))
    fails(lambda: store["r"], errors.StorageError, "closed", "closed")
    store.close()
    writer.close()


def test_parts_that_differ(tmp_path: Path) -> None:
    kinds = {
        "a": {"r": actstore.SiteSpec(1, 4, "float32")},
        "dim": {"r": actstore.SiteSpec(1, 5, "float32")},
        "dtype": {"r": actstore.SiteSpec(1, 4, "float16")},
        "layers": {"r": actstore.SiteSpec(1, 4, "float32", labels=[3])},
        "sites": {"q": actstore.SiteSpec(1, 4, "float32")},
    }
    for name, sites in kinds.items():
        actstore.create(tmp_path / name, sites).close()
    for name in list(kinds)[1:]:
        parts = [tmp_path / "a", tmp_path / name]
        fails(lambda parts=parts: actstore.open(parts), Invalid, "invalid_input", name, *map(str, parts))
    fails(lambda: actstore.open([tmp_path / "a"] * 2), Invalid, "invalid_input", "twice")


def test_damage_names_store_site_shard_and_chunk(tmp_path: Path) -> None:
    spec = actstore.SiteSpec(2, 64, "float32", chunk_rows=4, shard_rows=8)
    rows = np.random.default_rng(0).normal(size=(16, 2, 64)).astype(np.float32)
    for codec in ("blosc", "raw"):
        path = tmp_path / codec
        with actstore.create(path, {"resid": spec}, codec=codec) as writer:
            writer.append({"resid": rows}, [16])
        file = path / "resid/c/1/0/0"
        whole = file.read_bytes()
        first = int(np.frombuffer(whole[-16 * 4 - 4 :][16:24], "<u8")[0])  # Rows 8 to 11 of layer 1.
        file.write_bytes(whole[: first + 50] + bytes([whole[first + 50] ^ 1]) + whole[first + 51 :])
        with actstore.open(path) as store:
            read = store["resid"].read
            fails(read, errors.FormatError, "checksum", "'resid'", str(path), "shard 1", "chunk [0, 1, 0]")
            damaged = store.verify().damaged
            assert [(d.array, d.kind) for d in damaged] == [("resid", "checksum")]
        file.write_bytes(whole[:-1])
        with actstore.open(path) as store:
            fails(store["resid"].read, errors.FormatError, "truncated", "'resid'", str(path), "shard 1")
        file.unlink()
        with actstore.open(path) as store:
            fails(store["resid"].read, errors.FormatError, "missing_shard", "'resid'", str(path), "shard 1")


def test_a_store_of_a_later_version(tmp_path: Path) -> None:
    import json

    attributes = {"actstore": {"format": 99, "sites": {}, "axes": {}}}
    node = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (tmp_path / "zarr.json").write_text(json.dumps(node))
    fails(lambda: actstore.open(tmp_path), errors.FormatError, "version", "99", "1", "pip install")
