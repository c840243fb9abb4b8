"""A service manager's store for descriptors, without a service manager."""

import os
from collections.abc import Callable


class Store:
    """What ``fdstore.Store`` does, and what the service manager does behind it."""

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        self.kept: dict[str, int] = {}
        self._passed: list[tuple[str, int]] = []

    @property
    def free(self) -> int:
        return self.limit - len(self.kept)

    def start_again(self) -> None:
        """The next process gets copies of everything."""
        self._passed = [(name, os.dup(descriptor)) for name, descriptor in self.kept.items()]

    def take(self, wanted: Callable[[str], object]) -> list[tuple[str, int]]:
        taken = [entry for entry in self._passed if wanted(entry[0])]
        self._passed = [entry for entry in self._passed if not wanted(entry[0])]
        return taken

    def was_passed(self, wanted: Callable[[str], object]) -> bool:
        return any(wanted(name) for name, _descriptor in self._passed)

    def count(self, _number: int) -> None:
        pass

    def add(self, name: str, descriptor: int) -> None:
        assert name not in self.kept
        self.kept[name] = os.dup(descriptor)

    def remove(self, name: str) -> None:
        os.close(self.kept.pop(name))

    def close(self) -> None:
        for descriptor in self.kept.values():
            os.close(descriptor)
