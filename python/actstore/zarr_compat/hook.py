"""Registration of bfloat16 with zarr-python, whichever package is imported first, without importing zarr.

If zarr has been imported, the data type is registered at once. Otherwise a finder at the front of
``sys.meta_path`` waits for ``import zarr``: it delegates to the other finders, registers the data type after
zarr has loaded, and removes itself.
"""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importlib.abc would take longer to import than the rest of this module.
    from importlib.machinery import ModuleSpec


def install() -> None:
    """Register bfloat16 now, or when zarr is imported. Repeated calls have no effect."""
    if "zarr" in sys.modules:
        _register()
    elif not any(isinstance(finder, _ZarrFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ZarrFinder())


def _register() -> None:
    try:
        from .bfloat16 import register
    except ImportError:  # zarr-python 2 has no such data types and cannot read Zarr v3 anyway.
        return
    register()


class _ZarrFinder:
    """A meta path finder for the module zarr alone; it asks the other finders for the module spec."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> "ModuleSpec | None":
        if fullname != "zarr":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                # Wrap the loader rather than load now: a caller may only check whether zarr is installed.
                if spec.loader is not None:
                    spec.loader = _ZarrLoader(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None


class _ZarrLoader:
    """Wraps zarr's loader and registers bfloat16 after it has run."""

    def __init__(self, loader: Any, finder: _ZarrFinder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # Restore the real loader: other code asks a module's loader for its source and resources.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register()
