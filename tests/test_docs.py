"""The documents are code: their blocks run, in order, in an empty folder; the reference is up to date.

In README.md and docs/guide.md, a ``python`` block goes on where the one before it ended, and must not
fail; a comment ``# ... -> text`` at the end of a statement says what its value prints. Of a ``console``
block each command runs, and must print the lines below it, whatever the numbers in them. An ``sh`` block
is for a checkout: its make targets must exist, its other commands are not run. In docs/format.md, the
example of a record and the rules for checksums are held against a store.
"""

import ast
import io
import json
import os
import re
import runpy
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import actstore
import pytest
from actstore import cli, errors
from children import LIMIT, without_forecast

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = [ROOT / "README.md", ROOT / "docs/guide.md"]
MINE = [*DOCS, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> Iterator[tuple[str, str, int]]:
    """Language, text and first line of each block of code."""
    text = path.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield match[1], match[2], text[: match.start(2)].count("\n") + 1


# ---- What runs ----


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, where `actstore` and `python` are those under test."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, command in {"actstore": "-m actstore", "python": ""}.items():
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return work


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_blocks_run(path: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    languages = set()
    for language, text, line in blocks(path):
        languages.add(language)
        try:
            if language == "python":
                run_python(text, names)
            elif language == "console":
                run_console(text)
        except BaseException as error:
            error.add_note(f"the block at {path.name}:{line}")
            raise
    assert {"python", "console"} <= languages


def run_python(text: str, names: dict[str, Any]) -> None:
    """Runs a block, statement by statement, and compares what each prints with its comment."""
    lines = text.splitlines()
    for node in ast.parse(text).body:
        expected = re.search(r"#.*?-> (.*)", lines[(node.end_lineno or 0) - 1])
        printed = io.StringIO()
        with redirect_stdout(printed):
            if isinstance(node, ast.Expr):
                value = eval(compile(ast.Expression(node.value), "<block>", "eval"), names)
                if value is not None:
                    print(value)
            else:
                exec(compile(ast.Module([node], []), "<block>", "exec"), names)
        if expected:
            assert printed.getvalue().strip() == expected[1].strip()


def run_console(text: str) -> None:
    """Runs each ``$ command`` and compares what it prints with the lines that follow it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode in (0, 1), done.stderr
        assert done.returncode == 0 or "error:" in expected or "damaged" in expected, done.stderr
        assert shape(done.stdout + without_forecast(done.stderr)) == shape(expected), command


def shape(printed: str) -> list[str]:
    """What is printed, whatever its numbers: sizes depend on the encoder."""
    hexadecimal = re.sub(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{8}\b", "#", printed)
    numbers = re.sub(r"\d[\d,.]*( [KMG]iB| B\b)?", "#", hexadecimal)
    return numbers.strip().splitlines()


def test_what_is_for_a_checkout() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    for path in MINE:
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"`make ([\w-]+)`|^make ([\w-]+)", text, re.MULTILINE))
    wanted = {a or b for a, b in named}
    assert wanted
    assert wanted <= targets


def test_links_lead_somewhere() -> None:
    for path in MINE:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            file, _, anchor = target.partition("#")
            if "://" in file:
                continue
            there = path.parent / file if file else path
            assert there.exists(), f"{path.name}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
                assert anchor in anchors, f"{path.name}: {target}"


# ---- The command line's reference ----


def help_of(*command: str) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        assert cli.main([*command, "--help"]) == 0
    return printed.getvalue()


def test_the_reference_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs/generate_cli.py"))["render"]()
    found = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert found == made, "run: python docs/generate_cli.py --write"


def test_every_command_and_option_is_documented() -> None:
    reference = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"(?ms)^## (actstore[ \w]*)\n(.*?)(?=^## |\Z)", reference))
    top = help_of()
    listed = top.partition("COMMAND\n")[2].partition("\n\n")[0]
    commands = re.findall(r"^    (\w+)", listed, re.MULTILINE)
    assert commands
    assert set(sections) == {"actstore", *(f"actstore {name}" for name in commands)}
    for name in ("", *commands):
        section = sections[f"actstore {name}".strip()]
        for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", help_of(*name.split()))):
            assert f"`{option}" in section, f"actstore {name}: {option}"


def test_every_error_kind_is_in_the_guide() -> None:
    guide = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    assert [kind for kind in errors.KINDS if f"`{kind}`" not in guide] == []


# ---- The format ----


def crc32c(data: bytes) -> int:
    """Castagnoli's, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def metadata_sum(node: dict[str, Any]) -> int:
    """As docs/format.md says: rows null, keys sorted, no spaces."""
    node = json.loads(json.dumps(node))
    for one in [node, *node.get("consolidated_metadata", {}).get("metadata", {}).values()]:
        if one["node_type"] == "array":
            one["shape"][0] = None
    return crc32c(json.dumps(node, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def fields(value: object) -> object:
    """The keys of nested objects; those of tables stand for one another."""
    if isinstance(value, dict):
        return {key: fields(item) for key, item in value.items()}
    return [fields(item) for item in value[:1]] if isinstance(value, list) else type(value)


def example_store(path: Path) -> Path:
    """The store whose records docs/format.md shows."""
    import numpy as np

    spec = actstore.SiteSpec(n_layers=2, dim=4, dtype="float32", labels=[6, 12], chunk_rows=4, shard_rows=8)
    rows = np.random.default_rng(0).normal(size=(13, 2, 4)).astype(np.float32)
    with actstore.create(path, {"resid": spec}, identity={"model": "toy"}) as writer:
        writer.append({"resid": rows[:10]}, lengths=[3, 0, 7], ids=["a", "b", "c"])
        writer.commit()
        writer.append({"resid": rows[10:]}, lengths=[3], ids=["d"])
    return path


def test_the_example_record(tmp_path: Path) -> None:
    """It is whole, and of the form that is written today."""
    (text,) = (text for language, text, _ in blocks(ROOT / "docs/format.md") if language == "json")
    shown = json.loads(text)
    assert f"{crc32c(compact(shown['record'])):08x}" == shown["crc32c"]
    number = shown["record"]["number"]
    path = example_store(tmp_path / "run.act")
    written = json.loads((path / "commits" / f"{number:020}.json").read_text())
    assert fields(written) == fields(shown)
    for name, array in written["record"]["arrays"].items():
        assert array["metadata"] == shown["record"]["arrays"][name]["metadata"], name
    assert written["record"]["groups"] == shown["record"]["groups"]


def test_the_rules_for_checksums(tmp_path: Path) -> None:
    path = example_store(tmp_path / "run.act")
    newest = max((path / "commits").glob("0*.json"))
    text = newest.read_bytes()
    outer = json.loads(text)
    record = outer["record"]
    body = text[text.index(b'"record":') + len(b'"record":') : -1]
    assert f"{crc32c(body):08x}" == outer["crc32c"]
    assert metadata_sum(json.loads((path / "zarr.json").read_text())) == record["root"]["metadata"]
    for name, found in record["groups"].items():
        assert metadata_sum(json.loads((path / name / "zarr.json").read_text())) == found
    for name, array in record["arrays"].items():
        assert metadata_sum(json.loads((path / name / "zarr.json").read_text())) == array["metadata"]
        for offset, length, crc in array["tail"]["chunks"]:
            key = "c/1/0/0" if name == "resid" else "c/0"
            chunk = (path / name / key).read_bytes()[offset : offset + length]
            assert crc32c(chunk[:-4]) == crc == int.from_bytes(chunk[-4:], "little")
    records = [json.loads(file.read_text())["record"] for file in sorted((path / "commits").glob("0*.json"))]
    root = json.loads((path / "zarr.json").read_text())
    whole = [one for one in records if one["number"] == one["checkpoint"]]
    assert [one.get("attributes") for one in whole] == [root["attributes"]] * len(whole)
    assert not any("attributes" in one for one in records if one not in whole)
    ((number, ((length, seal),)),) = [shard for one in records for shard in one["arrays"]["resid"]["shards"]]
    data = (path / f"resid/c/{number}/0/0").read_bytes()
    n = 4  # two chunks of rows, two layers
    assert len(data) == length
    assert crc32c(data[-20 * n - 4 : -4]) == seal
    assert crc32c(data[-16 * n - 4 : -4]) == int.from_bytes(data[-4:], "little")
    sums = struct.unpack_from(f"<{n}I", data, len(data) - 20 * n - 4)
    index = struct.unpack_from(f"<{2 * n}Q", data, len(data) - 16 * n - 4)
    for crc, offset, size in zip(sums, index[::2], index[1::2], strict=True):
        assert crc == crc32c(data[offset : offset + size - 4])
