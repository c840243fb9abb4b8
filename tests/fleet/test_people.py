"""The names of visitors' users: looked up where nobody waits for it."""

import asyncio
import os
import pwd
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.fleet import people
from shadow.fleet.people import People


def test_a_name_is_found_and_known_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def look_up(uid: int) -> Any:
        asked.append(uid)
        return SimpleNamespace(pw_name=f"user{uid}")

    async def body() -> None:
        found = People()
        real = pwd.getpwuid(os.getuid()).pw_name
        assert await found.name_of(os.getuid()) == real
        monkeypatch.setattr(pwd, "getpwuid", look_up)
        assert await found.name_of(os.getuid()) == real, "known"
        assert await asyncio.gather(*(found.name_of(7) for _ in range(9))) == ["user7"] * 9
        assert asked == [7], "many who want the same ask once"
        found.close()

    asyncio.run(body())


def test_who_has_no_name_has_none() -> None:
    async def body() -> None:
        found = People()
        assert await found.name_of(2**31 - 7) == ""
        found.close()

    asyncio.run(body())


def test_a_name_may_be_any_bytes_and_goes_over_the_wire_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: SimpleNamespace(pw_name="andr\udce9"))

    async def body() -> None:
        found = People()
        assert await found.name_of(7) == "andr?"
        found.close()

    asyncio.run(body())


def test_a_directory_that_hangs_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def look_up(uid: int) -> Any:
        go_on.wait()
        return SimpleNamespace(pw_name=f"user{uid}")

    async def body() -> None:
        found = People()
        monkeypatch.setattr(pwd, "getpwuid", look_up)
        monkeypatch.setattr(people, "_PATIENCE", 0.05)
        assert await found.name_of(7) == ""
        go_on.set()
        monkeypatch.setattr(people, "_PATIENCE", 30.0)
        assert await found.name_of(7) == "user7", "for the next one"
        found.close()

    asyncio.run(body())
