"""The docstrings of Python's standard library: a corpus that every machine has, for `actstore demo`.

Python sources are parsed, not imported. Modules written in C have no source, so that their docstrings are
read from the imported module; only modules whose import has no side effects are listed.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import os
import sysconfig
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_EXCLUDED_FOLDERS = frozenset(
    {
        "__phello__",
        "dist-packages",
        "distutils",
        "ensurepip",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "msilib",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
_MAX_CHARACTERS = 400
"""Longer docstrings are cut: their first sentences say what they are about."""
_C_MODULES = (
    "builtins",
    "array",
    "binascii",
    "bisect",
    "cmath",
    "collections",
    "datetime",
    "functools",
    "gc",
    "heapq",
    "io",
    "itertools",
    "math",
    "operator",
    "os",
    "random",
    "re",
    "struct",
    "sys",
    "time",
    "unicodedata",
    "zlib",
)


@functools.cache
def docstrings() -> tuple[tuple[str, str], ...]:
    """All docstrings, as pairs of a unique qualified name and a text.

    A text is the name and signature on one line, then the beginning of the docstring. The order is the same
    every time, and pseudo-random, so that the first n are a fair sample.

    Examples
    --------
    >>> texts = dict(docstrings())
    >>> texts["textwrap.dedent"].splitlines()[:2]
    ['textwrap.dedent(text)', 'Remove any common leading whitespace from every line in `text`.']
    """
    texts: dict[str, str] = {}
    for name, text in (*_source_docstrings(sysconfig.get_path("stdlib")), *_c_docstrings()):
        if len(text) > _MAX_CHARACTERS:
            text = text[:_MAX_CHARACTERS].rpartition(" ")[0]
        texts.setdefault(name, text)
    return tuple(sorted(texts.items(), key=lambda item: hashlib.blake2b(item[0].encode()).digest()))


def _source_docstrings(root: str) -> Iterator[tuple[str, str]]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if _is_public(name) and name not in _EXCLUDED_FOLDERS)
        parts = os.path.relpath(folder, root).split(os.sep)
        package = [] if parts == [os.curdir] else parts
        for file in sorted(files):
            module = file.removesuffix(".py")
            # Modules that also exist in C keep their Python source under a name such as _pydatetime.
            module = module.removeprefix("_py")
            if not file.endswith(".py") or not (_is_public(module) or module == "__init__"):
                continue
            names = package if module == "__init__" else [*package, module]
            if names:
                yield from _module_docstrings(os.path.join(folder, file), ".".join(names))


def _module_docstrings(path: str, module: str) -> Iterator[tuple[str, str]]:
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return
    if doc := ast.get_docstring(tree):
        yield module, f"{module}\n{doc}"
    yield from _member_docstrings(tree, module)


def _member_docstrings(node: Any, name: str) -> Iterator[tuple[str, str]]:
    for child in node.body:
        if isinstance(child, ast.If | ast.Try):
            yield from _member_docstrings(child, name)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if not _is_public(child.name):
            continue
        full = f"{name}.{child.name}"
        signature = "" if isinstance(child, ast.ClassDef) else f"({ast.unparse(child.args)})"
        if doc := ast.get_docstring(child):
            yield full, f"{full}{signature}\n{doc}"
        if isinstance(child, ast.ClassDef):
            yield from _member_docstrings(child, full)


def _c_docstrings() -> Iterator[tuple[str, str]]:
    for name in _C_MODULES:
        module = importlib.import_module(name)
        if doc := inspect.getdoc(module):
            yield name, f"{name}\n{doc}"
        yield from _namespace_docstrings(module, "" if name == "builtins" else f"{name}.")


def _namespace_docstrings(owner: ModuleType | type, prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in sorted(vars(owner).items()):
        doc = getattr(value, "__doc__", None)
        if not _is_public(name) or isinstance(value, ModuleType) or not isinstance(doc, str):
            continue
        documented = isinstance(value, type) or inspect.isroutine(value) or inspect.isdatadescriptor(value)
        if not documented or inspect.isfunction(value):
            continue
        full = f"{prefix}{name}"
        yield full, f"{full}{_signature(value)}\n{inspect.cleandoc(doc)}"
        if isinstance(value, type) and isinstance(owner, ModuleType):
            yield from _namespace_docstrings(value, f"{full}.")


def _signature(value: Any) -> str:
    if isinstance(value, type) or not callable(value):
        return ""
    try:
        return str(inspect.signature(value))
    except (TypeError, ValueError):  # Some C functions have no signature.
        return ""


def _is_public(name: str) -> bool:
    return not name.startswith("_")
