"""Feeding a training loop: a view's rows in batches, in order or shuffled, read ahead of their use."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import DTypeLike

from .ahead import Ahead
from .arrays import FLOAT_DTYPES, dtype_named, human_bytes
from .feed import Container, Feed, NumpyContainer, TorchContainer, at_least, torch_device
from .shuffle import Shuffle
from .view import View


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
    """The rows of a view in batches ``[b, n_layers, dim]``, read ahead of their use.

    Parameters
    ----------
    site : Site
        Any view.
    batch_size : int
        Rows of each batch; the last one has what is left.
    shuffle : bool or "full"
        False: in the view's order. True: chunks in random order through a reservoir, whose rows come in
        random order; each chunk is read whole and once an epoch, so that it costs hardly more than
        reading in order. ``"full"``: a uniform permutation of the rows; every chunk is read many times.
    seed, epoch : int
        Decide the order, together with the view, the chunks, `batch_size`, `reservoir` and the rank;
        nothing else does. `epoch` is the first one that is given.
    dtype : str or dtype, optional
        A float dtype to convert to; by default the site's.
    device : str or torch.device, optional
        Gives torch tensors there instead of numpy arrays. For CUDA they come through pinned memory, on
        the current stream, without waiting, and are converted there.
    with_rows : bool
        Give pairs ``(rows, batch)``; rows, int64 ``[b]``, count in the whole store, as ``site.rows`` does:
        ``store.tokens["id"][rows]`` are the batch's tokens.
    drop_last : bool
        Leave out what does not fill a batch (of every rank).
    reservoir : int, optional
        Rows held for shuffling, and as many bytes; one eighth more is read ahead. By default as many as
        are 128 MiB as stored, but no fewer than 4 batches, or than 16 chunks of each layer where that is
        below 512 MiB. With fewer rows than a chunk has, chunks are read several times. `"full"`
        reads half of them at once, sorting out which rows lie in one chunk.
    prefetch : int
        Batches made before they are asked for.
    threads : int
        That read; 0 means all cores.
    rank, world_size : int
        Of several processes that train together, each gets its own share of every epoch: all rows are in
        one share, and all shares have equally many batches (see Notes).
    state : mapping, optional
        Of `Batches.state`: goes on behind the last batch given, with the very same batches. Its epoch is
        used, not `epoch`.

    Returns
    -------
    Batches
        To iterate over, once for each epoch. An empty view gives no batches.

    Raises
    ------
    InvalidInputError
        For an argument that cannot be, a state of other batches, or no torch where `device` asks for it.
    StorageError
        When the store is closed.

    Notes
    -----
    Where the ranks' rows differ by one, a rank with fewer makes its last batches smaller, so that nothing
    is dropped or repeated and no rank waits for a batch that never comes. Only batches of one row, and
    fewer rows than ranks, leave some ranks one batch short; `drop_last` never does.

    `"full"` keeps 8 bytes a row for views of up to a million rows, and nothing for larger ones, whose
    permutation is computed. A view by row numbers that do not ascend takes 8 bytes a row more.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "float32")}) as w:
    ...     w.append({"resid": np.ones((10, 1, 4), np.float32)}, [10], tokens={"id": np.arange(10)})
    >>> store = actstore.open(path)
    >>> [batch.shape for batch in batches(store["resid"], 4)]
    [(4, 1, 4), (4, 1, 4), (2, 1, 4)]
    >>> feed = batches(store["resid"], 4, shuffle=True, with_rows=True)
    >>> sorted(np.concatenate([store.tokens["id"][rows] for rows, batch in feed]).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    chosen = None if dtype is None else dtype_named(dtype, FLOAT_DTYPES, site._what)
    feed = Feed.of([site], batch_size, shuffle, seed, drop_last, reservoir, rank, world_size, threads)
    container = NumpyContainer(chosen) if device is None else TorchContainer(chosen, torch_device(device))
    progress = _Progress(at_least(0, epoch, "epoch"))
    if state is not None:
        progress = _Progress(*feed.check_state(state, feed.n_batches))
    return Batches(feed, container, at_least(1, prefetch, "prefetch"), bool(with_rows), progress)


@dataclass
class _Progress:
    """How far an iteration is."""

    epoch: int
    batch: int = 0
    begun: bool = False
    ended: bool = False


class Batches:
    """A view's batches, epoch after epoch; made by `Site.batches`.

    Each iteration gives one epoch and each next one the next, whether or not the one before was finished;
    `set_epoch` chooses another. To go on with a broken epoch, make batches of its `state`.

    Reading begins with the iteration, in threads of its own, which end with it: at its end, when its
    iterator is closed or goes, and on errors, which are raised in the loop.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 1, "float32")}) as w:
    ...     w.append({"resid": np.arange(8, dtype=np.float32).reshape(8, 1, 1)}, [8])
    >>> site = actstore.open(path)["resid"]
    >>> feed = batches(site, 3, shuffle=True, seed=5)
    >>> for batch in feed:
    ...     state = feed.state()  # to be saved as JSON
    ...     break
    >>> len(feed), state["epoch"], state["batch"]
    (3, 0, 1)
    >>> rest = list(batches(site, 3, shuffle=True, seed=5, state=state))
    >>> sorted(np.concatenate([batch, *rest]).ravel().tolist()) == list(range(8))
    True
    """

    def __init__(
        self, feed: Feed, container: Container, prefetch: int, with_rows: bool, progress: _Progress
    ) -> None:
        self._feed = feed
        self._container = container
        self._prefetch = prefetch
        self._with_rows = with_rows
        self._progress = progress

    @property
    def reservoir(self) -> int | None:
        """Rows held for shuffling; None where nothing is shuffled."""
        return self._feed.reservoir if self._feed.shuffle else None

    @property
    def epoch(self) -> int:
        """The epoch of the latest iteration, or of the first one to come."""
        return self._progress.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, from its beginning.

        Raises
        ------
        InvalidInputError
            When it is negative.
        """
        self._progress = _Progress(at_least(0, epoch, "epoch"))

    def state(self) -> dict[str, Any]:
        """Where the latest iteration is, as a small dict ready for JSON.

        It counts the batches that the loop was given, not those read ahead. Behind the last one, the rest
        of the epoch is empty; when the loop has ended, the state is the beginning of the next epoch.
        """
        return self._state_of(self._progress)

    def _state_of(self, progress: _Progress) -> dict[str, Any]:
        epoch, batch = progress.epoch, progress.batch
        if progress.ended:
            epoch, batch = epoch + 1, 0
        return {**self._feed.fingerprint, "epoch": epoch, "batch": batch}

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._feed.n_batches

    def __iter__(self) -> "BatchIterator":
        if self._progress.begun:
            self._progress = _Progress(self._progress.epoch + 1)
        self._progress.begun = True
        return BatchIterator(self, self._progress)

    def __repr__(self) -> str:
        feed = self._feed
        how = f"{len(self)} of {feed.batch_size} rows, shuffle={feed.shuffle!r}"
        if feed.shuffle:
            held = human_bytes(min(feed.reservoir, feed.n_rows) * feed.row_bytes)
            how += f", reservoir={feed.reservoir} rows ({held} as stored)"
        return f"Batches({how}, of {feed.sites[0]!r})"


class BatchIterator(Iterator[Any]):
    """One epoch of `Batches`."""

    def __init__(self, batches: Batches, progress: _Progress) -> None:
        feed = batches._feed
        for site in feed.sites:
            site._origin.check_open()
        self._batches = batches
        self._progress = progress
        run = feed.run(batches._container, progress.epoch, progress.batch)
        self._source = Ahead(run, batches._prefetch)

    def __next__(self) -> Any:
        try:
            rows, values = next(self._source)
        except StopIteration:
            self._progress.ended = self._progress.batch == len(self._batches)
            raise
        batch = self._batches._container.finish(values[0])
        if self._batches._with_rows:
            batch = self._batches._feed.sites[0]._origin.numbers_of(rows), batch
        self._progress.batch += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Where this iteration is: as `Batches.state`."""
        return self._batches._state_of(self._progress)

    def close(self) -> None:
        """End it, and the threads that read for it."""
        self._source.close()
