"""The image of image/: baked as docs/IMAGE.md says, it is told at its first boot which robot it is."""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from bench.processes import free_port
from shadow.errors import ConfigError
from shadow.pki.certificates import Purpose
from tests.support import Authority, Daemon
from tests.support.commands import typed

from . import bake, package

pytestmark = pytest.mark.timeout(1800, func_only=False)  # it bakes, too

NOT_NAMES = [
    "",
    "..",
    "../011",
    "/etc/passwd",
    ".011",
    "0 11",
    "011\nx",
    "011@a",
    "ä",
    "x" * 65,
    "-011",
    "%i",
]


@dataclass(frozen=True)
class Fleet:
    """A CA, a server, and what its robots are given."""

    ca: Path
    folder: Path
    port: int
    sockets: Path
    visitor: Path

    def credentials(self, name: str) -> dict[str, bytes]:
        return {
            "shadow.robot": f"{name}\n".encode(),
            "shadow.crt": (self.ca / f"{name}.crt").read_bytes(),
            "shadow.key": (self.ca / f"{name}.key").read_bytes(),
            "ssh.authorized_keys.root": self.visitor.with_suffix(".pub").read_bytes(),
        }

    def robot(self, baked: bake.Baked, name: str) -> bake.Robot:
        return bake.Robot(baked, self.folder / name, self.sockets, self.port)

    def wait_for(self, robot: bake.Robot, name: str) -> None:
        """Wait until the robot has connected."""
        seconds = robot.wait_for((self.sockets / f"{name}.sock").exists, f"a session of {name}")
        sys.stderr.write(f"robot {name} connected {seconds:.0f} s after it was switched on\n")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    fleet = Fleet(folder / "ca", folder, free_port(), folder / "sockets", folder / "visitor")
    fleet.sockets.mkdir()
    for words in (["init"], ["server", bake.ADDRESS], ["robot", "011"], ["robot", "012"]):
        subprocess.run(
            [bake.CHECKOUT / "shadow-ca", "--dir", fleet.ca, *words], check=True, capture_output=True
        )
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", fleet.visitor], check=True)
    arguments = ["shadow.cli.server", "--ipv4", f"--lport={fleet.port}", f"--ldir={fleet.sockets}"]
    arguments += [f"--ca={fleet.ca}/ca.crt", f"--crt={fleet.ca}/server.crt", f"--key={fleet.ca}/server.key"]
    with Daemon(arguments, folder / "server.log") as server:
        server.wait_for_log("accepting robots")
        yield fleet


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where one bakes; nobody wants to keep gigabytes of it."""
    folder = tmp_path_factory.mktemp("kitchen")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def recipe(fleet: Fleet, release: str, kitchen: Path) -> Path:
    folder = kitchen / "mkosi" / "image"
    bake.prepare(folder, package.build(release), fleet.ca / "ca.crt")
    return folder


@pytest.fixture(scope="module")
def baked(recipe: Path, release: str) -> bake.Baked:
    """What mkosi makes of the recipe."""
    return bake.with_mkosi(recipe, release)


@pytest.fixture(scope="module")
def robot(fleet: Fleet, baked: bake.Baked) -> Iterator[bake.Robot]:
    """A robot that has been switched on for the first time, as robot 011."""
    with fleet.robot(baked, "first") as robot:
        robot.boot(fleet.credentials("011"))
        fleet.wait_for(robot, "011")
        robot.run("011", fleet.visitor, "true")  # ssh learns its host key
        yield robot


def enabled(tree: Path) -> set[str]:
    """What starts at boot in a tree, on the words of links in /etc."""
    units = tree / "etc/systemd/system"
    return {str(path.relative_to(units)) for path in units.rglob("*") if path.is_symlink()}


def test_no_key_nor_password_is_baked_in(baked: bake.Baked) -> None:
    assert list(baked.tree.glob("etc/ssh/ssh_host_*")) == []
    keys = [
        path
        for folder in ("boot", "etc", "home", "opt", "root", "srv", "var")
        for path in (baked.tree / folder).rglob("*")
        if path.is_file() and not path.is_symlink() and b"PRIVATE KEY-----" in path.read_bytes()
    ]
    assert keys == []
    accounts = (line.split(":") for line in (baked.tree / "etc/shadow").read_text().splitlines())
    assert [name for name, password, *_ in accounts if password[:1] not in {"*", "!"}] == []
    assert (baked.tree / "etc/machine-id").read_text().strip() in {"", "uninitialized"}
    assert not (baked.tree / "var/lib/systemd/random-seed").exists()


def test_what_is_on_in_a_fresh_image(baked: bake.Baked) -> None:
    links = enabled(baked.tree)
    assert "multi-user.target.wants/shadow-robot.service" in links
    assert [
        link for link in links if "shadow-client" in link or "shadow-server" in link or "ssh.socket" in link
    ] == []


def test_it_connects_on_its_own(robot: bake.Robot, fleet: Fleet) -> None:
    state = robot.run(
        "011", fleet.visitor, "systemctl is-enabled shadow-client@011; systemctl --failed --quiet"
    )
    assert state.split() == ["enabled"]


def test_name_and_key_are_where_they_belong(robot: bake.Robot, fleet: Fleet) -> None:
    listing = robot.run(
        "011", fleet.visitor, "cd /etc/shadow-tunnel; stat -c '%a %U:%G %n' *.crt *.key .[!.]* || :"
    )
    assert listing.splitlines() == ["644 root:root 011.crt", "644 root:root ca.crt", "600 root:root 011.key"]
    told = robot.run("011", fleet.visitor, typed("journalctl -u shadow-robot"))
    assert "this is robot 011 from now on" in told


def test_the_key_is_in_no_log(robot: bake.Robot, fleet: Fleet) -> None:
    secret = (fleet.ca / "011.key").read_text().splitlines()[1]
    journal = robot.run("011", fleet.visitor, "journalctl --no-pager --boot")
    assert "this is robot 011 from now on" in journal
    assert secret not in journal + robot.console()
    assert secret in robot.run("011", fleet.visitor, "cat /etc/shadow-tunnel/011.key")


def test_nothing_but_the_tunnel_leads_in(robot: bake.Robot, fleet: Fleet) -> None:
    listening = robot.run(
        "011", fleet.visitor, "cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"0A\" { print $2 }'"
    )
    local = ("0100007F:", "3500007F:", "3600007F:", "00000000000000000000000001000000:")
    assert [address for address in listening.split() if not address.startswith(local)] == []
    assert "00000000000000000000000001000000:0016" in listening
    passwords = robot.run(
        "011", fleet.visitor, "sshd -T | grep -E '^(password|kbdinteractive)authentication'"
    )
    assert passwords.split() == ["passwordauthentication", "no", "kbdinteractiveauthentication", "no"]


def test_the_second_boot_needs_no_credentials(robot: bake.Robot, fleet: Fleet) -> None:
    boot_id = "cat /proc/sys/kernel/random/boot_id"
    before = robot.run("011", fleet.visitor, boot_id)
    robot.power_off("011", fleet.visitor)
    robot.boot()
    fleet.wait_for(robot, "011")
    assert robot.run("011", fleet.visitor, boot_id) != before  # and ssh knows its host key
    assert robot.run("011", fleet.visitor, "systemctl --failed --quiet") == ""


@pytest.mark.slow
def test_once_more_from_the_credstore(robot: bake.Robot, fleet: Fleet, release: str) -> None:
    """As the document says: a new name, with a key that only this machine can decrypt."""

    def run(command: str, stdin: bytes = b"") -> str:
        return robot.run("011", fleet.visitor, command, stdin)

    given = fleet.credentials("012")
    run("mkdir -m 700 -p /etc/credstore /etc/credstore.encrypted")
    run("cat >/etc/credstore/shadow.robot", given["shadow.robot"])
    run("cat >/etc/credstore/shadow.crt", given["shadow.crt"])
    if release == "bookworm":  # systemd 252 does not look for encrypted ones by itself
        run("cat >/etc/credstore/shadow.key", given["shadow.key"])
    else:
        run(
            "systemd-creds encrypt --name=shadow.key - /etc/credstore.encrypted/shadow.key",
            given["shadow.key"],
        )
    run("systemctl --quiet disable shadow-client@011")
    robot.power_off("011", fleet.visitor)
    robot.boot()
    fleet.wait_for(robot, "012")
    listing = robot.run("012", fleet.visitor, "cd /etc/shadow-tunnel; stat -c '%a %n' 012.*")
    assert listing.splitlines() == ["644 012.crt", "600 012.key"]


@pytest.mark.slow
def test_half_of_the_credentials(robot: bake.Robot, fleet: Fleet, baked: bake.Baked) -> None:
    """One line says what to do; nothing waits for it, and nothing is left behind."""
    with fleet.robot(baked, "half") as other:
        given = fleet.credentials("012")
        del given["shadow.key"]
        other.boot(given)
        line = other.wait_for_console(
            "this robot does not know who it is.*\n"
        )  # to its end: it comes in pieces
        assert "no credential shadow.key." in line
        assert "by SMBIOS, or put them into /etc/credstore" in line
        other.wait_for_console("login: ")
        other.unplug()
        for folder in ("etc/shadow-tunnel", "etc/systemd/system/multi-user.target.wants"):
            assert other.files(folder) == sorted(path.name for path in (baked.tree / folder).iterdir())
        # Another robot of the same image, another host key.
        theirs = other.read("/etc/ssh/ssh_host_ed25519_key.pub").split()[1]
        assert theirs not in robot.host_key


@pytest.mark.slow
def test_without_mkosi_and_for_one_robot(
    fleet: Fleet, baked: bake.Baked, recipe: Path, release: str, kitchen: Path
) -> None:
    """The lines of the document, run as they stand there. The key never gets to the disk."""
    folder = kitchen / "mmdebstrap" / "image"
    bake.prepare(folder, next((recipe / "mkosi.packages").glob("*.deb")), fleet.ca / "ca.crt")
    bake.by_document(folder, "mmdebstrap", release)
    tree = folder / "robot"
    assert enabled(tree) == enabled(baked.tree)
    assert list(tree.glob("etc/ssh/ssh_host_*")) == []
    (folder / "011.crt").write_bytes((fleet.ca / "011.crt").read_bytes())
    bake.by_document(folder, "one robot", release)
    assert enabled(tree) - enabled(baked.tree) == {"multi-user.target.wants/shadow-client@011.service"}
    with fleet.robot(bake.to_disk(tree, folder), "one") as robot:
        given = fleet.credentials("011")
        robot.boot({name: given[name] for name in ("shadow.key", "ssh.authorized_keys.root")})
        fleet.wait_for(robot, "011")
        assert robot.run("011", fleet.visitor, "systemctl --failed --quiet") == ""
        listing = robot.run("011", fleet.visitor, "ls /etc/shadow-tunnel")
        assert listing.split() == ["011.crt", "ca.crt", "client.env", "server.env"]


@pytest.mark.parametrize("what", ["no CA", "no server", "key"])
def test_the_baker_is_told(recipe: Path, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "etc/shadow-tunnel"
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_text("" if what == "no CA" else "CA")
    host = "tunnel.example.com" if what == "no server" else "192.0.2.1"
    (folder / "client.env").write_text(f"SHADOW_RHOST={host}\n")
    if what == "key":
        (folder / "011.key").write_text("-----BEGIN PRIVATE KEY-----\n")
    done = subprocess.run(
        [recipe / "mkosi.finalize"],
        env=os.environ | {"BUILDROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    expected = {"no CA": "ca.crt", "no server": "SHADOW_RHOST", "key": "/etc/shadow-tunnel/011.key"}[what]
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


# --- the program that the first boot runs, without a machine ---


@pytest.fixture
def provision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program; it installs into a folder of ours, and enables nothing."""
    path = bake.RECIPE / "mkosi.extra/usr/lib/shadow-robot/provision.py"
    spec = importlib.util.spec_from_file_location("provision", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "etc").mkdir()
    (tmp_path / "given").mkdir()
    monkeypatch.setattr(module, "FOLDER", tmp_path / "etc")
    monkeypatch.setattr(module, "enable", (tmp_path / "enabled").write_text)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "given"))
    return module


