"""An epoch counter that the processes iterating over one dataset share through a small locked file."""

import contextlib
import fcntl
import json
import os
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any


class SharedEpochs:
    """Assigns an epoch to each iteration over a dataset, consistently in all worker processes.

    The state is in a small file that is locked while it is read and written. So it reaches workers that were
    forked or spawned, and persistent workers that started before the epoch was chosen. The first worker to
    begin an iteration takes the next epoch; the other workers of that iteration find it in the file.

    Attributes
    ----------
    path : str
        The file. It is deleted with the object in the process that created it.
    """

    _MAX_BEGUN = 64
    """How many of the latest iterations the file keeps."""

    def __init__(self) -> None:
        self._content: dict[str, Any] = {"epoch": 0, "batch": 0, "begun": [], "in_workers": False}
        self._create_file()  # Before any worker starts, so that all of them share it.

    def _create_file(self) -> None:
        """Create a file with the state that this process knows."""
        handle, self.path = tempfile.mkstemp(prefix="actstore-epochs-", suffix=".json")
        with os.fdopen(handle, "w") as file:
            json.dump(self._content, file)
        weakref.finalize(self, _delete_in_process, self.path, os.getpid())

    def choose(self, epoch: int, batch: int) -> None:
        """Set the epoch of the next iteration, and how many of its batches to skip."""
        with self._locked() as content:
            content.update(epoch=epoch, batch=batch, in_workers=False)

    def begin(self, iteration: str | None, epoch: int | None = None) -> tuple[int, int]:
        """Begin an iteration; return its epoch and how many batches to skip.

        Parameters
        ----------
        iteration : str, optional
            A key that the workers of one iteration share; None in the main process.
        epoch : int, optional
            The epoch of a state that was loaded in this worker.
        """
        with self._locked() as content:
            if (known := self._known(content, iteration)) is not None:
                return known
            assigned = (content["epoch"], content["batch"]) if epoch is None else (epoch, 0)
            content.update(epoch=assigned[0] + 1, batch=0, in_workers=iteration is not None)
            if iteration is not None:
                content["begun"] = [*content["begun"], [iteration, *assigned]][-self._MAX_BEGUN :]
            return assigned

    def peek(self, iteration: str | None) -> tuple[int, int]:
        """The result that `begin` would return, without beginning the iteration."""
        with self._locked() as content:
            return self._known(content, iteration) or (content["epoch"], content["batch"])

    @staticmethod
    def _known(content: dict[str, Any], iteration: str | None) -> tuple[int, int] | None:
        """The epoch and batches to skip of an iteration that another worker has begun."""
        matches = (tuple(entry[1:]) for entry in content["begun"] if entry[0] == iteration)
        return next(matches, None)

    def in_workers(self) -> bool:
        """Whether worker processes began the latest iteration."""
        with self._locked() as content:
            return bool(content["in_workers"])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        if not os.path.exists(self.path):  # On another machine, or deleted from the temporary folder.
            self._create_file()
        with open(self.path, "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # Closing the file releases the lock.
            content = self._content = json.load(file)
            yield content
            file.seek(0)
            json.dump(content, file)
            file.truncate()

    def __getstate__(self) -> dict[str, Any]:
        with self._locked():
            return self.__dict__


def _delete_in_process(path: str, pid: int) -> None:
    """Delete the file, unless this is a forked child of the process that created it."""
    if os.getpid() == pid:
        with contextlib.suppress(OSError):
            os.unlink(path)
