"""What holds for the checkout as a whole: layers, files and their tests, scripts, paths."""

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import CHECKOUT

PACKAGE = CHECKOUT / "shadow"
LAYERS = CHECKOUT / "docs" / "ARCHITECTURE.md"
LINES_MAX = 400  # a longer file holds more than one concern
DOOR = "cli.door"
MADE = {"build", "dist"}  # folders that are no part of the checkout


def modules() -> dict[str, Path]:
    """Every module by its name inside the package, such as ``cli.ca``."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def floors() -> dict[str, int]:
    """The table of the layers, as the document has it."""
    table: dict[str, int] = {}
    for number, names in re.findall(
        r"^\| (\d+) \| ((?:`[\w.]+`(?:, )?)+) \|", LAYERS.read_text(), re.MULTILINE
    ):
        for name in re.findall("`([^`]+)`", names):
            assert name not in table, f"{name} stands twice in {LAYERS.name}"
            table[name] = int(number)
    return table


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


def test_every_module_has_its_floor() -> None:
    table = floors()
    lowest: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in lowest:
            lowest[name] = max((floor(other) + 1 for other in imports(name)), default=0)
        return lowest[name]

    wanted = "\n".join(
        f"{floor(name)} {name}" for name in sorted(modules(), key=lambda name: (floor(name), name))
    )
    hint = f"the lowest floors possible:\n{wanted}"
    assert sorted(set(modules()) - set(table)) == [], f"not in the table of {LAYERS.name}; {hint}"
    assert sorted(set(table) - set(modules())) == [], f"only in the table of {LAYERS.name}"


def test_imports_only_go_down() -> None:
    table = floors()
    wrong = [
        f"{name} (floor {table[name]}) imports {other} (floor {table[other]})"
        for name in modules()
        for other in imports(name)
        if name in table and other in table and table[other] >= table[name]
    ]
    rows = "\n".join(
        f"{number} {name}" for name, number in sorted(table.items(), key=lambda row: (row[1], row[0]))
    )
    assert wrong == [], f"the table:\n{rows}"


def test_every_module_has_its_test_file() -> None:
    wanted = {f"test_{name.replace('.', '_')}.py" for name in modules()}
    assert sorted(wanted - {path.name for path in (CHECKOUT / "tests").iterdir()}) == []


def test_no_module_is_long() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > LINES_MAX} == {}


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


def test_no_paths_of_somebodys_machine() -> None:
    somebodys = re.compile(r"(?<![\w.$}])/(?:home/\w|root/|work/)")
    found = [
        f"{path.relative_to(CHECKOUT)}: {line.strip()}"
        for path in files()
        for line in path.read_text(errors="replace").splitlines()
        if somebodys.search(line) or (len(CHECKOUT.parts) > 2 and str(CHECKOUT) in line)
    ]
    assert found == []
