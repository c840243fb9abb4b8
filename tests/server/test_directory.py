"""The directory of a server that is alone."""

from types import SimpleNamespace
from typing import Any

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
