"""``shadow-ca`` as people use it: what it writes, what it says, and what it leaves alone."""

import base64
import datetime as dt
import itertools
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shadow.ca import authority as authorities
from shadow.ca import folder as folders
from shadow.ca import issuing, signer
from shadow.ca import revocation as revocations
from shadow.cli import ca
from shadow.cli.ca import main
from shadow.errors import Refused
from shadow.names import ROBOT_NAME_MAX
from shadow.pki import keys
from shadow.pki.certificates import (
    Credentials,
    Purpose,
    common_name,
    host_names,
    load_certificates,
    load_credentials,
    serial_of,
    validity,
)
from shadow.pki.crl import load_revocations
from shadow.pki.files import write_files
from shadow.pki.peers import peer_of
from shadow.pki.request import make_request
from tests.support import DEADLINE

CHECKOUT = Path(__file__).parents[2]
NOBODY = 65534
NEXT = [
    "next: bring ca.crl to the server; then there, as root:",
    "  install -m 644 ca.crl /etc/shadow-tunnel/ && systemctl reload shadow-server",
    "(while one CA follows another, that file has the lists of both: CA ROLL-OVER in shadow-ca(1))",
    'to see that it works: `shadowctl status` says there "Revoked: 1 certificate"',
]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in an empty current folder; its exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHADOW_CA_DIR", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


def good(result: tuple[int, str, str]) -> str:
    status, output, errors = result
    assert (status, errors) == (0, "")
    return output


def bad(result: tuple[int, str, str], expected: int) -> str:
    """The one line of an error."""
    status, output, errors = result
    assert (status, output) == (expected, "")
    assert errors.startswith("shadow-ca: ")
    assert errors.count("\n") == 1
    return errors


