"""Every command of the documents is typed by a test, or there is a reason why not.

Which test types which command stands in ``commands.txt`` beside this file: headings at the left edge, and
under each of them its commands, indented, one a line. A heading is a test, ``FILE::NAME``; or ``not typed:
REASON``, with one of ``REASONS``. It does not matter in which document a command stands, nor how often: who
moves one changes nothing here, and who rewords it changes its line. What a command is,
``support/commands.py`` says.

The file cannot lie. A test must exist, and what it is made of (its own lines, and whatever it uses of its
file and of those beside it) must have the command as text, or take it from the documents by ``block`` or
``typed`` of ``support/commands.py``. A test that types it in another way has its way behind `` => ``.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support import commands
from tests.test_documents import LINKS, PAGES

LEDGER = Path(__file__).with_name("commands.txt")
NOT_TYPED = "not typed: "
REASONS = {
    "a name, or a part of a command": "the sentence speaks of it, and a whole line is elsewhere",
    "a variant of one that is typed": "the same for another unit, release or way",
    "what the tests themselves are run by": "who reads this has just typed it",
    "measures for minutes": "tests/test_bench.py runs what is behind it",
    "needs hardware": "a chip that no test has",
    "needs the internet": "a package archive; the image's tests bring what it installs",
    "sets up another program": "a test starts it by itself, with the settings that the document shows",
    "somebody else's tool": "it shows what is not ours, and changes nothing",
}


@cache
def ledger() -> dict[str, list[tuple[str, str]]]:
    """Under each heading its commands, each with what to look for in the test's source if it is not that."""
    found: dict[str, list[tuple[str, str]]] = {}
    entries: list[tuple[str, str]] = []
    for line in LEDGER.read_text().splitlines():
        if not line.startswith(" "):
            if line:
                entries = found.setdefault(line, [])
            continue
        command, _, instead = line.strip().partition(" => ")
        entries.append((command, instead))
    return found


def test_every_command_is_in_the_list() -> None:
    known = {command for entries in ledger().values() for command, _ in entries}
    missing = {one.key: f"{one.document}:{one.line}: {one.key}" for one in commands.shown()}
    assert [where for key, where in missing.items() if key not in known] == [], (
        f"no test types these: write one, or give a reason, in {LEDGER.name}"
    )


def test_everything_in_the_list_is_in_the_documents() -> None:
    keys = {command.key for command in commands.shown()}
    gone = [one for entries in ledger().values() for one, _ in entries if one not in keys]
    assert gone == [], f"no document shows these any more: take them out of {LEDGER.name}"


def test_reasons_are_those_there_are() -> None:
    given = {heading.removeprefix(NOT_TYPED) for heading in ledger() if heading.startswith(NOT_TYPED)}
    assert given == set(REASONS)


def test_nothing_is_typed_and_not_typed() -> None:
    groups = [
        {one for one, _ in entries} for heading, entries in ledger().items() if heading.startswith(NOT_TYPED)
    ]
    typed = {one for heading, entries in ledger().items() if "::" in heading for one, _ in entries}
    assert [typed & group for group in groups if typed & group] == []


def test_pages_that_one_is_told_to_read_exist() -> None:
    text = "\n".join(document.read_text() for document in commands.documents())
    told = re.findall(r"`man ([^`]+)`", text)
    assert len(told) > 4
    assert set(told) - {page.rpartition(".")[0] for page in (*PAGES, *LINKS)} == set()


@pytest.mark.parametrize("heading", [heading for heading in ledger() if not heading.startswith(NOT_TYPED)])
def test_who_is_said_to_type_it_does(heading: str) -> None:
    source, taken = what_it_types(heading)
    lies = [
        one for one, instead in ledger()[heading] if (instead not in source if instead else one not in taken)
    ]
    assert lies == [], f"{heading} does not type these"


def what_it_types(heading: str) -> tuple[str, set[str]]:
    """The source that a test is made of, and the commands that it takes from the documents or has as text."""
    name, _, test = heading.partition("::")
    parts = made_of(commands.CHECKOUT / name, test)
    assert parts, f"there is no {heading}"
    trees = [ast.parse(part) for part in parts]
    taken = {key for tree in trees for key in (*taken_by(tree), *written_in(tree))}
    return "\n".join(parts), taken


def made_of(path: Path, name: str) -> list[str]:
    """The source of a definition at the top of a file, and of all it uses: fixtures, and files beside it."""
    found: dict[tuple[Path, str], str] = {}
    wanted = [(path, name)]
    while wanted:
        one = wanted.pop()
        if one not in found and one[1] in definitions(one[0]):
            found[one] = definitions(one[0])[one[1]]
            wanted += used_by(ast.parse(found[one]), one[0])
    return list(found.values())


@cache
def definitions(path: Path) -> dict[str, str]:
    """The source of what is defined at the top of a file."""
    found: dict[str, str] = {}
    text = path.read_text()
    for one in ast.parse(text).body:
        source = ast.get_source_segment(text, one) or ""
        if isinstance(one, ast.FunctionDef | ast.ClassDef):
            found[one.name] = source
        elif isinstance(one, ast.Assign):
            found.update({target.id: source for target in one.targets if isinstance(target, ast.Name)})
    return found


def used_by(tree: ast.AST, path: Path) -> Iterator[tuple[Path, str]]:
    """The names that a piece of source uses, each with the file where it may be defined."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield path, node.id
        elif isinstance(node, ast.arg):
            yield path, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            beside = path.with_name(f"{node.value.id}.py")
            if beside.exists():
                yield beside, node.attr


def taken_by(tree: ast.AST) -> Iterator[str]:
    """The commands that a piece of source takes from the documents, by words that stand in it."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        constants = [node.value for node in call.args if isinstance(node, ast.Constant)]
        words = [word for word in constants if isinstance(word, str)]
        if function in {"block", "every_block", "by_document"} and words:
            for block in commands.every_block(words[0]):
                yield from (command.key for command in block.commands)
        elif function in {"typed", "by"} and words:
            yield commands.command(*words[:2]).key


def written_in(tree: ast.AST) -> Iterator[str]:
    """The commands that stand in the strings of a piece of source, whole ones only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
            yield from (part.strip() for part in re.split(r"[;\n]|&&", node.value))
