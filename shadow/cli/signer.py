"""The command ``shadow-ca-signer``: answers one request of a robot, on the connection that systemd passes.

Each request gets its own process: it reads a frame from standard input, which is a socket (``Accept=yes``),
answers with a frame, and ends. So nothing that one request does, or causes, affects the next.
"""

import argparse
import datetime as dt
import logging
import os
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from .. import events
from .. import options as command_line
from ..ca import signer
from ..errors import FrameError, Refused, ShadowError, UsageError
from ..systemd import journal
from ..wire.codec import Decoder, encode
from ..wire.frames import Frame, Sign, Signed, Unsigned
from . import process

_PATIENCE = 10.0  # seconds for the request to arrive, and for the answer to be read
_EPILOG = """\
DIR is the CA's folder: --dir, else SHADOW_CA_DIR in the environment, else the current folder.
systemd starts this program for each request; see shadow-ca-signer.socket(8).

example:
  systemctl enable --now shadow-ca-signer.socket

exit status: 0 answered, with a certificate or a refusal; 2 usage error, 76 not a valid request,
78 wrong file or CA, 75 wrong clock, 71 system error (disk full, or shadow-ca at work for long),
74 output error
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one request; return the exit status."""
    return process.run("shadow-ca-signer", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    parser = command_line.main_parser(
        "shadow-ca-signer", "Renew the certificate of a robot that asks.", _EPILOG
    )
    folder = Path(os.environ.get("SHADOW_CA_DIR") or ".")
    parser.add_argument("--dir", type=Path, default=folder, metavar="DIR", help="the CA's folder")
    options = parser.parse_args(arguments)
    journal.setup()
    with _connection() as sock:
        _serve(sock, options)


def _connection() -> socket.socket:
    if not stat.S_ISSOCK(os.fstat(sys.stdin.fileno()).st_mode):
        raise UsageError("standard input is not a socket: shadow-ca-signer.socket starts this program")
    sock = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    sock.settimeout(_PATIENCE)
    return sock


def _serve(sock: socket.socket, options: argparse.Namespace) -> None:
    request = _read(sock)
    try:
        certificate = signer.renew(options.dir, request, dt.datetime.now(dt.UTC))
        answer: Frame = Signed(certificate.public_bytes(Encoding.DER))
    except Refused as refused:
        events.log(events.RenewalFailed(code=refused.code), logging.WARNING, f"a request is {refused}")
        answer = Unsigned(refused.code, refused.text[:500])
    except ShadowError:
        # The reason is only for the CA's own log, where ``process.run`` puts it: it names files, and others
        # read the answer.
        sock.sendall(encode(Unsigned("ca", "the CA cannot sign; its own log says why")))
        raise
    sock.sendall(encode(answer))


def _read(sock: socket.socket) -> Sign:
    decoder = Decoder()
    try:
        while True:
            data = sock.recv(decoder.wanted)
            if not data:
                raise FrameError("the requester hung up before it sent a request")
            frame = decoder.feed(data)
            if isinstance(frame, Sign):
                return frame
            if frame is not None:
                raise FrameError(f"{type(frame).__name__} is not a request")
    except OSError as error:
        raise FrameError(f"no request came: {error}") from error


if __name__ == "__main__":
    raise SystemExit(main())
