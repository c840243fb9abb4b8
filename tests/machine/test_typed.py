"""What manual pages and OPERATING.md show, typed as it stands there; and what it does.

All on one machine that the README's "Two real machines" have set up. Each test leaves it as it found it.
"""

import contextlib
import json
import re
from collections.abc import Iterator

import pytest

from tests.support import commands
from tests.support.commands import typed

from . import hands
from .fleet import OPERATOR, Fleet
from .hands import BROUGHT, CA, ETC
from .qemu import Background

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"
SIGNING = "/var/lib/shadow-ca"
AS_CA = f"runuser -u shadow-ca -- shadow-ca --dir {SIGNING}"
WEB = "python3 -m http.server --directory /srv/web --bind ::1 8000"

pytestmark = pytest.mark.slow  # minutes in all


@pytest.fixture(scope="module")
def ready(_settled: Fleet) -> Iterator[Fleet]:
    """A server and the robots 011 and 012, which offer a web page, too."""
    _settled.reset()
    with hands.bare(_settled):
        hands.set_up(_settled)
        _settled.machine.run(f"echo SHADOW_SERVICE=web=localhost:8000 >>{ETC}/client.env")
        _settled.machine.write("/srv/web/index.html", "hello from a robot\n")
        _settled.machine.run(typed("systemctl restart 'shadow-client@*'"))
        for name in ("web@011", "web@012"):
            _settled.wait_for_robot(name)
        yield _settled
        _settled.machine.run("rm -r /srv/web")
        _settled.reset()


def by(fleet: Fleet, begin: str, user: str | None = OPERATOR, folder: str = "~") -> str:
    """What a command of the documents says, typed by the operator or as root."""
    return hands.type_in(fleet, folder, typed(begin).replace("user@", f"{OPERATOR}@"), user=user)


@contextlib.contextmanager
def visited(fleet: Fleet, robot: str = "011") -> Iterator[Background]:
    """Somebody is logged in on a robot."""
    with fleet.machine.background(f"ssh {OPERATOR}@{robot}.robot cat", user=OPERATOR) as session:
        assert session.ask(b"hello\n") == b"hello\n"
        yield session


@contextlib.contextmanager
def web(fleet: Fleet) -> Iterator[None]:
    """The robots' web page is up."""
    with fleet.machine.background(WEB):
        fleet.machine.wait_until("curl -s http://localhost:8000/")
        yield


def serial(fleet: Fleet, path: str) -> str:
    """A certificate's number, as shadowctl shows it."""
    said = fleet.machine.run(["openssl", "x509", "-noout", "-serial", "-in", path]).stdout
    return said.strip().partition("=")[2].lower().zfill(40)


def connected_with(fleet: Fleet, robot: str, path: str) -> None:
    """Wait until a robot is connected, and with the certificate in a file."""
    fleet.machine.wait_until(f"shadowctl status {robot} | grep -qw {serial(fleet, path)}")


# Looking.


@pytest.mark.api
def test_looking(ready: Fleet) -> None:
    ready.wait_for(SERVER, "StatusText", "^2 robots, 0 streams")
    with visited(ready):
        table = by(ready, "shadowctl list").splitlines()
        assert [line.partition(" ")[0] for line in table] == ["ROBOT", "011", "012", "", "2"]
        assert re.search(r"^011 +\S+ +\d+s +default,web +1 +kernel$", "\n".join(table), re.MULTILINE), table
        streams = by(ready, "shadowctl streams")
        assert re.search(r"^\w+ +011 +default +alice .* kernel, kept$", streams, re.MULTILINE), streams
        told = by(ready, "shadowctl status 011")
        for label in ("Software: shadow-client", "Services: default, web", "by the kernel", "standing by"):
            assert label in told, told
        assert serial(ready, f"{ETC}/011.crt") in told
        assert "Status: 2 robots, 1 stream, kernel TLS" in by(ready, "shadowctl status")
        assert "2 robots, 1 stream, kernel TLS" in by(ready, "systemctl status shadow-server", None)
        listed = by(ready, "ls /run/shadow-tunnel")
        assert listed.split() == [
            "011.sock", "012.sock", "io.shadowtunnel.Server", "web@011.sock", "web@012.sock",
        ]  # fmt: skip
    assert by(ready, "shadowctl list --local --json |") == ""  # nobody's certificate ends so soon
    soon = typed("shadowctl list --local --json |").replace("+60 days", "+900 days")
    assert hands.type_in(ready, "~", soon, user=OPERATOR).split() == ["011", "012"]
    wrong = ready.machine.run(typed("shadowctl status 0112"), user=OPERATOR, check=False)
    assert wrong.stderr == "shadowctl: robot '0112' is not connected; did you mean 012, 011?\n"


