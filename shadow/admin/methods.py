"""What the API can do: the methods of ``io.shadowtunnel.Server``, by the names they have there.

The library ``varlink`` calls them in the event loop's thread. A method that is a generator replies several
times; ``_continues`` says that more is to come.
"""

import asyncio
import datetime as dt
import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import varlink

from .. import __version__
from ..daemon import life
from ..errors import LocalError, ShadowError
from ..names import API, INTERFACE_FILE
from ..server.overview import Overview
from ..server.robot import Robot
from ..server.server import Server
from ..server.session import Cause
from ..wire.frames import Refusal
from .facts import Facts, find_stream, remote_facts, robot_facts, server_facts, streams_of
from .varlink import Caller

_BATCH = 100  # in one reply
_ONE_REPLY_MAX = 1000  # in the only reply to a caller that did not ask for more


class Methods:
    """The interface's methods."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def _overview(self) -> Overview:
        return self._server.robots.elsewhere.overview

    def GetStatus(self) -> Facts:
        """The state of the server."""
        now = dt.datetime.now(dt.UTC)
        terms = [
            {"what": term.what, "until": term.until.isoformat(), "days": (term.until - now).days}
            for term in self._server.terms
        ]
        return {
            "version": __version__, "status": self._server.status, **self._server.counts, "terms": terms,
            **self._fleet(),
        }  # fmt: skip

    def _fleet(self) -> Facts:
        overview = self._overview
        return {"server": overview.server, **_age(overview)} if overview.server else {}

    def List(self, fleet: bool | None, *, _more: bool = False) -> Iterator[Facts]:  # noqa: FBT001 - the API's
        """All robots of this server; with ``fleet`` of all servers, except those that are gone."""
        now, age = _now(), _age(self._overview) if fleet else {}
        names = self._names(fleet)
        for reply in _in_batches("robots", names, lambda name: self._facts(name, now, fleet), more=_more):
            yield {**reply, **age}

    def _names(self, fleet: bool | None) -> Iterator[str]:  # noqa: FBT001 - the API's
        """The names of robots here, in their order, then with ``fleet`` of those elsewhere.

        Of 100,000 only those are sorted that are taken: to sort them at once would make everything else wait.
        """
        # Robots that are not here may have sockets here.
        rest = [robot.name for robot in self._server.robots.values() if robot.is_here]
        here: set[str] = set()
        heapq.heapify(rest)
        while rest:
            here.add(name := heapq.heappop(rest))
            yield name
        if fleet:
            yield from itertools.filterfalse(here.__contains__, self._overview.names())

    def _facts(self, name: str, now: float, fleet: bool | None) -> Facts | None:  # noqa: FBT001 - the API's
        """A robot here, or with ``fleet`` anywhere; None if it is not there any more."""
        overview, robot = self._overview, self._server.robots.get(name)
        if fleet and (robot is None or robot.session is None):
            remote = overview.find(name)
            if remote is not None and remote.live:
                return remote_facts(name, remote, robot, time.time())
        return robot_facts(robot, now, overview.server) if robot is not None and robot.is_here else None

    def Describe(self, name: str, fleet: bool | None) -> Facts:  # noqa: FBT001 - the API's
        """One robot here, or with ``fleet`` anywhere, if only because it was there last."""
        overview, robot, now = self._overview, self._server.robots.get(name), _now()
        facts = self._facts(name, now, fleet)
        if facts is None and fleet and (remote := overview.find(name)) is not None:
            facts = remote_facts(name, remote, robot, time.time())
        if facts is None:
            raise self._no_such_robot(name)
        streams = [] if robot is None else streams_of(robot, now)
        age = {} if facts.get("server") == overview.server else _age(overview)  # here, we know better
        return {"robot": facts, "streams": streams, **age}

    def Servers(self) -> Facts:
        """All servers of the fleet."""
        overview = self._overview
        return {"servers": list(map(server_facts, overview.servers)), **_age(overview)}

    def ListStreams(self, robot: str | None, *, _more: bool = False) -> Iterator[Facts]:
        """The streams of one robot, or of all."""
        names = list(self._server.robots) if robot is None else [robot]
        if robot is not None and robot not in self._server.robots and not self._overview.find(robot):
            raise self._no_such_robot(robot)
        now, robots = _now(), self._server.robots
        there = (found for name in names if (found := robots.get(name)) is not None)  # when it is their turn
        streams = itertools.chain.from_iterable(streams_of(one, now) for one in there)
        return _in_batches("streams", streams, lambda facts: facts, more=_more)

    def Watch(self, *, _request: Caller, _more: bool = False) -> Iterator[Facts]:
        """Everything that is logged; ``Caller`` takes a reply when there is one."""
        if not _more:
            raise _error("org.varlink.service.ExpectedMore")
        watcher = _request.watch()
        while True:
            yield {**watcher.take(), "_continues": True}

    def Disconnect(self, robot: str | None, stream: str | None, *, _request: Caller) -> Facts:
        """End a robot's session and streams, or one stream."""
        _check_may_steer(_request)
        why = f"uid {_request.uid} has ended it"
        if robot is not None and stream is None:
            found = self._server.robots.get(robot)
            if found is None or not self._is_ours(found):
                raise self._no_such_robot(robot)
            ended = found.session is not None
            found.end_session(
                why, Cause.OPERATOR, Refusal("disconnected", "an operator has ended the session")
            )
            return {"ended": ended + found.streams.cut(lambda _pump, _visitor: True, why)}
        if stream is None or robot is not None:
            raise varlink.InvalidParameter("robot")
        owner = find_stream(self._server.robots, stream)
        if owner is None:
            raise _error("NoSuchStream", id=stream)
        return {"ended": owner.streams.cut(lambda _pump, visitor: visitor.stream == stream, why)}

    def _is_ours(self, robot: Robot) -> bool:
        """Whether it is here, or at least no other server has it: then its streams here can be ended."""
        if robot.session is not None:
            return True
        remote = self._overview.find(robot.name)
        return robot.is_here and (remote is None or not remote.live)

    def Reload(self, *, _request: Caller) -> Facts:
        """Read files again."""
        _check_may_steer(_request)
        try:
            life.reload(self._server.reload)
        except ShadowError as error:
            raise _error("ReloadFailed", reason=str(error)) from error
        return {}

    def Drain(self, draining: bool, timeout: float | None, *, _request: Caller) -> Facts:  # noqa: FBT001
        """Have the robots go to other servers, or take robots again."""
        _check_may_steer(_request)
        if timeout is not None and not 0 < timeout < math.inf:
            raise varlink.InvalidParameter("timeout")
        drainer = self._server.robots.drainer
        try:
            if draining:
                drainer.start(timeout)
            else:
                drainer.stop()
        except LocalError as error:
            raise _error("DrainFailed", reason=str(error)) from error
        return {"robots": self._server.robots.connected}

    def _no_such_robot(self, name: str) -> Exception:
        # Let the caller look for similar names: among many thousands that takes a second.
        remote = self._overview.find(name)
        where = {} if remote is None or not remote.live else {"server": remote.server}
        return _error("NoSuchRobot", name=name, **where)


