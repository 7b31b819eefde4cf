"""A site of an open store, or a view of some of its rows and layers: the operations by name."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpy.typing import DTypeLike

from .base.html import table
from .base.text import human_bytes
from .loader.batches import batches
from .loader.permutation import Shuffle
from .ops.cross_moments import cross_moments
from .ops.maxsim import maxsim
from .ops.moments import moments
from .ops.neighbors import neighbors
from .ops.pool import pool
from .ops.scan import map_blocks, scan
from .ops.search import search
from .rows.view import View

if TYPE_CHECKING:
    from .loader.torch_dataset import TorchDataset

_HTML_COLUMNS = 8


class Site(View):
    """An array ``[token, layer, dim]`` of a store, or a view of some of its rows and layers.

    A pooled site is one too: ``[example, layer, dim]``, in memory or beside its source.

    Rows are indexed as in numpy, layers by their labels. Only an int drops an axis. Unlike numpy, two lists
    select rows and layers independently.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> spec = actstore.SiteSpec(n_layers=2, dim=4, dtype="float32", labels=[6, 12])
    >>> with actstore.create(path, {"resid": spec}) as w:
    ...     acts = np.arange(40, dtype="float32").reshape(5, 2, 4)
    ...     w.append({"resid": acts}, lengths=[3, 2], ids=["a", "b"])
    >>> site = actstore.open(path)["resid"]
    >>> site.shape, site.layers
    ((5, 2, 4), [6, 12])
    >>> site[1:3, 12].shape, site[-1, 6, :2]
    ((2, 4), array([32., 33.], dtype=float32))
    >>> view = site.select(layers=12, examples="b")
    >>> view.rows, view.read("float32").shape
    (array([3, 4]), (2, 1, 4))
    """

    __slots__ = ()

    search = search
    maxsim = maxsim
    neighbors = neighbors
    pool = pool
    moments = moments
    cross_moments = cross_moments
    scan = scan
    map_blocks = map_blocks
    batches = batches

    def torch_dataset(
        self,
        batch_size: int = 4096,
        *,
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
        """This view as a dataset of batches, for ``DataLoader(dataset, batch_size=None)``.

        Parameters
        ----------
        batch_size : int
            Rows per batch.
        shuffle, seed, dtype, drop_last, reservoir, prefetch, threads
            As in `batches`.
        columns : list of str, optional
            Columns of the rows' axis or of their examples; a batch is then a dict.
        rank, world_size : int, optional
            The index of this process and the number of processes that share the rows; by default from
            ``torch.distributed``, else from the environment's ``RANK`` and ``WORLD_SIZE``.

        Returns
        -------
        TorchDataset
            Yields each row once per epoch, over all ranks and workers.

        Raises
        ------
        InvalidInputError
            When torch is not installed, or an option is invalid.
        """
        from .loader.torch_dataset import torch_dataset  # imports torch

        return torch_dataset(
            self,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            dtype=dtype,
            columns=columns,
            drop_last=drop_last,
            reservoir=reservoir,
            prefetch=prefetch,
            threads=threads,
            rank=rank,
            world_size=world_size,
        )

    def _repr_html_(self) -> str:
        n, n_layers, dim = self.shape
        rows = [
            ("rows", f"{n:,} ({self.axis})"),
            ("examples", f"{self.n_examples:,}"),
            (
                "layers",
                f"{n_layers}: {', '.join(map(str, self.layers[:_HTML_COLUMNS]))}"
                + (", ..." if n_layers > _HTML_COLUMNS else ""),
            ),
            ("dim", str(dim)),
            ("dtype", self.dtype.name),
            ("size", human_bytes(self.nbytes)),
        ]
        return table(repr(self), ("", ""), rows)
