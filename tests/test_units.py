"""The units: what systemd itself thinks of them, and what must hold between them and the code."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from shadow.admin.endpoints import HEALTH_NAME, METRICS_NAME
from shadow.admin.varlink import SOCKET_NAME
from shadow.daemon.config import SERVER_SOCKET
from shadow.daemon.membership import PEER_SOCKET
from shadow.errors import ConfigError, UsageError
from shadow.fleet import gate
from shadow.names import API, GATE
from shadow.options import variable_name
from shadow.pki.presence import NOT_THERE
from tests.support import CHECKOUT

UNITS = CHECKOUT / "units"
SERVICES = ["shadow-server.service", "shadow-client@.service"]
SIGNER = "shadow-ca-signer@.service"
EXPOSURE_MAX = 1.2


def read(name: str) -> str:
    return (UNITS / name).read_text()


def parse(name: str) -> configparser.ConfigParser:
    """A unit in which no setting is there twice."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(read(name))
    return parser


SOCKETS = {
    "shadow-server.socket": SERVER_SOCKET,
    "shadow-server-api.socket": SOCKET_NAME,
    "shadow-server-metrics.socket": METRICS_NAME,
    "shadow-server-health.socket": HEALTH_NAME,
    "shadow-server-peer.socket": PEER_SOCKET,
    "shadow-server-gate.socket": gate.SOCKET_NAME,
}


@pytest.mark.parametrize("name", [*SERVICES, SIGNER, *SOCKETS, "shadow-ca-signer.socket"])
def test_systemd_understands_them(name: str, tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        # The program is not installed here; anything executable will do for the syntax.
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    instance = tmp_path / name.replace("@.", "@011.")
    if not instance.exists():
        shutil.copy(tmp_path / name, instance)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(instance)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if "shadow" in line]
    assert complaints == []


def test_the_package_has_each_of_them() -> None:
    """debhelper looks for them under its own names."""
    links = [path for path in (CHECKOUT / "debian").iterdir() if path.suffix in {".service", ".socket"}]
    assert {path.resolve() for path in links} == set(UNITS.iterdir())


@pytest.mark.parametrize("name", [*SERVICES, SIGNER])
def test_exposure(name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(UNITS / name)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= EXPOSURE_MAX, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_each_failure_costs_the_same_and_none_is_the_last(name: str) -> None:
    assert "\nRestart=always\n" in read(name)
    assert "\nStartLimitIntervalSec=0\n" in read(name)
    assert re.findall("^Restart(?:Sec|Steps|MaxDelaySec)=.*$", read(name), re.MULTILINE) == [
        "RestartSec=500ms"
    ]


def test_what_only_a_human_can_mend_is_not_retried_where_nobody_knocks() -> None:
    statuses = re.search("^RestartPreventExitStatus=(.*)$", read("shadow-client@.service"), re.MULTILINE)
    assert statuses is not None
    assert set(statuses[1].split()) == {
        str(UsageError.exit_status),
        str(ConfigError.exit_status),
        "243",  # EXIT_CREDENTIALS, systemd.exec(5)
    }
    # The socket would start it again for each robot that dials; see patience.
    assert "RestartPreventExitStatus" not in read("shadow-server.service")


@pytest.mark.parametrize("name", SERVICES)
def test_variables_are_those_the_program_reads(name: str) -> None:
    options = ["--ca", "--crt", "--key", "--ldir", "--robot", "--lport", "--state", "--crl"]
    options += ["--engine-ca", "--engine-crt", "--engine-key", "--engine-login", "--peer-crt", "--peer-key"]
    for variable in re.findall("^Environment=([A-Z_]+)=", read(name), re.MULTILINE):
        assert variable in {"FDSTORE_MAX"} | {variable_name(option) for option in options}


@pytest.mark.parametrize("name", SERVICES)
def test_the_store_is_as_large_as_the_daemon_is_told(name: str) -> None:
    """systemd 252 does not tell; see sd_daemon.Store."""
    sizes = re.findall("^(?:FileDescriptorStoreMax|Environment=FDSTORE_MAX)=(.*)$", read(name), re.MULTILINE)
    assert len(sizes) == 2
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("unit", "name"), SOCKETS.items())
def test_the_sockets_name_is_the_one_the_server_asks_for(unit: str, name: str) -> None:
    assert parse(unit)["Socket"]["FileDescriptorName"] == name


