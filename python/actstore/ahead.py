"""A generator that runs ahead of its consumer, in a thread."""

import os
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from typing import Generic, Self, TypeVar

from .errors import StorageError

T = TypeVar("T")

_PATIENCE = 10.0
"""Seconds that closing waits for an item that is being made: a hung disk must not hang its reader too."""


class Ahead(Iterator[T], Generic[T]):
    """The items of a generator, made by a thread that starts at once.

    The thread ends with the generator, with an error in it, when `close` is called, when this object
    goes, and when the interpreter exits. An error is raised here, after the items before it, and again
    whenever another item is asked for.

    Parameters
    ----------
    items : generator
        Closed by the thread, in the thread.
    depth : int
        How many items may exist that nobody has asked for, the one that is being made included. With 1,
        the next one is begun when the last one is taken.

    Examples
    --------
    >>> list(Ahead((i * i for i in range(4)), depth=2))
    [0, 1, 4, 9]
    """

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        # The thread knows the channel but not this object, which can go while the thread runs.
        self._channel: _Channel[T] = _Channel(depth)
        name = "actstore-ahead"
        thread = threading.Thread(target=_produce, args=(items, self._channel), name=name, daemon=True)
        # Runs at exit too: a thread that wakes up in a dying interpreter is killed amid native code.
        self._finish = weakref.finalize(self, _finish, self._channel, thread)
        thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self._channel.take()

    def close(self) -> None:
        """End the thread; there are no more items."""
        self._finish()


class _Channel(Generic[T]):
    """What the two threads share."""

    def __init__(self, depth: int) -> None:
        self.pid = os.getpid()
        self._depth = depth
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._ended = False
        # Its lock can be taken twice by one thread: a collection within it may run `_finish`.
        self._changed = threading.Condition()

    def wanted(self) -> bool:
        """Waits until another item is wanted; False when none will be."""
        with self._changed:
            while not self._ended and len(self._ready) >= self._depth:
                self._changed.wait()
            return not self._ended

    def put(self, item: T) -> None:
        with self._changed:
            if not self._ended:
                self._ready.append(item)
                self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """No more items come."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """No more items are taken."""
        with self._changed:
            self._ready.clear()
            self.end()

    def take(self) -> T:
        if os.getpid() != self.pid:
            raise StorageError(
                "this iteration belongs to another process: its thread is not in a forked child",
                kind="forked",
                hint="begin one in the child",
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


def _produce(items: Generator[T, None, None], channel: _Channel[T]) -> None:
    try:
        while channel.wanted():
            try:
                item = next(items)
            except StopIteration:
                break
            channel.put(item)
            del item  # The consumer's alone from here.
        items.close()
        channel.end()
    except BaseException as error:
        channel.end(error)


def _finish(channel: _Channel[T], thread: threading.Thread) -> None:
    if os.getpid() != channel.pid:
        return  # A forked child has no such thread, and perhaps a lock that nobody will release.
    channel.stop()
    if thread is not threading.current_thread() and thread.ident is not None:
        thread.join(_PATIENCE)
