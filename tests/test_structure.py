"""What holds for the checkout as a whole: arrows between packages, files and their tests, scripts, paths."""

import ast
import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support import CHECKOUT

PACKAGE = CHECKOUT / "shadow"
LAYERS = CHECKOUT / "docs" / "ARCHITECTURE.md"
LINES_MAX = 400  # a longer file holds more than one concern
CLASS_LINES_MAX = 250
IMPORTS_MAX = 12  # of ours: who needs more does not do one thing
DOOR = "cli.process"
EVERYTHING = "all"
MADE = {"build", "dist"}  # folders that are no part of the checkout


@cache
def modules() -> dict[str, Path]:
    """Every module by its name inside the package, such as ``cli.ca``."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def package(module: str) -> str:
    """The package of a module; modules at the top are packages of their own."""
    return module.partition(".")[0]


def arrows() -> dict[str, set[str]]:
    """Which packages each package may import from, as the table in the document has it, in its order."""
    table: dict[str, set[str]] = {}
    for name, allowed in re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", LAYERS.read_text(), re.MULTILINE):
        assert name not in table, f"{name} stands twice in {LAYERS.name}"
        table[name] = set(table) if allowed == EVERYTHING else set(re.findall(r"`(\w+)`", allowed))
    return table


@cache
def imports(name: str) -> set[str]:
    """The modules of the package that one of them imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(parse(modules()[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("shadow.") for alias in node.names if is_ours(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            found |= set(imported_from(node, name))
    return found


def is_ours(name: str) -> bool:
    return name == "shadow" or name.startswith("shadow.")


def imported_from(node: ast.ImportFrom, importer: str) -> Iterator[str]:
    if node.level:
        base = importer.split(".")[: -node.level]
        assert len(importer.split(".")) >= node.level, f"{importer} imports from outside of the package"
    elif is_ours(node.module or ""):
        base = []
    else:
        return
    base += [part for part in (node.module or "").split(".") if part and part != "shadow"]
    for alias in node.names:
        # `from . import tls` names a module, `from .tls import Ktls` something in one.
        candidates = (".".join([*base, alias.name]), ".".join(base))
        module = next((candidate for candidate in candidates if candidate in modules()), None)
        if module is not None:
            yield module
        else:
            assert alias.name == "__version__", f"{importer} imports {alias.name} from the package itself"


def test_imports_follow_the_arrows() -> None:
    table = arrows()
    wrong = [
        f"shadow.{name} imports {other}: that takes an arrow from `{package(name)}` to `{package(other)}`"
        for name in modules()
        for other in sorted(imports(name))
        if package(other) not in {package(name), *table.get(package(name), ())}
    ]
    assert wrong == [], f"not in the table of {LAYERS.name}"


def test_no_arrow_goes_up_and_none_is_for_nothing() -> None:
    """Each package stands below all that it may import, so there are no circles of packages."""
    table = arrows()
    assert set(table) == {package(name) for name in modules()}, f"packages, and those of {LAYERS.name}"
    for position, (name, allowed) in enumerate(table.items()):
        assert allowed <= set(list(table)[:position]), f"`{name}` may import what stands below it"
    used = {(package(name), package(other)) for name in modules() for other in imports(name)}
    needless = [
        (name, other) for name, allowed in table.items() for other in allowed if (name, other) not in used
    ]
    assert [arrow for arrow in needless if arrow[0] != "cli"] == []


def test_there_are_no_circles_of_modules() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' imports '.join([*way[way.index(name) :], name])}"
        if name not in done:
            for other in sorted(imports(name)):
                visit(other, (*way, name))
            done.add(name)

    for name in modules():
        visit(name, ())


def test_every_module_is_in_the_document() -> None:
    table = LAYERS.read_text().partition("\n### Modules\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
    assert sorted(set(modules()) ^ set(listed)) == [], f"the table of modules in {LAYERS.name}"


def test_every_module_has_its_test_file() -> None:
    wanted = {Path(*name.split(".")[:-1], f"test_{name.rpartition('.')[2]}.py") for name in modules()}
    assert sorted(str(path) for path in wanted if not (CHECKOUT / "tests" / path).exists()) == []


def test_a_module_goes_by_one_name() -> None:
    """Or a reader takes ``link`` and ``links`` for two."""
    names: dict[str, set[str]] = {}
    for name in modules():
        for node in ast.walk(parse(modules()[name])):
            if isinstance(node, ast.ImportFrom) and node.level:
                for alias in node.names:
                    for other in imported_from(ast.ImportFrom(node.module, [alias], node.level), name):
                        if other.rpartition(".")[2] == alias.name:
                            names.setdefault(other, set()).add(alias.asname or alias.name)
    assert {name: called for name, called in names.items() if len(called) > 1} == {}


def test_no_module_is_long() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > LINES_MAX} == {}


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """Every class, by its module's name and its own."""
    for name, path in modules().items():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                yield f"{name}.{node.name}", node


def test_no_class_is_long() -> None:
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in classes()}
    assert {name: length for name, length in lengths.items() if length > CLASS_LINES_MAX} == {}


def test_no_module_needs_many_others() -> None:
    assert {name for name in modules() if len(imports(name)) > IMPORTS_MAX} == set()


def test_no_state_is_kept_in_a_class() -> None:
    """Or two of a thing in one process would share it: neither set there, nor made there to be changed."""
    names = {name.rpartition(".")[2] for name, _node in classes()} | {"cls"}
    found = [
        f"{name}:{node.lineno}" for name, path in modules().items() for node in _sets(parse(path), names)
    ]
    found += [f"{name}.{target}" for name, node in classes() for target in _containers(node)]
    assert found == []


def _sets(tree: ast.Module, classes: set[str]) -> Iterator[ast.stmt]:
    """Statements that change an attribute of a class, or a variable of the module from inside a function.

    Unless the class is being made.
    """
    made = [node for node in ast.walk(tree) if getattr(node, "name", "") == "__init_subclass__"]
    making = {id(inner) for node in made for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in making:
            continue
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Global):
            yield node
        for target in targets:
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) in classes:
                assert isinstance(node, ast.stmt)
                yield node


def _containers(node: ast.ClassDef) -> Iterator[str]:
    """Attributes of a class that are made with it and can be changed."""
    for statement in node.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            value, called = statement.value, ""
            if isinstance(value, ast.Call):
                called = ast.unparse(value.func).rpartition(".")[2]
            changeable = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
            if isinstance(value, changeable) or called in {
                "list", "dict", "set", "deque", "Counter", "defaultdict", "OrderedDict", "count",
            }:  # fmt: skip
                yield ast.unparse(statement).partition("=")[0].strip()


def test_one_door_out_of_the_process() -> None:
    leaving = [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        for statement in parse(path).body
        if name != DOOR and not is_main_line(statement)
        for node in ast.walk(statement)
        if isinstance(node, ast.expr)
        and ast.unparse(node) in {"sys.exit", "os._exit", "exit", "quit", "SystemExit"}
    ]
    assert leaving == []


def is_main_line(statement: ast.stmt) -> bool:
    return ast.unparse(statement).startswith("if __name__ == '__main__':\n    raise SystemExit(")


def files() -> Iterator[Path]:
    """The files of the checkout, without what is made in it."""
    for folder, subfolders, names in os.walk(CHECKOUT):
        subfolders[:] = [
            name
            for name in subfolders
            if name == ".ci" or (not name.startswith((".", "__")) and name not in MADE)
        ]
        for name in names:
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():
                yield path


def test_shell_scripts_are_clean() -> None:
    scripts = [path for path in files() if re.match(rb"#! ?/\S*/(env )?(ba|da)?sh\b", path.read_bytes()[:64])]
    assert CHECKOUT / "scripts" / "setup" in scripts
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_can_be_executed() -> None:
    scripts = {path for path in files() if path.read_bytes()[:3] == b"#!/"}
    assert [path for path in scripts if not os.access(path, os.X_OK)] == []


@pytest.mark.parametrize("command", ["shadow-ca", "shadow-client", "shadow-server", "shadowctl"])
def test_the_commands_of_the_checkout_are_one_script(command: str, tmp_path: Path) -> None:
    """They run from anywhere, by a link of somebody's too."""
    assert (CHECKOUT / command).readlink() == Path("scripts/start")
    (tmp_path / command).symlink_to(CHECKOUT / command)
    done = subprocess.run(
        [tmp_path / command, "--version"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.startswith(f"{command} ")


def test_a_copy_of_a_command_runs_the_checkout_that_it_is_in(tmp_path: Path) -> None:
    """Not every file system has links, nor does every archive keep them."""
    (tmp_path / "shadow" / "cli").mkdir(parents=True)
    (tmp_path / "shadow" / "cli" / "ca.py").write_text("print('this one')")
    shutil.copy(CHECKOUT / "shadow-ca", tmp_path / "shadow-ca")
    done = subprocess.run([tmp_path / "shadow-ca"], capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout in {"this one\n", ""}, done.stderr
    assert done.stdout or f"'make setup' in {tmp_path} gets them" in done.stderr


def test_no_paths_of_somebodys_machine() -> None:
    somebodys = re.compile(r"(?<![\w.$}])/(?:home/\w|root/|work/)")
    found = [
        f"{path.relative_to(CHECKOUT)}: {line.strip()}"
        for path in files()
        for line in path.read_text(errors="replace").splitlines()
        if somebodys.search(line) or (len(CHECKOUT.parts) > 2 and str(CHECKOUT) in line)
    ]
    assert found == []


def test_the_steps_at_which_daemons_are_killed_are_there() -> None:
    """By their names in the machine's tests, which run rarely: ``after MODULE CLASS FUNCTION``."""
    sources = "".join(path.read_text() for path in (CHECKOUT / "tests" / "machine").glob("test_*.py"))
    steps = re.findall(r'"(?:before|after) (shadow\.[\w.]+) (\S+) (\w+)"', sources)
    assert len(steps) > 20
    for module, owner, function in steps:
        found = importlib.import_module(module)
        assert callable(getattr(found if owner == "-" else getattr(found, owner), function))
