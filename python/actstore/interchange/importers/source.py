"""The common form of everything that can be imported: sites read in blocks, and the data around them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...artifacts.whiteners import WhitenerState
from ...base.arrays import FLOAT_DTYPES, SITE_DTYPES
from ...disk.recipe import Derived
from ...disk.spec import SiteSpec
from ...errors import InvalidInputError, NotFoundError

ReadRows = Callable[[int, int], NDArray[Any]]
"""Called as ``read(start, stop)``; returns these rows."""


@dataclass
class ImportSource:
    """The content of a file or directory to import.

    Attributes
    ----------
    specs : dict of str to SiteSpec
        The sites to create.
    read : dict of str to callable
        Reads rows of each site, ``[stop - start, n_layers, dim]``.
    rows : dict of str to int
        Rows of each axis.
    offsets : dict of str to array, optional
        int64 ``[n_examples + 1]`` of each axis; None if the source has none.
    identity : dict
        The store's identity.
    ids : sequence of str, optional
        The examples' ids.
    token_columns : dict of str to dict
        Reads rows of each column, by axis and name.
    example_columns : dict of str to sequence or array
        The columns over examples, by name, without the ids.
    derived : dict of str to (Derived, callable)
        Sites that remain derived, because the sites they were computed from are imported unchanged.
    whiteners : dict of str to ImportedWhitener
        Whiteners, in stored order.
    """

    specs: dict[str, SiteSpec]
    read: dict[str, ReadRows]
    rows: dict[str, int]
    offsets: dict[str, NDArray[np.int64]] | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    ids: Sequence[str] | None = None
    token_columns: dict[str, dict[str, ReadRows]] = field(default_factory=dict)
    example_columns: dict[str, Sequence[Any] | NDArray[Any]] = field(default_factory=dict)
    derived: dict[str, tuple[Derived, ReadRows]] = field(default_factory=dict)
    whiteners: dict[str, "ImportedWhitener"] = field(default_factory=dict)

    def rows_of(self, site: str) -> int:
        """Rows of a site, derived or not."""
        return self.rows[self.specs[site].axis] if site in self.specs else self.derived[site][0].rows

    def drop_derived(self) -> None:
        """Leave out the derived sites, and the whiteners' norms of their rows."""
        self.derived = {}
        for name, whitener in self.whiteners.items():
            self.whiteners[name] = whitener.restricted_to(list(self.specs))


@dataclass(frozen=True)
class ImportedWhitener:
    """A whitener to import.

    Attributes
    ----------
    metadata : mapping
        Its attributes. ``site`` is the site whose row norms it keeps, or None.
    load : callable
        Reads its arrays.
    norms : callable, optional
        Reads the norms of the site's rows; None if they are unknown or no longer valid.
    """

    metadata: Mapping[str, Any]
    load: Callable[[], WhitenerState]
    norms: ReadRows | None = None

    def restricted_to(self, sites: Sequence[str]) -> "ImportedWhitener":
        """The whitener for a store with only these sites: without norms if its own site is not among them."""
        if self.metadata["site"] in sites:
            return self
        return ImportedWhitener({**self.metadata, "site": None}, self.load)


def site_spec(
    what: str, shape: Sequence[int], dtype: str, labels: Sequence[int] | None, to: str | None
) -> SiteSpec:
    """The spec of the site for an array ``[rows, dim]`` (one layer) or ``[rows, layers, dim]``.

    Parameters
    ----------
    what : str
        The array; error messages start with it.
    shape : sequence of int
    dtype : str
        The array's dtype.
    labels : sequence of int, optional
        The layers' labels.
    to : str, optional
        The dtype to cast to.

    Raises
    ------
    InvalidInputError
        When the shape does not fit, or the dtype is not a site's dtype and `to` is missing.
    """
    if len(shape) not in (2, 3):
        raise InvalidInputError(
            f"{what} has shape {list(shape)}, a site needs [rows, dim] or [rows, layers, dim]",
            hint="choose other sites with sites=",
        )
    if dtype not in FLOAT_DTYPES:
        raise InvalidInputError(f"{what} is {dtype}, a site needs one of {', '.join(SITE_DTYPES)}")
    if to is None and dtype not in SITE_DTYPES:
        raise InvalidInputError(
            f"{what} is {dtype}, a site needs one of {', '.join(SITE_DTYPES)}", hint="dtype='float32'"
        )
    return SiteSpec(1 if len(shape) == 2 else shape[1], shape[-1], to or dtype, labels)


def choose_sites(available: Sequence[str], sites: Sequence[str] | None, where: str) -> list[str]:
    """The names of the sites to import: `sites`, or all available ones.

    Raises
    ------
    NotFoundError
        When a site is not available.
    InvalidInputError
        When `sites` is empty.
    """
    if sites is None:
        return list(available)
    for name in sites:
        if name not in available:
            raise NotFoundError(f"{where} has no site {name!r}, it has: {', '.join(available) or 'none'}")
    if not sites:
        raise InvalidInputError("sites: expected at least one name")
    return list(sites)
