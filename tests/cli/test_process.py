"""The one door out of the process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadow import events
from shadow.cli import process
from shadow.errors import ConfigError, UsageError
from tests.support import CHECKOUT
from tests.support.journald import as_journald, hear


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    handlers, propagate = events.LOGGER.handlers[:], events.LOGGER.propagate
    yield
    events.LOGGER.handlers[:] = handlers
    events.LOGGER.propagate = propagate


def raising(error: BaseException) -> int:
    def body() -> None:
        raise error

    return process.run("shadow-x", body)


def test_errors_raised_on_purpose_become_a_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ConfigError("ca.crt: No such file or directory")) == 78
    assert raising(UsageError("--rhost is missing")) == 2
    assert capsys.readouterr().err == (
        "shadow-x: ca.crt: No such file or directory\nshadow-x: --rhost is missing\n"
    )


def test_a_bug_leaves_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ZeroDivisionError("oops")) == 70
    assert "ZeroDivisionError: oops" in capsys.readouterr().err


def test_under_systemd_the_last_word_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with as_journald(tmp_path, monkeypatch) as sock:
        assert raising(ConfigError("ca.crt: No such file or directory")) == 78
        on_purpose = hear(sock)
        assert on_purpose["MESSAGE"] == "shadow-x: ca.crt: No such file or directory"
        assert (on_purpose["MESSAGE_ID"], on_purpose["PRIORITY"]) == (events.Failed.MESSAGE_ID, "3")
        assert raising(ZeroDivisionError("oops")) == 70
        bug = sock.recv(65536)
        assert b"ZeroDivisionError: oops" in bug
        assert f"MESSAGE_ID={events.Failed.MESSAGE_ID}".encode() in bug


def test_ctrl_c_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_what_the_body_returns(returned: int | None, status: int) -> None:
    assert process.run("shadow-x", lambda: returned) == status


def test_a_reader_that_left_is_no_error() -> None:
    program = (
        "from shadow.cli import process\n"
        "raise SystemExit(process.run('x', lambda: print('line\\n' * 100000)))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
