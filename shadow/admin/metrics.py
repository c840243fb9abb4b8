"""Metrics for Prometheus, with the library ``prometheus_client``.

We count what happens where it is logged: each kind of event that is worth a counter has one, so the log and
the metrics cannot tell different stories. We look at the present state when somebody scrapes: one robot after
the other, with the event loop's other work in between.
"""

import asyncio
import collections
import datetime as dt
import heapq
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from .. import __version__, events
from ..relay.pool import TURN_BUCKETS
from ..server.newcomer import Failure
from ..server.server import Server
from ..server.session import Cause
from ..systemd import journal

_WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds

_VERSIONS_MAX = 16  # of robots' software with a series of their own: robots may claim anything
_VERSIONS_EVER = 128  # the same, since we started: Prometheus keeps each series, even after it is gone
_ROBOTS_SHOWN = 100  # of those whose certificates expire soon
_SLICE = 500  # robots and streams to look at without a pause; takes a millisecond or so

_IN_ORDER, _CUT_OFF = "in order", "cut off"
_BY_SERVER, _BY_ROBOT = "server", "robot"
_RENEWED = "ok"


@dataclass
class _Sums:
    """Totals over all robots.

    Attributes:
        moved: bytes, by direction.
        running: streams, by who encrypts.
        expired: number of robots with a session whose certificate has expired.
        ends: when certificates expire, in seconds since 1970, by the robots' names.
        software: number of robots, by what they run.
    """

    moved: dict[str, int]
    running: dict[str, int] = field(default_factory=lambda: {"kernel": 0, "userspace": 0})
    ends: dict[str, float] = field(default_factory=dict)
    expired: int = 0
    software: collections.Counter[str] = field(default_factory=collections.Counter)


