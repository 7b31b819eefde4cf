"""Resolving site names to tensors of a model.

A name is a canonical one (`resid`, `attn_out`, ...), one of TransformerLens (`blocks.3.hook_resid_post`), an
entry of transformers' `hidden_states`, or a module path, with ``*`` for several. The store records the
equivalent of each layer in transformers, TransformerLens and vLLM.
"""

import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...base.selection import layer_positions
from ...disk.layout import EXAMPLES, TOKENS
from ...errors import InvalidInputError, NotFoundError
from .anatomy import Anatomy, Heads, HookPoint, ResidualStream

PARTS = {
    "attn_out": "the output of attention, as added to the residual stream",
    "cross_attn_out": "the output of cross-attention, as added to the residual stream",
    "mixer_out": "the output of the mixer, as added to the residual stream",
    "mlp_out": "the output of the MLP, as added to the residual stream",
    "mlp_act": "the input of the last linear map of the MLP",
    "q": "queries, after the projection",
    "k": "keys, after the projection",
    "v": "values, after the projection",
    "q_rot": "rotated queries, as they enter attention",
    "k_rot": "rotated keys, as they enter attention",
    "z": "the input of the last linear map of attention",
    "resid_mid": "the residual stream between attention and MLP",
}
"""Sites of a block, labeled by the block's number from 0."""

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
"""Their names in TransformerLens, below ``blocks.i``."""
_FROM_LENS = {hook: site for site, hook in _LENS.items()}


@dataclass(frozen=True)
class CapturedSite:
    """A site to capture: the tensors of its layers.

    Attributes
    ----------
    name : str
    axis : str
        The axis of its rows.
    labels : tuple of int
        Layer labels, ascending.
    hook_points : tuple of HookPoint
        One for each label.
    about : dict
        Its description in the store.
    """

    name: str
    axis: str
    labels: tuple[int, ...]
    hook_points: tuple[HookPoint, ...]
    about: dict[str, Any]

    @property
    def dim(self) -> int:
        """Number of features."""
        shape = self.hook_points[0].shape
        return shape[1] if len(shape) == 4 else shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds all layers exactly; the dtype of a stream may widen on the way."""
        return functools.reduce(torch.promote_types, (point.dtype for point in self.hook_points))


@dataclass
class _Entry:
    """A site of the model, with all its layers."""

    hook_points: dict[int, HookPoint]
    what: str
    one_label: bool = False
    aliases: dict[int, dict[str, Any]] = field(default_factory=dict)
    """For each label, the tensor's names in other libraries."""
    heads: dict[int, Heads] = field(default_factory=dict)