def test_the_port_for_other_servers_is_kept_as_that_of_the_robots() -> None:
    """Open as long, and with all of its care."""
    robots, peers = parse("shadow-server.socket"), parse("shadow-server-peer.socket")
    own = {"ListenStream", "FileDescriptorName", "Service"}
    kept = [
        {name: value for name, value in unit["Socket"].items() if name not in own} for unit in (robots, peers)
    ]
    assert len(kept[0]) > 4
    assert kept[0] == kept[1]
    assert peers["Socket"]["Service"] == "shadow-server.service"
    assert peers["Unit"]["PartOf"] == "shadow-server.socket"


def test_the_gate_is_kept_as_the_apis_socket_and_comes_with_the_port_for_other_servers() -> None:
    """Its mode says who may visit; a server that is in no fleet has none."""
    api, ours = parse("shadow-server-api.socket"), parse("shadow-server-gate.socket")
    own = {"ListenStream", "FileDescriptorName"}
    kept = [
        {name: value for name, value in unit["Socket"].items() if name not in own} for unit in (api, ours)
    ]
    assert kept[0] == kept[1]
    assert kept[1]["SocketMode"] == "0660"
    for unit, name in (api, API), (ours, GATE):
        assert unit["Socket"]["ListenStream"] == f"%t/shadow-tunnel/{name}"
        assert unit["Unit"]["PartOf"] == "shadow-server.service"
    assert ours["Install"]["WantedBy"] == "shadow-server.service"
    assert parse("shadow-server-peer.socket")["Install"]["Also"] == "shadow-server-gate.socket"
    assert "gate" not in read("shadow-server.service")


@pytest.mark.parametrize("name", SERVICES)
def test_the_key_is_handed_over_and_never_named_where_others_read(name: str) -> None:
    loaded = re.findall("^LoadCredential=([a-z]+.key):/etc/shadow-tunnel/", read(name), re.MULTILINE)
    servers = ["server.key", "engine.key", "peer.key"]
    assert loaded == (servers if name == "shadow-server.service" else ["client.key"])
    for key in loaded:
        assert f"\nSetCredential={key}:{NOT_THERE.decode()}\n" in read(name)
    assert re.search("^Environment=SHADOW_KEY=%d/", read(name), re.MULTILINE)
    assert "--key" not in read(name)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """What stands for /var/lib/shadow-tunnel."""
    folder = tmp_path / "lib" / "state"
    folder.mkdir(parents=True)
    return folder


