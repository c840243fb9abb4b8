"""The commands that README.md, CONTRIBUTING.md, docs/*.md and man/*.scd show, wherever they stand there.

What is a command:

* In a block between fences: each line behind a prompt, ``$ `` or ``# ``. What follows, such as output or the
  text for an editor, is none.
* In a block without prompts: each line, if the first one begins with a word in lower case or ``./`` and has
  no colon behind it. So settings, pictures, hex dumps and messages are no commands; what looks like a command
  and is none stands behind a fence that says ``text``.
* In running text: between backquotes, or in bold in a manual page, one of ``PROGRAMS`` and at least one
  argument. Titles of tables and the SYNOPSIS of a page are no commands.

A line goes on in the next one behind a backslash or a pipe, within quotes, and from ``for`` to ``done``. A
comment at the end of a line does not count.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAMS = (
    "apt", "apt-get", "cat", "chmod", "curl", "getent", "gpasswd", "install", "journalctl", "make",
    "modprobe", "rm", "scp", "shadow-ca", "shadow-client", "shadow-server", "shadowctl", "ssh", "sudo",
    "systemctl", "systemd-analyze", "systemd-creds", "systemd-tmpfiles", "varlinkctl",
)  # fmt: skip

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- ([^\n]+) -->\n+\Z")
_COMMENT = re.compile(r"\s+#\s.*")
_INLINE = {".md": re.compile(r"`([^`\n]+)`"), ".scd": re.compile(r"(?<![\w\\])\*((?:[^*\\\n]|\\.)+)\*")}


@dataclass(frozen=True)
class Command:
    """A command as a document shows it.

    Attributes:
        text: what a shell reads; may have several lines.
        document: where it stands, from the top of the checkout.
        line: the number of its line there, from 1.
    """

    text: str
    document: str
    line: int

    @property
    def key(self) -> str:
        """The same in one line with single spaces: what it is called."""
        return " ".join(self.text.replace("\\\n", " ").split())


@dataclass(frozen=True)
class Block:
    """Commands that are typed one after the other.

    Attributes:
        mark: what stands before it in Markdown as ``<!-- MARK -->``; else nothing.
        commands: in their order; none if it shows something else.
        written: what an editor is given, or a file: the block's lines that are no commands.
    """

    mark: str
    commands: tuple[Command, ...]
    written: str


def documents() -> list[Path]:
    """All documents, the README first."""
    found = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md"]
    return [*found, *sorted(CHECKOUT.glob("docs/*.md")), *sorted(CHECKOUT.glob("man/*.scd"))]


@cache
def blocks() -> list[Block]:
    """The blocks of all documents."""
    return [block for document in documents() for block in blocks_in(*_read(document))]


@cache
def shown() -> list[Command]:
    """The commands of all documents, in blocks and in running text."""
    found = [command for block in blocks() for command in block.commands]
    return [*found, *(command for document in documents() for command in inline(*_read(document)))]


def block(begin: str) -> Block:
    """The block that has a command which begins like this, or a mark that is this.

    Raises:
        LookupError: there is none; or there are several, and they differ.
    """
    found = every_block(begin)
    if len({tuple(one.key for one in each.commands) for each in found}) != 1:
        raise LookupError(f"{len(found)} blocks with {begin!r} in the documents")
    return found[0]


def every_block(begin: str) -> list[Block]:
    """All such blocks."""
    marked = [each for each in blocks() if each.mark == begin]
    return marked or [each for each in blocks() if any(one.key.startswith(begin) for one in each.commands)]


def typed(begin: str, end: str = "") -> str:
    """The one command that begins and ends like this, as a shell reads it.

    Raises:
        LookupError: there is none, or there are several.
    """
    return command(begin, end).text


def command(begin: str, end: str = "") -> Command:
    """The same with where it stands first."""
    found = {one.key: one for one in reversed(shown()) if one.key.startswith(begin) and one.key.endswith(end)}
    if begin in found:
        return found[begin]
    if len(found) != 1:
        raise LookupError(f"{len(found)} commands {begin!r} in the documents")
    return next(iter(found.values()))


def _read(document: Path) -> tuple[str, str]:
    return str(document.relative_to(CHECKOUT)), document.read_text()


def blocks_in(name: str, text: str) -> Iterator[Block]:
    """The blocks of a document."""
    for found in _FENCE.finditer(text):
        mark = _MARK.search(text, 0, found.start())
        lines = found[2].splitlines()
        if name.endswith(".scd"):
            lines = [line.replace("\\\\", "\\") for line in lines]
        first = text.count("\n", 0, found.start(2)) + 1
        commands, rest = _split(lines, found[1])
        yield Block(
            mark[1] if mark else "",
            tuple(Command(told, name, first + number) for number, told in commands),
            "".join(f"{line}\n" for line in rest),
        )


def _split(lines: list[str], kind: str) -> tuple[list[tuple[int, str]], list[str]]:
    """The commands of a block with the numbers of their lines, and the lines that are none."""
    prompts = any(line.startswith(("$ ", "# ")) for line in lines)
    if kind == "text" or not (prompts or re.match(r"(\./)?[a-z][\w./-]*(?![\w:./-])", lines[0])):
        return [], lines
    commands: list[tuple[int, str]] = []
    rest = []
    goes_on = False
    for number, line in enumerate(lines):
        if goes_on:
            begun, told = commands.pop()
            commands.append((begun, f"{told}\n{line}"))
        elif not prompts or line.startswith(("$ ", "# ")):
            told = line[2:] if prompts else line
            commands.append((number, _COMMENT.sub("", told)))
        else:
            rest.append(line)
            continue
        goes_on = _goes_on(commands[-1][1])
    return [command for command in commands if command[1].strip()], rest


def _goes_on(told: str) -> bool:
    """Whether the next line belongs to a command, too."""
    open_loop = told.startswith("for ") and not told.endswith("done")
    return told.endswith(("\\", "|")) or open_loop or told.count("'") % 2 == 1


def inline(name: str, text: str) -> Iterator[Command]:
    """The commands in the running text of a document."""
    pattern = _INLINE[Path(name).suffix]
    synopsis = False
    for number, line in enumerate(
        _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text).splitlines(), 1
    ):
        if name.endswith(".scd") and line.startswith("# "):
            synopsis = line == "# SYNOPSIS"
        for told in () if synopsis else pattern.findall(line):
            command = re.sub(r"\\(.)", r"\1", told).strip()
            program, *arguments = command.split()
            if program in PROGRAMS and arguments:
                yield Command(command, name, number)
