"""What the server leaves of its robots when it is restarted as planned, and how the next one takes it up.

For each robot a letter with its session, then one for each of its sockets, standby channels, visitors that
wait, and visitors whose START has not been answered. Robots notice nothing, and who connects to a socket
meanwhile waits in its backlog.
"""

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .. import events
from .. import text as texts
from ..errors import LocalError
from ..events import Event
from ..net import tcp, unix
from ..systemd.bundle import Letter
from ..systemd.mailbox import Mailbox, deal
from ..text import printable
from ..transport import channel, link
from ..transport.channel import Channel
from ..transport.link import KernelLink, Link
from ..wire.conversation import Party, State
from . import session, visitor
from .robot import Robot
from .session import Cause

Admit = Callable[[Link], Robot]
"""Finds the robot whose link it is, or makes it.

Raises:
    ShadowError: it would not be let in today.
"""


# Leaving


def park(robot: Robot, mailbox: Mailbox, terms: Mapping[str, Any]) -> bool:
    """Leave what a robot has for the next daemon; what cannot be left is ended in order.

    Args:
        robot: the robot.
        mailbox: where to.
        terms: what the session was made on; ``resume`` wants the same. Fit for JSON.

    Returns:
        True if the robot remains connected.
    """
    put = functools.partial(_put, mailbox, robot)
    parked = _park_session(robot, put, terms)
    for starting, its_channel in robot.visitors.starting.items():
        with _or_else(robot, its_channel.abort):
            facts = {**its_channel.record, "visitor": starting.record}
            put("start", facts, its_channel.link.sock, starting.sock)
            its_channel.leave()
        starting.close()
    robot.visitors.starting.clear()
    return parked


def _park_session(robot: Robot, put: Callable[..., None], terms: Mapping[str, Any]) -> bool:
    leaving = robot.session
    if leaving is None:
        return False
    control = leaving.channel
    try:
        put("session", {**leaving.record, **control.record, "terms": terms}, control.link.sock)
    except LocalError as error:
        robot.end_session(f"the server is stopping, {error}", Cause.STOPPING)
        return False
    robot.leave_session()
    for service, its_socket in robot.sockets.park():
        with _or_else(robot, its_socket.close):
            put("socket", {"service": service, **its_socket.record}, its_socket.sock)
            its_socket.sock.close()
    for standby in leaving.board.standbys:
        with _or_else(robot, standby.close):
            record = standby.record
            if standby.link.chain == control.link.chain:
                del record["chain"]  # thousands of robots show the same one three times
            put("standby", record, standby.link.sock)
            standby.leave()
    for waiting in leaving.board.visitors:
        with _or_else(robot, _nothing):
            put("visitor", waiting.record, waiting.sock)
        waiting.close()
    return True


def _put(
    mailbox: Mailbox, robot: Robot, kind: str, record: Mapping[str, Any], *sockets: socket.socket
) -> None:
    facts = {**record, "kind": kind, "robot": robot.name}
    mailbox.put(Letter(facts, [sock.fileno() for sock in sockets]))


def _nothing() -> None:
    """What is to be done is done in either case."""


@contextlib.contextmanager
def _or_else(robot: Robot, end: Callable[[], object]) -> Iterator[None]:
    try:
        yield
    except LocalError as error:
        end()
        text = f"robot {robot.name}: a visitor or channel ends with this daemon: {error}"
        events.log(Event.SESSION_GIVEN_UP, logging.WARNING, text, robot=robot.name)


# Going on


def resume(
    letters: Iterable[Letter], robots: Mapping[str, Robot], admit: Admit, terms: Mapping[str, Any]
) -> int:
    """Go on with what the daemon before us has left; how many robots remain connected.

    Whatever is wrong with a letter ends what it is about, and nothing else.
    """
    anew: set[str] = set()  # robots whose sessions were made on other terms

    def take(facts: Mapping[str, Any], sockets: Sequence[socket.socket]) -> None:
        if facts["kind"] == "session" and facts["terms"] != terms:
            anew.add(str(facts["robot"]))
        _resume(facts, sockets, robots, admit, terms)

    def give_up(facts: Mapping[str, Any], why: str) -> None:
        # One word for all of them, below: nothing is wrong.
        if str(facts.get("robot")) not in anew or facts.get("kind") not in {"session", "standby"}:
            _give_up(facts, why)

    deal(letters, take, give_up)
    for robot in list(robots.values()):
        robot.restore_sockets()
        robot.report_if_empty()
    if anew:
        whose = texts.many(len(anew), "robot")
        text = f"{whose} to connect again: the server has another certificate or --keepalive now"
        events.log(Event.SESSION_GIVEN_UP, logging.INFO, text)
    connected = sum(robot.session is not None for robot in robots.values())
    if connected:
        text = f"resumed {texts.many(connected, 'session')} of the daemon before this one"
        events.log(Event.SESSIONS_RESUMED, logging.INFO, text, robots=connected)
    return connected


