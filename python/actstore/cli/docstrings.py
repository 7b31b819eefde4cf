"""The docstrings of Python's standard library: texts that are on every machine, for `actstore demo`.

Sources are parsed, not imported. What is written in C has no source: it is asked for its docstrings, of
modules whose import does nothing else.
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

_LEFT_OUT = frozenset(
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
_MOST_CHARACTERS = 400
"""Of a text: what a docstring is about it says early."""
_IN_C = (
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
    """All of them: unique qualified names, and texts of name, signature and how the docstring begins.

    In an order that is the same each time and in which the first n are a fair sample.

    Examples
    --------
    >>> texts = dict(docstrings())
    >>> texts["textwrap.dedent"].splitlines()[:2]
    ['textwrap.dedent(text)', 'Remove any common leading whitespace from every line in `text`.']
    """
    found: dict[str, str] = {}
    for name, text in (*_from_sources(sysconfig.get_path("stdlib")), *_from_c()):
        if len(text) > _MOST_CHARACTERS:
            text = text[:_MOST_CHARACTERS].rpartition(" ")[0]
        found.setdefault(name, text)
    return tuple(sorted(found.items(), key=lambda item: hashlib.blake2b(item[0].encode()).digest()))


def _from_sources(root: str) -> Iterator[tuple[str, str]]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if _is_public(name) and name not in _LEFT_OUT)
        parts = os.path.relpath(folder, root).split(os.sep)
        package = [] if parts == [os.curdir] else parts
        for file in sorted(files):
            module = file.removesuffix(".py")
            # What is written in C too has its Python under another name, as _pydatetime.
            module = module.removeprefix("_py")
            if not file.endswith(".py") or not (_is_public(module) or module == "__init__"):
                continue
            names = package if module == "__init__" else [*package, module]
            if names:
                yield from _from_source(os.path.join(folder, file), ".".join(names))


def _from_source(path: str, module: str) -> Iterator[tuple[str, str]]:
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return
    if doc := ast.get_docstring(tree):
        yield module, f"{module}\n{doc}"
    yield from _members(tree, module)


def _members(node: Any, name: str) -> Iterator[tuple[str, str]]:
    for child in node.body:
        if isinstance(child, ast.If | ast.Try):
            yield from _members(child, name)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if not _is_public(child.name):
            continue
        full = f"{name}.{child.name}"
        signature = "" if isinstance(child, ast.ClassDef) else f"({ast.unparse(child.args)})"
        if doc := ast.get_docstring(child):
            yield full, f"{full}{signature}\n{doc}"
        if isinstance(child, ast.ClassDef):
            yield from _members(child, full)


def _from_c() -> Iterator[tuple[str, str]]:
    for name in _IN_C:
        module = importlib.import_module(name)
        if doc := inspect.getdoc(module):
            yield name, f"{name}\n{doc}"
        yield from _of_namespace(module, "" if name == "builtins" else f"{name}.")


def _of_namespace(owner: ModuleType | type, prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in sorted(vars(owner).items()):
        doc = getattr(value, "__doc__", None)
        if not _is_public(name) or isinstance(value, ModuleType) or not isinstance(doc, str):
            continue
        described = isinstance(value, type) or inspect.isroutine(value) or inspect.isdatadescriptor(value)
        if not described or inspect.isfunction(value):
            continue
        full = f"{prefix}{name}"
        yield full, f"{full}{_signature(value)}\n{inspect.cleandoc(doc)}"
        if isinstance(value, type) and isinstance(owner, ModuleType):
            yield from _of_namespace(value, f"{full}.")


def _signature(value: Any) -> str:
    if isinstance(value, type) or not callable(value):
        return ""
    try:
        return str(inspect.signature(value))
    except (TypeError, ValueError):  # Written in C, and it does not say.
        return ""


def _is_public(name: str) -> bool:
    return not name.startswith("_")
