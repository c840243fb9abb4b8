"""What is told of robots fits the interface that says so."""

import re

import pytest
from varlink.scanner import Interface

from tests.support import CHECKOUT, Tunnel, echo, serving
from tests.support.call import INTERFACE, Call

TEXT = (CHECKOUT / "shadow" / f"{INTERFACE}.varlink").read_text()


def fields(name: str) -> set[str]:
    """Of a type of the interface."""
    found = re.search(rf"^type {name} \((.*?)^\)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return set(re.findall(r"^  (\w+):", found[1], re.MULTILINE))


def test_the_interface_is_well_formed() -> None:
    assert Interface(TEXT).name == INTERFACE


@pytest.mark.parametrize("kind", ["Robot", "Stream"])
def test_every_field_is_told(tunnel: Tunnel, kind: str) -> None:
    """The library leaves out of a list what the interface does not know, but not out of a single reply."""
    with serving(echo) as service:
        tunnel.start_server_with_api()
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        with tunnel.visit() as visitor, Call(tunnel.ldir / INTERFACE) as call:
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"
            told = call.get("Describe", {"name": "011"})
            facts = told["robot"] if kind == "Robot" else told["streams"][0]
            known = fields(kind) - {"server", "user", "at", "idThere"}  # not in a fleet
            assert set(facts) == known
            listed = (
                call.get("List")["robots"][0] if kind == "Robot" else call.get("ListStreams")["streams"][0]
            )
            assert set(listed) == known
