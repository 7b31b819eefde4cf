"""Whiteners go along when a store is exported and imported."""

import importlib
import json
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore.artifacts import whiteners
from actstore.errors import FormatError
from actstore.ops import norms

safetensors_numpy = pytest.importorskip("safetensors.numpy")


def stored(store: actstore.Store, name: str) -> Any:
    """The norms that a store keeps beside a whitener."""
    parts = store.snapshot.parts
    told = whiteners.read(parts[0], name).attributes
    if told["site"] is None:
        return None
    return whiteners.stored_norms(store[told["site"]].backend, told["digest"], len(told["layers"]))


@pytest.mark.parametrize("parts", [1, 2])
def test_whiteners_come_along(memory_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    spec = actstore.SiteSpec(3, 6, "bfloat16", labels=[2, 5, 7])
    for i in range(parts):
        path = memory_path / "x" / (f"{i}" if parts > 1 else "")
        with actstore.create(path, {"r": spec}, part=(i, parts) if parts > 1 else None) as w:
            ids = [f"{i}.{example}" for example in range(9)]
            w.append({"r": rng.normal(size=(90, 3, 6)) * 3 + 1}, [10] * 9, ids, cast=True)
    path = memory_path / "x"
    site = actstore.open(path)["r"]
    pooled = site.pool("mean", out="docs")
    actstore.Whitener(n_components=3, eps=0.1, shrinkage="oas").fit(site.select(layers=[5, 2])).save(
        path, "white", "r"
    )
    actstore.Whitener(kind="zca").fit(site).save(path, "docs.white", "docs")
    actstore.Whitener(n_components=1).fit(pooled).save(path, "free")
    monkeypatch.setattr(importlib.import_module("actstore.interchange.export"), "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr("actstore.artifacts.whiteners._RUN_ROWS", 17)
    store = actstore.open(path)
    actstore.export(store, memory_path / "e")
    computed = norms.compute_norms
    monkeypatch.setattr("actstore.ops.norms.compute_norms", None)
    monkeypatch.setattr("actstore.ops.whiten.compute_norms", None)  # They are copied.
    for source in ("x", "e"):
        actstore.import_(memory_path / source, memory_path / "y", overwrite=source == "e")
        again = actstore.open(memory_path / "y")
        assert list(again.whiteners) == list(store.whiteners) == ["docs.white", "free", "white"]
        assert again.info()["whiteners"] == store.info()["whiteners"]
        for name, whitener in store.whiteners.items():
            assert again.whiteners[name].digest == whitener.digest
            assert np.array_equal(stored(again, name), stored(store, name))
        assert again.verify(strict=True).ok
        actstore.import_(memory_path / source, memory_path / "z", sites=["r"], overwrite=source == "e")
        some = actstore.open(memory_path / "z")
        assert np.array_equal(stored(some, "white"), stored(store, "white"))
        assert stored(some, "docs.white") is None
        assert some.whiteners["docs.white"].kind == "zca"
    with pytest.raises(TypeError):  # Here they would have to be computed.
        actstore.import_(memory_path / "x", memory_path / "w", dtype="float16")
    assert not (memory_path / "w").exists()
    monkeypatch.setattr("actstore.ops.norms.compute_norms", computed)
    monkeypatch.setattr("actstore.ops.whiten.compute_norms", computed)
    for source in ("x", "e"):
        seen: list[tuple[int, int]] = []
        actstore.import_(
            memory_path / source,
            memory_path / "w",
            dtype="float16",
            overwrite=source == "e",
            progress=lambda *now, seen=seen: seen.append(now),  # type: ignore[misc]
        )
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1]
        cast = actstore.open(memory_path / "w")
        wanted = norms.compute_norms(cast["r"].select(layers=[5, 2]), cast.whiteners["white"].mapping)
        assert np.array_equal(stored(cast, "white"), wanted)
    actstore.import_(memory_path / "x", memory_path / "v", labels=[0, 1, 2], sites=["r"])
    assert len(actstore.open(memory_path / "v").whiteners) == 0


def test_what_cannot_be_read_is_left_out(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 1, 4)).astype(np.float32)
    with actstore.create(memory_path / "x", {"r": actstore.SiteSpec(1, 4, "float32")}) as w:
        w.append({"r": rows}, [9])
    actstore.Whitener().fit(rows).save(memory_path / "x", "white", "r")
    monkeypatch.setattr(whiteners, "VERSION", 2)
    actstore.Whitener().fit(rows).save(memory_path / "x", "later", "r")
    monkeypatch.undo()
    with pytest.warns(actstore.ActstoreWarning, match="left out: .*whitener 'later' has version 2"):
        actstore.export(memory_path / "x", memory_path / "e")
    actstore.import_(memory_path / "e", memory_path / "y")
    with pytest.warns(actstore.ActstoreWarning, match="left out: .*whitener 'later' has version 2"):
        actstore.import_(memory_path / "x", memory_path / "z")
    for name in "yz":
        assert list(actstore.open(memory_path / name).whiteners) == ["white"]
    status, _, err = run("export", memory_path / "x", memory_path / "e", "--overwrite")
    assert (status, err.count("warning: left out: ")) == (0, 1)