@pytest.fixture
def given(tmp_path: Path, provision: ModuleType) -> Path:
    """What it is given: all good."""
    authority = Authority(tmp_path / "authority")
    (tmp_path / "etc/ca.crt").write_bytes(authority.ca.read_bytes())
    crt, key = authority.robot()
    folder = tmp_path / "given"
    (folder / "shadow.robot").write_text("011")
    (folder / "shadow.crt").write_bytes(crt.read_bytes())
    (folder / "shadow.key").write_bytes(key.read_bytes())
    return folder


def test_good_credentials(
    tmp_path: Path, provision: ModuleType, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert provision.main() == 0
    assert stat.S_IMODE((tmp_path / "etc/011.key").stat().st_mode) == 0o600
    assert (tmp_path / "etc/011.key").read_bytes() == (given / "shadow.key").read_bytes()
    assert (tmp_path / "etc/011.crt").read_bytes() == (given / "shadow.crt").read_bytes()
    assert (tmp_path / "enabled").read_text() == "shadow-client@011.service"
    assert capsys.readouterr() == ("<5>this is robot 011 from now on\n", "")


@pytest.mark.parametrize("name", NOT_NAMES)
def test_hostile_names(tmp_path: Path, provision: ModuleType, given: Path, name: str) -> None:
    (given / "shadow.robot").write_text(name)
    refused(tmp_path, provision, "robot name .* is not allowed")


def test_a_robot_called_ca(tmp_path: Path, provision: ModuleType, given: Path) -> None:
    (given / "shadow.robot").write_text("ca")
    refused(tmp_path, provision, "no robot can be called ca")


@pytest.mark.parametrize("missing", ["shadow.robot", "shadow.crt", "shadow.key"])
def test_a_credential_is_missing(tmp_path: Path, provision: ModuleType, given: Path, missing: str) -> None:
    (given / missing).unlink()
    refused(tmp_path, provision, f"no credential {missing}. Pass")


def test_no_credentials_at_all(
    tmp_path: Path, provision: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    refused(tmp_path, provision, "no credential shadow.robot, shadow.crt, shadow.key. Pass")


def test_another_robots_certificate(tmp_path: Path, provision: ModuleType, given: Path) -> None:
    (given / "shadow.robot").write_text("012")
    refused(tmp_path, provision, "credential shadow.crt is for robot '011', shadow.robot says '012'")


def test_another_authority(tmp_path: Path, provision: ModuleType, given: Path) -> None:
    (tmp_path / "etc/ca.crt").write_bytes(Authority(tmp_path / "other", "Other CA").ca.read_bytes())
    refused(tmp_path, provision, "ca.crt")


@pytest.mark.parametrize("damaged", ["shadow.crt", "shadow.key"])
def test_not_what_it_should_be(tmp_path: Path, provision: ModuleType, given: Path, damaged: str) -> None:
    (given / damaged).write_text("bm8gUEVN\n")  # base64 that nobody decoded
    refused(tmp_path, provision, damaged)


def refused(tmp_path: Path, provision: ModuleType, pattern: str) -> None:
    """It says one line, and leaves nothing behind."""
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=pattern) as info:
        provision.provision(Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")))
    assert "\n" not in str(info.value)
    assert provision.main() == ConfigError.exit_status
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_clock_that_is_wrong_is_no_reason(tmp_path: Path, provision: ModuleType, given: Path) -> None:
    """At its first boot a robot may not know the time."""
    crt, key = Authority(tmp_path / "later").issue("011", "011", Purpose.ROBOT, days=(1, 30))
    (tmp_path / "etc/ca.crt").write_bytes((tmp_path / "later/ca.crt").read_bytes())
    (given / "shadow.crt").write_bytes(crt.read_bytes())
    (given / "shadow.key").write_bytes(key.read_bytes())
    assert provision.main() == 0
    (given / "shadow.robot").write_text("012")
    with pytest.raises(ConfigError, match="is for robot '011'"):
        provision.provision(given)
