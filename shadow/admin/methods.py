"""What the API can do: the methods of ``io.shadowtunnel.Server``, by the names they have there.

The library ``varlink`` calls them in the event loop's thread. A method that is a generator replies several
times; ``_continues`` says that more is to come.
"""

import asyncio
import datetime as dt
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import varlink

from .. import __version__
from ..daemon import life
from ..errors import LocalError, ShadowError
from ..names import API, INTERFACE_FILE
from ..server.robot import Robot
from ..server.server import Server
from ..server.session import Cause
from ..wire.frames import Refusal
from .facts import Facts, find_stream, robot_facts, streams_of
from .varlink import Caller

_BATCH = 100  # in one reply
_ONE_REPLY_MAX = 1000  # in the only reply to a caller that did not ask for more


class Methods:
    """The interface's methods."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def GetStatus(self) -> Facts:
        """The state of the server."""
        now = dt.datetime.now(dt.UTC)
        terms = [
            {"what": term.what, "until": term.until.isoformat(), "days": (term.until - now).days}
            for term in self._server.terms
        ]
        return {
            "version": __version__, "status": self._server.status, **self._server.counts, "terms": terms,
        }  # fmt: skip

    def List(self, *, _more: bool = False) -> Iterator[Facts]:
        """All robots."""
        now = _now()
        robots = self._there(sorted(self._server.robots))
        return _in_batches("robots", robots, lambda robot: robot_facts(robot, now), more=_more)

    def _there(self, names: Iterable[str]) -> Iterator[Robot]:
        """Those that are still there when it is their turn."""
        return (robot for name in names if (robot := self._server.robots.get(name)) is not None)

    def Describe(self, name: str) -> Facts:
        """One robot."""
        robot, now = self._find(name), _now()
        return {"robot": robot_facts(robot, now), "streams": streams_of(robot, now)}

    def ListStreams(self, robot: str | None, *, _more: bool = False) -> Iterator[Facts]:
        """The streams of one robot, or of all."""
        names = list(self._server.robots) if robot is None else [self._find(robot).name]
        now = _now()
        streams = itertools.chain.from_iterable(streams_of(one, now) for one in self._there(names))
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
            found = self._find(robot)
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

    def Reload(self, *, _request: Caller) -> Facts:
        """Read files again."""
        _check_may_steer(_request)
        try:
            life.reload(self._server.reload)
        except ShadowError as error:
            raise _error("ReloadFailed", reason=str(error)) from error
        return {}

    def Drain(self, draining: bool, *, _request: Caller) -> Facts:  # noqa: FBT001
        """Have the robots go to other servers, or take robots again."""
        _check_may_steer(_request)
        try:
            drainer = self._server.robots.drainer
            (drainer.start if draining else drainer.stop)()
        except LocalError as error:
            raise _error("DrainFailed", reason=str(error)) from error
        return {"robots": self._server.robots.connected}

    def _find(self, name: str) -> Robot:
        robot = self._server.robots.get(name)
        if robot is None:
            # Let the caller look for similar names: among many thousands that takes a second.
            raise _error("NoSuchRobot", name=name)
        return robot


def make_service(handler: object) -> Any:
    """What reads and answers calls, one at a time; ``handler`` has the interface's methods."""
    service = varlink.Service("Shadow", "shadow-server", __version__, "", str(INTERFACE_FILE.parent))
    service.interface(API)(lambda: handler)
    return service


def _now() -> float:
    return asyncio.get_running_loop().time()


def _in_batches(
    name: str, found: Iterable[Any], describe: Callable[[Any], Facts], *, more: bool
) -> Iterator[Facts]:
    """In batches for callers that ask for more; all at once for others, if they are not too many.

    ``found`` is read and described only when the reply is taken.
    """
    rest = iter(found)
    if not more:
        all_of_it = list(itertools.islice(rest, _ONE_REPLY_MAX + 1))
        if len(all_of_it) > _ONE_REPLY_MAX:
            raise _error("org.varlink.service.ExpectedMore")
        yield {name: [describe(one) for one in all_of_it]}
        return
    batch, more = list(itertools.islice(rest, _BATCH)), True
    while more:
        following = list(itertools.islice(rest, _BATCH))
        more = bool(following)
        yield {name: [describe(one) for one in batch], "_continues": more}
        batch = following


def _check_may_steer(caller: Caller) -> None:
    if not caller.may_steer:
        raise _error("org.varlink.service.PermissionDenied")


def _error(kind: str, **parameters: Any) -> Exception:
    full = kind if "." in kind else f"{API}.{kind}"
    error: Exception = varlink.VarlinkError({"error": full, "parameters": parameters})
    return error
