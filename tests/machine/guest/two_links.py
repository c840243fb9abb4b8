"""A stream between two links with kernel TLS, without servers that would make one: a daemon, and its ends.

    two_links.py relay            joins each connection to the first port with one to the second, for ever
    two_links.py end PORT SIZE    exchanges SIZE bytes over a connection to PORT, as traffic.py does
                                  [--slow BYTES_PER_SECOND] [--hold FILE]

The daemon lives as Shadow's do: it can be killed and restarted, and systemd keeps its streams.
"""

import argparse
import asyncio
import datetime as dt
import importlib
import json
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shadow.daemon import life
from shadow.errors import ShadowError
from shadow.net.liveness import keep_probing
from shadow.pki.certificates import Purpose, load_credentials
from shadow.relay.durable import DurableStreams
from shadow.relay.ending import Ending, Words, log_end
from shadow.relay.flow import Pump
from shadow.relay.roster import Roster
from shadow.transport.context import Ktls, Settings, make_context
from shadow.transport.handshake import handshake
from shadow.transport.link import Link

traffic: Any = importlib.import_module("traffic")  # beside this script, where mypy does not look

PORTS = 9001, 9002
_FILES = Path("/etc/shadow-tunnel")
_WORDS = Words(near="near peer", link="peer", target="peer")


async def shake_hands(sock: socket.socket, purpose: Purpose) -> Link:
    """A link over a connection; the kernel encrypts."""
    name = {Purpose.SERVER: "server", Purpose.ROBOT: "011"}[purpose]
    ca, crt, key = (_FILES / file for file in ("ca.crt", f"{name}.crt", f"{name}.key"))
    context = make_context(load_credentials(ca, crt, key, purpose, dt.datetime.now(dt.UTC)))
    sock.setblocking(False)
    keep_probing(sock, 30)
    return await handshake(sock, Settings(context, purpose, Ktls.REQUIRE, ("localhost",)))


class Joint:
    """The daemon's role."""

    status = "relaying"
    terms = ()

    def __init__(self, durable: DurableStreams) -> None:
        self._roster: Roster[None] = Roster(durable, self._ended)
        self._joining: asyncio.Task[None]
        self.failure: asyncio.Future[ShadowError] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        self._roster.durable.resume(self._take_in)
        self._joining = asyncio.create_task(self._join())

    async def stop(self) -> None:
        self._joining.cancel()

    def reload(self) -> str:
        return ""

    def describe(self) -> Iterator[str]:
        return map(repr, self._roster)

    def _take_in(self, pump: Pump, _facts: Mapping[str, Any]) -> None:
        self._roster.go_on(pump, None)

    def _ended(self, pump: Pump, _known: None) -> None:
        log_end(pump, Ending("joint", "default", "1", pump.up.moved, pump.down.moved, 0), _WORDS)

    async def _join(self) -> None:
        listeners = [socket.create_server(("127.0.0.1", port)) for port in PORTS]
        while True:
            near, link = [await self._accept(listener) for listener in listeners]
            self._roster.begin(near, link, None, {})

    async def _accept(self, listener: socket.socket) -> Link:
        listener.setblocking(False)
        sock, _address = await asyncio.get_running_loop().sock_accept(listener)
        return await shake_hands(sock, Purpose.SERVER)


class Plaintext:
    """A link with what traffic.py uses of a socket."""

    def __init__(self, link: Link) -> None:
        self._link = link
        link.sock.setblocking(True)
        self.sendall = link.sock.sendall
        self.recv = link.read

    def shutdown(self, how: int) -> None:
        self._link.send_close_notify()
        self._link.sock.shutdown(how)


def end(port: int, size: int, rate: float, hold: str) -> None:
    """One of a stream's outer ends."""
    link = asyncio.run(shake_hands(socket.create_connection(("127.0.0.1", port)), Purpose.ROBOT))
    # As traffic.py does where it serves.
    link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 900))
    sock: Any = Plaintext(link)
    print(json.dumps(traffic.exchange(sock, size, rate=rate, hold=hold)), flush=True)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("relay", "end"))
    parser.add_argument("port", type=int, nargs="?")
    parser.add_argument("size", type=int, nargs="?")
    parser.add_argument("--slow", type=float, default=0)
    parser.add_argument("--hold", default="")
    words = parser.parse_args()
    if words.role == "end":
        end(words.port, words.size, words.slow, words.hold)
    else:
        life.run(Joint, lambda _store: None)


if __name__ == "__main__":
    main()
