"""Query vectors: of texts, through the store's own model, or of a ``.npy`` file."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..store import Store
from .search_target import SearchTarget


def embed_texts(
    store: Store,
    target: SearchTarget,
    texts: Sequence[str],
    *,
    prompt: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[NDArray[np.float32], Any]:
    """The vectors of texts by the model that the store was captured with, and its tokenizer.

    Returns
    -------
    vectors : float32 ``[n, L, D]``
    tokenizer

    Raises
    ------
    NotFoundError, InvalidInputError
        If the model cannot be found, or has changed since the capture.
    """
    from ..capturing import embed
    from ..capturing.model.loading import load_from_identity

    model = load_from_identity(store.identity, device=device, trust_remote_code=trust_remote_code)
    vectors = embed(
        store, texts, site=target.name, layers=target.layers, pool=target.pool, model=model, prompt=prompt
    )
    return vectors.read(), model.tokenizer


def embed_text_tokens(
    store: Store,
    target: SearchTarget,
    text: str,
    *,
    prompt: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[NDArray[np.float32], list[int], Any]:
    """The vectors of a text's tokens by the store's model, their token ids, and the tokenizer.

    Returns
    -------
    vectors : float32 ``[T, L, D]``
        Without special tokens.
    ids : list of int ``[T]``
    tokenizer

    Raises
    ------
    NotFoundError, InvalidInputError
        If the model cannot be found, has changed since the capture, or the text has no tokens.
    """
    from ..capturing import embed_tokens
    from ..capturing.model.loading import load_from_identity

    model = load_from_identity(store.identity, device=device, trust_remote_code=trust_remote_code)
    tokens = embed_tokens(
        store, [text], site=target.name, layers=target.layers, special=False, model=model, prompt=prompt
    )
    return tokens.read(), tokens.column("id").tolist(), model.tokenizer


def load_vectors(path: str) -> NDArray[Any]:
    """The array of a ``.npy`` file.

    Raises
    ------
    InvalidInputError
        If the file does not hold one array.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidInputError(
            f"{path} is not a .npy file: {error}", hint="numpy.save(path, array) writes one"
        ) from error
    if not isinstance(array, np.ndarray):
        raise InvalidInputError(
            f"{path} holds several arrays, expected one", hint="numpy.save(path, array) writes one"
        )
    return array
