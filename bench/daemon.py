"""shadow-server with listening sockets as systemd passes them: where they listen is not its business.

    daemon.py NAME=HOST:PORT NAME=PATH ... -- OPTION ...

NAME is that of the socket unit (``FileDescriptorName=``).
"""

import os
import socket
import sys
from collections.abc import Sequence

from shadow.cli.server import main

_FIRST = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_BACKLOG = 4096


def _listen(where: str) -> socket.socket:
    if where.startswith("/"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(where)
        sock.listen()
        return sock
    host, _, port = where.rpartition(":")
    return socket.create_server((host, int(port)), backlog=_BACKLOG)


def _pass(words: Sequence[str]) -> None:
    """Open them, and say so in the environment."""
    sockets = [_listen(word.partition("=")[2]) for word in words]
    # First out of the way, since one may have the number that another is to get.
    for number, copy in enumerate([os.dup(sock.detach()) for sock in sockets]):
        os.dup2(copy, _FIRST + number)
    names = ":".join(word.partition("=")[0] for word in words)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(words)), "LISTEN_FDNAMES": names}


if __name__ == "__main__":
    end = sys.argv.index("--")
    if end > 1:
        _pass(sys.argv[1:end])
    del sys.argv[1 : end + 1]
    raise SystemExit(main())
