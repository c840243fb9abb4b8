"""Which journal fields each event is logged with, read from the calls that log it in the source."""

import ast
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from shadow.events import Event
from shadow.server.visitor import Visitor
from tests.support import CHECKOUT

PACKAGE = CHECKOUT / "shadow"
_PASS_ON = {"events", "systemd.journal", "client.sparing"}  # what others have to say
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Call:
    """One call of ``events.log``: where it stands, which events it may log, and their fields."""

    module: str
    events: frozenset[Event]
    fields: frozenset[str]


def calls() -> list[Call]:
    """All calls in the package."""
    return [call for path in _modules() for call in _calls_in(_name(path), ast.parse(path.read_text()))]


def always() -> dict[Event, frozenset[str]]:
    """For each event the fields that it has wherever it is logged; none if it is logged nowhere."""
    made = calls()
    found: dict[Event, frozenset[str]] = {}
    for event in Event:
        sets = [call.fields for call in made if event in call.events]
        found[event] = frozenset.intersection(*sets) if sets else frozenset()
    return found


def mentioned() -> set[Event]:
    """Every event that the package mentions outside of ``events`` and ``journal``."""
    return {event for path in _modules() for event in _events(ast.parse(path.read_text()))}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if _name(path) not in _PASS_ON]


def _calls_in(module: str, tree: ast.Module) -> list[Call]:
    found: dict[int, Call] = {}
    # Outer functions come before inner ones: a call belongs to the innermost.
    for function in ast.walk(tree):
        if isinstance(function, _Function):
            for node in ast.walk(function):
                if _logs(node):
                    events = _events_of(node, function, tree)
                    assert events, f"{module}:{node.lineno}: which event?"
                    found[node.lineno] = Call(module, frozenset(events), _fields(node))
    return list(found.values())


def _logs(node: ast.AST) -> TypeGuard[ast.Call]:
    """``events.log(…)``, or that of a ``Sparing``, such as ``self._log.log(…)``."""
    if not isinstance(node, ast.Call):
        return False
    function = ast.unparse(node.func)
    return function == "events.log" or function.endswith("_log.log")


def _events_of(call: ast.Call, function: _Function, tree: ast.Module) -> set[Event]:
    """The events that the first argument of a call may stand for."""
    kind = call.args[0]
    if not isinstance(kind, ast.Name):
        return _events(kind)
    # A variable: what is assigned in the function, its default, and what callers pass.
    named = {id(node.args[0]) for node in ast.walk(function) if _logs(node)}
    events = {event for node in ast.walk(function) if id(node) not in named for event in _event(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == function.name:
            events |= {event for argument in node.args for event in _events(argument)}
            events |= {event for keyword in node.keywords for event in _events(keyword.value)}
    return events


def _events(tree: ast.AST) -> set[Event]:
    return {event for node in ast.walk(tree) for event in _event(node)}


def _event(node: ast.AST) -> list[Event]:
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Event":
        return [Event[node.attr]]
    return []


def _fields(call: ast.Call) -> frozenset[str]:
    fields: set[str] = set()
    for keyword in call.keywords:
        if keyword.arg is not None:
            fields.add(keyword.arg.upper())
        else:
            unparsed = ast.unparse(keyword.value)
            assert unparsed in {"visitor.facts", "facts"}, f"unknown: {ast.unparse(keyword)}"
            if unparsed == "visitor.facts":  # the others may or may not be there
                fields |= _visitor_fields()
    return frozenset(fields)


def _visitor_fields() -> set[str]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return {name.upper() for name in Visitor(ours, "", "1", 0, 1, 0.0).facts}
