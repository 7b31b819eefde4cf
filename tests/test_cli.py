"""The command line: streams, exit statuses, and no tracebacks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from builders import files_on_disk
from children import LIMIT

COMMANDS = ("info", "verify", "compact", "export", "import")
ACTS = np.arange(6 * 2 * 4, dtype=np.float32).reshape(6, 2, 4)


def make(path: Path, **keywords: Any) -> Path:
    """Write a store in several small commits, which leave holes."""
    spec = actstore.SiteSpec(2, 4, "float32", labels=[3, 12], chunk_rows=4, shard_rows=8)
    with actstore.create(path, {"resid": spec}, identity={"model": "toy"}, **keywords) as writer:
        for i in range(3):
            rows = {"resid": ACTS[2 * i : 2 * i + 2]}
            writer.append(
                rows, [2, 0], [f"é{i}", f"empty{i}"], token_columns=[1, 2], columns={"label": ["x", "y"]}
            )
            writer.commit()
    return path


@pytest.fixture
def store(memory_path: Path) -> Path:
    return make(memory_path / "run.act")


@pytest.fixture
def damaged(store: Path) -> Path:
    """A store with one byte flipped in the first chunk of layer 12, the second layer."""
    actstore.compact(store)
    shard = store / "resid/c/0/0/0"
    raw = bytearray(shard.read_bytes())
    index = np.frombuffer(raw[-(4 * 16 + 4) : -4], "<u8").reshape(2, 2, 2)
    raw[int(index[0, 1, 0]) + int(index[0, 1, 1]) // 2] ^= 1
    shard.write_bytes(raw)
    return store


Run = tuple[int, str, str]


def process(*args: str | Path, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", "actstore", *map(os.fspath, args)],
        **{"capture_output": True, "text": True, "timeout": LIMIT, "check": False, **keywords},
    )
    assert "Traceback" not in f"{done.stdout}{done.stderr}"
    return done


def json_of(result: Run, status: int = 0) -> dict[str, Any]:
    """The JSON object on stdout, which must be a single line; stderr must be empty."""
    code, out, err = result
    assert (code, err) == (status, "")
    assert out.count("\n") == 1
    parsed = json.loads(out)
    assert isinstance(parsed, dict)
    return parsed


# ---- Results ----


def test_info(store: Path, run: Any) -> None:
    output = json_of(run("info", store, "--json"))
    with actstore.open(store) as opened:
        assert output == opened.info()
    assert (output["path"], output["n_examples"], output["n_tokens"]) == (str(store), 6, 6)
    assert output["sites"]["resid"]["shape"] == [6, 2, 4]
    assert output["sites"]["resid"]["layers"] == [3, 12]
    assert output["hole_bytes"] > 0
    status, out, err = run("info", store)
    assert (status, err) == (0, "")
    for word in (
        str(store),
        "6 examples, 6 tokens",
        "resid",
        "float32 [6, 2, 4]",
        "3, 12",
        "label: str",
        "toy",
    ):
        assert word in out


def test_info_suggests_compact(memory_path: Path, run: Any) -> None:
    rng = np.random.default_rng(0)
    path = memory_path / "x.act"
    with actstore.create(path, {"resid": actstore.SiteSpec(1, 256, "float32")}) as writer:
        for _ in range(8):  # Each commit rewrites the chunk of all earlier rows.
            writer.append({"resid": rng.normal(size=(8, 1, 256)).astype(np.float32)}, [8])
            writer.commit()
    hint = f"hint: actstore compact {path}\n"
    assert hint in run("info", path)[1]
    assert run("compact", path)[0] == 0
    assert hint not in run("info", path)[1]


def test_info_of_parts_and_of_foreign_groups(memory_path: Path, run: Any) -> None:
    for index in range(2):
        make(memory_path / f"parts/{index}", part=(index, 2))
    output = json_of(run("info", memory_path / "parts", "--json"))
    assert [part["index"] for part in output["parts"]] == [0, 1]
    assert output["n_examples"] == 12
    assert f"1: {memory_path / 'parts/1'}" in run("info", memory_path / "parts")[1]
    group = pytest.importorskip("zarr").create_group(memory_path / "g.zarr")
    group.create_array("resid", data=ACTS)
    assert json_of(run("info", memory_path / "g.zarr", "--json"))["format"] is None
    assert "foreign" in run("info", memory_path / "g.zarr")[1]


def test_verify(store: Path, run: Any) -> None:
    output = json_of(run("verify", store, "--json"))
    assert output["ok"] is True
    assert output["damaged"] == output["leftovers"] == []
    assert output["chunks"] > 0
    status, out, err = run("verify", store, "--threads", "1")
    assert (status, err) == (0, "")
    assert out.endswith(": ok\n")


def test_verify_strict_lists_leftovers(store: Path, run: Any) -> None:
    (store / "resid/c/9").mkdir()
    (store / "resid/c/9/left").write_text("")
    assert json_of(run("verify", store, "--json"))["leftovers"] == []
    output = json_of(run("verify", store, "--strict", "--json"))
    assert output["ok"] is True
    assert [Path(path).relative_to(store).parts[:3] for path in output["leftovers"]] == [("resid", "c", "9")]
    assert f"leftover: {output['leftovers'][0]}" in run("verify", store, "--strict")[1]


def test_verify_names_the_damaged_chunk(damaged: Path, run: Any) -> None:
    output = json_of(run("verify", damaged, "--json"), status=1)
    assert output["ok"] is False
    (damage,) = output["damaged"]
    message = damage.pop("message")
    assert damage == {
        "part": str(damaged),
        "array": "resid",
        "shard": 0,
        "chunk": [0, 1, 0],
        "kind": "checksum",
    }
    assert "crc32c" in message
    status, out, err = run("verify", damaged)
    assert (status, err) == (1, "")
    assert f"damaged: resid of {damaged}, shard 0, chunk [0, 1, 0]: {message}" in out
    assert out.endswith(": 1 damaged\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_metadata(store: Path, run: Any, command: str) -> None:
    """`verify` reports the damage as a result; the other commands fail."""
    (store / "resid/zarr.json").write_text("{")
    args = [store, store.with_name("new")] if command in ("export", "import") else [store]
    status, out, err = run(command, *args, "--json")
    assert status == 1
    if command == "verify":
        assert json.loads(out)["ok"] is False
        assert json.loads(out)["damaged"][0]["kind"] == "metadata"
        assert err == ""
    else:
        assert out == ""
        assert err.startswith("error: ")
        assert str(store) in err
    assert not store.with_name("new").exists()


@pytest.mark.parametrize("command", ["export", "import"])
def test_damaged_rows_leave_no_output(damaged: Path, run: Any, command: str) -> None:
    status, out, err = run(command, damaged, damaged.with_name("new"), "--json")
    assert (status, out) == (1, "")
    for word in ("error: ", "'resid'", str(damaged), "shard 0", "chunk [0, 1, 0]"):
        assert word in err
    assert [path.name for path in damaged.parent.iterdir()] == ["run.act"]


def test_compact(store: Path, run: Any) -> None:
    holes = json_of(run("info", store, "--json"))["hole_bytes"]
    (done,) = json_of(run("compact", store, "--json"))["parts"]
    assert done["path"] == str(store)
    assert done["bytes_before"] - done["bytes_after"] >= holes > 0
    assert json_of(run("info", store, "--json"))["hole_bytes"] == 0
    np.testing.assert_array_equal(actstore.open(store)["resid"].read(), ACTS)
    status, out, err = run("compact", store)
    assert (status, err) == (0, "")
    assert out.startswith(f"{store}: ")
    with actstore.append(store):
        status, out, err = run("compact", store)
        assert (status, out) == (1, "")
        assert str(store) in err


def test_export_and_import(store: Path, memory_path: Path, run: Any) -> None:
    output = json_of(run("export", store, memory_path / "e", "--json"))
    assert output["path"] == str(memory_path / "e")
    assert output["files"] == sorted(os.listdir(memory_path / "e"))
    assert output["bytes"] == sum(path.stat().st_size for path in (memory_path / "e").iterdir())
    output = json_of(run("import", memory_path / "e", memory_path / "again", "--codec", "raw", "--json"))
    with actstore.open(store) as one, actstore.open(memory_path / "again") as other:
        assert output == other.info()
        assert output["sites"]["resid"]["codec"] == "raw"
        np.testing.assert_array_equal(one["resid"].read(), other["resid"].read())
        assert one.examples["id"].tolist() == other.examples["id"].tolist()
        assert other["resid"].layers == [3, 12]
    assert run("export", memory_path / "again", memory_path / "f") == (
        0,
        f"{memory_path / 'f'}: 4 files, {folder_size(memory_path / 'f')}\n",
        "",
    )
    status, out, err = run("import", memory_path / "e", memory_path / "more")
    assert (status, out, err) == (0, f"{memory_path / 'more'}: 6 examples, 6 tokens\n", "")


def folder_size(folder: Path) -> str:
    from actstore.base.text import human_bytes

    return human_bytes(sum(path.stat().st_size for path in folder.iterdir()))


def test_every_option_of_import(memory_path: Path, run: Any) -> None:
    np.save(memory_path / "x.npy", ACTS)
    np.save(memory_path / "lengths.npy", [2, 0, 4])
    np.save(memory_path / "offsets.npy", [0, 6, 6])
    (memory_path / "ids.txt").write_text("a\nß\nc d\n", encoding="utf-8")
    to = memory_path / "x.act"
    more = ["--site", "mlp", "--labels", "5,0", "--dtype", "bfloat16", "--codec", "raw", "--threads", "1"]
    ids = ["--ids", memory_path / "ids.txt"]
    output = json_of(
        run(
            "import",
            memory_path / "x.npy",
            to,
            "--lengths",
            memory_path / "lengths.npy",
            *ids,
            *more,
            "--json",
        )
    )
    assert output["sites"]["mlp"]["dtype"] == "bfloat16"
    with actstore.open(to) as store:
        assert store["mlp"].layers == [5, 0]
        assert store.examples["id"].tolist() == ["a", "ß", "c d"]
        assert store.tokens.offsets.tolist() == [0, 2, 2, 6]
    source = ("import", memory_path / "x.npy", to, "--offsets", memory_path / "offsets.npy")
    status, out, err = run(*source)
    assert (status, out) == (1, "")
    assert f"error: {to} exists" in err
    assert "hint: " in err
    assert "--overwrite" in err
    assert run(*source, "--overwrite")[0] == 0
    with actstore.open(to) as store:
        assert store.tokens.offsets.tolist() == [0, 6, 6]
    assert run("import", to, memory_path / "y.act", "--only", "resid")[0] == 0
    assert run("export", to, memory_path / "e", "--only", "resid", "--threads", "1")[0] == 0
    assert run("export", to, memory_path / "e")[0] == 1
    assert run("export", to, memory_path / "e", "--overwrite")[0] == 0


# ---- Help and usage ----


@pytest.mark.parametrize("args", [["--help"], *([command, "-h"] for command in COMMANDS), ["--version"]])
def test_help(run: Any, args: Sequence[str]) -> None:
    status, out, err = run(*args)
    assert (status, err) == (0, "")
    if args == ["--version"]:
        assert out == f"actstore {actstore.__version__}\n"
    elif args == ["--help"]:
        assert all(f"\n    {command} " in out for command in COMMANDS)
    else:
        assert out.startswith(f"usage: actstore {args[0]} ")
        assert "--json" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["info"], "store"),
        (["info", "a", "b"], "b"),
        (["info", "a", "--fast"], "--fast"),
        (["verify", "a", "--threads", "-1"], "-1"),
        (["verify", "a", "--threads", "many"], "many"),
        (["verify", "a", "--threads", "1.5"], "1.5"),
        (["verify", "a", "--threads"], "--threads"),
        (["export", "a"], "output"),
        (["import", "a"], "store"),
        (["import", "a", "b", "--dtype", "int8"], "int8"),
        (["import", "a", "b", "--codec", "zip"], "zip"),
        (["import", "a", "b", "--labels", "1,two"], "1,two"),
        (["import", "a", "b", "--labels", ""], "--labels"),
        (["import", "a", "b", "--offsets", "x.npy", "--lengths", "y.npy"], "--lengths"),
    ],
)
def test_wrong_usage(run: Any, args: Sequence[str], words: str) -> None:
    status, out, err = run(*args)
    assert (status, out) == (2, "")
    assert err.startswith("usage: actstore")
    assert words in err.splitlines()[-1]


# ---- Missing and invalid inputs ----


@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_paths(memory_path: Path, run: Any, command: str, as_json: list[str]) -> None:
    (memory_path / "file").write_text("text")
    (memory_path / "empty").mkdir()
    before = files_on_disk(memory_path)
    more = [memory_path / "new"] if command in ("export", "import") else []
    for name in ("missing", "file", "file/under", "empty", "x" * 300, "a\nb"):
        status, out, err = run(command, memory_path / name, *more, *as_json)
        assert (status, out) == (1, ""), name
        assert err.startswith("error: ")
        assert str(memory_path / name) in err
    assert run(command, "", *more, *as_json)[0] == 1
    assert files_on_disk(memory_path) == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["export", "run.act", "no/such/folder"], "no/such"),
        (["export", "run.act", "run.act", "--overwrite"], "is not an export"),
        (["export", "run.act", "new", "--only", "mlp"], "'mlp'"),
        (["import", "x.npy", "no/such/folder"], "no/such"),
        (["import", "x.npy", "new", "--offsets", "missing.npy"], "missing.npy"),
        (["import", "x.npy", "new", "--offsets", "ids.txt"], "ids.txt"),
        (["import", "x.npy", "new", "--lengths", "."], "."),
        (["import", "x.npy", "new", "--lengths", "x.npy"], "lengths"),
        (["import", "x.npy", "new", "--ids", "missing.txt"], "missing.txt"),
        (["import", "x.npy", "new", "--ids", "latin.txt"], "UTF-8"),
        (["import", "x.npy", "new", "--ids", "."], "."),
        (["import", "x.npy", "new", "--ids", "ids.txt"], "ids"),
        (["import", "x.npy", "new", "--labels", "1"], "labels"),
        (["import", "x.npy", "new", "--labels", "1,1"], "labels"),
        (["import", "x.npy", "new", "--labels", f"1,{10**30}"], "labels"),
        (["import", "x.npy", "new", "--site", "a/b"], "'a/b'"),
        (["import", "run.act", "new", "--only", "mlp"], "'mlp'"),
        (["import", "run.act", "run.act"], "exists"),
        (["import", "ids.txt", "new"], "ids.txt"),
    ],
)
def test_wrong_input(
    store: Path, monkeypatch: pytest.MonkeyPatch, run: Any, args: Sequence[str], words: str
) -> None:
    monkeypatch.chdir(store.parent)
    np.save("x.npy", ACTS)
    Path("ids.txt").write_text("one\ntwo\n")
    Path("latin.txt").write_bytes("é".encode("latin-1"))
    before = {name: Path(name).read_bytes() for name in files_on_disk(store.parent)}
    status, out, err = run(*args)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in err
    assert {name: Path(name).read_bytes() for name in files_on_disk(store.parent)} == before


# ---- In a separate process ----


def test_results_on_stdout_alone(store: Path, damaged: Path) -> None:
    good = process("info", store, "--json")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["n_examples"] == 6
    bad = process("verify", damaged, "--json")
    assert (bad.returncode, bad.stderr) == (1, "")
    assert json.loads(bad.stdout)["damaged"][0]["chunk"] == [0, 1, 0]
    missing = process("info", store.with_name("run.ac"))
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.splitlines()[0] == f"error: {store.with_name('run.ac')} does not exist"
    assert missing.stderr.splitlines()[1] == f"hint: there is {store}"
    assert process("info").returncode == 2


def test_progress_on_a_terminal(store: Path) -> None:
    """Progress goes to stderr and is erased at the end."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    try:
        done = process(
            "verify", store, "--json", capture_output=False, stdout=subprocess.PIPE, stderr=follower
        )
        os.close(follower)
        shown = b""
        try:
            while block := os.read(leader, 4096):
                shown += block
        except OSError:  # Linux raises EIO when the other end is closed.
            pass
    finally:
        os.close(leader)
    assert done.returncode == 0
    assert json.loads(done.stdout)["ok"] is True
    assert b"verify [####" in shown
    assert shown.split(b"\r")[-2].strip() == b""


