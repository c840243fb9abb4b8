"""What ``shadowctl`` prints: tables and paragraphs, for people."""

import datetime as dt
import os
import pwd
import sys
from collections.abc import Sequence
from typing import Any

from ..text import many, printable

Facts = dict[str, Any]

_GREEN, _RED, _BOLD, _PLAIN = "\033[32m", "\033[31m", "\033[1m", "\033[0m"
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SIZES = "BKMGT"


def robots(found: Sequence[Facts]) -> str:
    """A line for each robot; in a fleet with its server."""
    fleet = any("server" in robot for robot in found)
    rows = [
        (
            robot["name"],
            *([robot.get("server", "-")] if fleet else []),
            robot.get("peer", "-"),
            _ago(robot.get("seconds")),
            ",".join(service or "default" for service in robot["services"]) or "-",
            str(robot["streams"]),
            _how(robot) + (", certificate EXPIRED" if _expired(robot) else ""),
        )
        for robot in found
    ]
    connected = sum(robot["connected"] for robot in found)
    heads = ("ROBOT", *(["SERVER"] if fleet else []), "FROM", "FOR", "SERVICES", "STREAMS", "TLS")
    return _table(heads, rows, many(connected, "robot"))


def servers(found: Sequence[Facts]) -> str:
    """A line for each server of a fleet."""
    rows = [
        (
            one["name"],
            _state(one),
            str(one["robots"]),
            one["peer"] or "-",
            (one["software"] or "-") + (", this one" if one["here"] else ""),
        )
        for one in found
    ]
    live = sum(one["live"] for one in found)
    return _table(("SERVER", "STATE", "ROBOTS", "PEER", "SOFTWARE"), rows, many(live, "server"))


def _state(server: Facts) -> str:
    """What a server of a fleet is doing."""
    if not server["live"]:
        return "gone"
    surplus = server.get("surplus")
    if not server["draining"]:
        return "live" if surplus is None else f"live, {many(surplus, 'robot')} too many"
    visited, ends = server.get("visited"), server.get("ends")
    if not visited:
        return "draining" if server["robots"] or visited is None else "drained"
    left = f"draining, {many(visited, 'robot')} with streams left"
    return left if ends is None else f"{left}, ends in {_ago(ends)}"


def streams(found: Sequence[Facts]) -> str:
    """A line for each stream; in a fleet with the server whose it is."""
    fleet = any("at" in stream for stream in found)
    rows = [
        (
            stream["id"],
            *([stream.get("at", "-")] if fleet else []),
            stream["robot"],
            stream["service"] or "default",
            _visitor(stream),
            str(stream["pid"]),
            _ago(stream["seconds"]),
            _size(stream["bytesToRobot"]),
            _size(stream["bytesFromRobot"]),
            _how(stream) + (", kept" if stream["protected"] else ""),
        )
        for stream in found
    ]
    heads = ("ROBOT", "SERVICE", "USER", "PID", "FOR", "TO", "FROM", "TLS")
    return _table(("STREAM", *(["SERVER"] if fleet else []), *heads), rows, many(len(found), "stream"))


def certificates(found: Sequence[Facts]) -> str:
    """A line for each certificate that a CA has issued."""
    rows = [
        (
            one["name"],
            one["purpose"],
            one["certificateEnds"][:10],
            "revoked" if one["revoked"] else "expired" if one["expired"] else "good",
            one["serial"],
        )
        for one in found
    ]
    return _table(("NAME", "FOR", "ENDS", "STATE", "SERIAL"), rows, many(len(found), "certificate"))


def robot(answer: Facts) -> str:
    """A paragraph about one robot, and its streams."""
    facts = answer["robot"]
    lines = [_headline(facts)]
    if facts["connected"] and "certificateEnds" not in facts:
        lines += [
            f"     Services: {_services(facts)}",
            f"  Certificate: {facts['serial']}",
            f"         More: only server {printable(facts['server'])} knows; below: visitors from here",
        ]
    elif facts["connected"]:
        until = dt.datetime.fromisoformat(facts["certificateEnds"])
        days = (until - dt.datetime.now(dt.UTC)).days
        rest = "EXPIRED: no visitor gets through" if _expired(facts) else f"{many(days, 'day')} from now"
        lines += [
            f"     Software: {printable(facts.get('software') or 'unknown')}",
            f"     Services: {_services(facts)}",
            f"  Certificate: {facts['serial']}",
            f"               until {until:%Y-%m-%d}, {rest}",
            f"          TLS: {facts['suite']}, by {'the kernel' if facts['kernelTls'] else 'the daemon'}",
            f"     Channels: {facts['standbys']} standing by, {many(facts['waiting'], 'visitor')} waiting",
        ]
    return "\n".join([*lines, "", streams(answer["streams"])])


