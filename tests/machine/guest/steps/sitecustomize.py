"""Python imports this at its start: shoots a daemon at one step of a stream's life, once.

``SHADOW_TEST_STEP=before|after MODULE CLASS METHOD`` says when; CLASS is ``-`` for a function of the
module. The file ``SHADOW_TEST_SHOT`` says that it
has been done: the next daemon is left alone.
"""

import importlib
import os
import signal
from pathlib import Path
from typing import Any


def shoot_at(moment: str, module: str, owner: str, method: str, shot: Path) -> None:
    """End this process where it stands, when a method is called or has returned."""
    holder = importlib.import_module(module)
    if owner != "-":
        holder = getattr(holder, owner)
    original = getattr(holder, method)

    def end() -> None:
        shot.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def shooting(*arguments: Any, **options: Any) -> Any:
        if moment == "before":
            end()
        original(*arguments, **options)
        end()

    setattr(holder, method, shooting)


if "SHADOW_TEST_STEP" in os.environ and not Path(os.environ["SHADOW_TEST_SHOT"]).exists():
    _moment, _module, _owner, _method = os.environ["SHADOW_TEST_STEP"].split()
    shoot_at(_moment, _module, _owner, _method, Path(os.environ["SHADOW_TEST_SHOT"]))
