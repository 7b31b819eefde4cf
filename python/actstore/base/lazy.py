"""`functools.cached_property` without a lock, as in Python 3.12 and later.

Python 3.11 holds one lock for all instances while it computes a value. That can deadlock: the computation
reads from the store and waits for the thread pool, while a reducer running in the pool accesses the same
property and waits for the lock.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from functools import cached_property as lazy
else:

    class lazy:
        """A property computed on first access. Two threads that access it at once may both compute it."""

        def __init__(self, compute: Any) -> None:
            self._compute = compute
            self.__doc__ = compute.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self._name = name

        def __get__(self, instance: Any, owner: type) -> Any:
            if instance is None:
                return self
            value = self._compute(instance)
            return instance.__dict__.setdefault(self._name, value)


__all__ = ["lazy"]