@pytest.mark.api
def test_the_api(ready: Fleet) -> None:
    lines = hands.text(commands.block("varlinkctl introspect"))
    said = hands.type_in(ready, "~", lines, user=OPERATOR)
    assert "interface io.shadowtunnel.Server" in said
    assert re.search('"name" ?: ?"011"', said), said


# Reaching.


@pytest.mark.api
def test_reaching(ready: Fleet) -> None:
    run = ready.machine.run
    assert by(ready, "ssh alice@011.robot uptime").startswith("up ")
    login = typed("ssh user@011.robot").replace("user@", f"{OPERATOR}@")
    assert ready.machine.run(login, user=OPERATOR, stdin="id -un\n").stdout.endswith("alice\n")
    run("mkdir -p ~/here/site; echo new >~/here/site/page; echo dmesg >/tmp/dmesg", user=OPERATOR)
    run("printf '#!/bin/sh\necho updated\n' >~/update; chmod +x ~/update", user=OPERATOR)
    by(ready, "shadowctl wait 012 --timeout 60", folder="~/here")
    assert run("cat ~/site/page", user=OPERATOR).stdout == "new\n"
    assert by(ready, "shadowctl wait 011 && ssh").endswith("updated\n")
    copy = (
        typed("scp user@011.robot").replace("user@", f"{OPERATOR}@").replace("/var/log/dmesg", "/tmp/dmesg")
    )
    hands.type_in(ready, "~/here", copy, user=OPERATOR)
    assert run("cat ~/here/dmesg", user=OPERATOR).stdout == "dmesg\n"
    with web(ready):
        assert by(ready, "curl -s --unix-socket /run/shadow-tunnel/web@012") == "hello from a robot\n"
        assert by(ready, "curl --unix-socket /run/shadow-tunnel/web@011.sock") == "hello from a robot\n"
        run("printf 'GET / HTTP/1.0\r\n\r\n' >~/request", user=OPERATOR)
        assert by(ready, "shadowctl connect 011 web").endswith("hello from a robot\n")
        forward = typed("ssh -L 8080:").replace("tunnel.example.com", "-N tunnel.example.com")
        with ready.machine.background(forward, user=OPERATOR):
            ready.machine.wait_until("[[ $(curl -s http://localhost:8080/) == 'hello from a robot' ]]")
    run("rm -r ~/site ~/here ~/update ~/request /tmp/dmesg", user=OPERATOR)
    socat = typed("ssh -o 'ProxyCommand socat - UNIX-CONNECT:/run/shadow-tunnel/011.sock' 011")
    assert hands.type_in(ready, "~", f"{socat} id -un", user=OPERATOR) == "alice\n"


# What the log says.


