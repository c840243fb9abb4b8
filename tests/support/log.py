"""What is logged in this process, as the fixture ``said`` has it."""

from typing import TypeAlias

from shadow.events import Event

Said: TypeAlias = list[tuple[type[Event], str]]
"""Kinds of events, with their texts, in order."""
