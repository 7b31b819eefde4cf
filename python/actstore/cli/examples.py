"""The text of examples, for people to look at."""

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..capture.checkpoint import place_of
from ..errors import NotFoundError
from ..parts import STRINGS
from ..site import Site
from ..store import Store

_MOST_ROWS = 4096
"""Of an example, to be shown."""

Decode = Callable[[Sequence[int]], str]


def chosen_examples(
    store: Store, sites: Sequence[Site], n_first: int, asked: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The first examples, or those asked for with the norms of their rows, ready for JSON.

    Raises
    ------
    NotFoundError
        When there is no such example.
    """
    numbers = (
        range(min(n_first, store.n_examples)) if asked is None else [example_number(store, x) for x in asked]
    )
    axis = next((site.axis for site in sites if site.axis in store.axes), next(iter(store.axes), None))
    decode = _decoder(store, axis) if numbers else None
    return [_example(store, sites, axis, i, decode, norms=asked is not None) for i in numbers]


def example_number(store: Store, name: str) -> int:
    """An example by its id, or else by its position."""
    try:
        return store._snapshot.example_number(name)
    except NotFoundError:
        if name.isdecimal() and int(name) < store.n_examples:
            return int(name)
        raise


def _example(
    store: Store, sites: Sequence[Site], axis: str | None, i: int, decode: Decode | None, norms: bool
) -> dict[str, Any]:
    texts = store.examples.dtypes.get("text") == STRINGS
    told: dict[str, Any] = {
        "number": i,
        "id": store.examples.text("id", i),
        "rows": None,
        "text": store.examples.text("text", i) if texts else None,
        "tokens": None,
    }
    if axis is not None:
        columns = store.axes[axis]
        start, stop = (int(bound) for bound in columns.offset[i : i + 2])
        told["rows"] = stop - start
        if columns.dtypes.get("id", STRINGS) not in (STRINGS, "bool", "float16", "float32", "float64"):
            ids = columns.read("id", start, min(stop, start + _MOST_ROWS)).tolist()
            told["tokens"] = ids
            if told["text"] is None and decode is not None:
                with contextlib.suppress(Exception):  # The tokenizer is not ours.
                    told["text"] = decode(ids)
    if norms:
        told["norms"] = {site.name: _norms(site, i) for site in sites}
    return told


def _norms(site: Site, i: int) -> dict[str, list[float | None]]:
    """The norm of each row, by layer."""
    view = site.select(examples=i)
    rows = view.select(tokens=slice(0, _MOST_ROWS)).read("float32").astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt((rows**2).sum(2))
    return {
        str(label): [float(x) if np.isfinite(x) else None for x in norms[:, at]]
        for at, label in enumerate(site.layers)
    }


def _decoder(store: Store, axis: str | None) -> Decode | None:
    """How ids become text, if that is needed and the tokenizer at hand."""
    if axis is None or "id" not in store.axes[axis] or store.examples.dtypes.get("text") == STRINGS:
        return None
    tokenizer = stored_tokenizer(store.identity)
    return None if tokenizer is None else lambda ids: str(tokenizer.decode(list(ids)))


def stored_tokenizer(identity: Mapping[str, Any]) -> Any | None:
    """The tokenizer that a store's identity names, if it is at hand; nothing is downloaded."""
    name, revision = _tokenizer_name(identity)
    if name is None:
        return None
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            place, _ = place_of(name)
            options = {} if revision is None else {"revision": revision}
            auto = importlib.import_module("transformers").AutoTokenizer
            return auto.from_pretrained(place, local_files_only=True, **options)
    except Exception:  # Not installed, not there, or not to be read: the ids will do.
        return None


def _tokenizer_name(identity: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What the identity says of the tokenizer, or of the model it goes with: a name and a revision."""
    for key in ("tokenizer", "model"):
        told = identity.get(key)
        if isinstance(told, str):
            return told, None
        if isinstance(told, Mapping):
            revision = told.get("revision")
            for part in ("name_or_path", "name", "path", "id"):
                if isinstance(told.get(part), str):
                    return told[part], revision if isinstance(revision, str) else None
    return None, None