def _services(facts: Facts) -> str:
    return ", ".join(service or "default" for service in facts["services"])


def _headline(facts: Facts) -> str:
    name, server = facts["name"], printable(facts.get("server", ""))
    if "certificateEnds" not in facts and "peer" in facts:  # somebody else's word
        if not facts["connected"]:
            return f"{_dot(good=False)} {name} - not connected; it was at server {server}, which is gone"
        peer, since = printable(facts["peer"]), _ago(facts["seconds"])
        return f"{_dot(good=True)} {name} - connected to server {server} from {peer} for {since}"
    if not facts["connected"]:
        return f"{_dot(good=False)} {name} - not connected, but some streams of it go on"
    good, to = not _expired(facts), f" to server {server}" if server else ""
    peer, since = printable(facts["peer"]), _ago(facts["seconds"])
    return f"{_dot(good=good)} {name} - connected{to} from {peer} for {since}"


def _expired(facts: Facts) -> bool:
    """Whether a robot is connected with a certificate that has expired meanwhile."""
    until = facts.get("certificateEnds")
    return until is not None and dt.datetime.fromisoformat(until) <= dt.datetime.now(dt.UTC)


def server(facts: Facts, companions: Sequence[Facts] = ()) -> str:
    """A paragraph about the server, and a line for each of its fleet."""
    lists = f", by list {printable(facts['lists'])}" if facts.get("lists") else ""
    lines = [
        f"{_dot(good=True)} shadow-server {facts['version']}",
        f"     Status: {printable(facts['status'])}",
        f"    Streams: {facts['streams']}, {facts['protected']} of them would survive a restart",
        f"    Revoked: {many(facts['revoked'], 'certificate')}{lists}",
    ]
    lines += [
        f"       Ends: {term['until'][:10]}, in {many(term['days'], 'day')}: {printable(term['what'])}"
        for term in facts["terms"]
    ]
    if companions:
        robots = many(sum(one["robots"] for one in companions if one["live"]), "robot")
        lines += [
            f"      Fleet: server {printable(facts['server'])}, {robots} in all",
            "",
            servers(companions),
        ]
    return "\n".join(lines)


def event(facts: Facts) -> str:
    """One line of the log."""
    text = printable(str(facts["message"]))
    return (
        _coloured(text, _RED)
        if facts["priority"] <= 3
        else _coloured(text, _BOLD)
        if facts["priority"] <= 4
        else text
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], total: str) -> str:
    """Columns side by side; of 300,000 rows, too, so there is as little work as may be for each."""
    if not rows:
        return total
    columns = [_clean([str(row[place]) for row in rows]) for place in range(len(heads))]
    widths = [max(len(head), *map(len, column)) for head, column in zip(heads, columns, strict=True)]
    form = "  ".join(f"%-{width}s" for width in widths)
    lines = [(form % row).rstrip() for row in (tuple(heads), *zip(*columns, strict=True))]
    return "\n".join([_coloured(lines[0], _BOLD), *lines[1:], "", total])


def _clean(column: Sequence[str]) -> Sequence[str]:
    """A column fit for a terminal; mostly it is, and that is seen quickly."""
    return column if "".join(column).isprintable() else list(map(printable, column))


def _coloured(text: str, colour: str) -> str:
    """In colour on a terminal that wants it (https://no-color.org)."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"{colour}{text}{_PLAIN}"


def _dot(*, good: bool) -> str:
    full, empty = ("●", "○") if _takes("●○") else ("*", "o")  # as systemctl does
    return _coloured(full if good else empty, _GREEN if good else _RED)


def _takes(text: str) -> bool:
    """Whether standard output has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _how(facts: Facts) -> str:
    """Who encrypts."""
    return "-" if "kernelTls" not in facts else "kernel" if facts["kernelTls"] else "userspace"


def _visitor(stream: Facts) -> str:
    """The user: of another server's, only that one knows the name of a uid."""
    if stream.get("server"):
        return f"{stream.get('user') or stream['uid']}@{stream['server']}"
    return _user(stream["uid"])


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _ago(seconds: float | None) -> str:
    """A time span in its two largest units."""
    if seconds is None:
        return "-"
    left, words = max(0, int(seconds)), ""
    for size, unit in _UNITS:
        if left >= size:
            if words:
                return f"{words} {left // size}{unit}"
            words = f"{left // size}{unit}"
            left %= size
    return words or "0s"


def _size(count: int) -> str:
    """Bytes, as ``ls -h`` shows them."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_SIZES) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count}B" if unit == 0 else f"{value:.1f}{_SIZES[unit]}"
