"""The house keeps its floors: each room knows only those below it. The sources are read, not run.

The floors of the core are below; those of the Python package are read from the map in CONTRIBUTING.md.
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

ALWAYS_THERE = {"numpy", "ml_dtypes"}
OF_TORCH = ("capturing", "loader.torch_dataset")
"""Rooms that may import torch at the top of a file; they are themselves imported inside functions."""


def floors() -> list[set[str]]:
    """The floors of CONTRIBUTING's map, from the top: each line names the rooms of one floor."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    drawn = text.split("```text floors\n")[1].split("```")[0]
    return [set(line[:36].split()) for line in drawn.splitlines() if line[:36].split()]


FLOORS = floors()
ROOMS = {room: height for height, rooms in enumerate(reversed(FLOORS)) for room in rooms}


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_of(path): path for path in python_files()}


def room_of(module: tuple[str, ...]) -> str | None:
    """The room of a module: the longest dotted name in the map that it is in; None for the package itself."""
    for end in range(len(module), 0, -1):
        name = ".".join(module[:end])
        if name in ROOMS:
            return name
    return None


def package_imports(path: Path, top: bool = False) -> Iterator[tuple[str, ...]]:
    """Modules of the package that a file imports: anywhere in it, also for type checkers, or at its `top`."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module[:-1]
    tree = ast.parse(path.read_text())
    for node in tree.body if top else ast.walk(tree):
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
    """The module that a dotted name belongs to."""
    while name and name not in MODULES and name != ("_native",):
        name = name[:-1]
    return name


def test_every_module_has_its_room() -> None:
    lost = [".".join(module) for module in MODULES if module and room_of(module) is None]
    assert lost == [], "give the new room a floor in CONTRIBUTING.md"
    empty = [room for room in ROOMS if not any(room_of(module) == room for module in MODULES)]
    assert empty == [], "CONTRIBUTING.md names rooms that do not exist"


def test_python_floors() -> None:
    """A file imports from its own room and from lower floors."""
    wrong = []
    for module, path in MODULES.items():
        room = room_of(module)
        for used in package_imports(path):
            other = room_of(used)
            if used == ("_native",) or other == room:
                continue
            if not used:
                # The command line may ask for the version; anyone else would go in a circle.
                if not (room or "").startswith("cli"):
                    wrong.append(f"{'.'.join(module)} imports the package itself")
            elif room is not None and other is not None and ROOMS[other] >= ROOMS[room]:
                wrong.append(f"{'.'.join(module)} imports {'.'.join(used)}")
    assert wrong == []


def test_the_code_paths_lead_through_files_that_exist() -> None:
    """Each code path of CONTRIBUTING visits a file once."""
    paths = (ROOT / "CONTRIBUTING.md").read_text().split("## Three code paths")[1].split("\n## ")[0]
    for path in paths.split("\n**")[1:]:
        files = re.findall(r"^\d+\. `([^`]+)`", path, re.MULTILINE)
        assert len(files) >= 10
        assert len(set(files)) == len(files)
        for name in files:
            assert (PACKAGE / name).is_file() or (ROOT / "rust" / name).is_file(), name


def test_errors_know_nothing() -> None:
    assert list(package_imports(PACKAGE / "errors.py")) == []


def test_nothing_goes_in_a_circle() -> None:
    """Neither at run time nor for type checkers."""
    uses = {module: {u for u in package_imports(path) if u} - {module} for module, path in MODULES.items()}
    # A folder's table of contents is imported before whatever is in the folder, and imports it.
    left = {
        module: used & set(uses) for module, used in uses.items() if MODULES[module].name != "__init__.py"
    }
    left = {module: {u for u in used if u in left} for module, used in left.items()}
    while done := {module for module, used in left.items() if not used}:
        left = {module: used - done for module, used in left.items() if module not in done}
    assert left == {}


def owned(tree: ast.AST) -> Iterator[tuple[ast.Attribute, set[str]]]:
    """Each access to an attribute, with the names that the class around it defines."""

    def walk(node: ast.AST, own: set[str]) -> Iterator[tuple[ast.Attribute, set[str]]]:
        if isinstance(node, ast.ClassDef):
            own = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            own |= {
                item.attr
                for item in ast.walk(node)
                if isinstance(item, ast.Attribute)
                and isinstance(item.value, ast.Name)
                and item.value.id in ("self", "cls")
            }
        if isinstance(node, ast.Attribute):
            yield node, own
        for child in ast.iter_child_nodes(node):
            yield from walk(child, own)

    yield from walk(tree, set())


def test_nobody_reaches_for_the_underscore_of_another() -> None:
    """An object has an inside and an outside; a class may look into its own instances."""
    wrong = []
    for path in python_files():
        for node, own in owned(ast.parse(path.read_text())):
            private = node.attr.startswith("_") and not node.attr.endswith("__")
            value = node.value
            mine = isinstance(value, ast.Name) and value.id in ("self", "cls")
            if private and not mine and node.attr not in own and ast.unparse(node) not in FOREIGN:
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []


FOREIGN = {
    "storage._cdata",
    "func._schema",
    "module._non_persistent_buffers_set",
    "tensor._version",
    "BFloat16._zarr_v3_name",
}
"""Private parts of torch and zarr for which these have no public name."""


def test_a_class_name_stands_once() -> None:
    where: dict[str, list[str]] = {}
    for path in python_files():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in where.items() if len(files) > 1} == {}


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    """At the top of a file only what is always installed; torch, zarr and the like inside functions.

    Files of a room about torch may import it at their top, if they are imported inside functions themselves.
    """
    import sys

    known = set(sys.stdlib_module_names) | ALWAYS_THERE | {"actstore"}
    light = reached_by_public_names() | reached(("cli",))
    for path in python_files():
        module = module_of(path)
        of_torch = ".".join(module).startswith(OF_TORCH) and module not in light
        names: list[str] = []
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
        heavy = {name.split(".")[0] for name in names} - known
        # This one is imported only once zarr is.
        allowed = {"zarr"} if module == ("zarr_compat", "bfloat16") else {"torch"} if of_torch else set()
        assert heavy <= allowed, path


def reached_by_public_names() -> set[tuple[str, ...]]:
    """The modules that any public name brings in."""
    import actstore

    modules = {resolved(tuple(name.split("."))) for name in actstore._MODULES.values()}  # type: ignore[attr-defined]
    return set().union(*(reached(module) for module in modules))


def reached(module: tuple[str, ...]) -> set[tuple[str, ...]]:
    """The modules that are imported with one, by imports at the top of files."""
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
