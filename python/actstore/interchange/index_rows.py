"""The rows of one layer as the input of an approximate index, and writing the index to a file."""

import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.arrays import new_array
from ..base.checks import as_path, at_least
from ..base.progress import Progress
from ..base.selection import Rows, compact_rows, rows_array, take
from ..errors import InvalidInputError, StorageError
from ..ops.rerank import sorted_by_row_id
from ..ops.scoring import scoring
from ..ops.whiten import Whitener
from ..rows.memory import array_backend
from ..rows.view import View
from .files import storage_errors

BLOCK_BYTES = 64 << 20
"""Bytes of rows to read at once."""


class IndexRows:
    """The rows of one layer by ascending row id: finite, float32, and if required whitened and normalized.

    Parameters
    ----------
    site : Site or array ``[n, D]``
    metric : {"dot", "cos", "l2"}
    transform : Whitener, optional
        Whiten the rows with it.
    threads : int
        0 means all cores.
    verb : str
        The calling function; error messages start with it.
    normalize : bool
        For ``metric="cos"``, scale the rows to unit norm.

    Attributes
    ----------
    dim : int
        Dimension of the rows after whitening.
    row_ids : range or array ``[n]``
        Row ids as in `Site.rows`, ascending.
    threads : int

    Raises
    ------
    InvalidInputError
        When there is not exactly one layer, a row is selected twice, or an argument is invalid.
    """

    def __init__(
        self,
        site: Any,
        metric: str,
        transform: Whitener | None,
        threads: int,
        verb: str,
        normalize: bool = True,
    ) -> None:
        self._view = view = site if isinstance(site, View) else View(array_backend(site))
        self._verb, self.threads = verb, at_least(0, threads, f"{verb}: threads")
        scoring(view, 1, metric, "sum", None, transform, None, "raise", verb)  # Checks the arguments.
        if len(view.layers) != 1:
            raise InvalidInputError(
                f"{verb}: an index holds rows of one layer, {view.full_name} has layers "
                f"{', '.join(map(str, view.layers))}",
                hint="select(layers=...) one of them",
            )
        self._normalize = normalize and metric == "cos"
        self._whitener = None if transform is None else transform.select(view.layers)
        self.dim = view.shape[2]
        if self._whitener is not None and self._whitener.kind == "pca":
            self.dim = self._whitener.components_.shape[1]
        view.backend.check_open()
        self.row_ids, self._rows = sorted_by_row_id(view)
        if not isinstance(self.row_ids, range):
            repeated = np.flatnonzero(np.diff(self.row_ids) == 0)
            if repeated.size:
                row = self.row_ids[repeated[0]]
                raise InvalidInputError(f"{verb}: row {row} is selected more than once")

    def __len__(self) -> int:
        return len(self._rows)

    def blocks(self, positions: Rows | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The start of each block, and its rows ``[b, dim]``. The next block overwrites the same memory.

        Parameters
        ----------
        positions : range or array, optional
            Positions in `row_ids`; by default all rows.

        Raises
        ------
        InvalidInputError
            When a row has NaN or infinities.
        """
        for start, values in self._read(self._rows if positions is None else take(self._rows, positions)):
            if not np.isfinite(values).all():
                self._raise_not_finite()
            yield start, values

    def sample(self, n: int, progress: Progress | None, total: int) -> NDArray[np.float32]:
        """A random sample of `n` rows, ``[n, dim]``, the same at each call.

        Raises
        ------
        InvalidInputError
            When there are no rows, a row has NaN or infinities, or the sample does not fit in memory.
        """
        if not n:
            raise InvalidInputError(f"{self._verb}: {self._view.full_name}: there are no rows to train with")
        positions = np.random.default_rng(0).choice(len(self), n, replace=False, shuffle=False)
        positions.sort()
        what = f"{self._verb}: {n} training rows (reduce train_rows)"
        out = new_array((n, self.dim), np.dtype(np.float32), what)
        for start, values in self.blocks(compact_rows(positions)):
            out[start : start + len(values)] = values
            if progress is not None:
                progress(start + len(values), total)
        return out

    def _read(self, rows: Rows) -> Iterator[tuple[int, NDArray[np.float32]]]:
        dim = self._view.shape[2]
        n_block = max(1, BLOCK_BYTES // max(1, 4 * max(dim, self.dim)))
        buffer = np.empty((min(n_block, len(rows)), 1, dim), np.float32)
        for start in range(0, len(rows), n_block):
            block_rows = rows[start : start + n_block]
            block = buffer[: len(block_rows)]
            self._view.read_rows_into(block_rows, self._view.layer_positions, block, self.threads)
            # NaN and infinities pass through here without warnings; `blocks` raises an error for them.
            with np.errstate(all="ignore"):
                values = block[:, 0] if self._whitener is None else self._whitener.transform(block[:, 0])
                if self._normalize:
                    norms = np.sqrt(np.einsum("nd,nd->n", values, values, dtype=np.float64))
                    norms[norms == 0] = 1.0
                    np.divide(values, norms[:, None], out=values, casting="same_kind")
            yield start, values

    def _raise_not_finite(self) -> None:
        bad: list[int] = []
        for start, values in self._read(self._rows):
            in_block = np.flatnonzero(~np.isfinite(values).all(1))
            bad += rows_array(self.row_ids[start : start + len(values)])[in_block].tolist()
        raise InvalidInputError(
            f"{self._verb}: {len(bad)} {'row has' if len(bad) == 1 else 'rows have'} NaN or infinities, "
            f"the first is row {bad[0]}",
            hint="select(rows=...) the other rows",
        )


def import_library(module: str, package: str) -> Any:
    """Import an index library.

    Raises
    ------
    InvalidInputError
        When it cannot be imported; the hint names the package to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise InvalidInputError(
            f"{name} cannot be imported: {error}", hint=f"pip install {package}"
        ) from error


def call_library(verb: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a library function and return its result.

    Raises
    ------
    InvalidInputError
        When the library raises RuntimeError; the message omits the location in the library's source.
    """
    try:
        return call(*arguments)
    except RuntimeError as error:
        reason = re.sub(r"^Error in .* at \S+:\d+: ", "", str(error))
        raise InvalidInputError(f"{verb}: {reason}") from error


def output_path(out: Any, verb: str) -> str | None:
    """The absolute path of an output file, checked before the work begins; None when `out` is None.

    Raises
    ------
    InvalidInputError
        When `out` is not a path.
    StorageError
        When it is a directory, or its parent directory does not exist.
    """
    if out is None:
        return None
    path = os.path.abspath(as_path(out, f"{verb}: out"))
    parent = os.path.dirname(path)
    if os.path.isdir(path):
        raise StorageError(f"{path} is a directory", kind="exists", hint="name a file")
    if not os.path.isdir(parent):
        raise StorageError(f"{parent} is not a directory", kind="io", hint=f"mkdir -p {parent}")
    return path


def write_atomically(path: str, write: Callable[[str], object]) -> None:
    """Write a file under a temporary name in the same directory, then rename it to `path`.

    Parameters
    ----------
    path : str
        The file to create or replace.
    write : callable
        Called with the temporary path.

    Raises
    ------
    StorageError
        When writing fails. `path` is then unchanged.
    """
    import tempfile

    with storage_errors(path):
        folder = tempfile.mkdtemp(prefix=f".{os.path.basename(path)}.partial-", dir=os.path.dirname(path))
    partial = os.path.join(folder, os.path.basename(path))
    try:
        with storage_errors(path):
            try:
                write(partial)
            except RuntimeError as error:  # The libraries report I/O errors as RuntimeError.
                raise StorageError(f"{path}: {error}", kind="io") from error
            os.replace(partial, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
