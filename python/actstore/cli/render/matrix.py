"""An explanation as a heat map: shades of characters in the terminal, or a PNG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError
from .formatting import one_line, short_number, shorten

_SHADES, _ASCII_SHADES = " ░▒▓█", " .+#@"
_MAX_ROWS = 60
_MAX_LABEL = 18


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores of the T tokens of an example, by layer or by token of the query.

    Attributes
    ----------
    title : str
    scores : array
        float32 ``[T, C]``.
    tokens : list of str
        Names of the rows, ``[T]``.
    columns : list of str
        Names of the columns, ``[C]``.
    by_layer : bool
        Whether the columns are layers; otherwise they are tokens of the query.
    """

    title: str
    scores: NDArray[np.float32]
    tokens: list[str]
    columns: list[str]
    by_layer: bool

    def json(self) -> dict[str, Any]:
        """This matrix as a JSON object."""
        return {
            "columns": self.columns,
            "tokens": self.tokens,
            "scores": [[float(x) for x in row] for row in self.scores.tolist()],
        }

    def lines(self, width: int, unicode: bool) -> Iterator[str]:
        """One line per token, at most `width` characters wide; if there are many, the best-scoring ones."""
        return (shorten(line, width, unicode) for line in self._lines(width, unicode))

    def _lines(self, width: int, unicode: bool) -> Iterator[str]:
        shades = _SHADES if unicode else _ASCII_SHADES
        n_tokens, n_columns = self.scores.shape
        yield self.title
        if not self.scores.size:
            yield "  no tokens"
            return
        label = min(max(map(len, map(one_line, self.tokens))), _MAX_LABEL)
        # If there is room, a column has two characters: a shade, and a mark for the column's best token.
        cell = 2 if label + 4 + 2 * n_columns <= width else 1
        n_shown = min(n_columns, max(1, (width - label - 4) // cell))
        marked = cell > 1 and n_tokens > 1
        best = self.scores.argmax(0)
        if self.by_layer:
            heads = [str(self.columns[i]) for i in range(n_shown)]
            height = max(map(len, heads))
            for digit in range(height):
                line = "".join(head.rjust(height)[digit].ljust(cell) for head in heads)
                yield f"  {'layer' if digit == height - 1 else '':>{label}}  {line}".rstrip()
        else:
            marks = [_mark(i) for i in range(n_shown)]
            yield f"  {'':>{label}}  {''.join(mark.ljust(cell) for mark in marks)}".rstrip()
        visible = self._visible_tokens()
        low, high = float(self.scores.min()), float(self.scores.max())
        span = (high - low) or 1.0
        previous = -1
        for at in visible:
            if at > previous + 1:
                yield f"  {'...':>{label}}"
            previous = at
            line = ""
            for c in range(n_shown):
                level = round((len(shades) - 1) * (float(self.scores[at, c]) - low) / span)
                mark = "<" if marked and best[c] == at else " "
                line += shades[level] + mark * (cell - 1)
            yield f"  {_truncate(one_line(self.tokens[at]), label):>{label}}  {line}".rstrip()
        if previous < n_tokens - 1:
            yield f"  {'...':>{label}}"
        yield f"  shades: '{shades[0]}' {short_number(low)} to '{shades[-1]}' {short_number(high)}"
        if marked:
            yield f"  '<' marks the best token of each {'layer' if self.by_layer else 'column'}"
        if not self.by_layer:
            for c in range(n_shown):
                token = one_line(self.tokens[int(best[c])])
                score = short_number(float(self.scores[best[c], c]))
                yield f"  {_mark(c)} {one_line(self.columns[c])}: best is {token} with {score}"
        if n_shown < n_columns:
            what = "layers" if self.by_layer else "query tokens"
            yield f"  {n_columns - n_shown} more {what} do not fit: use --png or --json"

    def _visible_tokens(self) -> list[int]:
        """Positions of the tokens to show: all, or the best-scoring ones."""
        if len(self.tokens) <= _MAX_ROWS:
            return list(range(len(self.tokens)))
        order = np.argsort(-self.scores.max(1), kind="stable")
        visible = set(self.scores.argmax(0).tolist())
        for at in order.tolist():
            if len(visible) >= _MAX_ROWS:
                break
            visible.add(at)
        return sorted(visible)

    def plot(self, path: str) -> None:
        """Write the matrix as a PNG.

        Raises
        ------
        InvalidInputError
            If matplotlib is not installed, or the file cannot be written.
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
        rotation = 0 if self.by_layer else 90
        axes.set_xticks(range(n_columns), [_plain(c) for c in self.columns], fontsize=7, rotation=rotation)
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


def _truncate(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "~"


def _plain(text: str) -> str:
    """Text on one line that matplotlib does not read as a formula."""
    return _truncate(one_line(text), 80).replace("$", r"\$")


def token_names(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text of each token; its id if there is no tokenizer or the text is empty."""
    if tokenizer is None:
        return [str(i) for i in ids]
    return [tokenizer.decode([i], clean_up_tokenization_spaces=False) or str(i) for i in ids]