def tree(folder: Path) -> dict[str, bytes]:
    """All files below ``folder`` with their contents; the CA's own copies as one entry each."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> set[str]:
    return {name for name in tree(folder) if not name.startswith("issued/")}


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


# --- the way it is meant ---


def test_from_nothing_to_a_robot(run: Run, tmp_path: Path) -> None:
    assert "wrote ca.key, ca.crt\n" in good(run("init"))
    assert names(tmp_path) == {"ca.crt", "ca.key"}
    said = good(run("server", "tunnel.example.com", "2001:db8::7"))
    assert "wrote server.key, server.crt\n" in said
    assert "server tunnel.example.com, 2001:db8::7, valid until" in said
    assert said.endswith(
        "next: bring ca.crt, server.crt and server.key to the server, into /etc/shadow-tunnel;\n"
        "then there, as root: systemctl enable --now shadow-server.socket\n"
    )
    said = good(run("robot", "012"))
    assert "wrote 012.key, 012.crt\n" in said
    assert "robot 012, valid until" in said
    assert said.endswith(
        "next: bring ca.crt, 012.crt and 012.key to the robot, into /etc/shadow-tunnel;\n"
        "then there, as root: systemctl enable --now shadow-client@012\n"
    )
    assert names(tmp_path) == {"ca.crt", "ca.key", "server.crt", "server.key", "012.crt", "012.key"}
    for name, purpose in (("server", Purpose.SERVER), ("012", Purpose.ROBOT)):
        credentials = load_credentials(
            Path("ca.crt"), Path(f"{name}.crt"), Path(f"{name}.key"), purpose, now()
        )
        assert authorities.fingerprint(credentials.chain[0]) in good(run("list", "--json"))


def test_servers_of_a_fleet(run: Run) -> None:
    good(run("init"))
    said = good(run("peer", "a", "--out=a"))
    assert "wrote a/peer.key, a/peer.crt\n" in said
    assert "server peer:a, valid until" in said
    assert said.endswith(
        "next: bring ca.crt, a/peer.crt and a/peer.key to server a, into /etc/shadow-tunnel;\n"
        "then there, as root: systemctl restart shadow-server\n"
    )
    good(run("peer", "b", "--out=b"))
    credentials = [
        load_credentials(
            Path("ca.crt"), Path(f"{one}/peer.crt"), Path(f"{one}/peer.key"), Purpose.PEER, now()
        )
        for one in "ab"
    ]
    assert [peer_of(one.chain[0]) for one in credentials] == ["a", "b"]
    entries = json.loads(good(run("list", "--json")))
    assert {(entry["name"], entry["purpose"]) for entry in entries} == {
        ("peer:a", "peer"),
        ("peer:b", "peer"),
    }
    assert [line.split()[:2] for line in good(run("list", "peer:b")).splitlines()[1:2]] == [
        ["peer:b", "peer"]
    ]


def test_what_other_kinds_can_a_peer_can(run: Run) -> None:
    """Robot `a` and server `a` have nothing to do with it."""
    good(run("init"))
    for words in (["robot", "a"], ["server", "a"], ["peer", "a", "--days=9"]):
        good(run(*words))
    (old,) = load_certificates(Path("peer.crt"), "peer")
    assert [one["name"] for one in json.loads(good(run("list", "--ending=10", "--json")))] == ["peer:a"]
    said = good(run("peer", "a", "--renew", "--basename=peer"))
    assert "then there, as root: systemctl restart shadow-server\n" in said
    (new,) = load_certificates(Path("peer.crt"), "peer")
    assert new.public_key() != old.public_key()
    assert good(run("list", "--ending=10")) == "0 certificates\n"
    said = good(run("revoke", "peer:a", "--serial", serial_of(old)))
    assert said.startswith(f"revoked server peer:a, {serial_of(old)}\nnot revoked: peer:a, {serial_of(new)}")
    good(run("revoke", "peer:a"))
    (ca_crt,) = load_certificates(Path("ca.crt"), "CA")
    revoked = load_revocations(Path("ca.crl"), [ca_crt])
    for name, why in (("peer", "revoked"), ("a", None), ("server", None)):
        reason = revoked.reason(load_certificates(Path(f"{name}.crt"), name))
        assert (why is None and reason is None) or (why is not None and why in str(reason))


def test_a_peers_place_is_not_taken_by_the_next(run: Run) -> None:
    good(run("init"))
    good(run("peer", "a"))
    assert "peer.key is already there; nothing was written" in bad(run("peer", "b"), 78)
    line = bad(run("peer", "b", "--renew"), 78)
    assert "peer.crt is the certificate of 'peer:a'" in line


@pytest.mark.parametrize("name", ["peer:a", "", "../a", "-a", "a" * 60, "a b", "ä"])
def test_ids_that_no_server_has(run: Run, name: str) -> None:
    good(run("init"))
    assert "server id" in bad(run("peer", "--", name), 2)


def test_output_says_what_is_true(run: Run) -> None:
    said = good(run("init", "--name", "My CA"))
    certificate = load_certificates(Path("ca.crt"), "CA")[0]
    assert f"CA My CA, valid until {validity(certificate)[1]:%Y-%m-%d %H:%M:%S} UTC" in said
    assert f"SHA-256 {authorities.fingerprint(certificate)}\n" in said
    assert common_name(certificate) == "My CA"


@pytest.mark.parametrize(
    ("arguments", "name", "days"),
    [
        (["init"], "ca", 3650),
        (["init", "--days", "9"], "ca", 9),
        (["server", "a"], "server", 730),
        (["server", "a", "--days=9"], "server", 9),
        (["robot", "a"], "a", 730),
        (["robot", "a", "--days=9"], "a", 9),
        (["peer", "a"], "peer", 730),
        (["peer", "a", "--days=9"], "peer", 9),
    ],
)
def test_days(run: Run, arguments: list[str], name: str, days: int) -> None:
    if name != "ca":
        good(run("init"))
    good(run(*arguments))
    end = validity(load_certificates(Path(f"{name}.crt"), name)[0])[1]
    assert abs(end - now() - dt.timedelta(days=days)) < dt.timedelta(minutes=1)


def test_modes(run: Run, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        good(run("quickstart", "q"))
        good(run("--dir=q", "robot", "x", "--out=out"))
    finally:
        os.umask(old)
    for path in tmp_path.rglob("*"):
        expected = 0o700 if path.is_dir() else 0o600 if path.suffix == ".key" else 0o644
        assert path.stat().st_mode & 0o7777 == expected, path


def test_folder_from_option_environment_or_here(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good(run("init"))
    monkeypatch.setenv("SHADOW_CA_DIR", "env")
    good(run("init"))
    good(run("--dir", "before", "init"))
    good(run("init", "--dir", "behind"))
    monkeypatch.setenv("SHADOW_CA_DIR", "")
    assert ": ca.key is already there" in bad(run("init"), 78)
    assert names(tmp_path) == {
        f"{folder}{name}" for folder in ("", "env/", "before/", "behind/") for name in ("ca.crt", "ca.key")
    }


def test_out_and_basename(run: Run, tmp_path: Path) -> None:
    good(run("--dir=ca", "init"))
    good(run("--dir=ca", "server", "a", "--out=out/deep", "--basename=tunnel"))
    said = good(run("--dir=ca", "robot", "011", "--out", "o u t", "--basename=x"))
    assert "bring ca/ca.crt, o u t/x.crt (as 011.crt) and o u t/x.key (as 011.key) to the robot" in said
    assert names(tmp_path / "out") == {"deep/tunnel.crt", "deep/tunnel.key"}
    assert names(tmp_path / "o u t") == {"x.crt", "x.key"}
    assert names(tmp_path / "ca") == {"ca.crt", "ca.key"}
    assert len(tree(tmp_path / "ca" / "issued")) == 2


def test_list(run: Run) -> None:
    good(run("init"))
    assert good(run("list")) == "0 certificates\n"
    assert json.loads(good(run("list", "--json"))) == []
    good(run("server", "a.example", "::1"))
    good(run("robot", "011", "--days=5"))
    robot, server = sorted(json.loads(good(run("list", "--json"))), key=lambda entry: str(entry["name"]))
    certificate = load_certificates(Path("011.crt"), "robot")[0]
    start, end = validity(certificate)
    assert robot == {
        "name": "011",
        "purpose": "robot",
        "hosts": [],
        "serial": f"{certificate.serial_number:040x}",
        "fingerprint": authorities.fingerprint(certificate),
        "certificateBegins": start.isoformat(),
        "certificateEnds": end.isoformat(),
        "expired": False,
        "revoked": None,
    }
    assert (server["name"], server["purpose"], server["hosts"]) == (
        "a.example",
        "server",
        ["a.example", "::1"],
    )
    header, *lines, _empty, total = good(run("list")).splitlines()
    assert header.split() == ["NAME", "FOR", "ENDS", "STATE", "SERIAL"]
    assert f"011        robot   {end:%Y-%m-%d}  good   {robot['serial']}" in lines
    assert (len(lines), total) == (2, "2 certificates")


def test_list_shows_what_has_expired(run: Run, tmp_path: Path) -> None:
    past = now() - dt.timedelta(days=10)
    authority = authorities.create_authority("CA", 100, past)
    old = authorities.issue_robot(authority, "old", 5, past)
    write_files(
        [
            *folders.authority_files(tmp_path, authority),
            *folders.leaf_files(tmp_path, tmp_path, "old", old),
        ],
        force=False,
    )
    assert re.search(r"^old +robot +\S+ +expired ", good(run("list")), re.M)
    assert json.loads(good(run("list", "--json")))[0]["expired"] is True


def test_list_needs_no_key(run: Run) -> None:
    good(run("quickstart", "."))
    Path("ca.key").unlink()
    assert good(run("list")).endswith("\n2 certificates\n")


@pytest.fixture
def various(run: Run, tmp_path: Path) -> Run:
    """A CA of some age: what it has issued is good, or renewed, or ends soon, or has, or is revoked."""
    past = now() - dt.timedelta(days=100)
    authority = authorities.create_authority("CA", 1000, past)
    write_files(folders.authority_files(tmp_path, authority), force=False)
    for name, days in (
        ("fresh", 160), ("ends", 120), ("renewed", 110), ("renewed", 180), ("over", 50),
        ("gone", 160), ("gone", 50), ("gone", 51),
    ):  # fmt: skip
        leaf = authorities.issue_robot(authority, name, days, past)
        write_files([folders.index_file(tmp_path, leaf.certificate)], force=False)
    good(run("revoke", "gone"))
    return run


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((), "ends fresh gone gone gone over renewed renewed"),
        (("--good",), "ends fresh renewed renewed"),
        (("--expired",), "gone gone over"),
        (("--revoked",), "gone"),
        (("--ending=30",), "ends"),
        (("--ending=70",), "ends fresh"),
        (("--ending=9",), ""),
        (("ends", "over", "nobody"), "ends over"),
        (("ends", "over", "--expired"), "over"),
        (("fresh", "--ending=70"), "fresh"),
    ],
)
def test_a_part_of_the_list(various: Run, words: tuple[str, ...], found: str) -> None:
    assert [entry["name"] for entry in json.loads(good(various("list", "--json", *words)))] == found.split()
    lines = good(various("list", *words)).splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == found.split()


# --- revoke, crl ---


def test_revoke(run: Run) -> None:
    good(run("init"))
    good(run("robot", "011"))
    good(run("robot", "012"))
    serial = {entry["name"]: entry["serial"] for entry in json.loads(good(run("list", "--json")))}
    said = good(run("revoke", "011", "--days=20")).splitlines()
    assert said[:2] == [f"revoked robot 011, {serial['011']}", "wrote ca.crl"]
    assert said[2].startswith("list 1: 1 revoked, the next list is due on ")
    assert said[3:] == NEXT
    assert stat.S_IMODE(Path("ca.crl").stat().st_mode) == 0o644
    subprocess.run(
        ["openssl", "crl", "-in", "ca.crl", "-CAfile", "ca.crt", "-noout"], check=True, capture_output=True
    )
    assert {line.split()[0]: line.split()[3] for line in good(run("list")).splitlines()[1:3]} == {
        "011": "revoked",
        "012": "good",
    }
    entries = {entry["name"]: entry for entry in json.loads(good(run("list", "--json")))}
    assert dt.datetime.fromisoformat(entries["011"]["revoked"]) <= now()
    assert entries["012"]["revoked"] is None


def test_revoking_again_writes_nothing(run: Run, tmp_path: Path) -> None:
    good(run("quickstart", "."))
    good(run("revoke", "011"))
    before = tree(tmp_path)
    said = good(run("revoke", "011", "011")).splitlines()
    assert said == ["nothing to do: all of them have been revoked or have expired", *NEXT]
    assert tree(tmp_path) == before


def test_a_new_certificate_of_a_revoked_robot_is_good(run: Run) -> None:
    good(run("init"))
    good(run("robot", "011"))
    good(run("revoke", "011"))
    good(run("robot", "011", "--renew"))
    states = [line.split()[3] for line in good(run("list")).splitlines()[1:3]]
    assert sorted(states) == ["good", "revoked"]


def test_revoking_one_certificate_of_two(run: Run) -> None:
    good(run("init"))
    good(run("robot", "011"))
    good(run("robot", "011", "--renew"))
    first, second = json.loads(good(run("list", "--json")))
    colons = ":".join(first["serial"][place : place + 2] for place in range(0, 40, 2)).upper()
    said = good(run("revoke", "011", "--serial", colons))
    assert f"not revoked: 011, {second['serial']}, valid until " in said
    revoked = {entry["serial"]: entry["revoked"] for entry in json.loads(good(run("list", "--json")))}
    assert revoked[first["serial"]] is not None
    assert revoked[second["serial"]] is None


def test_the_list_is_signed_again(run: Run) -> None:
    good(run("quickstart", "."))
    said = good(run("crl")).splitlines()
    assert said[1].startswith("list 1: 0 revoked")
    assert said[2:] == [*NEXT[:-1], NEXT[-1].replace("1 certificate", "0 certificates")]
    good(run("revoke", "011"))
    assert good(run("crl", "--days=3")).splitlines()[1].startswith("list 3: 1 revoked")


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["revoke", "012"], 78, "the CA has issued nothing to '012': did you mean 011?"),
        (["revoke", "011", "--serial=12"], 78, "no certificate of '011' has the serial number 0000"),
        (["revoke", "011", "--serial=x"], 2, "'x' is not a serial number in hexadecimal"),
        (["revoke"], 2, "NAME"),
        (["crl", "--days=0"], 2, "'0' is not a number from 1 to"),
    ],
)
def test_revoking_what_cannot_be(
    run: Run, tmp_path: Path, words: list[str], status: int, complaint: str
) -> None:
    good(run("quickstart", "."))
    before = tree(tmp_path)
    assert complaint in bad(run(*words), status)
    assert tree(tmp_path) == before


def test_a_damaged_list_stops_everything_that_needs_it(run: Run, tmp_path: Path) -> None:
    good(run("quickstart", "."))
    Path("ca.crl").write_text("-----BEGIN X509 CRL-----\n")
    before = tree(tmp_path)
    for words in (["revoke", "011"], ["crl"], ["list"]):
        assert "revocation list ca.crl: damaged" in bad(run(*words), 78)
    assert tree(tmp_path) == before


# --- many robots, and new certificates for those that have one ---


def test_many_robots(run: Run, tmp_path: Path) -> None:
    good(run("init"))
    Path("fleet.txt").write_text("# the first ones\n\n001\n  002  \r\nrobot-3\n")
    said = good(run("robot", "--from=fleet.txt", "--out=robots"))
    assert said.startswith("wrote NAME.key and NAME.crt of 3 robots, 001 to robot-3, to robots\nvalid until ")
    assert said.endswith(
        "next: bring ca.crt, robots/NAME.crt and robots/NAME.key to robot NAME, into /etc/shadow-tunnel;\n"
        "then there, as root: systemctl enable --now shadow-client@NAME\n"
    )
    robots = ["001", "002", "robot-3"]
    assert names(tmp_path / "robots") == {f"{name}.{end}" for name in robots for end in ("crt", "key")}
    for name in robots:
        crt, key = tmp_path / "robots" / f"{name}.crt", tmp_path / "robots" / f"{name}.key"
        load_credentials(tmp_path / "ca.crt", crt, key, Purpose.ROBOT, now())
    assert [entry["name"] for entry in json.loads(good(run("list", "--json")))] == robots
    good(run("robot", "004", "005"))
    assert {"004.crt", "005.key"} < names(tmp_path)


@pytest.mark.parametrize("words", [[], ["--renew"]])
def test_of_many_all_or_none(run: Run, tmp_path: Path, words: list[str]) -> None:
    good(run("init"))
    (tmp_path / "003.key").write_bytes(b"precious")
    before = tree(tmp_path)
    assert "003.key is " in bad(run("robot", "001", "002", "003", "004", *words), 78)
    assert tree(tmp_path) == before


def test_a_new_certificate_with_a_new_key(run: Run, tmp_path: Path) -> None:
    good(run("init"))
    good(run("robot", "011"))
    before = tree(tmp_path)
    assert "011.key is already there; nothing was written (--renew puts a new key and certificate in" in bad(
        run("robot", "011"), 78
    )
    assert tree(tmp_path) == before
    said = good(run("robot", "011", "--renew"))
    assert said.endswith("then there, as root: systemctl restart shadow-client@011\n")
    load_credentials(tmp_path / "ca.crt", tmp_path / "011.crt", tmp_path / "011.key", Purpose.ROBOT, now())
    assert Path("011.key").read_bytes() != before["011.key"]
    assert len(json.loads(good(run("list", "--json", "--good")))) == 2
    # Where the files have been taken away, too.
    for name in ("011.crt", "011.key"):
        Path(name).unlink()
    good(run("robot", "011", "--renew"))
    assert {"011.crt", "011.key"} < names(tmp_path)


@pytest.mark.parametrize("more", [(), ("--force",), ("--out=elsewhere",)])
@pytest.mark.parametrize(
    ("words", "who"),
    [
        (
            ("robot", "012"),
            "'012', and nothing was written; did you mean 011? without --renew a new robot gets",
        ),
        (("robot", "011", "012"), "'012', and nothing was written; did you mean 011?"),
        (
            ("robot", "x", "011", "y"),
            "'x', nor to 1 other, and nothing was written; without --renew a new robot",
        ),
        (("peer", "aa"), "'peer:aa', and nothing was written; without --renew a new peer gets its first"),
        (("server", "a.example"), "a server, and nothing was written; without --renew one gets its first"),
    ],
)
def test_who_has_nothing_is_not_renewed(
    run: Run, tmp_path: Path, words: tuple[str, ...], who: str, more: tuple[str, ...]
) -> None:
    good(run("init"))
    good(run("robot", "011"))
    before = tree(tmp_path)
    said = bad(run(*words, "--renew", *more), 78)
    assert f"shadow-ca: nothing was ever issued to {who}" in said
    assert tree(tmp_path) == before
    good(run(*words[:1], "021" if words[0] == "robot" else "a.example"))  # as it says


def test_what_a_former_ca_has_issued_here_is_renewed(run: Run, tmp_path: Path) -> None:
    """The new one's certificate stands first in ca.crt, and its key in the place of the old one."""
    good(run("init"))
    good(run("robot", "011", "--out=elsewhere"))
    good(run("--dir=new", "init"))
    Path("ca.crt").write_bytes(Path("new/ca.crt").read_bytes() + Path("ca.crt").read_bytes())
    Path("ca.key").write_bytes(Path("new/ca.key").read_bytes())
    good(run("robot", "011", "--renew"))
    load_credentials(tmp_path / "new/ca.crt", Path("011.crt"), Path("011.key"), Purpose.ROBOT, now())


