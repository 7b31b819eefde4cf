"""Opening a store and what is in it."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from numpy.typing import DTypeLike

from . import whiteners
from .arrays import FLOAT_DTYPES
from .columns import Columns
from .errors import FormatError, InvalidInputError, NotFoundError
from .layout import FORMAT, TOKENS
from .origin import stored_origin
from .parts import Part, as_path, missing
from .report import Damage, Report
from .shuffle import Shuffle
from .site import Site
from .snapshot import Handle, Snapshot, load
from .whiten import Whiteners

if TYPE_CHECKING:
    from .torch_dataset import TorchDataset

Progress = Callable[[int, int], object]
"""Called with the bytes done and the bytes in all."""

_VERIFY = ("first", "always", "never")


def open(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    verify: Literal["first", "always", "never"] = "first",
) -> "Store":
    """Open a store for reading, at its last commit.

    Parameters
    ----------
    path : path or list of paths
        A store; a list of parts, whose rows follow one another in this order; or a folder of parts,
        in the order of their index. Any Zarr v3 group with 3-D float arrays will do.
    verify : {"first", "always", "never"}
        When the checksums of uncompressed chunks are looked at. Compressed ones always are.

    Returns
    -------
    Store

    Raises
    ------
    NotFoundError
        When there is no store.
    FormatError
        When its metadata is damaged or of a newer version.
    InvalidInputError
        When parts differ in their sites, axes or columns.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> spec = actstore.SiteSpec(n_layers=1, dim=4, dtype="bfloat16")
    >>> with actstore.create(path, {"resid": spec}) as w:
    ...     w.append({"resid": np.ones((3, 1, 4))}, lengths=[1, 2], tokens={"id": [5, 6, 7]}, cast=True)
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


