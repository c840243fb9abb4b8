"""The one door out of the process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import systemd.journal

from shadow import journal
from shadow.cli import door
from shadow.errors import ConfigError, UsageError
from shadow.journal import Event
from tests.support import CHECKOUT


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    handlers, propagate = journal.LOGGER.handlers[:], journal.LOGGER.propagate
    yield
    journal.LOGGER.handlers[:] = handlers
    journal.LOGGER.propagate = propagate


def raising(error: BaseException) -> int:
    def body() -> None:
        raise error

    return door.run("shadow-x", body)


def test_errors_raised_on_purpose_become_a_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ConfigError("ca.crt: No such file or directory")) == 78
    assert raising(UsageError("--rhost is missing")) == 2
    assert capsys.readouterr().err == (
        "shadow-x: ca.crt: No such file or directory\nshadow-x: --rhost is missing\n"
    )


def test_a_bug_leaves_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ZeroDivisionError("oops")) == 70
    assert "ZeroDivisionError: oops" in capsys.readouterr().err


def test_under_systemd_the_last_word_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, str]] = []
    monkeypatch.setattr(
        systemd.journal, "sendv", lambda *fields: sent.append(dict(field.split("=", 1) for field in fields))
    )
    with Path(os.devnull).open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(sys, "stderr", stream)
        assert raising(ConfigError("ca.crt: No such file or directory")) == 78
        assert raising(ZeroDivisionError("oops")) == 70
    on_purpose, bug = sent
    assert on_purpose["MESSAGE"] == "shadow-x: ca.crt: No such file or directory"
    assert bug["MESSAGE"].endswith("ZeroDivisionError: oops")
    for fields in sent:
        assert (fields["MESSAGE_ID"], fields["PRIORITY"]) == (Event.FAILED.value, "3")


def test_ctrl_c_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_what_the_body_returns(returned: int | None, status: int) -> None:
    assert door.run("shadow-x", lambda: returned) == status


def test_a_reader_that_left_is_no_error() -> None:
    program = (
        "from shadow.cli import door\nraise SystemExit(door.run('x', lambda: print('line\\n' * 100000)))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
