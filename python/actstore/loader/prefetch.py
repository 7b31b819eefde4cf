"""A generator that a background thread runs ahead of its consumer."""

import os
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from typing import Generic, Self, TypeVar

from ..errors import StorageError

T = TypeVar("T")

_JOIN_SECONDS = 10.0
"""How long `close` waits for the item being produced: a hung disk must not block the consumer forever."""


class Prefetcher(Iterator[T], Generic[T]):
    """Iterates over a generator that a background thread runs. The thread starts at once.

    The thread ends when the generator is exhausted or raises, when `close` is called, when this object is
    garbage collected, and at interpreter exit. An exception in the generator is raised to the consumer after
    the items produced before it, and again on each later call of ``next``.

    Parameters
    ----------
    items : generator
        The thread closes it.
    depth : int
        Maximum number of items produced but not yet consumed, including the one being produced. With 1, the
        thread starts on the next item when the consumer takes the current one.

    Examples
    --------
    >>> list(Prefetcher((i * i for i in range(4)), depth=2))
    [0, 1, 4, 9]
    """

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        # The thread holds no reference to this object, so that it can be collected while the thread runs.
        self._channel: PrefetchChannel[T] = PrefetchChannel(depth)
        name = "actstore-prefetch"
        thread = threading.Thread(target=_produce, args=(items, self._channel), name=name, daemon=True)
        # A finalizer also runs at exit: a daemon thread that wakes up in an interpreter that is shutting down
        # would be killed in the middle of native code.
        self._finalizer = weakref.finalize(self, _finalize, self._channel, thread)
        thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self._channel.take()

    def close(self) -> None:
        """Stop the thread and discard the prefetched items; later calls of ``next`` raise StopIteration."""
        self._finalizer()


class PrefetchChannel(Generic[T]):
    """A bounded queue between the background thread and the consumer."""

    def __init__(self, depth: int) -> None:
        self.pid = os.getpid()
        self._depth = depth
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._ended = False
        # A Condition's lock is reentrant, as it must be: garbage collection can run `_finalize` in a thread
        # that holds the lock.
        self._changed = threading.Condition()

    def wait_for_demand(self) -> bool:
        """Block until another item is needed; return False if none will be."""
        with self._changed:
            while not self._ended and len(self._ready) >= self._depth:
                self._changed.wait()
            return not self._ended

    def put(self, item: T) -> None:
        """Hand an item to the consumer."""
        with self._changed:
            if not self._ended:
                self._ready.append(item)
                self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Producer: there are no more items, because the generator ended or raised `error`."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """Consumer: discard the items and take no more."""
        with self._changed:
            self._ready.clear()
            self.end()

    def take(self) -> T:
        """The next item; blocks until there is one.

        Raises
        ------
        StopIteration
            When there are no more items.
        StorageError
            kind ``forked`` in a child process, which has no copy of the thread.
        """
        if os.getpid() != self.pid:
            raise StorageError(
                "this iterator was created before a fork, and its thread does not run in the child process",
                kind="forked",
                hint="create the iterator in the child process",
            )
        with self._changed:
            while not self._ready and not self._ended:
                self._changed.wait()
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            raise StopIteration


def _produce(items: Generator[T, None, None], channel: PrefetchChannel[T]) -> None:
    try:
        while channel.wait_for_demand():
            try:
                item = next(items)
            except StopIteration:
                break
            channel.put(item)
            del item  # From here on only the consumer holds it.
        items.close()
        channel.end()
    except BaseException as error:
        channel.end(error)


def _finalize(channel: PrefetchChannel[T], thread: threading.Thread) -> None:
    if os.getpid() != channel.pid:
        return  # A forked child has no such thread, and the lock may be held forever.
    channel.stop()
    if thread is not threading.current_thread() and thread.ident is not None:
        thread.join(_JOIN_SECONDS)
