"""Bringing up to date, after examples were appended, what was made of them before."""

import os
from collections.abc import Sequence

from . import whiteners
from .errors import InvalidInputError, NotFoundError
from .store import Store
from .store import open as open_store
from .view import Progress

_WHITENERS = whiteners.FOLDER + "/"


def update(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    names: Sequence[str] | None = None,
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> list[str]:
    """Compute what derived sites and whiteners lack.

    Derived sites are those that ``site.pool(..., out=name)`` wrote; whiteners lack norms of the rows of the
    site that `Whitener.save` named.

    Parameters
    ----------
    path : path or list of paths
        As for `open`.
    names : sequence of str, optional
        Which derived sites, and which whiteners, as ``"whiteners/NAME"``, with the sites that these are of;
        by default all of them.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called for each of them with (done, all), in rows times layers of what it is made of.

    Returns
    -------
    list of str
        Those that lacked something, derived sites first.

    Raises
    ------
    NotFoundError
        When there is no such derived site or whitener.
    StorageError
        kind ``locked`` while the store is written to.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> acts = {"resid": np.ones((3, 1, 4), np.float32)}
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "float32")}) as w:
    ...     w.append(acts, lengths=[1, 2])
    >>> actstore.open(path)["resid"].pool("mean", out="mean").shape
    (2, 1, 4)
    >>> with actstore.append(path) as w:
    ...     w.append(acts, lengths=[3])
    >>> actstore.update(path), actstore.open(path)["mean"].shape
    (['mean'], (3, 1, 4))
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
        raise InvalidInputError(f"update: names: expected a list of names, got {names!r}")
    whitened = None if names is None else [name for name in names if name.startswith(_WHITENERS)]
    sites = None if names is None else [name for name in names if not name.startswith(_WHITENERS)]
    with open_store(path) as store:
        site_of = _without_norms(store, whitened)
        stand_on = [site for site in site_of.values() if site in store._snapshot.derived]
        short = unfinished(store, sites if sites is None else sites + stand_on)
        for name in short:
            recipe = store._snapshot.derived[name].site.recipe
            store[recipe["source"]].pool(
                recipe["kind"],
                layers=recipe["layers"],
                mix=recipe["mix"],
                special=recipe["special"],
                on_empty=recipe["on_empty"],
                out=name,
                threads=threads,
                progress=progress,
            )
        for name, site in site_of.items():
            own = name.removeprefix(_WHITENERS)
            store.whiteners[own].save(path, own, site, threads=threads, progress=progress)
    return [*short, *site_of]


def _without_norms(store: Store, names: Sequence[str] | None) -> dict[str, str]:
    """Whiteners, as `update` calls them, of those named or of all, that lack norms, and whose."""
    there = [_WHITENERS + name for name in store.whiteners]
    for name in names or ():
        if name not in there:
            raise NotFoundError(
                f"{store._snapshot.name} has no whitener {name!r}, it has: {', '.join(there) or 'none'}"
            )
    short = {_WHITENERS + name: site for name, site in whiteners.unfinished(store._snapshot.parts).items()}
    return {name: short[name] for name in (there if names is None else names) if name in short}


def unfinished(store: Store, names: Sequence[str] | None = None) -> list[str]:
    """Which derived sites of a store, of those named or of all, lack examples.

    Raises
    ------
    NotFoundError
        When there is no such derived site.
    """
    there = store._snapshot.derived
    for name in names if names is not None else ():
        if name not in there:
            raise NotFoundError(
                f"{store._snapshot.name} has no derived site {name!r}, "
                f"it has: {', '.join(sorted(there)) or 'none'}"
            )
    wanted = list(there) if names is None else list(dict.fromkeys(names))
    return [name for name in wanted if not there[name].usable]
