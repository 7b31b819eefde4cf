"""The texts and tokens of examples, for people to read."""

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...capturing.model.checkpoint import resolve_location
from ...disk.parts import STRINGS
from ...errors import NotFoundError
from ...site import Site
from ...store import Store

_MAX_ROWS = 4096
"""Rows of an example to show at most."""

Decode = Callable[[Sequence[int]], str]


def describe_examples(
    store: Store, sites: Sequence[Site], n_first: int, names: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The first examples, or the named ones together with the norms of their rows; ready for JSON.

    Parameters
    ----------
    store : Store
    sites : sequence of Site
        Sites of the store, with all their rows.
    n_first : int
        How many examples, if `names` is None.
    names : sequence of str, optional
        Ids or positions of examples.

    Raises
    ------
    NotFoundError
        If there is no such example.
    """
    numbers = (
        range(min(n_first, store.n_examples))
        if names is None
        else [example_number(sites[0], name) for name in names]
    )
    axis = next((site.axis for site in sites if site.axis in store.axes), next(iter(store.axes), None))
    decode = _decoder(store, axis) if numbers else None
    return [_describe(store, sites, axis, i, decode, norms=names is not None) for i in numbers]


def example_number(site: Site, name: str) -> int:
    """The number of an example in the store, by its id or else by its position.

    Parameters
    ----------
    site : Site
        Any site of the store, with all its rows.
    name : str

    Raises
    ------
    NotFoundError
        If there is no such example.
    """
    try:
        return site.backend.example_number(name)
    except NotFoundError:
        if name.isdecimal() and int(name) < site.n_examples:
            return int(name)
        raise


def _describe(
    store: Store, sites: Sequence[Site], axis: str | None, i: int, decode: Decode | None, norms: bool
) -> dict[str, Any]:
    has_texts = store.examples.dtypes.get("text") == STRINGS
    example: dict[str, Any] = {
        "number": i,
        "id": store.examples.text("id", i),
        "rows": None,
        "text": store.examples.text("text", i) if has_texts else None,
        "tokens": None,
    }
    if axis is not None:
        columns = store.axes[axis]
        start, stop = (int(bound) for bound in columns.offsets[i : i + 2])
        example["rows"] = stop - start
        if columns.dtypes.get("id", STRINGS) not in (STRINGS, "bool", "float16", "float32", "float64"):
            ids = columns.read("id", start, min(stop, start + _MAX_ROWS)).tolist()
            example["tokens"] = ids
            if example["text"] is None and decode is not None:
                # The tokenizer is foreign code: if it fails on these ids, show the ids.
                with contextlib.suppress(Exception):
                    example["text"] = decode(ids)
    if norms:
        example["norms"] = {site.name: _norms(site, i) for site in sites}
    return example


def _norms(site: Site, i: int) -> dict[str, list[float | None]]:
    """The norm of each row of an example, by layer; None if it is not finite."""
    view = site.select(examples=i)
    rows = view.select(rows=slice(0, _MAX_ROWS)).read("float32").astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt((rows**2).sum(2))
    return {
        str(label): [float(x) if np.isfinite(x) else None for x in norms[:, at]]
        for at, label in enumerate(site.layers)
    }


def _decoder(store: Store, axis: str | None) -> Decode | None:
    """A function from token ids to text; None if texts are stored or the tokenizer is not available."""
    if axis is None or "id" not in store.axes[axis] or store.examples.dtypes.get("text") == STRINGS:
        return None
    tokenizer = stored_tokenizer(store.identity)
    return None if tokenizer is None else lambda ids: str(tokenizer.decode(list(ids)))


def stored_tokenizer(identity: Mapping[str, Any]) -> Any | None:
    """Load the tokenizer that a store's identity names, without downloading; None if that fails."""
    name, revision = _tokenizer_name(identity)
    if name is None:
        return None
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            location, _ = resolve_location(name)
            options = {} if revision is None else {"revision": revision}
            auto_tokenizer = importlib.import_module("transformers").AutoTokenizer
            return auto_tokenizer.from_pretrained(location, local_files_only=True, **options)
    except Exception:  # transformers is missing, or the tokenizer is missing or unreadable.
        return None


def _tokenizer_name(identity: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The name and revision of the tokenizer in a store's identity, else those of the model."""
    for key in ("tokenizer", "model"):
        entry = identity.get(key)
        if isinstance(entry, str):
            return entry, None
        if isinstance(entry, Mapping):
            revision = entry.get("revision")
            for field in ("name_or_path", "name", "path", "id"):
                if isinstance(entry.get(field), str):
                    return entry[field], revision if isinstance(revision, str) else None
    return None, None
