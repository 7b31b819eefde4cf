"""A session: runs examples through a model and collects their rows.

`capture`, `plan`, `recompute` and `embed` all use it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from ..base.arrays import SITE_DTYPES, dtype_named
from ..disk.layout import EXAMPLES
from ..disk.spec import SiteSpec
from ..errors import ActstoreError, InvalidInputError
from ..ops.pool import kind_name
from .discover.dry_run import (
    MODEL_ERRORS,
    DryRun,
    VocabularyCheck,
    collator_of,
    device_of,
    dry_run,
    evaluating,
    is_encoder_decoder,
    uses_cuda,
)
from .discover.sites import CapturedSite, name_axes
from .forward.hooks import ForwardHooks
from .forward.row_buffer import RowBuffer, Target, first_or_last
from .forward.transfer import Transfer
from .inputs.batches import Batch, batches
from .inputs.encoder import Encoder
from .inputs.example import Example, Piece
from .inputs.sizes import n_tokens, stored_rows
from .model.libraries import first_line
from .model.loading import Loaded


@dataclass(frozen=True)
class CaptureOptions:
    """What to capture and in which batches; parameters as of `capture`.

    Raises
    ------
    InvalidInputError
        For an unknown `pool`, and for sizes that are not positive ints.
    """

    sites: Sequence[str] | Mapping[str, Any]
    layers: Any = None
    dtype: Any = None
    pool: str | None = None
    batch_tokens: int = 8192
    window: int = 16

    def __post_init__(self) -> None:
        if self.pool is not None:
            object.__setattr__(self, "pool", kind_name(self.pool, "pool"))
        for name, value in (("batch_tokens", self.batch_tokens), ("window", self.window)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{name} is {value!r}, not a positive int")


class Session:
    """Runs examples through a model. In its context the model has hooks and is in eval mode.

    The constructor runs no forward pass; `Session.prepare` does the dry run first.

    Parameters
    ----------
    loaded : Loaded
    encoder : Encoder
    options : CaptureOptions
    dry : DryRun
        The result of the model's dry run.

    Raises
    ------
    NotFoundError
        For a site or layer that the model does not have.
    InvalidInputError
        For sites or dtypes that cannot be captured.
    """

    def __init__(self, loaded: Loaded, encoder: Encoder, options: CaptureOptions, dry: DryRun) -> None:
        self.loaded, self.encoder, self.options = loaded, encoder, options
        self.device = device_of(loaded.model)
        self.encoder_decoder = is_encoder_decoder(loaded.model)
        self._grids: dict[str, tuple[int, int, int]] = {}
        self._collate = collator_of(loaded)
        self._vocabulary = VocabularyCheck(loaded.model)
        sites = dry.menu.resolve(options.sites, options.layers)
        self.sites = self._with_grids(sites, dry.image) if dry.image is not None else sites
        self._evaluating = evaluating(loaded.model)
        self.targets = [self._target(site) for site in self.sites]
        self._transfer = Transfer() if uses_cuda(loaded.model) else None
        self._buffers: list[RowBuffer] = []
        self.buffer = self.new_buffer()
        self._hooks = ForwardHooks(loaded.model, self.buffer.hook_points)

    @classmethod
    def prepare(
        cls,
        loaded: Loaded,
        encoder: Encoder,
        examples: Sequence[Example],
        options: CaptureOptions,
        *,
        ready: bool = False,
    ) -> Self:
        """Do the dry run on some examples, and construct the session from its result.

        Parameters
        ----------
        loaded, encoder, options
            As in the constructor.
        examples, ready
            As in `dry_run`. The examples need not be captured.

        Raises
        ------
        NotFoundError, InvalidInputError
            As the constructor and `dry_run`.
        """
        return cls(loaded, encoder, options, dry_run(loaded, examples, ready=ready))

    def __enter__(self) -> Self:
        self._evaluating.__enter__()
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        if self._transfer is not None:
            self._transfer.close()
        self._evaluating.__exit__(kind, error, trace)
        for buffer in self._buffers:  # Free them now instead of when the garbage collector finds the cycle.
            buffer.free()

    # ---- sites ----

    def _with_grids(self, sites: Sequence[CapturedSite], image: Piece) -> list[CapturedSite]:
        """Name the axes of images, and record their number of rows and their grid."""
        named = name_axes(sites)
        for site in named:
            if site.axis == EXAMPLES:
                continue
            shape = site.hook_points[0].shape
            height, width = _grid(self.loaded.model, image, shape)
            n_rows = shape[2] * shape[3] if len(shape) == 4 else shape[1]
            self._grids[site.axis] = n_rows, height, width
            site.about["grid"] = [height, width]
        return named

    def _target(self, site: CapturedSite) -> Target:
        pool = self.options.pool if site.axis != EXAMPLES else None
        requested = self.options.dtype
        if requested is None and pool is not None:
            return Target(site, torch.float32, pool)
        dtype = str(site.dtype).removeprefix("torch.") if requested is None else requested
        if requested is None and str(dtype) not in SITE_DTYPES:
            raise InvalidInputError(
                f"site {site.name!r} has dtype {dtype} in the model, which a store does not support",
                hint="dtype='float32'",
            )
        name = dtype_named(dtype, SITE_DTYPES, "dtype").name
        return Target(site, getattr(torch, name), pool)

    def new_buffer(self) -> RowBuffer:
        """Another row buffer for the session's sites."""
        grids = {axis: rows for axis, (rows, _, _) in self._grids.items()}
        buffer = RowBuffer(self.targets, grids, self._transfer)
        self._buffers.append(buffer)
        return buffer

    # ---- the store ----

    def specs(self) -> dict[str, SiteSpec]:
        """The specifications of the sites for `create`."""
        return {
            target.site.name: SiteSpec(
                n_layers=len(target.site.labels),
                dim=target.site.dim,
                dtype=str(target.dtype).removeprefix("torch."),
                labels=target.site.labels,
                axis=target.axis,
                about=target.site.about | ({"pool": target.pool} if target.pool else {}),
            )
            for target in self.targets
        }

    @property
    def axes(self) -> list[str]:
        """The axes of the store, without `examples`."""
        return list(dict.fromkeys(target.axis for target in self.targets if target.axis != EXAMPLES))

    @property
    def dtype(self) -> str | dict[str, str]:
        """The stored dtype: one for all sites, or one by site if they differ."""
        by_site = {target.site.name: str(target.dtype).removeprefix("torch.") for target in self.targets}
        names = set(by_site.values())
        return by_site if len(names) > 1 else names.pop()

    @property
    def window_tokens(self) -> int:
        """Number of tokens in a window, as many as in `window` batches."""
        return self.options.window * self.options.batch_tokens

    def bytes_of(self, example: Example) -> int:
        """The memory of an example's rows over all sites."""
        n_bytes = 0
        for target in self.targets:
            n_rows = 1
            if target.axis != EXAMPLES:
                n_rows = sum(len(stored_rows(piece)[target.axis]) for piece in example.pieces)
            n_bytes += n_rows * target.row_bytes
        return n_bytes

    def cost(self, piece: Piece) -> int:
        """The cost of a piece in a token budget; for an image, its largest number of rows."""
        return max((n for n, _, _ in self._grids.values()), default=None) or n_tokens(piece)

    # ---- running ----

    def finalize(self, example: Example) -> Example:
        """Complete an example in place: add the rows of an image, and restrict it to the rows to run.

        Raises
        ------
        InvalidInputError
            For token ids that the model does not have, and for a stride with a site of one row per sequence.
        """
        self._vocabulary.check(example)
        for piece in example.pieces:
            if piece.rows is None:
                piece.rows = {axis: np.arange(n) for axis, (n, _, _) in self._grids.items()}
                example.tokens = {axis: _patch_columns(*grid) for axis, grid in self._grids.items()}
        if self.options.pool in ("first", "last"):
            first_or_last(example, self.options.pool)
        if not any(target.axis == EXAMPLES and target.pool is None for target in self.targets):
            example.pieces = [piece for piece in example.pieces if any(map(len, stored_rows(piece).values()))]
        if len(example.pieces) > 1 and any(site.axis == EXAMPLES for site in self.sites):
            raise InvalidInputError(
                f"example {example.id!r} is split into {len(example.pieces)} sequences (stride), and site "
                f"{next(s.name for s in self.sites if s.axis == EXAMPLES)!r} has a row for each of them",
                hint="leave out the stride, or that site",
            )
        return example

    @property
    def takes_mask(self) -> bool:
        """Whether the model takes an attention mask."""
        return self._collate.masks

    def batches(self, examples: Sequence[Example]) -> list[Batch]:
        """Split examples into batches."""
        return batches(examples, self.options.batch_tokens, self.cost, padding=self.takes_mask)

    def run(self, batch: Batch) -> None:
        """Run one batch through the model and store its rows in the buffer.

        Raises
        ------
        InvalidInputError
            If the model fails on the batch, or runs out of memory.
        """
        inputs, padded = self._collate(batch)
        try:
            self._hooks.run(inputs, self.buffer.sink(batch, padded))
        except ActstoreError:
            raise
        except MODEL_ERRORS as error:
            longest = max(map(self.cost, batch.pieces))
            names = list(dict.fromkeys(self.buffer.examples[e].id for e, _ in batch.origins))
            which = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
            memory = "out of memory" in str(error).lower()
            raise InvalidInputError(
                f"{type(self.loaded.model).__name__} failed on {len(batch.pieces)} sequences of up to "
                f"{longest:,} tokens (examples {which}): {first_line(error)}",
                hint="reduce batch_tokens; resume=True continues where this run stopped" if memory else None,
            ) from error

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on a GPU, so that the host can write meanwhile."""
        return self._transfer is not None

    def drain(self) -> None:
        """Wait until all rows are in the buffer."""
        if self._transfer is not None:
            self._transfer.drain()

    def run_examples(self, examples: Sequence[Example]) -> RowBuffer:
        """Run examples through the model, and return the buffer with their rows."""
        self.buffer.begin(examples)
        for batch in self.batches(examples):
            self.run(batch)
        self.drain()
        return self.buffer


def encoder_for(
    loaded: Loaded,
    *,
    max_length: int | None = None,
    stride: int | None = None,
    keep: Any = "all",
    seed: int = 0,
    chat: bool | str | None = None,
    prompt: str | None = None,
) -> Encoder:
    """The encoder for a model; parameters as of `Encoder`."""
    config = getattr(loaded.model, "config", None)
    return Encoder(
        loaded.tokenizer,
        model_max_length=loaded.max_length,
        max_length=max_length,
        stride=stride,
        keep=keep,
        seed=seed,
        chat=chat,
        prompt=loaded.prompt if prompt is None and not chat else prompt,
        encoder_decoder=is_encoder_decoder(loaded.model),
        decoder_start=getattr(config, "decoder_start_token_id", None),
        image_processor=loaded.image_processor,
        max_positions=loaded.max_positions,
    )


def _patch_columns(n_rows: int, height: int, width: int) -> dict[str, Any]:
    """Columns of an image's rows: the patch's row and column, or -1 for a class token and the like."""
    n_special = n_rows - height * width
    at = np.arange(n_rows, dtype=np.int32) - n_special
    return {
        "row": np.where(at < 0, -1, at // max(width, 1)).astype(np.int32),
        "column": np.where(at < 0, -1, at % max(width, 1)).astype(np.int32),
        "special": at < 0,
    }


def _grid(model: torch.nn.Module, image: Piece, shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of an image in patches; 0 and 0 if unknown."""
    if len(shape) == 4:
        return shape[2], shape[3]
    size = getattr(getattr(model, "config", None), "patch_size", None)
    _, height, width = image.inputs["pixel_values"].shape
    patch = (size, size) if isinstance(size, int) else tuple(size) if size is not None else None
    if patch is not None and len(patch) == 2:
        height, width = height // patch[0], width // patch[1]
        if height * width <= shape[1]:
            return height, width
    return 0, 0
