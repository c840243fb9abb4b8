"""What the server leaves of its robots at a planned restart, and how the next one takes it over.

For each robot it leaves a letter with its session, then one for each of its sockets, standby channels,
waiting visitors, and visitors whose START has not been answered (``letters``). Robots notice nothing, and
anyone who connects to a socket in the meantime waits in its backlog.
"""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence

from .. import events
from .. import text as texts
from ..errors import LocalError
from ..systemd.fdstore import Store
from ..systemd.mailbox import Mailbox, collect, deal
from ..text import printable
from . import letters
from .letters import Facts, Heir, House, Part, SessionPart, SocketPart, StandbyPart, StartPart, VisitorPart
from .robot import Robot
from .session import Cause, Session
from .trust import Offer
from .visitor import Visitor

# Leaving


def leave(robots: Iterable[Robot], store: Store, offer: Offer) -> None:
    """Leave the robots to the next daemon, or end their sessions properly.

    Nobody tells us whether we are stopped for good or only restarted; if for good, systemd drops it all.
    """
    parked = 0
    with contextlib.closing(Mailbox(store)) as mailbox:
        for robot in robots:
            try:
                parked += park(robot, mailbox, offer) if store.limit else False
            except Exception:
                logging.getLogger("shadow").exception("robot %s cannot be left", robot.name)
            robot.end_session("the server is stopping", Cause.STOPPING)
            robot.dismiss("the server is stopping")
    if parked:
        text = f"{texts.many(parked, 'session')} left for the next start"
        events.log(events.Stopping(robots=parked), logging.INFO, text)


def park(robot: Robot, mailbox: Mailbox, offer: Offer) -> bool:
    """Leave what a robot has to the next daemon; end properly what cannot be left.

    Args:
        robot: the robot.
        mailbox: where to put it.
        offer: the terms of the session.

    Returns:
        True if the robot remains connected.
    """
    session = robot.session
    parked = session is not None and _park_session(robot, session, mailbox, offer)
    if parked or session is None:
        _park_sockets(robot, mailbox)
    if parked and session is not None:
        _park_standbys(robot, session, mailbox)
        _park_waiting(robot, session.board.visitors, mailbox)
    _park_waiting(robot, robot.visitors.elsewhere, mailbox)
    robot.visitors.elsewhere.clear()
    _park_starting(robot, mailbox)
    return parked


def _park_session(robot: Robot, session: Session, mailbox: Mailbox, offer: Offer) -> bool:
    control = session.channel
    try:
        record = {**session.record, **control.record}
        _put(mailbox, SessionPart(robot.name, offer.facts, record, control.link.sock))
    except LocalError as error:
        robot.end_session(f"the server is stopping, {error}", Cause.STOPPING)
        return False
    robot.leave_session()
    return True


def _park_sockets(robot: Robot, mailbox: Mailbox) -> None:
    for service, listener in robot.sockets.park():
        with _or_else(robot, listener.close):
            _put(mailbox, SocketPart(robot.name, service, listener))
            listener.sock.close()


def _park_standbys(robot: Robot, session: Session, mailbox: Mailbox) -> None:
    for standby in session.board.standbys:
        with _or_else(robot, standby.close):
            record = standby.record
            if standby.link.chain == session.channel.link.chain:
                del record["chain"]  # thousands of robots show the same one three times
            _put(mailbox, StandbyPart(robot.name, record, standby.link.sock))
            standby.leave()


def _park_waiting(robot: Robot, visitors: Iterable[Visitor], mailbox: Mailbox) -> None:
    for visitor in visitors:
        if not visitor.comes_again:
            with _or_else(robot, _nothing):
                _put(mailbox, VisitorPart(robot.name, visitor))
        visitor.close()


def _park_starting(robot: Robot, mailbox: Mailbox) -> None:
    starting = robot.visitors.starting
    for visitor, channel in starting.items():
        if visitor.comes_again:
            channel.abort()
        else:
            with _or_else(robot, channel.abort):
                _put(mailbox, StartPart(robot.name, channel.record, channel.link.sock, visitor))
                channel.leave()
        visitor.close()
    starting.clear()


def _put(mailbox: Mailbox, part: Part) -> None:
    mailbox.put(part.letter)


def _nothing() -> None:
    """Nothing to do: the caller does the same in either case."""


@contextlib.contextmanager
def _or_else(robot: Robot, end: Callable[[], object]) -> Iterator[None]:
    try:
        yield
    except LocalError as error:
        end()
        text = f"robot {robot.name}: a visitor or channel ends with this daemon: {error}"
        events.log(events.SessionGivenUp(robot=robot.name), logging.WARNING, text)


# Going on


def resume(store: Store, house: House) -> int:
    """Continue with what the previous daemon has left; return how many robots remain connected.

    Whatever is wrong with a letter ends what it is about, and nothing else.
    """
    heir = Heir(house)

    def take(facts: Facts, sockets: Sequence[socket.socket]) -> None:
        letters.read(facts, sockets).resume(heir)

    def give_up(facts: Facts, why: str) -> None:
        # Robots that must reconnect are logged together, below: nothing is wrong.
        if str(facts.get("robot")) not in heir.anew or facts.get("kind") not in {"session", "standby"}:
            _give_up(facts, why)

    deal(collect(store), take, give_up)
    for robot in list(house.robots.values()):
        robot.restore_sockets()
        robot.report_if_empty()
    if heir.anew:
        whose = texts.many(len(heir.anew), "robot")
        text = f"{whose} to connect again: the server has another certificate or --keepalive now"
        events.log(events.SessionGivenUp(), logging.INFO, text)
    connected = sum(robot.session is not None for robot in house.robots.values())
    if connected:
        text = f"resumed {texts.many(connected, 'session')} of the daemon before this one"
        events.log(events.SessionsResumed(robots=connected), logging.INFO, text)
    return connected


def _give_up(facts: Facts, why: str) -> None:
    what, name = _word(facts, "kind"), _word(facts, "robot")
    text = f"robot {name}: a {what} of the daemon before this one cannot go on and ends: {why}"
    events.log(events.SessionGivenUp(robot=name), logging.WARNING, text)


def _word(facts: Facts, name: str) -> str:
    """A fact that should be a word; it may be anything."""
    value = facts.get(name)
    return printable(value[:80]) if isinstance(value, str) else "?"
