"""The texts of the command line: a file, a BEIR folder, or lines on stdin; read as they are needed.

In a ``.txt`` each line is an example, an empty one too: line 7 is example 6 whatever the others hold.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from ..errors import ActstoreError, InvalidInputError, NotFoundError, StorageError
from ..lazy import lazy
from ..parts import near
from .forms import CONTENT

if TYPE_CHECKING:
    import _csv as csv_types

STDIN = "-"
CORPUS = "corpus.jsonl"

_SMALL_CSV = 64 << 20
_BLOCK = 1 << 20
_BESIDE_TEXT = ("messages", "image")
"""Keys that may stand in for a text."""


def texts(path: str | os.PathLike[str], *, text_column: str = "text") -> Texts | Lines:
    """What a file or a folder has for `capture`.

    Parameters
    ----------
    path
        A ``.txt`` (a line each), a ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` (a record each), a BEIR
        folder (its ``corpus.jsonl``, title and text together), or ``-`` for lines of stdin.
    text_column
        Where the text is in a record. Its ``_id`` or ``id`` is the example's id; ``target``, and in a
        ``.jsonl`` without a text ``messages`` or ``image``, are what `capture` takes them for; other
        keys with a str, a number or a bool become columns. In ``.csv`` all columns are str.

    Raises
    ------
    NotFoundError
        When there is no such file.
    InvalidInputError
        For a kind of file that is not known.
    """
    name = os.fspath(path)
    if name == STDIN:
        return Lines(sys.stdin.buffer, "stdin")
    if os.path.isdir(name):
        return _beir(name)
    if not os.path.exists(name):
        raise NotFoundError(f"there are no texts {name}", hint=near(name))
    extension = os.path.splitext(name)[1].lower()
    if extension not in _READERS:
        raise InvalidInputError(
            f"{name}: {extension or 'no extension'} is none of {', '.join(_READERS)}",
            hint="a text on each line is a .txt, a JSON object on each line a .jsonl",
        )
    read, count = _READERS[extension]
    return Texts(name, lambda: read(name, text_column), count=lambda: count(name))


class Texts:
    """Items for `inputs`, read anew each time they are iterated over.

    Attributes
    ----------
    title
        What they are called in messages.
    """

    def __init__(
        self,
        title: str,
        read: Callable[[], Iterator[Any]],
        *,
        count: Callable[[], int | None],
    ) -> None:
        self.title = title
        self._read, self._count = read, count

    def __iter__(self) -> Iterator[Any]:
        with _reading(self.title):
            yield from self._read()

    @lazy
    def n_examples(self) -> int | None:
        """How many there are; None when only reading them all would tell."""
        with _reading(self.title):
            return self._count()


class Lines(Iterator[str]):
    """The lines of an open file, which can be gone through once."""

    n_examples = None

    def __init__(self, file: BinaryIO, title: str) -> None:
        self.title = title
        self._lines = _decoded(file, title)

    def __next__(self) -> str:
        with _reading(self.title):
            return next(self._lines)[1]


@contextlib.contextmanager
def _reading(title: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ActstoreError):
            raise
        raise StorageError(f"{title} cannot be read: {error.strerror or error}") from error


# ---- lines ----


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Each line and its number, from 1; only a line feed ends one, with or without a carriage return."""
    with open(path, "rb") as file:
        yield from _decoded(file, path)


def _decoded(lines: Iterable[bytes], title: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{title}, line {number}: not utf-8: {error.reason}") from None


def _txt(path: str, text_column: str) -> Iterator[str]:
    for _, line in _lines(path):
        yield line


def _count_lines(path: str) -> int:
    n, last = 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            n, last = n + block.count(b"\n"), block[-1:]
    return n + (last != b"\n")


# ---- records ----


def _jsonl(path: str, text_column: str) -> Iterator[dict[str, Any]]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            item = _item(_object(line, where), text_column, where)
            if isinstance(item.get("image"), str):
                item["image"] = os.path.join(os.path.dirname(path), item["image"])
            yield item


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InvalidInputError(f"{where}: expected a JSON object, got {_named(record)}")
    return record


def _count_records(path: str) -> int:
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())


def _table(path: str, text_column: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows, end = _rows(file, path), 0
        try:
            header = next(rows, [])
            if twice := {name for name in header if header.count(name) > 1}:
                raise InvalidInputError(f"{path}, line 1: there are several columns {min(twice)!r}")
            end = rows.line_num
            for row in rows:
                where, end = f"{path}, line {end + 1}", rows.line_num
                if row and len(row) != len(header):
                    raise InvalidInputError(f"{where}: expected {len(header)} fields, got {len(row)}")
                if row:
                    yield _item(dict(zip(header, row, strict=True)), text_column, where)
        except csv.Error as error:
            raise InvalidInputError(f"{path}, line {end + 1}: {error}") from None
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{path}, after line {end}: not utf-8: {error.reason}") from None


def _count_csv(path: str) -> int | None:
    """A line feed in quotes ends no row, so that counting is parsing."""
    if os.path.getsize(path) > _SMALL_CSV:
        return None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return max(0, sum(1 for row in _rows(file, path) if row) - 1)
    except (csv.Error, UnicodeDecodeError):
        return None  # Reading will say what is wrong, and where.


def _rows(file: TextIO, path: str) -> csv_types.Reader:
    # Texts may be longer than the 128 KiB that a field is allowed by default.
    csv.field_size_limit(max(csv.field_size_limit(), (1 << 31) - 1))
    return csv.reader(file, delimiter="\t" if path.lower().endswith(".tsv") else ",", strict=True)


def _parquet(path: str, text_column: str) -> Iterator[dict[str, Any]]:
    file = _parquet_file(path)
    types = file.schema_arrow
    nested = {field.name for field in types if field.type.num_fields > 0}
    # What has no other use is not read.
    names = [name for name in types.names if name not in nested or name in (text_column, *_BESIDE_TEXT)]
    number = 0
    batches = file.iter_batches(batch_size=1024, columns=names)
    while (records := _records(batches, f"{path}, after row {number}")) is not None:
        for record in records:
            yield _item(record, text_column, f"{path}, row {number}")
            number += 1


def _records(batches: Iterator[Any], where: str) -> list[dict[str, Any]] | None:
    """The next batch; None at the end."""
    try:
        batch = next(batches, None)
        return None if batch is None else batch.to_pylist()
    except ValueError as error:  # ArrowInvalid is one.
        raise InvalidInputError(f"{where}: {error}") from error


def _count_parquet(path: str) -> int:
    return int(_parquet_file(path).metadata.num_rows)


def _parquet_file(path: str) -> Any:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise InvalidInputError(
            f"{path}: pyarrow cannot be imported: {error}", hint="pip install 'actstore[parquet]'"
        ) from error
    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise InvalidInputError(f"{path} is no parquet file: {error}") from error


def _beir(folder: str) -> Texts:
    path = os.path.join(folder, CORPUS)
    if not os.path.exists(path):
        raise NotFoundError(
            f"{folder} is a folder without {CORPUS}, so no BEIR folder",
            hint=f"texts are {', '.join(_READERS)}",
        )
    return Texts(path, lambda: _corpus(path), count=lambda: _count_records(path))


def _corpus(path: str) -> Iterator[dict[str, Any]]:
    """Title and text together, as BEIR's own models take them; what else there is stays behind."""
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            record = _object(line, where)
            item = _item(record, "text", where)
            title = record.get("title") or ""
            if not isinstance(title, str):
                raise InvalidInputError(f"{where}: its title is {_named(title)}, not a str")
            if "id" not in item:
                raise InvalidInputError(f"{where}: there is no '_id'")
            yield {"id": item["id"], "text": f"{title} {item['text']}".strip()}


def _item(record: dict[str, Any], text_column: str, where: str) -> dict[str, Any]:
    """A record as `inputs` takes it.

    Raises
    ------
    InvalidInputError
        When there is no text, or its text or id cannot be one.
    """
    item: dict[str, Any] = {}
    used = {text_column}
    if text_column in record:
        if not isinstance(text := record[text_column], str):
            raise InvalidInputError(f"{where}: its {text_column!r} is {_named(text)}, not a str")
        item["text"] = text
    else:
        instead = [key for key in _BESIDE_TEXT if key in record]
        if len(instead) != 1 or text_column != "text":
            raise InvalidInputError(
                f"{where}: there is no {text_column!r}, there is {', '.join(map(repr, record)) or 'nothing'}",
                hint="--text-column says which holds the text",
            )
        item[instead[0]] = record[instead[0]]
        used.add(instead[0])
    key = next((key for key in ("_id", "id") if key in record and key != text_column), None)
    if key is not None:
        name = record[key]
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise InvalidInputError(f"{where}: its {key!r} is {_named(name)}, neither a str nor an int")
        item["id"] = str(name)
        used |= {"_id", "id"}
    for column, value in record.items():
        if column not in used and column not in CONTENT and isinstance(value, str | int | float | bool):
            item[column] = value
    return item


def _named(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


_READERS: dict[str, tuple[Callable[[str, str], Iterator[Any]], Callable[[str], int | None]]] = {
    ".txt": (_txt, _count_lines),
    ".jsonl": (_jsonl, _count_records),
    ".csv": (_table, _count_csv),
    ".tsv": (_table, _count_csv),
    ".parquet": (_parquet, _count_parquet),
}
