"""Stores that hypothesis draws, the numpy arrays they are made from, and three readers to compare with.

A `Plan` is the structure: sites, axes, appends and what comes after each. The values are made from
its seed, so that hypothesis shrinks the structure and the values stay what they are. `Expected`
is what a store must hold after some of the appends: plain numpy, written without a look at actstore.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import actstore
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
COLUMN_DTYPES = [
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *DTYPES,
]
SITE_NAMES = ["resid", "attn_out", "mlp.3.act", "final", "größe", "two words", "0"]
AXES = ["tokens", "encoder", "decoder", "examples"]
COLUMN_NAMES = ["id", "position", "special", "log prob", "ß"]
PATTERNS = [
    "normal",
    "heavy",
    "zeros",
    "constant",
    "repeated rows",
    "any bits",
    "specials",
    "denormal",
    "sparse",
]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder of its own, in memory where there is such a place: thousands of fsyncs are waited for here."""
    memory = "/dev/shm"
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="actstore-", dir=where) as name:
        yield Path(name)


def bits(array: np.ndarray) -> np.ndarray:
    """The array's bits as integers: NaNs compare, and so do the signs of zeros."""
    array = np.ascontiguousarray(array)
    return array if array.dtype == np.bool_ else array.view(f"u{array.dtype.itemsize}")


def assert_same(found: Any, expected: np.ndarray, what: object = "") -> None:
    """Equal in dtype, shape and every bit."""
    found = np.asarray(found)
    assert found.dtype == expected.dtype, what
    assert found.shape == expected.shape, what
    np.testing.assert_array_equal(bits(found), bits(expected), err_msg=str(what))


