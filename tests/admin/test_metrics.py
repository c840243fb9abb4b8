"""Figures for Prometheus: each counts what it says, and nothing twice."""

import asyncio
import collections
import contextlib
import datetime as dt
import json
import logging
import re
import signal
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shadow import __version__, events
from shadow.admin.metrics import _VERSIONS_EVER, Metrics, _most_common
from shadow.pki.certificates import load_certificates, validity
from shadow.pki.expiry import Term
from shadow.pki.request import CODES
from shadow.relay.pool import TURN_BUCKETS
from shadow.server import signer
from shadow.server.directory import Alone
from shadow.server.newcomer import Failure
from shadow.server.overview import Companion, Tally
from shadow.server.session import Cause
from shadow.transport import ktls
from shadow.wire.frames import Unsigned
from tests.support import CHECKOUT, Authority, Daemon, Service, Tunnel, echo, now, serving, wait_for
from tests.support.peer import REFUSED, WELCOME, Peer, client_context

OURS, OTHERS = ("userspace", "kernel") if ktls.missing() else ("kernel", "userspace")
CONTRIB = CHECKOUT / "contrib"
Figures = dict[str, float]


class Scraper:
    """Prometheus, as far as we need it."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"

    def text(self) -> str:
        with urllib.request.urlopen(self._url, timeout=30) as answer:  # noqa: S310
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            text: str = answer.read().decode()
        return text

    def __call__(self) -> Figures:
        """All figures, by name and labels as they are written."""
        found: Figures = {}
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found

    def until(self, name: str, value: float) -> Figures:
        """The figures, when one of them has come to a value."""

        def reached() -> Figures | None:
            figures = self()
            return figures if figures[name] == value else None

        figures: Figures = wait_for(reached, f"{name} to be {value}")
        return figures


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def server(tunnel: Tunnel, listening: socket.socket) -> Daemon:
    daemon = tunnel.daemon(tunnel.server_arguments(), passed=("shadow-metrics", listening))
    daemon.wait_for_log("accepting robots")
    return daemon


@pytest.fixture
def scrape(server: Daemon, listening: socket.socket) -> Scraper:
    assert server.process.poll() is None
    return Scraper(listening.getsockname()[1])


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(echo) as made:
        yield made


def start(tunnel: Tunnel, service: Service, *more: str, robot: str = "011") -> Daemon:
    return tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1", *more, robot=robot)


def test_a_server_that_nobody_has_talked_to(tunnel: Tunnel, scrape: Scraper) -> None:
    figures = scrape()
    assert figures[f'shadow_build_info{{version="{__version__}"}}'] == 1
    for name in (
        "robots_connected",
        "streams_protected",
        "sessions_started_total",
        "handshakes_passed_total",
        "log_lines_lost_total",
    ):
        assert figures[f"shadow_{name}"] == 0
    for cause in Cause:
        assert figures[f'shadow_sessions_ended_total{{cause="{cause}"}}'] == 0
    for failure in Failure:
        assert figures[f'shadow_handshakes_failed_total{{cause="{failure}"}}'] == 0
    crt, _key = tunnel.authority.server()
    until = validity(load_certificates(crt, "server")[0])[1].timestamp()
    assert figures[f'shadow_expiry_timestamp_seconds{{what="certificate {crt}"}}'] == until


def test_sessions(tunnel: Tunnel, service: Service, scrape: Scraper) -> None:
    client = start(tunnel, service, "--standby=2")
    figures = scrape.until("shadow_handshakes_passed_total", 3)
    assert figures["shadow_robots_connected"] == 1
    assert figures["shadow_sessions_started_total"] == 1
    client.process.send_signal(signal.SIGSTOP)
    with Peer(tunnel.port, client_context(tunnel.authority, tunnel.authority.robot())) as peer:
        assert peer.hello()[0] == WELCOME
        figures = scrape()
        assert figures['shadow_sessions_ended_total{cause="superseded"}'] == 1
        assert figures["shadow_robots_connected"] == 1
    figures = scrape.until("shadow_robots_connected", 0)
    ended = {name: value for name, value in figures.items() if "sessions_ended_total" in name and value}
    assert sum(ended.values()) == 2
    assert {
        'shadow_sessions_ended_total{cause="lost"}',
        'shadow_sessions_ended_total{cause="hung-up"}',
    } & set(ended)
    client.process.send_signal(signal.SIGCONT)


def test_what_robots_run(tunnel: Tunnel, scrape: Scraper) -> None:
    """However many words robots find for it, and whatever is in them."""
    said = ["shadow-client 1", "shadow-client 1", "", *(f'"{number}"\n' + "x" * 99 for number in range(20))]
    with contextlib.ExitStack() as stack:
        for number, software in enumerate(said):
            name = f"r{number}"
            context = client_context(tunnel.authority, tunnel.authority.robot(name))
            peer = stack.enter_context(Peer(tunnel.port, context))
            assert peer.hello(name, software=software)[0] == WELCOME
        found = {name: value for name, value in scrape().items() if "by_software" in name}
        assert found.pop('shadow_robots_by_software{software="shadow-client 1"}') == 2
        assert found.pop('shadow_robots_by_software{software="unknown"}') == 1
        assert found.pop('shadow_robots_by_software{software="other"}') == 20 - 14
        assert len(found) == 14
        assert max(map(len, found)) == len('shadow_robots_by_software{software=""}') + 64
    figures = scrape.until("shadow_robots_connected", 0)
    assert not any("by_software" in name for name in figures)


def test_a_robot_with_a_new_word_each_time_makes_no_endless_series() -> None:
    named: set[str] = set()
    shown = [
        _most_common(collections.Counter({"old": 2, f"word {number}": 1}), named) for number in range(999)
    ]
    assert shown[0] == {"old": 2, "word 0": 1}
    assert shown[-1] == {"old": 2, "other": 1}
    assert len({name for figures in shown for name in figures}) <= _VERSIONS_EVER + 1


def test_who_does_not_pass(tunnel: Tunnel, scrape: Scraper) -> None:
    with socket.create_connection(("127.0.0.1", tunnel.port)) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        scrape.until('shadow_handshakes_failed_total{cause="tls"}', 1)
    for _ in range(3):
        socket.create_connection(("127.0.0.1", tunnel.port)).close()
    scrape.until('shadow_handshakes_failed_total{cause="silent"}', 3)
    authority = tunnel.authority
    with Peer(tunnel.port, client_context(authority, authority.robot())) as peer:
        peer.sock.sendall(b"\xff" * 100)
        scrape.until('shadow_handshakes_failed_total{cause="protocol"}', 1)
    with Peer(tunnel.port, client_context(authority, authority.robot())) as peer:
        peer.sock.close()
        scrape.until('shadow_handshakes_failed_total{cause="lost"}', 1)
    elsewhere = client_context(Authority(tunnel.folder / "other", "Other CA"), authority.robot())
    with pytest.raises(ssl.SSLError):
        Peer(tunnel.port, elsewhere)
    scrape.until('shadow_handshakes_failed_total{cause="our-certificate"}', 1)
    with Peer(tunnel.port, client_context(authority, authority.robot())) as peer:
        assert peer.hello("012")[0] == REFUSED
        assert scrape()['shadow_robots_refused_total{code="name-mismatch"}'] == 1


def test_streams_and_bytes(tunnel: Tunnel, service: Service, scrape: Scraper) -> None:
    start(tunnel, service)
    scrape.until("shadow_handshakes_passed_total", 3)
    with tunnel.visit() as visitor:
        visitor.sendall(b"x" * 1000)
        assert len(visitor.recv(1000, socket.MSG_WAITALL)) == 1000
        figures = scrape()
        assert figures[f'shadow_streams{{tls="{OURS}"}}'] == 1
        assert figures[f'shadow_streams{{tls="{OTHERS}"}}'] == 0
        assert figures['shadow_bytes_total{direction="to_robot"}'] == 1000
        assert figures['shadow_bytes_total{direction="from_robot"}'] == 1000
    figures = scrape.until('shadow_streams_ended_total{how="in order"}', 1)
    assert figures['shadow_bytes_total{direction="to_robot"}'] == 1000
    assert figures[f'shadow_streams{{tls="{OURS}"}}'] == 0
    visitor = tunnel.visit()
    visitor.sendall(b"x" * 10)
    visitor.recv(1)
    visitor.close()  # bytes unread: that is a reset
    figures = scrape.until('shadow_streams_ended_total{how="cut off"}', 1)
    assert figures['shadow_bytes_total{direction="to_robot"}'] == 1010


def test_how_long_visitors_wait(tunnel: Tunnel, service: Service, scrape: Scraper) -> None:
    start(tunnel, service, "--standby=1")
    scrape.until("shadow_handshakes_passed_total", 2)
    with tunnel.visit() as visitor:
        visitor.sendall(b"x")
        assert visitor.recv(1) == b"x"
    figures = scrape()
    assert figures['shadow_visitor_wait_seconds_count{standby="yes"}'] == 1
    assert figures['shadow_visitor_wait_seconds_count{standby="no"}'] == 0
    assert 0 < figures['shadow_visitor_wait_seconds_sum{standby="yes"}'] < 10
    assert figures['shadow_visitor_wait_seconds_bucket{le="+Inf",standby="yes"}'] == 1


def test_a_visitor_without_a_standby_and_one_without_a_service(
    tunnel: Tunnel, service: Service, scrape: Scraper
) -> None:
    start(tunnel, service, "--standby=0", "--service=dead=127.0.0.1:9")
    with tunnel.visit() as visitor:
        visitor.sendall(b"x")
        assert visitor.recv(1) == b"x"
        assert scrape()['shadow_visitor_wait_seconds_count{standby="no"}'] == 1
    with tunnel.visit("dead@011") as visitor:
        assert visitor.recv(1) == b""
    assert scrape()['shadow_visitors_turned_away_total{by="robot"}'] == 1


def test_the_relays_rounds(tunnel: Tunnel, service: Service, scrape: Scraper) -> None:
    start(tunnel, service)
    with tunnel.visit() as visitor:
        for _ in range(20):
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"
    figures = scrape()
    count = figures["shadow_relay_turn_seconds_count"]
    assert count >= 20
    assert figures['shadow_relay_turn_seconds_bucket{le="+Inf"}'] == count
    buckets = [figures[f'shadow_relay_turn_seconds_bucket{{le="{bound}"}}'] for bound in TURN_BUCKETS]
    assert buckets == sorted(buckets)
    assert 0 < figures["shadow_relay_turn_seconds_sum"] < 60


def test_robots_are_named_only_when_their_certificates_end_soon(
    tunnel: Tunnel, service: Service, scrape: Scraper
) -> None:
    tunnel.authority.robot("long-lived", days=(-100, 31))
    start(tunnel, service, robot="long-lived")
    with tunnel.visit("long-lived") as visitor:
        visitor.sendall(b"x")
        visitor.recv(1)
        assert not re.search(r'"[^"]*\blong-lived\b', scrape.text())
    crt, _key = tunnel.authority.robot("short-lived", days=(-100, 29))
    start(tunnel, service, robot="short-lived")
    ends = {name: value for name, value in scrape().items() if name.startswith("shadow_robot_expiry")}
    until = validity(load_certificates(crt, "robot")[0])[1].timestamp()
    assert ends == {'shadow_robot_expiry_timestamp_seconds{robot="short-lived"}': until}
    assert scrape()["shadow_robots_expired"] == 0


class Robots(dict[str, Any]):
    """Those of a server that may be one of a fleet."""

    def __init__(self, robots: dict[str, Any]) -> None:
        super().__init__(robots)
        self.elsewhere: Any = Alone()


class Server:
    """A server, as far as the figures ask for it, with many robots whose certificates end soon."""

    handshakes = SimpleNamespace(passed=0, dropped=0, running=0, waiting=0)
    resumed: ClassVar[dict[str, int]] = {}
    counts: ClassVar[dict[str, int]] = {"robots": 0, "protected": 0, "revoked": 0}
    terms: ClassVar[list[Term]] = []
    durable = SimpleNamespace(
        relay=SimpleNamespace(measure_turns=lambda: None, turns=([0] * (len(TURN_BUCKETS) + 1), 0.0))
    )

    def __init__(self, number: int) -> None:
        self.robots = Robots({f"{one:05}": self._robot(f"{one:05}", one) for one in range(number)})

    @staticmethod
    def _robot(name: str, seconds: int) -> SimpleNamespace:
        moved = SimpleNamespace(moved=10)
        until = now() + dt.timedelta(days=1, seconds=seconds)
        stream = SimpleNamespace(in_kernel=False, up=moved, down=moved)
        return SimpleNamespace(
            name=name, session=SimpleNamespace(until=until, warned_from=now(), software="x"), streams=[stream]
        )

    def figures(self, page: bytes, name: str) -> list[bytes]:
        return re.findall(rf"^{name}.*$".encode(), page, re.MULTILINE)


@pytest.fixture
def log() -> Iterator[None]:
    """The log, without the handler that each test adds."""
    handlers = events.LOGGER.handlers[:]
    yield
    events.LOGGER.handlers[:] = handlers


@pytest.mark.usefixtures("log")
def test_who_was_turned_away_at_the_gate_counts_as_any_visitor() -> None:
    async def scenario() -> bytes:
        server = Server(1)
        metrics = Metrics(cast("Any", server))
        events.log(events.GateFailed(visitor_uid=1000, visitor_pid=7), logging.WARNING, "turned away")
        _kind, page = await metrics.page("")
        return b"\n".join(server.figures(page, "shadow_visitors_turned_away_total"))

    assert b'{by="server"} 1.0' in asyncio.run(scenario())


@pytest.mark.usefixtures("log")
def test_a_large_fleet_is_counted_in_slices_and_few_of_it_are_named() -> None:
    fleet = Server(2000)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def scenario() -> bytes:
        metrics = Metrics(cast("Any", fleet))
        busy = asyncio.ensure_future(others())
        _kind, page = await metrics.page("")
        busy.cancel()
        return page

    page = asyncio.run(scenario())
    assert turns >= 8  # 4,000 robots and streams
    assert fleet.figures(page, "shadow_streams{") == [
        b'shadow_streams{tls="kernel"} 0.0', b'shadow_streams{tls="userspace"} 2000.0',
    ]  # fmt: skip
    named = fleet.figures(page, "shadow_robot_expiry_timestamp_seconds{")
    assert len(named) == 100
    assert b"00000" in named[0]
    assert b"00099" in named[-1]


@pytest.mark.usefixtures("log")
def test_bytes_never_go_back_though_a_stream_ends_while_it_is_counted() -> None:
    fleet = Server(2)

    async def scenario() -> tuple[list[bytes], list[bytes], list[bytes]]:
        metrics = Metrics(cast("Any", fleet))
        before = fleet.figures((await metrics.page(""))[1], "shadow_bytes_total")
        fleet.robots["00001"].streams.clear()  # its end has not been logged yet
        meanwhile = fleet.figures((await metrics.page(""))[1], "shadow_bytes_total")
        metrics._moved["to_robot"] += 15
        return before, meanwhile, fleet.figures((await metrics.page(""))[1], "shadow_bytes_total")

    before, meanwhile, after = asyncio.run(scenario())
    assert before == meanwhile == [
        b'shadow_bytes_total{direction="to_robot"} 20.0', b'shadow_bytes_total{direction="from_robot"} 20.0',
    ]  # fmt: skip
    assert after[0] == b'shadow_bytes_total{direction="to_robot"} 25.0'


@pytest.mark.usefixtures("log")
def test_no_signer_chooses_what_there_are_figures_of() -> None:
    """Each label is a series for ever: a signer in the wrong hands must not fill somebody's disk."""
    fleet = Server(0)

    async def scenario() -> list[bytes]:
        metrics = Metrics(cast("Any", fleet))
        for number in range(1000):
            signer._log("011", Unsigned(f"word-{number}", ""))
        for code in CODES:
            signer._log("011", Unsigned(code, ""))
        return fleet.figures((await metrics.page(""))[1], "shadow_renewals_total{")

    found = asyncio.run(scenario())
    assert b'shadow_renewals_total{code="other"} 1000.0' in found
    assert len(found) == len(CODES) + 2  # and ok


