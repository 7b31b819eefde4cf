"""Batches of a view's rows for training loops: in order or shuffled, and prefetched."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import DTypeLike

from ..base.arrays import FLOAT_DTYPES, dtype_named
from ..base.checks import at_least
from ..base.text import human_bytes
from ..rows.view import View
from .batch_plan import BatchPlan
from .containers import BatchContainer, NumpyContainer, TorchContainer, torch_device
from .epoch import read_epoch
from .permutation import Shuffle
from .prefetch import Prefetcher


def batches(
    site: View,
    batch_size: int,
    shuffle: Shuffle = False,
    seed: int = 0,
    epoch: int = 0,
    dtype: DTypeLike | str | None = None,
    device: Any = None,
    with_rows: bool = False,
    drop_last: bool = False,
    reservoir: int | None = None,
    prefetch: int = 2,
    threads: int = 0,
    rank: int = 0,
    world_size: int = 1,
    state: Mapping[str, Any] | None = None,
) -> "Batches":
    """Iterate over the rows of a view in batches ``[b, n_layers, dim]``, which are prefetched.

    Parameters
    ----------
    site : Site
        Any view.
    batch_size : int
        Rows per batch; the last batch has the remaining rows.
    shuffle : bool or "full"
        False: the view's order. True: chunks in random order through a reservoir, which returns their rows in
        random order. Each chunk is read once per epoch, as a whole, so this is hardly slower than reading
        in order. ``"full"``: a uniform permutation of the rows, which reads each chunk many times.
    seed, epoch : int
        Determine the order, together with the view, the store's chunks, `batch_size`, `reservoir` and the
        rank; nothing else affects it. `epoch` is the first epoch to iterate over.
    dtype : str or dtype, optional
        A float dtype to convert to; by default the site's dtype.
    device : str or torch.device, optional
        Return torch tensors on this device instead of numpy arrays. For CUDA, batches are copied from pinned
        memory on the current stream without blocking, and are converted on the device.
    with_rows : bool
        Return pairs ``(rows, batch)``. The rows, int64 ``[b]``, are row ids as in ``site.rows``:
        ``store.tokens["id"][rows]`` are the batch's tokens.
    drop_last : bool
        Drop the rows that do not fill a batch on every rank.
    reservoir : int, optional
        Rows in the shuffling reservoir; one eighth more is prefetched. By default, 128 MiB of rows as stored,
        but at least 4 batches, and at least 16 chunks of each layer as long as these take at most 512 MiB. A
        reservoir smaller than a chunk reads that chunk several times. ``"full"`` reads half of the
        reservoir at once, so that rows in the same chunk share one read.
    prefetch : int
        Batches to prepare in advance.
    threads : int
        Threads that read; 0 means all cores.
    rank, world_size : int
        With several training processes, each gets its own share of every epoch. The shares cover all rows
        and have the same number of batches (see Notes).
    state : mapping, optional
        The result of `Batches.state`: continue after the last batch of that iteration, with exactly the same
        batches. The epoch comes from the state, not from `epoch`.

    Returns
    -------
    Batches
        An iterable; each iteration is one epoch. For an empty view, it has no batches.

    Raises
    ------
    InvalidInputError
        When an argument is invalid, the state belongs to other batches, or `device` is given and torch is not
        installed.
    StorageError
        When the store is closed.

    Notes
    -----
    If ranks differ by one row, the ranks with fewer rows make their last batches smaller. No row is dropped
    or repeated, and no rank waits for a batch that never comes. Some ranks have one batch less only if
    the batch size is one or there are fewer rows than ranks; with `drop_last`, that never happens.

    ``"full"`` holds 8 bytes per row for views of up to a million rows, and computes the permutation of larger
    views without any table. A view whose rows do not ascend takes another 8 bytes per row.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "float32")}) as w:
    ...     w.append({"resid": np.ones((10, 1, 4), np.float32)}, [10], token_columns={"id": np.arange(10)})
    >>> store = actstore.open(path)
    >>> [batch.shape for batch in batches(store["resid"], 4)]
    [(4, 1, 4), (4, 1, 4), (2, 1, 4)]
    >>> shuffled = batches(store["resid"], 4, shuffle=True, with_rows=True)
    >>> sorted(np.concatenate([store.tokens["id"][rows] for rows, batch in shuffled]).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    to_dtype = None if dtype is None else dtype_named(dtype, FLOAT_DTYPES, site.full_name)
    plan = BatchPlan.of([site], batch_size, shuffle, seed, drop_last, reservoir, rank, world_size, threads)
    container = NumpyContainer(to_dtype) if device is None else TorchContainer(to_dtype, torch_device(device))
    position = _EpochPosition(at_least(0, epoch, "epoch"))
    if state is not None:
        position = _EpochPosition(*plan.check_state(state, plan.n_batches))
    return Batches(plan, container, at_least(1, prefetch, "prefetch"), bool(with_rows), position)


@dataclass
class _EpochPosition:
    """How far an iteration has come."""

    epoch: int
    batch: int = 0
    """Batches that the loop has received."""
    begun: bool = False
    ended: bool = False


class Batches:
    """The batches of a view, epoch after epoch; `Site.batches` makes it.

    Each iteration is one epoch, and the next iteration is the next epoch, even if the previous one was not
    finished; `set_epoch` chooses another epoch. To continue an interrupted epoch, save `state` and pass
    it to `Site.batches`.

    Reading starts with the iteration, in threads of its own. They stop at the end of the iteration, when its
    iterator is closed or garbage collected, and on an error, which is raised in the loop.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 1, "float32")}) as w:
    ...     w.append({"resid": np.arange(8, dtype=np.float32).reshape(8, 1, 1)}, [8])
    >>> site = actstore.open(path)["resid"]
    >>> shuffled = batches(site, 3, shuffle=True, seed=5)
    >>> for batch in shuffled:
    ...     state = shuffled.state()  # can be saved as JSON
    ...     break
    >>> len(shuffled), state["epoch"], state["batch"]
    (3, 0, 1)
    >>> rest = list(batches(site, 3, shuffle=True, seed=5, state=state))
    >>> sorted(np.concatenate([batch, *rest]).ravel().tolist()) == list(range(8))
    True
    """

    def __init__(
        self,
        plan: BatchPlan,
        container: BatchContainer,
        prefetch: int,
        with_rows: bool,
        position: _EpochPosition,
    ) -> None:
        self._plan = plan
        self._container = container
        self._prefetch = prefetch
        self._with_rows = with_rows
        self._position = position

    @property
    def reservoir(self) -> int | None:
        """Rows in the shuffling reservoir; None without shuffling."""
        return self._plan.reservoir if self._plan.shuffle else None

    @property
    def epoch(self) -> int:
        """The epoch of the latest iteration; before the first iteration, its epoch."""
        return self._position.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, which starts at the epoch's beginning.

        Raises
        ------
        InvalidInputError
            When `epoch` is not an int >= 0.
        """
        self._position = _EpochPosition(at_least(0, epoch, "epoch"))

    def state(self) -> dict[str, Any]:
        """The position of the latest iteration, as a small dict ready for JSON.

        The state counts the batches that the loop has received, not the prefetched ones. After the last batch
        of an epoch, the rest of that epoch is empty; once the loop has ended, the state is the beginning of
        the next epoch.
        """
        return _state(self._plan, self._position)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._plan.n_batches

    def __iter__(self) -> "BatchIterator":
        if self._position.begun:
            self._position = _EpochPosition(self._position.epoch + 1)
        self._position.begun = True
        return BatchIterator(self._plan, self._container, self._prefetch, self._with_rows, self._position)

    def __repr__(self) -> str:
        plan = self._plan
        text = f"{len(self)} of {plan.batch_size} rows, shuffle={plan.shuffle!r}"
        if plan.shuffle:
            n_bytes = min(plan.reservoir, plan.n_rows) * plan.row_bytes
            text += f", reservoir={plan.reservoir} rows ({human_bytes(n_bytes)} as stored)"
        return f"Batches({text}, of {plan.sites[0]!r})"


class BatchIterator(Iterator[Any]):
    """An iterator over one epoch of `Batches`."""

    def __init__(
        self,
        plan: BatchPlan,
        container: BatchContainer,
        prefetch: int,
        with_rows: bool,
        position: _EpochPosition,
    ) -> None:
        for site in plan.sites:
            site.backend.check_open()
        self._plan = plan
        self._container = container
        self._with_rows = with_rows
        self._position = position
        gathered = read_epoch(plan, container, position.epoch, position.batch)
        self._prefetched = Prefetcher(gathered, prefetch)

    def __next__(self) -> Any:
        try:
            rows, values = next(self._prefetched)
        except StopIteration:
            self._position.ended = self._position.batch == self._plan.n_batches
            raise
        batch = self._container.finish(values[0])
        if self._with_rows:
            batch = self._plan.sites[0].backend.numbers_of(rows), batch
        self._position.batch += 1
        return batch

    def state(self) -> dict[str, Any]:
        """The position of this iteration, like `Batches.state`."""
        return _state(self._plan, self._position)

    def close(self) -> None:
        """End the iteration and its threads."""
        self._prefetched.close()


def _state(plan: BatchPlan, position: _EpochPosition) -> dict[str, Any]:
    epoch, batch = (position.epoch + 1, 0) if position.ended else (position.epoch, position.batch)
    return {**plan.fingerprint, "epoch": epoch, "batch": batch}
