"""What a writer takes, what it refuses without a trace, and what a commit is worth.

More than 600 lines: one table of wrong appends, and all that it shares with the right ones.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actstore
import ml_dtypes
import numpy as np
import pytest
from actstore.errors import InvalidInputError, ShapeError, StorageError
from builders import Corpus, assert_same, files_on_disk, newest_record, records
from children import LIMIT

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SITES = {
    "resid": actstore.SiteSpec(2, 8, "bfloat16"),
    "mlp": actstore.SiteSpec(1, 4, "float16"),
    "cross": actstore.SiteSpec(1, 4, "float32", axis="decoder"),
    "pooled": actstore.SiteSpec(1, 4, "float32", axis="examples"),
}
ONE = {"resid": actstore.SiteSpec(1, 4, "float32")}


def ones(n: int) -> dict[str, Any]:
    return {"resid": np.ones((n, 1, 4), np.float32)}


# ---- Refusals ----


def good() -> dict[str, Any]:
    """An append of two examples that is taken."""
    return {
        "acts": {
            "resid": np.arange(3 * 2 * 8).reshape(3, 2, 8).astype(BFLOAT16),
            "mlp": np.arange(12, dtype=np.float16).reshape(3, 1, 4),
            "cross": np.arange(8, dtype=np.float32).reshape(2, 1, 4),
            "pooled": np.arange(8, dtype=np.float32).reshape(2, 1, 4),
        },
        "lengths": {"tokens": [1, 2], "decoder": [2, 0]},
        "ids": ["c", "d"],
        "token_columns": {"tokens": {"id": np.arange(3)}, "decoder": {"position": np.arange(2, dtype="i2")}},
        "columns": {"label": ["x", "y"], "score": np.array([1.0, 2.0])},
    }


def with_acts(**changes: Any) -> dict[str, Any]:
    return {"acts": good()["acts"] | changes}


def with_ids(ids: Any) -> dict[str, Any]:
    """Another column of token ids."""
    return {"token_columns": good()["token_columns"] | {"tokens": {"id": ids}}}


def without(name: str) -> dict[str, Any]:
    return {"acts": {site: rows for site, rows in good()["acts"].items() if site != name}}


REFUSED: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "float32 for bfloat16": (with_acts(resid=np.zeros((3, 2, 8), np.float32)), InvalidInputError),
    "float16 for bfloat16": (with_acts(resid=np.zeros((3, 2, 8), np.float16)), InvalidInputError),
    "bfloat16 for float16": (with_acts(mlp=np.zeros((3, 1, 4), BFLOAT16)), InvalidInputError),
    "float64 for float32": (with_acts(cross=np.zeros((2, 1, 4))), InvalidInputError),
    "uint16 for bfloat16": (with_acts(resid=np.zeros((3, 2, 8), np.uint16)), InvalidInputError),
    "uint16 cast": (with_acts(resid=np.zeros((3, 2, 8), np.uint16)) | {"cast": True}, InvalidInputError),
    "uint16 for float16": (with_acts(mlp=np.zeros((3, 1, 4), np.uint16)) | {"cast": True}, InvalidInputError),
    "booleans": (with_acts(mlp=np.zeros((3, 1, 4), bool)) | {"cast": True}, InvalidInputError),
    "complex": (with_acts(cross=np.zeros((2, 1, 4), complex)) | {"cast": True}, InvalidInputError),
    "objects": (with_acts(cross=np.zeros((2, 1, 4), object)) | {"cast": True}, InvalidInputError),
    "a mask": (with_acts(cross=np.ma.zeros((2, 1, 4), np.float32)), InvalidInputError),
    "too large to cast": (with_acts(mlp=np.full((3, 1, 4), 1e6)) | {"cast": True}, InvalidInputError),
    "ragged lists": (with_acts(cross=[[[1.0] * 4], [[1.0] * 3]]), InvalidInputError),
    "another dim": (with_acts(cross=np.zeros((2, 1, 5), np.float32)), ShapeError),
    "other layers": (with_acts(cross=np.zeros((2, 2, 4), np.float32)), ShapeError),
    "layers and rows swapped": (with_acts(resid=np.zeros((2, 3, 8), BFLOAT16)), ShapeError),
    "two axes": (with_acts(cross=np.zeros((2, 4), np.float32)), ShapeError),
    "four axes": (with_acts(cross=np.zeros((2, 1, 4, 1), np.float32)), ShapeError),
    "a site shorter than its axis": (with_acts(mlp=np.zeros((2, 1, 4), np.float16)), ShapeError),
    "pooled rows": (with_acts(pooled=np.zeros((3, 1, 4), np.float32)), ShapeError),
    "no lengths": ({"lengths": None}, InvalidInputError),
    "lengths of two axes as one": ({"lengths": [1, 2]}, InvalidInputError),
    "lengths too long": ({"lengths": {"tokens": [1, 3], "decoder": [2, 0]}}, ShapeError),
    "lengths too short": ({"lengths": {"tokens": [1, 2], "decoder": [1, 0]}}, ShapeError),
    "lengths of other examples": ({"lengths": {"tokens": [1, 2], "decoder": [2]}}, ShapeError),
    "lengths that go back": ({"lengths": {"tokens": [4, -1], "decoder": [2, 0]}}, InvalidInputError),
    # Wrapped around at 64 bits, these two make 3.
    "lengths that overflow": (
        {"lengths": {"tokens": np.array([2**63, 2**63 + 3], np.uint64), "decoder": [2, 0]}},
        InvalidInputError,
    ),
    "lengths that overflow when added": (
        {"lengths": {"tokens": [2**62 + 3] + [2**62] * 3, "decoder": [2, 0, 0, 0]}},
        ShapeError,
    ),
    "an id taken": ({"ids": ["c", "a"]}, InvalidInputError),
    "an id twice": ({"ids": ["c", "c"]}, InvalidInputError),
    "half an emoji": ({"ids": ["c", "\ud83d"]}, InvalidInputError),
    "ids and a number": ({"ids": ["c", 4]}, InvalidInputError),
    "a site missing": (without("mlp"), InvalidInputError),
    "a site too many": (with_acts(attn=np.zeros((3, 1, 4), np.float32)), InvalidInputError),
    "no token columns": ({"token_columns": None}, InvalidInputError),
    "a token column missing": ({"token_columns": {"tokens": {"id": np.arange(3)}}}, InvalidInputError),
    "a token column of another dtype": (with_ids(np.arange(3, dtype=np.int32)), InvalidInputError),
    "a token column of strings": (with_ids(["p", "q", "r"]), InvalidInputError),
    "a token column too short": (with_ids([1, 2]), ShapeError),
    "a column too many": ({"columns": good()["columns"] | {"more": [1, 2]}}, InvalidInputError),
    "strings for numbers": ({"columns": good()["columns"] | {"score": ["x", "y"]}}, InvalidInputError),
    "fractions for integers": (with_ids([0.5, 1, 2]), InvalidInputError),
    "a column too short": ({"columns": good()["columns"] | {"label": ["x"]}}, ShapeError),
}


@pytest.fixture(scope="module")
def begun(memory_folder: Path) -> Path:
    """A store of two examples, committed."""
    path = memory_folder / "writer/x.act"
    with actstore.create(path, SITES) as writer:
        writer.append(**(good() | {"ids": ["a", "b"]}))
    return path


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_append_changes_nothing(begun: Path, what: str) -> None:
    changes, error = REFUSED[what]
    before = {name: (begun / name).read_bytes() for name in files_on_disk(begun)}
    with actstore.append(begun) as writer:
        with pytest.raises(error) as caught:
            writer.append(**(good() | changes))
        assert type(caught.value) is error
        assert (writer.n_examples, writer.n_tokens) == (2, 3)
        # Nothing to publish: the bytes on disk show whether that is so.
        writer.commit()
    assert {name: (begun / name).read_bytes() for name in files_on_disk(begun)} == before


def test_refused_appends_leave_no_rows_behind(memory_path: Path) -> None:
    """Taken appends before, between and after refused ones lie next to each other."""
    with actstore.create(memory_path / "x", SITES) as writer:
        writer.append(**(good() | {"ids": ["a", "b"]}))
        for changes, error in REFUSED.values():
            with pytest.raises(error):
                writer.append(**(good() | changes))
        writer.append(**good())
    with actstore.open(memory_path / "x") as store:
        assert store.examples["id"].tolist() == ["a", "b", "c", "d"]
        assert store.tokens.offsets.tolist() == [0, 1, 3, 4, 6]
        assert store.axes["decoder"].offsets.tolist() == [0, 2, 2, 4, 4]
        for name, rows in good()["acts"].items():
            assert_same(store[name].read(), np.concatenate([rows, rows]))
        assert store.tokens["id"].tolist() == [0, 1, 2] * 2
        assert store.axes["decoder"]["position"].dtype == np.int16
        assert store.examples["label"].tolist() == ["x", "y"] * 2
        assert store.examples["score"].tolist() == [1.0, 2.0] * 2
        report = store.verify(strict=True)
        assert (report.damaged, report.leftovers) == ([], [])


def test_a_refused_first_append_decides_no_columns(memory_path: Path) -> None:
    with actstore.create(memory_path / "x", ONE) as writer:
        with pytest.raises(ShapeError):
            writer.append(ones(2), [2], token_columns={"id": [1]}, columns={"label": ["x"]})
        with pytest.raises(InvalidInputError):
            writer.append(ones(2), [1, 1], ids=["a", "a"], columns={"label": ["x", "y"]})
        writer.append(ones(2), [2], columns={"score": [0.5]})
    with actstore.open(memory_path / "x") as store:
        assert store.examples.dtypes == {"id": "str", "score": "float64"}
        assert store.tokens.dtypes == {}


# ---- What is taken ----


def test_cast_rounds_once(memory_path: Path) -> None:
    """By way of float32, both would be ties there and go down to even; in one step they go up."""
    sites = {
        "b": actstore.SiteSpec(1, 4, "bfloat16"),
        "h": actstore.SiteSpec(1, 4, "float16"),
        "f": actstore.SiteSpec(1, 4, "float32"),
    }
    b = [1 + 2**-8 + 2**-40, -(1 + 2**-8 + 2**-40), 1 + 2**-8, 1 + 3 * 2**-8 - 2**-40]
    h = [1 + 2**-11 + 2**-40, -(1 + 2**-11 + 2**-40), 1 + 2**-11, 2**-25 * (1 + 2**-30)]
    f = [1 + 2**-24 + 2**-50, 1 + 2**-24, np.nan, -np.inf]
    with actstore.create(memory_path / "x", sites) as writer:
        rows = {name: np.array(given).reshape(1, 1, 4) for name, given in (("b", b), ("h", h), ("f", f))}
        writer.append(rows, [1], cast=True)
    with actstore.open(memory_path / "x") as store:
        assert [float(x) for x in store["b"][0, 0]] == [1 + 2**-7, -(1 + 2**-7), 1.0, 1 + 2**-7]
        assert [float(x) for x in store["h"][0, 0]] == [1 + 2**-10, -(1 + 2**-10), 1.0, 2**-24]
        got = store["f"][0, 0].tolist()
        assert got[:2] == [1 + 2**-23, 1.0]
        assert np.isnan(got[2])
        assert got[3] == -np.inf


def test_every_bit_pattern_is_kept(memory_path: Path) -> None:
    """NaNs with what they carry, infinities, denormals and -0.0 too."""
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 4, 64)
    words = bits.astype(np.uint32) << 16 | bits[::-1]
    rows = {"b": bits.view(BFLOAT16), "h": bits.view(np.float16), "f": words.view(np.float32)}
    sites = {name: actstore.SiteSpec(4, 64, array.dtype.name) for name, array in rows.items()}
    for codec in ("blosc", "raw"):
        with actstore.create(memory_path / codec, sites, codec=codec) as writer:
            writer.append(rows, [len(bits)])
        with actstore.open(memory_path / codec) as store:
            for name, array in rows.items():
                assert_same(store[name].read(), array)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_tensors(memory_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    spec = actstore.SiteSpec(2, 8, getattr(torch, dtype))
    assert spec.dtype == dtype
    rows = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    forms = {
        "plain": rows,
        "permuted": rows.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "strided": torch.stack([rows, rows + 1], dim=3)[..., 0],
        "flipped": rows.flip(0).contiguous().flip(0),
        "expanded": rows[:1].expand(5, 2, 8),
        "with a gradient": rows.clone().requires_grad_(),
        "computed": rows.clone().requires_grad_() * 2,
        "a parameter": torch.nn.Parameter(rows.clone()),
    }
    assert not forms["permuted"].is_contiguous()
    assert not forms["strided"].is_contiguous()
    with actstore.create(memory_path / "x", {"resid": spec}) as writer:
        for name, tensor in forms.items():
            writer.append(
                {"resid": tensor},
                torch.tensor([2, 3]),
                ids=[f"{name} 0", f"{name} 1"],
                token_columns=torch.arange(5),
                columns={"score": torch.tensor([0.5, 1.5])},
            )
    with actstore.open(memory_path / "x") as store:
        for i, tensor in enumerate(forms.values()):
            got = store["resid"].read("float32")[5 * i : 5 * i + 5]
            assert_same(got, tensor.detach().to(torch.float32).numpy())
        assert store["resid"].dtype.name == dtype
        assert store.tokens["id"].tolist() == list(range(5)) * len(forms)
        assert store.examples.dtypes == {"id": "str", "score": "float32"}


def test_torch_tensors_of_another_dtype(memory_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rows = torch.full((1, 1, 4), 1 + 2**-8 + 2**-40, dtype=torch.float64)
    with actstore.create(memory_path / "x", {"resid": actstore.SiteSpec(1, 4, "bfloat16")}) as writer:
        for wrong in (rows, rows.float(), rows.half()):
            with pytest.raises(InvalidInputError, match="bfloat16"):
                writer.append({"resid": wrong}, [1])
        for odd in (rows.to(torch.int16), rows.to_sparse(), rows.to(torch.complex64), rows.to("meta")):
            with pytest.raises(InvalidInputError):
                writer.append({"resid": odd}, [1], cast=True)
        assert writer.n_examples == 0
        writer.append({"resid": rows}, [1], cast=True)
    with actstore.open(memory_path / "x") as store:
        assert [float(x) for x in store["resid"][0, 0]] == [1 + 2**-7] * 4


def test_what_is_appended_is_copied(memory_path: Path) -> None:
    """Capture hands over the same buffer each time."""
    buffer = ones(2)
    columns = {"score": np.array([1.0])}
    with actstore.create(memory_path / "x", ONE) as writer:
        writer.append(buffer, [2], columns=columns)
        buffer["resid"][:] = 7
        columns["score"][:] = 7
        writer.append(buffer, [2], columns=columns)
    with actstore.open(memory_path / "x") as store:
        assert store["resid"][:, 0, 0].tolist() == [1, 1, 7, 7]
        assert store.examples["score"].tolist() == [1, 7]


def test_numpy_of_any_layout(memory_path: Path) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(6, 1, 4)
    forms = [rows, np.asfortranarray(rows), rows[::-1][::-1], rows.astype(">f4"), rows.tolist()]
    with actstore.create(memory_path / "x", ONE) as writer:
        for form in forms:
            writer.append({"resid": form}, [6], cast=isinstance(form, list))
    with actstore.open(memory_path / "x") as store:
        assert_same(store["resid"].read(), np.concatenate([rows] * len(forms)))


# ---- Counting ----


def test_counts(memory_path: Path) -> None:
    with actstore.create(memory_path / "x", ONE) as writer:
        assert (writer.n_examples, writer.n_tokens, writer.sites) == (0, 0, ["resid"])
        writer.append(ones(3), [1, 0, 2])
        assert (writer.n_examples, writer.n_tokens) == (3, 3)
        writer.commit()
        writer.append(ones(0), [0, 0])
        assert (writer.n_examples, writer.n_tokens) == (5, 3)
        writer.append(ones(0), [])
        assert (writer.n_examples, writer.n_tokens) == (5, 3)
    assert (writer.n_examples, writer.n_tokens) == (5, 3)
    with actstore.append(memory_path / "x") as writer:
        assert (writer.n_examples, writer.n_tokens) == (5, 3)
        writer.append(ones(1), [1])
        assert (writer.n_examples, writer.n_tokens) == (6, 4)
    with actstore.open(memory_path / "x") as store:
        assert store.examples["id"].tolist() == ["0", "1", "2", "3", "4", "5"]
        assert store.tokens.offsets.tolist() == [0, 1, 1, 3, 3, 3, 4]


def test_counts_of_the_first_axis_and_of_none(memory_path: Path) -> None:
    both = {"q": actstore.SiteSpec(1, 4, "float32", axis="encoder")}
    with actstore.create(memory_path / "x", both) as writer:
        writer.append({"q": np.ones((3, 1, 4), np.float32)}, [1, 2])
        assert (writer.n_examples, writer.n_tokens) == (2, 3)
    pooled = {"p": actstore.SiteSpec(1, 4, "float32", axis="examples")}
    with actstore.create(memory_path / "y", pooled) as writer:
        writer.append({"p": np.ones((3, 1, 4), np.float32)})
        with pytest.raises(InvalidInputError, match="leave it out"):
            writer.append({"p": np.ones((3, 1, 4), np.float32)}, [1, 1, 1])
        assert (writer.n_examples, writer.n_tokens) == (3, 0)
    with actstore.open(memory_path / "y") as store:
        assert (store.n_examples, store.n_tokens) == (3, 0)
        assert store["p"].example("2").shape == (1, 1, 4)


def test_reopened_writers_know_ids_columns_and_digest(memory_path: Path) -> None:
    """One writer or three, the store is the same."""
    corpus = Corpus(several=True)
    corpus.build(memory_path / "once", 9)
    with corpus.create(memory_path / "thrice") as writer:
        corpus.append(writer, 4)
    for n in (3, 2):
        with actstore.append(memory_path / "thrice") as writer:
            with pytest.raises(InvalidInputError, match="'ex-1'"):
                writer.append(*_again(corpus))
            corpus.append(writer, n)
    with actstore.open(memory_path / "once") as one, actstore.open(memory_path / "thrice") as three:
        assert corpus.check(one) == corpus.check(three) == 9
        assert one.examples.dtypes == three.examples.dtypes
    once, thrice = (newest_record(memory_path / name)["state"] for name in ("once", "thrice"))
    assert once == thrice


def _again(corpus: Corpus) -> tuple[Any, ...]:
    """The second example, with its id, once more."""
    acts = {
        name: corpus.rows(name, corpus.n_rows(site.axis, 1), corpus.n_rows(site.axis, 2))
        for name, site in corpus.sites.items()
    }
    return acts, {axis: np.diff(offset[1:3]) for axis, offset in corpus.offsets.items()}, ["ex-1"]


# ---- Commits ----

SEEN = """
import sys, actstore
with actstore.open(sys.argv[1]) as store:
    print(store.n_examples, store.n_tokens, store["resid"][:, 0, 0].tolist(), store.examples["id"].tolist())