def fleet_page(age: float = 7.5) -> str:
    """Of a server that knows others."""

    async def scenario() -> bytes:
        server = Server(0)
        server.robots.elsewhere = SimpleNamespace(overview=SimpleNamespace(
            age=age,
            servers=[
                Companion("s1", here=True, live=True, draining=False, software="", peer="", robots=2),
                Companion("s2", here=False, live=True, draining=True, software="", peer="", robots=3),
                Companion("s3", here=False, live=False, draining=False, software="", peer="", robots=9),
            ],
            figures=Tally(
                robots=5, unclaimed=1, claims={"written": 11, "overtaken": 0},
                visits={("out", "connected"): 4, ("in", "taken"): 2},
                moves={("draining", "gone"): 6},
            ),
        ))  # fmt: skip
        return (await Metrics(cast("Any", server)).page(""))[1]

    return asyncio.run(scenario()).decode()


@pytest.mark.usefixtures("log")
def test_what_a_server_of_a_fleet_sees_of_it() -> None:
    page = fleet_page()
    assert [line for line in page.splitlines() if line.startswith("shadow_fleet")] == [
        'shadow_fleet_servers{state="live"} 1.0',
        'shadow_fleet_servers{state="draining"} 1.0',
        "shadow_fleet_robots 5.0",
        "shadow_fleet_engine_up 0.0",
        "shadow_fleet_view_age_seconds 7.5",
        "shadow_fleet_unclaimed_sessions 1.0",
        'shadow_fleet_claims_total{result="written"} 11.0',
        'shadow_fleet_claims_total{result="overtaken"} 0.0',
        'shadow_fleet_visits_total{path="out",result="connected"} 4.0',
        'shadow_fleet_visits_total{path="in",result="taken"} 2.0',
        'shadow_fleet_moves_total{cause="draining",result="gone"} 6.0',
    ]
    assert "\nshadow_fleet_engine_up 1.0\n" in fleet_page(0.0)


def test_a_server_without_a_fleet_has_no_figures_of_one(scrape: Scraper) -> None:
    assert "shadow_fleet" not in scrape.text()


def used_in(path: Path) -> set[str]:
    return set(re.findall(r"\bshadow_\w+", path.read_text()))


@pytest.mark.parametrize("name", ["prometheus/shadow-alerts.yaml", "grafana/shadow-dashboard.json"])
@pytest.mark.usefixtures("log")
def test_rules_and_dashboard_ask_for_figures_that_there_are(scrape: Scraper, name: str) -> None:
    page = scrape.text() + fleet_page()
    there = set(re.findall(r"^(shadow_\w+)", page, re.MULTILINE))
    there |= set(re.findall(r"^# TYPE (shadow_\w+)", page, re.MULTILINE))
    assert used_in(CONTRIB / name)
    assert used_in(CONTRIB / name) - there - {"shadow_robots_refused_total"} == set()  # none so far


def test_the_dashboard_is_json_with_panels() -> None:
    panels = json.loads((CONTRIB / "grafana" / "shadow-dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == 15