def test_the_log(ready: Fleet) -> None:
    cursor = ready.machine.cursor()
    with visited(ready):
        pass
    ready.wait_for_event(cursor, "robot 011: stream .* bytes to the service", "-u", CLIENT)
    ready.wait_for_event(cursor, "robot 011: stream .* bytes to the robot", "-u", SERVER)
    turned = "curl -s --unix-socket /run/shadow-tunnel/web@011.sock http://robot/"  # nobody is there
    assert ready.machine.run(turned, user=OPERATOR, check=False).returncode != 0
    ready.wait_for_event(cursor, "visitor not connected", "-u", CLIENT)
    ready.wait_for_event(cursor, "robot 011: visitor with uid .* turned away", "-u", SERVER)
    brief = by(ready, "journalctl -o cat ROBOT=011", None)
    for text in (
        "^robot 011 connected from ",
        "^robot 011 dials tunnel.example.com:2222 and offers default = ",
    ):
        assert re.search(text, brief, re.MULTILINE), brief
    for text in ("started for uid", "bytes to the robot", "turned away", "started$", "bytes to the service"):
        assert re.search(rf"^robot 011: .*{text}", brief, re.MULTILINE), text
    assert "robot 012" not in brief
    assert by(ready, "journalctl ROBOT=011", None).count("\n") >= brief.count("\n")
    for begin in ("journalctl -x --since yesterday ROBOT=011", "journalctl -x -u shadow-server"):
        assert "░░ Subject: Robot 011 could not reach its own service" in by(ready, begin, None), begin
    assert "░░ Subject: " in by(ready, "journalctl -x -p warning -u shadow-client@011", None)
    assert "turned away" in by(ready, "journalctl -u shadow-server -p warning", None)
    assert "bytes to the robot" not in by(ready, "journalctl -u shadow-server -p warning", None)
    visits = by(ready, "journalctl -u shadow-server --since today", None).splitlines()
    uid = ready.machine.run(["id", "-u", OPERATOR]).stdout.strip()
    assert visits[-1].split()[:3] == [uid, "011", "default"], visits
    assert all(float(number) > 0 for number in visits[-1].split()[3:])
    (number,) = re.findall(r"^robot 011: stream (\w+) ended: .*from it", brief, re.MULTILINE)[-1:]
    one = typed("journalctl -o verbose -n 1").replace("STREAM=1", f"STREAM={number}")
    told = ready.machine.run(one).stdout
    for field in ("ROBOT=011", "SERVICE=default", f"STREAM={number}", "DURATION="):
        assert field in told, told


# Steering.


@pytest.mark.api
def test_steering(ready: Fleet) -> None:
    with visited(ready) as session:
        assert re.fullmatch(
            r"robot 011: \d connections? ended\n", by(ready, "shadowctl disconnect 011", None)
        )
        assert session.wait() == 255
    ready.wait_for_robot("011")
    with visited(ready) as session, visited(ready) as other:
        said = ready.machine.run("shadowctl streams --json").stdout
        number = min((str(one["id"]) for one in json.loads(said)), key=lambda text: int(text, 16))
        line = typed("shadowctl disconnect --stream 1f").replace("1f", number)
        assert ready.machine.run(line).stdout == f"stream {number}: 1 connection ended\n"
        assert session.wait() == 255
        assert other.ask(b"still here\n") == b"still here\n"


def test_restart_and_reload(ready: Fleet) -> None:
    by(ready, "systemctl enable --now shadow-client@011 shadow-client@012", None)
    assert ready.machine.run("systemctl is-enabled shadow-client@01{1,2}").stdout == "enabled\n" * 2
    pids = {unit: ready.pid(unit) for unit in (SERVER, CLIENT)}
    for begin, unit in (
        ("systemctl reload shadow-server", SERVER),
        ("systemctl reload shadow-client@011", CLIENT),
        ("systemctl reload 'shadow-client@*'", CLIENT),
    ):
        cursor = ready.machine.cursor()
        by(ready, begin, None)
        ready.wait_for_event(cursor, "^reloaded", "-u", unit)
        assert ready.pid(unit) == pids[unit]
    with visited(ready) as session:
        for begin in ("systemctl restart shadow-server", "systemctl restart 'shadow-client@*'"):
            by(ready, begin, None)
            assert session.ask(b"still here\n") == b"still here\n"
    assert [ready.pid(unit) == pid for unit, pid in pids.items()] == [False, False]
    assert by(ready, "systemctl is-active shadow-client@011", None) == "active\n"
    ready.wait_for(CLIENT, "StatusText", "^Connected to .*:2222 ")
    assert "Connected to" in by(ready, "systemctl status shadow-client@011", None)