"""


def seen_elsewhere(path: Path) -> str:
    """What another process finds."""
    return subprocess.run(
        [sys.executable, "-c", SEEN, str(path)], check=True, capture_output=True, text=True, timeout=LIMIT
    ).stdout.strip()


def test_a_commit_shows_to_other_processes(memory_path: Path) -> None:
    with actstore.create(memory_path / "x", ONE) as writer:
        writer.append(ones(2), [2], ids=["a"])
        assert seen_elsewhere(memory_path / "x") == "0 0 [] []"
        writer.commit()
        writer.append(ones(1), [1], ids=["b"])
        assert seen_elsewhere(memory_path / "x") == "1 2 [1.0, 1.0] ['a']"


def test_commits_without_rows(memory_path: Path) -> None:
    with actstore.create(memory_path / "x", ONE) as writer:
        first = len(records(memory_path / "x"))
        writer.commit()
        once = len(records(memory_path / "x"))
        for _ in range(3):
            writer.commit()
        writer.append(ones(0), [])
        writer.commit()
        assert len(records(memory_path / "x")) == once <= first + 1
        # An empty example has no rows and is something new all the same.
        writer.append(ones(0), [0], ids=["empty"])
        writer.commit()
        assert len(records(memory_path / "x")) == once + 1
    assert len(records(memory_path / "x")) == once + 1
    actstore.append(memory_path / "x").close()
    assert len(records(memory_path / "x")) == once + 1
    with actstore.open(memory_path / "x") as store:
        assert (store.n_examples, store.n_tokens) == (1, 0)
        assert store["resid"].example("empty").shape == (0, 1, 4)


# ---- Ending ----


class Mine(Exception):
    """Not one of ours."""


@pytest.mark.parametrize("error", [Mine, KeyboardInterrupt, SystemExit])
def test_an_exception_discards_what_is_not_committed(memory_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with actstore.create(memory_path / "x", ONE) as writer:
            writer.append(ones(1), [1], ids=["kept"])
            writer.commit()
            writer.append(ones(1), [1], ids=["lost"])
            raise error

    with pytest.raises(error):
        fail()
    with actstore.append(memory_path / "x") as writer:  # The lock is free.
        assert writer.n_examples == 1
        writer.append(ones(1), [1], ids=["lost"])
    with actstore.open(memory_path / "x") as store:
        assert store.examples["id"].tolist() == ["kept", "lost"]
        assert store["resid"].shape == (2, 1, 4)


def test_close_and_abort_may_come_often(memory_path: Path) -> None:
    writer = actstore.create(memory_path / "x", ONE)
    writer.append(ones(1), [1])
    for _ in range(3):
        writer.close()
    n_records = len(records(memory_path / "x"))
    writer.abort()
    writer.close()
    assert len(records(memory_path / "x")) == n_records
    aborted = actstore.append(memory_path / "x")
    aborted.append(ones(1), [1])
    for _ in range(3):
        aborted.abort()
    aborted.close()  # What was discarded stays so.
    with actstore.open(memory_path / "x") as store:
        assert store.n_examples == 1


USES: dict[str, Callable[[actstore.StoreWriter], object]] = {
    "append": lambda w: w.append(ones(1), [1]),
    "commit": lambda w: w.commit(),
    "a with block": lambda w: w.__enter__(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_closed_writer_says_so(memory_path: Path, use: str, end: str) -> None:
    writer = actstore.create(memory_path / "x", ONE)
    getattr(writer, end)()
    with pytest.raises(StorageError, match="closed") as caught:
        USES[use](writer)
    assert caught.value.kind == "closed"
    assert writer.path == str(memory_path / "x")


# ---- Making ----


def test_create_takes_no_place_that_is_taken(begun: Path, memory_path: Path) -> None:
    before = {name: (begun / name).read_bytes() for name in files_on_disk(begun)}
    with pytest.raises(StorageError) as caught:
        actstore.create(begun, ONE)
    assert caught.value.kind == "exists"
    assert {name: (begun / name).read_bytes() for name in files_on_disk(begun)} == before
    (memory_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(StorageError):
            actstore.create(memory_path / "file", ONE, overwrite=overwrite)
    assert (memory_path / "file").read_text() == "mine"


def test_create_makes_the_folders_on_the_way(memory_path: Path) -> None:
    actstore.create(memory_path / "a/b/x.act", ONE).close()
    assert actstore.open(memory_path / "a/b/x.act").n_examples == 0


def test_overwrite(memory_path: Path) -> None:
    with actstore.create(memory_path / "x", ONE, identity={"model": "old"}) as writer:
        writer.append(ones(3), [3], columns={"label": ["x"]})
    other = {"mlp_out": actstore.SiteSpec(2, 3, "float16")}
    with actstore.create(memory_path / "x", other, overwrite=True) as writer:
        writer.append({"mlp_out": np.ones((2, 2, 3), np.float16)}, [1, 1])
    with actstore.open(memory_path / "x") as store:
        assert (store.sites, store.n_examples, store.identity) == (["mlp_out"], 2, {})
        assert list(store.examples) == ["id"]
        assert store.verify(strict=True).leftovers == []
    assert not (memory_path / "x/resid").exists()
    assert [path.name for path in memory_path.iterdir()] == ["x"]


UNUSABLE: dict[str, dict[str, Any]] = {
    "no sites": {"sites": {}},
    "a name": {"sites": {"a/b": ONE["resid"]}},
    "no spec": {"sites": {"resid": (1, 4)}},
    "a codec": {"codec": "zip"},
    "an identity": {"identity": {"x": {1}}},
    "a NaN": {"identity": {"x": float("nan")}},
    "a part": {"part": (2, 2)},
    "a site that is its axis": {"sites": {"tokens": ONE["resid"]}},
    "an axis that is a site": {"sites": {"q": actstore.SiteSpec(1, 4, "float32", axis="resid"), **ONE}},
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_failed_overwrite_keeps_the_old_store(begun: Path, what: str) -> None:
    before = {name: (begun / name).read_bytes() for name in files_on_disk(begun)}
    with pytest.raises(InvalidInputError):
        actstore.create(begun, **({"sites": ONE} | UNUSABLE[what]), overwrite=True)
    assert {name: (begun / name).read_bytes() for name in files_on_disk(begun)} == before
    assert [path.name for path in begun.parent.iterdir()] == ["x.act"]


def test_no_overwrite_under_a_writer(memory_path: Path) -> None:
    with actstore.create(memory_path / "x", ONE) as writer:
        writer.append(ones(1), [1])
        with pytest.raises(StorageError) as caught:
            actstore.create(memory_path / "x", ONE, overwrite=True)
        assert caught.value.kind == "locked"
    with actstore.open(memory_path / "x") as store:
        assert store.n_examples == 1


BAD_NAMES = [
    "",
    ".",
    "..",
    ".x",
    "__x",
    "a/b",
    "a\\b",
    "a\0b",
    "c",
    "zarr.json",
    "commits",
    "\ud800",
    "é" * 128,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_refused(memory_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError):
        actstore.create(memory_path / "x", {name: ONE["resid"]})
    with pytest.raises(InvalidInputError):
        actstore.SiteSpec(1, 4, "float32", axis=name)
    assert list(memory_path.iterdir()) == []
    with actstore.create(memory_path / "x", ONE) as writer:
        for given in ({"token_columns": {name: [1]}}, {"columns": {name: [1]}}):
            with pytest.raises(InvalidInputError):
                writer.append(ones(1), [1], **given)
        wrong = {"token_columns": {"offset": [1]}}, {"columns": {"offset": [1]}}, {"columns": {"id": ["x"]}}
        for given in wrong:
            with pytest.raises(InvalidInputError):
                writer.append(ones(1), [1], **given)
        assert writer.n_examples == 0


def test_names_taken(memory_path: Path) -> None:
    """Whatever can be a path component, whatever it looks like."""
    names = ["résidu 0", "a.b", "-", "%2F", "blocks.*.mlp", "x" * 255, "é" * 127, "日本語", "Zarr.json"]
    specs = dict.fromkeys(names, ONE["resid"])
    rows = {name: np.full((1, 1, 4), i, np.float32) for i, name in enumerate(names)}
    more = {name: [name] for name in names}
    with actstore.create(memory_path / "x", specs) as writer:
        writer.append(
            rows, [1], ids=["a/b\0 日本"], token_columns={n: [i] for i, n in enumerate(names)}, columns=more
        )
    with actstore.open(memory_path / "x") as store:
        assert store.sites == names
        assert store.examples["id"].tolist() == ["a/b\0 日本"]
        for i, name in enumerate(names):
            assert store[name][0, 0, 0] == i
            assert store.tokens[name].tolist() == [i]
            assert store.examples[name].tolist() == [name]
        assert store.verify(strict=True).ok


@pytest.mark.parametrize("path", ["", "a\0b", b"x", 3, None])
def test_paths_refused(memory_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any) -> None:
    monkeypatch.chdir(memory_path)
    for call in (lambda: actstore.create(path, ONE), lambda: actstore.append(path)):
        with pytest.raises(InvalidInputError):
            call()
    assert list(memory_path.iterdir()) == []


@pytest.mark.parametrize("part", [3, (1,), (0, 1, 2), (2, 2), (-1, 2), (0.5, 2), ("0", "2")])
def test_parts_refused(memory_path: Path, part: Any) -> None:
    with pytest.raises(InvalidInputError, match="part"):
        actstore.create(memory_path / "x", ONE, part=part)
    assert list(memory_path.iterdir()) == []
