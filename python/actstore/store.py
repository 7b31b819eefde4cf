"""Open stores: sites by name, columns by axis, verification and sizes on disk."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from numpy.typing import DTypeLike

from .artifacts import whiteners
from .artifacts.listing import artifacts
from .base.arrays import FLOAT_DTYPES
from .base.checks import as_path
from .base.html import table
from .base.progress import Progress
from .base.text import human_bytes
from .disk.columns import Columns
from .disk.layout import FORMAT, TOKENS
from .disk.parts import Part, missing
from .disk.report import Damage, Report
from .disk.snapshot import Handle, Snapshot, load
from .errors import FormatError, InvalidInputError, NotFoundError
from .loader.permutation import Shuffle
from .ops.stored_whiteners import Whiteners
from .rows.stored import stored_backend
from .site import Site

if TYPE_CHECKING:
    from .loader.torch_dataset import TorchDataset

_VERIFY = ("first", "always", "never")


def open(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    verify: Literal["first", "always", "never"] = "first",
) -> "Store":
    """Open a store for reading, at its last commit.

    Parameters
    ----------
    path : path or list of paths
        A store; a list of parts, whose rows are concatenated in this order; or a folder of parts, in the
        order of their index. Any Zarr v3 group with float arrays ``[rows, layers, dim]`` or ``[rows, dim]``
        can be opened too.
    verify : {"first", "always", "never"}
        When to check the checksum of an uncompressed chunk: at the first read, at every read, or never.
        Compressed chunks are checked at every read.

    Returns
    -------
    Store

    Raises
    ------
    NotFoundError
        When there is no store.
    FormatError
        When its metadata is damaged or has a newer version.
    InvalidInputError
        When parts differ in their sites, axes or columns.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> spec = actstore.SiteSpec(n_layers=1, dim=4, dtype="bfloat16")
    >>> with actstore.create(path, {"resid": spec}) as w:
    ...     rows = {"resid": np.ones((3, 1, 4))}
    ...     w.append(rows, lengths=[1, 2], token_columns={"id": [5, 6, 7]}, cast=True)
    >>> with actstore.open(path) as store:
    ...     store.n_tokens, store.n_examples, store.sites, store.tokens["id"]
    (3, 2, ['resid'], array([5, 6, 7]))
    """
    if verify not in _VERIFY:
        raise InvalidInputError(f"verify is {verify!r}, not one of {', '.join(_VERIFY)}")
    source: str | list[str]
    if isinstance(path, str | os.PathLike):
        source = as_path(path)
    elif isinstance(path, Sequence) and not isinstance(path, bytes):
        source = [as_path(item) for item in path]
    else:
        raise InvalidInputError(f"expected a path or a list of paths, got {type(path).__name__}")
    return Store(load(source, verify, Handle()))


class Store(Mapping[str, Site]):
    """A store opened by `open`: a mapping of sites by name, and columns by axis, all at one commit.

    ``store["resid"]`` is a `Site`. Later commits appear after `refresh`. A store is equal only to itself.

    Attributes
    ----------
    snapshot : Snapshot
        The open parts, each at one commit. For internal use.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> acts = {"resid": np.ones((2, 1, 4), np.float32)}
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "float32")}) as w:
    ...     w.append(acts, lengths=[2], ids=["a"])
    ...     w.commit()
    ...     store = actstore.open(path)
    ...     w.append(acts, lengths=[1, 1], ids=["b", "c"])
    >>> "resid" in store, store.n_examples
    (True, 1)
    >>> store.refresh(), store.n_examples
    (True, 3)
    >>> store.verify().ok
    True
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    @property
    def path(self) -> str | list[str]:
        """The path or paths that were opened."""
        return self.snapshot.source

    @property
    def sites(self) -> list[str]:
        """Names of the sites."""
        return list(self.snapshot.layout.sites)

    @property
    def axes(self) -> Mapping[str, Columns]:
        """The columns and offsets of each axis of tokens."""
        return MappingProxyType(self.snapshot.axes)

    @property
    def tokens(self) -> Columns:
        """``axes["tokens"]``.

        Raises
        ------
        NotFoundError
            When there is no such axis.
        """
        if TOKENS not in self.snapshot.axes:
            raise NotFoundError(
                f"{self.snapshot.name} has no axis {TOKENS!r}, it has: {', '.join(self.axes) or 'none'}"
            )
        return self.snapshot.axes[TOKENS]

    @property
    def examples(self) -> Columns:
        """The columns over examples; ``examples["id"]`` is always there."""
        return self.snapshot.examples

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the activations that the writer recorded: model, tokenizer, template, ..."""
        return dict(self.snapshot.layout.identity)

    @property
    def n_tokens(self) -> int:
        """The number of rows of axis `tokens`, or of the first axis if there is no axis `tokens`."""
        axes = self.snapshot.axes
        return axes[TOKENS].n_rows if TOKENS in axes else next((axis.n_rows for axis in axes.values()), 0)

    @property
    def n_examples(self) -> int:
        """The number of examples, empty ones included."""
        return self.snapshot.examples.n_rows

    @property
    def whiteners(self) -> Whiteners:
        """The whiteners saved by `Whitener.save`, by name."""
        self.snapshot.check_open()
        return Whiteners(self.snapshot.parts)

    # Mapping's own version would compare all sites.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> Site:
        self.snapshot.check_open()
        return Site(stored_backend(self.snapshot, name))

    def __contains__(self, name: object) -> bool:
        return name in self.snapshot.layout.sites

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    # Mapping's own version catches KeyError, which `__getitem__` does not raise.
    def get(self, name: str, default: Any = None) -> Any:
        """The site of this name, or `default`."""
        return self[name] if name in self.snapshot.layout.sites else default

    def __repr__(self) -> str:
        if self.snapshot.handle.closed:
            return f"Store({self.snapshot.name!r}, closed)"
        sites = ", ".join(f"{name}: {list(self[name].shape)} {self[name].dtype.name}" for name in self)
        absent, count = missing(self.snapshot.parts)
        parts = f"{count - len(absent)} of {count} parts, " if absent else ""
        return (
            f"Store({self.snapshot.name!r}, {parts}{self.n_examples} examples, {self.n_tokens} tokens, "
            f"{{{sites}}})"
        )

    def _repr_html_(self) -> str:
        if self.snapshot.handle.closed:
            return table(repr(self), ("",), [])
        rows = [
            (name, site.axis, list(site.shape), site.dtype.name, human_bytes(site.nbytes))
            for name, site in self.items()
        ]
        title = f"{self.snapshot.name}: {self.n_examples:,} examples, {self.n_tokens:,} tokens"
        return table(title, ("site", "axis", "shape", "dtype", "size"), rows)

    def refresh(self) -> bool:
        """Move to the newest commit; return whether it is a new one.

        Sites obtained earlier keep their view.

        Raises
        ------
        NotFoundError, FormatError
            When the store has disappeared or is damaged.
        """
        self.snapshot.check_open()
        newest = load(self.snapshot.source, self.snapshot.verify, self.snapshot.handle, self.snapshot)
        if newest.version == self.snapshot.version:
            return False
        self.snapshot = newest
        return True

    def close(self) -> None:
        """Close the files. Sites of this store cannot be read afterward."""
        if not self.snapshot.handle.closed:
            self.snapshot.handle.closed = True
            for part in self.snapshot.parts:
                part.reader.close()

    def __enter__(self) -> Self:
        self.snapshot.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        self.snapshot.check_open()
        return open, (self.snapshot.source, self.snapshot.verify)

    def torch_dataset(
        self,
        batch_size: int = 4096,
        sites: str | Sequence[str] | None = None,
        *,
        shuffle: Shuffle = False,
        seed: int = 0,
        dtype: DTypeLike | str | None = None,
        columns: Sequence[str] | None = None,
        drop_last: bool = False,
        reservoir: int | None = None,
        prefetch: int = 2,
        threads: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> "TorchDataset":
        """Sites as a dataset of batches, for ``DataLoader(dataset, batch_size=None)``.

        Parameters
        ----------
        batch_size : int
            Rows per batch.
        sites : str or list of str, optional
            One site, or several on one axis; by default the only site.
        shuffle, seed, dtype, drop_last, reservoir, prefetch, threads
            As in `batches`.
        columns : list of str, optional
            Columns of the rows' axis or of their examples; a batch is then a dict.
        rank, world_size : int, optional
            The index of this process and the number of processes that share the rows; by default from
            ``torch.distributed``, else from the environment's ``RANK`` and ``WORLD_SIZE``.

        Returns
        -------
        TorchDataset
            Yields each row once per epoch, over all ranks and workers.

        Raises
        ------
        NotFoundError
            When there is no such site.
        InvalidInputError
            When torch is not installed, sites are on different axes, or an option is invalid.
        """
        from .loader.torch_dataset import sites_of, torch_dataset  # imports torch

        return torch_dataset(
            sites_of(self, sites),
            batch_size,
            shuffle=shuffle,
            seed=seed,
            dtype=dtype,
            columns=columns,
            drop_last=drop_last,
            reservoir=reservoir,
            prefetch=prefetch,
            threads=threads,
            rank=rank,
            world_size=world_size,
        )

    def verify(self, strict: bool = False, threads: int = 0, progress: Progress | None = None) -> Report:
        """Check every checksum of the open commit.

        Parameters
        ----------
        strict : bool
            Also list the leftovers of interrupted writes.
        threads : int
            0 means all cores.
        progress : callable, optional
            Called with the bytes done and the total.

        Returns
        -------
        Report
            ``ok``, the damaged chunks and the leftovers.
        """
        self.snapshot.check_open()
        sizes = [_expected_bytes(part) if progress is not None else 0 for part in self.snapshot.parts]
        damaged: list[Damage] = []
        leftovers: list[str] = []
        n_chunks = n_bytes = 0
        for i, part in enumerate(self.snapshot.parts):
            raw = part.reader.verify(strict, threads, _shifted(progress, sum(sizes[:i]), sum(sizes[i + 1 :])))
            found = json.loads(raw)
            damaged += [Damage(part.path, **damage) for damage in found["damaged"]]
            leftovers += [os.path.join(part.path, name) for name in found["leftovers"]]
            n_chunks += found["chunks"]
            n_bytes += found["bytes"]
        return Report(damaged, leftovers, n_chunks, n_bytes)

    def info(self) -> dict[str, Any]:
        """The contents of the store and their sizes on disk, ready for JSON.

        Returns
        -------
        dict
            ``path``, ``format`` (None for a foreign group), ``uuid``, ``identity``, ``n_examples``,
            ``n_tokens``, ``sites``, ``derived``, ``whiteners``, ``artifacts``, ``unknown``,
            ``short_columns``, ``axes``, ``examples``, ``stored_bytes``, ``hole_bytes``, ``parts``,
            ``missing_parts``.
        """
        self.snapshot.check_open()
        layout, parts = self.snapshot.layout, self.snapshot.parts
        usages = [json.loads(part.reader.usage()) for part in parts]
        sites = {}
        for name, site in layout.sites.items():
            array = self.snapshot.array(name)
            usage = {
                key: sum(u[name][key] for u in usages if name in u)
                for key in ("logical_bytes", "stored_bytes", "hole_bytes", "shards")
            }
            used = usage["stored_bytes"] - usage["hole_bytes"]
            sites[name] = {
                "axis": site.axis,
                "shape": list(array.shape),
                "dtype": FLOAT_DTYPES[array.dtype].name,
                "layers": list(site.labels),
                "about": site.about,
                "codec": array.codec,
                "chunk_rows": array.chunk_rows,
                **usage,
                "ratio": usage["logical_bytes"] / used if used else None,
            }
        return {
            "path": self.snapshot.source,
            "format": None if parts[0].foreign else FORMAT,
            "uuid": layout.uuid,
            "identity": layout.identity,
            "n_examples": self.n_examples,
            "n_tokens": self.n_tokens,
            "sites": sites,
            "derived": self.snapshot.derived_info(),
            "whiteners": whiteners.describe(parts),
            "artifacts": {
                name: {"kind": own.get("kind"), "version": own.get("version")}
                for name, own in artifacts(parts[0].reader).items()
            },
            "unknown": self.snapshot.unknown(),
            "short_columns": self.snapshot.short_columns(),
            "axes": {
                name: {"rows": columns.n_rows, "columns": columns.dtypes}
                for name, columns in self.axes.items()
            },
            "examples": {"rows": self.n_examples, "columns": self.examples.dtypes},
            "stored_bytes": sum(map(_stored_bytes, usages)),
            "hole_bytes": sum(array["hole_bytes"] for usage in usages for array in usage.values()),
            "parts": [
                {
                    "path": part.path,
                    "index": part.layout.part[0] if part.layout.part else None,
                    "count": part.layout.part[1] if part.layout.part else None,
                    "record": part.reader.record,
                    "n_examples": part.n_examples,
                }
                for part in parts
            ],
            "missing_parts": missing(parts)[0],
        }


def _stored_bytes(usage: Mapping[str, Mapping[str, int]]) -> int:
    return sum(array["stored_bytes"] for array in usage.values())


def _expected_bytes(part: Part) -> int:
    """Bytes to check in a part; 0 when they are not known before the check."""
    try:
        return _stored_bytes(json.loads(part.reader.usage()))
    except FormatError:
        return 0


def _shifted(progress: Progress | None, before: int, after: int) -> Progress | None:
    """Report the progress of one part as progress of all parts."""
    if progress is None:
        return None
    return lambda done, total: progress(before + done, before + total + after)


def check_store(store: object) -> None:
    """Raise InvalidInputError for anything but a Store."""
    if not isinstance(store, Store):
        hint = "actstore.open(path)" if isinstance(store, str | os.PathLike) else None
        raise InvalidInputError(f"store: expected an open Store, got {type(store).__name__}", hint=hint)
