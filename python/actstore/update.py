"""Bringing derived sites up to date after examples were appended."""

import os
from collections.abc import Sequence

from .errors import InvalidInputError, NotFoundError
from .store import Store
from .store import open as open_store
from .view import Progress


def update(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    names: Sequence[str] | None = None,
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> list[str]:
    """Compute what derived sites lack, those that ``site.pool(..., out=name)`` wrote.

    Parameters
    ----------
    path : path or list of paths
        As for `open`.
    names : sequence of str, optional
        Which derived sites; by default all of them.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called for each of them with (done, all), in rows times layers of its source.

    Returns
    -------
    list of str
        Those that lacked something.

    Raises
    ------
    NotFoundError
        When there is no such derived site.
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
    if isinstance(names, str):
        raise InvalidInputError(f"update: names: expected a list, got {names!r}")
    with open_store(path) as store:
        short = unfinished(store, names)
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
    return short


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
