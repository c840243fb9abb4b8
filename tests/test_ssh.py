"""The main job on real input: OpenSSH, scp, sftp and HTTP through the tunnel."""

import functools
import hashlib
import http.server
import os
import pwd
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from bench.processes import free_port
from tests.support import CHECKOUT, DEADLINE, Tunnel, random_bytes, wait_for


class Sshd:
    """A real OpenSSH server on loopback with keys of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.user = pwd.getpwuid(os.getuid()).pw_name
        for name in ("host", "user"):
            self._run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        config = folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nListenAddress ::1\n"
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
            f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"PermitRootLogin yes\nSubsystem sftp internal-sftp\nLogLevel ERROR\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # OpenSSH's privilege separation folder
        program = shutil.which("sshd") or "/usr/sbin/sshd"
        self.process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE)

    @staticmethod
    def _run(*arguments: str) -> None:
        subprocess.run(arguments, check=True, timeout=DEADLINE)

    def options(self, socket_path: Path) -> list[str]:
        host_key = (self.folder / "host.pub").read_text()
        known = self.folder / "known_hosts"
        known.write_text(f"robot011 {host_key}")
        return [
            "-F", "none", "-i", str(self.folder / "user"), "-o", f"UserKnownHostsFile={known}",
            "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes",
            "-o", f"ProxyCommand socat - UNIX-CONNECT:{socket_path}",
        ]  # fmt: skip

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=DEADLINE)


@pytest.fixture
def ssh(tunnel: Tunnel, tmp_path: Path) -> Iterator[tuple[Sshd, list[str]]]:
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    sshd = Sshd(folder)
    try:
        tunnel.start_server()
        tunnel.start_client("--lhost=::1", f"--lport={sshd.port}")
        wait_for(lambda: _listens(sshd.port), "sshd")
        yield sshd, sshd.options(tunnel.socket_path())
    finally:
        sshd.stop()


def _listens(port: int) -> bool:
    return f":{port:04X} " in Path("/proc/net/tcp6").read_text()


def run(*arguments: str, data: bytes = b"") -> bytes:
    done = subprocess.run(arguments, input=data, capture_output=True, check=False, timeout=4 * DEADLINE)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_a_command_over_ssh(ssh: tuple[Sshd, list[str]]) -> None:
    sshd, options = ssh
    assert run("ssh", *options, f"{sshd.user}@robot011", "echo $((6 * 7))") == b"42\n"
    assert (
        run("ssh", *options, f"{sshd.user}@robot011", "tr a-z A-Z", data=b"through stdin") == b"THROUGH STDIN"
    )


@pytest.mark.long
def test_a_hundred_mebibytes_by_scp_and_back_by_sftp(ssh: tuple[Sshd, list[str]], tmp_path: Path) -> None:
    sshd, options = ssh
    source, there, back = tmp_path / "source", tmp_path / "there", tmp_path / "back"
    data = random_bytes(100 * 2**20, 7)
    source.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    run("scp", "-q", *options, str(source), f"{sshd.user}@robot011:{there}")
    assert hashlib.sha256(there.read_bytes()).hexdigest() == digest
    batch = f"get {there} {back}\n".encode()
    run("sftp", "-q", *options, "-b", "-", f"{sshd.user}@robot011", data=batch)
    assert hashlib.sha256(back.read_bytes()).hexdigest() == digest


def test_many_ssh_sessions_at_once(ssh: tuple[Sshd, list[str]]) -> None:
    sshd, options = ssh
    processes = [
        subprocess.Popen(["ssh", *options, f"{sshd.user}@robot011", f"echo {number}"], stdout=subprocess.PIPE)
        for number in range(8)
    ]
    for number, process in enumerate(processes):
        output, _ = process.communicate(timeout=4 * DEADLINE)
        assert output == b"%d\n" % number


def test_curl_with_keep_alive_against_a_real_http_server(tunnel: Tunnel, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.mkdir()
    for number in range(3):
        (content / f"{number}.bin").write_bytes(random_bytes(1_000_000, number))

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        connections: ClassVar[set[object]] = set()

        def do_GET(self) -> None:
            self.connections.add(self.client_address)
            super().do_GET()

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(content))
    ) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            tunnel.start_server()
            tunnel.start_client(f"--service=web=127.0.0.1:{server.server_port}", "--lport=9")
            urls = [f"http://robot/{number}.bin" for number in range(3)]
            outputs = [word for number in range(3) for word in ("-o", str(tmp_path / f"got{number}"))]
            run("curl", "-sSf", "--unix-socket", str(tunnel.socket_path("web@011")), *outputs, *urls)
        finally:
            server.shutdown()
            thread.join()
    for number in range(3):
        assert (tmp_path / f"got{number}").read_bytes() == random_bytes(1_000_000, number)
    assert len(Handler.connections) == 1, "keep-alive means one connection, so one stream"


def test_the_lines_people_know_work_as_they_stand(tmp_path: Path) -> None:
    """From a checkout: quickstart, server, client, and the pipe that measures it; nothing else set up."""
    ssh_folder = tmp_path / "ssh"
    ssh_folder.mkdir(mode=0o700)
    sshd = Sshd(ssh_folder)
    port = str(free_port())
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    processes: list[subprocess.Popen[bytes]] = []

    def start(command: str) -> None:
        log = (tmp_path / "log").open("ab")
        processes.append(
            subprocess.Popen(command.split(), cwd=tmp_path, env=environment, stdout=log, stderr=log)
        )
        log.close()

    try:
        run(str(CHECKOUT / "shadow-ca"), "quickstart", str(tmp_path))
        start(
            f"{CHECKOUT}/shadow-server -6 --lport={port} --ldir=. --ca=ca.crt --crt=server.crt "
            "--key=server.key"
        )
        start(
            f"{CHECKOUT}/shadow-client --rport={port} --rhost=::1 --ca=ca.crt --crt=client.crt "
            f"--key=client.key --robot=011 --lhost=::1 --lport={sshd.port}"
        )
        wait_for((tmp_path / "011.sock").exists, "011.sock")
        wait_for(lambda: _listens(sshd.port), "sshd")
        options = sshd.options(Path("./011.sock"))
        done = subprocess.run(
            ["ssh", *options, f"{sshd.user}@robot011", "echo it works"],
            cwd=tmp_path,
            capture_output=True,
            check=False,
            timeout=DEADLINE,
        )
        assert done.stdout == b"it works\n", done.stderr
    finally:
        for process in processes:
            process.terminate()
            process.wait(DEADLINE)
        sshd.stop()
    assert not (tmp_path / "011.sock").exists()
