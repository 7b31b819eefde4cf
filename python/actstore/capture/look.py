"""Looking at a model before it is captured from: it is run on a few tokens, which shows the sites it has."""

import contextlib
import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..errors import InvalidInputError
from .anatomy import anatomy
from .batches import Batch, Collator
from .codes import N_SEQUENCES
from .encode import Encoder
from .example import Example, Piece
from .forms import Input
from .libraries import first_line
from .loading import Loaded
from .ready import ReadyBatch
from .sites import Menu
from .sizes import lengths
from .weights import check_present

MISFITS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What models raise that are given what they cannot take."""
_PROBE_TOKENS = 8
"""Of each sequence that a model is looked at with."""


_evaluated: weakref.WeakKeyDictionary[torch.nn.Module, list[Any]] = weakref.WeakKeyDictionary()
"""How many contexts a model is in, and which of its modules were in training mode before the first."""
_lock = threading.Lock()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """While the context lasts, in whatever thread, the model is in eval mode; afterwards it is as before."""
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


def look(loaded: Loaded, encoder: Encoder, first: Sequence[Input] | ReadyBatch) -> tuple[Menu, Piece | None]:
    """The sites that a model has, and an image if that is what it takes.

    Parameters
    ----------
    loaded : Loaded
        In eval mode.
    encoder : Encoder
    first : list of Input, or ReadyBatch
        Some input.
    """
    check_present(loaded.model)
    encoder_decoder = is_encoder_decoder(loaded.model)
    piece = _piece(loaded.model, encoder, first)
    images = not lengths(piece, encoder_decoder)
    pieces = [piece if images else _probe(piece, i) for i in range(N_SEQUENCES)]
    inputs, padded = collator_of(loaded)(Batch(pieces, [(i, 0) for i in range(N_SEQUENCES)]))
    told = dict(inputs)
    if hasattr(getattr(loaded.model, "config", None), "output_hidden_states"):
        told["output_hidden_states"] = True
    try:
        seen = anatomy(loaded.model, lambda: loaded.model(**told), encoder_decoder)
    except MISFITS as error:
        raise InvalidInputError(
            f"{type(loaded.model).__name__} cannot run on the first of the inputs, as {', '.join(inputs)}: "
            f"{first_line(error)}",
            hint="inputs that the model takes: texts, images or ready batches",
        ) from error
    return Menu(seen, N_SEQUENCES, padded), piece if images else None


def collator_of(loaded: Loaded) -> Collator:
    """Makes the batches that a model takes."""
    decoder = is_encoder_decoder(loaded.model)
    return Collator(loaded.model, _pad_id(loaded), decoder, device_of(loaded.model))


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the inputs go: to the first weights."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
    return torch.device("cpu")


def uses_cuda(model: torch.nn.Module) -> bool:
    """Whether any of it runs on a GPU, be its weights elsewhere until then."""
    if not torch.cuda.is_available():
        return False
    if any(parameter.device.type == "cuda" for parameter in model.parameters()):
        return True
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    every = (one for hook in hooks for one in (hook, *getattr(hook, "hooks", ())))
    devices: set[Any] = {getattr(one, "execution_device", None) for one in every} - {None}
    return any(isinstance(device, int) or torch.device(device).type == "cuda" for device in devices)


class Ids:
    """The ids that a model has: of tokens, and of their types."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = type(model).__name__
        embeddings = None
        with contextlib.suppress(*MISFITS, NotImplementedError):
            embeddings = model.get_input_embeddings()  # type: ignore[operator]
        n = getattr(embeddings, "num_embeddings", None)
        self._n_ids = n if isinstance(n, int) else None
        n = getattr(getattr(model, "config", None), "type_vocab_size", None)
        self._n_types = n if isinstance(n, int) and n > 0 else None

    def check(self, example: Example) -> None:
        """Raise InvalidInputError for one it does not have: the model's own error is without words, and on a
        GPU one that ends the process."""
        for piece in example.pieces:
            for key, values in piece.inputs.items():
                most = self._n_types if key == "token_type_ids" else self._n_ids
                if most is None or not key.endswith(("input_ids", "token_type_ids")) or not len(values):
                    continue
                worst = int(values.max())
                if worst >= most:
                    raise InvalidInputError(
                        f"example {example.id!r} has {worst} among its {key}, {self._model} has {most:,}",
                        hint="a tokenizer that goes with the model",
                    )


def is_encoder_decoder(model: torch.nn.Module) -> bool:
    """Whether it has two streams of tokens."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _piece(model: torch.nn.Module, encoder: Encoder, first: Sequence[Input] | ReadyBatch) -> Piece:
    """A piece of the first examples; made up where these are all empty."""
    ready = isinstance(first, ReadyBatch)
    examples = encoder.ready(first) if isinstance(first, ReadyBatch) else encoder.encode(first)
    for example in examples:
        Ids(model).check(example)
    piece = next((piece for example in examples for piece in example.pieces), None)
    if piece is not None:
        return piece
    if ready or encoder.tokenizer is None:
        raise InvalidInputError("the first batch has no tokens at all, so the model cannot be looked at")
    some = np.arange(_PROBE_TOKENS)
    return Piece({"input_ids": some} | ({"decoder_input_ids": some} if is_encoder_decoder(model) else {}), {})


def _probe(piece: Piece, i: int) -> Piece:
    """A few tokens of a piece, repeated if it is short; other ones for each `i`, fewer for the decoder."""
    inputs = {}
    for key, values in piece.inputs.items():
        if values.ndim != 1 or not len(values):
            inputs[key] = values
            continue
        n = _PROBE_TOKENS - (3 if key.startswith("decoder_") else 0)
        inputs[key] = np.resize(np.roll(values, -i), n)
    return Piece(inputs, {})


def _pad_id(loaded: Loaded) -> int:
    """What stands where no token is: it must only be a token that there is."""
    config = getattr(loaded.model, "config", None)
    for of in (loaded.tokenizer, config):
        found = getattr(of, "pad_token_id", None)
        if isinstance(found, int) and found >= 0:
            return found
    return 0
