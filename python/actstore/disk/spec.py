"""The specification of a site to be created."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base.arrays import SITE_DTYPES, dtype_named, integers
from ..base.checks import check_name
from ..errors import InvalidInputError
from .layout import TOKENS


@dataclass(frozen=True)
class SiteSpec:
    """The specification of a site: an array ``[token, layer, dim]``, or ``[example, layer, dim]``.

    Parameters
    ----------
    n_layers, dim : int
        The lengths of the array's last two axes.
    dtype : str or dtype
        bfloat16, float16 or float32: its name, or the dtype object of numpy, ml_dtypes or torch.
    labels : sequence of int, optional
        One non-negative number per layer; by default 0 to ``n_layers - 1``.
    axis : str
        The axis of the rows: `tokens`, another axis of tokens, or `examples` for pooled sites.
    chunk_rows, shard_rows : int, optional
        Rows per chunk and per file; by default chunks of about 1 MiB in files of 128-256 MB.
    about : mapping, optional
        A description of the site and its layers, as JSON can hold it. `Site.about` returns it.

    Raises
    ------
    InvalidInputError
        When a value is invalid.

    Examples
    --------
    >>> import actstore
    >>> actstore.SiteSpec(n_layers=2, dim=384, dtype="bfloat16", labels=[6, 12]).labels
    (6, 12)
    """

    n_layers: int
    dim: int
    dtype: str
    labels: Sequence[int] | None = None
    axis: str = TOKENS
    chunk_rows: int | None = None
    shard_rows: int | None = None
    about: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("n_layers", "dim", "chunk_rows", "shard_rows"):
            value = getattr(self, name)
            if value is None and name.endswith("_rows"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value <= 0:
                raise InvalidInputError(f"SiteSpec: {name} is {value!r}, not a positive int")
            object.__setattr__(self, name, int(value))
        if self.chunk_rows and self.shard_rows and self.shard_rows % self.chunk_rows:
            raise InvalidInputError(
                f"SiteSpec: shard_rows {self.shard_rows} is not a multiple of chunk_rows {self.chunk_rows}"
            )
        object.__setattr__(self, "dtype", dtype_named(self.dtype, SITE_DTYPES, "SiteSpec").name)
        labels = range(self.n_layers) if self.labels is None else self.labels
        labels = tuple(integers(list(labels), "SiteSpec: labels").tolist())
        if len(labels) != self.n_layers or len(set(labels)) != len(labels) or min(labels) < 0:
            raise InvalidInputError(
                f"SiteSpec: labels {list(labels)} are not {self.n_layers} distinct non-negative ints"
            )
        object.__setattr__(self, "labels", labels)
        check_name(self.axis, "SiteSpec: axis")
