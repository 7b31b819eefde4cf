"""`capture` and `plan`: from a model and inputs to a store, and what that will cost."""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..arrays import human_bytes
from ..errors import ActstoreWarning, InvalidInputError, StorageError
from ..parts import as_path
from ..selection import is_int
from ..store import Store
from ..store import open as open_store
from ..view import one_of
from .plan import Plan, check_fits, clock, estimate, fits

if TYPE_CHECKING:
    from .forms import Input
    from .inputs import Inputs
    from .ready import ReadyBatch
    from .session import Session

_SAMPLE = 512
"""Inputs, or ready batches, from which the size of the whole is estimated."""
_PILOT_SHARE = 0.005
"""Of the input, that is run once more to see what the whole will take."""
_LOOK = 16
"""Of these, what a model is looked at with."""


class CaptureWarning(ActstoreWarning):
    """Something about captured activations that one should know: inputs that were cut, NaN, infinities."""


def capture(
    path: str | os.PathLike[str],
    model: Any,
    texts: Iterable[Any],
    *,
    tokenizer: Any = None,
    sites: Sequence[str] | Mapping[str, Any] = ("resid",),
    layers: Any = None,
    dtype: Any = None,
    tokens: Any = "all",
    pool: str | None = None,
    max_length: int | None = None,
    stride: int | None = None,
    batch_tokens: int = 8192,
    columns: Mapping[str, Sequence[Any]] | Sequence[str] | None = None,
    store_text: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    chat: bool | str | None = None,
    prompt: str | None = None,
    seed: int = 0,
    on_nan: Literal["count", "raise"] = "count",
    on_empty: Literal["raise", "zero"] = "raise",
    codec: Literal["blosc", "raw"] = "blosc",
    max_bytes: int | None = None,
    force: bool = False,
    part: tuple[int, int] | None = None,
    device: Any = None,
    window: int = 16,
    threads: int = 0,
) -> Store:
    """Run a model over inputs and store its hidden activations.

    Padding never reaches the store: every row is of a token of an example, in the order of the inputs. Each
    example has its id, its tokens and which of them are special; each layer says what it is in the terms of
    transformers, TransformerLens and vLLM (`Site.about`).

    SIGINT and SIGTERM commit what is complete and then do what they always do; what a kill loses is what came
    after the last commit. ``resume=True`` goes on from there.

    Parameters
    ----------
    path : path
        The store to be made. Under ``RANK`` and ``WORLD_SIZE``, as torchrun sets them, a folder in which each
        process makes a part of its own; `open` of the folder is the whole.
    model : str, path, torch.nn.Module, SentenceTransformer or Loaded
        See `load`.
    texts : iterable
        Of str, (id, str), dicts (``text``, ``messages`` or ``image``; ``id``, ``target``; other keys are
        columns), images, or ready batches (dicts of ``input_ids`` ``[B, T]`` and ``attention_mask``, or
        ``pixel_values``), which stay together as they are.
    tokenizer : str or tokenizer, optional
        By default the model's own.
    sites : sequence of str, or mapping of str to layers
        `resid`, `attn_out`, `mlp_out`, `mlp_act`, `q`, `k`, `v`, `q_rot`, `k_rot`, `z`, `resid_mid`, `final`,
        `logits`, `hidden_states`, ...; the path of a module, with ``*`` for several; names of
        TransformerLens. `available` lists them.
    layers : int, list of int, slice or mapping of site to such, optional
        Labels: of `resid`, i is the residual stream after i blocks; of others, the block, from 0.
    dtype : str or dtype, optional
        To be stored as; by default as the model computes, of pooled rows float32.
    tokens : {"all", "no-special", "last"}, float, callable or sequence of masks
        Which rows are stored. A float is the share of them, drawn with `seed`.
    pool : {"mean", "max", "first", "last", "weighted"}, optional
        Store one row for each example, of the rows that `tokens` leaves. The site is on the axis `examples`.
    max_length : int, optional
        In tokens; by default the model's own. What is cut is counted (column ``n_cut``) and warned of.
    stride : int, optional
        Do not cut but go on with a window that begins so many tokens later. Each token is stored once.
    batch_tokens : int
        Of a batch, padding included.
    columns : mapping of str to sequence, or sequence of str, optional
        Values for each example, or which keys of the inputs to keep; by default all.
    store_text : bool
        Keep the texts as a column.
    resume : bool
        Go on with a capture that was interrupted; another model, tokenizer, input or way of asking is
        refused. A store that is not there is made.
    overwrite : bool
        Replace a store that is there.
    progress : bool
        Show a bar, and before it what the run will take.
    chat : bool or str, optional
        Inputs are chats for the tokenizer's template, or for this one; ``"generate"`` adds the prompt for the
        answer.
    prompt : str, optional
        Put before each text; by default a SentenceTransformer's own.
    seed : int
        For a share of the rows.
    on_nan : {"count", "raise"}
        What to do about NaN and infinities beside counting them (column ``n_nonfinite``).
    on_empty : {"raise", "zero"}
        What a pooled example without rows is.
    codec : {"blosc", "raw"}
        Compressed without loss, or searched in place.
    max_bytes : int, optional
        Refuse a run that a pilot says will take more than this.
    force : bool
        Go ahead though the pilot says that the disk will be full.
    part : tuple of int, optional
        Rank and number of processes; by default the environment's.
    device : str or device, optional
        For a model that is loaded by name.
    window : int
        Batches' worth of examples that are sorted by length together; a commit comes after each.
    threads : int
        For compressing; 0 means all cores.

    Returns
    -------
    Store
        Open for reading; under several processes, of this one's part.

    Raises
    ------
    NotFoundError
        For a model, site or layer that is not there, listing those that are.
    InvalidInputError
        For inputs or options that cannot be used, and for a resumed capture of something else.
    StorageError
        When the store exists (kind ``exists``), or will not fit (``disk_full``).

    Examples
    --------
    >>> import actstore, tempfile, transformers
    >>> config = transformers.BertConfig(
    ...     hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=99
    ... )
    >>> model = transformers.BertModel(config)
    >>> batch = {"input_ids": [[5, 6, 7], [8, 9, 0]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}
    >>> path = tempfile.mkdtemp() + "/run.act"
    >>> store = actstore.capture(path, model, batch, sites=["resid", "mlp_out"], progress=False)
    >>> store["resid"].shape, store["mlp_out"].layers, store["resid"].example(1).shape
    ((5, 3, 32), [0, 1], (2, 3, 32))
    """
    from .forms import Input
    from .groups import Groups
    from .identity import identity
    from .inputs import inputs
    from .interrupts import Interrupts
    from .loading import load
    from .progress import Progress
    from .run import Options, Run, check_place, is_store, open_writer
    from .session import Asked, Session, encoder_for

    one_of(on_nan, ("count", "raise"), "on_nan")
    one_of(on_empty, ("raise", "zero"), "on_empty")
    one_of(codec, ("blosc", "raw"), "codec")
    _check_number(threads, "threads", 1 << 16)
    if max_bytes is not None:
        _check_number(max_bytes, "max_bytes", 1 << 62)
    if resume and overwrite:
        raise InvalidInputError("resume goes on with a store and overwrite replaces it: one of them")
    options = Options(store_text, resume, on_nan, on_empty, overwrite, codec, threads)
    place, rank, world = place_of(path, part)
    check_place(place, options)
    loaded = load(model, tokenizer, device=device)
    encoder = encoder_for(
        loaded, max_length=max_length, stride=stride, tokens=tokens, seed=seed, chat=chat, prompt=prompt
    )
    source = inputs(texts, columns=columns, rank=rank, world=world)
    sample = source.sample(_SAMPLE)
    asked = Asked(sites, layers, dtype, pool, batch_tokens, window)
    with Session(loaded, encoder, _first(source, sample), asked) as session, contextlib.ExitStack() as stack:
        if store_text and any(isinstance(item, Input) and item.image is not None for item in sample):
            raise InvalidInputError("store_text: images have no text")
        told = identity(
            loaded,
            encoder,
            sites=_told(session),
            dtype=session.dtype,
            tokens=tokens,
            pool=pool,
            seed=seed,
            run={"device": str(session.device), "batch_tokens": batch_tokens, "window": window},
        )
        count = (rank, world) if world > 1 or part is not None else None
        make = functools.partial(open_writer, place, session, told, count, options)
        writer = stack.enter_context(make()) if resume and is_store(place) else None
        n_there = writer.n_examples if writer is not None else 0
        n_left = None if source.n is None else max(source.n - n_there, 0)
        if sample and n_left != 0:
            there = None if writer is None else place
            settled = _settled(session, sample)
            plan = estimate(session, settled, n_left, place, codec=codec, pilot_share=0)
            # What fits uncompressed, and nobody wants to see how long it takes, needs no pilot.
            if progress or not fits(plan, max_bytes, there):
                plan = estimate(session, settled, n_left, place, codec=codec, pilot_share=_PILOT_SHARE)
                if not force:
                    check_fits(plan, max_bytes, there)
            if progress:
                _show(plan)
        if writer is None:  # What was there goes only now that the new one is known to be possible.
            writer = stack.enter_context(make())
        shown = Progress(progress, source.n, n_there)
        with Interrupts() as interrupts:
            run = Run(session, writer, options, shown)
            try:
                run.run(Groups(session, source), interrupts)
            finally:
                shown.close()
            writer.close()
    for message in run.tally.warnings(encoder.max_length):
        warnings.warn(message, CaptureWarning, stacklevel=2)
    interrupts.deliver()
    return open_store(place)


