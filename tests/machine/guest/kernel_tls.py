"""What kernel TLS does, as facts: ``kernel_tls.py CASE`` runs one case and prints what came of it as JSON.

Runs inside the machine, with nothing of Shadow: both ends of a TCP connection over loopback get made-up keys
(kernel: ``Documentation/networking/tls.rst``). Where one end must misbehave, it is a plain socket, and its
records are made here.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TCP_ULP, SOL_TLS, TLS_TX, TLS_RX, SET_TYPE, GET_TYPE = 31, 282, 1, 2, 1, 2
ALERT, DATA = 21, 23
CLOSE_NOTIFY = b"\x01\x00"
RECORD = 16384
LONG = 1 << 20  # more than any record
PATIENCE = 60.0  # seconds until "nothing more comes" is believed to be wrong
NONBLOCK = os.SPLICE_F_NONBLOCK

AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305 = 51, 52, 54
KEY_LENGTH = {AES_128_GCM: 16, AES_256_GCM: 32, CHACHA20_POLY1305: 32}

Case = Callable[[], Any]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


# --- two ends of a connection ---


def crypto_info(cipher: int, direction: int) -> bytes:
    """A struct tls12_crypto_info_*: the key says which direction it is for; sequence numbers begin at 0."""
    key = bytes([direction]) * KEY_LENGTH[cipher]
    header = struct.pack("=HH", 0x0303, cipher)
    if cipher == CHACHA20_POLY1305:
        return header + bytes(12) + key + bytes(8)  # iv, key, sequence
    return header + bytes(8) + key + bytes(4) + bytes(8)  # iv, key, salt, sequence


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for end in (near, far):
        end.settimeout(PATIENCE)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def install(sock: socket.socket, cipher: int, *, send: int, receive: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    sock.setsockopt(SOL_TLS, TLS_TX, crypto_info(cipher, send))
    sock.setsockopt(SOL_TLS, TLS_RX, crypto_info(cipher, receive))


def tls(cipher: int = AES_128_GCM) -> tuple[socket.socket, socket.socket]:
    """Both ends are the kernel's."""
    near, far = tcp()
    install(near, cipher, send=1, receive=2)
    install(far, cipher, send=2, receive=1)
    return near, far


def half_tls() -> tuple[socket.socket, socket.socket]:
    """The near end is a plain socket, to be fed with :func:`record`; the far end is the kernel's."""
    near, far = tcp()
    install(far, AES_128_GCM, send=2, receive=1)
    return near, far


def record(sequence: int, payload: bytes, kind: int = DATA) -> bytes:
    """A record of AES-128-GCM (RFC 5288, section 3) in the direction near to far."""
    explicit = struct.pack(">Q", sequence)
    covered = explicit + struct.pack(">BHH", kind, 0x0303, len(payload))
    sealed = AESGCM(bytes([1]) * 16).encrypt(bytes(4) + explicit, payload, covered)
    return struct.pack(">BHH", kind, 0x0303, len(explicit + sealed)) + explicit + sealed


def send_alert(sock: socket.socket, alert: bytes = CLOSE_NOTIFY) -> None:
    sock.sendmsg([alert], [(SOL_TLS, SET_TYPE, bytes([ALERT]))])


def receive(sock: socket.socket) -> tuple[int | None, str]:
    """recvmsg with room for the record's type: (type, payload as text)."""
    data, ancillary, _, _ = sock.recvmsg(RECORD, socket.CMSG_SPACE(1))
    kinds = [value[0] for level, kind, value in ancillary if (level, kind) == (SOL_TLS, GET_TYPE)]
    return (kinds[0] if kinds else None), data.hex() if len(data) < 16 else f"{len(data)} bytes"


# --- outcomes ---


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the name of the error it raises."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def splice(sock: socket.socket, pipe: int, length: int = LONG, *, patient: bool = True) -> int | str:
    """Splice once from socket to pipe: a length or an error's name; EAGAIN only if there is no patience."""
    deadline = time.monotonic() + (PATIENCE if patient else 0)
    while True:
        said = outcome(lambda: os.splice(sock.fileno(), pipe, length, flags=NONBLOCK))
        if said != "EAGAIN" or time.monotonic() > deadline:
            return said  # type: ignore[no-any-return]
        time.sleep(0.01)


