"""`capture`, `plan` and `available`: the entry points of capturing."""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..base.checks import as_path, one_of
from ..base.selection import is_int
from ..base.text import human_bytes
from ..errors import ActstoreWarning, InvalidInputError
from ..store import Store
from ..store import open as open_store
from .plan import Plan, check_fits, clock, estimate, fits

if TYPE_CHECKING:
    from .inputs.encoder import Encoder
    from .inputs.sample import Sample
    from .inputs.stream import InputStream
    from .model.loading import Loaded
    from .session import CaptureOptions, Session

_SAMPLE = 512
"""Number of inputs or ready batches to estimate the size of the capture from."""
_PILOT_SHARE = 0.005
"""Limit on the pilot run, as a fraction of the input."""


class CaptureWarning(ActstoreWarning):
    """A warning about captured activations: truncated inputs, NaN, infinities."""


def capture(
    path: str | os.PathLike[str],
    model: Any,
    texts: Iterable[Any],
    *,
    tokenizer: Any = None,
    sites: Sequence[str] | Mapping[str, Any] = ("resid",),
    layers: Any = None,
    dtype: Any = None,
    keep: Any = "all",
    pool: str | None = None,
    max_length: int | None = None,
    batch_tokens: int = 8192,
    columns: Mapping[str, Sequence[Any]] | Sequence[str] | None = None,
    store_text: bool = False,
    resume: bool = False,
    progress: bool = True,
    overwrite: bool = False,
    stride: int | None = None,
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

    Padding never reaches the store: every row belongs to a token of an example, in the order of the inputs.
    The store records each example's id and tokens, and which tokens are special. For each layer it records
    the equivalent in transformers, TransformerLens and vLLM (`Site.about`).

    On SIGINT and SIGTERM, the complete examples are committed before the signal takes effect. A kill loses
    only the rows after the last commit. ``resume=True`` continues from there.

    Parameters
    ----------
    path : path
        The store to create. With ``RANK`` and ``WORLD_SIZE`` set, as torchrun does, a folder in which each
        process creates a part; `open` of the folder opens all parts as one.
    model : str, path, torch.nn.Module, SentenceTransformer or Loaded
        See `actstore.capturing.load`.
    texts : iterable
        Of str, (id, str), dicts (``text``, ``messages`` or ``image``; ``id``, ``target``; other keys are
        columns), images, or ready batches (dicts of ``input_ids`` ``[B, T]`` and ``attention_mask``, or
        ``pixel_values``). A ready batch goes through the model unchanged.
    tokenizer : str or tokenizer, optional
        By default the model's own.
    sites : sequence of str, or mapping of str to layers
        `resid`, `attn_out`, `mlp_out`, `mlp_act`, `q`, `k`, `v`, `q_rot`, `k_rot`, `z`, `resid_mid`, `final`,
        `logits`, `hidden_states`, ...; a module path, with ``*`` for several; names of TransformerLens.
        `actstore.capturing.available` lists them.
    layers : int, list of int, slice or mapping of site to these, optional
        Labels. Label i of `resid` is the residual stream after i blocks; other sites are labeled by block
        from 0.
    dtype : str or dtype, optional
        Stored dtype. By default the model's; float32 for pooled rows.
    keep : {"all", "no-special", "last"}, float, callable or sequence of masks
        The token filter: which rows to store. A float is the fraction of rows, drawn with `seed`.
    pool : {"mean", "max", "first", "last", "weighted"}, optional
        Store one row per example, reduced from the rows that `keep` selects. The site's axis is `examples`.
    max_length : int, optional
        Maximum number of tokens; by default the model's. Truncated tokens are counted (column ``n_cut``) and
        warned of.
    batch_tokens : int
        Maximum number of tokens in a batch, padding included.
    columns : mapping of str to sequence, or sequence of str, optional
        Values for each example, or the keys of the inputs to keep; by default all.
    store_text : bool
        Store the texts as a column.
    resume : bool
        Continue an interrupted capture, or start it if there is no store. Another model, tokenizer, input or
        setting is refused.
    progress : bool
        Show a progress bar, and before it the estimated cost.
    overwrite : bool
        Replace an existing store.
    stride : int, optional
        Instead of truncating, split long inputs into windows that start this many tokens apart. Each token is
        stored once.
    chat : bool or str, optional
        Render inputs as chats by the tokenizer's template, or by this one; ``"generate"`` adds the generation
        prompt.
    prompt : str, optional
        Prepended to each text; by default the prompt of a SentenceTransformer.
    seed : int
        For a fraction of the rows.
    on_nan : {"count", "raise"}
        Whether to raise for NaN and infinities, which are counted in any case (column ``n_nonfinite``).
    on_empty : {"raise", "zero"}
        How to treat an example without rows in a site with one row per example.
    codec : {"blosc", "raw"}
        ``blosc`` compresses without loss, ``raw`` is searched in place.
    max_bytes : int, optional
        Refuse a capture if the pilot run estimates that the store takes more.
    force : bool
        Capture even if the pilot run estimates that the disk will fill up.
    part : tuple of int, optional
        Rank and number of processes; by default those of the environment.
    device : str or device, optional
        For a model that is loaded by name.
    window : int
        Number of batches in a window, within which examples are sorted by length. Commits come between
        windows.
    threads : int
        Threads for compression; 0 means all cores.

    Returns
    -------
    Store
        Open for reading; with several processes, the part of this one.

    Raises
    ------
    NotFoundError
        For a missing model, site or layer. The message lists those that exist.
    InvalidInputError
        For invalid inputs or options, and for `resume` of another capture.
    StorageError
        If the store exists (kind ``exists``) or will not fit (``disk_full``).

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
    from .identity import identity
    from .inputs.forms import Input
    from .inputs.sample import Sample
    from .inputs.stream import InputStream
    from .model.loading import load
    from .run.destination import WriteOptions, check_destination, is_store, open_writer, part_path
    from .run.groups import GroupStream
    from .run.interrupts import Interrupts
    from .run.progress import ProgressMeter
    from .run.run import CaptureRun
    from .session import CaptureOptions, encoder_for

    one_of(on_nan, ("count", "raise"), "on_nan")
    one_of(on_empty, ("raise", "zero"), "on_empty")
    one_of(codec, ("blosc", "raw"), "codec")
    _check_number(threads, "threads", 1 << 16)
    if max_bytes is not None:
        _check_number(max_bytes, "max_bytes", 1 << 62)
    if resume and overwrite:
        raise InvalidInputError("resume continues a store and overwrite replaces it: choose one of them")
    write = WriteOptions(store_text, resume, on_nan, on_empty, overwrite, codec, threads)
    destination, rank, world = part_path(path, part)
    check_destination(destination, write)
    loaded = load(model, tokenizer, device=device)
    encoder = encoder_for(
        loaded, max_length=max_length, stride=stride, keep=keep, seed=seed, chat=chat, prompt=prompt
    )
    stream = InputStream(texts, columns=columns, rank=rank, world=world)
    sample = Sample(encoder, stream.sample(_SAMPLE))
    options = CaptureOptions(sites, layers, dtype, pool, batch_tokens, window)
    with (
        _prepare_session(loaded, encoder, stream, sample, options) as session,
        contextlib.ExitStack() as stack,
    ):
        if store_text and any(isinstance(item, Input) and item.image is not None for item in sample.items):
            raise InvalidInputError("store_text: images have no text")
        own_identity = identity(
            loaded,
            encoder,
            sites=_site_definitions(session),
            dtype=session.dtype,
            keep=keep,
            pool=options.pool,
            seed=seed,
            run={"device": str(session.device), "batch_tokens": batch_tokens, "window": window},
        )
        own_part = (rank, world) if world > 1 or part is not None else None
        make_writer = functools.partial(open_writer, destination, session, own_identity, own_part, write)
        writer = stack.enter_context(make_writer()) if resume and is_store(destination) else None
        n_stored = writer.n_examples if writer is not None else 0
        n_left = None if stream.n is None else max(stream.n - n_stored, 0)
        if sample.items and n_left != 0:
            existing = None if writer is None else destination
            examples = [session.finalize(example) for example in sample.examples()]
            plan = estimate(session, examples, n_left, destination, codec=codec, pilot_share=0)
            # Skip the pilot if the rows fit even uncompressed, and no progress display needs the speed.
            if progress or not fits(plan, max_bytes, existing):
                plan = estimate(session, examples, n_left, destination, codec=codec, pilot_share=_PILOT_SHARE)
                if not force:
                    check_fits(plan, max_bytes, existing)
            if progress:
                _show(plan)
        if writer is None:  # Replace an existing store only after all checks of the new capture.
            writer = stack.enter_context(make_writer())
        meter = ProgressMeter(progress, stream.n, n_stored)
        with Interrupts() as interrupts:
            run = CaptureRun(session, writer, write, meter)
            try:
                run.run(GroupStream(session, stream, sample), interrupts)
            finally:
                meter.close()
            writer.close()
    for message in run.tally.warnings(encoder.max_length):
        warnings.warn(message, CaptureWarning, stacklevel=2)
    interrupts.deliver()
    return open_store(destination)


def plan(
    model: Any,
    texts: Iterable[Any],
    *,
    path: str | os.PathLike[str] = ".",
    tokenizer: Any = None,
    sites: Sequence[str] | Mapping[str, Any] = ("resid",),
    layers: Any = None,
    dtype: Any = None,
    keep: Any = "all",
    pool: str | None = None,
    max_length: int | None = None,
    batch_tokens: int = 8192,
    columns: Mapping[str, Sequence[Any]] | Sequence[str] | None = None,
    stride: int | None = None,
    chat: bool | str | None = None,
    prompt: str | None = None,
    seed: int = 0,
    codec: Literal["blosc", "raw"] = "blosc",
    device: Any = None,
) -> Plan:
    """Estimate what `capture` with these arguments would cost: bytes, seconds, and whether it fits at `path`.

    A sample of the inputs is encoded, and a few of them go through the model. Of an iterator, the sampled
    inputs are consumed.

    Parameters
    ----------
    path : path
        Where the store would be created.
    model, texts, tokenizer, sites, layers, dtype, keep, pool, max_length, batch_tokens, columns, stride,
    chat, prompt, seed, codec, device
        As in `capture`.

    Returns
    -------
    Plan
        ``print(plan)`` shows it as a table.

    Raises
    ------
    NotFoundError, InvalidInputError
        As `capture`.
    """
    from .inputs.sample import Sample
    from .inputs.stream import InputStream
    from .model.loading import load
    from .session import CaptureOptions, encoder_for

    one_of(codec, ("blosc", "raw"), "codec")
    loaded = load(model, tokenizer, device=device)
    encoder = encoder_for(
        loaded, max_length=max_length, stride=stride, keep=keep, seed=seed, chat=chat, prompt=prompt
    )
    stream = InputStream(texts, columns=columns)
    sample = Sample(encoder, stream.sample(_SAMPLE))
    options = CaptureOptions(sites, layers, dtype, pool, batch_tokens)
    with _prepare_session(loaded, encoder, stream, sample, options) as session:
        examples = [session.finalize(example) for example in sample.examples()]
        return estimate(session, examples, stream.n, as_path(path), codec=codec)


def available(
    model: Any, *, tokenizer: Any = None, sample: Iterable[Any] = ("a few words",)
) -> list[dict[str, Any]]:
    """List the sites that a model has.

    Parameters
    ----------
    model : str, path, torch.nn.Module, SentenceTransformer or Loaded
    tokenizer : str or tokenizer, optional
    sample : iterable
        An input that the model takes, for example an image.

    Returns
    -------
    list of dict
        For each site: ``site`` (its name), ``layers``, ``dim`` and ``what`` (a description).

    Raises
    ------
    InvalidInputError
        If the model cannot run on the sample.
    """
    from .discover.dry_run import dry_run
    from .inputs.forms import Input
    from .inputs.sample import Sample
    from .inputs.stream import InputStream
    from .model.loading import load
    from .session import encoder_for

    loaded = load(model, tokenizer)
    stream = InputStream(sample)
    head = Sample(encoder_for(loaded), stream.sample(1))
    if loaded.tokenizer is None and any(
        isinstance(one, Input) and one.text is not None for one in head.items
    ):
        raise InvalidInputError(
            "the model has no tokenizer for a sample of text", hint="sample=[a batch that the model takes]"
        )
    return dry_run(loaded, head.examples(), ready=stream.ready).menu.listing()


def _check_number(value: Any, name: str, limit: int) -> None:
    if not is_int(value) or not 0 <= value <= limit:
        raise InvalidInputError(f"{name} is {value!r}, expected an int from 0 to {limit}")


def _prepare_session(
    loaded: "Loaded", encoder: "Encoder", stream: "InputStream", sample: "Sample", options: "CaptureOptions"
) -> "Session":
    """A session after a dry run on the first items of the sample.

    A process without inputs of its own uses the first item of the whole input.
    """
    from .discover.dry_run import HEAD
    from .inputs.sample import Sample
    from .session import Session

    if not sample.items and (first := stream.first()) is not None:
        examples = Sample(encoder, [first]).examples()  # type: ignore[arg-type]
    else:
        examples = sample.examples(1 if stream.ready else HEAD)
    return Session.prepare(loaded, encoder, examples, options, ready=stream.ready)


def _site_definitions(session: "Session") -> dict[str, Any]:
    """The layers and modules of each site, for the identity."""
    return {
        site.name: {"layers": list(site.labels), "modules": [point.module for point in site.hook_points]}
        for site in session.sites
    }


def _show(plan: Plan) -> None:
    """Print the plan on stderr if the capture takes more than a few seconds."""
    if sys.stderr is None or (plan.n_tokens is not None and (plan.seconds or 0) < 5):
        return
    free, speed = f"{human_bytes(plan.free_bytes)} free", f"{plan.tokens_per_second:,.0f} tokens/s"
    if plan.stored_bytes is None or plan.seconds is None:
        line = f"input of unknown length; {speed}, ratio {plan.ratio:.2f}, {free}"
    else:
        line = (
            f"about {human_bytes(plan.stored_bytes)} (ratio {plan.ratio:.2f}, {free}) "
            f"in {clock(plan.seconds)}, {speed}"
        )
    sys.stderr.write(f"capture: {line}\n")
