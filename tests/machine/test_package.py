"""The Debian package: what it brings, how it is upgraded, and that nothing of it is left."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import package
from .fleet import Fleet
from .qemu import Machine

UNITS = (
    "shadow-server.socket", "shadow-server.service", "shadow-client@.service", "shadow-server-api.socket",
    "shadow-server-metrics.socket", "shadow-server-health.socket", "shadow-server-peer.socket",
    "shadow-server-gate.socket", "shadow-ca-signer.socket",
)  # fmt: skip
CA_KEY = "/var/lib/shadow-ca/ca.key"
COMMANDS = ("shadow-ca", "shadow-client", "shadow-server", "shadowctl")
PAGES = (
    "shadow-ca.1", "shadowctl.1", "shadow-tunnel.5", "shadow-server.8", "shadow-client.8",
    "shadow-server.service.8", "shadow-server.socket.8", "shadow-server-api.socket.8",
    "shadow-server-metrics.socket.8", "shadow-server-health.socket.8", "shadow-server-peer.socket.8",
    "shadow-server-gate.socket.8", "shadow-client@.service.8", "shadow-ca-signer.socket.8",
    "shadow-ca-signer@.service.8", "shadow-ca-signer.8",
)  # fmt: skip

# Directories whose content an installation and a removal change as they like.
PRUNED = (
    "/dev",
    "/proc",
    "/run",
    "/srv",
    "/sys",
    "/tmp",
    "/var/cache",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/log",
)
# So do the catalog's database, backups of passwd(5), and the man pages' index.
CHANGING = r"^/(var/lib/systemd|var/tmp|etc/(passwd|group|shadow|gshadow|subuid|subgid)-|root)"


def test_nothing_runs_and_nothing_is_enabled_after_installation(fleet: Fleet) -> None:
    for unit, state in zip(
        UNITS, ("disabled", "indirect", "disabled", "static", *["disabled"] * 5), strict=True
    ):
        assert fleet.machine.run(["systemctl", "is-enabled", unit], check=False).stdout.strip() == state
    active = fleet.machine.run("systemctl list-units --plain --no-legend --state=active 'shadow*'").stdout
    assert active == ""
    fleet.machine.run(["systemctl", "preset", *UNITS[:2]])
    assert fleet.machine.run(["systemctl", "is-enabled", UNITS[0]], check=False).stdout.strip() == "disabled"


def test_user_group_and_folder(installed: Machine) -> None:
    entry = installed.run("getent passwd shadow-tunnel").stdout.strip().split(":")
    assert int(entry[2]) < 1000
    assert entry[6].endswith("nologin")
    assert installed.run("getent group shadow-tunnel").stdout
    assert installed.run("stat -c '%a %U:%G' /etc/shadow-tunnel").stdout.strip() == "755 root:root"
    for folder, found in (("shadow-tunnel", "711 root"), ("shadow-ca", "700 shadow-ca")):
        assert installed.run(f"stat -c '%a %U' /var/lib/{folder}").stdout == f"{found}\n"


def test_the_module_is_loaded_at_boot(installed: Machine) -> None:
    said = installed.run("systemd-analyze cat-config --no-pager modules-load.d").stdout
    assert "shadow-tunnel.conf" in said
    assert re.search(r"^tls$", said, re.MULTILINE)


def test_the_units_and_configuration_files_are_sound(installed: Machine) -> None:
    said = installed.run(["systemd-analyze", "verify", "--man=yes", *UNITS[:2], "shadow-client@011.service"])
    assert [line for line in said.stderr.splitlines() if "shadow" in line] == []


def test_every_page_can_be_read(installed: Machine) -> None:
    for page in PAGES:
        name, _, section = page.rpartition(".")
        said = installed.run(f"LC_ALL=C.UTF-8 man --warnings {section} {name} | col -b")
        assert said.stderr == ""
        assert re.search(r"^NAME", said.stdout, re.MULTILINE), said.stdout[:200]
    for command in COMMANDS:
        assert installed.run([command, "--version"]).stdout == f"{command} 0.1.0\n"


def test_links_in_the_documents_lead_to_files_of_the_package(release: str, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", package.build(release), tmp_path], check=True)
    folder = tmp_path / "usr/share/doc/shadow-tunnel"
    documents = [folder / "README.md", *(folder / "docs").glob("*.md")]
    assert len(documents) > 4
    for document in documents:
        targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
        assert [target for target in targets if not (document.parent / target).exists()] == [], document
    assert (folder / "README.Debian").exists() or (folder / "README.Debian.gz").exists()


def test_completion_is_loaded_by_name(installed: Machine) -> None:
    load = "source /usr/share/bash-completion/bash_completion"
    for command in COMMANDS:
        line = f"{load}; _completion_loader {command}; complete -p {command}"
        assert command in installed.run(line, check=False).stdout


def test_an_upgrade_restarts_both_daemons_and_cuts_nobody(fleet: Fleet, release: str, tmp_path: Path) -> None:
    fleet.start("011")
    server, client = fleet.pid("shadow-server"), fleet.pid("shadow-client@011")
    settings = fleet.machine.read("/etc/shadow-tunnel/client.env")
    newer = rebuilt(package.build(release), "0.1.0+upgrade", tmp_path)
    cursor = fleet.machine.cursor()
    with (
        fleet.machine.background(fleet.ssh("cat"), user="alice") as session,
        fleet.machine.background(fleet.copying(), user="alice") as copying,
    ):
        assert session.ask(b"before\n") == b"before\n"
        fleet.machine.wait_until("[[ -s ~alice/copy ]]")
        # The files are those of the package that was there: it need not be put back.
        package.install(fleet.machine, newer)
        assert session.ask(b"after\n") == b"after\n"
        for unit in ("shadow-server", "shadow-client@011"):
            fleet.wait_for_event(cursor, "^resumed 2 streams of", "-u", unit)
        status, _output, errors = copying.finish()
        assert status == 0, errors
    fleet.machine.run("cmp ~alice/sent ~alice/copy && rm ~alice/sent ~alice/copy")
    assert fleet.machine.run("dpkg-query -W -f '${Version}' shadow-tunnel").stdout == "0.1.0+upgrade"
    assert fleet.pid("shadow-server") not in {0, server}
    assert fleet.pid("shadow-client@011") not in {0, client}
    assert fleet.show("shadow-server.socket", "ActiveState") == "active"
    fleet.wait_for("shadow-server", "StatusText", "^1 robot,")
    assert fleet.machine.run(fleet.ssh("id -un"), user="alice").stdout == "alice\n"
    assert fleet.machine.read("/etc/shadow-tunnel/client.env") == settings
    assert fleet.machine.run("systemctl is-enabled shadow-client@011").stdout == "enabled\n"


def rebuilt(deb: Path, version: str, folder: Path) -> Path:
    """The same package with another version."""
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(
        re.sub(r"^Version: .*", f"Version: {version}", control.read_text(), flags=re.MULTILINE)
    )
    made = folder / f"shadow-tunnel_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, made], check=True, capture_output=True)
    return made


def files(machine: Machine) -> set[str]:
    prune = " -o ".join(f"-path {path}" for path in PRUNED)
    said = machine.run(f"find / -xdev \\( {prune} \\) -prune -o -print; find /run -name '*shadow*'").stdout
    return {line for line in said.splitlines() if not re.match(CHANGING, line)}


@pytest.fixture
def put_back(fleet: Fleet, release: str) -> Iterator[None]:
    yield
    package.install(fleet.machine, package.build(release))
    fleet.admit_operator()  # the group is a new one


def test_removal_stops_everything_and_purging_leaves_nothing(fleet: Fleet, put_back: None) -> None:
    machine = fleet.machine
    fleet.start("011", "012")
    machine.run("systemctl disable shadow-client@012")
    package.apt(machine, "remove", package.NAME)
    active = machine.run("systemctl list-units --plain --no-legend --state=active 'shadow*'").stdout
    assert active == ""
    assert machine.run("pgrep -f /usr/bin/[s]hadow-", check=False).stdout == ""
    assert machine.run("test -e /etc/shadow-tunnel/011.key", check=False).returncode == 0  # it may come back
    machine.run(f"install -o shadow-ca -m 600 /dev/null {CA_KEY}")
    package.apt(machine, "purge", package.NAME)
    left = {path for path in files(machine) if re.search("shadow-(tunnel|client|server|ca)", path)}
    assert left == {CA_KEY, CA_KEY.removesuffix("/ca.key")}  # a whole fleet may hang on it
    names = "getent passwd shadow-tunnel; getent group shadow-tunnel shadow-tunnel-admin"
    assert machine.run(names, check=False).stdout == ""
    assert machine.run(f"stat -c %U {CA_KEY}").stdout == "shadow-ca\n"
    machine.run(f"rm -r {CA_KEY.removesuffix('/ca.key')}")
    assert machine.run("systemctl --failed --plain --no-legend").stdout == ""
    before = files(machine)
    package.install(machine, package.build(machine.image.release))
    package.apt(machine, "purge", package.NAME)
    assert files(machine) - before == set()
    assert machine.run("getent passwd shadow-ca", check=False).stdout == ""
