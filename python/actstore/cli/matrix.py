"""An explanation as a picture: shades of characters in the terminal, or a PNG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from .found import cut
from .picture import short, shown

_SHADES, _ASCII_SHADES = " ░▒▓█", " .+#@"
_MOST_ROWS = 60
_LONGEST = 18


@dataclass(frozen=True)
class Matrix:
    """Scores of tokens, a row each.

    Attributes
    ----------
    title : str
        What it is of.
    scores : array
        ``[T, C]``: of each token, by layer or by query token.
    tokens : list of str
        ``[T]``.
    columns : list of str
        ``[C]``.
    by_layer : bool
        Whether columns are layers, else tokens of the query.
    """

    title: str
    scores: NDArray[np.float32]
    tokens: list[str]
    columns: list[str]
    by_layer: bool

    def json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "columns": self.columns,
            "tokens": self.tokens,
            "scores": [[float(x) for x in row] for row in self.scores.tolist()],
        }

    def lines(self, width: int, unicode: bool) -> Iterator[str]:
        """A line for each token, no wider than so many columns; of many, those with the best scores."""
        return (cut(line, width, unicode) for line in self._lines(width, unicode))

    def _lines(self, width: int, unicode: bool) -> Iterator[str]:
        shades = _SHADES if unicode else _ASCII_SHADES
        n_tokens, n_columns = self.scores.shape
        yield self.title
        if not self.scores.size:
            yield "  no tokens"
            return
        label = min(max(map(len, map(shown, self.tokens))), _LONGEST)
        # Two characters for each column where there is room: a shade, and a mark of the column's best.
        cell = 2 if label + 4 + 2 * n_columns <= width else 1
        n_shown = min(n_columns, max(1, (width - label - 4) // cell))
        best = self.scores.argmax(0)
        if self.by_layer:
            heads = [str(self.columns[i]) for i in range(n_shown)]
            tall = max(map(len, heads))
            for digit in range(tall):
                line = "".join(head.rjust(tall)[digit].ljust(cell) for head in heads)
                yield f"  {'layer' if digit == tall - 1 else '':>{label}}  {line}".rstrip()
        else:
            marks = [_mark(i) for i in range(n_shown)]
            yield f"  {'':>{label}}  {''.join(mark.ljust(cell) for mark in marks)}".rstrip()
        kept = self._kept()
        low, high = float(self.scores.min()), float(self.scores.max())
        span = (high - low) or 1.0
        before = -1
        for at in kept:
            if at > before + 1:
                yield f"  {'...':>{label}}"
            before = at
            line = ""
            for c in range(n_shown):
                level = round((len(shades) - 1) * (float(self.scores[at, c]) - low) / span)
                mark = "<" if best[c] == at else " "
                line += shades[level] + mark * (cell - 1)
            yield f"  {_cut(shown(self.tokens[at]), label):>{label}}  {line}".rstrip()
        if before < n_tokens - 1:
            yield f"  {'...':>{label}}"
        yield f"  '{shades[0]}' {short(low)} to '{shades[-1]}' {short(high)}"
        if cell > 1:
            yield f"  '<' is the best of its {'layer' if self.by_layer else 'column'}"
        if not self.by_layer:
            for c in range(n_shown):
                where = shown(self.tokens[int(best[c])])
                reached = short(float(self.scores[best[c], c]))
                yield f"  {_mark(c)} {shown(self.columns[c])}: {where} {reached}"
        if n_shown < n_columns:
            what = "layers" if self.by_layer else "query tokens"
            yield f"  {n_columns - n_shown} more {what}: --png or --json"

    def _kept(self) -> list[int]:
        """The tokens that are shown: all, or those of the best scores."""
        if len(self.tokens) <= _MOST_ROWS:
            return list(range(len(self.tokens)))
        order = np.argsort(-self.scores.max(1), kind="stable")
        kept = set(self.scores.argmax(0).tolist())
        for at in order.tolist():
            if len(kept) >= _MOST_ROWS:
                break
            kept.add(at)
        return sorted(kept)

    def plot(self, path: str) -> None:
        """A PNG.

        Raises
        ------
        InvalidInputError
            When matplotlib is not installed, or the file cannot be written.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise InvalidInputError(
                f"--png needs matplotlib: {error}", hint="pip install matplotlib"
            ) from error
        n_tokens, n_columns = self.scores.shape
        size = (min(3 + 0.35 * n_columns, 40.0), min(1.8 + 0.22 * n_tokens, 120.0))
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        image = axes.imshow(self.scores, aspect="auto", cmap="viridis", interpolation="nearest")
        axes.set_yticks(range(n_tokens), [_plain(token) for token in self.tokens], fontsize=7)
        turned = 0 if self.by_layer else 90
        axes.set_xticks(range(n_columns), [_plain(c) for c in self.columns], fontsize=7, rotation=turned)
        axes.set_xlabel("layer" if self.by_layer else "token of the query")
        axes.set_title(_plain(self.title), fontsize=9)
        figure.colorbar(image, ax=axes, label="score")
        if not self.by_layer:
            for c, at in enumerate(self.scores.argmax(0).tolist()):
                axes.plot(c, at, marker="o", markersize=3, color="white")
        try:
            figure.savefig(path, format="png")
        except OSError as error:
            raise InvalidInputError(f"{path} cannot be written: {error.strerror or error}") from error


def _mark(i: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return letters[i % len(letters)]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "~"


def _plain(text: str) -> str:
    """Text that is no formula to matplotlib, on one line."""
    return _cut(shown(text), 80).replace("$", r"\$")


def token_names(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Tokens as text, or their ids."""
    if tokenizer is None:
        return [str(i) for i in ids]
    return [tokenizer.decode([i], clean_up_tokenization_spaces=False) or str(i) for i in ids]
