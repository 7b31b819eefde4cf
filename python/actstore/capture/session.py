"""A model, an encoder and sites, settled: what runs examples through the model and gives their rows.

`capture`, `plan`, `recompute` and `embed` are all made of this.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from ..arrays import SITE_DTYPES, dtype_named
from ..errors import ActstoreError, InvalidInputError
from ..layout import EXAMPLES
from ..pool import KINDS
from ..site_spec import SiteSpec
from ..view import one_of
from .batches import Batch, batches
from .encode import Encoder
from .example import Example, Piece
from .forms import Input
from .libraries import first_line
from .loading import Loaded
from .look import MISFITS, Ids, collator_of, device_of, evaluating, is_encoder_decoder, look, uses_cuda
from .ready import ReadyBatch
from .sites import Captured, name_axes
from .sizes import n_tokens, rows_of
from .taps import Taps
from .transfer import Transfer
from .window import Target, Window, first_or_last


@dataclass(frozen=True)
class Asked:
    """What is to be captured, as the caller says it."""

    sites: Sequence[str] | Mapping[str, Any]
    layers: Any = None
    dtype: Any = None
    pool: str | None = None
    batch_tokens: int = 8192
    window: int = 16


class Session:
    """Runs examples through a model; a context, in which the model has hooks and is in eval mode.

    Parameters
    ----------
    loaded : Loaded
    encoder : Encoder
    first : list of Input, or ReadyBatch
        Some input, that the model is looked at with; it need not be captured.
    asked : Asked

    Raises
    ------
    NotFoundError
        For a site or layer that the model does not have.
    InvalidInputError
        For sites, dtypes or inputs that cannot be used.
    """

    def __init__(
        self, loaded: Loaded, encoder: Encoder, first: Sequence[Input] | ReadyBatch, asked: Asked
    ) -> None:
        if asked.pool is not None:
            one_of(asked.pool, KINDS, "pool")
        for name, value in (("batch_tokens", asked.batch_tokens), ("window", asked.window)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{name} is {value!r}, not a positive int")
        self.loaded, self.encoder, self.asked = loaded, encoder, asked
        self.device = device_of(loaded.model)
        self.encoder_decoder = is_encoder_decoder(loaded.model)
        self._grids: dict[str, tuple[int, int, int]] = {}
        self._collate = collator_of(loaded)
        self._ids = Ids(loaded.model)
        with evaluating(loaded.model):
            menu, images = look(loaded, encoder, first)
        chosen = menu.resolve(asked.sites, asked.layers)
        self.sites = self._with_grids(chosen, images) if images is not None else chosen
        self._evaluating = evaluating(loaded.model)
        self.targets = [self._target(site) for site in self.sites]
        self._transfer = Transfer() if uses_cuda(loaded.model) else None
        self._windows: list[Window] = []
        self.window = self.another_window()
        self._taps = Taps(loaded.model, self.window.taps)

    def __enter__(self) -> Self:
        self._evaluating.__enter__()
        self._taps.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taps.__exit__(kind, error, trace)
        if self._transfer is not None:
            self._transfer.close()
        self._evaluating.__exit__(kind, error, trace)
        for window in self._windows:  # At once, not when cycles are collected.
            window.free()

    # ---- what is to be captured ----

    def _with_grids(self, sites: Sequence[Captured], image: Piece) -> list[Captured]:
        """The axes of images: how many rows each has, and how these lie in the image."""
        named = name_axes(sites)
        for site in named:
            if site.axis == EXAMPLES:
                continue
            shape = site.taps[0].shape
            height, width = _grid(self.loaded.model, image, shape)
            n_rows = shape[2] * shape[3] if len(shape) == 4 else shape[1]
            self._grids[site.axis] = n_rows, height, width
            site.about["grid"] = [height, width]
        return named

    def _target(self, site: Captured) -> Target:
        pool = self.asked.pool if site.axis != EXAMPLES else None
        wanted = self.asked.dtype
        if wanted is None and pool is not None:
            return Target(site, torch.float32, pool)
        dtype = str(site.dtype).removeprefix("torch.") if wanted is None else wanted
        if wanted is None and str(dtype) not in SITE_DTYPES:
            raise InvalidInputError(
                f"site {site.name!r} is {dtype} in the model, which cannot be stored", hint="dtype='float32'"
            )
        name = dtype_named(dtype, SITE_DTYPES, "dtype").name
        return Target(site, getattr(torch, name), pool)

    def another_window(self) -> Window:
        """Room for the rows of a window of examples."""
        grids = {axis: rows for axis, (rows, _, _) in self._grids.items()}
        window = Window(self.targets, grids, self._transfer)
        self._windows.append(window)
        return window

    # ---- what will be stored ----

    def specs(self) -> dict[str, SiteSpec]:
        """The sites as the store has them."""
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
        """Those that the store will have."""
        return list(dict.fromkeys(target.axis for target in self.targets if target.axis != EXAMPLES))

    @property
    def dtype(self) -> str | dict[str, str]:
        """In which the sites are stored: of all, or by site where they differ."""
        each = {target.site.name: str(target.dtype).removeprefix("torch.") for target in self.targets}
        names = set(each.values())
        return each if len(names) > 1 else names.pop()

    @property
    def window_tokens(self) -> int:
        """Tokens of a window: some batches' worth."""
        return self.asked.window * self.asked.batch_tokens

    def bytes_of(self, example: Example) -> int:
        """What an example's rows take in memory, over all sites."""
        n_bytes = 0
        for target in self.targets:
            n_rows = 1
            if target.axis != EXAMPLES:
                n_rows = sum(len(rows_of(piece)[target.axis]) for piece in example.pieces)
            n_bytes += n_rows * target.row_bytes
        return n_bytes

    def cost(self, piece: Piece) -> int:
        """What a piece counts for in a budget of tokens."""
        return max((n for n, _, _ in self._grids.values()), default=None) or n_tokens(piece)

    # ---- running ----

    def settle(self, example: Example) -> Example:
        """An example as it will be stored: the rows of images, and which rows are pooled."""
        self._ids.check(example)
        for piece in example.pieces:
            if piece.rows is None:
                piece.rows = {axis: np.arange(n) for axis, (n, _, _) in self._grids.items()}
                example.tokens = {axis: _places(*grid) for axis, grid in self._grids.items()}
        if self.asked.pool in ("first", "last"):
            first_or_last(example, self.asked.pool)
        if not any(target.axis == EXAMPLES and target.pool is None for target in self.targets):
            example.pieces = [piece for piece in example.pieces if any(map(len, rows_of(piece).values()))]
        if len(example.pieces) > 1 and any(site.axis == EXAMPLES for site in self.sites):
            raise InvalidInputError(
                f"example {example.id!r} is {len(example.pieces)} sequences (stride), and "
                f"{next(s.name for s in self.sites if s.axis == EXAMPLES)!r} gives a row for each",
                hint="leave out the stride, or that site",
            )
        return example

    @property
    def masks(self) -> bool:
        """Whether the model can be told what is padding."""
        return self._collate.masks

    def batches(self, examples: Sequence[Example]) -> list[Batch]:
        """How examples go through the model."""
        return batches(examples, self.asked.batch_tokens, self.cost, padding=self.masks)

    def run(self, batch: Batch) -> None:
        """One batch through the model, its rows into the window.

        Raises
        ------
        InvalidInputError
            When the model cannot take it, or there is not enough memory for it.
        """
        inputs, padded = self._collate(batch)
        try:
            self._taps.run(inputs, self.window.sink(batch, padded))
        except ActstoreError:
            raise
        except MISFITS as error:
            longest = max(map(self.cost, batch.pieces))
            names = list(dict.fromkeys(self.window.examples[e].id for e, _ in batch.of))
            which = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
            memory = "out of memory" in str(error).lower()
            raise InvalidInputError(
                f"{type(self.loaded.model).__name__} failed on {len(batch.pieces)} sequences of up to "
                f"{longest:,} tokens (examples {which}): {first_line(error)}",
                hint="a smaller batch_tokens; resume goes on where this stopped" if memory else None,
            ) from error

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on one, so that the host has time to spare."""
        return self._transfer is not None

    def drain(self) -> None:
        """Wait until all rows are in the window."""
        if self._transfer is not None:
            self._transfer.drain()

    def rows_of(self, examples: Sequence[Example], each: Callable[[], object] | None = None) -> Window:
        """The window with the rows of these examples; `each` is called after each batch."""
        self.window.begin(examples)
        for batch in self.batches(examples):
            self.run(batch)
            if each is not None:
                each()
        self.drain()
        return self.window


def encoder_for(
    loaded: Loaded,
    *,
    max_length: int | None = None,
    stride: int | None = None,
    tokens: Any = "all",
    seed: int = 0,
    chat: bool | str | None = None,
    prompt: str | None = None,
) -> Encoder:
    """The encoder that goes with a model."""
    config = getattr(loaded.model, "config", None)
    return Encoder(
        loaded.tokenizer,
        model_max_length=loaded.max_length,
        max_length=max_length,
        stride=stride,
        tokens=tokens,
        seed=seed,
        chat=chat,
        prompt=loaded.prompt if prompt is None and not chat else prompt,
        encoder_decoder=is_encoder_decoder(loaded.model),
        decoder_start=getattr(config, "decoder_start_token_id", None),
        image_processor=loaded.image_processor,
        max_positions=loaded.max_positions,
    )


def _places(n_rows: int, height: int, width: int) -> dict[str, Any]:
    """Columns of the rows of an image: where each lies, -1 for what is no patch (a class token)."""
    n_special = n_rows - height * width
    at = np.arange(n_rows, dtype=np.int32) - n_special
    return {
        "row": np.where(at < 0, -1, at // max(width, 1)).astype(np.int32),
        "column": np.where(at < 0, -1, at % max(width, 1)).astype(np.int32),
        "special": at < 0,
    }


def _grid(model: torch.nn.Module, image: Piece, shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of what a model makes of an image, in rows of the site."""
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
