"""Shadow: a reverse tunnel for fleets of robots.

``docs/ARCHITECTURE.md`` explains the layers; ``docs/PROTOCOL.md`` what goes over the wire.
"""

__version__ = "0.1.0"
