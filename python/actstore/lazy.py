"""`functools.cached_property` as it is from Python 3.12 on: without a lock.

In 3.11 one lock, of all instances, is held while a value is computed. Where that reads, it waits for the
thread pool, and a reducer in the pool that asks for the same property waits for the lock: both for ever.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from functools import cached_property as lazy
else:

    class lazy:
        """Computed when first asked for; two threads that ask at once may both compute it."""

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
