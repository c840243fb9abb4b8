"""Which journal fields each module logs, read from where it makes its events."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shadow import events
from shadow.events import Event
from tests.support import CHECKOUT

PACKAGE = CHECKOUT / "shadow"
KINDS = Event.__subclasses__()


@dataclass(frozen=True)
class Call:
    """One place where an event is made: which kinds it may be of, and the fields it is given."""

    module: str
    kinds: frozenset[type[Event]]
    fields: frozenset[str]


def always(kind: type[Event]) -> set[str]:
    """The fields that every event of a kind has: who makes one has to name them."""
    return {name.upper() for name in kind.NEEDED}


def calls() -> list[Call]:
    """All in the package."""
    paths = (path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "events.py")
    return [call for path in paths for call in _calls(_name(path), ast.parse(path.read_text()))]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _calls(module: str, tree: ast.Module) -> Iterator[Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (kinds := _kind(node.func)):
            yield _call(module, node, kinds)
        elif isinstance(node, ast.FunctionDef) and (kinds := mentioned(node)):
            for inner in ast.walk(node):  # ``kind(…)``: one of those that the function mentions
                if isinstance(inner, ast.Call) and ast.unparse(inner.func) == "kind":
                    yield _call(module, inner, kinds)


def _call(module: str, node: ast.Call, kinds: set[type[Event]]) -> Call:
    given = frozenset(keyword.arg.upper() for keyword in node.keywords if keyword.arg)
    assert len(given) == len(node.keywords), f"{module}:{node.lineno}: name the fields"
    return Call(module, frozenset(kinds), given)


def mentioned(tree: ast.AST) -> set[type[Event]]:
    """Every kind of event that some code mentions."""
    return {kind for node in ast.walk(tree) for kind in _kind(node)}


def _kind(node: ast.AST) -> set[type[Event]]:
    if not (isinstance(node, ast.Attribute) and ast.unparse(node.value) == "events"):
        return set()
    found = getattr(events, node.attr, None)
    return {found} if isinstance(found, type) and found in KINDS else set()
