"""A visitor at another server, as the robot's server has it."""

from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import PeerError
from shadow.fleet.doors import PeerDoor
from shadow.wire.frames import TEXT_MAX, Failed, Moved, Started


class Channel:
    """Keeps what is said on it."""

    def __init__(self) -> None:
        self.live = True
        self.said: list[Any] = []
        self.link: Any = SimpleNamespace(abort=lambda: self.said.append("cut off"))

    def send(self, frame: Any) -> None:
        self.said.append(frame)

    def close(self) -> None:
        self.said.append("closed")

    def release(self) -> Any:
        if not self.live:
            raise PeerError("it does not read")
        return self.link


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def door(channel: Channel) -> PeerDoor:
    lent: Any = channel
    return PeerDoor(lent, lambda: channel.said.append("ours no more"))


def test_who_enters_is_told_first(channel: Channel, door: PeerDoor) -> None:
    entered: Any = door.enter()
    assert entered is channel.link
    assert channel.said == ["ours no more", Started()]


def test_who_has_entered_and_has_no_stream_is_cut_off(channel: Channel, door: PeerDoor) -> None:
    """STARTED was said: the end must not look like the service's."""
    door.enter()
    door.refuse("no descriptors")
    door.close()
    assert channel.said[2:] == ["cut off"]


def test_who_is_refused_hears_why_and_the_channel_stays(channel: Channel, door: PeerDoor) -> None:
    door.refuse("x" * 2 * TEXT_MAX)
    door.close()
    assert channel.said == [Failed("visitor", "x" * TEXT_MAX)]


def test_who_is_sent_elsewhere_hears_where(channel: Channel, door: PeerDoor) -> None:
    door.move(Moved("s3", 9))
    door.refuse("twice")
    door.close()
    assert channel.said == [Moved("s3", 9)]


def test_without_an_answer_its_server_comes_again(channel: Channel, door: PeerDoor) -> None:
    door.close()
    assert channel.said == ["ours no more", "closed"]


def test_its_server_hangs_up_when_it_leaves(channel: Channel, door: PeerDoor) -> None:
    assert not door.left
    channel.live = False
    assert door.left
