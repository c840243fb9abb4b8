"""Moves bytes through a socket and counts them: a visitor and a service for the machine's tests.

    traffic.py visit SOCKET SIZE [--chunk N] [--pause SECONDS] [--slow BYTES_PER_SECOND] [--hold FILE]
    traffic.py serve PORT SIZE [--pause SECONDS] [--abort BYTES]

Both send SIZE bytes and the end of file, and read until the other's end of file, at the same time. The bytes
differ at every place, so that none can be lost, doubled or moved unseen. The last line of the output is JSON:
how many bytes were sent and received, and their SHA-256. ``serve`` does it for each of its connections, with
one line each, until it is stopped. With ``--abort`` it resets the connection after so many received bytes.
With ``--hold`` a visitor stops reading half-way until a file is there.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import socket
import struct
import threading
import time
from typing import Any

_BLOCK = 65536
_NOISE = random.Random(1).randbytes(_BLOCK)


def block(number: int) -> bytes:
    """Block ``number`` of what is sent: its number, then noise."""
    return number.to_bytes(8, "big") + _NOISE[8:]


def send(sock: socket.socket, size: int, chunk: int, pause: float, counted: dict[str, Any]) -> None:
    """Send ``size`` bytes in pieces of ``chunk``, then the end of file."""
    digest = hashlib.sha256()
    sent = 0
    try:
        for number in range(-(-size // _BLOCK)):
            data = memoryview(block(number))[: size - sent]
            for start in range(0, len(data), chunk):
                sock.sendall(data[start : start + chunk])
                if pause:
                    time.sleep(pause)
            digest.update(data)
            sent += len(data)
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        counted["send_error"] = str(error)
    counted["sent"], counted["sent_sha256"] = sent, digest.hexdigest()


def receive(sock: socket.socket, rate: float, counted: dict[str, Any], half: int = 0, hold: str = "") -> None:
    """Read to the end of file, at most ``rate`` bytes per second if it is not 0.

    If there is a file ``hold`` to wait for, no more than about ``half`` is read before it is there.
    """
    digest = hashlib.sha256()
    received = 0
    try:
        while data := sock.recv(_BLOCK):
            digest.update(data)
            received += len(data)
            if rate:
                time.sleep(len(data) / rate)
            while hold and received > half and not os.path.exists(hold):
                time.sleep(0.1)
    except OSError as error:
        counted["receive_error"] = str(error)
    counted["received"], counted["received_sha256"] = received, digest.hexdigest()


def exchange(
    sock: socket.socket, size: int, chunk: int = _BLOCK, pause: float = 0, rate: float = 0, hold: str = ""
) -> dict[str, Any]:
    """Send and receive at once; what was counted."""
    counted: dict[str, Any] = {}
    sender = threading.Thread(target=send, args=(sock, size, chunk, pause, counted))
    sender.start()
    receive(sock, rate, counted, size // 2, hold)
    sender.join()
    return counted


def abort(sock: socket.socket, after: int) -> dict[str, Any]:
    """Receive at least ``after`` bytes, then reset the connection."""
    received = 0
    while received < after:
        received += len(sock.recv(_BLOCK))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return {"received": received}


def serve(port: int, size: int, pause: float, abort_after: int) -> None:
    """Exchange with everyone who connects."""

    def handle(connection: socket.socket) -> None:
        with connection:
            # Closing waits until all is acknowledged. Else the kernel resets a connection that nobody has
            # open when its reader, a slow one, has not made room for a while (tcp(7), tcp_orphan_retries).
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 900))
            counted = (
                abort(connection, abort_after) if abort_after else exchange(connection, size, pause=pause)
            )
        print(json.dumps(counted), flush=True)

    with contextlib.suppress(KeyboardInterrupt), socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _address = listener.accept()
            threading.Thread(target=handle, args=(connection,), daemon=True).start()


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("visit", "serve"))
    parser.add_argument("where")
    parser.add_argument("size", type=int)
    parser.add_argument("--chunk", type=int, default=_BLOCK)
    parser.add_argument("--pause", type=float, default=0)
    parser.add_argument("--slow", type=float, default=0)
    parser.add_argument("--hold", default="")
    parser.add_argument("--abort", type=int, default=0)
    words = parser.parse_args()
    if words.role == "serve":
        serve(int(words.where), words.size, words.pause, words.abort)
        return
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(words.where)
        counted = exchange(sock, words.size, words.chunk, words.pause, words.slow, words.hold)
        print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    main()