def test_a_new_server_certificate(run: Run) -> None:
    good(run("init"))
    good(run("server", "a.example", "b.example", "::1"))
    said = good(run("server", "b.example", "c.example", "--renew"))
    assert "the one before was also for a.example: robots that dial it will refuse this one\n" in said
    assert "also for ::1" in said
    assert said.endswith("then there, as root: systemctl restart shadow-server\n")
    assert "also for" not in good(run("server", "b.example", "c.example", "::1", "--renew"))


# --- several at once ---


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, place: tuple[object, str], action: Callable[[], object]
) -> threading.Thread:
    """When the function at ``place`` is called: first ``action`` in a thread, until it is over or waits."""
    over = threading.Event()
    real = getattr(*place)

    def act() -> None:
        try:
            action()
        finally:
            over.set()

    def wait(seconds: float) -> None:
        over.set()  # it waits for the lock
        threading.Event().wait(seconds)

    def call(*arguments: object, **named: object) -> object:
        monkeypatch.setattr(*place, real)  # once
        thread.start()
        assert over.wait(DEADLINE)
        return real(*arguments, **named)

    thread = threading.Thread(target=act)
    monkeypatch.setattr("time.sleep", wait)
    monkeypatch.setattr(*place, call)
    return thread


def revoked() -> set[str]:
    (listed,) = load_revocations(Path("ca.crl"), load_certificates(Path("ca.crt"), "CA")).lists
    return {f"{serial:040x}" for serial in listed.revoked}


