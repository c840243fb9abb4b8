"""Fixtures for all tests, and the check that none leaves anything running behind."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from shadow import events
from tests.support import Authority, Tunnel, wait_for
from tests.support.log import Said

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
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """What is logged in this process."""
    lines: Said = []
    monkeypatch.setattr(events, "log", lambda event, _level, text: lines.append((type(event), text)))
    return lines


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Relay threads must end with the relay that started them."""
    yield
    wait_for(
        lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("relay-")],
        "the relay's threads to end",
    )
