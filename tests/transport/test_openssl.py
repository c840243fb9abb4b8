"""Records in memory of ours: whole, in order, and no connection answers for another's failure."""

import contextlib

import pytest
from OpenSSL import SSL

from shadow.transport import context
from shadow.transport.link import UserspaceLink
from shadow.transport.openssl import Buffer
from tests.support import Authority, random_bytes, userspace_linked

RECORD = 2**14


class End:
    """One end of a connection whose bytes the test carries itself."""

    def __init__(self, link: UserspaceLink) -> None:
        self.link = link
        self.records = link.records
        self.plaintext, self.ciphertext = Buffer(4 * RECORD), Buffer(5 * RECORD)

    def encrypt(self, data: bytes) -> bytes:
        self.plaintext.view[: len(data)] = data
        size = self.records.encrypt(self.plaintext, len(data), self.ciphertext)
        return bytes(self.ciphertext.view[:size])

    def feed(self, data: bytes) -> None:
        self.ciphertext.view[: len(data)] = data
        self.records.feed(self.ciphertext, len(data))

    def decrypt(self, output: Buffer | None = None) -> bytes:
        output = output or self.plaintext
        return bytes(output.view[: self.records.decrypt(output, len(output.view))])

    def goodbye(self) -> bytes:
        self.link.ssl.shutdown()
        return self.link.pending_ciphertext()


def ends(authority: Authority) -> tuple[End, End]:
    server, robot = userspace_linked(authority)
    for link in (server, robot):
        link.sock.close()
    return End(server), End(robot)


def test_records_arrive_whole_and_in_order(authority: Authority) -> None:
    server, robot = ends(authority)
    data = random_bytes(3 * RECORD + 1, 1)
    for begin, end in ((server, robot), (robot, server)):
        records = begin.encrypt(data)
        assert data[:100] not in records
        end.feed(records)
        assert end.decrypt() == data
        assert not end.records.more


def test_a_record_comes_in_pieces(authority: Authority) -> None:
    server, robot = ends(authority)
    records = server.encrypt(b"one") + server.encrypt(b"two")
    for byte in records[:-1]:
        robot.feed(bytes([byte]))
    assert robot.decrypt() == b"one"
    assert robot.decrypt() == b""
    robot.feed(records[-1:])
    assert robot.decrypt() == b"two"


def test_what_does_not_fit_is_there_to_be_asked_for(authority: Authority) -> None:
    server, robot = ends(authority)
    robot.feed(server.encrypt(b"0123456789"))
    small = Buffer(4)
    assert robot.decrypt(small) == b"0123"
    assert robot.records.more
    assert robot.decrypt(small) + robot.decrypt(small) == b"456789"
    assert not robot.records.more


def test_the_end_comes_behind_all_that_was_sent(authority: Authority) -> None:
    server, robot = ends(authority)
    robot.feed(server.encrypt(b"last words") + server.goodbye())
    assert robot.decrypt() == b"last words"
    assert robot.records.more
    for _ in range(2):
        with pytest.raises(SSL.ZeroReturnError):
            robot.decrypt()


def test_a_broken_record_is_nobody_elses_failure(authority: Authority) -> None:
    """OpenSSL keeps one queue of errors for all connections of a thread."""
    server, robot = ends(authority)
    other_server, other_robot = ends(authority)
    broken = bytearray(server.encrypt(b"never read"))
    broken[-1] ^= 1
    robot.feed(bytes(broken))
    with pytest.raises(SSL.Error) as caught:
        robot.decrypt()
    assert "decryption failed" in str(caught.value)
    assert other_robot.decrypt() == b""  # wants more, and says nothing of what happened to the first
    other_robot.feed(other_server.encrypt(b"well"))
    assert other_robot.decrypt() == b"well"


def test_a_failure_behind_good_bytes_waits_its_turn(authority: Authority) -> None:
    server, robot = ends(authority)
    other_robot = ends(authority)[1]
    good, broken = server.encrypt(b"good"), bytearray(server.encrypt(b"bad"))
    broken[-1] ^= 1
    robot.feed(good + bytes(broken))
    assert robot.decrypt() == b"good"
    assert other_robot.decrypt() == b""
    with pytest.raises(SSL.Error, match="decryption failed"):
        robot.decrypt()


def test_nothing_is_sent_after_a_failure(authority: Authority) -> None:
    server, robot = ends(authority)
    robot.feed(b"\x15\x03\x03\x00\x02\x02\x28" + bytes(40))
    with pytest.raises(SSL.Error):
        robot.decrypt()
    with pytest.raises(SSL.Error):
        robot.encrypt(b"x")
    assert server.encrypt(b"x")


def test_replies_are_seen(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_SSL_OP_NO_RENEGOTIATION", 0)  # or it would not even try
    server, robot = ends(authority)
    assert robot.records.replies(robot.ciphertext) == 0
    assert server.link.ssl.renegotiate()
    with contextlib.suppress(SSL.WantReadError):
        server.link.ssl.do_handshake()
    robot.feed(server.link.pending_ciphertext())
    assert robot.decrypt() == b""
    assert robot.records.replies(robot.ciphertext) > 0
