"""Live connections: what reads as an end, what as a cut; the kernel's kind with a stand-in socket here."""

import asyncio
import errno

import pytest
from OpenSSL import SSL

from shadow.pki.chains import openssl_reason
from shadow.transport import ktls
from shadow.transport.context import Ktls
from shadow.transport.link import KernelLink, UserspaceLink, check_close_notify, truncated
from tests.support import Authority, linked, read_some


def test_close_notify_is_an_end_and_fin_is_not(authority: Authority) -> None:
    server, robot = asyncio.run(linked(authority, Ktls.OFF))
    robot.write(b"x")
    robot.close()
    assert read_some(server) == b"x"
    assert read_some(server) == b""
    server.sock.close()
    server, robot = asyncio.run(linked(authority, Ktls.OFF))
    robot.sock.close()
    with pytest.raises(ConnectionAbortedError, match="no close_notify"):
        read_some(server)
    server.sock.close()


def test_a_forged_record_is_a_cut(authority: Authority) -> None:
    server, robot = asyncio.run(linked(authority, Ktls.OFF))
    robot.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ConnectionAbortedError, match=r"TLS: (.*bad.*mac|record layer failure)"):
        read_some(server)
    server.sock.close()
    robot.sock.close()


def test_what_is_not_taken_at_once_waits(authority: Authority) -> None:
    server, robot = asyncio.run(linked(authority, Ktls.OFF))
    data = bytes(10_000_000)
    server.write(data)
    assert not server.flushed
    port = robot.sock.getsockname()[1]
    assert repr(server) == f"<UserspaceLink with 127.0.0.1:{port}, {server.unsent} bytes unsent>"
    assert server.unsent > 0
    received = 0
    while received < len(data):
        received += len(read_some(robot))
        server.flush()
    assert server.unsent == 0
    server.sock.close()
    robot.sock.close()


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ((21, b"\x02\x14"), "the peer sent TLS alert 20"),
        ((21, b"\x02"), "the peer sent TLS alert -1"),
        ((22, b"\x00\x00\x00\x00"), "the peer tried to renegotiate: TLS record of type 22"),
    ],
)
def test_control_records(record: tuple[int, bytes], complaint: str) -> None:
    assert check_close_notify(21, b"\x01\x00") == b""
    with pytest.raises(ConnectionAbortedError, match=complaint):
        check_close_notify(*record)


class FakeKernelSocket:
    """What a socket with kernel TLS answers (net/tls/tls_sw.c); the real one is in the machine tests."""

    def __init__(self, data: list[bytes | OSError], record: tuple[int, bytes] | None = None) -> None:
        self.data = data
        self.record = record
        self.alerts: list[object] = []

    def recv(self, _size: int) -> bytes:
        step = self.data.pop(0)
        if isinstance(step, OSError):
            raise step
        return step

    def recvmsg(self, *_arguments: object) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        assert self.record is not None
        kind, payload = self.record
        return payload, [(ktls.SOL_TLS, ktls.TLS_GET_RECORD_TYPE, bytes([kind]))], 0, None

    def sendmsg(self, buffers: list[bytes], ancillary: object, _flags: int) -> int:
        self.alerts.append((buffers, ancillary))
        return 2


def kernel_link(authority: Authority, fake: FakeKernelSocket) -> KernelLink:
    from shadow.pki.certificates import load_certificates  # noqa: PLC0415

    return KernelLink(fake, "suite", load_certificates(authority.ca, "CA"))  # type: ignore[arg-type]


def test_the_kernels_kind(authority: Authority) -> None:
    odd = OSError(errno.EIO, "Input/output error")
    fake = FakeKernelSocket([b"data", odd, b"", BlockingIOError(errno.EAGAIN, "")], (21, b"\x01\x00"))
    link = kernel_link(authority, fake)
    assert link.in_kernel
    assert link.read(10) == b"data"
    assert link.read(10) == b"", "a close_notify"
    with pytest.raises(ConnectionAbortedError, match="no close_notify"):
        link.read(10)
    with pytest.raises(BlockingIOError):
        link.read(10)
    link.send_close_notify()
    assert fake.alerts == [([b"\x01\x00"], [(282, 1, b"\x15")])]
    bad = kernel_link(authority, FakeKernelSocket([OSError(errno.EBADMSG, "Bad message")]))
    with pytest.raises(OSError, match="Bad message"):
        bad.read(10)


def test_words() -> None:
    assert openssl_reason(SSL.Error([("a", "b", "inner"), ("a", "b", "outer")])) == "outer"
    assert openssl_reason(SSL.SysCallError(-1, "Unexpected EOF")) == "unexpected end"
    assert openssl_reason(SSL.Error()) == "unknown error"
    assert truncated().errno == errno.ECONNABORTED


def test_a_userspace_link_is_none_of_the_kernels(authority: Authority) -> None:
    server, robot = asyncio.run(linked(authority, Ktls.OFF))
    assert isinstance(server, UserspaceLink)
    assert not server.in_kernel
    server.sock.close()
    robot.sock.close()
