"""An engine for the tests of the fleet: one for all that do not harm it, each under names of its own."""

import itertools
from collections.abc import Iterator

import pytest

from shadow.fleet.keys import Keys
from tests.support.engine import Members

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    """Three members. Who stops or kills one starts it again."""
    with Members(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture
def keys() -> Keys:
    """A fleet of the test's own."""
    return Keys(f"fleet-{next(_numbers)}")