def aged_robot(folder: Path) -> Credentials:
    """Robot 011 of the CA in a folder, with a certificate that is old enough to be renewed."""
    authority = folders.load_authority(folder, now())
    leaf = authorities.issue_robot(authority, "011", 30, now() - dt.timedelta(days=20))
    write_files(folders.leaf_files(folder, folder, "011", leaf), force=False)
    return Credentials([authority.certificate], [leaf.certificate], leaf.key)


@pytest.fixture
def old_ca(run: Run, tmp_path: Path) -> Path:
    """A CA that was there before its robots."""
    authority = authorities.create_authority("CA", 3000, now() - dt.timedelta(days=100))
    write_files(folders.authority_files(tmp_path, authority), force=False)
    return tmp_path


def test_a_certificate_that_the_signer_makes_during_a_revocation_is_revoked(
    old_ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has looked at the list and not written yet when `revoke` begins."""
    present = aged_robot(old_ca)
    revocation = meanwhile(monkeypatch, (signer, "renew_robot"), lambda: main(["revoke", "011"]))
    made = signer.renew(old_ca, make_request("011", keys.new_key(), present), now())
    revocation.join(DEADLINE)
    assert revoked() == {serial_of(present.chain[0]), serial_of(made)}


def test_the_signer_makes_none_once_a_revocation_has_looked(
    run: Run, old_ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = aged_robot(old_ca)
    said: list[str] = []

    def renew() -> None:
        try:
            signer.renew(old_ca, make_request("011", keys.new_key(), present), now())
        except Refused as refused:
            said.append(refused.code)

    renewing = meanwhile(monkeypatch, (revocations, "make_list"), renew)
    good(run("revoke", "011"))
    renewing.join(DEADLINE)
    assert said == ["revoked"]
    assert len(folders.load_issued(old_ca)) == 1


def test_two_revocations_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    good(run("init"))
    serials = set()
    for name in ("011", "012"):
        good(run("robot", name))
        serials.add(serial_of(load_certificates(Path(f"{name}.crt"), "robot")[0]))
    other = meanwhile(monkeypatch, (ca, "write_files"), lambda: main(["revoke", "012"]))
    good(run("revoke", "011"))
    other.join(DEADLINE)
    assert revoked() == serials
    assert "list 3: 2 revoked" in good(run("crl"))


def test_a_robot_gets_its_certificate_from_the_ca_that_is_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new CA is made just when it is issued: that one has to wait, and then is refused."""
    good(run("init"))
    other = meanwhile(monkeypatch, (issuing, "write_files"), lambda: main(["init", "--force"]))
    assert run("robot", "011")[0] == 0
    other.join(DEADLINE)
    load_credentials(tmp_path / "ca.crt", tmp_path / "011.crt", tmp_path / "011.key", Purpose.ROBOT, now())


# --- a CA that has given something out stays ---


@pytest.mark.parametrize("words", [["init"], ["init", "--force"], ["quickstart", ".", "--force"]])
@pytest.mark.parametrize("there", ["issued", "revoked", "issued, no CA"])
def test_no_ca_in_the_place_of_one_that_has_given_something_out(
    run: Run, tmp_path: Path, there: str, words: list[str]
) -> None:
    good(run("init"))
    good(run("crl") if there == "revoked" else run("robot", "011"))
    if there == "issued, no CA":
        Path("ca.key").unlink()
        Path("ca.crt").unlink()
    before = tree(tmp_path)
    line = bad(run(*words), 78)
    assert "take another folder" in line
    assert "--force" not in line
    assert tree(tmp_path) == before


# --- a crash at any step, and any bytes ---


STEPS = frozenset({"flock", "mkdir", "link", "replace", "unlink"})


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """That each step is on the disk before the next, other tests show."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def killed(step: int, words: list[str]) -> bool:
    """Run a command in a child that dies before one of these calls; False if it ended before that."""
    child = os.fork()
    if child == 0:
        left = step

        def look(_frame: object, event: str, function: object) -> None:
            nonlocal left
            if event == "c_call" and getattr(function, "__name__", "") in STEPS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.setprofile(look)
        main(words)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.long
@pytest.mark.usefixtures("quick_disk")
def test_a_revocation_that_is_killed_at_any_step(run: Run, tmp_path: Path) -> None:
    good(run("--dir=whole", "init"))
    good(run("--dir=whole", "robot", "011", "012"))
    good(run("--dir=whole", "revoke", "012"))
    for step in itertools.count():
        folder = tmp_path / str(step)
        shutil.copytree("whole", folder)
        more = killed(step, [f"--dir={folder}", "revoke", "011"])
        listed = json.loads(good(run(f"--dir={folder}", "list", "--json", "--revoked")))
        assert {entry["name"] for entry in listed} in ({"012"}, {"011", "012"})
        good(run(f"--dir={folder}", "revoke", "011"))
        listed = json.loads(good(run(f"--dir={folder}", "list", "--json", "--revoked")))
        assert {entry["name"] for entry in listed} == {"011", "012"}
        if not more:
            break
    assert step > 4


@pytest.mark.long
@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("words", [["robot", "011", "--renew"], ["robot", "011"]])
def test_issuing_that_is_killed_at_any_step(run: Run, tmp_path: Path, words: list[str]) -> None:
    """What got out is on record, and then the same command with --renew puts everything in order."""
    good(run("--dir=whole", "init"))
    if "--renew" in words:
        good(run("--dir=whole", "robot", "011"))
    for step in itertools.count():
        folder = tmp_path / str(step)
        shutil.copytree("whole", folder)
        more = killed(step, [f"--dir={folder}", *words])
        issued = json.loads(good(run(f"--dir={folder}", "list", "--json")))
        if (folder / "011.crt").exists():
            made = serial_of(load_certificates(folder / "011.crt", "robot")[0])
            assert made in {entry["serial"] for entry in issued}
        good(run(f"--dir={folder}", "robot", "011", *(["--renew"] if issued else [])))
        load_credentials(folder / "ca.crt", folder / "011.crt", folder / "011.key", Purpose.ROBOT, now())
        if not more:
            break
    assert step > 4


def damaged(data: bytes, dice: random.Random) -> bytes:
    """A file in PEM with other bytes within, here and there, or outside."""
    inner = re.search(rb"(-----BEGIN [^-]+-----\n)(.*?)(\n-----END)", data, re.DOTALL)
    assert inner is not None
    der = bytearray(base64.b64decode(inner[2]) if dice.random() < 0.8 else data)
    whole = len(der) == len(data)
    for _ in range(dice.choice((1, 1, 1, 3))):
        place = dice.randrange(len(der))
        der[place : place + dice.randrange(2)] = dice.randbytes(dice.randrange(2))
    return bytes(der) if whole else inner[1] + base64.encodebytes(der).strip() + data[inner.end(2) :]


@pytest.mark.usefixtures("quick_disk")
def test_nothing_that_a_file_can_hold_is_a_bug(run: Run, tmp_path: Path) -> None:
    for words in (["init"], ["server", "a.example", "::1"], ["robot", "011", "012"], ["revoke", "012"]):
        good(run(*words))
    before = tree(tmp_path)
    commands = (
        ["list", "--json"], ["list", "--ending=9999"], ["revoke", "011"], ["crl"],
        ["robot", "011", "--renew"], ["server", "a.example", "--renew"],
    )  # fmt: skip
    for seed in range(80):
        dice = random.Random(seed)  # noqa: S311 - to be had again
        name = dice.choice(sorted(before))
        (tmp_path / name).write_bytes(damaged(before[name], dice))
        status, _output, errors = run(*dice.choice(commands))
        assert status in {0, 75, 78}, (seed, errors)
        assert errors.count("\n") == (status != 0), (seed, errors)
        for path in set(tree(tmp_path)) - set(before):
            (tmp_path / path).unlink()
        for path, data in before.items():
            (tmp_path / path).write_bytes(data)


# --- quickstart ---


def test_quickstart(run: Run, tmp_path: Path) -> None:
    said = good(run("quickstart", "demo", "--host", "tunnel.example.com", "--host=192.0.2.7"))
    demo = tmp_path / "demo"
    assert names(demo) == {
        "ca.crt", "ca.key", "server.crt", "server.key", "client.crt", "client.key",
    }  # fmt: skip
    server = load_credentials(
        demo / "ca.crt", demo / "server.crt", demo / "server.key", Purpose.SERVER, now()
    )
    robot = load_credentials(demo / "ca.crt", demo / "client.crt", demo / "client.key", Purpose.ROBOT, now())
    assert common_name(robot.chain[0]) == "011"
    hosts = host_names(server.chain[0])
    assert hosts[:3] == ["localhost", "127.0.0.1", "::1"]
    assert hosts[-2:] == ["tunnel.example.com", "192.0.2.7"]
    assert "--robot=011" in said
    assert good(run("--dir=demo", "list")).endswith("\n2 certificates\n")
    for crt, purpose in (("server.crt", "sslserver"), ("client.crt", "sslclient")):
        subprocess.run(
            [
                "openssl",
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-CAfile",
                demo / "ca.crt",
                demo / crt,
            ],
            check=True,
            capture_output=True,
        )


def test_quickstart_here_for_another_robot(run: Run, tmp_path: Path) -> None:
    said = good(run("quickstart", ".", "--robot=r2"))
    assert common_name(load_certificates(tmp_path / "client.crt", "robot")[0]) == "r2"
    assert "--robot=r2 --lhost=::1 --lport=22 --ca=ca.crt --crt=client.crt --key=client.key" in said


@pytest.mark.parametrize(("name", "listed"), [("robot-lab", True), ("(none)", False), ("a_b", False)])
def test_quickstart_on_a_machine_of_any_name(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, *, listed: bool
) -> None:
    # Giving the test machine another name would be rude.
    monkeypatch.setattr("socket.gethostname", lambda: name)
    good(run("quickstart", "."))
    assert (name in host_names(load_certificates(Path("server.crt"), "server")[0])) is listed


# --- what is not overwritten, and what is not left behind ---


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (("init",), "ca.crt"),
        (("init",), "ca.key"),
        (("server", "a"), "server.crt"),
        (("server", "a"), "server.key"),
        (("robot", "r"), "r.crt"),
        (("robot", "r"), "r.key"),
        (("peer", "p"), "peer.crt"),
        (("peer", "p"), "peer.key"),
        *(
            (("quickstart", "."), f"{name}.{end}")
            for name in ("ca", "server", "client")
            for end in ("crt", "key")
        ),
    ],
)
def test_nothing_is_overwritten_without_force(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], file: str
) -> None:
    if arguments[0] in {"server", "robot", "peer"}:
        good(run("init"))
    (tmp_path / file).write_bytes(b"precious")
    before = tree(tmp_path)
    line = bad(run(*arguments), 78)
    assert f"{file} is already there" in line
    assert "--force" not in line
    assert tree(tmp_path) == before
    good(run(*arguments, "--force"))
    assert (tmp_path / file).read_bytes() != b"precious"


@pytest.mark.parametrize("position", ["before", "behind"])
def test_force_on_either_side(run: Run, position: str) -> None:
    good(run("init"))
    good(run(*(("--force", "init") if position == "before" else ("init", "--force"))))


def test_all_or_nothing(run: Run, tmp_path: Path) -> None:
    """The last file cannot be written: neither can the first."""
    good(run("init"))
    before = tree(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    assert "Not a directory" in bad(run("robot", "011", "--out=file/deep"), 78)
    (tmp_path / "file").unlink()
    assert tree(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "ca.key"]


def test_quickstart_in_vain_leaves_no_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    bad(run("quickstart", "file/q"), 78)
    bad(run("quickstart", "q", "--robot", "a/b"), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_robot_called_ca(run: Run, tmp_path: Path) -> None:
    good(run("init"))
    before = tree(tmp_path)
    assert "choose another with --basename" in bad(run("robot", "ca", "--force"), 78)
    assert tree(tmp_path) == before
    good(run("robot", "ca", "--basename=robot-ca"))
    assert common_name(load_certificates(Path("robot-ca.crt"), "robot")[0]) == "ca"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can get to; ``tmp_path`` is for its owner alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Once as ourselves: what Python imports late may lie where nobody can read.
    code = (
        "import contextlib, io, os, sys, tempfile\nfrom shadow.cli.ca import main\n"
        "with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(['quickstart', name])\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "raise SystemExit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, f"--dir={folder}", *arguments],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_folder_of_somebody_else(run: Run, open_folder: Path) -> None:
    done = as_nobody(open_folder, "init")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == f"shadow-ca: cannot write {open_folder}/ca.key: Permission denied for user nobody\n"
    assert tree(open_folder) == {}
    good(run(f"--dir={open_folder}", "init"))
    done = as_nobody(open_folder, "robot", "011")
    assert done.returncode == 78
    assert done.stderr == f"shadow-ca: CA key {open_folder}/ca.key: Permission denied for user nobody\n"
    assert names(open_folder) == {"ca.crt", "ca.key"}


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_root_and_the_owner_of_the_folder_take_turns(run: Run, open_folder: Path) -> None:
    """Or root's list could not be replaced by the user whose CA it is, and nobody be revoked."""
    os.chown(open_folder, NOBODY, NOBODY)
    assert as_nobody(open_folder, "init").returncode == 0
    good(run(f"--dir={open_folder}", "robot", "011", "012", "--out=elsewhere"))
    good(run(f"--dir={open_folder}", "robot", "013"))
    good(run(f"--dir={open_folder}", "revoke", "011"))
    for words in (["revoke", "012"], ["robot", "014"], ["robot", "013", "--renew"], ["crl"]):
        done = as_nobody(open_folder, *words)
        assert (done.returncode, done.stderr) == (0, "")
    assert {path.stat().st_uid for path in open_folder.rglob("*")} == {NOBODY}
    assert {path.stat().st_uid for path in Path("elsewhere").rglob("*")} == {0}


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_root_gives_nothing_away_behind_a_link(run: Run, open_folder: Path) -> None:
    """The owner of the CA's folder could otherwise have root make a file of theirs in any folder."""
    os.chown(open_folder, NOBODY, NOBODY)
    assert as_nobody(open_folder, "init").returncode == 0
    closed = Path("closed")
    closed.mkdir(0o700)
    (open_folder / "issued").symlink_to(closed.absolute())
    code, _said, why = run(f"--dir={open_folder}", "robot", "011", "--out=elsewhere")
    assert code == 78
    assert why == (
        f"shadow-ca: {open_folder}/issued is a symbolic link, which is not followed in the folder "
        f"{open_folder}; nothing was written\n"
    )
    assert tree(closed) == {}
    assert not Path("elsewhere").exists()


# --- bad usage ---


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["init", "--day=1"], "--day"),
        (["init", "--days=0"], "'0' is not a number from 1 to 36500"),
        (["init", "--days=-1"], "'-1' is not a number"),
        (["init", "--days=36501"], "'36501' is not a number"),
        (["init", "--days=٣"], "'٣' is not a number"),
        (["init", "--days=soon"], "'soon' is not a number"),
        (["init", "--name="], "CA name ''"),
        (["server"], "NAME-OR-IP"),
        (["server", "*.example"], "'*.example' is neither a host name nor an IP address"),
        (["server", "ok", "bücher.example"], "xn--"),
        (["robot"], "NAME"),
        (["robot", ".."], "robot name '..' is not allowed"),
        (["robot", "a/b"], "robot name 'a/b' is not allowed"),
        (["robot", "x" * 200], f"1 to {ROBOT_NAME_MAX} letters"),
        (["robot", "a", "b", "a"], "a twice"),
        (["robot", "a", "b", "--basename=x"], "--basename is for one robot"),
        (["robot", "a", "--from=x"], "not allowed with"),
        (["list", "--expired", "--good"], "not allowed with"),
        (["list", "--ending=x"], "'x' is not a number"),
        (["robot", "a", "--basename=../x"], "'../x' is not a plain file name"),
        (["robot", "a", "--basename="], "'' is not a plain file name"),
        (["robot", "a", "--basename=.."], "'..' is not a plain file name"),
        (["robot", "a", "--basename=.x"], "'.x' is not a plain file name"),
        (["quickstart"], "FOLDER"),
        (["quickstart", "q", "--host=a_b"], "'a_b' is neither"),
    ],
)
def test_bad_usage(run: Run, tmp_path: Path, arguments: list[str], why: str) -> None:
    line = bad(run(*arguments), 2)
    assert why in line
    assert "--help)" in line
    assert tree(tmp_path) == {}