def make_service(handler: object) -> Any:
    """What reads and answers calls, one at a time; ``handler`` has the interface's methods."""
    service = varlink.Service("Shadow", "shadow-server", __version__, "", str(INTERFACE_FILE.parent))
    service.interface(API)(lambda: handler)
    interface = service.interfaces[API]
    check = interface.filter_params

    def check_call(part: str, kind: Any, namespaced: bool, given: Any, named: Any) -> Any:  # noqa: FBT001
        # What we reply is as it should be, and the library takes longer to look at it than we to make it.
        return given if part == "server.reply" else check(part, kind, namespaced, given, named)

    interface.filter_params = check_call
    return service


def _now() -> float:
    return asyncio.get_running_loop().time()


def _in_batches(
    name: str, found: Iterable[Any], describe: Callable[[Any], Facts | None], *, more: bool
) -> Iterator[Facts]:
    """In batches for callers that ask for more; all at once for others, if they are not too many.

    ``found`` is read and described only when the reply is taken; what is not there any more is None.
    """
    rest = iter(found)
    if not more:
        all_of_it = list(itertools.islice(rest, _ONE_REPLY_MAX + 1))
        if len(all_of_it) > _ONE_REPLY_MAX:
            raise _error("org.varlink.service.ExpectedMore")
        yield {name: _present(map(describe, all_of_it))}
        return
    batch, more = list(itertools.islice(rest, _BATCH)), True
    while more:
        following = list(itertools.islice(rest, _BATCH))
        more = bool(following)
        yield {name: _present(map(describe, batch)), "_continues": more}
        batch = following


def _present(facts: Iterable[Facts | None]) -> list[Facts]:
    return [one for one in facts if one is not None]


def _age(overview: Overview) -> Facts:
    return {} if overview.age is None else {"age": round(overview.age, 3)}


def _check_may_steer(caller: Caller) -> None:
    if not caller.may_steer:
        raise _error("org.varlink.service.PermissionDenied")


def _error(kind: str, **parameters: Any) -> Exception:
    full = kind if "." in kind else f"{API}.{kind}"
    error: Exception = varlink.VarlinkError({"error": full, "parameters": parameters})
    return error
