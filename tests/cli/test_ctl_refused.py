"""What ``shadowctl`` does not do, and how it says so: all asked of one server, which it leaves as it is."""

import os
from collections.abc import Callable, Iterator

import pytest

from shadow.cli import ctl
from tests.support import Authority, Tunnel, echo, serving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def standing(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """A server with a robot, for all of these."""
    with Tunnel(authority, tmp_path_factory.mktemp("tunnel")) as made, serving(echo) as service:
        made.start_server_with_api()
        made.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        yield made


@pytest.fixture
def run(standing: Tunnel, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SHADOW_LDIR", str(standing.ldir))

    def call(*words: str) -> tuple[int, str, str]:
        status = ctl.main(words)
        output = capfd.readouterr()
        return status, output.out, output.err

    return call


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        ([], 2, "COMMAND"),
        (["dance"], 2, "dance"),
        (["wait", "011", "--timeout=soon"], 2, "'soon' is not a number of seconds"),
        (["wait", "011", "--timeout=nan"], 2, "'nan' is not a number of seconds"),
        (["status", "0111"], 69, "robot '0111' is not connected; did you mean 011?"),
        (["streams", "0111"], 69, "robot '0111' is not connected"),
        (["disconnect", "0111"], 69, "robot '0111' is not connected"),
        (["disconnect", "--stream", "ff"], 69, "there is no stream 'ff'"),
        (["connect", "0111"], 69, "robot '0111' is not connected; did you mean 011?"),
        (["connect", "011", "web"], 69, "does not offer web; it offers default"),
        (["connect", "0/1"], 78, "robot name '0/1' is not allowed"),
        (["connect", "--fdpass", "011"], 78, "--fdpass is for ssh's ProxyUseFdpass=yes"),
        *(
            (words.split(), 78, "robot name '0/1' is not allowed")
            for words in (
                "wait 0/1",
                "wait 0/1 --timeout=1",
                "status 0/1",
                "streams 0/1",
                "watch 0/1",
                "logs 0/1",
                "disconnect 0/1",
            )
        ),
        (["lsit"], 2, "'lsit' is not one of list, status, streams"),
        (["lsit"], 2, "; did you mean list?"),
        (["list", "--jsno"], 2, "unrecognized arguments: --jsno; did you mean --json?"),
        (["wait", "011", "--time=5"], 2, "did you mean --timeout?"),
        (["--dir=/nonexistent", "list"], 69, "shadow-server does not run here"),
    ],
)
def test_what_cannot_be(run: Run, words: list[str], status: int, complaint: str) -> None:
    result, output, errors = run(*words)
    assert (result, output) == (status, "")
    assert errors.startswith("shadowctl: ")
    assert complaint in errors
    assert errors.count("\n") == 1


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
@pytest.mark.parametrize(
    "words", ["list", "status", "streams", "watch", "wait 011", "disconnect 011", "reload"]
)
def test_who_may_not_ask(run: Run, words: str) -> None:
    os.seteuid(65534)
    try:
        status, output, errors = run(*words.split())
    finally:
        os.seteuid(0)
    assert (status, output, errors.count("\n")) == (77, "", 1)
    assert "permission denied; you need to be in the group shadow-tunnel" in errors
