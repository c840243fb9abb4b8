"""What a server by itself knows of others: nothing."""

from shadow.server.directory import Alone
from shadow.server.overview import Overview


def test_there_are_no_others() -> None:
    overview = Alone().overview
    assert type(overview) is Overview
    assert overview.server == ""
    assert overview.age is None
    assert overview.figures is None
    assert (overview.servers, overview.names()) == ([], [])
    assert overview.find("011") is None
    overview.watch(print)  # of nothing