def plan(
    model: Any,
    texts: Iterable[Any],
    *,
    path: str | os.PathLike[str] = ".",
    tokenizer: Any = None,
    sites: Sequence[str] | Mapping[str, Any] = ("resid",),
    layers: Any = None,
    dtype: Any = None,
    tokens: Any = "all",
    pool: str | None = None,
    max_length: int | None = None,
    stride: int | None = None,
    batch_tokens: int = 8192,
    columns: Mapping[str, Sequence[Any]] | Sequence[str] | None = None,
    chat: bool | str | None = None,
    prompt: str | None = None,
    seed: int = 0,
    codec: Literal["blosc", "raw"] = "blosc",
    device: Any = None,
) -> Plan:
    """What `capture` with these arguments would take: bytes, seconds, and whether they fit at `path`.

    A sample of the inputs is encoded, and a few of them go through the model. An iterator loses what is
    looked at.

    Returns
    -------
    Plan
        ``print(plan)`` shows it as a table.

    Raises
    ------
    NotFoundError, InvalidInputError
        As `capture`.
    """
    from .inputs import inputs
    from .loading import load
    from .session import Asked, Session, encoder_for

    one_of(codec, ("blosc", "raw"), "codec")
    loaded = load(model, tokenizer, device=device)
    encoder = encoder_for(
        loaded, max_length=max_length, stride=stride, tokens=tokens, seed=seed, chat=chat, prompt=prompt
    )
    source = inputs(texts, columns=columns)
    sample = source.sample(_SAMPLE)
    asked = Asked(sites, layers, dtype, pool, batch_tokens)
    with Session(loaded, encoder, _first(source, sample), asked) as session:
        return estimate(session, _settled(session, sample), source.n, as_path(path), codec=codec)


