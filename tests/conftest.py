"""Fixtures for all tests, and the check that none leaves anything running behind."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from shadow import events
from shadow.events import Event
from tests.support import Authority, Tunnel, wait_for

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def own(tmp_path: Path) -> Authority:
    """A CA that is the test's alone: it may revoke, and give robot 011 other certificates."""
    return Authority(tmp_path / "own")


@pytest.fixture
def tunnel(authority: Authority, tmp_path: Path) -> Iterator[Tunnel]:
    with Tunnel(authority, tmp_path) as made:
        yield made


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Event, str]]:
    """What is logged in this process."""
    lines: list[tuple[Event, str]] = []
    monkeypatch.setattr(events, "log", lambda event, _level, text, **_facts: lines.append((event, text)))
    return lines


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Relay threads must end with the relay that started them."""
    yield
    wait_for(
        lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("relay-")],
        "the relay's threads to end",
    )
