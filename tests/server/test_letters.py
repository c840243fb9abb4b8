"""The letters that robots are left in: word for word those that daemons of other versions write and read."""

import asyncio
import base64
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from shadow.server.visitor import OwnDoor, Visitor
from shadow.systemd.bundle import Letter
from shadow.systemd.mailbox import Mailbox
from shadow.wire.frames import Dial, Start
from tests.support import Authority, mutations, tcp_pair
from tests.support.frame_end import FrameEnd

from .test_handover import SUITE, Scene, play

SESSION = """
{"version": 1, "session": "an id", "services": ["", "web"], "interval": 30.0, "peer": "198.51.100.7:1234",
"since": 1.5, "software": "shadow-client 1.0", "boot": "b007", "attempt": 3, "moves": false,
"suite": "$SUITE", "chain": ["$CHAIN"], "role": "control", "state": "open",
"terms": {"certificate": "c0ffee", "keepalive": 30.0}, "kind": "session", "robot": "011"}
"""
SOCKET = '{"version": 1, "service": "$SERVICE", "identity": $IDENTITY, "kind": "socket", "robot": "011"}'
STANDBY = """
{"version": 1, "suite": "$SUITE", "role": "data", "state": "standby", "kind": "standby", "robot": "011"}
"""
VISITOR = """
{"version": 1, "service": "web", "stream": "2a", "uid": 1000, "pid": 77, "since": 2.5, "tries": 1,
"kind": "visitor", "robot": "011"}
"""
START = """
{"version": 1, "suite": "$SUITE", "chain": ["$CHAIN"], "role": "data", "state": "starting", "visitor":
{"service": "", "stream": "2b", "uid": 1000, "pid": 78, "since": 3.5, "tries": 1},
"kind": "start", "robot": "011"}
"""


def filled(template: str, scene: Scene, **values: str) -> str:
    chain = base64.b64encode(scene._certificate.public_bytes(Encoding.DER)).decode()
    text = template.strip().replace("\n", " ")
    for name, value in {"CHAIN": chain, "SUITE": SUITE, **values}.items():
        text = text.replace(f"${name}", value)
    return text


def identity(path: Path) -> str:
    return f"[{path.stat().st_dev}, {path.stat().st_ino}]"


def test_what_is_written(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters: list[str] = []

    def put(_mailbox: Mailbox, letter: Letter) -> None:
        letters.append(json.dumps({"version": 1, **letter.facts}))

    async def body(scene: Scene) -> None:
        await scene.begin("", "web")
        robot = scene.before.robot
        starting = await scene.stand_by()
        scene.visit()
        assert isinstance(await starting.hear(), Start)
        await scene.stand_by()
        session = robot.session
        assert session is not None
        session.id, session.since, session.software = "an id", 1.5, "shadow-client 1.0"
        session.boot, session.attempt = "b007", 3
        (first,) = robot.visitors.starting
        first.stream, first.uid, first.pid, first.since = "2b", 1000, 78, 3.5
        # One that waits though a channel stands by: there is none such, but letters know no better.
        waiting: Any = Visitor(OwnDoor(socket.socket(socket.AF_UNIX)), "web", "2a", 1000, 77, 2.5)
        waiting.tries = 1
        session.board.visitors.append(waiting)
        sockets = [
            filled(SOCKET, scene, SERVICE=service, IDENTITY=identity(tmp_path / name))
            for service, name in (("", "011.sock"), ("web", "web@011.sock"))
        ]
        monkeypatch.setattr(Mailbox, "put", put)
        assert scene.before.leave(scene.store)
        assert letters == [
            filled(SESSION, scene), *sockets, filled(STANDBY, scene), filled(VISITOR, scene),
            filled(START, scene),
        ]  # fmt: skip

    play(authority, tmp_path, body)


def test_what_is_read(authority: Authority, tmp_path: Path) -> None:
    """In the order in which they are written: session, sockets, standbys, who waits, who is being started."""

    async def body(scene: Scene) -> None:
        listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        mask = os.umask(0o117)
        for listener, name in zip(listeners, ("011.sock", "web@011.sock"), strict=True):
            listener.bind(str(tmp_path / name))
            listener.listen()
        os.umask(mask)
        control, standby, channel = tcp_pair(), tcp_pair(), tcp_pair()
        waiting, starting = socket.socketpair(), socket.socketpair()
        texts = [
            (filled(SESSION, scene), [control[0]]),
            (filled(SOCKET, scene, SERVICE="", IDENTITY=identity(tmp_path / "011.sock")), [listeners[0]]),
            (
                filled(SOCKET, scene, SERVICE="web", IDENTITY=identity(tmp_path / "web@011.sock")),
                [listeners[1]],
            ),
            (filled(VISITOR, scene), [waiting[0]]),
            (filled(STANDBY, scene), [standby[0]]),
            (filled(START, scene), [channel[0], starting[0]]),
        ]
        for number, (text, sockets) in enumerate(texts):
            descriptors = [sock.fileno() for sock in sockets]
            with mutations.parcel_of(text.encode(), descriptors, range(len(descriptors))) as box:
                scene.store.add(f"p{number}", box.fileno())
            for sock in sockets:
                sock.close()
        inodes = [path.stat().st_ino for path in sorted(tmp_path.iterdir())]
        assert scene.after.take_up(scene.store) == 1
        robot = scene.after.robot
        session = robot.session
        assert session is not None
        assert session.record == {
            name: json.loads(filled(SESSION, scene))[name] for name in session.record
        } | {"services": ("", "web")}
        assert [path.stat().st_ino for path in sorted(tmp_path.iterdir())] == inodes, "those that were left"
        far = FrameEnd(control[1]), FrameEnd(standby[1])
        for end in far:
            end.sock.setblocking(False)
        assert await far[0].hear() == Dial(1)  # for the visitor, which came before the standby
        assert await far[1].hear() == Start("web", "2a")
        started = {
            (visitor.stream, visitor.uid, visitor.pid, visitor.tries) for visitor in robot.visitors.starting
        }
        assert started == {("2a", 1000, 77, 2), ("2b", 1000, 78, 1)}
        assert robot._registry.numbers.take() == "2c"
        for sock in (control[1], standby[1], channel[1], waiting[1], starting[1]):
            sock.close()
        await asyncio.sleep(0)

    play(authority, tmp_path, body)
