"""One robot's sockets in their folder."""

import asyncio
import socket
from pathlib import Path

import pytest

from shadow.errors import ConfigError, LocalError
from shadow.net.unix import remembered
from shadow.server.descriptors import Descriptors
from shadow.server.sockets import Sockets, check_folder
from tests.support import DEADLINE


def test_services_come_and_go_and_the_rest_stays(tmp_path: Path) -> None:
    async def body() -> None:
        visitors: list[tuple[str, socket.socket]] = []
        sockets = Sockets(
            tmp_path, "011", lambda *visit: visitors.append(visit), Descriptors(lambda _count: 0, 5)
        )
        sockets.open(("", "web"))
        kept = (tmp_path / "011.sock").stat().st_ino
        sockets.open(("", "cam"))
        assert {path.name for path in tmp_path.iterdir()} == {"011.sock", "cam@011.sock"}
        assert (tmp_path / "011.sock").stat().st_ino == kept
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(tmp_path / "cam@011.sock"))
            async with asyncio.timeout(DEADLINE):
                while not visitors:
                    await asyncio.sleep(0.005)
            assert visitors[0][0] == "cam"
            visitors[0][1].close()
        sockets.close()
        assert not list(tmp_path.iterdir())

    asyncio.run(body())


def test_what_was_made_before_a_failure_is_gone_again(tmp_path: Path) -> None:
    async def body() -> None:
        (tmp_path / "web@011.sock").write_text("precious")
        sockets = Sockets(tmp_path, "011", lambda *_visit: None, Descriptors(lambda _count: 0, 5))
        with pytest.raises(LocalError, match="in the way"):
            sockets.open(("", "web"))
        assert [path.name for path in tmp_path.iterdir()] == ["web@011.sock"]

    asyncio.run(body())


def test_check_folder(tmp_path: Path) -> None:
    check_folder(tmp_path)
    with pytest.raises(ConfigError, match="not an existing folder"):
        check_folder(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="not an existing folder"):
        check_folder(tmp_path / "file")


def test_check_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_arguments: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="is not writable for user "):
        check_folder(tmp_path)


def test_parked_sockets_keep_who_comes_until_somebody_goes_on(tmp_path: Path) -> None:
    async def body() -> None:
        visitors: list[str] = []

        def came(service: str, connection: socket.socket) -> None:
            visitors.append(service)
            connection.close()

        before = Sockets(tmp_path, "011", came, Descriptors(lambda _count: 0, 5))
        before.open(("", "web"))
        parked = before.park()
        before.close()
        assert {path.name for path in tmp_path.iterdir()} == {"011.sock", "web@011.sock"}
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(tmp_path / "web@011.sock"))
            for _ in range(3):
                await asyncio.sleep(0)
            assert not visitors
            after = Sockets(tmp_path, "011", came, Descriptors(lambda _count: 0, 5))
            for service, listener in parked:
                after.resume(service, remembered(listener.sock, listener.record))
            async with asyncio.timeout(DEADLINE):
                while not visitors:
                    await asyncio.sleep(0.005)
            assert visitors == ["web"]
        after.close()
        assert not list(tmp_path.iterdir())

    asyncio.run(body())


@pytest.mark.parametrize("what", ["gone", "somebody else's", "of another robot", "open to all"])
def test_a_parked_socket_that_is_good_for_nothing_is_closed(tmp_path: Path, what: str) -> None:
    async def body() -> None:
        def sockets(robot: str) -> Sockets:
            return Sockets(tmp_path, robot, lambda *_visit: None, Descriptors(lambda _count: 0, 5))

        before, after = sockets("011"), sockets("012" if what == "of another robot" else "011")
        before.open(("",))
        ((service, listener),) = before.park()
        if what in {"gone", "somebody else's"}:
            listener.path.unlink()
        if what == "open to all":
            listener.path.chmod(0o666)
        if what == "somebody else's":
            listener.path.write_text("precious")
        after.resume(service, listener)
        assert listener.sock.fileno() == -1
        after.close()
        left = [path.read_text() for path in tmp_path.iterdir()]
        assert left == (["precious"] if what == "somebody else's" else [])

    asyncio.run(body())