def test_stopping_and_what_the_log_knows_of_it(ready: Fleet) -> None:
    for begin in (
        "systemctl stop shadow-server.socket shadow-server.service",
        "systemctl stop shadow-server.socket shadow-server",
    ):
        cursor = ready.machine.cursor()
        with visited(ready) as session:
            by(ready, begin, None)
            assert session.wait() == 255
        ready.wait_for_event(cursor, "^no session with .*Connection refused", "-u", CLIENT)  # and it stays so
        hands.type_in(ready, "/", hands.text(commands.block("systemctl start shadow-server")))
        assert "shadow-server.socket" in by(ready, "systemctl status shadow-server.socket", None)
        for robot in ("011", "012"):
            ready.wait_for_robot(robot)
    found = by(ready, "journalctl -o json --output-fields=MESSAGE", None).splitlines()
    assert "no session with" in json.loads(found[-1])["MESSAGE"]


def test_metrics(ready: Fleet) -> None:
    block = commands.block("systemctl enable shadow-server-metrics.socket")
    enable, scrape = block.commands[:-1], block.commands[-1].text
    for lines in (
        typed("systemctl enable shadow-server-metrics.socket;"),
        "\n".join(one.text for one in enable),
    ):
        hands.type_in(ready, "/", lines)
        for robot in ("011", "012"):
            ready.wait_for_robot(robot)
        ready.machine.wait_until(f"{scrape} | grep -x 'shadow_robots_connected 2.0'")
        by(ready, "systemctl disable --now shadow-server-metrics.socket", None)
        ready.machine.run("systemctl restart shadow-server")
        assert ready.machine.run("curl -s http://127.0.0.1:9722/metrics", check=False).returncode == 7


def test_health_checks(ready: Fleet) -> None:
    run = ready.machine.run
    ask = commands.block("systemctl enable shadow-server-health.socket").commands[-1].text
    code = ask.replace("-s", "-s -m 60 -o /dev/null -w '%{http_code}\\n'")
    hands.type_in(ready, "/", typed("systemctl enable shadow-server-health.socket;"))
    assert run(ask).stdout == "ok\n"
    # Checks wait for a restart to end.
    codes = run(f"systemctl restart shadow-server & while kill -0 $!; do {code}; done 2>/dev/null").stdout
    assert set(codes.split()) == {"200"}
    run(typed("systemctl stop shadow-server.socket shadow-server.service"))
    assert run(ask, check=False).returncode == 7
    # As after a boot: a balancer sends no robot before it has been answered.
    run("systemctl stop 'shadow-client@*'; systemctl start shadow-server.socket")
    assert ready.show("shadow-server.service", "ActiveState") == "inactive"
    assert run(ask).stdout == "ok\n"
    run("systemctl start shadow-client@{011,012}")
    by(ready, "systemctl disable --now shadow-server-health.socket", None)
    run("systemctl restart shadow-server")
    assert run(ask, check=False).returncode == 7


def test_another_port(ready: Fleet) -> None:
    block = commands.block("systemctl edit shadow-server.socket")
    begin, end = (command.text for command in block.commands)
    ready.machine.run(f"sed -i s/2222/443/ {ETC}/client.env")
    hands.edit(ready, begin, block.written)
    hands.type_in(ready, "/", end)
    ready.machine.run(typed("systemctl restart 'shadow-client@*'"))
    ready.wait_for(CLIENT, "StatusText", "^Connected to .*:443 ")
    assert ready.machine.run("ss -tlnH 'sport = 2222'").stdout == ""
    ready.machine.run(f"{typed('systemctl revert shadow-server.socket')}; {end}")
    ready.machine.run(f"sed -i s/443/2222/ {ETC}/client.env; systemctl restart 'shadow-client@*'")
    for unit in (CLIENT, "shadow-client@012"):
        ready.wait_for(unit, "StatusText", "^Connected to .*:2222 ")


