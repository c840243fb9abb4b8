"""The server: accepts robots, finds out who they are, and hands them to ``robot``."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .. import events
from .. import text as texts
from ..daemon.config import SERVER_SOCKET, ServerConfig
from ..errors import ConfigError, IdentityError, Refused, ShadowError, UsageError
from ..events import Event
from ..names import check_robot_name
from ..net.address import describe
from ..net.tcp import listen_tcp
from ..pki.certificates import common_name
from ..pki.expiry import Term
from ..relay.durable import DurableStreams
from ..relay.flow import Pump
from ..relay.pool import OnEnd, Relay
from ..systemd import fdstore, mailbox
from ..systemd.fdstore import Store
from ..systemd.mailbox import Mailbox
from ..text import shorten
from ..transport.channel import Channel
from ..transport.link import Link
from ..wire.conversation import CONTROL, speaks_our_version
from ..wire.frames import Hello, Refusal
from . import handover
from .descriptors import Descriptors
from .handshakes import Handshakes
from .robot import Robot, Surroundings
from .session import Cause
from .signer import Signer
from .sockets import check_folder
from .trust import Trust

_COME_BACK = 60.0  # seconds for which a robot that there is no room for should stay away


class Endpoints(Protocol):
    """What is answered beside the robots while a server runs."""

    async def close(self) -> None:
        """Answer nobody any more."""


OpenEndpoints = Callable[["Server", Store, Callable[[OSError], None]], Endpoints]
"""Opens them for a server, with systemd's sockets; tells the last one when accepting has to pause."""