def test_labels_and_dtypes_that_are_no_others(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 2, 4)).astype(np.float32)
    with actstore.create(memory_path / "x", {"r": actstore.SiteSpec(2, 4, "float32", labels=[3, 5])}) as w:
        w.append({"r": rows}, [9])
    actstore.Whitener().fit(actstore.open(memory_path / "x")["r"]).save(memory_path / "x", "white", "r")
    monkeypatch.setattr("actstore.ops.norms.compute_norms", None)
    monkeypatch.setattr("actstore.ops.whiten.compute_norms", None)
    actstore.import_(memory_path / "x", memory_path / "y", labels=[3, 5], dtype="float32")
    store = actstore.open(memory_path / "y")
    assert np.array_equal(stored(store, "white"), stored(actstore.open(memory_path / "x"), "white"))


def test_a_foreign_group_may_hold_something_of_the_name(memory_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(memory_path / "z", mode="w")
    group.create_array("r", data=np.ones((5, 2, 4), np.float32), chunks=(5, 1, 4))
    group.create_array("artifacts/white/mean", data=np.ones(4))
    assert actstore.update(memory_path / "z") == []
    actstore.import_(memory_path / "z", memory_path / "y")
    assert actstore.open(memory_path / "y")["r"].shape == (5, 2, 4)


def test_examples_cut_anew_leave_norms_of_derived_sites_out(memory_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 1, 4)).astype(np.float32)
    with actstore.create(memory_path / "x", {"r": actstore.SiteSpec(1, 4, "float32")}) as w:
        w.append({"r": rows}, [9])
    actstore.open(memory_path / "x")["r"].pool("mean", out="docs")
    for name, site in (("white", "r"), ("docs", "docs")):
        actstore.Whitener().fit(rows).save(memory_path / "x", name, site)
    actstore.import_(memory_path / "x", memory_path / "y", lengths=[4, 5])
    store = actstore.open(memory_path / "y")
    assert store.sites == ["r"]
    assert list(store.whiteners) == ["docs", "white"]
    assert stored(store, "docs") is None
    assert np.array_equal(stored(store, "white"), stored(actstore.open(memory_path / "x"), "white"))


WRONG = [
    "told",
    "version",
    "shape",
    "norm",
    "negative",
    "file",
    "digest",
    "no digest",
    "twice",
    "layers",
    "variance",
    "name",
]


@pytest.mark.parametrize("what", WRONG)
def test_exported_whiteners_that_are_damaged(memory_path: Path, what: str) -> None:
    with actstore.create(memory_path / "x", {"r": actstore.SiteSpec(1, 4, "float32")}) as w:
        w.append({"r": np.random.default_rng(0).normal(size=(9, 1, 4)).astype(np.float32)}, [9])
    actstore.Whitener().fit(actstore.open(memory_path / "x")["r"]).save(memory_path / "x", "white", "r")
    actstore.export(memory_path / "x", memory_path / "e")
    manifest = json.loads((memory_path / "e/actstore.json").read_text())
    told = manifest["whiteners"]["white"]
    tensors = safetensors_numpy.load_file(memory_path / "e/whiteners.safetensors")
    if what == "told":
        told["transform"] = "ica"
    elif what == "version":
        told["version"] = 2
    elif what == "digest":
        told["digest"] = "0" * 32
    elif what == "no digest":
        del told["digest"]
    elif what == "twice":
        told["layers"], told["rank"] = [0, 0], [4, 4]
    elif what == "layers":
        told["layers"] = [8]
    elif what == "variance":
        tensors["white/variance"] *= 2
    elif what == "name":
        manifest["whiteners"] = {"a/b": told}
        tensors = {name.replace("white/", "a/b/"): tensor for name, tensor in tensors.items()}
    elif what == "negative":
        tensors["white/norm"][3] = -1
    elif what == "shape":
        tensors["white/components"] = tensors["white/components"][:, :3]
    elif what == "norm":
        tensors["white/norm"] = tensors["white/norm"][:8]
    (memory_path / "e/actstore.json").write_text(json.dumps(manifest))
    safetensors_numpy.save_file(tensors, memory_path / "e/whiteners.safetensors")
    if what == "file":
        (memory_path / "e/whiteners.safetensors").write_bytes(b"")
    with pytest.raises(FormatError):
        actstore.import_(memory_path / "e", memory_path / "y")
    assert not (memory_path / "y").exists()
