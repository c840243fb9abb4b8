"""An engine for the tests of the fleet: one for all that do not harm it, each under names of its own."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadow.fleet.keys import Keys
from tests.support import Authority, echo, serving, wait_for
from tests.support.engine import Members
from tests.support.looking import listed, state
from tests.support.sites import Fleet

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever starts real servers, which meet in a real engine, takes some seconds."""
    for item in items:
        if "fleet" in getattr(item, "fixturenames", ()) and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    """Three members. Who stops or kills one starts it again."""
    with Members(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture
def keys() -> Keys:
    """A fleet of the test's own."""
    return Keys(f"fleet-{next(_numbers)}")


@pytest.fixture
def fleet(authority: Authority, members: Members, tmp_path: Path, keys: Keys) -> Iterator[Fleet]:
    made = Fleet(authority, members, tmp_path, keys.prefix.decode().split("/")[2])
    with contextlib.ExitStack() as stack:
        for site in made.sites:
            stack.enter_context(site.tunnel)
        yield made


@pytest.fixture
def both(fleet: Fleet) -> Fleet:
    """The same, and its servers run."""
    for site in fleet.sites:
        site.start()
    for site in fleet.sites:
        site.follow()
    return fleet


@pytest.fixture
def asked(fleet: Fleet) -> Fleet:
    """Two servers that can be asked."""
    for site in fleet.sites:
        site.start_with_api()
    for site in fleet.sites:
        for other in fleet.sites:
            wait_for(lambda: state(site, other.name) == "live", "all servers to know each other")  # noqa: B023
    return fleet


@pytest.fixture
def robot(asked: Fleet) -> Iterator[None]:
    """A real one at the first server; the second has heard of it."""
    with serving(echo) as service:
        asked.sites[0].tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        wait_for(lambda: listed(asked.sites[1]), "the second server to know the robot")
        yield
