"""What every robot of a server needs from it."""

from dataclasses import dataclass

from .. import __version__
from ..daemon.config import ServerConfig
from ..relay.durable import DurableStreams
from .descriptors import Descriptors
from .signer import Signer
from .trust import Trust

SOFTWARE = f"shadow-server {__version__}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every robot needs from the server."""

    config: ServerConfig
    durable: DurableStreams
    signer: Signer
    descriptors: Descriptors
    trust: Trust