# Certificates and keys.


@pytest.mark.api
def test_a_new_key_and_certificate(ready: Fleet) -> None:
    """REPLACING CERTIFICATES AND KEYS in shadow-tunnel(5); the same in SECURITY.md."""
    old = serial(ready, f"{ETC}/011.crt")
    hands.type_in(ready, "/srv", typed("shadow-ca --dir ca robot 011 --renew"))
    hands.bring(ready, "011.crt", "011.key")
    said = hands.type_in(ready, BROUGHT, hands.text(commands.block("openssl verify"))).splitlines()
    assert (said[0], said[-1]) == ("011.crt: OK", "match")
    assert re.fullmatch("subject=CN ?= ?011", said[1])
    hands.type_in(ready, BROUGHT, hands.text(commands.block("install -m 0644 011.crt")))
    connected_with(ready, "011", f"{CA}/011.crt")
    assert serial(ready, f"{CA}/011.crt") != old
    # Robot 012, by the lines of shadow-client@.service(8), which hold for any name.
    hands.type_in(ready, "/srv", typed("shadow-ca --dir ca robot 011 --renew").replace("011", "012"))
    hands.bring(ready, "012.crt", "012.key")
    lines = hands.text(commands.block("name=011")).replace("011", "012")
    hands.type_in(ready, BROUGHT, lines + typed("systemctl restart 'shadow-client@*'"))
    connected_with(ready, "012", f"{CA}/012.crt")


def test_an_encrypted_key(ready: Fleet) -> None:
    """ENCRYPTED KEYS in shadow-tunnel(5), to the end: the plain key is gone."""
    block = commands.block("systemd-creds encrypt --name=client.key")
    enter, encrypt, edit = (command.text for command in block.commands)
    ready.machine.run(f"cp {ETC}/011.key /srv/011.key")
    hands.type_in(ready, "/", f"{enter}\n{encrypt}")
    hands.edit(ready, edit, block.written)
    try_it = commands.block("shred -u 011.key")
    assert hands.type_in(ready, ETC, hands.text(try_it)) == "active\n"
    assert "011.key" not in ready.machine.run(f"ls {ETC}").stdout.split()
    ready.machine.run(["systemctl", "restart", CLIENT])
    ready.wait_for(CLIENT, "StatusText", "^Connected to ")
    ready.machine.run(
        f"systemctl revert {CLIENT}; install -m 600 /srv/011.key {ETC}/; rm /srv/011.key {ETC}/*.cred"
    )
    ready.machine.run(["systemctl", "restart", CLIENT])
    ready.wait_for(CLIENT, "StatusText", "^Connected to ")


def test_modes(ready: Fleet) -> None:
    """What the log and shadow-tunnel(5) advise when files have the wrong ones."""
    ready.machine.run(f"chmod 644 {ETC}/011.key; chmod 600 {ETC}/ca.crt; touch {ETC}/ca.crl")
    by(ready, "chmod 644 /etc/shadow-tunnel/*.crt /etc/shadow-tunnel/*.crl", None)
    by(ready, "systemd-tmpfiles --create shadow-tunnel.conf", None)
    said = ready.machine.run(f"stat -c %a {ETC}/011.key {ETC}/ca.crt {ETC}/ca.crl; rm {ETC}/ca.crl").stdout
    assert said.split() == ["600", "644", "644"]


