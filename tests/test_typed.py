"""Commands of the documents that need no service manager, typed as they stand there; and what they do."""

import base64
import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import free_port
from tests.support import CHECKOUT, commands, wait_for
from tests.support.commands import typed

pytestmark = pytest.mark.long

DEADLINE = 120.0  # seconds for one line


def type_in(folder: Path, lines: str, *, status: int = 0) -> str:
    """Type lines in a folder, where the commands of the checkout are the installed ones; what they say."""
    path = f"{CHECKOUT}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", lines], cwd=folder, env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == status, (lines, done.stdout, done.stderr)
    return done.stdout + done.stderr


def listed(folder: Path, *words: str) -> list[dict[str, object]]:
    """What ``shadow-ca list --json`` says."""
    found: list[dict[str, object]] = json.loads(
        type_in(folder, " ".join(("shadow-ca --dir ca list --json", *words)))
    )
    return found


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """A folder where the examples of shadow-ca(1) have made a CA in `ca`, for a server and robot 011."""
    for command in commands.block("shadow-ca --dir ca server tunnel.example.com 192.0.2.7").commands:
        type_in(tmp_path, command.text)
    return tmp_path


def test_a_ca_a_server_and_a_robot(ca: Path) -> None:
    names = {path.name for path in (ca / "ca").iterdir()}
    assert {f"{name}.{kind}" for name in ("ca", "server", "011") for kind in ("crt", "key")} <= names
    (server,) = listed(ca, "tunnel.example.com")
    assert server["hosts"] == ["tunnel.example.com", "192.0.2.7", "2001:db8::7"]
    table = type_in(ca, typed("shadow-ca --dir ca list")).splitlines()
    assert {tuple(line.split()[:2]) for line in table[1:3]} == {
        ("tunnel.example.com", "server"), ("011", "robot"),
    }  # fmt: skip


def test_servers_of_a_fleet(ca: Path) -> None:
    for command in commands.block("shadow-ca --dir ca peer a --out a").commands:
        type_in(ca, command.text)
    files = {"server.crt", "server.key", "peer.crt", "peer.key"}
    assert {path.name for path in (ca / "a").iterdir()} == files, "all that server a needs, besides ca.crt"
    renew = typed("shadow-ca peer NAME --renew").replace("shadow-ca peer NAME", "shadow-ca --dir ca peer a")
    type_in(ca, f"{renew} --out a")
    assert [one["purpose"] for one in listed(ca, "peer:a")] == ["peer", "peer"]


def test_five_hundred_robots(ca: Path) -> None:
    count = 30  # the number is none of the lines' business, and each key takes its time
    lines = "\n".join(command.text for command in commands.block("seq -f %03g 500").commands)
    said = type_in(ca, lines.replace("500", str(count)))
    assert said.startswith(f"wrote NAME.key and NAME.crt of {count} robots, 001 to {count:03}, to robots\n")
    assert len(list((ca / "robots").glob("*.crt"))) == count
    assert len(listed(ca, "--good")) == count + 2


def test_who_ends_soon_is_named_and_renewed(ca: Path) -> None:
    ending = typed("shadow-ca --dir ca list --ending 60")
    assert type_in(ca, ending) == ""
    type_in(ca, "shadow-ca --dir ca robot 012 --days 59")
    assert type_in(ca, ending) == "012\n"
    renew = typed("shadow-ca --dir ca robot 011 --renew")
    before = (ca / "ca/011.crt").read_text()
    type_in(ca, renew)
    assert (ca / "ca/011.crt").read_text() != before
    type_in(ca, renew.replace("011", "012"))
    assert type_in(ca, ending) == ""
    assert [one["revoked"] for one in listed(ca, "011")] == [None, None]


def test_keys_need_not_stay_with_the_ca(ca: Path) -> None:
    """The README has them deleted once they are in place: afterwards new ones can be made all the same."""
    type_in(ca, typed("rm ca/server.key ca/011.key"))
    assert {path.name for path in (ca / "ca").glob("*.key")} == {"ca.key"}
    type_in(
        ca, "shadow-ca --dir ca robot 011 --renew && shadow-ca --dir ca server --renew tunnel.example.com"
    )
    assert {path.name for path in (ca / "ca").glob("*.key")} == {"ca.key", "server.key", "011.key"}


def test_what_the_log_advises_about_certificates(ca: Path) -> None:
    """The commands in the tables of what the log says: as they are meant, with names and a folder."""
    for advice, name in (
        ("shadow-ca --dir ca robot NAME --renew", "011"),
        ("shadow-ca robot NAME", "013"),
        ("shadow-ca server --renew", "server"),
    ):
        line = typed(advice).replace("NAME", name).replace("shadow-ca ", "shadow-ca --dir ca ", 1)
        names = " tunnel.example.com other.example.com" if name == "server" else ""
        type_in(ca, line.replace("--dir ca --dir ca", "--dir ca") + names)
    assert (ca / "ca/013.crt").exists()
    hosts = [one["hosts"] for one in listed(ca) if one["purpose"] == "server"]
    assert ["tunnel.example.com", "other.example.com"] in hosts
    assert len(listed(ca, "011")) == 2


