"""Sites as a dataset of torch: whole batches for a DataLoader, each row once over all workers and ranks."""

import contextlib
import fcntl
import json
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .ahead import Ahead
from .arrays import BFLOAT16, FLOAT_DTYPES, dtype_named
from .errors import InvalidInputError, NotFoundError
from .feed import Feed, Taken, TorchContainer, at_least
from .layout import EXAMPLES
from .origin import Origin, StoredOrigin
from .shuffle import Shuffle, worker_batches
from .view import View

try:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info
except ImportError as _error:
    raise InvalidInputError(
        f"torch cannot be imported: {_error}", hint='pip install "actstore[torch]"'
    ) from _error

if TYPE_CHECKING:
    _Base = IterableDataset[Any]
else:
    _Base = IterableDataset

ROWS = "rows"
"""The key of the rows in a batch that is a dict."""


def torch_dataset(
    sites: View | Mapping[str, View],
    batch_size: int,
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
    """A dataset of batches, for ``DataLoader(dataset, batch_size=None, num_workers=...)``.

    Each row is given once an epoch, over all ranks and all workers of their DataLoaders; all ranks have
    equally many batches, whatever the number of workers, as `actstore.batches.batches` says. The order
    depends on the seed, the epoch, and the numbers of ranks and workers.

    Parameters
    ----------
    sites : Site or mapping of str to Site
        One, or several with the same rows, each by its key in the batches: what goes into a transcoder
        and what should come out.
    batch_size, shuffle, seed, drop_last, reservoir, prefetch
        As `Site.batches` has them. Each worker has a reservoir of its own.
    dtype : str or dtype, optional
        A float dtype to convert to; by default the site's. bfloat16 stays torch.bfloat16.
    columns : sequence of str, optional
        Gives dicts: each site by its name ``[b, n_layers, dim]``, ``"rows"`` int64 ``[b]`` as they count in
        the whole store, and these columns ``[b]``, of the rows' axis or else of their examples. Columns are
        held in memory. Strings come as lists.
    threads : int
        That read; 0 means all cores, or the worker's share of them.
    rank, world_size : int, optional
        Given together; by default those of torch.distributed, if it is initialised, else the environment's
        RANK and WORLD_SIZE, else 0 and 1. What splits the batches of a dataset itself, as accelerate does,
        needs ``rank=0, world_size=1``.

    Returns
    -------
    TorchDataset

    Raises
    ------
    InvalidInputError
        For an argument that cannot be, or when torch is not installed.
    NotFoundError
        When there is no such column.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile, torch
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "bfloat16")}) as w:
    ...     w.append({"resid": np.ones((10, 1, 4))}, [10], tokens={"id": np.arange(10)}, cast=True)
    >>> dataset = torch_dataset(actstore.open(path)["resid"], 4, shuffle=True, columns=["id"])
    >>> loader = torch.utils.data.DataLoader(dataset, batch_size=None)
    >>> for batch in loader:
    ...     print(batch["resid"].shape, batch["resid"].dtype, (batch["id"] == batch["rows"]).all().item())
    torch.Size([4, 1, 4]) torch.bfloat16 True
    torch.Size([4, 1, 4]) torch.bfloat16 True
    torch.Size([2, 1, 4]) torch.bfloat16 True
    """
    several = isinstance(sites, Mapping)
    named = dict(sites) if isinstance(sites, Mapping) else {getattr(sites, "name", ""): sites}
    if not named or not all(isinstance(site, View) for site in named.values()):
        raise InvalidInputError(f"torch_dataset: expected sites, got {sites!r:.80}")
    if (rank is None) != (world_size is None):
        raise InvalidInputError(f"rank is {rank}, world_size is {world_size}: give both or neither")
    _check_same_rows(named)
    names = None if columns is None and not several else list(columns or [])
    if isinstance(columns, str):
        raise InvalidInputError(f"columns is {columns!r}, not a list of names")
    for name in names or []:
        if name in named or name == ROWS:
            raise InvalidInputError(f"columns: {name!r} is the key of something else in a batch")
        _check_column(next(iter(named.values()))._origin, name)
    if ROWS in named and names is not None:
        raise InvalidInputError(f"a site called {ROWS!r} needs another key", hint="give a mapping")
    chosen = None if dtype is None else dtype_named(dtype, FLOAT_DTYPES, "torch_dataset")
    place = None if rank is None or world_size is None else (rank, world_size)
    options = (batch_size, shuffle, seed, drop_last, reservoir)
    return TorchDataset(named, options, chosen, names, at_least(1, prefetch, "prefetch"), threads, place)


def sites_of(store: Any, sites: str | Sequence[str] | None) -> View | dict[str, View]:
    """The sites of a store that `torch_dataset` takes: one by its name, several, or the only one.

    Raises
    ------
    NotFoundError
        When there is no such site.
    InvalidInputError
        When none is named and there are several.
    """
    if sites is None:
        if len(store) != 1:
            raise InvalidInputError(
                f"torch_dataset: there are {len(store)} sites: {', '.join(store) or 'none'}",
                hint="name those that are to be in a batch: sites=[...]",
            )
        (sites,) = store
    if isinstance(sites, str):
        site: View = store[sites]
        return site
    return {name: store[name] for name in sites}


def _check_same_rows(sites: Mapping[str, View]) -> None:
    (first, one), *others = sites.items()
    for name, site in others:
        mine, its = one._view.rows, site._view.rows
        same = len(mine) == len(its) and bool(np.array_equal(np.asarray(mine), np.asarray(its)))
        if site.axis != one.axis or not same:
            raise InvalidInputError(
                f"sites {first!r} and {name!r} differ in their rows: "
                f"{len(mine)} on axis {one.axis!r}, {len(its)} on axis {site.axis!r}",
                hint="select the same rows of sites on one axis",
            )


class TorchDataset(_Base):
    """Batches of sites for a DataLoader; made by `torch_dataset`.

    Each iteration gives the next epoch, in this process or in the workers of a DataLoader; `set_epoch`
    chooses one, also for workers that persist. (Workers tell iterations apart by the seed that the
    DataLoader draws for them: whoever seeds torch alike before each epoch gets the same epoch, unless
    `set_epoch` says otherwise.)

    `state_dict` and `load_state_dict` resume in this process, and in each worker of torchdata's
    StatefulDataLoader. With the workers of a plain DataLoader, count the batches that it gave and go on
    with ``set_epoch(epoch, batch=count)``.
    """

    def __init__(
        self,
        sites: Mapping[str, View],
        options: tuple[int, Shuffle, int, bool, int | None],
        dtype: np.dtype[Any] | None,
        columns: list[str] | None,
        prefetch: int,
        threads: int,
        place: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self._sites = dict(sites)
        self._options = options
        self._container = TorchContainer(dtype, "cpu")
        self._columns = columns
        self._prefetch = prefetch
        self._threads = at_least(0, threads, "threads")
        self._place = place
        self._epochs = _Epochs()
        self._choices = self._iterations = 0
        self._run = _Run()
        self._feeds: dict[tuple[int, ...], Feed] = {}
        self._held: dict[str, tuple[NDArray[Any], bool]] = {}
        self._feed()  # Says now what cannot be.

    def _feed(self) -> Feed:
        batch_size, shuffle, seed, drop_last, reservoir = self._options
        rank, world_size = self._place or _place()
        threads, info = self._threads, get_worker_info()
        if info is not None and not threads:
            threads = max(1, _cores() // info.num_workers)
        key = (rank, world_size, threads)
        if key not in self._feeds:
            sites = list(self._sites.values())
            self._feeds[key] = Feed.of(
                sites, batch_size, shuffle, seed, drop_last, reservoir, rank, world_size, threads
            )
        return self._feeds[key]

    def __len__(self) -> int:
        """Batches that this rank gets in an epoch, whatever the number of workers."""
        return self._feed().n_batches

    def __iter__(self) -> "TorchBatches":
        info = get_worker_info()
        # Workers of one iteration have one base seed, and were made after the same choices of an epoch;
        # those that persist keep both, and count.
        self._iterations += 1
        seed = None if info is None else info.seed - info.id
        iteration = None if info is None else f"{seed}:{self._choices}:{self._iterations}"
        loaded = None if self._run.begun else self._run.loaded
        self._run = _Run(iteration, loaded)
        return TorchBatches(self, self._run)

    def _place_in_epoch(self, run: "_Run", begin: bool) -> tuple[int, int, int]:
        """The epoch of an iteration, how many of a worker's batches were given, and which worker it is."""
        if run.loaded is not None:
            if begin:
                self._epochs.begin(run.iteration, run.loaded[0])
            return run.loaded
        epoch, done = self._epochs.begin(run.iteration) if begin else self._epochs.next(run.iteration)
        # Batch i of an epoch is that of worker i % n_workers. A DataLoader asks its first worker first, which
        # therefore stands in for the one whose turn it is.
        number, n_workers = _worker()
        worker = (number + done) % n_workers
        mine = len(worker_batches(self._feed().n_batches, worker, n_workers))
        return epoch, min(mine, max(0, -(-(done - worker) // n_workers))), worker

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Choose the epoch of the next iteration, here or in workers.

        Parameters
        ----------
        epoch : int
        batch : int
            How many of the epoch's batches this rank has had already. They are left out, if the number of
            workers is what it was when they were given.

        Raises
        ------
        InvalidInputError
            When either is negative, or there are not so many batches.
        """
        epoch, batch = at_least(0, epoch, "epoch"), at_least(0, batch, "batch")
        if batch > (most := len(self)):
            raise InvalidInputError(f"batch is {batch}, an epoch has {most}")
        self._choose(epoch, batch)

    def _choose(self, epoch: int, batch: int) -> None:
        self._choices += 1
        self._epochs.choose(epoch, batch)
        self._run = _Run()

    def state_dict(self) -> dict[str, Any]:
        """Where the latest iteration of this process is: a small dict, ready for JSON.

        Raises
        ------
        InvalidInputError
            When workers make the batches, whose state this process does not know.
        """
        if get_worker_info() is None and self._epochs.in_workers():
            raise InvalidInputError(
                "the batches are made by workers of a DataLoader, each with a state of its own",
                hint="torchdata's StatefulDataLoader collects them; or count the batches and call "
                "set_epoch(epoch, batch=count)",
            )
        run = self._run
        if not run.begun:
            epoch, batch, worker = self._place_in_epoch(run, begin=False)
        elif run.ended:
            epoch, batch, worker = run.epoch + 1, 0, run.worker
        else:
            epoch, batch, worker = run.epoch, run.batch, run.worker
        mine = {"n_workers": _worker()[1], "worker": worker}
        return {**self._feed().fingerprint, **mine, "epoch": epoch, "batch": batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on, with the next iteration, behind the last batch that was given before `state_dict`.

        Raises
        ------
        InvalidInputError
            When the state is of other batches, naming what differs.
        """
        feed, (_, n_workers) = self._feed(), _worker()
        epoch, batch = feed.check_state(state, feed.n_batches, {"n_workers": n_workers})
        worker = at_least(0, state.get("worker"), "state: worker")
        if get_worker_info() is None:
            self._choose(epoch, batch)
        else:
            self._run = _Run(loaded=(epoch, batch, worker % n_workers))

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned has no torch.distributed to ask.
        return {**self.__dict__, "_place": self._place or _place(), "_feeds": {}, "_held": {}, "_run": _Run()}

    def column(self, name: str, rows: NDArray[np.int64]) -> Any:
        """A column of some rows: a tensor ``[b]``, or a list of str."""
        origin = next(iter(self._sites.values()))._origin
        if name not in self._held:
            self._held[name] = _column(origin, name)
        values, of_examples = self._held[name]
        picked = values[origin.places(rows)[0] if of_examples else rows]
        return picked.tolist() if picked.dtype == object else _tensor(picked)


@dataclass
class _Run:
    """An iteration of this process, or the one to come."""

    iteration: str | None = None
    """What it has in common with those of other workers; None in the main process."""
    loaded: tuple[int, int, int] | None = None
    """Epoch, batches given, and worker, of a state that was loaded in this worker."""
    epoch: int = 0
    batch: int = 0
    worker: int = 0
    begun: bool = False
    ended: bool = False


class TorchBatches(Iterator[Any]):
    """One epoch of a `TorchDataset`, or a worker's share of it; it begins with the first batch."""

    def __init__(self, dataset: TorchDataset, run: _Run) -> None:
        self._dataset = dataset
        self._run = run
        self._source: Ahead[Taken] | None = None

    def _begin(self) -> "Ahead[Taken]":
        dataset, run = self._dataset, self._run
        run.epoch, run.batch, run.worker = dataset._place_in_epoch(run, begin=True)
        run.begun = True
        feed, (_, n_workers) = dataset._feed(), _worker()
        batches = feed.run(dataset._container, run.epoch, run.batch, run.worker, n_workers)
        return Ahead(batches, dataset._prefetch)

    def __next__(self) -> Any:
        dataset, run = self._dataset, self._run
        if self._source is None:
            self._source = self._begin()
        try:
            rows, values = next(self._source)
        except StopIteration:
            # A worker that is done stays in its epoch, for others may not be.
            run.ended = get_worker_info() is None and run.batch == len(dataset)
            raise
        tensors = [dataset._container.finish(value) for value in values]
        batch: Any = tensors[0]
        if dataset._columns is not None:
            batch = dict(zip(dataset._sites, tensors, strict=True))
            origin = next(iter(dataset._sites.values()))._origin
            batch[ROWS] = torch.from_numpy(origin.numbers_of(rows))
            batch.update({name: dataset.column(name, rows) for name in dataset._columns})
        run.batch += 1
        return batch

    def close(self) -> None:
        """End it, and the threads that read for it."""
        if self._source is not None:
            self._source.close()


class _Epochs:
    """Which epoch is next, agreed upon by the processes that iterate over one dataset.

    A small file, locked while it is read and written: it reaches workers that were forked, spawned, or
    were there before the epoch was chosen. The first worker to begin an iteration takes the next epoch;
    the others of that iteration find it there.
    """

    _KEPT = 64

    def __init__(self) -> None:
        self._content: dict[str, Any] = {"epoch": 0, "batch": 0, "begun": [], "in_workers": False}
        self._make()  # Now, so that it is there before any worker.

    def _make(self) -> None:
        """A file of what this process knows."""
        handle, self._path = tempfile.mkstemp(prefix="actstore-epochs-", suffix=".json")
        with os.fdopen(handle, "w") as file:
            json.dump(self._content, file)
        weakref.finalize(self, _remove, self._path, os.getpid())

    def choose(self, epoch: int, batch: int) -> None:
        """The next iteration's epoch, and how many of its batches to leave out."""
        with self._locked() as content:
            content.update(epoch=epoch, batch=batch, in_workers=False)

    def begin(self, iteration: str | None, epoch: int | None = None) -> tuple[int, int]:
        """The epoch of an iteration, and how many of its batches to leave out.

        Parameters
        ----------
        iteration : str, optional
            What the workers of one iteration have in common; None in the main process.
        epoch : int, optional
            That of a state that was loaded in this worker.
        """
        with self._locked() as content:
            if (begun := self._begun(content, iteration)) is not None:
                return begun
            taken = (content["epoch"], content["batch"]) if epoch is None else (epoch, 0)
            content.update(epoch=taken[0] + 1, batch=0, in_workers=iteration is not None)
            if iteration is not None:
                content["begun"] = [*content["begun"], [iteration, *taken]][-self._KEPT :]
            return taken

    def next(self, iteration: str | None) -> tuple[int, int]:
        """What `begin` would give."""
        with self._locked() as content:
            return self._begun(content, iteration) or (content["epoch"], content["batch"])

    @staticmethod
    def _begun(content: dict[str, Any], iteration: str | None) -> tuple[int, int] | None:
        found = (tuple(entry[1:]) for entry in content["begun"] if entry[0] == iteration)
        return next(found, None)

    def in_workers(self) -> bool:
        """Whether the latest iteration was begun by workers."""
        with self._locked() as content:
            return bool(content["in_workers"])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        if not os.path.exists(self._path):  # On another machine, or cleaned away.
            self._make()
        with open(self._path, "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # Released when the file is closed.
            content = self._content = json.load(file)
            yield content
            file.seek(0)
            json.dump(content, file)
            file.truncate()

    def __getstate__(self) -> dict[str, Any]:
        with self._locked():
            return self.__dict__


def _remove(path: str, pid: int) -> None:
    if os.getpid() == pid:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _worker() -> tuple[int, int]:
    """Which worker of how many this process is."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _place() -> tuple[int, int]:
    """Rank and world size, of torch.distributed or the environment."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        try:
            return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        except ValueError as error:
            raise InvalidInputError(f"RANK and WORLD_SIZE in the environment: {error}") from error
    return 0, 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- Columns ----


def _check_column(origin: Origin, name: str) -> None:
    mine, others = _column_names(origin)
    if name not in mine and name not in others:
        raise NotFoundError(
            f"{origin.what}: there is no column {name!r}; of axis {origin.axis!r} there are: "
            f"{', '.join(mine) or 'none'}; of examples: {', '.join(others) or 'none'}"
        )


def _column_names(origin: Origin) -> tuple[list[str], list[str]]:
    """Columns of the rows' axis, and of examples."""
    if not isinstance(origin, StoredOrigin):
        return [], []
    examples = list(origin.snapshot.examples)
    return examples if origin.axis == EXAMPLES else list(origin.snapshot.axes[origin.axis]), examples


def _column(origin: Origin, name: str) -> tuple[NDArray[Any], bool]:
    """A column, and whether it is of examples rather than rows."""
    assert isinstance(origin, StoredOrigin)
    if origin.axis != EXAMPLES and name in origin.snapshot.axes[origin.axis]:
        return origin.snapshot.axes[origin.axis][name], False
    return origin.snapshot.examples[name], True


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """A numpy array as a tensor, without a copy; torch knows ml_dtypes' bfloat16 by its bits only."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