def values(rng: np.random.Generator, pattern: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of `shape` with the character that `pattern` names."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    if pattern == "zeros":
        return np.zeros(shape, dtype)
    if pattern == "constant":
        return np.full(shape, rng.normal(), dtype)
    if pattern == "any bits":
        return rng.integers(0, np.iinfo(unsigned).max, shape, unsigned, endpoint=True).view(dtype)
    if pattern == "denormal":
        few = rng.integers(0, 20, shape, unsigned)
        return (few | (rng.integers(0, 2, shape, unsigned) << (8 * dtype.itemsize - 1))).view(dtype)
    wide = rng.normal(size=shape)
    if pattern == "heavy":
        wide = rng.standard_t(2, shape) * np.exp(rng.normal(size=shape[-1:]))
        wide = np.clip(wide, -6e4, 6e4)
    elif pattern == "sparse":
        wide = np.where(rng.random(shape) < 0.05, wide, 0.0)
    elif pattern == "repeated rows":
        few = rng.normal(size=(3, *shape[1:]))
        wide = few[rng.integers(0, 3, shape[0])]
    out = wide.astype(dtype)
    if pattern == "specials":
        odd = np.array(
            [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, float(ml_dtypes.finfo(dtype).max)], dtype
        )
        hit = rng.random(shape) < 0.3
        out[hit] = odd[rng.integers(0, len(odd), int(hit.sum()))]
    return out


def column_values(rng: np.random.Generator, dtype: str, n: int) -> np.ndarray:
    """Any values of the dtype at all."""
    if dtype == "bool":
        return rng.random(n) < 0.5
    return np.frombuffer(rng.bytes(n * np.dtype(DTYPES.get(dtype, dtype)).itemsize), DTYPES.get(dtype, dtype))


@dataclass(frozen=True)
class Step:
    """One append, and what is done after it: nothing, a commit, or closing and opening again."""

    lengths: dict[str, list[int]]
    n_examples: int
    after: str


@dataclass(frozen=True)
class Plan:
    """A store to be: everything but the values, which follow from `seed`."""

    seed: int
    codec: str
    sites: dict[str, actstore.SiteSpec]
    patterns: dict[str, str]
    token_columns: dict[str, dict[str, str]]
    number_columns: dict[str, str]
    string_columns: list[str]
    own_ids: bool
    steps: list[Step] = field(default_factory=list)

    @property
    def axes(self) -> list[str]:
        return [a for a in dict.fromkeys(spec.axis for spec in self.sites.values()) if a != "examples"]


@dataclass
class Append:
    """The arguments of one `StoreWriter.append`."""

    acts: dict[str, np.ndarray]
    lengths: dict[str, list[int]] | None
    ids: list[str] | None
    tokens: dict[str, dict[str, np.ndarray]] | None
    columns: dict[str, Any] | None
    n_examples: int


@dataclass
class Expected:
    """What a store must hold: each array whole, as numpy has it."""

    sites: dict[str, np.ndarray]
    offsets: dict[str, np.ndarray]
    tokens: dict[str, dict[str, np.ndarray]]
    numbers: dict[str, np.ndarray]
    strings: dict[str, list[str]]

    @property
    def ids(self) -> list[str]:
        return self.strings["id"]

    def zarr_arrays(self) -> dict[str, np.ndarray]:
        """Every array that a Zarr reader must find, by its path in the group."""
        out = dict(self.sites)
        for axis, offset in self.offsets.items():
            out[f"{axis}/offset"] = offset
            out |= {f"{axis}/{name}": column for name, column in self.tokens[axis].items()}
        out |= {f"examples/{name}": column for name, column in self.numbers.items()}
        for name, texts in self.strings.items():
            raw = [text.encode() for text in texts]
            out[f"examples/{name}/bytes"] = np.frombuffer(b"".join(raw), np.uint8)
            out[f"examples/{name}/offset"] = np.cumsum([0, *map(len, raw)], dtype=np.int64)
        return out


def appends(plan: Plan) -> list[Append]:
    """The arguments of every append of a plan."""
    rng = np.random.default_rng(plan.seed)
    out = []
    before = 0
    for number, step in enumerate(plan.steps):
        n_rows = {axis: sum(step.lengths[axis]) for axis in plan.axes} | {"examples": step.n_examples}
        n = step.n_examples
        acts = {
            name: values(
                rng, plan.patterns[name], (n_rows[spec.axis], spec.n_layers, spec.dim), DTYPES[spec.dtype]
            )
            for name, spec in plan.sites.items()
        }
        ids = [f"{number}/{i} é" for i in range(n)] if plan.own_ids and (number % 2 == 0 or n == 0) else None
        tokens = {
            axis: {name: column_values(rng, dtype, n_rows[axis]) for name, dtype in columns.items()}
            for axis, columns in plan.token_columns.items()
        }
        columns: dict[str, Any] = {
            name: column_values(rng, dtype, n) for name, dtype in plan.number_columns.items()
        }
        columns |= {
            name: ["né " * int(k) for k in rng.integers(0, 4, n)] if n else np.array([], "U1")
            for name in plan.string_columns
        }
        # An empty list says nothing of its dtype, so of no examples no columns are given.
        out.append(
            Append(acts, step.lengths or None, ids, tokens or None, (columns or None) if n else None, n)
        )
        before += n
    return out


def expected(plan: Plan, done: list[Append]) -> Expected:
    """What the store holds after these appends."""

    def join(arrays: list[np.ndarray], dtype: np.dtype, rest: tuple[int, ...] = ()) -> np.ndarray:
        return np.concatenate([np.zeros((0, *rest), dtype), *arrays])

    sites = {
        name: join([a.acts[name] for a in done], DTYPES[spec.dtype], (spec.n_layers, spec.dim))
        for name, spec in plan.sites.items()
    }
    offsets = {
        axis: np.cumsum([0] + [n for a in done for n in (a.lengths or {})[axis]], dtype=np.int64)
        for axis in plan.axes
    }
    ids: list[str] = []
    for a in done:
        ids += a.ids if a.ids is not None else [str(i) for i in range(len(ids), len(ids) + a.n_examples)]
    settled = any(a.n_examples for a in done)  # The first examples say which columns there are.
    tokens: dict[str, dict[str, np.ndarray]] = {axis: {} for axis in plan.axes}
    numbers: dict[str, np.ndarray] = {}
    strings: dict[str, list[str]] = {}
    if settled:
        for axis, columns in plan.token_columns.items():
            for name, dtype in columns.items():
                parts = [(a.tokens or {})[axis][name] for a in done]
                tokens[axis][name] = join(parts, np.dtype(DTYPES.get(dtype, dtype)))
        for name, dtype in plan.number_columns.items():
            parts = [a.columns[name] for a in done if a.columns]
            numbers[name] = join(parts, np.dtype(DTYPES.get(dtype, dtype)))
        for name in plan.string_columns:
            strings[name] = [text for a in done if a.columns for text in a.columns[name]]
    return Expected(sites, offsets, tokens, numbers, {"id": ids, **strings})


def write_append(writer: actstore.StoreWriter, plan: Plan, append: Append) -> None:
    """Give one append to a writer, in the shortest form its axes allow."""
    lengths: Any = append.lengths
    tokens: Any = append.tokens
    if len(plan.axes) == 1:
        lengths = lengths[plan.axes[0]]
        tokens = tokens[plan.axes[0]] if tokens else None
    writer.append(append.acts, lengths, ids=append.ids, token_columns=tokens, columns=append.columns)


def write(plan: Plan, path: Path) -> Expected:
    """Make the store of a plan; what it must hold."""
    done = appends(plan)
    writer = actstore.create(path, plan.sites, codec=plan.codec)
    try:
        for step, append in zip(plan.steps, done, strict=True):
            write_append(writer, plan, append)
            if step.after == "commit":
                writer.commit()
            elif step.after == "reopen":
                writer.close()
                writer = actstore.append(path)
        writer.close()
    finally:
        writer.abort()
    return expected(plan, done)


def check_actstore(path: Path, want: Expected, plan: Plan) -> None:
    """The store, read by actstore, is what it must be."""
    with actstore.open(path) as store:
        assert set(store.sites) == set(want.sites)
        assert store.n_examples == len(want.ids)
        assert list(store.axes) == sorted(plan.axes) or set(store.axes) == set(plan.axes)
        for name, array in want.sites.items():
            spec, site = plan.sites[name], store[name]
            assert site.shape == array.shape
            assert (site.axis, tuple(site.layers)) == (spec.axis, spec.labels)
            assert_same(site.read(), array, name)
            assert_same(site.read(threads=1), array, name)
        for axis, offset in want.offsets.items():
            columns = store.axes[axis]
            assert columns.n_rows == offset[-1]
            assert_same(columns.offsets, offset, axis)
            assert set(columns) == set(want.tokens[axis])
            for name, column in want.tokens[axis].items():
                assert_same(columns[name], column, (axis, name))
        assert set(store.examples) == set(want.numbers) | set(want.strings)
        for name, column in want.numbers.items():
            assert_same(store.examples[name], column, name)
        for name, texts in want.strings.items():
            assert store.examples[name].tolist() == texts
        report = store.verify(strict=True)
        assert report.ok, report.damaged
        assert not report.leftovers


def check_zarr(path: Path, want: dict[str, np.ndarray]) -> None:
    """The arrays, read by zarr-python, are what they must be, and there are no others."""
    import zarr

    group = zarr.open_group(path, mode="r")
    there = {name for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}
    assert there == set(want)
    for name, array in want.items():
        node = group[name]
        assert isinstance(node, zarr.Array)
        assert_same(node[...], array, f"zarr-python: {name}")


def check_tensorstore(path: Path, want: dict[str, np.ndarray]) -> None:
    """The arrays, read by tensorstore, are what they must be."""
    reads = {name: open_tensorstore(path / name).read() for name in want}
    for name, array in want.items():
        assert_same(reads[name].result(), array, f"tensorstore: {name}")


def open_tensorstore(path: Path) -> Any:
    """One array as tensorstore sees it now, nothing cached."""
    import tensorstore

    return tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}).result()