class Server:
    """One server; ``start`` it, then it runs until ``stop``."""

    def __init__(
        self, config: ServerConfig, durable: DurableStreams, open_endpoints: OpenEndpoints | None = None
    ) -> None:
        """Check everything that can be checked without accepting anybody.

        Args:
            config: the settings.
            durable: for streams, and with the store.
            open_endpoints: what else is answered; raises ConfigError for sockets that are none.

        Raises:
            ConfigError: a file or folder is wrong.
            ClockError: our certificate is not valid yet.
            LocalError: kernel TLS is required and missing.
        """
        self._config = config
        self.signer = Signer(config.signer)
        self._trust = Trust(config)
        # A visitor needs a channel, and with kernel TLS two pipes.
        self.descriptors = Descriptors(self._give_up_standbys, 1 if self._trust.no_ktls else 5)
        self._around = Surroundings(config, durable, self.signer, self._robot_is_empty, self.descriptors)
        self.robots: dict[str, Robot] = {}
        self.handshakes = Handshakes(config, lambda: self._trust.settings, self._dispatch, self.descriptors)
        self._open_endpoints = open_endpoints
        self._endpoints: Endpoints | None = None
        self.resumed = {"streams": 0, "sessions": 0}  # of the daemon before us
        self._sockets: list[socket.socket] = []
        self.failure: asyncio.Future[ShadowError] = asyncio.get_running_loop().create_future()
        check_folder(config.ldir)

    # Life

    async def start(self) -> None:
        """Listen; when this returns, robots are accepted.

        Raises:
            UsageError: no port, neither from systemd nor by ``--lport``.
            LocalError: the port is taken.
        """
        self._sockets = fdstore.listening_sockets(SERVER_SOCKET, self._around.durable.store)
        if not self._sockets:
            if self._config.lport is None:
                raise UsageError("no socket from systemd and no --lport: nothing to listen on")
            ipv4, ipv6 = self._config.families
            self._sockets = listen_tcp(self._config.lport, ipv4=ipv4, ipv6=ipv6)
        durable = self._around.durable
        # Before all else that can wait: so long streams stand still, and robots and visitors wait.
        self.resumed["streams"] = durable.resume(self._resume_stream)
        left = mailbox.collect(durable.store)
        self.resumed["sessions"] = handover.resume(left, self.robots, self._known_robot, self._terms)
        self.handshakes.open(self._sockets)
        if self._open_endpoints is not None:
            self._endpoints = self._open_endpoints(self, durable.store, self.descriptors.ran_out)
        where = ", ".join(describe(sock.getsockname()) for sock in self._sockets)
        text = f"accepting robots on {where}, sockets in {self._config.ldir}"
        if self._config.crl is not None:
            text += f"; {self._trust.who_is_revoked}"
        events.log(Event.SERVER_READY, logging.INFO, text)
        if self._trust.no_ktls:
            events.log(
                Event.KTLS_UNAVAILABLE,
                logging.WARNING,
                f"encrypting in userspace: {self._trust.no_ktls}",
            )

    def reload(self) -> str:
        """Read certificates, CA and revocations again, for new connections; cut off who has been revoked.

        Sockets that somebody has removed are made anew.

        Returns:
            who is revoked now, for the log.

        Raises:
            ShadowError: a file is broken; the old ones stay in use.
        """
        self._trust.load()
        ended = sum(self._cut_off(robot) for robot in list(self.robots.values()))
        if ended:
            text = f"cut off robots with revoked certificates: {ended} sessions and streams ended"
            events.log(Event.REVOKED, logging.WARNING, text)
        for robot in list(self.robots.values()):
            robot.look_after_sockets()
        return self._trust.who_is_revoked

    def _cut_off(self, robot: Robot) -> int:
        try:
            return robot.cut_off(self._trust.revocation)
        except Exception:  # the others are locked out all the same
            logging.getLogger("shadow").exception("robot %s: its connections cannot be cut off", robot.name)
            return 0

    async def stop(self) -> None:
        """Accept nobody any more; leave the robots to the next daemon, or end their sessions in order."""
        if self._endpoints is not None:
            await self._endpoints.close()
        await self.handshakes.close()
        await self.signer.close()
        self.descriptors.close()
        self._leave_or_end()
        for sock in self._sockets:
            sock.close()

    def _leave_or_end(self) -> None:
        """Whether we are stopped for good or only restarted, nobody tells: systemd drops what is left."""
        parked, store = 0, self._around.durable.store
        with contextlib.closing(Mailbox(store)) as left:
            for robot in list(self.robots.values()):
                try:
                    parked += handover.park(robot, left, self._terms) if store.limit else False
                except Exception:
                    logging.getLogger("shadow").exception("robot %s cannot be left", robot.name)
                robot.end_session("the server is stopping", Cause.STOPPING)
        if parked:
            text = f"{texts.many(parked, 'session')} left for the next start"
            events.log(Event.STOPPING, logging.INFO, text, robots=parked)

    @property
    def _terms(self) -> dict[str, Any]:
        """What sessions are made on; with others they have to be made anew."""
        return {"certificate": self._trust.settings.fingerprint, "keepalive": self._config.keepalive}

    @property
    def status(self) -> str:
        """A line for ``systemctl status``."""
        # Asked for each second: nothing that takes longer with each robot.
        connected, streams = len(self._around.connected), self._around.durable.relay.streams
        no_ktls = self._trust.no_ktls
        encryption = f"userspace TLS ({no_ktls})" if no_ktls else "kernel TLS"
        counts = f"{texts.many(connected, 'robot')}, {texts.many(streams, 'stream')}"
        return f"{counts}{self._around.durable.remark}, {encryption}"

    @property
    def terms(self) -> list[Term]:
        """See ``life.Role``."""
        return self._trust.terms

    @property
    def relay(self) -> Relay:
        """Moves the streams' bytes."""
        return self._around.durable.relay

    @property
    def counts(self) -> dict[str, int]:
        """Robots, streams, protected ones, revoked certificates."""
        durable = self._around.durable
        return {
            "robots": len(self._around.connected),
            "streams": durable.relay.streams,
            "protected": durable.protected,
            "revoked": self._trust.revoked,
        }

    # Dispatch

    def _dispatch(self, channel: Channel, hello: Hello, peer: str) -> None:
        """Hand a connection that said HELLO to its robot, or refuse it."""
        try:
            robot = self._admit(channel, hello)
            if hello.role == CONTROL:
                robot.begin_session(channel, hello, peer)
            else:
                robot.add_standby(channel, hello)
        except Refused as refused:
            level = logging.INFO if refused.code == "no-session" else logging.WARNING
            text = f"robot {shorten(hello.robot)} from {peer} {refused}"
            events.log(Event.ROBOT_REFUSED, level, text, robot=hello.robot[:64], peer=peer, code=refused.code)
            channel.send(Refusal(refused.code, refused.text, refused.retry_after))
            channel.close()
            self._forget_if_empty(hello.robot)
        except BaseException:
            channel.abort()  # whatever it was, nobody else would close it
            raise

    def _forget_if_empty(self, name: str) -> None:
        robot = self.robots.get(name)
        if robot is not None:
            robot.report_if_empty()

    def _admit(self, channel: Channel, hello: Hello) -> Robot:
        """The robot that may use this connection.

        Raises:
            Refused: it is not who it says, speaks another version, or there is no room.
        """
        try:
            # Our CA makes no other names; a company's own may. This one becomes a file name.
            name = check_robot_name(common_name(channel.link.certificate))
        except (ConfigError, IdentityError) as error:
            raise Refused("bad-name", str(error)) from error
        if hello.robot != name:
            raise Refused("name-mismatch", f"the certificate is for {shorten(name)}")
        # Here and not in the handshake: the robot is told, and a reload meanwhile counts.
        if why := self._trust.revocation(channel.link):
            raise Refused("revoked", why)
        if not speaks_our_version(hello):
            raise Refused("version", f"protocol version {hello.version} is not spoken here")
        if name not in self.robots:
            if hello.role != CONTROL:
                raise Refused("no-session", "connect the control channel first")
            if len(self.robots) >= self._config.max_robots:
                text = f"{self._config.max_robots} robots are connected (--max-robots)"
                raise Refused("limit", text, _COME_BACK)
        return self._robot(name)

    def _resume_stream(self, pump: Pump, facts: Mapping[str, Any]) -> OnEnd:
        return self._known_robot(pump.link).resume_stream(pump, facts)

    def _known_robot(self, link: Link) -> Robot:
        """The robot whose connection the daemon before us has left.

        Raises:
            PeerError: it would not be let in today.
        """
        self._trust.check_again(link, renews=self.signer.there)
        return self._robot(check_robot_name(common_name(link.certificate)))

    def _robot(self, name: str) -> Robot:
        """The robot of this name, made now if need be."""
        robot = self.robots.get(name)
        if robot is None:
            robot = self.robots[name] = Robot(name, self._around)
        return robot

    def _robot_is_empty(self, robot: Robot) -> None:
        if self.robots.get(robot.name) is robot:
            del self.robots[robot.name]

    def _give_up_standbys(self, count: int) -> int:
        """Close so many, those of robots with most of them first; how many that were."""
        boards = [robot.session.board for robot in self.robots.values() if robot.session is not None]
        boards.sort(key=lambda board: len(board.standbys), reverse=True)
        given_up = 0
        for level in range(len(boards[0].standbys) if boards else 0, 0, -1):
            for board in boards:
                if given_up == count or len(board.standbys) < level:
                    break
                board.take_standby().close()
                given_up += 1
        return given_up
