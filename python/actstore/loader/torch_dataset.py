"""Sites as a torch dataset: whole batches for a DataLoader, each row once over all workers and ranks."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..base.arrays import BFLOAT16, FLOAT_DTYPES, dtype_named
from ..base.checks import at_least
from ..errors import InvalidInputError
from ..rows.view import View
from .batch_plan import BatchPlan
from .column_cache import ColumnCache
from .containers import TorchContainer
from .epoch import GatheredBatch, read_epoch
from .permutation import Shuffle
from .prefetch import Prefetcher
from .schedule import worker_batches
from .shared_epochs import SharedEpochs

try:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info
except ImportError as _error:
    raise InvalidInputError(
        f"torch cannot be imported: {_error}", hint='pip install "actstore[torch]"'
    ) from _error

if TYPE_CHECKING:
    _IterableBatches = IterableDataset[Any]
else:
    _IterableBatches = IterableDataset

ROWS = "rows"
"""The key of the row ids in a batch that is a dict."""


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
    """Make a dataset of batches, for ``DataLoader(dataset, batch_size=None, num_workers=...)``.

    Each epoch returns each row once over all ranks and all workers of their DataLoaders. All ranks have the
    same number of batches, whatever the number of workers; see the notes of `Site.batches`. The order depends
    on the seed, the epoch, and the numbers of ranks and workers.

    Parameters
    ----------
    sites : Site or mapping of str to Site
        One site, or several with the same rows, by their keys in a batch: for a transcoder, its input and
        its target.
    batch_size, shuffle, seed, drop_last, reservoir, prefetch
        See `Site.batches`. Each worker has its own reservoir.
    dtype : str or dtype, optional
        A float dtype to convert to; by default the site's dtype. bfloat16 is torch.bfloat16.
    columns : sequence of str, optional
        Return each batch as a dict: each site ``[b, n_layers, dim]`` by its name, ``"rows"``, int64 ``[b]``,
        the row ids, and these columns ``[b]`` of the rows' axis, or else of their examples. Columns are held
        in memory. A column of strings is a list.
    threads : int
        Threads that read; 0 means all cores, in a worker its share of them.
    rank, world_size : int, optional
        Give both or neither. By default, they come from torch.distributed if it is initialized, else from the
        environment variables RANK and WORLD_SIZE, else they are 0 and 1. A library that distributes the
        batches of a dataset over processes itself, such as accelerate, needs ``rank=0, world_size=1``.

    Returns
    -------
    TorchDataset

    Raises
    ------
    InvalidInputError
        When an argument is invalid, or torch is not installed.
    NotFoundError
        When there is no such column.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile, torch
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "bfloat16")}) as w:
    ...     w.append({"resid": np.ones((10, 1, 4))}, [10], token_columns={"id": np.arange(10)}, cast=True)
    >>> dataset = torch_dataset(actstore.open(path)["resid"], 4, shuffle=True, columns=["id"])
    >>> loader = torch.utils.data.DataLoader(dataset, batch_size=None)
    >>> for batch in loader:
    ...     print(batch["resid"].shape, batch["resid"].dtype, (batch["id"] == batch["rows"]).all().item())
    torch.Size([4, 1, 4]) torch.bfloat16 True
    torch.Size([4, 1, 4]) torch.bfloat16 True
    torch.Size([2, 1, 4]) torch.bfloat16 True
    """
    several = isinstance(sites, Mapping)
    by_name = dict(sites) if isinstance(sites, Mapping) else {getattr(sites, "name", ""): sites}
    if not by_name or not all(isinstance(site, View) for site in by_name.values()):
        raise InvalidInputError(f"torch_dataset: expected sites, got {sites!r:.80}")
    if (rank is None) != (world_size is None):
        raise InvalidInputError(f"rank is {rank}, world_size is {world_size}: give both or neither")
    _check_same_rows(by_name)
    if isinstance(columns, str):
        raise InvalidInputError(f"columns is {columns!r}, expected a list of names")
    names = None if columns is None and not several else list(columns or [])
    cache = ColumnCache(next(iter(by_name.values())))
    for name in names or []:
        if name in by_name or name == ROWS:
            raise InvalidInputError(f"columns: {name!r} is already the key of another entry of a batch")
        cache.check(name)
    if ROWS in by_name and names is not None:
        raise InvalidInputError(
            f"a site named {ROWS!r} needs another key", hint="pass a mapping of keys to sites"
        )
    to_dtype = None if dtype is None else dtype_named(dtype, FLOAT_DTYPES, "torch_dataset")
    process = None if rank is None or world_size is None else (rank, world_size)
    options = (batch_size, shuffle, seed, drop_last, reservoir)
    prefetch = at_least(1, prefetch, "prefetch")
    return TorchDataset(by_name, options, to_dtype, names, prefetch, threads, process)


def sites_of(store: Any, sites: str | Sequence[str] | None) -> View | dict[str, View]:
    """The sites of a store for `torch_dataset`: one by its name, several by their names, or the only one.

    Raises
    ------
    NotFoundError
        When there is no such site.
    InvalidInputError
        When `sites` is None and the store does not have exactly one site.
    """
    if sites is None:
        if len(store) != 1:
            raise InvalidInputError(
                f"torch_dataset: the store has {len(store)} sites: {', '.join(store) or 'none'}",
                hint="name the sites of a batch: sites=[...]",
            )
        (sites,) = store
    if isinstance(sites, str):
        site: View = store[sites]
        return site
    return {name: store[name] for name in sites}


def _check_same_rows(sites: Mapping[str, View]) -> None:
    (first_name, first), *others = sites.items()
    for name, site in others:
        rows, other_rows = first.rowset.rows, site.rowset.rows
        same = len(rows) == len(other_rows) and bool(np.array_equal(np.asarray(rows), np.asarray(other_rows)))
        if site.axis != first.axis or not same:
            raise InvalidInputError(
                f"sites {first_name!r} and {name!r} differ in their rows: "
                f"{len(rows)} on axis {first.axis!r}, {len(other_rows)} on axis {site.axis!r}",
                hint="select the same rows of sites on the same axis",
            )


class TorchDataset(_IterableBatches):
    """Batches of sites for a DataLoader; `torch_dataset` makes it.

    Each iteration is the next epoch, in this process or in the workers of a DataLoader. `set_epoch` chooses
    an epoch, also for persistent workers. (Workers recognize iterations by the seed that the DataLoader draws
    for them. If torch is seeded identically before each epoch, every iteration is the same epoch, unless
    `set_epoch` is called.)

    `state_dict` and `load_state_dict` save and resume the iteration in this process, and in each worker of
    torchdata's StatefulDataLoader. With the workers of a plain DataLoader, count the batches received and
    resume with ``set_epoch(epoch, batch=count)``.
    """

    def __init__(
        self,
        sites: Mapping[str, View],
        options: tuple[int, Shuffle, int, bool, int | None],
        dtype: np.dtype[Any] | None,
        columns: list[str] | None,
        prefetch: int,
        threads: int,
        process: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self._sites = dict(sites)
        self._options = options
        self._container = TorchContainer(dtype, "cpu")
        self._columns = columns
        self._column_cache = ColumnCache(next(iter(self._sites.values())))
        self._prefetch = prefetch
        self._threads = at_least(0, threads, "threads")
        self._process = process
        self.epochs = SharedEpochs()
        self._n_choices = self._n_iterations = 0
        self._iteration = _Iteration()
        self._plans: dict[tuple[int, ...], BatchPlan] = {}
        self.plan()  # Raises now if an option is invalid.

    def plan(self) -> BatchPlan:
        """The plan for this process: its rank, and in a worker its share of the cores."""
        batch_size, shuffle, seed, drop_last, reservoir = self._options
        rank, world_size = self._process or _rank_and_world_size()
        threads, info = self._threads, get_worker_info()
        if info is not None and not threads:
            threads = max(1, _cores() // info.num_workers)
        key = (rank, world_size, threads)
        if key not in self._plans:
            sites = list(self._sites.values())
            self._plans[key] = BatchPlan.of(
                sites, batch_size, shuffle, seed, drop_last, reservoir, rank, world_size, threads
            )
        return self._plans[key]

    def __len__(self) -> int:
        """Batches of this rank per epoch, whatever the number of workers."""
        return self.plan().n_batches

    def __iter__(self) -> "TorchBatches":
        info = get_worker_info()
        # The workers of one iteration share a base seed and a count of set_epoch calls. Persistent workers
        # keep both from one iteration to the next, so the key also counts the iterations.
        self._n_iterations += 1
        seed = None if info is None else info.seed - info.id
        key = None if info is None else f"{seed}:{self._n_choices}:{self._n_iterations}"
        loaded = None if self._iteration.begun else self._iteration.loaded
        self._iteration = _Iteration(key, loaded)
        return TorchBatches(self, self._iteration)

    def start(self, iteration: "_Iteration") -> Prefetcher[GatheredBatch]:
        """Begin an iteration in this process: assign its epoch and start reading."""
        iteration.epoch, iteration.batch, iteration.worker = self._position(iteration, begin=True)
        iteration.begun = True
        gathered = read_epoch(
            self.plan(), self._container, iteration.epoch, iteration.batch, iteration.worker, _worker()[1]
        )
        return Prefetcher(gathered, self._prefetch)

    def assemble(self, gathered: GatheredBatch) -> Any:
        """A batch as the consumer gets it: a tensor, or a dict with rows and columns."""
        tensors = [self._container.finish(values) for values in gathered.values]
        if self._columns is None:
            return tensors[0]
        batch: dict[str, Any] = dict(zip(self._sites, tensors, strict=True))
        backend = next(iter(self._sites.values())).backend
        batch[ROWS] = torch.from_numpy(backend.numbers_of(gathered.rows))
        for name in self._columns:
            values = self._column_cache.values(name, gathered.rows)
            batch[name] = values.tolist() if values.dtype == object else _tensor(values)
        return batch

    def _position(self, iteration: "_Iteration", begin: bool) -> tuple[int, int, int]:
        """The epoch of an iteration, the batches of this worker to skip, and the worker's number."""
        if iteration.loaded is not None:
            if begin:
                self.epochs.begin(iteration.key, iteration.loaded[0])
            return iteration.loaded
        epoch, skip = self.epochs.begin(iteration.key) if begin else self.epochs.peek(iteration.key)
        # Worker i % n_workers makes batch i of an epoch. A DataLoader asks its first worker first, so after a
        # skip the first worker must take the role of the worker whose turn it is.
        number, n_workers = _worker()
        worker = (number + skip) % n_workers
        n_own = len(worker_batches(self.plan().n_batches, worker, n_workers))
        return epoch, min(n_own, max(0, -(-(skip - worker) // n_workers))), worker

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Choose the epoch of the next iteration, in this process or in workers.

        Parameters
        ----------
        epoch : int
        batch : int
            How many batches of the epoch this rank has already received. They are skipped, provided that the
            number of workers is the same as then.

        Raises
        ------
        InvalidInputError
            When either is negative, or `batch` exceeds the batches of an epoch.
        """
        epoch, batch = at_least(0, epoch, "epoch"), at_least(0, batch, "batch")
        if batch > (n_batches := len(self)):
            raise InvalidInputError(f"batch is {batch}, an epoch has {n_batches} batches")
        self._choose(epoch, batch)

    def _choose(self, epoch: int, batch: int) -> None:
        self._n_choices += 1
        self.epochs.choose(epoch, batch)
        self._iteration = _Iteration()

    def state_dict(self) -> dict[str, Any]:
        """The position of this process's latest iteration: a small dict, ready for JSON.

        Raises
        ------
        InvalidInputError
            When worker processes make the batches; this process does not know their positions.
        """
        if get_worker_info() is None and self.epochs.in_workers():
            raise InvalidInputError(
                "the workers of a DataLoader make the batches, and each has its own state",
                hint="use torchdata's StatefulDataLoader, which collects them; or count the batches and call "
                "set_epoch(epoch, batch=count)",
            )
        iteration = self._iteration
        if not iteration.begun:
            epoch, batch, worker = self._position(iteration, begin=False)
        elif iteration.ended:
            epoch, batch, worker = iteration.epoch + 1, 0, iteration.worker
        else:
            epoch, batch, worker = iteration.epoch, iteration.batch, iteration.worker
        workers = {"n_workers": _worker()[1], "worker": worker}
        return {**self.plan().fingerprint, **workers, "epoch": epoch, "batch": batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue, in the next iteration, after the last batch before `state_dict` was called.

        Raises
        ------
        InvalidInputError
            When the state does not match this dataset; the message names the differences.
        """
        plan, (_, n_workers) = self.plan(), _worker()
        epoch, batch = plan.check_state(state, plan.n_batches, {"n_workers": n_workers})
        worker = at_least(0, state.get("worker"), "state: worker")
        if get_worker_info() is None:
            self._choose(epoch, batch)
        else:
            self._iteration = _Iteration(loaded=(epoch, batch, worker % n_workers))

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no initialized torch.distributed, so the rank is fixed here.
        process = self._process or _rank_and_world_size()
        return {**self.__dict__, "_process": process, "_plans": {}, "_iteration": _Iteration()}


@dataclass
class _Iteration:
    """The current iteration of this process, or its next one."""

    key: str | None = None
    """A key that all workers of one iteration share; None in the main process."""
    loaded: tuple[int, int, int] | None = None
    """Epoch, batches to skip and worker number from a state that was loaded in this worker."""
    epoch: int = 0
    batch: int = 0
    worker: int = 0
    begun: bool = False
    ended: bool = False


class TorchBatches(Iterator[Any]):
    """One epoch of a `TorchDataset`, or a worker's share of it. Reading starts with the first batch."""

    def __init__(self, dataset: TorchDataset, iteration: _Iteration) -> None:
        self._dataset = dataset
        self._iteration = iteration
        self._prefetched: Prefetcher[GatheredBatch] | None = None

    def __next__(self) -> Any:
        dataset, iteration = self._dataset, self._iteration
        if self._prefetched is None:
            self._prefetched = dataset.start(iteration)
        try:
            gathered = next(self._prefetched)
        except StopIteration:
            # A worker that has finished its share stays in this epoch: other workers may still be in it.
            iteration.ended = get_worker_info() is None and iteration.batch == len(dataset)
            raise
        batch = dataset.assemble(gathered)
        iteration.batch += 1
        return batch

    def close(self) -> None:
        """End the iteration and its threads."""
        if self._prefetched is not None:
            self._prefetched.close()


def _worker() -> tuple[int, int]:
    """This worker's number, and the number of workers; 0 and 1 in the main process."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _rank_and_world_size() -> tuple[int, int]:
    """Rank and world size from torch.distributed, else from the environment, else 0 and 1."""
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


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """A numpy array as a tensor over the same memory; bfloat16 is passed as int16 bits."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