@pytest.mark.api
def test_a_stolen_robot(ready: Fleet) -> None:
    """Locked out by the lines of OPERATING.md, SECURITY.md and shadow-ca(1)."""
    there = (typed("install -m 644 ca.crl"), typed("systemctl reload shadow-server"), "shadowctl status")
    everyday = "\n".join([f"cd {CA}", typed("shadow-ca revoke 011"), *there])
    ready.machine.run(f"cp -a {CA} /srv/kept")
    for lines in (everyday, *map(hands.text, commands.every_block("ssh root@tunnel.example.com install"))):
        with hands.root_logs_in(ready):
            with visited(ready) as session:
                said = hands.type_in(ready, "/srv", lines)
                assert session.wait() == 255
            assert re.search("^ *Revoked: [1-9] certificates?$", said, re.MULTILINE), said
            ready.machine.wait_until("[[ ! -e /run/shadow-tunnel/011.sock ]]")
        # Undone by no command that is meant for anybody.
        ready.machine.run(f"rm -rf {CA} {ETC}/ca.crl ~/ca.crl; cp -a /srv/kept {CA}")
        ready.machine.run(["systemctl", "restart", SERVER, CLIENT])
        ready.wait_for_robot("011")
    ready.machine.run("rm -r /srv/kept")


# A robot's life.


def put_in_place(fleet: Fleet) -> None:
    """The lines of shadow-tunnel(5) that put files in place."""
    hands.bring(fleet, "ca.crt", "server.crt", "server.key", "011.crt", "011.key")
    for files in (
        commands.block("install -o root -g root -m 644 ca.crt server.crt"),
        commands.block("install -o root -g root -m 644 ca.crt 011.crt"),
    ):
        hands.type_in(fleet, BROUGHT, hands.text(files))


def test_files_in_place_and_what_needs_them(ready: Fleet) -> None:
    ready.machine.run(f"rm {ETC}/*.crt {ETC}/*.key; gpasswd -d {OPERATOR} shadow-tunnel")
    ready.machine.run("systemctl stop shadow-server.socket shadow-server 'shadow-client@*'")
    put_in_place(ready)
    by(ready, "systemctl enable --now shadow-server.socket", None)
    by(ready, "systemctl enable --now shadow-client@011", None, folder="/")
    by(ready, "gpasswd -a alice shadow-tunnel", None)
    ready.wait_for_robot("011")
    assert by(ready, "ssh alice@011.robot uptime").startswith("up ")
    hands.bring(ready, "012.crt", "012.key")
    ready.machine.run(f"install -m 644 {BROUGHT}/*.crt {ETC}/; install -m 600 {BROUGHT}/*.key {ETC}/")
    ready.machine.run(["systemctl", "start", "shadow-client@012"])
    ready.wait_for_robot("012")


@contextlib.contextmanager
def laptop(fleet: Fleet) -> Iterator[None]:
    """The operator's ssh is set up as OPERATING.md says; the CA is put back as it was."""
    fleet.machine.run(f"cp -a {CA} /srv/kept")
    config = commands.block("laptop: ssh config").written
    fleet.machine.run("cp ~/.ssh/config ~/.ssh/kept; cat >>~/.ssh/config", user=OPERATOR, stdin=config)
    try:
        yield
    finally:
        fleet.machine.run("mv ~/.ssh/kept ~/.ssh/config", user=OPERATOR)
        fleet.machine.run(f"rm -rf {CA} {ETC}/ca.crl; mv /srv/kept {CA}")
        fleet.machine.run(["systemctl", "restart", SERVER, CLIENT, "shadow-client@012"])
        for robot in ("011", "012"):
            fleet.wait_for_robot(robot)


def revoke(fleet: Fleet) -> None:
    """Install on the server the list that has been copied to it, and see that the robot is gone."""
    cursor = fleet.machine.cursor()
    hands.as_root(fleet, commands.block("revoking: server"))
    fleet.wait_for_event(cursor, "^reloaded.* [1-9] certificates? revoked", "-u", SERVER)
    fleet.machine.wait_until("[[ ! -e /run/shadow-tunnel/011.sock ]]")