@pytest.mark.parametrize("args", [["info"], ["info", "--json"], ["verify"]])
def test_broken_pipe(store: Path, args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = process(*args, store, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def closed(redirection: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command with one of its streams closed by the shell."""
    script = f'exec "$@" {redirection}'
    whole = ["sh", "-c", script, "sh", sys.executable, "-m", "actstore", *map(os.fspath, args)]
    return subprocess.run(whole, capture_output=True, text=True, timeout=LIMIT, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_closed_stdout(store: Path) -> None:
    done = closed(">&-", "verify", store)
    assert (done.returncode, done.stderr) == (0, "")
    done = closed(">&-", "info", store.with_name("missing"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_closed_stderr(store: Path) -> None:
    """Errors must not be written to stdout instead."""
    for args in (["info"], ["verify"], ["compact"]):
        assert closed("2>&-", *args, store).returncode == 0, args
    done = closed("2>&-", "info", store.with_name("missing"))
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_stdout_on_a_full_disk(store: Path) -> None:
    with open("/dev/full", "w") as full:
        done = process("info", store, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have Unicode paths")
def test_a_path_that_is_not_utf8(store: Path) -> None:
    path = os.fsencode(store.parent) + b"/invalid\xff.act"
    shutil.copytree(store, os.fsdecode(path))
    for args in (["info"], ["verify"], ["compact"], ["info", "--json"]):
        done = process(*args, os.fsdecode(path), text=False)
        assert b"Traceback" not in done.stderr
        assert done.returncode in (0, 1)
        assert done.returncode == 0 or done.stderr.startswith(b"error: ")


def test_a_terminal_without_unicode(store: Path) -> None:
    shutil.copytree(store, store.with_name("é.act"))
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = process("info", store.with_name("é.act"), env=environment)
    assert done.returncode == 0
    assert ".act" in done.stdout
    done = process("info", store.with_name("é.act"), "--json", env=environment)
    assert json.loads(done.stdout)["path"] == str(store.with_name("é.act"))