# --- bad CAs ---


def test_no_authority(run: Run, tmp_path: Path) -> None:
    for command in (["robot", "011"], ["server", "a"], ["list"], ["revoke", "011"], ["crl"]):
        line = bad(run("--dir=nowhere", *command), 78)
        assert re.match(r"shadow-ca: CA (folder nowhere|certificate nowhere/ca.crt): No such file", line)
    assert tree(tmp_path) == {}


def test_open_authority_key(run: Run, tmp_path: Path) -> None:
    good(run("init"))
    Path("ca.key").chmod(0o640)
    assert "chmod 600 ca.key" in bad(run("robot", "011"), 78)
    assert names(tmp_path) == {"ca.crt", "ca.key"}


def test_expired_authority(run: Run, tmp_path: Path) -> None:
    old = authorities.create_authority("CA", 5, now() - dt.timedelta(days=10))
    write_files(folders.authority_files(tmp_path, old), force=False)
    assert "CA certificate ca.crt expired on" in bad(run("robot", "011"), 78)


def test_authority_of_the_future_is_the_clock(run: Run, tmp_path: Path) -> None:
    future = authorities.create_authority("CA", 5, now() + dt.timedelta(days=10))
    write_files(folders.authority_files(tmp_path, future), force=False)
    assert "is the clock right?" in bad(run("robot", "011"), 75)


def test_beyond_the_authority(run: Run, tmp_path: Path) -> None:
    good(run("init", "--days=100"))
    for command in (["robot", "011"], ["server", "a"]):
        assert "730 days go beyond the CA's own end" in bad(run(*command), 78)
    assert names(tmp_path) == {"ca.crt", "ca.key"}
    good(run("robot", "011", "--days=99"))


# --- as a program ---


@pytest.mark.parametrize("arguments", [["--help"], ["robot", "--help"], ["--version"]])
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    assert "shadow-ca" in capsys.readouterr().out


def test_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "shadow.cli.ca", f"--dir={tmp_path}", "init"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"shadow-ca: {tmp_path}/ca.key is already there")
