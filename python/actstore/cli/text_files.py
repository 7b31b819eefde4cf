"""The texts of the command line: a file, a BEIR folder or the lines of stdin, read lazily.

In a ``.txt`` every line is an example, empty lines included: line 7 is always example 6.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Protocol, TextIO

from ..base.lazy import lazy
from ..base.text import type_name
from ..capturing.inputs.forms import CONTENT
from ..disk.location import near
from ..errors import ActstoreError, InvalidInputError, NotFoundError, StorageError

STDIN = "-"
CORPUS = "corpus.jsonl"
"""The documents of a BEIR folder."""

_SMALL_CSV = 64 << 20
"""Bytes up to which a CSV file is parsed once more to count its rows."""
_BLOCK = 1 << 20
_INSTEAD_OF_TEXT = ("messages", "image")
"""Columns that can take the place of a text."""


def texts(path: str | os.PathLike[str], *, text_column: str = "text") -> TextFile | TextStream:
    """The examples of a file or a folder, as an input of `capture`.

    Parameters
    ----------
    path
        A ``.txt`` (one text per line), a ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` (one record per
        example), a BEIR folder (its ``corpus.jsonl``, with title and text joined), or ``-`` for the lines of
        stdin.
    text_column
        The column of a record that holds the text. ``_id`` or ``id`` becomes the example's id. ``target``
        and, in records without a text, ``messages`` or ``image`` have the meaning that `capture` gives them.
        Other columns with a str, a number or a bool are kept; those of a ``.csv`` are all str.

    Raises
    ------
    NotFoundError
        If the path does not exist.
    InvalidInputError
        If the file has an unknown extension.
    """
    name = os.fspath(path)
    if name == STDIN:
        return TextStream(sys.stdin.buffer, "stdin")
    if os.path.isdir(name):
        return _beir(name)
    if not os.path.exists(name):
        raise NotFoundError(f"texts {name} do not exist", hint=near(name))
    extension = os.path.splitext(name)[1].lower()
    if extension not in _READERS:
        raise InvalidInputError(
            f"{name}: unknown file type {extension or '(no extension)'}, expected {', '.join(_READERS)}",
            hint="use .txt for one text per line, .jsonl for one JSON object per line",
        )
    read, count = _READERS[extension]
    return TextFile(name, lambda: read(name, text_column), count=lambda: count(name))


class TextFile:
    """Examples of a file, read again on every iteration.

    Parameters
    ----------
    title
        The file's name in messages.
    read
        Reads the examples.
    count
        Returns the number of examples; None if it is unknown before all are read.
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
        """The number of examples; None if it is unknown before all are read."""
        with _reading(self.title):
            return self._count()


class TextStream(Iterator[str]):
    """The lines of an open file, which can be iterated over only once."""

    n_examples = None

    def __init__(self, file: BinaryIO, title: str) -> None:
        self.title = title
        self._lines = _decoded(file, title)

    def __next__(self) -> str:
        with _reading(self.title):
            return next(self._lines)[1]


@contextlib.contextmanager
def _reading(title: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that names the file."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ActstoreError):
            raise
        raise StorageError(f"{title} cannot be read: {error.strerror or error}") from error


# ---- Lines ----


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Each line and its number, from 1; lines end with LF or CRLF, not with other Unicode separators."""
    with open(path, "rb") as file:
        yield from _decoded(file, path)


def _decoded(lines: Iterable[bytes], title: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{title}, line {number}: not valid UTF-8: {error.reason}") from None


def _txt(path: str, text_column: str) -> Iterator[str]:
    for _, line in _lines(path):
        yield line


def _count_lines(path: str) -> int:
    n, last = 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            n, last = n + block.count(b"\n"), block[-1:]
    return n + (last != b"\n")


# ---- Records ----


def _jsonl(path: str, text_column: str) -> Iterator[dict[str, Any]]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            item = _item(_json_object(line, where), text_column, where)
            if isinstance(item.get("image"), str):
                item["image"] = os.path.join(os.path.dirname(path), item["image"])
            yield item


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise InvalidInputError(f"{where}: expected a JSON object, got {_type_name(record)}")
    return record


def _count_records(path: str) -> int:
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())


class CsvReader(Protocol):
    """The type that `csv.reader` returns, which has no public name."""

    @property
    def line_num(self) -> int:
        """The number of lines read so far."""

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


def _csv(path: str, text_column: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows, end = _csv_reader(file, path), 0
        try:
            header = next(rows, [])
            if duplicates := {name for name in header if header.count(name) > 1}:
                raise InvalidInputError(f"{path}, line 1: column {min(duplicates)!r} appears more than once")
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
            raise InvalidInputError(f"{path}, after line {end}: not valid UTF-8: {error.reason}") from None


def _count_csv(path: str) -> int | None:
    """The number of rows. A quoted field may contain line feeds, so counting requires parsing."""
    if os.path.getsize(path) > _SMALL_CSV:
        return None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return max(0, sum(1 for row in _csv_reader(file, path) if row) - 1)
    except (csv.Error, UnicodeDecodeError):
        return None  # Reading the rows will report the error and its line.


def _csv_reader(file: TextIO, path: str) -> CsvReader:
    # The default limit of 128 KiB per field is too small for texts.
    csv.field_size_limit(max(csv.field_size_limit(), (1 << 31) - 1))
    return csv.reader(file, delimiter="\t" if path.lower().endswith(".tsv") else ",", strict=True)


def _parquet(path: str, text_column: str) -> Iterator[dict[str, Any]]:
    file = _parquet_file(path)
    schema = file.schema_arrow
    nested = {field.name for field in schema if field.type.num_fields > 0}
    # A nested column cannot become a column of the store: read it only if it is the content.
    names = [name for name in schema.names if name not in nested or name in (text_column, *_INSTEAD_OF_TEXT)]
    number = 0
    batches = file.iter_batches(batch_size=1024, columns=names)
    while (records := _next_batch(batches, f"{path}, after row {number}")) is not None:
        for record in records:
            yield _item(record, text_column, f"{path}, row {number}")
            number += 1


def _next_batch(batches: Iterator[Any], where: str) -> list[dict[str, Any]] | None:
    """The records of the next batch; None at the end."""
    try:
        batch = next(batches, None)
        return None if batch is None else batch.to_pylist()
    except ValueError as error:  # ArrowInvalid is a ValueError.
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
        raise InvalidInputError(f"{path} is not a Parquet file: {error}") from error


# ---- BEIR folders ----


def _beir(folder: str) -> TextFile:
    path = os.path.join(folder, CORPUS)
    if not os.path.exists(path):
        raise NotFoundError(
            f"{folder} is not a BEIR folder: it has no {CORPUS}",
            hint=f"texts can be a BEIR folder or a file: {', '.join(_READERS)}",
        )
    return TextFile(path, lambda: _corpus(path), count=lambda: _count_records(path))


def _corpus(path: str) -> Iterator[dict[str, Any]]:
    """Documents with title and text joined by a space, as BEIR's own models read them; no other columns."""
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            record = _json_object(line, where)
            item = _item(record, "text", where)
            title = record.get("title") or ""
            if not isinstance(title, str):
                raise InvalidInputError(f"{where}: expected 'title' to be a str, got {_type_name(title)}")
            if "id" not in item:
                raise InvalidInputError(f"{where}: no '_id'")
            yield {"id": item["id"], "text": f"{title} {item['text']}".strip()}


def _item(record: dict[str, Any], text_column: str, where: str) -> dict[str, Any]:
    """A record in the form that `capture` expects.

    Raises
    ------
    InvalidInputError
        If there is no text, or the text or the id has the wrong type.
    """
    item: dict[str, Any] = {}
    used = {text_column}
    if text_column in record:
        if not isinstance(text := record[text_column], str):
            raise InvalidInputError(f"{where}: expected {text_column!r} to be a str, got {_type_name(text)}")
        item["text"] = text
    else:
        alternatives = [key for key in _INSTEAD_OF_TEXT if key in record]
        if len(alternatives) != 1 or text_column != "text":
            raise InvalidInputError(
                f"{where}: no column {text_column!r}, it has {', '.join(map(repr, record)) or 'no columns'}",
                hint="--text-column names the column that holds the text",
            )
        item[alternatives[0]] = record[alternatives[0]]
        used.add(alternatives[0])
    key = next((key for key in ("_id", "id") if key in record and key != text_column), None)
    if key is not None:
        name = record[key]
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise InvalidInputError(
                f"{where}: expected {key!r} to be a str or an int, got {_type_name(name)}"
            )
        item["id"] = str(name)
        used |= {"_id", "id"}
    for column, value in record.items():
        if column not in used and column not in CONTENT and isinstance(value, str | int | float | bool):
            item[column] = value
    return item


def _type_name(value: Any) -> str:
    """The type of a JSON value, with its article."""
    return "null" if value is None else type_name(value)


_READERS: dict[str, tuple[Callable[[str, str], Iterator[Any]], Callable[[str], int | None]]] = {
    ".txt": (_txt, _count_lines),
    ".jsonl": (_jsonl, _count_records),
    ".csv": (_csv, _count_csv),
    ".tsv": (_csv, _count_csv),
    ".parquet": (_parquet, _count_parquet),
}
