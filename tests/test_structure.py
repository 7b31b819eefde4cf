"""The house keeps its floors: each module knows only those below it. The sources are read, not run.

From the ground: error, dtype, selection, process; kernels; format; store; ops; then the binding;
then Python's errors, the store, what is made of stores, and the command line on top.
"""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "rust/actstore-core/src"
BINDING = ROOT / "rust/actstore-py/src"
PACKAGE = ROOT / "python/actstore"

# ---- Rust ----

BELOW = {
    "error": set(),
    "dtype": {"error"},
    "selection": {"error"},
    "process": {"error", "kernels"},
    "kernels": {"error", "dtype"},
    "format": {"error", "dtype", "selection", "kernels"},
    "store": {"error", "dtype", "selection", "process", "kernels", "format", "blocks"},
    # Analyses see blocks of rows, not where these come from.
    "blocks": {"error", "dtype", "selection", "kernels"},
    "ops": {"error", "dtype", "selection", "process", "kernels", "blocks"},
}
"""What each module of the core may use, besides itself."""

UNSAFE = ("actstore-core/src/kernels/", "actstore-core/src/store/mmap.rs", "actstore-py/src/array.rs")
"""Where unsafe code may be; besides, the allocator by which the fuzzer counts has to be."""


def rust_code(path: Path) -> str:
    """A file without its comments and the insides of its strings."""
    text = re.sub(r"//[^\n]*", "", path.read_text())
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r'"(?:\\.|[^"\\])*"', '""', text)


def reexports() -> dict[str, str]:
    """What ``lib.rs`` offers by a shorter name: ``Error`` is of ``error``."""
    out = {}
    for module, names in re.findall(r"pub use (\w+)::(\{[^}]*\}|\w+);", rust_code(CORE / "lib.rs")):
        out |= dict.fromkeys(re.findall(r"\w+", names), module)
    return out


def first_names(text: str) -> list[str]:
    """The modules meant after ``crate::``: one, or several in braces."""
    if not text.startswith("{"):
        return re.findall(r"^\w+", text)
    depth, start, out = 0, 1, []
    for i, mark in enumerate(text):
        depth += (mark == "{") - (mark == "}")
        if depth == 0 or (depth == 1 and mark == ","):
            out.append(text[start:i])
            start = i + 1
        if depth == 0:
            break
    return [name for item in out for name in re.findall(r"^\s*(\w+)", item)]


def rust_uses(path: Path) -> Iterator[tuple[str, str]]:
    """(module, module it uses) for every path in a file of the core, tests included."""
    parts = path.relative_to(CORE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "mod" else parts
    code = rust_code(path)
    known = set(BELOW)
    short = reexports()
    names = [name for match in re.finditer(r"\bcrate::", code) for name in first_names(code[match.end() :])]
    for climb, rest in re.findall(r"\b((?:super::)+)(\w+)", code):
        if climb.count("super") >= len(parts):
            names.append(rest)
    for name in names:
        module = short.get(name, name)
        if module in known:
            yield parts[0], module


def rust_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.rs"))


def test_every_rust_module_has_its_floor() -> None:
    there = {path.relative_to(CORE).with_suffix("").parts[0] for path in rust_files(CORE)}
    assert there - {"lib"} <= set(BELOW), "say in BELOW what the new module may use"


def test_rust_floors() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {module} uses {used}"
        for path in rust_files(CORE)
        if path.name != "lib.rs"
        for module, used in rust_uses(path)
        if used != module and used not in BELOW[module]
    ]
    assert sorted(set(wrong)) == []


def test_the_reader_of_imports_sees_all_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.CORE", tmp_path)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "lib.rs").write_text("pub use error::{Error, Kind};\npub use dtype::Dtype;\n")
    (tmp_path / "kernels/scalar.rs").write_text(
        "use crate::{dtype::{A, B}, Error, store::x};\n// use crate::ops;\n"
        'fn f() { crate::format::g("crate::process"); super::super::selection::h(); super::y() }\n'
    )
    found = {used for _, used in rust_uses(tmp_path / "kernels/scalar.rs")}
    assert found == {"dtype", "error", "store", "format", "selection"}


def test_the_core_does_not_know_python_exists() -> None:
    words = re.compile(r"\b(pyo3|numpy|torch|python)\b", re.IGNORECASE)
    manifest = (ROOT / "rust/actstore-core/Cargo.toml").read_text()
    dependencies = manifest.partition("[dependencies]")[2]
    assert not re.search(r"\b(pyo3|numpy|tch|torch)", dependencies)
    for path in rust_files(CORE):
        assert not words.search(rust_code(path)), path


def test_the_binding_uses_the_core_and_not_its_files() -> None:
    """What a binding needs is a verb of the core; it opens no files itself."""
    for path in rust_files(BINDING):
        assert not re.search(r"\bstd::(fs|net)\b", rust_code(path)), path


def test_unsafe_stays_on_its_islands() -> None:
    for path in rust_files(ROOT / "rust"):
        name = str(path.relative_to(ROOT / "rust"))
        if "/target/" in name or name.startswith(UNSAFE) or name == "fuzz/src/meter.rs":
            continue
        assert not re.search(r"\bunsafe(_code)?\b", rust_code(path)), f"{name} is no place for unsafe code"
    assert 'unsafe_code = "deny"' in (ROOT / "Cargo.toml").read_text()


# ---- Python ----

