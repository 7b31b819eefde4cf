"""From names of sites to the tensors of a model that are meant.

A name is one of ours (`resid`, `attn_out`, ...), one of TransformerLens (`blocks.3.hook_resid_post`), an
entry of transformers' `hidden_states`, or the path of a module, with ``*`` for several. What is stored says
of each layer what it is in the terms of all of these.
"""

import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import InvalidInputError, NotFoundError
from ..layout import EXAMPLES, TOKENS
from ..selection import layer_positions
from .anatomy import Anatomy, Heads, Stream, Tap

PARTS = {
    "attn_out": "what attention adds to the residual stream",
    "cross_attn_out": "what attention to the encoder adds to the residual stream",
    "mixer_out": "what the block's mixer adds to the residual stream",
    "mlp_out": "what the MLP adds to the residual stream",
    "mlp_act": "what enters the last linear map of the MLP",
    "q": "queries, as they are projected",
    "k": "keys, as they are projected",
    "v": "values, as they are projected",
    "q_rot": "queries, rotated, as they enter attention",
    "k_rot": "keys, rotated, as they enter attention",
    "z": "what enters the last linear map of attention",
    "resid_mid": "the residual stream between attention and MLP",
}
"""The sites of a block, labelled by it from 0."""

_LENS = {
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "mlp_act": "mlp.hook_post",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "q_rot": "attn.hook_rot_q",
    "k_rot": "attn.hook_rot_k",
    "z": "attn.hook_z",
    "resid_mid": "hook_resid_mid",
}
"""What TransformerLens calls them, within ``blocks.i``."""
_FROM_LENS = {hook: site for site, hook in _LENS.items()}


@dataclass(frozen=True)
class Captured:
    """A site of the store to be: which tensors make its layers."""

    name: str
    axis: str
    labels: tuple[int, ...]
    taps: tuple[Tap, ...]
    about: dict[str, Any]

    @property
    def dim(self) -> int:
        """Numbers in a row of a layer."""
        shape = self.taps[0].shape
        return shape[1] if len(shape) == 4 else shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """In which all layers are as the model computes them; a stream may become wider on its way."""
        return functools.reduce(torch.promote_types, (tap.dtype for tap in self.taps))


@dataclass
class _Entry:
    """A site that the model has."""

    taps: dict[int, Tap]
    what: str
    one_label: bool = False
    told: dict[int, dict[str, Any]] = field(default_factory=dict)
    heads: dict[int, Heads] = field(default_factory=dict)