def make_folder(name: str, state: Path, tmp_path: Path) -> str:
    """What the client's unit does before its daemon starts; returns how it called chown(1)."""
    command = re.search(r"^ExecStartPre=((?:.*\\\n)*.*)$", read("shadow-client@.service"), re.MULTILINE)
    assert command is not None
    prefix, *words = re.split("(?<=:)", command[1].replace("\\\n", " "), maxsplit=1)
    # Not the service manager's business if it fails, as root, and the shell's variables are its own.
    assert prefix == "-+:"
    words = [word.replace("/proc/1/root%S/shadow-tunnel", str(state)) for word in shlex.split(words[0])]
    bin_folder = fake(tmp_path, chown='echo "$@"')
    return subprocess.run(
        [name if word == "%i" else word for word in words],
        env={"PATH": f"{bin_folder}:/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip


def test_a_robots_folder_is_made_for_its_daemon(state: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert make_folder("0-1.1", state, tmp_path) == f"-h shadow-tunnel: {state}/0-1.1\n"
        assert (state / "0-1.1").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("name", [".", "..", ".hidden", "a..b", "..a"])
def test_no_name_leads_out_of_the_robots_folders(name: str, state: Path, tmp_path: Path) -> None:
    assert make_folder(name, state, tmp_path) == ""
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("target", ["there", "missing"])
def test_a_link_in_the_place_of_a_robots_folder_is_not_followed(
    target: str, state: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    (state / "011").symlink_to(tmp_path / target)
    said = make_folder("011", state, tmp_path)
    # Of the link itself (-h), or not at all.
    assert said in {"", f"-h shadow-tunnel: {state}/011\n"}
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o755
    assert not (tmp_path / "missing").exists()


def test_the_server_does_not_see_what_robots_have_renewed() -> None:
    renewed = re.search("^Environment=SHADOW_STATE=(.*)/%i$", read("shadow-client@.service"), re.MULTILINE)
    assert renewed is not None
    assert f"\nInaccessiblePaths=-{renewed[1]}\n" in read("shadow-server.service")


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("ca.crl", 0o644), ("ca.crt", 0o644), ("server.crt", 0o644), ("server.key", 0o600)),
        *(("peer.crt", 0o644), ("peer.key", 0o600)),
    ],
)
@pytest.mark.parametrize("copied_as", [0o600, 0o644])
def test_whatever_umask_root_had(name: str, mode: int, copied_as: int, tmp_path: Path) -> None:
    folder = tmp_path / "etc/shadow-tunnel"
    folder.mkdir(parents=True)
    (folder / name).touch()
    (folder / name).chmod(copied_as)
    (folder / "elsewhere.crl").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").touch(mode=0o600)
    lines = re.findall("^z .*$", (CHECKOUT / "lib/tmpfiles.d/shadow-tunnel.conf").read_text(), re.MULTILINE)
    mine = "\n".join(line.replace(" root root ", " - - ") for line in lines)
    (tmp_path / "rules.conf").write_text(mine + "\n")
    subprocess.run(
        ["systemd-tmpfiles", "--create", f"--root={tmp_path}", str(tmp_path / "rules.conf")],
        capture_output=True, check=False,
    )  # fmt: skip
    assert (folder / name).stat().st_mode & 0o777 == mode
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def upgrade(tmp_path: Path, state: Path, owner: int, running: str = "") -> list[str]:
    """Run the package's postinst as an upgrade does; returns what it has called, of what is not its own."""
    bin_folder = fake(
        tmp_path,
        chown='echo chown "$@"',
        stat=f"echo {owner}",
        systemctl=f'echo systemctl "$@" >&2; [ "$1" != list-units ] || printf "{running}"',
    )
    fake(tmp_path, **{"deb-systemd-invoke": ":"})
    script = (CHECKOUT / "debian/shadow-tunnel.postinst").read_text()
    script = script.replace("/var/lib/shadow-tunnel", str(state)).replace(
        "/run/systemd/system", str(tmp_path)
    )
    done = subprocess.run(
        ["/bin/sh", "-s", "configure", "0.0.9"], input=script,
        env={"PATH": f"{bin_folder}:/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def fake(tmp_path: Path, **programs: str) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


def test_an_upgrade_removes_links_that_a_daemon_may_have_laid(state: Path, tmp_path: Path) -> None:
    (state / "011").symlink_to("/etc")
    (state / "012").mkdir()
    (state / "012/pair.pem").symlink_to("/etc/passwd")  # read by the daemon, as itself
    assert upgrade(tmp_path, state, owner=998) == [f"chown -h root:root {state}"]
    assert sorted(path.name for path in state.iterdir()) == ["012"]
    assert (state / "012/pair.pem").is_symlink()
    assert state.stat().st_mode & 0o7777 == 0o711


def test_links_of_roots_own_stay(state: Path, tmp_path: Path) -> None:
    (state / "011").symlink_to("/srv/011")
    assert upgrade(tmp_path, state, owner=0) == []
    assert (state / "011").is_symlink()


def test_an_upgrade_makes_the_folders_of_robots_that_go_on_with_the_old_version(
    state: Path, tmp_path: Path
) -> None:
    (state / "012").symlink_to(tmp_path / "missing")
    units = "".join(
        rf"shadow-client@{name}.service loaded active running Shadow\n" for name in ["011", "012", ".."]
    )
    assert upgrade(tmp_path, state, owner=0, running=units) == [f"chown -h shadow-tunnel: {state}/011"]
    assert (state / "011").stat().st_mode & 0o7777 == 0o700
    assert not (tmp_path / "missing").exists()


def test_the_package_installs_what_a_unit_also_enables_before_that_unit() -> None:
    """dh_installsystemd(1) looks for what ``Also=`` names among what is installed already, or fails."""
    rules = (CHECKOUT / "debian" / "rules").read_text()
    order = re.findall(r"^\tdh_installsystemd --name=(\S+)", rules, re.MULTILINE)
    named = {
        path.stem: re.findall(r"^Also=(\S+)\.\w+$", path.read_text(), re.MULTILINE)
        for path in (CHECKOUT / "units").iterdir()
    }
    assert any(named.values())
    late = [
        (unit, other)
        for unit, others in named.items()
        for other in others
        if other != unit and order.index(other) > order.index(unit)
    ]
    assert late == []
