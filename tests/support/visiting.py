"""Visitors who come and go all the time, robots that say who they are, and what became of each visit."""

import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support import Service

_NUMBERS = 128  # of eight bytes, in a block
_LONGEST = 90.0  # seconds that a visitor waits for anything: far longer than a server has them wait


@dataclass
class Visit:
    """What somebody has seen who opened a robot's socket.

    Attributes:
        server: where.
        robot: which.
        begin: when, by the monotonic clock; ``end``, too.
        boot: who answered: how many times the robot had been started; 0: nobody.
        blocks: how many blocks came back.
        how: ``done``, or how it ended before the visitor wanted it to; ``wrong`` what must never be.
    """

    server: str
    robot: str
    begin: float
    end: float = 0.0
    boot: int = 0
    blocks: int = 0
    how: str = ""
    wrong: str = ""


def introduces(name: str, boot: int) -> Callable[[socket.socket], None]:
    """A service that says whose it is, and then sends everything back."""

    def talk(connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.sendall(f"{name} {boot}\n".encode())
        while data := connection.recv(65536):
            connection.sendall(data)

    return talk


def serve(name: str, boot: int) -> Service:
    return Service(introduces(name, boot))


def visit(server: str, path: Path, robot: str, goes_on: Callable[[Visit], bool]) -> Visit:
    """Open a socket and exchange numbered bytes for as long as ``goes_on`` says."""
    made = Visit(server, robot, time.monotonic())
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_LONGEST)
            sock.connect(str(path))
            _talk(sock, made, goes_on)
    except TimeoutError:
        made.wrong = f"nothing for {_LONGEST:g} s"
    except OSError as error:
        made.how = f"{type(error).__name__}"
    made.end = time.monotonic()
    return made


def _talk(sock: socket.socket, made: Visit, goes_on: Callable[[Visit], bool]) -> None:
    said = b""
    while not said.endswith(b"\n"):
        part = sock.recv(1)
        if not part:
            made.how = "turned away"
            return
        said += part
    name, boot = said.decode().split()
    made.boot = int(boot)
    if name != made.robot:
        made.wrong = f"robot {name} answered"
    number = 0
    while goes_on(made):
        block = struct.pack(f">{_NUMBERS}Q", *range(number, number + _NUMBERS))
        sock.sendall(block)
        back = _read(sock, len(block))
        if not block.startswith(back):
            made.wrong = f"other bytes came back after {made.blocks} blocks"
        if len(back) < len(block):
            made.how = "cut"
            return
        number += _NUMBERS
        made.blocks += 1
        time.sleep(0.02)
    sock.shutdown(socket.SHUT_WR)
    if _read(sock, 1):
        made.wrong = "more came back than was sent"
    made.how = made.how or "done"


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            break
        data += part
    return data


class Visitors:
    """At one server: one who stays for as long as it can, and one who comes and goes. A context manager.

    Attributes:
        visits: those that are over.
        stays: those of the one who stays; with each, where the robot was, as far as its server knew.
    """

    def __init__(
        self, server: str, folder: Path, robots: list[str], seed: str, home: Callable[[str], str]
    ) -> None:
        self.server = server
        self.visits: list[Visit] = []
        self.stays: list[tuple[Visit, str]] = []
        self._folder, self._robots, self._home = folder, robots, home
        self._over = threading.Event()
        works = (self._come_and_go, "goes"), (self._stay, "stays")
        self._threads = [
            threading.Thread(target=work, args=[random.Random(f"{seed} {server} {how}")], daemon=True)  # noqa: S311
            for work, how in works
        ]

    def __enter__(self) -> "Visitors":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * _LONGEST)
            assert not thread.is_alive()

    def _visit(self, robot: str, goes_on: Callable[[Visit], bool]) -> Visit:
        return visit(self.server, self._folder / f"{robot}.sock", robot, goes_on)

    def _come_and_go(self, chance: random.Random) -> None:
        while not self._over.is_set():
            blocks = chance.randrange(1, 20)
            robot = chance.choice(self._robots)
            self.visits.append(self._visit(robot, lambda made: made.blocks < blocks))  # noqa: B023
            self._over.wait(chance.uniform(0.1, 0.5))

    def _stay(self, chance: random.Random) -> None:
        while not self._over.is_set():
            robot = chance.choice(self._robots)
            homes = [self._home(robot)]
            made = self._visit(robot, lambda made: self._stays(made, homes))  # noqa: B023
            if len(set(homes)) == 1 < len(homes) and homes[0]:
                self.stays.append((made, homes[0]))
            self.visits.append(made)
            self._over.wait(chance.uniform(0.2, 1.0))

    def _stays(self, made: Visit, homes: list[str]) -> bool:
        """Whether to go on; where the robot is when it has just answered."""
        if len(homes) == 1:
            homes.append(self._home(made.robot))
        return not self._over.is_set()