class Menu:
    """The sites that a model has.

    Parameters
    ----------
    anatomy : Anatomy
        What was seen when it was run.
    n_sequences : int
        In the batch that it was run on.
    lengths : mapping of str to int
        By axis, how long these sequences were; all different. Empty for images.
    """

    def __init__(self, anatomy: Anatomy, n_sequences: int, lengths: Mapping[str, int]) -> None:
        self._results = anatomy.results
        self._n_sequences = n_sequences
        self._lengths = dict(lengths)
        self._entries: dict[str, _Entry] = {}
        self._streams = [stream.name for stream in anatomy.streams]
        self._post_norm = {stream.name for stream in anatomy.streams if stream.blocks[-1].post_norm}
        for stream in anatomy.streams:
            prefix = f"{stream.name}." if stream.name else ""
            self._entries |= {prefix + name: entry for name, entry in _entries(stream).items()}
        if anatomy.logits is not None and anatomy.streams:
            label = len(anatomy.streams[-1].blocks)
            self._entries["logits"] = _Entry({label: anatomy.logits}, "scores of the next token", True)

    def listing(self) -> list[dict[str, Any]]:
        """All sites by our names, ready for JSON: name, layers, dim, what it is."""
        return [
            {
                "site": name,
                "layers": list(entry.taps),
                "dim": next(iter(entry.taps.values())).shape[-1],
                "what": entry.what,
            }
            for name, entry in self._entries.items()
        ]

    @property
    def modules(self) -> list[str]:
        """The paths of all modules that give tensors of floats."""
        return [path for path in self._results if path]

    def resolve(self, sites: Sequence[str] | Mapping[str, Any], layers: Any = None) -> list[Captured]:
        """The sites meant.

        Parameters
        ----------
        sites : sequence of str, or mapping of str to layers
        layers : int, list of int, slice, or mapping of site to such, optional
            Labels, for sites of several layers; None: all.

        Raises
        ------
        NotFoundError
            For a site or a layer that is not there, listing those that are.
        InvalidInputError
            For names of no meaning, or tensors that are no rows.
        """
        chosen: dict[str, dict[int, Tap]] = {}
        for name, wanted in _wanted(sites, layers):
            for site, labels in self._meant(name):
                taps = self._taps(site, labels, wanted if labels is None else None)
                there = chosen.setdefault(site, {})
                there |= taps
        return [self._captured(name, taps) for name, taps in chosen.items()]

    # ---- names ----

    def _meant(self, name: str) -> list[tuple[str, list[int] | None]]:
        """The entries that a name stands for, and which of their labels if it says so."""
        if name in self._entries:
            return [(name, None)]
        of_streams = [f"{stream}.{name}" for stream in self._streams if f"{stream}.{name}" in self._entries]
        if of_streams:
            return [(site, None) for site in of_streams]
        alias = self._alias(name)
        if alias is not None:
            return [alias]
        return self._modules(name)

    def _alias(self, name: str) -> tuple[str, list[int] | None] | None:
        found = re.fullmatch(r"(?:(encoder|decoder)\.)?(hidden_states|resid)\[(-?\d+)\]", name)
        if found:
            site = f"{found[1]}.{found[2]}" if found[1] else found[2]
            entry = self._entry(site, name)
            return site, [_label(int(found[3]), list(entry.taps), name)]
        if name == "ln_final.hook_normalized":
            told = self._entry("final", name).told.values()
            return ("final", None) if any(one["transformer_lens"] == name for one in told) else None
        found = re.fullmatch(
            r"(?:(encoder|decoder)|blocks)\.(\d+|\*)\.(?:hook_(?:normalized_)?resid_(pre|post)|(.+))", name
        )
        if not found:
            return None
        prefix = f"{found[1]}." if found[1] else ""
        if found[3] == "post" and ("normalized" in name) != ((found[1] or "") in self._post_norm):
            other = name.replace("hook_normalized_", "hook_") if "normalized" in name else None
            raise InvalidInputError(
                f"{name}: the model has no such tensor that is passed on",
                hint=f"{other or name.replace('hook_', 'hook_normalized_')} is what the block gives",
            )
        if found[4] is not None and found[4].endswith("hook_pattern"):
            raise InvalidInputError(
                f"{name}: attention patterns are [head, token, token], not rows of tokens",
                hint="q_rot and k_rot give them",
            )
        site = prefix + (_FROM_LENS.get(found[4], "") if found[4] is not None else "resid")
        if site not in self._entries:
            return None if found[4] is not None and found[4] not in _FROM_LENS else (site, None)
        labels = list(self._entry(site, name).taps)
        after = 1 if found[3] == "post" else 0
        if found[2] != "*":
            return site, [_label(int(found[2]) + after, labels, name)]
        if found[4] is not None:
            return site, None
        return site, labels[after:] if after else labels[:-1]

    def _modules(self, name: str) -> list[tuple[str, list[int] | None]]:
        """Modules by path, by the end of a path, or by a pattern."""
        paths = [name] if name in self._results else self._like(name)
        if not paths:
            paths = [path for path in self.modules if path.endswith(f".{name}")]
            if len(paths) > 1:
                raise InvalidInputError(
                    f"site {name!r} may mean any of {', '.join(paths[:4])} ({len(paths)} in all)",
                    hint="the whole path, or a pattern with * for all of them",
                )
        if not paths:
            raise NotFoundError(
                f"there is no site {name!r}; the model has {', '.join(self._entries) or 'none of ours'}",
                hint=_near(name, [*self._entries, *self.modules])
                or "the path of a module, with * for several, is a site too",
            )
        groups: dict[str, dict[int, Tap]] = {}
        for path in paths:
            results = self._results[path]
            label, key = _numbered(path)
            if len(results) > 1:  # A module that is run several times: a layer for each.
                groups.setdefault(path, {}).update(enumerate(results))
            else:
                groups.setdefault(key if len(paths) > 1 else path, {})[label] = results[0]
        for key, taps in list(groups.items()):
            if len({(tap.shape, tap.dtype) for tap in taps.values()}) > 1:  # Each by itself.
                del groups[key]
                groups |= {tap.module: {label: tap} for label, tap in taps.items()}
        if len(groups) == 1 and "*" in name:
            groups = dict.fromkeys([name], next(iter(groups.values())))
        for site, taps in groups.items():
            self._entries.setdefault(site, _Entry(taps, "what the module gives", len(taps) == 1))
        return [(site, None) for site in groups]

    def _like(self, pattern: str) -> list[str]:
        """Paths by a pattern of which ``*`` stands for a part; if there are none, for any number of them."""
        parts = pattern.split(".")
        split = [(path, path.split(".")) for path in self.modules]
        exact = [
            path
            for path, names in split
            if len(names) == len(parts) and all(map(fnmatch.fnmatchcase, names, parts))
        ]
        return exact or [path for path in self.modules if fnmatch.fnmatchcase(path, pattern)]

    def _entry(self, site: str, asked: str) -> _Entry:
        if site not in self._entries:
            raise NotFoundError(
                f"there is no site {asked!r}; the model has {', '.join(self._entries) or 'none of ours'}",
                hint="the path of a module, with * for several, is a site too",
            )
        return self._entries[site]

    # ---- layers ----

    def _taps(self, site: str, labels: list[int] | None, wanted: Any) -> dict[int, Tap]:
        entry = self._entry(site, site)
        there = list(entry.taps)
        if labels is None:
            if wanted is None or (entry.one_label and not isinstance(wanted, _Own)):
                labels = there
            else:
                wanted = wanted.layers if isinstance(wanted, _Own) else wanted
                chosen = layer_positions(wanted, there, f"site {site!r} of the model")
                if not len(chosen):
                    raise InvalidInputError(
                        f"site {site!r}: layers {wanted!r} are none",
                        hint=f"there are {there[0]} to {there[-1]}",
                    )
                labels = [there[i] for i in chosen]
        return {label: entry.taps[label] for label in labels}

    def _captured(self, name: str, taps: Mapping[int, Tap]) -> Captured:
        entry = self._entries[name]
        labels = tuple(sorted(taps))
        ordered = tuple(taps[label] for label in labels)
        about: dict[str, Any] = {"what": entry.what}
        heads = {label: vars(entry.heads[label]) for label in labels if label in entry.heads}
        same = len({str(of) for of in heads.values()}) == 1
        if same:
            about |= next(iter(heads.values()))
        about["layers"] = {
            str(label): {
                **entry.told.get(label, {}),
                "module": taps[label].module,
                "side": taps[label].side,
                **({} if same else heads.get(label, {})),
            }
            for label in labels
        }
        return Captured(name, self._axis(name, ordered), labels, ordered, about)

    def _axis(self, name: str, taps: Sequence[Tap]) -> str:
        shapes = {tap.shape for tap in taps}
        if len(shapes) > 1:
            raise InvalidInputError(f"site {name!r}: its layers differ in shape: {sorted(shapes)}")
        (shape,) = shapes
        flat = [axis for axis, n in self._lengths.items() if shape[0] == n * self._n_sequences]
        if len(shape) == 2 and flat and shape[0] != self._n_sequences:
            return flat[0]  # All sequences of the batch, one behind the other.
        if shape[0] != self._n_sequences or len(shape) not in (2, 3, 4):
            raise InvalidInputError(
                f"site {name!r} gives {list(shape)} for {self._n_sequences} sequences, "
                "which is no [batch, token, dim]"
            )
        if len(shape) == 2:
            return EXAMPLES
        if len(shape) == 4 and self._lengths:
            raise InvalidInputError(f"site {name!r} gives {list(shape)}, which is no [batch, token, dim]")
        if not self._lengths:  # Of images each size of map is an axis; the caller names them.
            return "x".join(map(str, shape[2:] if len(shape) == 4 else shape[1:2]))
        axes = [axis for axis, length in self._lengths.items() if shape[1] == length]
        if not axes:
            raise InvalidInputError(
                f"site {name!r} gives {list(shape)} for sequences of "
                f"{', '.join(map(str, self._lengths.values()))} tokens: its rows are not the tokens"
            )
        return axes[0]


