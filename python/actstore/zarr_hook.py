"""Registers bfloat16 with zarr-python whichever of the two is imported first, without importing it.

If zarr is there, now; else a finder at the head of ``sys.meta_path`` waits for ``import zarr``,
lets the other finders find it, registers once it is loaded, and goes away.
"""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importlib.abc takes longer to import than all the rest here.
    from importlib.machinery import ModuleSpec


def install() -> None:
    """Register now or when zarr is imported; calling it again changes nothing."""
    if "zarr" in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    try:
        from .zarr_bfloat16 import register
    except ImportError:  # A zarr without such data types (version 2), which cannot read v3 at all.
        return
    register()


class _Finder:
    """Finds nothing but zarr, and that through the others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> "ModuleSpec | None":
        if fullname != "zarr":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                # Whoever only asks for the spec, to see whether zarr is installed, loads nothing.
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """The real loader, and registration once it is done."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps no trace of this detour: others ask its loader for sources and resources.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register()
