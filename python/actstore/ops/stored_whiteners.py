"""The whiteners of a store: reading them, copying them from another store, completing them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import whiteners
from ..artifacts.protocol import ArtifactKind, complete, register
from ..base.progress import Progress
from ..disk.layout import ARTIFACTS
from ..disk.parts import Part
from ..disk.snapshot import Snapshot
from ..errors import FormatError, NotFoundError
from ..rows.view import View
from .whiten import Whitener


def whitener_from_state(state: whiteners.WhitenerState, where: str) -> Whitener:
    """The whitener with this stored state; FormatError when the state is malformed."""
    own, arrays = state.attributes, state.arrays
    try:
        layers, dim = [int(label) for label in own["layers"]], int(own["dim"])
        ranks = [int(rank) for rank in own["rank"]]
        shape = (len(layers), max(ranks, default=0), dim)
        shrinkage = [float(amount) for amount in own["shrinkage"]]
        whitener = Whitener(kind=own["transform"], eps=float(own["eps"]))
        components = arrays["components"].reshape(shape)
        variances = arrays["variance"].reshape(shape[:2])
        whitener.set_fitted(
            layers,
            arrays["mean"].reshape(shape[0], dim),
            [components[i, :rank] for i, rank in enumerate(ranks)],
            [variances[i, :rank] for i, rank in enumerate(ranks)],
            int(own["n"]),
            shrinkage,
            own["source"],
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{where}: a malformed whitener: {error!r:.80}", kind="metadata") from error
    finite = all(np.isfinite(array).all() for array in arrays.values())
    amounts = [whitener.eps, *shrinkage]
    valid = all(np.isfinite(amount) and amount >= 0 for amount in amounts)
    if not (finite and valid and len(shrinkage) == len(layers) == len(set(layers))):
        raise FormatError(f"{where}: a malformed whitener", kind="metadata")
    return whitener


def copy_whitener(
    store: str,
    name: str,
    state: whiteners.WhitenerState,
    site: str | None,
    norms: Callable[[int, int], NDArray[np.float64]] | None,
    threads: int,
    progress: Progress | None,
) -> None:
    """Copy another store's whitener into `store`.

    ``norms(start, stop)`` reads the norms of the rows of `site`, ``[stop - start, L]``. Without `norms`, they
    are computed.

    Raises
    ------
    FormatError
        When the whitener is malformed, or its digest does not match its values.
    """
    whitener = whitener_from_state(state, f"whitener {name!r}")
    if whitener.digest != state.attributes["digest"]:
        raise FormatError(f"whitener {name!r}: its digest does not match its values", kind="metadata")
    if norms is None:
        whitener.save(store, name, site, threads=threads, progress=progress)
        return

    def norms_of(_: View, rows: range, *__: object) -> NDArray[np.float64]:
        stored = norms(rows.start, rows.stop)
        if (stored < 0).any():
            raise FormatError(f"whitener {name!r}: a norm is negative", kind="metadata")
        return stored

    artifact = whiteners.WhitenerArtifact(name, whitener.state(site), norms_of)
    complete(store, artifact, threads, progress)


class Whiteners(Mapping[str, Whitener]):
    """The whiteners of a store by name; each is read when it is accessed."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)
        self._names = whiteners.names(self._parts)

    def __getitem__(self, name: str) -> Whitener:
        if name not in self._names:
            raise NotFoundError(
                f"{self._parts[0].path} has no whitener {name!r}, it has: {', '.join(self._names) or 'none'}",
                hint="Whitener().fit(site).save(store, name), or actstore whiten",
            )
        part = self._parts[0]
        return whitener_from_state(whiteners.read(part, name), f"{part.path}: {name}")

    # Mapping's own versions catch KeyError, which `__getitem__` does not raise.
    def __contains__(self, name: object) -> bool:
        return name in self._names

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._names else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Whiteners({', '.join(self._names) or 'none'})"


def _whitener_names(snapshot: Snapshot) -> Sequence[str]:
    return [PREFIX + name for name in whiteners.names(snapshot.parts)]


def _incomplete_whiteners(snapshot: Snapshot) -> Mapping[str, str | None]:
    return {PREFIX + name: site for name, site in whiteners.incomplete(snapshot.parts).items()}


def _complete_whitener(snapshot: Snapshot, name: str, threads: int, progress: Progress | None) -> None:
    own = name.removeprefix(PREFIX)
    site = whiteners.incomplete(snapshot.parts).get(own)
    Whiteners(snapshot.parts)[own].save(snapshot.source, own, site, threads=threads, progress=progress)


PREFIX = ARTIFACTS + "/"
"""The prefix of whitener names in `actstore.update`."""
register(ArtifactKind("whitener", _whitener_names, _incomplete_whiteners, _complete_whitener))
