"""The rows of a store that a query is compared with: the site, its layers and the pooling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..disk.layout import EXAMPLES
from ..errors import InvalidInputError
from ..ops.pool import KINDS
from ..site import Site
from ..store import Store
from .args import default_site
from .terminal import ProgressBar


@dataclass(frozen=True)
class SearchTarget:
    """A site, some of its layers, and how the rows of an example are pooled into one.

    Attributes
    ----------
    name : str
        The captured site.
    rows : Site
        The selected layers: one row per token, or per example if the site is pooled.
    pool : str
        The kind of pooling.
    pooled : Site, optional
        These layers with this pooling, if the store has them.
    """

    name: str
    rows: Site
    pool: str
    pooled: Site | None

    @property
    def layers(self) -> list[int]:
        """The labels of the layers."""
        return list(self.rows.layers)

    def examples(self, threads: int = 0) -> Site:
        """One row per example, float32 ``[n_examples, L, D]``; pooled now if the store does not have them."""
        if self.pooled is not None:
            return self.pooled
        with ProgressBar("pool") as bar:
            return self.rows.pool(
                self.pool,
                on_empty="zero",
                threads=threads,
                progress=bar.in_units(self.rows.shape[2] * self.rows.dtype.itemsize),
            )


def search_target(store: Store, site_name: str | None, layers: Any, pool: str | None) -> SearchTarget:
    """Resolve the options of a query.

    Parameters
    ----------
    store : Store
    site_name : str, optional
        A captured or a pooled site; by default resid, or the only captured site.
    layers : optional
        Labels, as for `Site.select`; by default the last layer.
    pool : str, optional
        The kind of pooling; by default the site's own, else the model's own, else the mean.

    Raises
    ------
    NotFoundError
        If there is no such site or layer.
    InvalidInputError
        If the store has several sites and none is named, or `pool` differs from how the site was pooled.
    """
    derived = store.info()["derived"]
    if site_name is None:
        captured = [name for name in store if name not in derived]
        site_name = default_site(captured, store.path, "--site names the one to search")
    site = store[site_name]
    rows = site.select(layers=[site.layers[-1]] if layers is None else layers)
    if site_name in derived:
        return _pooled_later(site_name, rows, derived[site_name]["recipe"], pool)
    if site.axis == EXAMPLES:
        return _pooled_at_capture(store, site_name, rows, pool)
    model = store.identity.get("model")
    own = model.get("pool") if isinstance(model, dict) else None
    kind = pool or (own if own in KINDS else "mean")
    return SearchTarget(site_name, rows, kind, _stored_pooling(store, derived, site_name, rows.layers, kind))


def _pooled_later(name: str, rows: Site, recipe: dict[str, Any], pool: str | None) -> SearchTarget:
    """A site that `Site.pool` wrote."""
    if recipe["mix"] is not None or not recipe["special"]:
        detail = "with its layers mixed" if recipe["mix"] is not None else "without special tokens"
        raise InvalidInputError(
            f"{name!r} was pooled {detail}, and a query cannot be pooled the same way",
            hint=f"--site {recipe['source']}",
        )
    _check_pool(pool, recipe["kind"], name)
    return SearchTarget(recipe["source"], rows, recipe["kind"], rows)


def _pooled_at_capture(store: Store, name: str, rows: Site, pool: str | None) -> SearchTarget:
    """A site that was captured with one row per example."""
    kind = store.identity.get("pool")
    if not isinstance(kind, str):  # `capture` did not write the store, so the kind of pooling is unknown.
        return SearchTarget(name, rows, pool or "mean", rows)
    _check_pool(pool, kind, name)
    return SearchTarget(name, rows, kind, rows)


def _check_pool(pool: str | None, kind: str, name: str) -> None:
    if pool not in (None, kind):
        raise InvalidInputError(
            f"--pool {pool}: {name!r} is already pooled with {kind!r}", hint=f"--pool {kind}"
        )


def _stored_pooling(
    store: Store, derived: dict[str, Any], source: str, layers: Sequence[int], kind: str
) -> Site | None:
    """These layers of `source` pooled with `kind`, if the store has them for all examples."""
    for name, info in derived.items():
        recipe = info["recipe"]
        if (
            info["complete"]
            and (recipe["source"], recipe["kind"]) == (source, kind)
            and recipe["mix"] is None
            and recipe["special"]
            and set(layers) <= set(recipe["layers"])
        ):
            return store[name].select(layers=list(layers))
    return None