@dataclass(frozen=True)
class _Own:
    """Layers that were asked for one site by name."""

    layers: Any


def _wanted(sites: Any, layers: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(sites, Mapping):
        if layers is not None:
            raise InvalidInputError("layers= and sites= with layers of their own: one of them")
        pairs = [(name, None if of is None else _Own(of)) for name, of in sites.items()]
    else:
        if isinstance(sites, str):
            sites = [sites]
        if not isinstance(sites, Iterable):
            raise InvalidInputError(f"sites: expected names, got {type(sites).__name__}")
        names = list(sites)
        if isinstance(layers, Mapping):
            unknown = [name for name in layers if name not in names]
            if unknown:
                raise InvalidInputError(f"layers: {unknown[0]!r} is none of the sites {names}")
            pairs = [(name, _Own(layers[name]) if name in layers else None) for name in names]
        else:
            pairs = [(name, layers) for name in names]
    if not pairs:
        raise InvalidInputError("sites: expected at least one")
    for name, _ in pairs:
        if not isinstance(name, str) or not name:
            raise InvalidInputError(f"sites: {name!r} is no name")
    return pairs


def _entries(stream: Stream) -> dict[str, _Entry]:
    """The sites of a stream by our names."""
    n = len(stream.blocks)
    resid = {i: block.enters for i, block in enumerate(stream.blocks)} | {n: stream.blocks[-1].leaves}
    told = {i: _told(stream, i) for i in resid}
    out = {
        "resid": _Entry(resid, "the residual stream after so many blocks, before any final norm", told=told)
    }
    for part, what in PARTS.items():
        taps = {i: block.parts[part] for i, block in enumerate(stream.blocks) if part in block.parts}
        if not taps:
            continue
        heads = {i: block.heads[part] for i, block in enumerate(stream.blocks) if part in block.heads}
        lens = _LENS.get(part)
        names: dict[int, dict[str, Any]] = {
            i: {"transformer_lens": f"{_lens_block(stream, i)}.{lens}"} if lens else {} for i in taps
        }
        out[part] = _Entry(taps, what, told=names, heads=heads)
    if stream.final is not None:
        out["final"] = _Entry({n: stream.final}, "the last residual stream after the final norm", True)
        # Its RMSNorm has the hook before the weights.
        lens = "ln_final.hook_normalized" if stream.final_bias else None
        out["final"].told = {n: {"hf": _hf(stream, None), "transformer_lens": lens}}
    if stream.states:
        states = [resid[of] if of is not None else stream.final for of in stream.states]
        out["hidden_states"] = _Entry(
            {j: tap for j, tap in enumerate(states) if tap is not None},
            "as transformers' output_hidden_states",
            told={
                j: (told[of] if of is not None else {}) | {"hf": _state(stream, j)}
                for j, of in enumerate(stream.states)
            },
        )
    return out


def _told(stream: Stream, i: int) -> dict[str, Any]:
    """What the residual stream after `i` blocks is elsewhere."""
    n = len(stream.blocks)
    if i < n:
        lens = f"{_lens_block(stream, i)}.hook_resid_pre"
    elif stream.blocks[-1].post_norm:
        lens = f"{_lens_block(stream, n - 1)}.hook_normalized_resid_post"
    else:
        lens = f"{_lens_block(stream, n - 1)}.hook_resid_post"
    return {"hf": _hf(stream, i), "transformer_lens": lens, "vllm": i}


def _hf(stream: Stream, after: int | None) -> str | None:
    """Which of transformers' hidden states is the stream after so many blocks, or after the final norm."""
    return _state(stream, stream.states.index(after)) if after in stream.states else None


def _state(stream: Stream, j: int) -> str:
    prefix = f"{stream.name}_" if stream.name in ("encoder", "decoder") else ""
    return f"{prefix}hidden_states[{j}]"


def _lens_block(stream: Stream, i: int) -> str:
    return f"{stream.name}.{i}" if stream.name else f"blocks.{i}"


def _label(at: int, labels: Sequence[int], asked: str) -> int:
    label = at if at >= 0 else labels[at] if -at <= len(labels) else at
    if label not in labels:
        raise NotFoundError(f"{asked}: there are layers {labels[0]} to {labels[-1]}")
    return label


def _numbered(path: str) -> tuple[int, str]:
    """The first number in a path, 0 without one, and the path with ``*`` in its place."""
    names = path.split(".")
    for i, name in enumerate(names):
        if name.isdecimal():
            return int(name), ".".join([*names[:i], "*", *names[i + 1 :]])
    return 0, path


def _near(name: str, names: Sequence[str]) -> str | None:
    import difflib

    near = difflib.get_close_matches(name, names, 1, 0.7)
    return f"there is {near[0]!r}" if near else None


def name_axes(sites: Sequence[Captured]) -> list[Captured]:
    """Of images: the axis of all sites is `tokens` if they are of one size, else each size has its own."""
    from dataclasses import replace

    sizes = {site.axis for site in sites} - {EXAMPLES}
    if len(sizes) <= 1:
        return [site if site.axis == EXAMPLES else replace(site, axis=TOKENS) for site in sites]
    return [site if site.axis == EXAMPLES else replace(site, axis=f"{TOKENS}-{site.axis}") for site in sites]
