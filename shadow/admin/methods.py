"""What the API can do: the methods of ``io.shadowtunnel.Server``, by the names they have there.

The library ``varlink`` calls them in the event loop's thread. A method that is a generator replies several
times; ``_continues`` says that more is to come.
"""

import asyncio
import datetime as dt
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import varlink

from .. import __version__
from ..daemon import life
from ..errors import PeerError, Refused, ShadowError
from ..names import API, INTERFACE_FILE
from ..server import questions
from ..server.desk import Desk
from ..server.facts import Facts, remote_facts, robot_facts, server_facts
from ..server.overview import Overview
from ..server.questions import By, Question
from ..server.server import Server
from .later import Gathering, Later, answer_of, why_not
from .varlink import Caller

_EXPECTED_MORE = "org.varlink.service.ExpectedMore"
_BATCH = 100  # in one reply
_ONE_REPLY_MAX = 1000  # in the only reply to a caller that did not ask for more


class Methods:
    """The interface's methods."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._desk = Desk(server.robots)

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
        if not overview.server:
            return {}
        return {"server": overview.server, "lists": self._server.trust.numbers, **_age(overview)}

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

    def Describe(self, name: str, fleet: bool | None, *, _request: Caller) -> Facts:  # noqa: FBT001 - the API's
        """One robot here, or with ``fleet`` anywhere, if only because it was there last."""
        overview, robot = self._overview, self._server.robots.get(name)
        facts = self._facts(name, _now(), fleet)
        if facts is None and fleet and (remote := overview.find(name)) is not None:
            facts = remote_facts(name, remote, robot, time.time())
        if facts is None:
            raise self._no_such_robot(name)
        here = {"robot": facts, "streams": list(self._desk.streams(name))}
        if facts.get("server") in {None, overview.server}:
            return here
        here |= _age(overview)
        if not facts["connected"]:
            return here
        raise Later(lambda: _message(self._describe_there(here, _request.uid)))

    async def _describe_there(self, here: Facts, uid: int) -> Facts:
        """What the robot's own server says of it; if that says nothing, what we have."""
        server, question = here["robot"]["server"], Question(questions.ROBOT, here["robot"]["name"])
        try:
            robot, *streams = await answer_of(self._overview.others, server, question, uid)
        except PeerError as error:
            return {**here, "missing": [{"server": server, "reason": why_not(server, error)}]}
        # Of a stream that goes from here to there, both have a half.
        halves = {(one.get("server"), one.get("idThere")) for one in streams}
        streams += (one for one in here["streams"] if (one["at"], one["id"]) not in halves)
        return {"robot": robot, "streams": streams}

    def Servers(self) -> Facts:
        """All servers of the fleet."""
        overview = self._overview
        return {"servers": list(map(server_facts, overview.servers)), **_age(overview)}

    def ListStreams(
        self,
        robot: str | None,
        fleet: bool | None,  # noqa: FBT001 - the API's
        *,
        _request: Caller,
        _more: bool = False,
    ) -> Iterator[Facts]:
        """The streams of one robot, or of all, through this server; with ``fleet`` through all of them."""
        if robot is not None and robot not in self._server.robots and not self._overview.find(robot):
            raise self._no_such_robot(robot)
        streams = self._desk.streams(robot or "")
        if not (fleet and self._overview.server):
            return _in_batches("streams", streams, lambda facts: facts, more=_more)
        if not _more:
            raise _error(_EXPECTED_MORE)
        parts = iter(lambda: list(itertools.islice(streams, _BATCH)), [])
        question = Question(questions.STREAMS, robot or "")
        gathering = Gathering(parts, self._overview.others, question, _request.uid)
        _request.draw_on(gathering)
        return (gathering.take("streams") for _ in itertools.repeat(None))  # the last one says so

    def Watch(self, *, _request: Caller, _more: bool = False) -> Iterator[Facts]:
        """Everything that is logged; ``Caller`` takes a reply when there is one."""
        if not _more:
            raise _error(_EXPECTED_MORE)
        watcher = _request.watch()
        while True:
            yield {**watcher.take(), "_continues": True}

    def Disconnect(
        self, robot: str | None, stream: str | None, server: str | None, fleet: bool | None,  # noqa: FBT001
        *, _request: Caller
    ) -> Facts:  # fmt: skip
        """End a robot's session and streams, or one stream."""
        _check_may_steer(_request)
        if robot is None:
            if stream is None:
                raise varlink.InvalidParameter("robot")
            return self._order(Question(questions.CUT, stream), server, _request)
        if stream is not None:
            raise varlink.InvalidParameter("robot")
        if server is None and fleet and (remote := self._overview.find(robot)) is not None and remote.live:
            found = self._server.robots.get(robot)
            server = remote.server if found is None or found.session is None else None
        return self._order(Question(questions.DISCONNECT, robot), server, _request)

    def Reload(self, *, _request: Caller) -> Facts:
        """Read files again."""
        _check_may_steer(_request)
        try:
            life.reload(self._server.reload)
        except ShadowError as error:
            raise _error("ReloadFailed", reason=str(error)) from error
        return {}

    def Drain(
        self,
        draining: bool,  # noqa: FBT001 - the API's
        timeout: float | None,
        server: str | None,
        *,
        _request: Caller,
    ) -> Facts:
        """Have the robots of this server or of another one go to others, or take robots again."""
        _check_may_steer(_request)
        if timeout is not None and not 0 < timeout <= questions.SECONDS_MAX:
            raise varlink.InvalidParameter("timeout")
        what = questions.DRAIN if draining else questions.UNDRAIN
        return self._order(Question(what, seconds=timeout or 0.0), server, _request)

    def _order(self, question: Question, server: str | None, caller: Caller) -> Facts:
        """Carry out an order, or pass it on to the server that it is for; None: that is this one."""
        overview = self._overview
        if server not in {None, overview.server}:
            if server not in {companion.name for companion in overview.servers}:
                raise _error("NoSuchServer", server=server)
            raise Later(lambda: _message(self._order_there(question, str(server), caller.uid)))
        try:
            return next(self._desk.answer(question, By(caller.uid)))
        except Refused as refused:
            if refused.code == questions.NO_SUCH_ROBOT:
                raise self._no_such_robot(question.name) from refused
            raise _refusal(question, refused) from refused

    async def _order_there(self, question: Question, server: str, uid: int) -> Facts:
        try:
            (facts,) = await answer_of(self._overview.others, server, question, uid)
        except Refused as refused:
            raise _refusal(question, refused, server) from refused
        except PeerError as error:
            raise _error("NoAnswer", server=server, reason=why_not(server, error)) from error
        return facts

    def _no_such_robot(self, name: str) -> Exception:
        # Let the caller look for similar names: among many thousands that takes a second.
        remote = self._overview.find(name)
        where = {} if remote is None or not remote.live else {"server": remote.server}
        return _error("NoSuchRobot", name=name, **where)


def _refusal(question: Question, refused: Refused, server: str = "") -> Exception:
    if refused.code == questions.NO_SUCH_ROBOT:
        return _error("NoSuchRobot", name=question.name)
    if refused.code == questions.NO_SUCH_STREAM:
        return _error("NoSuchStream", id=question.name)
    if refused.code == questions.FAILED:
        return _error("DrainFailed", reason=refused.text)
    return _error("NoAnswer", server=server, reason=why_not(server, refused))


async def _message(reply: Awaitable[Facts]) -> Facts:
    """A reply that took time, as a message of Varlink's."""
    try:
        return {"parameters": await reply}
    except varlink.VarlinkError as error:
        message: Facts = error.as_dict()
        return message


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
            raise _error(_EXPECTED_MORE)
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