class SiteMenu:
    """The sites of a model.

    Parameters
    ----------
    anatomy : Anatomy
        The model's structure, from the dry run.
    n_sequences : int
        Batch size of the dry run.
    lengths : mapping of str to int
        Sequence length of the dry run by axis, all different. Empty for images.
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
            self._entries["logits"] = _Entry({label: anatomy.logits}, "the scores of the next token", True)

    def listing(self) -> list[dict[str, Any]]:
        """All canonical sites as JSON: name, layers, dim and description."""
        return [
            {
                "site": name,
                "layers": list(entry.hook_points),
                "dim": next(iter(entry.hook_points.values())).shape[-1],
                "what": entry.what,
            }
            for name, entry in self._entries.items()
        ]

    @property
    def modules(self) -> list[str]:
        """The paths of all modules with floating-point results."""
        return [path for path in self._results if path]

    def resolve(self, sites: Sequence[str] | Mapping[str, Any], layers: Any = None) -> list[CapturedSite]:
        """Resolve names to sites.

        Parameters
        ----------
        sites : sequence of str, or mapping of str to layers
        layers : int, list of int, slice, or mapping of site to these, optional
            Labels, for sites with several layers. None selects all.

        Raises
        ------
        NotFoundError
            For a missing site or layer. The message lists those that exist.
        InvalidInputError
            For invalid names, or tensors without rows.
        """
        chosen: dict[str, dict[int, HookPoint]] = {}
        for name, requested in _requests(sites, layers):
            for site, labels in self._resolve_name(name):
                hook_points = self._hook_points(site, labels, requested if labels is None else None)
                chosen.setdefault(site, {}).update(hook_points)
        return [self._captured(name, hook_points) for name, hook_points in chosen.items()]

    # ---- names ----

    def _resolve_name(self, name: str) -> list[tuple[str, list[int] | None]]:
        """The entries that a name stands for, and the labels that it selects, or None."""
        if name in self._entries:
            return [(name, None)]
        by_stream = [f"{stream}.{name}" for stream in self._streams if f"{stream}.{name}" in self._entries]
        if by_stream:
            return [(site, None) for site in by_stream]
        alias = self._alias(name)
        if alias is not None:
            return [alias]
        return self._modules(name)

    def _alias(self, name: str) -> tuple[str, list[int] | None] | None:
        match = re.fullmatch(r"(?:(encoder|decoder)\.)?(hidden_states|resid)\[(-?\d+)\]", name)
        if match:
            site = f"{match[1]}.{match[2]}" if match[1] else match[2]
            entry = self._entry(site, name)
            return site, [_label(int(match[3]), list(entry.hook_points), name)]
        if name == "ln_final.hook_normalized":
            aliases = self._entry("final", name).aliases.values()
            return ("final", None) if any(one["transformer_lens"] == name for one in aliases) else None
        match = re.fullmatch(
            r"(?:(encoder|decoder)|blocks)\.(\d+|\*)\.(?:hook_(?:normalized_)?resid_(pre|post)|(.+))", name
        )
        if not match:
            return None
        prefix = f"{match[1]}." if match[1] else ""
        if match[3] == "post" and ("normalized" in name) != ((match[1] or "") in self._post_norm):
            other = name.replace("hook_normalized_", "hook_") if "normalized" in name else None
            raise InvalidInputError(
                f"{name}: the model's blocks do not return this tensor",
                hint=f"{other or name.replace('hook_', 'hook_normalized_')} is the block's output",
            )
        if match[4] is not None and match[4].endswith("hook_pattern"):
            raise InvalidInputError(
                f"{name}: attention patterns are [head, token, token], not rows of tokens",
                hint="capture q_rot and k_rot, and compute the patterns from them",
            )
        site = prefix + (_FROM_LENS.get(match[4], "") if match[4] is not None else "resid")
        if site not in self._entries:
            return None if match[4] is not None and match[4] not in _FROM_LENS else (site, None)
        labels = list(self._entry(site, name).hook_points)
        after = 1 if match[3] == "post" else 0
        if match[2] != "*":
            return site, [_label(int(match[2]) + after, labels, name)]
        if match[4] is not None:
            return site, None
        return site, labels[after:] if after else labels[:-1]

    def _modules(self, name: str) -> list[tuple[str, list[int] | None]]:
        """Modules by path, by the end of a path, or by a pattern with ``*``."""
        paths = [name] if name in self._results else self._matching(name)
        if not paths:
            paths = [path for path in self.modules if path.endswith(f".{name}")]
            if len(paths) > 1:
                raise InvalidInputError(
                    f"site {name!r} is ambiguous: {', '.join(paths[:4])} ({len(paths)} in total)",
                    hint="give the full path, or a pattern with * for all of them",
                )
        if not paths:
            raise NotFoundError(
                f"there is no site {name!r}; the model has {', '.join(self._entries) or 'no known sites'}",
                hint=_near(name, [*self._entries, *self.modules])
                or "a module path, with * for several, is a site too",
            )
        groups: dict[str, dict[int, HookPoint]] = {}
        for path in paths:
            results = self._results[path]
            label, key = _numbered(path)
            if len(results) > 1:  # Each call of the module is a layer.
                groups.setdefault(path, {}).update(enumerate(results))
            else:
                groups.setdefault(key if len(paths) > 1 else path, {})[label] = results[0]
        for key, hook_points in list(groups.items()):
            if (
                len({(point.shape, point.dtype) for point in hook_points.values()}) > 1
            ):  # Layers that differ are separate sites.
                del groups[key]
                groups |= {point.module: {label: point} for label, point in hook_points.items()}
        if len(groups) == 1 and "*" in name:
            groups = dict.fromkeys([name], next(iter(groups.values())))
        for site, hook_points in groups.items():
            self._entries.setdefault(
                site, _Entry(hook_points, "the output of the module", len(hook_points) == 1)
            )
        return [(site, None) for site in groups]

    def _matching(self, pattern: str) -> list[str]:
        """Paths that match a pattern.

        ``*`` matches one part of a path or, if nothing matches, any number of parts.
        """
        parts = pattern.split(".")
        split = [(path, path.split(".")) for path in self.modules]
        exact = [
            path
            for path, names in split
            if len(names) == len(parts) and all(map(fnmatch.fnmatchcase, names, parts))
        ]
        return exact or [path for path in self.modules if fnmatch.fnmatchcase(path, pattern)]

    def _entry(self, site: str, name: str) -> _Entry:
        if site not in self._entries:
            raise NotFoundError(
                f"there is no site {name!r}; the model has {', '.join(self._entries) or 'no known sites'}",
                hint="a module path, with * for several, is a site too",
            )
        return self._entries[site]

    # ---- layers ----

    def _hook_points(self, site: str, labels: list[int] | None, requested: Any) -> dict[int, HookPoint]:
        entry = self._entry(site, site)
        available = list(entry.hook_points)
        if labels is None:
            if requested is None or (entry.one_label and not isinstance(requested, _SiteLayers)):
                labels = available
            else:
                layers = requested.layers if isinstance(requested, _SiteLayers) else requested
                chosen = layer_positions(layers, available, f"site {site!r} of the model")
                if not len(chosen):
                    raise InvalidInputError(
                        f"site {site!r}: layers {layers!r} select no layer",
                        hint=f"the model has {available[0]} to {available[-1]}",
                    )
                labels = [available[i] for i in chosen]
        return {label: entry.hook_points[label] for label in labels}

    def _captured(self, name: str, hook_points: Mapping[int, HookPoint]) -> CapturedSite:
        entry = self._entries[name]
        labels = tuple(sorted(hook_points))
        ordered = tuple(hook_points[label] for label in labels)
        about: dict[str, Any] = {"what": entry.what}
        heads = {label: vars(entry.heads[label]) for label in labels if label in entry.heads}
        same = len({str(of) for of in heads.values()}) == 1
        if same:
            about |= next(iter(heads.values()))
        about["layers"] = {
            str(label): {
                **entry.aliases.get(label, {}),
                "module": hook_points[label].module,
                "side": hook_points[label].side,
                **({} if same else heads.get(label, {})),
            }
            for label in labels
        }
        return CapturedSite(name, self._axis(name, ordered), labels, ordered, about)

    def _axis(self, name: str, hook_points: Sequence[HookPoint]) -> str:
        shapes = {point.shape for point in hook_points}
        if len(shapes) > 1:
            raise InvalidInputError(f"site {name!r}: its layers differ in shape: {sorted(shapes)}")
        (shape,) = shapes
        flat = [axis for axis, n in self._lengths.items() if shape[0] == n * self._n_sequences]
        if len(shape) == 2 and flat and shape[0] != self._n_sequences:
            return flat[0]  # The batch is flattened.
        if shape[0] != self._n_sequences or len(shape) not in (2, 3, 4):
            raise InvalidInputError(
                f"site {name!r} has shape {list(shape)} for {self._n_sequences} sequences, "
                "not [batch, token, dim]"
            )
        if len(shape) == 2:
            return EXAMPLES
        if len(shape) == 4 and self._lengths:
            raise InvalidInputError(f"site {name!r} has shape {list(shape)}, not [batch, token, dim]")
        if not self._lengths:  # For images, each size of feature map is an axis. `name_axes` names it.
            return "x".join(map(str, shape[2:] if len(shape) == 4 else shape[1:2]))
        axes = [axis for axis, length in self._lengths.items() if shape[1] == length]
        if not axes:
            raise InvalidInputError(
                f"site {name!r} has shape {list(shape)} for sequences of "
                f"{', '.join(map(str, self._lengths.values()))} tokens: its rows are not tokens"
            )
        return axes[0]


@dataclass(frozen=True)
class _SiteLayers:
    """Layers requested for one site only."""

    layers: Any


def _requests(sites: Any, layers: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(sites, Mapping):
        if layers is not None:
            raise InvalidInputError("sites= is a mapping with layers: leave out layers=")
        pairs = [(name, None if of is None else _SiteLayers(of)) for name, of in sites.items()]
    else:
        if isinstance(sites, str):
            sites = [sites]
        if not isinstance(sites, Iterable):
            raise InvalidInputError(f"sites: expected names, got {type(sites).__name__}")
        names = list(sites)
        if isinstance(layers, Mapping):
            unknown = [name for name in layers if name not in names]
            if unknown:
                raise InvalidInputError(f"layers: {unknown[0]!r} is not among the sites {names}")
            pairs = [(name, _SiteLayers(layers[name]) if name in layers else None) for name in names]
        else:
            pairs = [(name, layers) for name in names]
    if not pairs:
        raise InvalidInputError("sites: expected at least one name")
    for name, _ in pairs:
        if not isinstance(name, str) or not name:
            raise InvalidInputError(f"sites: {name!r} is not a name")
    return pairs


def _entries(stream: ResidualStream) -> dict[str, _Entry]:
    """The canonical sites of a stream."""
    n = len(stream.blocks)
    resid = {i: block.input for i, block in enumerate(stream.blocks)} | {n: stream.blocks[-1].output}
    aliases = {i: _aliases(stream, i) for i in resid}
    out = {
        "resid": _Entry(resid, "the residual stream after i blocks, before any final norm", aliases=aliases)
    }
    for part, what in PARTS.items():
        hook_points = {i: block.parts[part] for i, block in enumerate(stream.blocks) if part in block.parts}
        if not hook_points:
            continue
        heads = {i: block.heads[part] for i, block in enumerate(stream.blocks) if part in block.heads}
        lens = _LENS.get(part)
        names: dict[int, dict[str, Any]] = {
            i: {"transformer_lens": f"{_lens_block(stream, i)}.{lens}"} if lens else {} for i in hook_points
        }
        out[part] = _Entry(hook_points, what, aliases=names, heads=heads)
    if stream.final is not None:
        out["final"] = _Entry({n: stream.final}, "the last residual stream after the final norm", True)
        # The hook of TransformerLens's RMSNorm comes before the weights.
        lens = "ln_final.hook_normalized" if stream.final_bias else None
        out["final"].aliases = {n: {"hf": _hf(stream, None), "transformer_lens": lens}}
    if stream.states:
        states = [resid[of] if of is not None else stream.final for of in stream.states]
        out["hidden_states"] = _Entry(
            {j: point for j, point in enumerate(states) if point is not None},
            "transformers' hidden_states",
            aliases={
                j: (aliases[of] if of is not None else {}) | {"hf": _state(stream, j)}
                for j, of in enumerate(stream.states)
            },
        )
    return out


def _aliases(stream: ResidualStream, i: int) -> dict[str, Any]:
    """Names in other libraries of the residual stream after `i` blocks."""
    n = len(stream.blocks)
    if i < n:
        lens = f"{_lens_block(stream, i)}.hook_resid_pre"
    elif stream.blocks[-1].post_norm:
        lens = f"{_lens_block(stream, n - 1)}.hook_normalized_resid_post"
    else:
        lens = f"{_lens_block(stream, n - 1)}.hook_resid_post"
    return {"hf": _hf(stream, i), "transformer_lens": lens, "vllm": i}


def _hf(stream: ResidualStream, after: int | None) -> str | None:
    """The hidden state that equals the stream after some blocks, or after the final norm (None)."""
    return _state(stream, stream.states.index(after)) if after in stream.states else None


def _state(stream: ResidualStream, j: int) -> str:
    prefix = f"{stream.name}_" if stream.name in ("encoder", "decoder") else ""
    return f"{prefix}hidden_states[{j}]"


def _lens_block(stream: ResidualStream, i: int) -> str:
    return f"{stream.name}.{i}" if stream.name else f"blocks.{i}"


def _label(at: int, labels: Sequence[int], name: str) -> int:
    label = at if at >= 0 else labels[at] if -at <= len(labels) else at
    if label not in labels:
        raise NotFoundError(f"{name}: no such layer, the model has {labels[0]} to {labels[-1]}")
    return label


def _numbered(path: str) -> tuple[int, str]:
    """The first number in a path (0 if there is none), and the path with ``*`` in place of it."""
    names = path.split(".")
    for i, name in enumerate(names):
        if name.isdecimal():
            return int(name), ".".join([*names[:i], "*", *names[i + 1 :]])
    return 0, path


def _near(name: str, names: Sequence[str]) -> str | None:
    import difflib

    near = difflib.get_close_matches(name, names, 1, 0.7)
    return f"did you mean {near[0]!r}?" if near else None


def name_axes(sites: Sequence[CapturedSite]) -> list[CapturedSite]:
    """Name the axes of images: `tokens` if all feature maps have one size, else one axis for each size."""
    sizes = {site.axis for site in sites} - {EXAMPLES}
    if len(sizes) <= 1:
        return [site if site.axis == EXAMPLES else replace(site, axis=TOKENS) for site in sites]
    return [site if site.axis == EXAMPLES else replace(site, axis=f"{TOKENS}-{site.axis}") for site in sites]
