"""The tunnels that are compared, each set up as its makers would: a unix socket in, mutual TLS 1.2, TCP out.

All of them end at the same service on a port of 127.0.0.1, and use AES-128-GCM with the same kind of keys.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .processes import BenchError, Group, free_port, listens
from .questions import LOAD

CHECKOUT = Path(__file__).resolve().parents[1]
SUITE = "ECDHE-ECDSA-AES128-GCM-SHA256"


@dataclass(frozen=True, slots=True)
class Keys:
    """Certificates that all tunnels use.

    Attributes:
        folder: has ca.crt, server.crt, server.key, client.crt, client.key, and both of each in one .pem.
    """

    folder: Path

    def __getattr__(self, name: str) -> Path:
        """``server_crt`` is the file server.crt."""
        return self.folder / name.replace("_", ".")


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One way to get from a visitor to the service.

    Attributes:
        name: for the table.
        open: starts it for a service's port, and returns where visitors go: a socket's path, or a port.
    """

    name: str
    open: Callable[[Group, Keys, int], str]


def make_keys(folder: Path) -> Keys:
    """A CA and two certificates, made as a user of Shadow would."""
    with Group(folder / "log") as group:
        group.run("shadow-ca", *_shadow("ca"), "quickstart", folder)
    for side in ("server", "client"):
        pem = (folder / f"{side}.crt").read_text() + (folder / f"{side}.key").read_text()
        (folder / f"{side}.pem").touch(0o600)
        (folder / f"{side}.pem").write_text(pem)
    return Keys(folder)


def _shadow(command: str) -> tuple[str, ...]:
    return sys.executable, "-m", f"shadow.cli.{command}"


def server_command(keys: Keys, port: int, folder: Path) -> tuple[str, ...]:
    """A server on this port, with its sockets in this folder."""
    return *_shadow("server"), *server_options(keys, port, folder)


def server_options(keys: Keys, port: int, folder: Path) -> tuple[str, ...]:
    """Its options."""
    return (
        f"--lport={port}", f"--ldir={folder}", f"--ca={keys.ca_crt}", f"--crt={keys.server_crt}",
        f"--key={keys.server_key}",
    )  # fmt: skip


def client_command(keys: Keys, port: int, service: int) -> tuple[str, ...]:
    """Robot 011, for the server on one port and the service on another."""
    return (
        *_shadow("client"), "--robot=011", "--rhost=127.0.0.1", f"--rport={port}", "--lhost=127.0.0.1",
        f"--lport={service}", f"--ca={keys.ca_crt}", f"--crt={keys.client_crt}", f"--key={keys.client_key}",
    )  # fmt: skip


def start_service(group: Group) -> int:
    """Start what all tunnels end at; its port."""
    group.start("service", sys.executable, LOAD, "service")
    said = group.folder / "service.log"
    group.wait_for(lambda: said.read_bytes().endswith(b"\n"), "the service")
    return int(said.read_text())


