"""The texts of the command line: each line and record is what it says, and what is wrong is named by line."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from actstore.capturing.inputs.stream import InputStream
from actstore.cli.text_files import texts
from actstore.errors import ActstoreError, InvalidInputError, NotFoundError, StorageError
from hypothesis import given
from hypothesis import strategies as st

lines = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")))


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def items(path: Path | str, **options: Any) -> list[Any]:
    """What a file has, twice the same, and as many as it says."""
    found = texts(path, **options)
    out = list(found)
    assert list(found) == out
    assert found.n_examples == len(out)
    return out


def jsonl(path: Path, *records: Any) -> Path:
    return written(path, "".join(json.dumps(record) + "\n" for record in records))


# ---- lines ----


@given(lines, st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_a_line_is_an_example(
    tmp_path_factory: pytest.TempPathFactory, many: list[str], last: bool, end: str
) -> None:
    many = [line.removesuffix("\r") for line in many]
    content = "".join(line + end for line in many)
    if not last and many and many[-1]:
        content = content.removesuffix(end)
    found = items(written(tmp_path_factory.mktemp("txt") / "a.txt", content))
    if many and many[0].startswith("\ufeff"):
        many[0] = many[0][1:]
    assert found == many


def test_lines_as_inputs(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "one\n\nthree\u2028still\n")
    assert [(i.id, i.text) for i in InputStream(texts(path))] == [
        ("0", "one"),
        ("1", ""),
        ("2", "three\u2028still"),
    ]
    assert InputStream(texts(path)).n == 3
    assert [i.position for i in InputStream(texts(path), rank=1, world=2)] == [1]
    assert items(written(tmp_path / "b.txt", "")) == []
    assert items(written(tmp_path / "c.txt", b"\xef\xbb\xbfwith a mark\n")) == ["with a mark"]
    assert items(written(tmp_path / "D.TXT", "a")) == ["a"]


def test_lines_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a\n\nnaïve\r\nlast".encode())))
    found = InputStream(texts("-"))
    assert found.n is None
    assert [i.text for i in found] == ["a", "", "naïve", "last"]
    with pytest.raises(InvalidInputError, match="stdin: the iterator is already consumed"):
        list(found)


def test_stdin_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xff\n")))
    with pytest.raises(InvalidInputError, match="stdin, line 2: not valid UTF-8"):
        list(texts("-"))


# ---- records ----


def test_jsonl(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        {"_id": "x", "text": "one\ntwo", "n": 3, "w": 0.5, "flag": True, "metadata": {"a": 1}, "tags": ["b"]},
        {"_id": 7, "text": "", "n": 4, "w": 1.5, "flag": False, "nothing": None},
    )
    written(path, path.read_text() + "\n  \n")
    assert items(path) == [
        {"text": "one\ntwo", "id": "x", "n": 3, "w": 0.5, "flag": True},
        {"text": "", "id": "7", "n": 4, "w": 1.5, "flag": False},
    ]
    assert [i.columns["w"] for i in InputStream(texts(path))] == [0.5, 1.5]


def test_the_column_of_texts(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"id": "x", "body": "one", "title": "t"})
    assert items(path, text_column="body") == [{"text": "one", "id": "x", "title": "t"}]
    assert items(path, text_column="title") == [{"text": "t", "id": "x", "body": "one"}]
    assert items(path, text_column="id") == [{"text": "x", "body": "one", "title": "t"}]


def test_messages_images_and_targets(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    assert items(jsonl(tmp_path / "a.jsonl", {"messages": chat})) == [{"messages": chat}]
    assert items(jsonl(tmp_path / "b.jsonl", {"text": "a", "target": "b"})) == [{"text": "a", "target": "b"}]
    (item,) = items(jsonl(tmp_path / "c.jsonl", {"image": "cat.png", "label": 1}))
    assert item == {"image": str(tmp_path / "cat.png"), "label": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: not valid JSON"),
        ("\n\n[1]\n", r"a\.jsonl, line 3: expected a JSON object, got a list"),
        ("null\n", "line 1: expected a JSON object, got null"),
        ('{"text": 3}\n', "line 1: expected 'text' to be a str, got an int"),
        ('{"text": null}\n', "line 1: expected 'text' to be a str, got null"),
        ('{"body": "a", "n": 1}\n', "line 1: no column 'text', it has 'body', 'n'"),
        ("{}\n", "line 1: no column 'text', it has no columns"),
        ('{"text": "a", "id": null}\n', "line 1: expected 'id' to be a str or an int, got null"),
        ('{"text": "a", "_id": [1]}\n', "line 1: expected '_id' to be a str or an int, got a list"),
        ('{"text": "a", "id": true}\n', "line 1: expected 'id' to be a str or an int, got a bool"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: not valid UTF-8"),
        ("[" * 100_000, "line 1: not valid JSON"),
    ],
)
def test_lines_that_are_no_records(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        list(texts(written(tmp_path / "a.jsonl", content)))


def test_what_inputs_refuse_in_a_file(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", {"id": "x", "text": "a"}, {"id": "y", "text": "b"}, {"id": "x", "text": "c"}
    )
    with pytest.raises(InvalidInputError, match=r"a\.jsonl: inputs 0 and 2 have the same id 'x'"):
        list(InputStream(texts(path)))
    path = jsonl(tmp_path / "b.jsonl", {"text": "a", "n": 1}, {"text": "b", "n": None})
    with pytest.raises(InvalidInputError, match=r"input 1 has no key 'n'"):
        list(InputStream(texts(path)))
    assert len(list(InputStream(texts(path), columns=[]))) == 2


@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text("ab,\n\"' "))),
    st.booleans(),
)
def test_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], tabs: bool) -> None:
    path = tmp_path_factory.mktemp("csv") / ("a.tsv" if tabs else "a.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "kind"])
        writer.writerows(rows)
    assert items(path) == [{"text": text, "kind": kind} for text, kind in rows]


def test_csv_with_long_fields_and_ids(tmp_path: Path) -> None:
    long = "x" * 300_000
    path = written(tmp_path / "a.csv", f"\ufeffid,body,n\r\na,{long},1\r\n\r\nb,,2\r\n")
    assert items(path, text_column="body") == [
        {"text": long, "id": "a", "n": "1"},
        {"text": "", "id": "b", "n": "2"},
    ]
    assert items(written(tmp_path / "empty.csv", "")) == []
    assert items(written(tmp_path / "head.csv", "text\n")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,n\na,1\nb\n", r"a\.csv, line 3: expected 2 fields, got 1"),
        ('text,n\n"a\nb",1\nc,2,3\n', r"a\.csv, line 4: expected 2 fields, got 3"),
        ("text,text\na,b\n", r"a\.csv, line 1: column 'text' appears more than once"),
        ("body\na\n", r"a\.csv, line 2: no column 'text', it has 'body'"),
        ('text\na\n"b\n', r"a\.csv, line 3: "),
        (b"text\na\n\xff\n", "not valid UTF-8"),
    ],
)
def test_csv_that_is_none(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        list(texts(written(tmp_path / "a.csv", content)))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "text": [f"text {i}" for i in range(3000)],
            "_id": range(3000),
            "w": [i / 2 for i in range(3000)],
            "flag": [True] * 3000,
            "kind": pyarrow.array(["a"] * 3000).dictionary_encode(),
            "vector": [[1.0, 2.0]] * 3000,
            "day": pyarrow.array([0] * 3000, pyarrow.date32()),
        }
    )
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, row_group_size=700)
    assert items(path) == [
        {"text": f"text {i}", "id": str(i), "w": i / 2, "flag": True, "kind": "a"} for i in range(3000)
    ]
    parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(InvalidInputError, match=r"a\.parquet, row 1: expected 'text' to be a str, got null"):
        list(texts(path))
    parquet.write_table(pyarrow.table({"messages": [[{"role": "user", "content": "hi"}]]}), path)
    assert items(path) == [{"messages": [{"role": "user", "content": "hi"}]}]
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    with pytest.raises(ActstoreError, match=r"a\.parquet"):
        list(texts(written(path, bytes(content))))
    with pytest.raises(InvalidInputError, match=r"b\.parquet is not a Parquet file"):
        list(texts(written(tmp_path / "b.parquet", "no")))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInputError, match="pyarrow cannot be imported") as caught:
        list(texts(written(tmp_path / "a.parquet", "no")))
    assert caught.value.hint == "pip install 'actstore[parquet]'"


# ---- folders ----


def test_a_beir_folder(tmp_path: Path) -> None:
    jsonl(
        tmp_path / "corpus.jsonl",
        {"_id": "d1", "title": "Title", "text": "text", "metadata": {}},
        {"_id": "d2", "title": "", "text": " text "},
        {"_id": "d3", "text": "text", "url": "x"},
        {"_id": "d4", "title": None, "text": ""},
    )
    jsonl(tmp_path / "queries.jsonl", {"_id": "q1", "text": "what", "metadata": {}})
    assert items(tmp_path) == [
        {"id": "d1", "text": "Title text"},
        {"id": "d2", "text": "text"},
        {"id": "d3", "text": "text"},
        {"id": "d4", "text": ""},
    ]
    assert items(tmp_path / "queries.jsonl") == [{"id": "q1", "text": "what"}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, r"corpus\.jsonl, line 1: no '_id'"),
        ({"_id": "a", "text": "a", "title": 3}, "line 1: expected 'title' to be a str, got an int"),
        ({"_id": "a", "title": "a"}, "line 1: no column 'text'"),
    ],
)
def test_a_corpus_that_is_none(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    jsonl(tmp_path / "corpus.jsonl", record)
    with pytest.raises(InvalidInputError, match=message):
        list(texts(tmp_path))


# ---- what is not there ----


def test_what_is_not_there(tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", "")
    with pytest.raises(NotFoundError, match=r"texts .*trian\.jsonl do not exist") as caught:
        texts(tmp_path / "trian.jsonl")
    assert caught.value.hint == f"there is {tmp_path / 'train.jsonl'}"
    with pytest.raises(NotFoundError, match=r"is not a BEIR folder: it has no corpus\.jsonl"):
        texts(tmp_path)
    with pytest.raises(NotFoundError):
        texts(tmp_path / "no" / "such.txt")


@pytest.mark.parametrize("name", ["a.json", "a", "a.txt.gz", "a.npy"])
def test_files_of_another_kind(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"expected \.txt, \.jsonl, \.csv, \.tsv, \.parquet"):
        texts(written(tmp_path / name, "{}"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / name, "")
    found = texts(path)
    path.unlink()
    for act in (lambda: list(found), lambda: found.n_examples):
        with pytest.raises(StorageError, match="cannot be read: "):
            act()


def test_errors_of_our_own_are_not_dressed_as_others(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.csv"):
        with pytest.raises(ActstoreError) as caught:
            list(texts(written(tmp_path / name, b"text\n\xff\xff\n" if name != "a.jsonl" else b"\xff")))
        assert caught.value.kind == "invalid_input"


def test_a_file_is_read_as_it_is_needed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "a"}\nnot JSON\n')
    assert next(iter(texts(path))) == {"text": "a"}


def test_the_column_of_texts_is_the_text(tmp_path: Path) -> None:
    """Whatever else is in the record under the names that have a meaning."""
    record = {"id": 1, "body": "THE BODY", "text": "a label", "image": "a.png", "messages": "none", "n": 3}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    (one,) = InputStream(texts(tmp_path / "a.jsonl", text_column="body"))
    assert (one.text, one.image, one.messages, one.columns) == ("THE BODY", None, None, {"n": 3})
