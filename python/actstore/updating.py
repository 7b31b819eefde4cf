"""Bring derived sites and other artifacts up to date after examples were appended."""

import os
from collections.abc import Sequence

from .artifacts.protocol import KINDS
from .base.progress import Progress
from .errors import InvalidInputError, NotFoundError
from .ops import pool, stored_whiteners  # noqa: F401  (they register their kinds)
from .store import Store
from .store import open as open_store


def update(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    names: Sequence[str] | None = None,
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> list[str]:
    """Complete derived sites and whiteners after examples were appended.

    Computes the missing rows of derived sites (``site.pool(..., out=name)``) and, for whiteners saved with a
    site (`Whitener.save`), the missing norms of the site's rows.

    Parameters
    ----------
    path : path or list of paths
        As for `open`.
    names : sequence of str, optional
        Derived sites by name, whiteners as ``"artifacts/NAME"``; a derived site that a whitener needs is
        completed too. By default all.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called for each artifact with the work done and the total, in rows times layers.

    Returns
    -------
    list of str
        The names of the completed artifacts, derived sites first.

    Raises
    ------
    NotFoundError
        When there is no such derived site or whitener.
    StorageError
        kind ``locked`` while the store is being written.
    InvalidInputError
        When `names` is not a list of names.

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
    with open_store(path) as store:
        incomplete = incomplete_artifacts(store, names)
        for name in incomplete:
            [kind] = [kind for kind in KINDS if name in kind.names(store.snapshot)]
            kind.complete(store.snapshot, name, threads, progress)
            store.refresh()
    return incomplete


def incomplete_artifacts(store: Store, names: Sequence[str] | None = None) -> list[str]:
    """The incomplete artifacts of a store, among these names or all, in the order to complete them.

    Raises
    ------
    NotFoundError
        When there is no such artifact.
    """
    snapshot = store.snapshot
    known = {kind.name: kind.names(snapshot) for kind in KINDS}
    for name in names or ():
        if not any(name in there for there in known.values()):
            shown = "; ".join(f"{what}s: {', '.join(there) or 'none'}" for what, there in known.items())
            raise NotFoundError(f"{snapshot.name} has no artifact {name!r} ({shown})")
    incomplete: dict[str, str | None] = {}
    for kind in KINDS:
        incomplete |= kind.incomplete(snapshot)
    chosen = {name for name in incomplete if names is None or name in names}
    needed = {incomplete[name] for name in chosen}
    # A whitener's norms need its site to be complete.
    return sorted(
        (name for name in incomplete if name in chosen | needed),
        key=lambda name: incomplete[name] is not None,
    )
