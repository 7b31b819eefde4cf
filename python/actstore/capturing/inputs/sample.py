"""A sample of the input, encoded once: for the dry run, for the estimate, and then for the capture itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .encoder import Encoder
from .example import Example
from .forms import Input
from .ready import ReadyBatch


class Sample:
    """Inputs or ready batches from the input, encoded on demand.

    A text is tokenized at most once: `encode` reuses the example of a text that the sample has encoded.

    Parameters
    ----------
    encoder : Encoder
    items : sequence of Input or of ReadyBatch
    """

    def __init__(self, encoder: Encoder, items: Sequence[Input] | Sequence[ReadyBatch]) -> None:
        self._encoder = encoder
        self.items = list(items)
        self._encoded: dict[int, tuple[Input, Example]] = {}

    def examples(self, n: int | None = None) -> list[Example]:
        """The examples of the first `n` items, or of all."""
        items = self.items[:n]
        batches = [item for item in items if isinstance(item, ReadyBatch)]
        if batches:
            return [example for batch in batches for example in self._encoder.ready(batch)]
        inputs = [item for item in items if isinstance(item, Input)]
        if any(one.image is not None for one in inputs):  # Pixels would take too much memory to hold on to.
            return self._encoder.encode(inputs)
        new = [one for one in inputs if one.position not in self._encoded]
        for one, example in zip(new, self._encoder.encode(new), strict=True):
            self._encoded[one.position] = one, example
        return [self._encoded[one.position][1] for one in inputs]

    def encode(self, inputs: Sequence[Input]) -> list[Example]:
        """Encode inputs, reusing the examples of the sample. Each is reused once and then released."""
        reused = [self._reuse(one) for one in inputs]
        pending = [one for one, example in zip(inputs, reused, strict=True) if example is None]
        encoded = iter(self._encoder.encode(pending))
        return [next(encoded) if example is None else example for example in reused]

    def _reuse(self, one: Input) -> Example | None:
        sampled, example = self._encoded.pop(one.position, (None, None))
        if sampled is None or example is None:
            return None
        # The source may yield another input in its second iteration, and only then are the columns complete.
        if replace(sampled, columns=one.columns) != one:
            return None
        return replace(example, columns=one.columns)
