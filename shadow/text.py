"""Text for people: making it safe to print, counting things, suggesting names."""

from collections.abc import Iterable


def printable(text: str) -> str:
    """A peer's words, fit for a terminal and a log line: no control characters."""
    if text.isprintable():  # mostly, and at once
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def many(number: int, noun: str) -> str:
    """A number and what it counts: ``1 robot``, ``2 robots``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shorten(text: str, limit: int = 80) -> str:
    """``text`` quoted for a log line: control characters escaped, at most ``limit`` characters of it."""
    return repr(text if len(text) <= limit else text[:limit] + "…")


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean …?`` with the known word closest to ``word``, or nothing."""
    import difflib  # noqa: PLC0415 - only needed after a mistake

    near = difflib.get_close_matches(word, list(known), n=3)
    # Swapped letters are the most common mistake, but difflib gives them no preference.
    near.sort(key=lambda one: sorted(one) != sorted(word))
    return f"; did you mean {prefix}{near[0]}?" if near else ""