class Store:
    """A store opened by `open`: sites by name, columns by axis, all at one commit.

    ``store["resid"]`` is a `Site`; iterating gives the sites' names. What a writer commits later
    is seen after `refresh`.

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
        self._snapshot = snapshot

    @property
    def path(self) -> str | list[str]:
        """What was opened."""
        return self._snapshot.source

    @property
    def sites(self) -> list[str]:
        """The sites' names."""
        return list(self._snapshot.layout.sites)

    @property
    def axes(self) -> Mapping[str, Columns]:
        """The columns and offsets of each axis of tokens."""
        return MappingProxyType(self._snapshot.axes)

    @property
    def tokens(self) -> Columns:
        """``axes["tokens"]``.

        Raises
        ------
        NotFoundError
            When there is no such axis.
        """
        if TOKENS not in self._snapshot.axes:
            raise NotFoundError(
                f"{self._snapshot.name} has no axis {TOKENS!r}, it has: {', '.join(self.axes) or 'none'}"
            )
        return self._snapshot.axes[TOKENS]

    @property
    def examples(self) -> Columns:
        """The columns over examples; ``examples["id"]`` is always there."""
        return self._snapshot.examples

    @property
    def identity(self) -> dict[str, Any]:
        """What the activations are of, as the writer said."""
        return dict(self._snapshot.layout.identity)

    @property
    def n_tokens(self) -> int:
        """Rows of axis `tokens`, or of the first axis there is."""
        axes = self._snapshot.axes
        return axes[TOKENS].n_rows if TOKENS in axes else next((axis.n_rows for axis in axes.values()), 0)

    @property
    def n_examples(self) -> int:
        """Examples, empty ones included."""
        return self._snapshot.examples.n_rows

    @property
    def whiteners(self) -> Whiteners:
        """Those that `Whitener.save` has put here, by name."""
        self._snapshot.check_open()
        return Whiteners(self._snapshot.parts)

    def __getitem__(self, name: str) -> Site:
        self._snapshot.check_open()
        return Site(stored_origin(self._snapshot, name))

    def __contains__(self, name: object) -> bool:
        return name in self._snapshot.layout.sites

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        if self._snapshot.handle.closed:
            return f"Store({self._snapshot.name!r}, closed)"
        sites = ", ".join(f"{name}: {list(self[name].shape)} {self[name].dtype.name}" for name in self)
        absent, count = missing(self._snapshot.parts)
        parts = f"{count - len(absent)} of {count} parts, " if absent else ""
        return (
            f"Store({self._snapshot.name!r}, {parts}{self.n_examples} examples, {self.n_tokens} tokens, "
            f"{{{sites}}})"
        )

    def refresh(self) -> bool:
        """See what was committed since; True when there is something new.

        Sites taken before keep their view.

        Raises
        ------
        NotFoundError, FormatError
            When the store is gone or damaged by now.
        """
        self._snapshot.check_open()
        newest = load(self._snapshot.source, self._snapshot.verify, self._snapshot.handle, self._snapshot)
        if newest.version == self._snapshot.version:
            return False
        self._snapshot = newest
        return True

    def close(self) -> None:
        """Release the files. Sites of this store cannot be read any more."""
        if not self._snapshot.handle.closed:
            self._snapshot.handle.closed = True
            for part in self._snapshot.parts:
                part.reader.close()

    def __enter__(self) -> Self:
        self._snapshot.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        self._snapshot.check_open()
        return open, (self._snapshot.source, self._snapshot.verify)

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
            Rows of a batch.
        sites : str or list of str, optional
            One site, or several on one axis; by default the only one there is.
        shuffle, seed, dtype, drop_last, reservoir, prefetch, threads
            As those of `batches`.
        columns : list of str, optional
            Columns of the rows' axis or of their examples; a batch is then a dict.
        rank, world_size : int, optional
            Among how many processes the rows are shared out, and which this is; by default those of
            ``torch.distributed``, else the environment's ``RANK`` and ``WORLD_SIZE``.

        Returns
        -------
        TorchDataset
            Each row once an epoch, over all ranks and workers.

        Raises
        ------
        NotFoundError
            When there is no such site.
        InvalidInputError
            When torch is not installed, there are several sites, or an option cannot be.
        """
        from .torch_dataset import sites_of, torch_dataset  # imports torch

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
        """Check every checksum of this view.

        Parameters
        ----------
        strict : bool
            Also list what an interrupted write left behind.
        threads : int
            0 means all cores.
        progress : callable, optional
            Called with the bytes done and the bytes in all.

        Returns
        -------
        Report
        """
        self._snapshot.check_open()
        sizes = [_expected_bytes(part) if progress is not None else 0 for part in self._snapshot.parts]
        damaged: list[Damage] = []
        leftovers: list[str] = []
        n_chunks = n_bytes = 0
        for i, part in enumerate(self._snapshot.parts):
            raw = part.reader.verify(strict, threads, _shifted(progress, sum(sizes[:i]), sum(sizes[i + 1 :])))
            found = json.loads(raw)
            damaged += [Damage(part.path, **damage) for damage in found["damaged"]]
            leftovers += [os.path.join(part.path, name) for name in found["leftovers"]]
            n_chunks += found["chunks"]
            n_bytes += found["bytes"]
        return Report(damaged, leftovers, n_chunks, n_bytes)

    def info(self) -> dict[str, Any]:
        """What is in the store and how much room it takes, ready for JSON.

        Returns
        -------
        dict
            ``path``, ``format`` (None for a foreign group), ``uuid``, ``identity``, ``n_examples``,
            ``n_tokens``, ``sites``, ``derived``, ``whiteners``, ``axes``, ``examples``,
            ``stored_bytes``, ``hole_bytes``, ``parts``.
        """
        self._snapshot.check_open()
        layout, parts = self._snapshot.layout, self._snapshot.parts
        usages = [json.loads(part.reader.usage()) for part in parts]
        sites = {}
        for name, site in layout.sites.items():
            array = self._snapshot.array(name)
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
            "path": self._snapshot.source,
            "format": None if parts[0].foreign else FORMAT,
            "uuid": layout.uuid,
            "identity": layout.identity,
            "n_examples": self.n_examples,
            "n_tokens": self.n_tokens,
            "sites": sites,
            "derived": self._snapshot.derived_info(),
            "whiteners": whiteners.describe(parts),
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
    """How much there is to check in a part, if that can be told before it is checked."""
    try:
        return _stored_bytes(json.loads(part.reader.usage()))
    except FormatError:
        return 0


def _shifted(progress: Progress | None, before: int, after: int) -> Progress | None:
    """One part's progress as that of all parts."""
    if progress is None:
        return None
    return lambda done, total: progress(before + done, before + total + after)