class Metrics(logging.Handler):
    """Everything that is measured; a handler of the log.

    Attributes:
        registry: prometheus_client's.
    """

    def __init__(self, server: Server) -> None:
        """Count from now on."""
        super().__init__(logging.DEBUG)
        self._server = server
        self._relay = server.durable.relay
        self._moved = {"to_robot": 0, "from_robot": 0}  # by streams that have ended
        self._sums = _Sums(dict(self._moved))
        self._named: set[str] = set()  # software
        self._summing = asyncio.Lock()
        self.registry = CollectorRegistry()
        self._make_counters()
        self.registry.register(self)
        self._relay.measure_turns()
        events.LOGGER.addHandler(self)

    async def page(self, accept: str) -> tuple[str, bytes]:
        """See ``http.Page``."""
        encode, kind = exposition.choose_encoder(accept)
        async with self._summing:
            self._sums = await self._sum_up()
            return kind, encode(self.registry)

    def emit(self, record: logging.LogRecord) -> None:
        """Count one event; may be called from any thread."""
        event = events.event_of(record)
        if event is not None:
            self._count_sessions(event)
            self._count_visits(event)

    # What happens

    def _make_counters(self) -> None:
        self._begun = self._counter("shadow_sessions_started", "Sessions of robots that have begun.")
        self._ended = self._counter(
            "shadow_sessions_ended", "Sessions of robots that have ended, by cause.", "cause"
        )
        self._failed = self._counter(
            "shadow_handshakes_failed", "Connections that did not pass, by cause.", "cause"
        )
        self._refused = self._counter("shadow_robots_refused", "Robots that were refused, by code.", "code")
        self._streams_ended = self._counter("shadow_streams_ended", "Streams that have ended, by how.", "how")
        self._turned_away = self._counter(
            "shadow_visitors_turned_away", "Visitors who were not connected, by whom.", "by"
        )
        self._renewals = self._counter(
            "shadow_renewals", "Robots' requests for their next certificate, by code of the answer.", "code"
        )
        text = "Seconds until a visitor was connected, by whether a channel stood by."
        self._wait = Histogram(
            "shadow_visitor_wait_seconds", text, ["standby"], registry=self.registry, buckets=_WAITS
        )
        # What has never happened is 0, not unknown.
        for counter, labels in (
            (self._ended, Cause),
            (self._failed, Failure),
            (self._streams_ended, (_IN_ORDER, _CUT_OFF)),
            (self._turned_away, (_BY_SERVER, _BY_ROBOT)),
            (self._renewals, (_RENEWED,)),
            (self._wait, ("yes", "no")),
        ):
            for label in labels:
                counter.labels(label)

    def _count_sessions(self, event: events.Event) -> None:
        match event:
            case events.RobotConnected():
                self._begun.inc()
            case events.RobotDisconnected():
                self._ended.labels(event.cause).inc()
            case events.RobotTakenOver():
                self._ended.labels(Cause.SUPERSEDED).inc()
            case events.RobotRefused():
                self._refused.labels(event.code).inc()
            case events.Renewed():
                self._renewals.labels(_RENEWED).inc()
            case events.RenewalFailed():
                self._renewals.labels(event.code).inc()
            case events.HandshakeFailed():
                self._failed.labels(event.cause).inc()
            case _:
                pass  # not counted, or elsewhere

    def _count_visits(self, event: events.Event) -> None:
        match event:
            case events.StreamStarted(standby=str(standby), wait=float(wait)):
                self._wait.labels(standby).observe(wait)
            case events.StreamEnded():
                self._streams_ended.labels(_IN_ORDER).inc()
                self._count_bytes(event.bytes_to_robot, event.bytes_from_robot)
            case events.StreamAborted():
                self._streams_ended.labels(_CUT_OFF).inc()
                self._count_bytes(event.bytes_to_robot, event.bytes_from_robot)
            case events.VisitorFailed() | events.GateFailed():
                self._turned_away.labels(_BY_SERVER).inc()
            case events.ServiceFailed():
                self._turned_away.labels(_BY_ROBOT).inc()
            case _:
                pass

    def _count_bytes(self, to_robot: int, from_robot: int) -> None:
        self._moved["to_robot"] += to_robot
        self._moved["from_robot"] += from_robot

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    # The present state

    def collect(self) -> Iterator[Any]:
        """What we look at for each scrape; the registry calls it."""
        yield self._gauge("shadow_build_info", "1; the version is the label.", {__version__: 1}, "version")
        counts = self._server.counts
        yield self._gauge("shadow_robots_connected", "Robots that have a session.", {"": counts["robots"]})
        text = f"Robots that have a session, by what they run: the {_VERSIONS_MAX} most frequent."
        yield self._gauge(
            "shadow_robots_by_software", text, _most_common(self._sums.software, self._named), "software"
        )
        yield self._gauge("shadow_streams_protected", "Streams that outlive us.", {"": counts["protected"]})
        yield self._gauge("shadow_certificates_revoked", "On the lists.", {"": counts["revoked"]})
        handshakes = self._server.handshakes
        text = "Connections that have said who they are."
        yield CounterMetricFamily("shadow_handshakes_passed", text, handshakes.passed)
        text = "Lines of the log that nobody has taken."
        yield CounterMetricFamily("shadow_log_lines_lost", text, journal.lost())
        text = "Connections that were sent away, for too many waited."
        yield CounterMetricFamily("shadow_connections_dropped", text, handshakes.dropped)
        for what, count in self._server.resumed.items():
            text = f"{what.capitalize()} of a daemon before this one that went on."
            yield CounterMetricFamily(f"shadow_{what}_resumed", text, count)
        stages = {"running": handshakes.running, "waiting": handshakes.waiting}
        yield self._gauge(
            "shadow_handshakes", "Connections that have not said yet who they are.", stages, "stage"
        )
        yield from self._streams()
        yield from self._fleet()
        ends = {term.what: term.until.timestamp() for term in self._server.terms}
        text = "When what we use expires, in seconds since 1970."
        yield self._gauge("shadow_expiry_timestamp_seconds", text, ends, "what")
        text = (
            "When a connected robot's certificate expires, if it is time to warn of that; "
            f"of the {_ROBOTS_SHOWN} that do first."
        )
        yield self._gauge("shadow_robot_expiry_timestamp_seconds", text, self._sums.ends, "robot")
        text = "Robots that have a session and no further visitors, for their certificate has expired."
        yield self._gauge("shadow_robots_expired", text, {"": self._sums.expired})
        counts_by_bucket, seconds = self._relay.turns
        turns = HistogramMetricFamily("shadow_relay_turn_seconds", "Rounds of the relay's threads.")
        turns.add_metric([], _cumulated(counts_by_bucket), seconds)
        yield turns

    async def _sum_up(self) -> "_Sums":
        """Look at every robot and stream."""
        sums = _Sums(dict(self._moved))
        now = dt.datetime.now(dt.UTC)
        looked_at = 0
        for robot in list(self._server.robots.values()):
            if robot.session is not None:
                sums.software[robot.session.software or "unknown"] += 1
                sums.expired += robot.session.until <= now
                if robot.session.warned_from <= now:
                    sums.ends[robot.name] = robot.session.until.timestamp()
            for pump in robot.streams:
                sums.running["kernel" if pump.in_kernel else "userspace"] += 1
                sums.moved["to_robot"] += pump.up.moved
                sums.moved["from_robot"] += pump.down.moved
            looked_at += 1 + len(robot.streams)
            if looked_at >= _SLICE:
                looked_at = 0
                await asyncio.sleep(0)
        soonest = heapq.nsmallest(_ROBOTS_SHOWN, sums.ends.items(), key=lambda end: end[1])
        sums.ends = dict(soonest)
        for direction, before in self._sums.moved.items():
            # A stream that ended meanwhile is counted next time; until then the counter stands still.
            sums.moved[direction] = max(sums.moved[direction], before)
        return sums

    def _streams(self) -> Iterator[Any]:
        yield self._gauge("shadow_streams", "Streams that run, by who encrypts.", self._sums.running, "tls")
        family = CounterMetricFamily("shadow_bytes", "Bytes moved, by direction.", labels=["direction"])
        for direction, count in self._sums.moved.items():
            family.add_metric([direction], count)
        yield family

    def _fleet(self) -> Iterator[Any]:
        """What a server of a fleet sees of it; nothing of one that is alone."""
        overview = self._server.robots.elsewhere.overview
        age, figures = overview.age, overview.figures
        if figures is None or age is None:
            return
        live = [one for one in overview.servers if one.live]
        draining = sum(one.draining for one in live)
        states = {"live": len(live) - draining, "draining": draining}
        yield self._gauge("shadow_fleet_servers", "Servers of the fleet that are alive.", states, "state")
        text = "Robots of all servers that are alive."
        yield self._gauge("shadow_fleet_robots", text, {"": figures.robots})
        text = "1 while the fleet's engine answers, and we follow it."
        yield self._gauge("shadow_fleet_engine_up", text, {"": age == 0})
        text = "For how long we have learnt nothing of other servers; 0 while we follow the engine."
        yield self._gauge("shadow_fleet_view_age_seconds", text, {"": age})
        text = "Sessions of robots here of which the other servers do not know."
        yield self._gauge("shadow_fleet_unclaimed_sessions", text, {"": figures.unclaimed})
        text = "What was written to the engine about robots, by what came of it."
        claims = {(result,): count for result, count in figures.claims.items()}
        yield _counts("shadow_fleet_claims", text, claims, "result")
        text = "Visitors passed on to other servers (out) or taken from there (in), by what came of it."
        yield _counts("shadow_fleet_visits", text, figures.visits, "path", "result")
        text = "Robots that were told to go to other servers, by why, and by what came of it."
        yield _counts("shadow_fleet_moves", text, figures.moves, "cause", "result")

    @staticmethod
    def _gauge(name: str, text: str, values: Mapping[str, float], label: str = "") -> Any:
        """A gauge, or one for each value of a label."""
        family = GaugeMetricFamily(name, text, labels=[label] if label else [])
        for which, value in values.items():
            family.add_metric([which] if label else [], value)
        return family


def _counts(name: str, text: str, values: Mapping[Any, int], *labels: str) -> Any:
    """A counter for each combination of labels, counted elsewhere."""
    family = CounterMetricFamily(name, text, labels=labels)
    for which, value in values.items():
        family.add_metric(which, value)
    return family


def _most_common(software: collections.Counter[str], named: set[str]) -> dict[str, float]:
    """How many robots run what; ``named`` are all that have ever had a series of their own."""
    found: dict[str, float] = {}
    for word, count in software.most_common(_VERSIONS_MAX):
        if word in named or len(named) < _VERSIONS_EVER:
            named.add(word)
            found[word] = count
    rest = software.total() - sum(found.values())
    return {**found, "other": found.get("other", 0) + rest} if rest else found


def _cumulated(counts: Sequence[int]) -> list[tuple[str, int]]:
    """Prometheus expects each bucket to include the smaller ones."""
    bounds = [*map(str, TURN_BUCKETS), "+Inf"]
    total, found = 0, []
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        found.append((bound, total))
    return found