@pytest.mark.api
def test_a_robot_gets_another_name(ready: Fleet) -> None:
    """Renamed from the laptop, over the tunnel; whoever is logged in stays so until the old name goes."""
    with laptop(ready):
        ready.machine.run(f"rm {hands.HOME}/*.deb")
        hands.on_the_laptop(ready, commands.block("upgrading: laptop"))  # as far as it goes without a new one
        assert ready.machine.run(f"ls {hands.HOME}/*.deb").stdout.endswith("/shadow-tunnel_0.1.0_all.deb\n")
        hands.on_the_laptop(ready, commands.block("renaming: laptop"))
        with visited(ready) as session:
            hands.as_root(ready, commands.block("renaming: robot"))
            ready.wait_for_robot("013")
            assert session.ask(b"still here\n") == b"still here\n"
        login = typed("ssh alice@013.robot")
        assert ready.machine.run(f"{login} id -un", user=OPERATOR).stdout == "alice\n"
        hands.as_root(ready, commands.block("renaming: the old name"))
        hands.on_the_laptop(ready, commands.block("revoking: laptop"))
        revoke(ready)
        folders = f"{ETC} /etc/systemd/system /var/lib/shadow-tunnel"
        assert ready.machine.run(f"find {folders} -name '*011*'").stdout == ""
        assert ready.machine.run(f"{login} id -un", user=OPERATOR).stdout == "alice\n"
        ready.machine.run(f"systemctl disable --now shadow-client@013; rm {ETC}/013.*")
        ready.machine.run(f"install -m 644 {CA}/011.crt {ETC}/; install -m 600 {CA}/011.key {ETC}/")
        ready.machine.run(["systemctl", "enable", CLIENT])


@pytest.mark.api
def test_a_robot_is_replaced(ready: Fleet) -> None:
    """The device with the old certificate is refused; the one with the new one is robot 011."""
    with laptop(ready):
        ready.machine.run(f"cp {ETC}/011.* /srv/")
        with visited(ready) as session:
            hands.on_the_laptop(ready, commands.block("replacing: laptop"))
            revoke(ready)
            assert session.wait() == 255
        hands.bring(ready, "ca.crt", "011.crt", "011.key")
        hands.set_up_robot(ready, folder=BROUGHT)
        ready.machine.run(["systemctl", "restart", CLIENT])  # the same machine: the old daemon runs there
        connected_with(ready, "011", f"{CA}/011.crt")
        with visited(ready):
            pass
        hands.type_in(ready, "~", hands.text(commands.block("replacing: operators")), user=OPERATOR)
        assert "011.robot" not in ready.machine.run("cat ~/.ssh/known_hosts", user=OPERATOR).stdout
        ready.machine.run(f"cp /srv/011.* {ETC}/; rm /srv/011.*")


# Robots that are images.


def test_name_and_key_for_a_disk(ready: Fleet) -> None:
    """IMAGE.md: what the first boot finds. What it makes of that is another test's business."""
    run = ready.machine.run
    block = commands.block("mount /dev/sdX2 /mnt")
    lines = [one.text for one in block.commands if not one.text.startswith(("shadow-ca ", "umount "))]
    script = "\n".join(lines).replace("mount /dev/sdX2", "mount -t tmpfs none")
    hands.type_in(ready, "/srv", script)
    said = run("cd /mnt/etc/credstore && stat -c '%a %n' . * && cat shadow.robot").stdout
    assert said.splitlines() == ["700 .", "644 shadow.crt", "600 shadow.key", "644 shadow.robot", "011"]
    run(typed("rm -r /etc/credstore").replace("/etc", "/mnt/etc"))
    run(typed("umount /mnt"))


def test_an_encrypted_key_for_the_first_boot(ready: Fleet) -> None:
    store = "/etc/credstore.encrypted"
    ready.machine.run(f"rm -rf {store}")
    hands.type_in(ready, CA, hands.text(commands.block("systemd-creds encrypt --name=shadow.key")))
    decrypted = ready.machine.run(f"systemd-creds decrypt {store}/shadow.key -").stdout
    assert decrypted.encode() == ready.machine.read(f"{CA}/011.key")
    assert ready.machine.run(f"stat -c %a {store}; rm {store}/shadow.key").stdout == "700\n"


