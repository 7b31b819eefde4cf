"""Whiteners go along when a store is exported and imported."""

import json
import sys
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore import whiteners
from actstore.errors import FormatError

safetensors_numpy = pytest.importorskip("safetensors.numpy")


def stored(store: actstore.Store, name: str) -> Any:
    """The norms that a store keeps beside a whitener."""
    parts = store._snapshot.parts
    told = whiteners.read(parts[0], name).told
    if told["site"] is None:
        return None
    return whiteners.stored_norms(store[told["site"]]._origin, told["digest"], len(told["layers"]))


@pytest.mark.parametrize("parts", [1, 2])
def test_whiteners_come_along(memory_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    spec = actstore.SiteSpec(3, 6, "bfloat16", labels=[2, 5, 7])
    for i in range(parts):
        path = memory_path / "x" / (f"{i}" if parts > 1 else "")
        with actstore.create(path, {"r": spec}, part=(i, parts) if parts > 1 else None) as w:
            ids = [f"{i}.{example}" for example in range(3)]
            w.append({"r": rng.normal(size=(90, 3, 6)) * 3 + 1}, [30] * 3, ids, cast=True)
    path = memory_path / "x"
    site = actstore.open(path)["r"]
    pooled = site.pool("mean", out="docs")
    actstore.Whitener.fit(site.select(layers=[5, 2]), dim=3, eps=0.1, shrinkage="oas").save(
        path, "white", "r"
    )
    actstore.Whitener.fit(site, kind="zca").save(path, "docs.white", "docs")
    actstore.Whitener.fit(pooled, dim=1).save(path, "free")
    monkeypatch.setattr(sys.modules["actstore.interchange.export"], "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr("actstore.whiteners._RUN_ROWS", 17)
    store = actstore.open(path)
    actstore.export(store, memory_path / "e")
    computed = actstore.Whitener.compute_norms
    monkeypatch.setattr(actstore.Whitener, "compute_norms", None)  # They are copied.
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
    monkeypatch.setattr(actstore.Whitener, "compute_norms", computed)
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
        wanted = cast.whiteners["white"].compute_norms(cast["r"].select(layers=[5, 2]))
        assert np.array_equal(stored(cast, "white"), wanted)
    actstore.import_(memory_path / "x", memory_path / "v", labels=[0, 1, 2], sites=["r"])
    assert len(actstore.open(memory_path / "v").whiteners) == 0


@pytest.mark.parametrize("what", ["told", "version", "shape", "norm", "file"])
def test_exported_whiteners_that_are_damaged(memory_path: Path, what: str) -> None:
    with actstore.create(memory_path / "x", {"r": actstore.SiteSpec(1, 4, "float32")}) as w:
        w.append({"r": np.random.default_rng(0).normal(size=(9, 1, 4)).astype(np.float32)}, [9])
    actstore.Whitener.fit(actstore.open(memory_path / "x")["r"]).save(memory_path / "x", "white", "r")
    actstore.export(memory_path / "x", memory_path / "e")
    manifest = json.loads((memory_path / "e/actstore.json").read_text())
    tensors = safetensors_numpy.load_file(memory_path / "e/whiteners.safetensors")
    if what == "told":
        manifest["whiteners"]["white"]["kind"] = "ica"
    elif what == "version":
        manifest["whiteners"]["white"]["version"] = 2
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
