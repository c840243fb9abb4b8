"""The load: a service and its visitors, in processes of their own.

    load.py service                  listens on a port of 127.0.0.1, says which, and does what visitors ask
    load.py visit JOB WHERE ...      one job; its outcome is one line of JSON

The service says ``h`` to everybody who comes, as sshd would: it is a service that speaks first.
A visitor's first line says what it wants of it: ``sink N`` (take N bytes, then say ``k``),
``both N`` (that, and send N bytes at the same time), ``echo N`` (send each N bytes back). The service says
``r``, and then does it. WHERE is a unix socket's path or a port of 127.0.0.1. A job says ``ready`` when its
visitors are connected, waits for a line of input, and ends no connection before its time is taken.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_CHUNK = 2**20
_NOISE = bytes(range(256)) * (_CHUNK // 256)
_PATIENCE = 120.0  # seconds


def send_exactly(sock: socket.socket, count: int) -> None:
    """Send ``count`` bytes."""
    view = memoryview(_NOISE)
    while count > 0:
        sock.sendall(view[:count])
        count -= min(count, _CHUNK)


def take_exactly(sock: socket.socket, count: int) -> None:
    """Receive ``count`` bytes and throw them away; TCP does so without a copy.

    Raises:
        EOFError: the other end is gone.
    """
    flags = socket.MSG_TRUNC if sock.family == socket.AF_INET else 0
    buffer = memoryview(bytearray(_CHUNK))
    while count > 0:
        taken = sock.recv_into(buffer[:count], 0, flags)
        if not taken:
            raise EOFError("the connection was cut")
        count -= taken


def serve(connection: socket.socket) -> None:
    """Do what one visitor asks for, until it is gone."""
    with connection:
        connection.sendall(b"h")
        words = b""
        while not words.endswith(b"\n"):
            byte = connection.recv(1)
            if not byte:
                return
            words += byte
        job, size = words.split()
        count = int(size)
        connection.sendall(b"r")
        if job == b"echo":
            while True:
                data = connection.recv(count, socket.MSG_WAITALL)
                if len(data) < count:
                    return
                connection.sendall(data)
        if job == b"both":
            threading.Thread(target=send_exactly, args=(connection, count)).start()
        take_exactly(connection, count)
        connection.sendall(b"k")
        connection.recv(1)  # it is the visitor who ends


def service() -> None:
    """Listen and serve for ever."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _address = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


def connect(where: str) -> socket.socket:
    """A visitor's connection."""
    if where.isdecimal():
        sock = socket.create_connection(("127.0.0.1", int(where)), timeout=_PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(_PATIENCE)
    sock.connect(where)
    return sock


def begin(where: str, request: str) -> socket.socket:
    """A visitor who has been heard."""
    sock = connect(where)
    take_exactly(sock, 1)
    ask_for(sock, request)
    return sock


def ask_for(sock: socket.socket, request: str) -> None:
    """Say what is wanted, and wait until that has been heard."""
    sock.sendall(request.encode() + b"\n")
    take_exactly(sock, 1)


def wait_for_go() -> None:
    """Say that we are ready, and wait."""
    print("ready", flush=True)
    sys.stdin.readline()


def bulk(where: str, kind: str, size: str, streams: str) -> dict[str, Any]:
    """``streams`` visitors at once, ``size`` bytes each; the seconds that each took, and all together."""
    count = int(size)
    socks = [begin(where, f"{kind} {count}") for _ in range(int(streams))]
    seconds: list[float] = []
    wait_for_go()
    began = time.monotonic()

    def one(sock: socket.socket) -> None:
        sender = threading.Thread(target=send_exactly, args=(sock, count))
        sender.start()
        take_exactly(sock, (count if kind == "both" else 0) + 1)
        seconds.append(time.monotonic() - began)
        sender.join()

    threads = [threading.Thread(target=one, args=(sock,)) for sock in socks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(seconds) < len(socks):
        raise EOFError("a stream was cut")
    return {"seconds": max(seconds), "each": sorted(seconds)}


def ask(where: str, size: str, times: str) -> dict[str, Any]:
    """One visitor asks and waits for the answer, again and again; the seconds of each round trip."""
    question = _NOISE[: int(size)]
    trips = []
    with begin(where, f"echo {size}") as sock:
        wait_for_go()
        for _ in range(int(times)):
            began = time.perf_counter()
            sock.sendall(question)
            take_exactly(sock, len(question))
            trips.append(time.perf_counter() - began)
    return {"seconds": sum(trips), "median": sorted(trips)[len(trips) // 2]}


def visits(where: str, times: str, pause: str) -> dict[str, Any]:
    """Visitors one after the other; the seconds until each was spoken to, and until it had been heard."""
    greeted, heard = [], []
    wait_for_go()
    for _ in range(int(times)):
        time.sleep(float(pause))
        began = time.perf_counter()
        with connect(where) as sock:
            take_exactly(sock, 1)
            greeted.append(time.perf_counter() - began)
            ask_for(sock, "echo 1")
            heard.append(time.perf_counter() - began)
    middle = len(heard) // 2
    return {"seconds": sum(heard), "median": sorted(greeted)[middle], "heard": sorted(heard)[middle]}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {"bulk": bulk, "ask": ask, "visits": visits}


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1] == "service":
        service()
    else:
        print(json.dumps(JOBS[sys.argv[2]](*sys.argv[3:])), flush=True)


if __name__ == "__main__":
    main()