def _resume(
    facts: Mapping[str, Any],
    sockets: Sequence[socket.socket],
    robots: Mapping[str, Robot],
    admit: Admit,
    terms: Mapping[str, Any],
) -> None:
    kind = facts["kind"]
    _check_sockets(kind, sockets)
    sock = sockets[0]
    robot = robots.get(facts["robot"])
    if kind == "session":
        _resume_session(facts, sock, admit, terms)
    elif kind == "start":
        starting = visitor.remembered(sockets[1], facts["visitor"])
        its_channel, robot = _resume_channel(facts, sock, robot, admit, State.STARTING)
        robot.visitors.expect_answer(starting, its_channel)
    elif kind == "socket":
        its_socket = unix.remembered(sock, facts)
        if robot is None or robot.session is None:
            its_socket.close()  # and the file goes, too
        else:
            robot.sockets.resume(str(facts["service"]), its_socket)
    elif robot is None or robot.session is None:
        raise LocalError("its robot is not connected any more")
    elif kind == "visitor":
        robot.visitors.resume(visitor.remembered(sock, facts))
    elif kind == "standby":
        its_channel, _same = _resume_channel(facts, sock, robot, admit, State.STANDBY)
        robot.serve(robot.session, its_channel)
    else:
        raise LocalError(f"{kind!r} is unknown to this version")


def _check_sockets(kind: Any, sockets: Sequence[socket.socket]) -> None:
    """Make sure that a letter has as many sockets as it should, and the unix ones among them are such.

    Raises:
        LocalError: it has not.
    """
    if len(sockets) != (wanted := 2 if kind == "start" else 1):
        raise LocalError(f"{len(sockets)} sockets and not {wanted}")
    if kind == "socket":
        tcp.check_connection(sockets[0], socket.AF_UNIX, listening=True)
    elif kind in {"visitor", "start"}:
        tcp.check_connection(sockets[-1], socket.AF_UNIX)


def _resume_session(
    facts: Mapping[str, Any], sock: socket.socket, admit: Admit, terms: Mapping[str, Any]
) -> None:
    if facts["terms"] != terms:
        raise LocalError("the server has other settings now, and the robot is to hear of them")
    its_link = link.remembered(sock, facts)
    robot = admit(its_link)
    if robot.session is not None:
        raise LocalError("it has a session already")
    control = channel.remembered(its_link, facts, Party.SERVER, State.OPEN)
    robot.have_session(session.remembered(control, facts, asyncio.get_running_loop().time()))


def _resume_channel(
    facts: Mapping[str, Any], sock: socket.socket, robot: Robot | None, admit: Admit, state: State
) -> tuple[Channel, Robot]:
    known = robot.session.channel.link if robot is not None and robot.session is not None else None
    if "chain" not in facts and isinstance(known, KernelLink):
        facts = {**facts, "chain": known.record["chain"]}
    its_link = link.remembered(sock, facts)
    if known is None or its_link.chain != known.chain:
        robot = admit(its_link)
        if robot.name != facts["robot"]:
            raise LocalError("its certificate is another robot's")
    assert robot is not None  # noqa: S101 - known is its link
    return channel.remembered(its_link, facts, Party.SERVER, state), robot


def _give_up(facts: Mapping[str, Any], why: str) -> None:
    what, name = _word(facts, "kind"), _word(facts, "robot")
    text = f"robot {name}: a {what} of the daemon before this one cannot go on and ends: {why}"
    events.log(Event.SESSION_GIVEN_UP, logging.WARNING, text, robot=name)


def _word(facts: Mapping[str, Any], name: str) -> str:
    """A fact that should be a word, whatever it is."""
    value = facts.get(name)
    return printable(value[:80]) if isinstance(value, str) else "?"
