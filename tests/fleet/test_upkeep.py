"""What keeps a server and its fleet in agreement; that it runs at all is in ``test_fleet``."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shadow.fleet.keys import Keys
from shadow.fleet.upkeep import Upkeep


def test_each_part_is_there_once_and_can_be_run(tmp_path: Path) -> None:
    it: Any = SimpleNamespace(server="a", state=tmp_path, trust=None)
    made = Upkeep(it, it, it, Keys("f"), it)
    assert [type(part).__name__ for part in made.parts] == ["Audit", "Janitor", "Revoking"]
    assert made.revoking in made.parts
    assert all(callable(part.run) for part in made.parts)