def test_a_robot_that_is_to_be_another(ready: Fleet) -> None:
    by(ready, "systemctl disable shadow-client@011", None)
    assert ready.machine.run(["systemctl", "is-enabled", CLIENT], check=False).stdout == "disabled\n"
    assert ready.machine.run(f"ls {ETC} /var/lib/shadow-tunnel | grep 011").stdout == "011.crt\n"
    hands.bring(ready, "ca.crt", "011.crt", "011.key")
    hands.set_up_robot(ready, folder=BROUGHT)
    ready.machine.run(["systemctl", "restart", CLIENT])
    ready.wait_for_robot("011")


# A signer.


@pytest.fixture
def signing(ready: Fleet) -> Iterator[Fleet]:
    """A CA where the signer's manual page has it; server and robot 011 are of that CA."""
    run = ready.machine.run
    hands.type_in(ready, "/", hands.text(commands.block("cd /var/lib/shadow-ca")))
    run(f"{AS_CA} server tunnel.example.com")
    bring_from(ready, SIGNING)
    run(["systemctl", "restart", SERVER, CLIENT])
    ready.wait_for_robot("011")
    yield ready
    run("systemctl disable --now shadow-ca-signer.socket shadow-client@signer")
    run("systemctl revert shadow-ca-signer.socket")
    run(f"rm -rf {ETC}/signer.* {ETC}/client@signer.env {ETC}/server.env")
    run(f"find {SIGNING} /var/lib/shadow-tunnel -mindepth 1 -delete")
    bring_from(ready, CA)
    run("systemctl restart shadow-server 'shadow-client@*'")
    for robot in ("011", "012"):
        ready.wait_for_robot(robot)


def bring_from(fleet: Fleet, folder: str) -> None:
    """Certificates and keys, but for the CA's key, where the units look for them."""
    fleet.machine.run(
        f"install -m 644 {folder}/*.crt {ETC}/; install -m 600 {folder}/*.key {ETC}/; rm {ETC}/ca.key"
    )


def renews(fleet: Fleet, setting: str) -> None:
    """Robot 011 gets a new certificate from the signer that the server asks by this setting."""
    assert any(setting in document.read_text() for document in commands.documents())
    fleet.machine.run(f"echo {setting} >{ETC}/server.env; systemctl restart shadow-server")
    life, age = (number * fleet.machine.slowness for number in (600, 420))  # past two thirds
    short = f"python3 short_lived.py {SIGNING} 011 {life} {age} {ETC}"
    cursor = fleet.machine.cursor()
    fleet.machine.run(["systemctl", "stop", CLIENT])
    fleet.machine.run(f"rm -rf /var/lib/shadow-tunnel/011; cd /srv/guest && {short}")
    fleet.machine.run(["systemctl", "start", CLIENT])
    fleet.wait_for_event(cursor, "robot 011 has a new certificate, [0-9a-f]{40}, valid until", "-u", CLIENT)
    said = by(fleet, "journalctl -o cat -t shadow-ca-signer", None)
    assert re.search("^robot 011: certificate [0-9a-f]+ issued, valid until", said, re.MULTILINE), said


def test_a_signer_here_and_on_another_machine(signing: Fleet) -> None:
    """The other one is the same here; what matters is the requests' way, through the tunnel."""
    renews(signing, "SHADOW_SIGNER=/run/shadow-ca-signer.sock")
    block = commands.block("systemctl edit shadow-ca-signer.socket")
    edit, enable, show, enable_client = (command.text for command in block.commands)
    at = block.written.index("SHADOW_")
    unit, settings = block.written[:at], block.written[at:]
    signing.machine.run("systemctl disable --now shadow-ca-signer.socket; rm -f /run/shadow-ca-signer.sock")
    hands.edit(signing, edit, unit)
    hands.type_in(signing, "/", enable)
    signing.machine.write(show.removeprefix("cat "), settings)
    signing.machine.run(f"{AS_CA} robot signer")
    bring_from(signing, SIGNING)
    hands.type_in(signing, "/", enable_client)
    signing.wait_for_robot("signer")
    renews(signing, "SHADOW_SIGNER=/run/shadow-tunnel/signer.sock")