ABOVE_STORES = ("interchange", "capture", "retrieval", "probe", "metrics")
"""Packages that are made of stores; they do not know one another."""
ALWAYS_THERE = {"numpy", "ml_dtypes"}


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_of(path): path for path in python_files()}


def floor(module: tuple[str, ...]) -> int:
    """How high a module stands."""
    if module == ("errors",):
        return 0
    if module and module[0] in ("cli", "__main__"):
        return 3
    # The package itself is a table of contents of all but the command line.
    return 2 if not module or module[0] in ABOVE_STORES else 1


def package_imports(path: Path, top: bool = False) -> Iterator[tuple[str, ...]]:
    """Modules of the package that a file imports, wherever in it or at its `top`; not for mypy alone."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module[:-1]
    tree = ast.parse(path.read_text())
    for node in tree.body if top else running(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "actstore":
                    yield resolved(tuple(alias.name.split(".")[1:]))
        elif isinstance(node, ast.ImportFrom):
            rest = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                base = package[: len(package) - node.level + 1] + rest
            elif rest[:1] == ("actstore",):
                base = rest[1:]
            else:
                continue
            for alias in node.names:
                yield resolved((*base, alias.name))


def resolved(name: tuple[str, ...]) -> tuple[str, ...]:
    """The module that a dotted name is of: itself, or that which it is a member of."""
    while name and name not in MODULES and name != ("_native",):
        name = name[:-1]
    return name


def running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from running(child)


def test_python_floors() -> None:
    wrong = []
    for module, path in MODULES.items():
        for used in package_imports(path):
            if used == ("_native",):
                continue
            own_package = bool(module) and module[0] == used[:1][0] if used else False
            if used and floor(used) > floor(module):
                wrong.append(f"{path.name}: {'.'.join(used)} is above it")
            elif module and used and floor(used) == floor(module) == 2 and not own_package:
                wrong.append(f"{path.name}: {'.'.join(used)} is beside it")
            elif not used and floor(module) < 3:
                # The command line may ask for the version; anyone else would go in a circle.
                wrong.append(f"{path.name}: imports the package itself")
    assert wrong == []


def test_errors_know_nothing() -> None:
    assert list(package_imports(PACKAGE / "errors.py")) == []


def test_only_the_layers_that_must_know_the_native_core() -> None:
    for module, path in MODULES.items():
        if ("_native",) in set(package_imports(path)):
            assert floor(module) in (1, 2), path


def test_nothing_goes_in_a_circle() -> None:
    uses = {module: {u for u in package_imports(path) if u} - {module} for module, path in MODULES.items()}
    left = {module: used & set(uses) for module, used in uses.items()}
    while done := {module for module, used in left.items() if not used}:
        left = {module: used - done for module, used in left.items() if module not in done}
    assert left == {}


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    """At the top of a file only what is always installed; torch, zarr and the like inside functions.

    Files that are all about torch may import it at their top. Those are imported inside functions themselves.
    """
    import sys

    known = set(sys.stdlib_module_names) | ALWAYS_THERE | {"actstore"}
    light = {module for module in reached(()) | reached(("cli",)) if module}
    for path in python_files():
        of_torch = module_of(path)[0:1] == ("capture",) and module_of(path) not in light
        names: list[str] = []
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
        heavy = {name.split(".")[0] for name in names} - known
        # This one is imported only once zarr is.
        allowed = {"zarr"} if path.name == "zarr_bfloat16.py" else {"torch"} if of_torch else set()
        assert heavy <= allowed, path


def reached(module: tuple[str, ...]) -> set[tuple[str, ...]]:
    """The modules that are imported with one, as imports at the top of files have it."""
    seen: set[tuple[str, ...]] = set()
    todo = [module]
    while todo:
        one = todo.pop()
        if one not in seen and one in MODULES:
            seen.add(one)
            todo += package_imports(MODULES[one], top=True)
    return seen


def test_nothing_is_unpickled_or_evaluated() -> None:
    """What is on disk is JSON and numbers."""
    calls = re.compile(r"(?<!\.)\b(pickle\.loads?|marshal\.loads?|eval|exec|yaml\.load|shelve)\b\(")
    for path in python_files():
        text = path.read_text()
        assert not calls.search(text), path
        assert not re.search(r"allow_pickle=True", text), path


# ---- All ----


def sources() -> list[Path]:
    folders = [ROOT / "rust", PACKAGE, ROOT / "tests", ROOT / "benches"]
    suffixes = ["*.rs", "*.py", "*.pyi"]
    found = itertools.chain.from_iterable(f.rglob(s) for f in folders for s in suffixes)
    return sorted(path for path in found if "target" not in path.parts)


def header(path: Path) -> str:
    """The comment or docstring that a file begins with."""
    text = path.read_text()
    if path.suffix == ".rs":
        return "\n".join(itertools.takewhile(lambda line: line.startswith("//!"), text.splitlines()))
    return ast.get_docstring(ast.parse(text)) or ""


def test_every_file_says_what_it_is() -> None:
    assert [str(path.relative_to(ROOT)) for path in sources() if not header(path).strip()] == []


def test_long_files_have_a_reason() -> None:
    """About 300 lines is a normal file. One of 600 names that number in its header, and why."""
    long = [
        f"{path.relative_to(ROOT)}: {n} lines"
        for path in sources()
        if (n := len(path.read_text().splitlines())) > 600 and "600" not in header(path)
    ]
    assert long == []