def available(
    model: Any, *, tokenizer: Any = None, sample: Iterable[Any] = ("a few words",)
) -> list[dict[str, Any]]:
    """The sites that a model has: name, layers, dim and what each is.

    Parameters
    ----------
    model : str, path, torch.nn.Module, SentenceTransformer or Loaded
    tokenizer : str or tokenizer, optional
    sample : iterable
        Something the model takes; for images, one of them.
    """
    from .inputs import inputs
    from .loading import load
    from .look import evaluating, look
    from .session import encoder_for

    loaded = load(model, tokenizer)
    source = inputs(sample)
    head = _first(source, source.sample(1))
    if loaded.tokenizer is None and isinstance(head, list) and head and head[0].text is not None:
        raise InvalidInputError(
            "the model has no tokenizer to make inputs of text with", hint="sample=[a batch that it takes]"
        )
    with evaluating(loaded.model):
        menu, _ = look(loaded, encoder_for(loaded), head)
    return menu.listing()


def place_of(path: str | os.PathLike[str], part: tuple[int, int] | None) -> tuple[str, int, int]:
    """Where this process writes, its rank, and how many there are.

    Raises
    ------
    InvalidInputError
        When the rank is none, or RANK and WORLD_SIZE are no numbers.
    """
    place = as_path(path)
    if part is None:
        env = os.environ
        try:
            rank, world = int(env.get("RANK", "0")), int(env.get("WORLD_SIZE", "1"))
        except ValueError as error:
            raise InvalidInputError(f"RANK and WORLD_SIZE: {error}") from None
        if world <= 1:
            return place, 0, 1
        if "RANK" not in env:  # Each process would take itself for the first.
            raise InvalidInputError(
                f"WORLD_SIZE is {world} and there is no RANK to say which process this is",
                hint="torchrun sets both; part=(rank, n) says it too",
            )
    else:
        if not isinstance(part, tuple) or len(part) != 2 or not all(map(is_int, part)):
            raise InvalidInputError(f"part is {part!r}, not (rank, number of processes)")
        rank, world = part
    if not 0 <= rank < world:
        raise InvalidInputError(f"part {rank} of {world}: parts count from 0")
    if os.path.exists(os.path.join(place, "zarr.json")):
        raise StorageError(
            f"{place} is a store by itself: there can be no parts in it", kind="exists", hint="another path"
        )
    return os.path.join(place, f"part-{rank:05d}-of-{world:05d}"), rank, world


