"""Streams of every kind, and how many of them are left: what a bad line, or a dead one, has cost.

``service PORT`` answers; ``visitors SOCKET NUMBER KINDS`` opens so many streams of each kind through a
robot's socket, says "ready", and then obeys its standard input: "count" prints how many are left of each
kind, "finish" tries them all out, prints the same, and ends. The kinds, by the first byte of the visitor:

``i``  idle.
``h``  half-closed: the visitor has said its last word, and the service says one more in the end.
``b``  busy: the visitor says something again and again, and the service tells in the end how much it was.
``t``  talking: both say something again and again, so data is under way both ways when the line goes away,
       and on the stream itself nothing but the next retransmission tells that it is back.
``s``  stuck: the service sends without end, and the visitor does not read until the end.
"""

import collections
import itertools
import json
import select
import socket
import sys
import threading
import time
from collections.abc import Callable

BLOCK = b"".join(b"%07d\n" % number for number in range(8192))
FINISH = b"F"
TIMEOUT = 300.0  # seconds that a line with losses may take for an answer


def serve(sock: socket.socket) -> None:
    try:
        kind = sock.recv(1)
        if kind == b"h":
            sock.sendall(kind)
            while sock.recv(1):
                pass
            with_finish.wait()
            sock.sendall(b"!")
        elif kind == b"s":
            sock.sendall(kind)
            for _ in itertools.takewhile(lambda _: not with_finish.is_set(), itertools.count()):
                sock.sendall(BLOCK)
        elif kind == b"b":
            sock.sendall(kind)
            total = 0
            while data := sock.recv(4096):
                total += len(data)
            sock.sendall(b"%d" % total)
        elif kind == b"t":
            sock.sendall(kind)
            _said, heard = talk(sock, lambda: False)
            sock.sendall(b"!%d" % heard)
        else:
            sock.sendall(kind)
            while data := sock.recv(4096):
                sock.sendall(data)
    except OSError:
        pass
    finally:
        sock.close()


def talk(sock: socket.socket, finished: Callable[[], bool]) -> tuple[int, int]:
    """Say something five times a second, until we have finished or the other has; how much both have said."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    said = heard = 0
    while not finished():
        sock.sendall(BLOCK[:800])
        said += 800
        if poll.poll(200):
            data = sock.recv(2**16)
            if not data:
                break
            check(data, heard)
            heard += len(data)
            time.sleep(0.2)
    return said, heard


def check(data: bytes, before: int) -> None:
    """What comes after so many bytes of the other's talk is what has to come."""
    start = before % 800
    assert data == (BLOCK[:800] * (len(data) // 800 + 2))[start : start + len(data)]


with_finish = threading.Event()


def service(port: int) -> None:
    """Serve; whoever sends FINISH as its first byte has all others told to come to an end."""
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    threading.Thread(target=wait_for_the_end, daemon=True).start()
    print("ready", flush=True)
    while True:
        connection, _address = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def wait_for_the_end() -> None:
    sys.stdin.readline()
    with_finish.set()


class Visitor:
    """One stream."""

    def __init__(self, path: str, kind: str) -> None:
        self.kind = kind
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(path)
        self.sock.sendall(kind.encode())
        assert self.sock.recv(1) == kind.encode()
        self.lost = False
        self.finishing = threading.Event()
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()

    def _live(self) -> None:
        try:
            kinds = {"i": self._idle, "h": self._half_closed, "b": self._busy, "t": self._talking}
            kinds.get(self.kind, self._stuck)()
        except (OSError, AssertionError):
            self.lost = True

    def _idle(self) -> None:
        self._watch(select.POLLIN)
        self.sock.sendall(b"?")
        assert self.sock.recv(1) == b"?"

    def _half_closed(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)
        self.sock.settimeout(None)
        assert self.sock.recv(1) == b"!"
        assert self.sock.recv(1) == b""

    def _busy(self) -> None:
        total = 0
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        while not self.finishing.is_set():
            word = b"%d " % total * 100
            self.sock.sendall(word)
            total += len(word)
            assert not poll.poll(200)
        self.sock.shutdown(socket.SHUT_WR)
        assert int(self.sock.recv(100)) == total

    def _talking(self) -> None:
        said, before = talk(self.sock, self.finishing.is_set)
        assert self.finishing.is_set()
        self.sock.shutdown(socket.SHUT_WR)
        rest = b""
        while data := self.sock.recv(2**16):
            rest += data
        talked, _mark, heard = rest.partition(b"!")
        check(talked, before)
        assert int(heard) == said

    def _stuck(self) -> None:
        self._watch(0)
        received = 0
        while data := self.sock.recv(2**16):
            start = received % len(BLOCK)
            assert data == (BLOCK * 3)[start : start + len(data)]
            received += len(data)
        assert received % len(BLOCK) == 0

    def _watch(self, events: int) -> None:
        """Until it is time to finish, nothing may come; POLLHUP and POLLERR do not ask."""
        poll = select.poll()
        poll.register(self.sock, events)
        while not self.finishing.is_set():
            assert not poll.poll(200)


def visitors(path: str, number: int, kinds: str) -> None:
    everybody = [Visitor(path, kind) for kind in kinds for _ in range(number)]
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "finish":
            for visitor in everybody:
                visitor.finishing.set()
            until = time.monotonic() + TIMEOUT
            for visitor in everybody:
                visitor.thread.join(max(0.0, until - time.monotonic()))
                visitor.lost |= visitor.thread.is_alive()
        left = collections.Counter(visitor.kind for visitor in everybody if not visitor.lost)
        print(json.dumps({kind: left[kind] for kind in kinds}), flush=True)
        if line.strip() == "finish":
            return


if __name__ == "__main__":
    if sys.argv[1] == "service":
        service(int(sys.argv[2]))
    else:
        visitors(sys.argv[2], int(sys.argv[3]), sys.argv[4])
