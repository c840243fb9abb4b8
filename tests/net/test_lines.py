"""Lines: what one connection has heard, the others know, if it is theirs."""

import gc
import math
import socket

from shadow.net.lines import Line, Lines
from tests.support import tcp_pair


def test_a_line_that_was_silent_for_longer_than_its_words_are_apart_has_been_away() -> None:
    line = Line()
    assert line.times == (-math.inf, -math.inf)
    line.heard(100.0, 30.0)
    assert line.times == (100.0, 100.0)
    line.heard(137.0, 30.0)
    assert line.times == (100.0, 137.0)
    line.heard(175.0, 30.0)
    assert line.times == (175.0, 175.0)


def test_it_is_known_by_its_two_addresses() -> None:
    lines = Lines()
    first, second = tcp_pair(), tcp_pair()
    with socket.create_server(("127.0.0.2", 0)) as listener:
        third = socket.create_connection(listener.getsockname()), listener.accept()[0]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        moved = socket.create_connection(listener.getsockname(), source_address=("127.0.0.2", 0))
        fourth = moved, listener.accept()[0]
    line = lines.of(first[0])
    assert line is not None
    assert lines.of(second[0]) is line, "the port does not matter: NAT makes others"
    assert lines.of(third[0]) not in {line, None}, "the peer is elsewhere"
    assert lines.of(fourth[0]) not in {line, None}, "we are elsewhere"
    for sock in (*first, *second, *third, *fourth):
        sock.close()


def test_it_lives_as_long_as_anybody_has_it() -> None:
    lines = Lines()
    near, far = tcp_pair()
    with near, far:
        line = lines.of(near)
        assert line is not None
        line.heard(1.0, 30.0)
        del line
        gc.collect()
        line = lines.of(near)
        assert line is not None
        assert line.times == (-math.inf, -math.inf)


def test_what_has_no_addresses_has_no_line() -> None:
    lines = Lines()
    near, far = socket.socketpair()
    with near, far:
        assert lines.of(near) is None
    near, far = tcp_pair()
    far.close()
    near.close()
    assert lines.of(near) is None