def _tool(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        raise BenchError(f"{name} is not installed: scripts/setup bench")
    return found


def _start_ends(group: Group, command: tuple[str, ...], port: int, path: Path) -> None:
    """Start one tool twice, with far.conf behind the TLS port and near.conf behind the unix socket."""
    name, *options = command
    group.start("far", _tool(name), *options, group.folder / "far.conf")
    group.wait_for(lambda: listens(port), name)
    group.start("near", _tool(name), *options, group.folder / "near.conf")
    group.wait_for(path.exists, f"{name}'s socket")


def _nothing(_group: Group, _keys: Keys, service: int) -> str:
    return str(service)


def _shadow_tunnel(group: Group, keys: Keys, service: int) -> str:
    port = free_port()
    group.start("server", *server_command(keys, port, group.folder))
    group.wait_for(lambda: listens(port), "shadow-server")
    group.start("client", *client_command(keys, port, service))
    path = group.folder / "011.sock"
    group.wait_for(path.exists, "the robot's socket")
    return str(path)


def _ssh(group: Group, _keys: Keys, service: int) -> str:
    port, path, folder = free_port(), group.folder / "ssh.sock", group.folder
    for name in ("host", "user"):
        group.run("ssh-keygen", _tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "PidFile none\nStrictModes no\nUsePAM no\nStreamLocalBindUnlink yes\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    group.start("sshd", _tool("sshd"), "-D", "-e", "-f", folder / "sshd_config")
    group.wait_for(lambda: listens(port), "sshd")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    options = ("BatchMode=yes", "ExitOnForwardFailure=yes", f"UserKnownHostsFile={folder}/known_hosts")
    words = [word for option in options for word in ("-o", option)]
    group.start(
        "ssh", _tool("ssh"), "-F", "none", "-N", "-c", "aes128-gcm@openssh.com", *words, "-p", str(port),
        "-i", folder / "user", "-R", f"{path}:127.0.0.1:{service}", "127.0.0.1",
    )  # fmt: skip
    group.wait_for(path.exists, "the forwarded socket")
    return str(path)


def _socat(group: Group, keys: Keys, service: int) -> str:
    port, path = free_port(), group.folder / "socat.sock"
    common = f"cafile={keys.ca_crt},verify=1,ciphers={SUITE},openssl-max-proto-version=TLS1.2,nodelay"
    ours = f"openssl-listen:{port},bind=127.0.0.1,reuseaddr,fork,backlog=1024,cert={keys.server_pem},{common}"
    group.start("far", _tool("socat"), "-b65536", ours, f"tcp:127.0.0.1:{service},nodelay")
    group.wait_for(lambda: listens(port), "socat")
    theirs = f"openssl:127.0.0.1:{port},cert={keys.client_pem},commonname=127.0.0.1,{common}"
    group.start("near", _tool("socat"), "-b65536", f"unix-listen:{path},fork,backlog=1024", theirs)
    group.wait_for(path.exists, "socat's socket")
    return str(path)


def _stunnel(group: Group, keys: Keys, service: int) -> str:
    port, path = free_port(), group.folder / "stunnel.sock"
    common = (
        f"foreground = yes\npid =\nsslVersion = TLSv1.2\nciphers = {SUITE}\nCAfile = {keys.ca_crt}\n"
        "verifyChain = yes\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
    )
    (group.folder / "far.conf").write_text(
        f"{common}[far]\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{service}\ncert = {keys.server_pem}\n"
    )
    (group.folder / "near.conf").write_text(
        f"{common}[near]\nclient = yes\naccept = {path}\nconnect = 127.0.0.1:{port}\n"
        f"cert = {keys.client_pem}\n"
    )
    _start_ends(group, ("stunnel",), port, path)
    return str(path)


def _haproxy(group: Group, keys: Keys, service: int) -> str:
    port, path = free_port(), group.folder / "haproxy.sock"
    common = (
        "global\n    maxconn 4096\ndefaults\n    mode tcp\n    timeout connect 10s\n    timeout client 1h\n"
        "    timeout server 1h\n"
    )
    tls = f"ssl ca-file {keys.ca_crt} ciphers {SUITE}"
    (group.folder / "far.conf").write_text(
        f"{common}listen far\n    bind 127.0.0.1:{port} {tls} crt {keys.server_pem} verify required "
        f"ssl-max-ver TLSv1.2\n    server service 127.0.0.1:{service}\n"
    )
    (group.folder / "near.conf").write_text(
        f"{common}listen near\n    bind unix@{path}\n    server far 127.0.0.1:{port} {tls} "
        f"crt {keys.client_pem} verify required ssl-max-ver TLSv1.2\n"
    )
    _start_ends(
        group,
        (
            "haproxy",
            "-db",
            "-f",
        ),
        port,
        path,
    )
    return str(path)


def _nginx(group: Group, keys: Keys, service: int) -> str:
    port, path = free_port(), group.folder / "nginx.sock"
    common = (
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nuser root;\n"
        "worker_processes auto;\nerror_log stderr;\nevents { worker_connections 4096; }\n"
    )
    (group.folder / "far.conf").write_text(
        f"{common}pid {group.folder}/far.pid;\nstream {{ server {{ listen 127.0.0.1:{port} ssl; "
        f"ssl_certificate {keys.server_crt}; ssl_certificate_key {keys.server_key}; ssl_protocols TLSv1.2; "
        f"ssl_ciphers {SUITE}; ssl_client_certificate {keys.ca_crt}; ssl_verify_client on; "
        f"proxy_pass 127.0.0.1:{service}; proxy_timeout 1h; }} }}\n"
    )
    (group.folder / "near.conf").write_text(
        f"{common}pid {group.folder}/near.pid;\nstream {{ server {{ listen unix:{path}; "
        f"proxy_pass 127.0.0.1:{port}; proxy_timeout 1h; proxy_ssl on; proxy_ssl_protocols TLSv1.2; "
        f"proxy_ssl_certificate {keys.client_crt}; proxy_ssl_certificate_key {keys.client_key}; "
        f"proxy_ssl_ciphers {SUITE}; proxy_ssl_trusted_certificate {keys.ca_crt}; proxy_ssl_verify on; "
        "proxy_ssl_name localhost; } }\n"
    )
    _start_ends(
        group,
        (
            "nginx",
            "-c",
        ),
        port,
        path,
    )
    return str(path)


SHADOW = "shadow"
NOTHING = "no tunnel"
TUNNELS = (
    Tunnel(SHADOW, _shadow_tunnel),
    Tunnel("ssh -R", _ssh),
    Tunnel("stunnel", _stunnel),
    Tunnel("socat", _socat),
    Tunnel("haproxy", _haproxy),
    Tunnel("nginx", _nginx),
    Tunnel(NOTHING, _nothing),
)
"""In the order of the table."""
