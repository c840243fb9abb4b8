"""The units: what systemd itself thinks of them, and what must hold between them and the code."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shadow.config import variable_name
from shadow.errors import ConfigError, UsageError
from shadow.presence import NOT_THERE
from shadow.server import SOCKET_NAME
from tests.support import CHECKOUT

UNITS = CHECKOUT / "units"
SERVICES = ["shadow-server.service", "shadow-client@.service"]
SIGNER = "shadow-ca-signer@.service"
EXPOSURE_MAX = 1.2


def read(name: str) -> str:
    return (UNITS / name).read_text()


@pytest.mark.parametrize("name", [*SERVICES, SIGNER, "shadow-server.socket", "shadow-ca-signer.socket"])
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
    for variable in re.findall("^Environment=([A-Z_]+)=", read(name), re.MULTILINE):
        assert variable in {"FDSTORE_MAX"} | {variable_name(option) for option in options}


@pytest.mark.parametrize("name", SERVICES)
def test_the_store_is_as_large_as_the_daemon_is_told(name: str) -> None:
    """systemd 252 does not tell; see sd_daemon.Store."""
    sizes = re.findall("^(?:FileDescriptorStoreMax|Environment=FDSTORE_MAX)=(.*)$", read(name), re.MULTILINE)
    assert len(sizes) == 2
    assert sizes[0] == sizes[1]


def test_the_sockets_name_is_the_one_the_server_asks_for() -> None:
    parser = configparser.ConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(read("shadow-server.socket"))
    assert parser["Socket"]["FileDescriptorName"] == SOCKET_NAME


@pytest.mark.parametrize("name", SERVICES)
def test_the_key_is_handed_over_and_never_named_where_others_read(name: str) -> None:
    loaded = re.search("^LoadCredential=([a-z]+.key):/etc/shadow-tunnel/", read(name), re.MULTILINE)
    assert loaded is not None
    assert f"\nSetCredential={loaded[1]}:{NOT_THERE.decode()}\n" in read(name)
    assert re.search("^Environment=SHADOW_KEY=%d/", read(name), re.MULTILINE)
    assert "--key" not in read(name)
