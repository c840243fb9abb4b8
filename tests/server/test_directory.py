"""The directory of a server that is alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import LocalError
from shadow.server.directory import Alone


def test_alone_nobody_is_kept_waiting() -> None:
    done: list[str] = []
    candidate: Any = SimpleNamespace(
        name="011", welcome=lambda: done.append("welcome"), refuse=lambda _why: done.append("refuse")
    )
    alone = Alone()
    alone.came(candidate)
    alone.note("011", None)
    assert done == ["welcome"]


def test_alone_a_robot_is_here_or_nowhere() -> None:
    alone = Alone()
    anything: Any = object()
    assert not alone.take_over("011")
    assert not alone.pass_on(anything, anything)
    alone.came_back(anything)
    assert not alone.moves
    with pytest.raises(LocalError, match="not one of a fleet any more"):
        alone.readmit(anything)
