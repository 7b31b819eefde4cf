"""The dry run: a forward pass on a few tokens, which shows the sites that a model has."""

import contextlib
import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import InvalidInputError
from ..inputs.batches import Batch, Collator
from ..inputs.example import Example, Piece
from ..inputs.sizes import lengths
from ..model.hashes import check_present
from ..model.libraries import first_line
from ..model.loading import Loaded
from .anatomy import anatomy
from .codes import N_SEQUENCES
from .sites import SiteMenu

MODEL_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Exceptions that models raise for unsupported inputs."""
HEAD = 16
"""Number of inputs to encode for a dry run: enough that one of them is not empty."""
_N_TOKENS = 8
"""Length of the sequences of the dry run."""

_evaluated: weakref.WeakKeyDictionary[torch.nn.Module, list[Any]] = weakref.WeakKeyDictionary()
"""For each model, the number of `evaluating` contexts and the modules that were in training mode before."""
_lock = threading.Lock()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and restore its modes when the last context of any thread ends."""
    with _lock:
        entry = _evaluated.setdefault(model, [0, [module for module in model.modules() if module.training]])
        entry[0] += 1
        model.eval()
    try:
        yield
    finally:
        with _lock:
            entry[0] -= 1
            if not entry[0]:
                del _evaluated[model]
                for module in entry[1]:
                    module.training = True


@dataclass(frozen=True)
class DryRun:
    """The result of a dry run.

    Attributes
    ----------
    menu : SiteMenu
        The sites of the model.
    image : Piece or None
        The image that the model ran on; None for a model of tokens.
    """

    menu: SiteMenu
    image: Piece | None


def dry_run(loaded: Loaded, examples: Sequence[Example], *, ready: bool = False) -> DryRun:
    """Run a model in eval mode on a few tokens of the examples, and find its sites.

    Parameters
    ----------
    loaded : Loaded
    examples : sequence of Example
        Examples of the input. If none has tokens, token ids are made up for a model with a tokenizer.
    ready : bool
        Whether the examples come from ready batches, whose inputs cannot be made up.

    Raises
    ------
    InvalidInputError
        If the model cannot run on the examples, or has no weights in memory.
    """
    model = loaded.model
    check_present(model)
    encoder_decoder = is_encoder_decoder(model)
    vocabulary = VocabularyCheck(model)
    for example in examples:
        vocabulary.check(example)
    piece = next((piece for example in examples for piece in example.pieces), None)
    if piece is None:
        if ready or loaded.tokenizer is None:
            raise InvalidInputError("the first inputs have no tokens, so the dry run cannot run the model")
        ids = np.arange(_N_TOKENS)
        piece = Piece({"input_ids": ids} | ({"decoder_input_ids": ids} if encoder_decoder else {}), {})
    is_image = not lengths(piece, encoder_decoder)
    pieces = [piece if is_image else _excerpt(piece, i) for i in range(N_SEQUENCES)]
    inputs, padded = collator_of(loaded)(Batch(pieces, [(i, 0) for i in range(N_SEQUENCES)]))
    arguments = dict(inputs)
    if hasattr(getattr(model, "config", None), "output_hidden_states"):
        arguments["output_hidden_states"] = True
    try:
        with evaluating(model):
            structure = anatomy(model, lambda: model(**arguments), encoder_decoder)
    except MODEL_ERRORS as error:
        raise InvalidInputError(
            f"{type(model).__name__} failed on the first of the inputs, called with {', '.join(inputs)}: "
            f"{first_line(error)}",
            hint="pass inputs that the model takes: texts, images or ready batches",
        ) from error
    return DryRun(SiteMenu(structure, N_SEQUENCES, padded), piece if is_image else None)


def collator_of(loaded: Loaded) -> Collator:
    """The collator for a model's batches."""
    model = loaded.model
    return Collator(model, _pad_id(loaded), is_encoder_decoder(model), device_of(model))


def device_of(model: torch.nn.Module) -> torch.device:
    """The device of the inputs: that of the first weights."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
    return torch.device("cpu")


def uses_cuda(model: torch.nn.Module) -> bool:
    """Whether any module runs on a GPU, even if its weights are offloaded until then."""
    if not torch.cuda.is_available():
        return False
    if any(parameter.device.type == "cuda" for parameter in model.parameters()):
        return True
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    all_hooks = (one for hook in hooks for one in (hook, *getattr(hook, "hooks", ())))
    devices: set[Any] = {getattr(one, "execution_device", None) for one in all_hooks} - {None}
    return any(isinstance(device, int) or torch.device(device).type == "cuda" for device in devices)


class VocabularyCheck:
    """Checks token ids and token type ids against the sizes of a model's embedding tables."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = type(model).__name__
        embeddings = None
        with contextlib.suppress(*MODEL_ERRORS, NotImplementedError):
            embeddings = model.get_input_embeddings()  # type: ignore[operator]
        n = getattr(embeddings, "num_embeddings", None)
        self._n_ids = n if isinstance(n, int) else None
        n = getattr(getattr(model, "config", None), "type_vocab_size", None)
        self._n_types = n if isinstance(n, int) and n > 0 else None

    def check(self, example: Example) -> None:
        """Raise InvalidInputError for an id outside the table.

        The model's own error does not explain it, and on a GPU it ends the process.
        """
        for piece in example.pieces:
            for key, values in piece.inputs.items():
                size = self._n_types if key == "token_type_ids" else self._n_ids
                if size is None or not key.endswith(("input_ids", "token_type_ids")) or not len(values):
                    continue
                largest = int(values.max())
                if largest >= size:
                    raise InvalidInputError(
                        f"example {example.id!r}: {key} contains {largest}, {self._model} has {size:,} ids",
                        hint="use the tokenizer that belongs to the model",
                    )


def is_encoder_decoder(model: torch.nn.Module) -> bool:
    """Whether a model has an encoder and a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _excerpt(piece: Piece, i: int) -> Piece:
    """A few tokens of a piece, rotated by `i` so that sequences differ; fewer for the decoder.

    The axes are told apart by their lengths. A short piece is repeated.
    """
    inputs = {}
    for key, values in piece.inputs.items():
        if values.ndim != 1 or not len(values):
            inputs[key] = values
            continue
        n = _N_TOKENS - (3 if key.startswith("decoder_") else 0)
        inputs[key] = np.resize(np.roll(values, -i), n)
    return Piece(inputs, {})


def _pad_id(loaded: Loaded) -> int:
    """The token id for padding. Any valid id will do."""
    config = getattr(loaded.model, "config", None)
    for source in (loaded.tokenizer, config):
        pad_id = getattr(source, "pad_token_id", None)
        if isinstance(pad_id, int) and pad_id >= 0:
            return pad_id
    return 0
