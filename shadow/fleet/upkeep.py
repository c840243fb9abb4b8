"""What keeps a server and the fleet's directory in agreement, beside the view that follows it."""

from ..daemon.membership import Membership
from ..server.server import Server
from .audit import Audit
from .etcd import Engine
from .janitor import Janitor
from .keys import Keys
from .lists import Lists
from .revoking import Revoking
from .view import View


class Upkeep:
    """All of it.

    Attributes:
        revoking: has all servers revoke the same certificates.
        parts: what is to be run.
    """

    def __init__(
        self, server: Server, membership: Membership, engine: Engine, keys: Keys, view: View
    ) -> None:
        """Do nothing yet.

        Args:
            server: ours.
            membership: its settings.
            engine: where all servers meet.
            keys: of the fleet.
            view: of the engine.
        """
        name, lists = membership.server, Lists(engine, keys)
        self.revoking = Revoking(server, name, lists, view, membership.state)
        self.parts = Audit(engine, keys, view), Janitor(engine, keys, view, name), self.revoking
