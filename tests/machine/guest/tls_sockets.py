"""What the kernel says about a process's TCP connections: ``tls_sockets.py PID PORT``, as root.

Prints one JSON object per established connection from or to PORT: ``local`` and ``peer`` (ports), and
``sends`` and ``receives``: version and cipher of kernel TLS as TLS_TX and TLS_RX give them (linux/tls.h), or
null. The process is not asked: pidfd_getfd(2) makes copies of its descriptors.
"""

import ctypes
import json
import os
import socket
import struct
import sys

_PIDFD_GETFD = 438
_SOL_TLS, _TLS_TX, _TLS_RX = 282, 1, 2
_ESTABLISHED = 1
_libc = ctypes.CDLL(None, use_errno=True)


def copy(pidfd: int, descriptor: int) -> int:
    """A copy of another process's descriptor; negative if that has gone."""
    return int(_libc.syscall(_PIDFD_GETFD, pidfd, descriptor, 0))


def crypto(sock: socket.socket, direction: int) -> list[int] | None:
    """Version and cipher (struct tls_crypto_info) of one direction."""
    try:
        return list(struct.unpack("HH", sock.getsockopt(_SOL_TLS, direction, 4)))
    except OSError:
        return None


def describe(sock: socket.socket, port: int) -> dict[str, object] | None:
    """What is printed of a connection; None if it is none of ours."""
    if sock.family not in {socket.AF_INET, socket.AF_INET6} or sock.type != socket.SOCK_STREAM:
        return None
    if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
        return None
    local, peer = sock.getsockname()[1], sock.getpeername()[1]
    if port not in {local, peer}:
        return None
    return {"local": local, "peer": peer, "sends": crypto(sock, _TLS_TX), "receives": crypto(sock, _TLS_RX)}


def main() -> None:
    """Look at every socket of the process."""
    pid, port = int(sys.argv[1]), int(sys.argv[2])
    pidfd = os.pidfd_open(pid)
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            is_socket = os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            continue
        if is_socket and (descriptor := copy(pidfd, int(name))) >= 0:
            with socket.socket(fileno=descriptor) as sock:
                if (found := describe(sock, port)) is not None:
                    print(json.dumps(found))


if __name__ == "__main__":
    main()
