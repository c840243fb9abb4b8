"""The command ``shadow-ca-signer``: one request on standard input, one answer, the right exit status."""

import contextlib
import datetime as dt
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from shadow.ca.locking import locked
from shadow.pki.certificates import Purpose, load_credentials
from shadow.pki.keys import new_key
from shadow.pki.request import make_request
from shadow.wire.codec import Decoder, encode
from shadow.wire.frames import Frame, Ping, Sign, Signed, Unsigned
from tests.support import CHECKOUT, DEADLINE, Authority, now
from tests.support.signer_socket import PROGRAM, ca_folder


@pytest.fixture
def folder(own: Authority, tmp_path: Path) -> Path:
    return ca_folder(own, tmp_path / "ca")


def request(own: Authority, days: tuple[float, float] = (-20, 10)) -> Sign:
    crt, key = own.issue("robot", "011", Purpose.ROBOT, days=days)
    return make_request("011", new_key(), load_credentials(own.ca, crt, key, Purpose.ROBOT, now()))


def decode(data: bytes) -> Frame | None:
    decoder = Decoder()
    while data:
        size = decoder.wanted
        frame = decoder.feed(data[:size])
        data = data[size:]
        if frame is not None:
            assert not data
            return frame
    return None


def run(folder: Path, said: bytes) -> tuple[Frame | None, int, str]:
    """What it answers, its exit status, and what it logs."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(said)
        ours.shutdown(socket.SHUT_WR)
        done = subprocess.run(
            [*PROGRAM, f"--dir={folder}"],
            stdin=theirs.fileno(), capture_output=True, text=True, cwd=CHECKOUT, check=False,
            timeout=DEADLINE,
        )  # fmt: skip
        theirs.close()
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # it left without reading everything
            while part := ours.recv(65536):
                answer += part
    assert done.stdout == ""
    return decode(answer), done.returncode, done.stderr


def test_a_request_is_answered_with_a_certificate(own: Authority, folder: Path) -> None:
    answer, status, log = run(folder, encode(request(own)))
    assert status == 0
    assert isinstance(answer, Signed)
    certificate = x509.load_der_x509_certificate(answer.certificate)
    assert f"robot 011: certificate {certificate.serial_number:040x} issued, valid until" in log
    assert (folder / "issued" / f"{certificate.serial_number:040x}.pem").exists()


def test_no_comes_with_its_reason_and_is_no_failure(own: Authority, folder: Path) -> None:
    answer, status, log = run(folder, encode(request(own, days=(-1, 30))))
    assert isinstance(answer, Unsigned)
    assert answer.code == "early"
    assert status == 0
    assert "WARNING: a request is refused (early): the present certificate cannot be renewed before" in log


def test_when_the_ca_is_at_fault_only_its_own_log_says_how(own: Authority, folder: Path) -> None:
    (folder / "ca.key").unlink()
    answer, status, log = run(folder, encode(request(own)))
    assert answer == Unsigned("ca", "the CA cannot sign; its own log says why")
    assert status == 78
    assert f"shadow-ca-signer: CA key {folder / 'ca.key'}: No such file or directory" in log


@pytest.mark.long
def test_the_robot_hears_that_somebody_is_at_work_in_the_folder(own: Authority, folder: Path) -> None:
    """And the log of the CA hears who; the robot tries again."""
    with locked(folder):
        answer, status, log = run(folder, encode(request(own)))
    assert answer == Unsigned("ca", "the CA cannot sign; its own log says why")
    assert status == 71
    assert f"shadow-ca-signer: CA folder {folder}: another shadow-ca, or its signer, has been at work" in log


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"", "the requester hung up before it sent a request"),
        (encode(Ping(1)), "Ping is not a request"),
        (b"GET / HTTP/1.0\r\n\r\n", "unknown frame type 71"),
        (encode(Sign(b"1", b"2", b"3"))[:-5], "hung up before it sent a request"),
    ],
)
def test_what_is_not_a_request(folder: Path, said: bytes, complaint: str) -> None:
    answer, status, log = run(folder, said)
    assert answer is None
    assert status == 76
    assert complaint in log
    assert "Traceback" not in log


def test_by_hand_it_says_who_starts_it() -> None:
    done = subprocess.run(
        PROGRAM, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=CHECKOUT, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "shadow-ca-signer: standard input is not a socket: shadow-ca-signer.socket starts this program\n"
    )


def test_help_and_version() -> None:
    for flag in ("--help", "--version"):
        done = subprocess.run([*PROGRAM, flag], capture_output=True, text=True, cwd=CHECKOUT, check=False)
        assert done.returncode == 0
        assert "shadow-ca-signer" in done.stdout
        assert ("exit status: 0 answered" in done.stdout) is (flag == "--help")


def test_whoever_says_nothing_is_not_waited_for_for_ever(folder: Path) -> None:
    program = "from shadow.cli import signer\nsigner._PATIENCE = 0.2\nraise SystemExit(signer.main())"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        began = dt.datetime.now(dt.UTC)
        done = subprocess.run(
            [sys.executable, "-c", program, f"--dir={folder}"],
            stdin=theirs.fileno(), capture_output=True, text=True, cwd=CHECKOUT, check=False,
            timeout=DEADLINE,
        )  # fmt: skip
    assert done.returncode == 76
    assert "no request came: timed out" in done.stderr
    assert dt.datetime.now(dt.UTC) - began < dt.timedelta(seconds=DEADLINE)