@contextlib.contextmanager
def pipe(size: int = LONG) -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, size)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def drain(reading: int) -> bytes:
    """All that is in a pipe."""
    os.set_blocking(reading, False)
    taken = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(reading, LONG):
            taken += chunk
    return taken


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes of which every run of four tells its place."""
    return b"".join(struct.pack(">I", seed + number) for number in range((length + 3) // 4))[:length]


def poll(sock: socket.socket, milliseconds: int = 300) -> list[str]:
    """The events that poll(2) reports."""
    poller = select.poll()
    poller.register(sock, select.POLLIN | select.POLLRDHUP)
    names = ("POLLIN", "POLLRDHUP", "POLLHUP", "POLLERR")
    events = dict(poller.poll(milliseconds)).get(sock.fileno(), 0)
    return [name for name in names if events & getattr(select, name)]


# --- cases: data ---


def _round_trip(cipher: int) -> Any:
    near, far = tls(cipher)
    message = pattern(100_000)
    said: dict[str, Any] = {}
    for name, source, sink in (("there", near, far), ("back", far, near)):
        source.sendall(message)
        taken = b""
        while len(taken) < len(message):
            taken += sink.recv(LONG)
        said[name] = taken == message
        with pipe() as (reading, writing), pipe() as (reading_2, writing_2):
            os.write(writing, message)
            left, taken = len(message), b""
            while left:
                left -= os.splice(reading, source.fileno(), left)
            while len(taken) < len(message):
                splice(sink, writing_2)
                taken += drain(reading_2)
            said[f"splice {name}"] = taken == message
    for name, option in (("tx", TLS_TX), ("rx", TLS_RX)):
        said[name] = struct.unpack("=HH", near.getsockopt(SOL_TLS, option, 4))
    ports = f"( sport = :{near.getsockname()[1]} and dport = :{far.getsockname()[1]} )"
    shown = subprocess.run(["ss", "-tieHO", ports], capture_output=True, text=True, check=True).stdout
    said["ss"] = " ".join(re.findall(r"tcp-ulp-tls|(?:version|cipher|rxconf|txconf): \S+", shown))
    return said


@case
def round_trip_aes_128_gcm() -> Any:
    return _round_trip(AES_128_GCM)


@case
def round_trip_aes_256_gcm() -> Any:
    return _round_trip(AES_256_GCM)


@case
def round_trip_chacha20_poly1305() -> Any:
    return _round_trip(CHACHA20_POLY1305)


@case
def splice_takes_one_record() -> Any:
    near, far = tls()
    for length in (100, RECORD, 200, 2 * RECORD + 1):
        near.sendall(bytes(length))
    with pipe() as (_, writing):
        return [splice(far, writing) for _ in range(6)] + [splice(far, writing, patient=False)]


@case
def splice_of_less_than_a_record() -> Any:
    near, far = tls()
    message = pattern(RECORD)
    near.sendall(message)
    with pipe() as (reading, writing):
        lengths = [splice(far, writing, 1000), splice(far, writing, 5000), splice(far, writing)]
        return {"lengths": lengths, "exact": drain(reading) == message}


def _short_pipe(size: int, taken_slots: int, payload: int = RECORD) -> Any:
    """Splice three records into a pipe with little room, emptying it between; what arrives?"""
    near, far = tls()
    message = pattern(3 * payload)
    for number in range(3):
        near.sendall(message[number * payload : (number + 1) * payload])
    with pipe(size) as (reading, writing):
        for _ in range(taken_slots):  # each write to a pipe in packet mode takes a slot
            os.write(writing, b"!" * 4096)
        lengths = [splice(far, writing)]
        arrived = drain(reading)[taken_slots * 4096 :]
        while True:
            length = splice(far, writing, patient=False)
            if not isinstance(length, int) or length == 0:
                break
            lengths.append(length)
            arrived += drain(reading)
    lost = len(message) - len(arrived)
    return {"lengths": lengths, "lost": lost, "exact": arrived == message}


@case
def short_pipe_one_slot() -> Any:
    return _short_pipe(4096, 0)


@case
def short_pipe_one_slot_left() -> Any:
    return _short_pipe(65536, 15)


@case
def short_pipe_four_slots_left() -> Any:
    return _short_pipe(65536, 12)


@case
def short_pipe_five_slots_left() -> Any:
    return _short_pipe(65536, 11)


@case
def pipe_of_17_slots() -> Any:
    return _short_pipe(131072, 32 - 17)


@case
def full_pipe() -> Any:
    near, far = tls()
    message = pattern(5000)
    near.sendall(message)
    with pipe(65536) as (reading, writing):
        os.write(writing, bytes(65536))
        first = splice(far, writing, patient=False)
        drain(reading)
        second = splice(far, writing)
        return {"full": first, "emptied": second, "exact": drain(reading) == message}


def _would_block(*, socket_nonblocking: bool, pipe_nonblocking: bool, flags: int) -> str:
    """What a splice says when there is nothing to read; "blocks" if it says nothing for a while."""
    _near, far = tls()
    far.setblocking(not socket_nonblocking)

    def interrupt(*_: object) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "blocks")

    signal.signal(signal.SIGALRM, interrupt)
    with pipe() as (_, writing):
        os.set_blocking(writing, not pipe_nonblocking)
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        said = outcome(lambda: os.splice(far.fileno(), writing, LONG, flags=flags))
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "blocks" if said == "ETIMEDOUT" else str(said)


@case
def splice_when_nothing_is_there() -> Any:
    return {
        "socket O_NONBLOCK": _would_block(socket_nonblocking=True, pipe_nonblocking=False, flags=0),
        "pipe O_NONBLOCK": _would_block(socket_nonblocking=False, pipe_nonblocking=True, flags=0),
        "SPLICE_F_NONBLOCK": _would_block(socket_nonblocking=False, pipe_nonblocking=False, flags=NONBLOCK),
    }


@case
def peek() -> Any:
    near, far = tls()
    near.sendall(b"one")
    near.sendall(b"two")
    poll(far, 20000)
    peeked = far.recv(100, socket.MSG_PEEK)
    with pipe() as (reading, writing):
        lengths = [splice(far, writing)]
        taken = drain(reading)
        while len(taken) < 6:
            lengths.append(splice(far, writing))
            taken += drain(reading)
    return {"peeked": peeked.decode(), "lengths": lengths, "taken": taken.decode()}


# --- cases: what is not data ---


@case
def control_record() -> Any:
    near, far = tls()
    near.sendall(b"before")
    send_alert(near)
    near.sendall(b"after")
    with pipe() as (reading, writing):
        said: dict[str, Any] = {"data first": splice(far, writing)}
        said["poll"] = poll(far)
        said["splice"] = splice(far, writing)
        said["splice again"] = splice(far, writing)
        said["recv"] = outcome(lambda: far.recv(100).hex())
        said["recvmsg"] = outcome(lambda: receive(far))
        said["data after"] = splice(far, writing)
        said["bytes"] = drain(reading).decode()
    return said


@case
def data_by_recvmsg() -> Any:
    near, far = tls()
    near.sendall(b"one")
    near.sendall(b"two")
    send_alert(near)
    poll(far, 20000)
    return [outcome(lambda: receive(far)) for _ in range(2)]


@case
def fin_without_close_notify() -> Any:
    near, far = tls()
    near.sendall(b"data")
    near.shutdown(socket.SHUT_WR)
    with pipe() as (_, writing):
        return {
            "splice": [splice(far, writing), splice(far, writing), splice(far, writing)],
            "recv": outcome(lambda: far.recv(100).hex()),
            "poll": poll(far),
        }


@case
def fin_after_close_notify() -> Any:
    near, far = tls()
    send_alert(near)
    near.shutdown(socket.SHUT_WR)
    with pipe() as (_, writing):
        return {
            "splice": splice(far, writing),
            "recvmsg": outcome(lambda: receive(far)),
            "splice after": splice(far, writing),
            "recvmsg after": outcome(lambda: receive(far)),
            "poll": poll(far),
        }


@case
def half_close() -> Any:
    """After close_notify and FIN one way, the other way still works."""
    near, far = tls()
    send_alert(near)
    near.shutdown(socket.SHUT_WR)
    said = outcome(lambda: receive(far))
    far.sendall(b"still here")
    return {"alert": said, "back": near.recv(100).decode()}


def _fed(*records: bytes, fin: bool = False) -> Any:
    """Feed the far end, and splice until there is nothing more; then see what recvmsg and poll say."""
    near, far = half_tls()
    near.sendall(b"".join(records))
    if fin:
        near.shutdown(socket.SHUT_WR)
    polled = poll(far)
    with pipe() as (reading, writing):
        said = [splice(far, writing, patient=False) for _ in range(4)]
        far.settimeout(0.3)
        return {
            "poll": polled,
            "splice": said,
            "bytes": drain(reading).decode(),
            "recvmsg": outcome(lambda: receive(far)),
            "poll after": poll(far),
        }


@case
def made_record() -> Any:
    return _fed(record(0, b"hello"))


@case
def empty_record() -> Any:
    return _fed(record(0, b""))


@case
def empty_record_then_data() -> Any:
    return _fed(record(0, b""), record(1, b"hello"))


@case
def empty_records_between_data() -> Any:
    return _fed(record(0, b"he"), record(1, b""), record(2, b""), record(3, b"llo"))


@case
def empty_record_by_recvmsg() -> Any:
    near, far = half_tls()
    near.sendall(record(0, b"") + record(1, b"hello"))
    poll(far)
    far.settimeout(0.3)
    return [outcome(lambda: receive(far)) for _ in range(3)]


@case
def empty_record_alone_by_recvmsg() -> Any:
    near, far = half_tls()
    near.sendall(record(0, b""))
    poll(far)
    far.settimeout(0.3)
    return outcome(lambda: receive(far))


@case
def empty_record_or_end() -> Any:
    """When splice says 0, what does a peek by recvmsg say? It must tell an empty record from the end."""

    def look(*records: bytes, fin: bool) -> list[Any]:
        near, far = half_tls()
        near.sendall(b"".join(records))
        if fin:
            near.shutdown(socket.SHUT_WR)
        poll(far)
        with pipe() as (_, writing):
            said: list[Any] = [splice(far, writing, patient=False)]

        def peek() -> list[Any]:
            flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
            data, ancillary, _, _ = far.recvmsg(1, socket.CMSG_SPACE(1), flags)
            return [[value[0] for *_, value in ancillary], data.decode("latin-1")]

        return [*said, outcome(peek), outcome(peek), outcome(lambda: receive(far))]

    empty, data, alert = record(0, b""), record(1, b"hello"), record(1, CLOSE_NOTIFY, ALERT)
    return {
        "end": look(fin=True),
        "empty, data": look(empty, data, fin=False),
        "empty, data, end": look(empty, data, fin=True),
        "empty, end": look(empty, fin=True),
        "empty, alert, end": look(empty, alert, fin=True),
    }


@case
def empty_record_peeked() -> Any:
    """MSG_PEEK leaves an empty record behind the data; does it come back as an end?"""
    near, far = half_tls()
    near.sendall(record(0, b"one") + record(1, b"") + record(2, b"two"))
    poll(far)
    peeked = far.recv(100, socket.MSG_PEEK).decode()
    with pipe() as (reading, writing):
        said = [splice(far, writing, patient=False) for _ in range(4)]
        return {"peeked": peeked, "splice": said, "bytes": drain(reading).decode()}


@case
def empty_alert() -> Any:
    return _fed(record(0, b"", ALERT))


@case
def partial_record() -> Any:
    return _fed(record(0, b"hello")[:10])


@case
def partial_record_then_fin() -> Any:
    return _fed(record(0, b"hello"), record(1, b"more")[:10], fin=True)


@case
def forged_record() -> Any:
    forged = bytearray(record(0, b"hello"))
    forged[-1] ^= 1
    return _fed(bytes(forged))


@case
def repeated_record() -> Any:
    return _fed(record(0, b"hello"), record(0, b"hello"))


@case
def too_long_record() -> Any:
    return _fed(struct.pack(">BHH", DATA, 0x0303, RECORD + 2049) + bytes(RECORD + 2049))


@case
def wrong_version_record() -> Any:
    return _fed(b"GET / HTTP/1.1\r\n\r\n" + bytes(100))


@case
def handshake_record() -> Any:
    """What a renegotiating client sends first."""
    return _fed(record(0, b"\x01\x00\x00\x00", 22), record(1, b"hello"))


@case
def reset() -> Any:
    near, far = tls()
    near.sendall(b"data")
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    poll(far, 20000)
    near.close()
    with pipe() as (_, writing):
        return {
            "poll": poll(far),
            "splice": [splice(far, writing) for _ in range(3)],
            "send": outcome(lambda: far.send(b"x")),
        }


# --- cases: much data ---


def _receive_all(sock: socket.socket, digests: list[str]) -> None:
    digest = hashlib.sha256()
    while chunk := sock.recv(LONG):
        digest.update(chunk)
    digests.append(digest.hexdigest())


@case
def non_blocking_splice_is_exact() -> Any:
    """32 MiB from a pipe into TLS, with SPLICE_F_NONBLOCK on a socket that is often full."""
    near, far = tls()
    near.setblocking(False)
    digest, total, refused = hashlib.sha256(), 32 << 20, 0
    digests: list[str] = []
    receiver = threading.Thread(target=_receive_all, args=(far, digests))  # from the first EAGAIN on
    poller = select.poll()
    poller.register(near, select.POLLOUT)
    with pipe() as (reading, writing):
        block, left, held = pattern(LONG), total, 0
        while left or held:
            if not held:
                held = os.write(writing, block[: min(left, LONG)])
                digest.update(block[:held])
                left -= held
            try:
                held -= os.splice(reading, near.fileno(), held, flags=NONBLOCK)
            except BlockingIOError:
                refused += 1
                if refused == 1:
                    receiver.start()
                poller.poll(20000)
    poller.poll(20000)
    near.shutdown(socket.SHUT_WR)
    receiver.join()
    return {"exact": digests == [digest.hexdigest()], "refused": refused > 0}


def _rate(seconds: float, total: int) -> float:
    return round(total / seconds / 2**20, 1)


@case
def throughput_send_and_receive() -> Any:
    """MiB/s of a plain sendall and recv loop, one way; encrypting and decrypting share the processors."""
    rates = {}
    for name, cipher in (
        ("AES-128-GCM", AES_128_GCM),
        ("ChaCha20-Poly1305", CHACHA20_POLY1305),
        ("TCP", None),
    ):
        near, far = tls(cipher) if cipher else tcp()
        block, total = bytes(256 << 10), 48 << 20

        def send(sock: socket.socket = near, block: bytes = block, total: int = total) -> None:
            for _ in range(total // len(block)):
                sock.sendall(block)
            sock.shutdown(socket.SHUT_WR)

        started = time.monotonic()
        sender = threading.Thread(target=send)
        sender.start()
        buffer, taken = bytearray(LONG), 0
        while length := far.recv_into(buffer):
            taken += length
        sender.join()
        rates[name] = _rate(time.monotonic() - started, taken)
    return rates


@case
def throughput_splice() -> Any:
    """MiB/s of splicing: TLS to pipe to TLS, as a relay between two others does."""
    left, right = tls(), tls()
    block, total = bytes(256 << 10), 48 << 20
    for end in (left[1], right[0]):
        end.setblocking(True)  # splice(2) knows no timeout, and a slow machine may fill what it writes to

    def send() -> None:
        for _ in range(total // len(block)):
            left[0].sendall(block)
        left[0].shutdown(socket.SHUT_WR)

    def relay() -> None:
        with pipe() as (reading, writing):
            while held := os.splice(left[1].fileno(), writing, LONG):
                while held:
                    held -= os.splice(reading, right[0].fileno(), held)
        right[0].shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=send), threading.Thread(target=relay)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    buffer, taken = bytearray(LONG), 0
    while length := right[1].recv_into(buffer):
        taken += length
    for thread in threads:
        thread.join()
    return {"AES-128-GCM": _rate(time.monotonic() - started, taken), "exact": taken == total}


@case
def ulp() -> Any:
    """What TCP_ULP says to this user, before and without a connection."""
    near, _far = tcp()
    with socket.socket() as fresh:
        return {
            "connected": outcome(lambda: near.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")),
            "not connected": outcome(lambda: fresh.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")),
            "TLS_TX before keys": outcome(lambda: near.getsockopt(SOL_TLS, TLS_TX, 4).hex()),
        }


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        print(json.dumps({name: CASES[name]()}), flush=True)