def _check_number(value: Any, name: str, most: int) -> None:
    if not is_int(value) or not 0 <= value <= most:
        raise InvalidInputError(f"{name} is {value!r}, not an int from 0 up")


def _first(source: "Inputs", sample: Sequence[Any]) -> "list[Input] | ReadyBatch":
    """What the model is looked at with: of this process' inputs or, where it has none, of another's."""
    from .ready import ReadyBatch

    items = list(sample) or [one for one in (source.first(),) if one is not None]
    return items[0] if items and isinstance(items[0], ReadyBatch) else items[:_LOOK]


def _settled(session: "Session", sample: Sequence[Any]) -> list[Any]:
    from .ready import ReadyBatch

    encoder = session.encoder
    if sample and isinstance(sample[0], ReadyBatch):
        examples = [example for batch in sample for example in encoder.ready(batch)]
    else:
        examples = encoder.encode(sample)
    return [session.settle(example) for example in examples]


def _told(session: "Session") -> dict[str, Any]:
    """The sites, for the identity."""
    return {
        site.name: {"layers": list(site.labels), "modules": [tap.module for tap in site.taps]}
        for site in session.sites
    }


def _show(plan: Plan) -> None:
    """On stderr, before a run that takes a while."""
    if sys.stderr is None or (plan.n_tokens is not None and (plan.seconds or 0) < 5):
        return
    free, speed = f"{human_bytes(plan.free_bytes)} free", f"{plan.tokens_per_second:,.0f} tokens/s"
    if plan.stored_bytes is None or plan.seconds is None:
        line = f"nobody knows how much there is to come; {speed}, ratio {plan.ratio:.2f}, {free}"
    else:
        line = (
            f"about {human_bytes(plan.stored_bytes)} (ratio {plan.ratio:.2f}, {free}) "
            f"in {clock(plan.seconds)}, {speed}"
        )
    sys.stderr.write(f"capture: {line}\n")