# ---- What hypothesis draws ----


@st.composite
def site_specs(draw: st.DrawFn, axes: list[str] = AXES) -> actstore.SiteSpec:
    """Any site that is small enough to compare three times."""
    n_layers = draw(st.integers(1, 4))
    labels = None
    if draw(st.booleans()):
        one = st.one_of(st.integers(0, 40), st.integers(0, 2**63 - 1))
        labels = draw(st.lists(one, min_size=n_layers, max_size=n_layers, unique=True))
    chunk_rows = draw(st.sampled_from([None, 1, 2, 3, 5, 16, 64]))
    shard_rows = chunk_rows and draw(st.sampled_from([None, 1, 2, 3, 7]))
    return actstore.SiteSpec(
        n_layers=n_layers,
        dim=draw(st.sampled_from([1, 2, 3, 5, 8, 16, 33, 64, 200])),
        dtype=draw(st.sampled_from(["bfloat16", "float16", "float32"])),
        labels=labels,
        axis=draw(st.sampled_from(axes)),
        chunk_rows=chunk_rows,
        shard_rows=chunk_rows * shard_rows if chunk_rows and shard_rows else None,
    )


LENGTH = st.one_of(st.integers(0, 6), st.just(0), st.integers(0, 60))


@st.composite
def plans(draw: st.DrawFn, max_steps: int = 5, axes: list[str] = AXES) -> Plan:
    """Any store: sites, axes, columns, appends."""
    names = draw(st.lists(st.sampled_from(SITE_NAMES), min_size=1, max_size=3, unique=True))
    sites = {name: draw(site_specs(axes)) for name in names}
    plan = Plan(
        seed=draw(st.integers(0, 2**32 - 1)),
        codec=draw(st.sampled_from(["blosc", "raw"])),
        sites=sites,
        patterns={name: draw(st.sampled_from(PATTERNS)) for name in names},
        token_columns={},
        number_columns={},
        string_columns=[],
        own_ids=draw(st.booleans()),
    )
    columns = st.dictionaries(st.sampled_from(COLUMN_NAMES), st.sampled_from(COLUMN_DTYPES), max_size=3)
    token_columns = {axis: draw(columns) for axis in plan.axes}
    numbers = {f"n {name}": dtype for name, dtype in draw(columns).items()}
    strings = draw(st.lists(st.sampled_from(["text", "länge"]), max_size=2, unique=True))
    steps = []
    for _ in range(draw(st.integers(1, max_steps))):
        n = draw(st.integers(0, 5))
        lengths = {axis: draw(st.lists(LENGTH, min_size=n, max_size=n)) for axis in plan.axes}
        steps.append(Step(lengths, n, draw(st.sampled_from(["nothing", "commit", "reopen"]))))
    return replace(
        plan,
        token_columns={axis: named for axis, named in token_columns.items() if named},
        number_columns=numbers,
        string_columns=strings,
        steps=steps,
    )