def test_one_ca_follows_another(ca: Path) -> None:
    """What of CA ROLL-OVER is done where the CAs are: both certificates, and the lists of both."""
    (ca / "ca").rename(ca / "old")
    type_in(ca, typed("shadow-ca --dir new init"))
    for folder in ("old", "new"):
        type_in(ca, f"shadow-ca --dir {folder} robot 014 && shadow-ca --dir {folder} revoke 014")
    for line, sought in (
        ("cat old/ca.crt new/ca.crt >ca.crt", "BEGIN CERTIFICATE"),
        ("cat old/ca.crl new/ca.crl", "BEGIN X509 CRL"),
    ):
        assert type_in(ca, f"{typed(line).partition(' >')[0]}").count(sought) == 2
    assert "011 " in type_in(ca, typed("shadow-ca --dir old list"))


def test_a_key_for_the_firmware(ca: Path) -> None:
    """IMAGE.md: strings of SMBIOS in files that nobody else can read."""
    (make,) = (one.text for one in commands.block("for part in crt key").commands if "for part" in one.text)
    type_in(ca, make)
    for part in ("crt", "key"):
        path = ca / f"011.{part}.smbios"
        assert path.stat().st_mode & 0o777 == 0o600
        name, _, value = path.read_text().partition("=")
        assert name == f"io.systemd.credential.binary:shadow.{part}"
        assert base64.b64decode(value, validate=True) == (ca / f"ca/011.{part}").read_bytes()


def test_the_help_about_the_ca(tmp_path: Path) -> None:
    said = type_in(tmp_path, typed("shadow-ca --help"))
    for name in ("init", "server", "robot", "revoke", "crl", "list", "quickstart"):
        assert f" {name} " in said


def test_a_wrong_setting_is_one_line_and_a_status(tmp_path: Path) -> None:
    lines = commands.block("SHADOW_KEEPALIVE=never").commands
    said = type_in(tmp_path, "\n".join(command.text for command in lines)).splitlines()
    assert said[0] == "78"  # standard output comes first
    (line,) = said[1:]
    assert line.startswith(
        "shadow-server: SHADOW_KEEPALIVE in the environment: 'never' is not a number of seconds"
    )


def test_once_tells_by_its_status_that_nobody_is_there(tmp_path: Path) -> None:
    type_in(tmp_path, typed("shadow-ca quickstart ."))
    block = commands.block("shadow-client --once")
    files = "--robot=011 --lport=22 --ca=ca.crt --crt=client.crt --key=client.key"
    lines = "\n".join(command.text for command in block.commands).replace("…", files)
    port = free_port()
    said = type_in(tmp_path, lines.replace("tunnel.example.com", "127.0.0.1").replace("2222", str(port)))
    assert said.splitlines()[0] == "69"
    assert f"cannot connect to 127.0.0.1:{port}: Connection refused\n" in said


# Daemons that are started by hand.


@contextlib.contextmanager
def terminal(folder: Path, line: str) -> Iterator[None]:
    """A terminal where something runs until it is interrupted."""
    path = f"{CHECKOUT}:{os.environ['PATH']}"
    running = subprocess.Popen(
        ["bash", "-c", f"exec {line}"], cwd=folder, env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        running.terminate()
        running.wait(DEADLINE)


def test_two_daemons_and_services(tmp_path: Path) -> None:
    """The examples of shadow-server(8) and shadow-client(8), and then the services of the README."""
    folder, port, page = tmp_path, free_port(), free_port()
    type_in(folder, typed("shadow-ca quickstart ."))
    (folder / "index.html").write_text("hello from robot 011\n")
    server = typed("shadow-server -6 --lport=2222").replace("2222", str(port))
    client = typed("shadow-client --rhost=::1 --rport=2222").replace("2222", str(port))
    offer = typed("shadow-client … --robot=011").replace("…", client.removeprefix("shadow-client "))
    with terminal(folder, server):
        with terminal(folder, client):
            wait_for((folder / "011.sock").exists, "the robot's socket")
        wait_for(lambda: not (folder / "011.sock").exists(), "the socket to vanish")
        http = f"python3 -m http.server --bind localhost {page} 2>/dev/null"
        with terminal(folder, http), terminal(folder, offer.replace("8000", str(page))):
            for name in ("011", "web@011", "cam@011"):
                wait_for((folder / f"{name}.sock").exists, f"the socket {name}")
            visit = typed("curl -s --unix-socket ./web@011.sock")
            assert type_in(folder, f"{visit} --retry 30 --retry-all-errors") == "hello from robot 011\n"
