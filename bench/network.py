"""A long way between the two ends of a tunnel, by netem(8) on the loopback interface of a machine of ours."""

import contextlib
from collections.abc import Iterator

from .processes import Group


@contextlib.contextmanager
def distance(group: Group, round_trip: float, spared: int) -> Iterator[None]:
    """Packets take half of ``round_trip`` seconds, but for those from and to the port ``spared``."""
    if not round_trip:
        yield
        return

    def tc(words: str) -> None:
        group.run("tc", "tc", *words.split())

    tc(f"qdisc add dev lo root handle 1: prio bands 2 priomap {'1 ' * 16}")
    try:
        tc(f"qdisc add dev lo parent 1:2 netem delay {round_trip / 2 * 1e3:g}ms limit 100000")
        for end in ("sport", "dport"):
            tc(f"filter add dev lo parent 1: protocol ip u32 match ip {end} {spared} 0xffff flowid 1:1")
        yield
    finally:
        tc("qdisc del dev lo root")
