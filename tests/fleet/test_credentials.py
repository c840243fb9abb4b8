"""Who we are to the engine: read, checked, and never from the robots' CA."""

import contextlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from shadow.errors import ConfigError
from shadow.fleet.credentials import Identity, Login, load_identity
from shadow.pki.certificates import Files, Purpose
from tests.support import Authority, now


@pytest.fixture
def engine(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "engine", "Engine CA")


def files(authority: Authority) -> Files:
    return Files(authority.ca, *authority.robot("server-a"))


def load(found: Files, login: Path | None = None, robots: Authority | None = None) -> Identity:
    return load_identity(found, login, [] if robots is None else [robots.certificate], now())


def test_all_is_well(engine: Authority, authority: Authority) -> None:
    identity = load(files(engine), None, authority)
    assert identity.login is None
    assert identity.context.verify_mode is ssl.CERT_REQUIRED
    assert identity.context.check_hostname
    assert [term.what.split()[0] for term in identity.terms] == ["certificate", "CA"]


def test_the_robots_ca(authority: Authority) -> None:
    with pytest.raises(ConfigError, match=r"ca\.crt: it is the robots' CA, .* a CA of its own") as caught:
        load(files(authority), None, authority)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 78


def test_the_robots_ca_among_others(engine: Authority, authority: Authority) -> None:
    engine.ca.write_bytes(engine.ca.read_bytes() + authority.ca.read_bytes())
    with pytest.raises(ConfigError, match="robots' CA"):
        load(files(engine), None, authority)


def test_a_new_certificate_for_the_robots_key(engine: Authority, authority: Authority) -> None:
    """A CA is its key."""
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    builder = authority._builder(engine.name, authority.key.public_key(), (-1, 10))
    twin = builder.add_extension(constraints, critical=True).sign(authority.key, hashes.SHA256())
    there = files(engine)
    engine.ca.write_bytes(engine.ca.read_bytes() + twin.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ConfigError, match="robots' CA"):
        load(there, None, authority)


def test_the_root_of_the_robots_ca(engine: Authority, tmp_path: Path) -> None:
    """A robot shows the intermediate itself: to etcd, its chain would be good."""
    robots = Authority(tmp_path / "robots", "Robots CA", engine)
    with pytest.raises(ConfigError, match="or has issued it"):
        load(files(engine), None, robots)


def test_an_intermediate_of_the_robots_ca_of_its_own_is_fine(authority: Authority, tmp_path: Path) -> None:
    """No robot's certificate leads to it."""
    engine = Authority(tmp_path / "engine", "Engine CA", authority)
    load(files(engine), None, authority)


def test_missing_files_are_named(engine: Authority, tmp_path: Path) -> None:
    there = files(engine)
    with pytest.raises(ConfigError) as caught:
        load(Files(tmp_path / "no.crt", there.crt, tmp_path / "no.key"))
    assert str(caught.value) == (
        f"engine's CA certificate {tmp_path}/no.crt and engine's private key {tmp_path}/no.key: "
        "No such file or directory; all three come from the engine's own CA, not the robots'"
    )


def test_files_that_do_not_belong_together(engine: Authority, authority: Authority) -> None:
    with pytest.raises(ConfigError, match="does not match"):
        load(Files(engine.ca, engine.robot("a")[0], engine.robot("b")[1]))
    with pytest.raises(ConfigError, match="was not issued by"):
        load(Files(engine.ca, *authority.robot("011")))
    with pytest.raises(ConfigError, match="expired"):
        load(Files(engine.ca, *engine.issue("old", "a", Purpose.ROBOT, days=(-3, -1))))


def test_what_it_is_for(engine: Authority) -> None:
    load(Files(engine.ca, *engine.issue("any", "a", None)))
    with pytest.raises(ConfigError, match="not for clients"):
        load(Files(engine.ca, *engine.server()))


def test_a_certificate_without_a_name(engine: Authority) -> None:
    """What an engine with users wants."""
    load(Files(engine.ca, *engine.issue("nameless", "", Purpose.ROBOT)))


def test_a_login(engine: Authority, tmp_path: Path) -> None:
    path = tmp_path / "login"
    path.write_text("shadow:a:b c\n")
    found = load(files(engine), path).login
    assert found == Login("shadow", "a:b c")
    assert "a:b c" not in repr(found)
    path.write_bytes(b"missing")
    assert load(files(engine), path).login is None, "the service manager has found none"


@pytest.mark.parametrize(
    "data", [b"", b"shadow", b"shadow:", b":secret", b"a:b\nc:d", b"\xff:x", b"x:" + b"y" * 1024]
)
def test_no_login(engine: Authority, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "login"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"engine's login {path}: ") as caught:
        load(files(engine), path)
    assert "secret" not in str(caught.value).replace(str(path), "")


def test_a_login_that_is_no_file(engine: Authority, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(files(engine), tmp_path / "login")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(files(engine), tmp_path)


def test_no_copy_of_the_key_stays_open(engine: Authority) -> None:
    identity = load(files(engine))
    assert identity.context.cert_store_stats()["x509_ca"] == 1
    links = []
    for path in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the one for this list
            links.append(str(path.readlink()))
    assert [link for link in links if "memfd:engine" in link] == []
