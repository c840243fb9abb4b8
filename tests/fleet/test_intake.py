"""An engine that answers, and takes nothing: said once, and once when it takes something again."""

from shadow import events
from shadow.errors import EngineFull, EngineRefused
from shadow.fleet.intake import Intake
from tests.support.log import Said


class View:
    up = True


def make() -> tuple[Intake, View]:
    view = View()
    return Intake(lambda: view.up), view


def test_it_is_said_once_each_time(said: Said) -> None:
    intake, _view = make()
    intake.took()
    assert intake.open
    for _ in range(2):
        for _ in range(2):
            intake.refused(EngineFull("the fleet's engine is full: no space"))
            assert not intake.open
        for _ in range(2):
            intake.took()
            assert intake.open
    assert [kind for kind, _text in said] == [events.WritesRefused, events.EngineFound] * 2
    assert said[0][1] == (
        "the fleet's engine is full: no space; the other servers take this one for gone; "
        "robots and visitors here are served all the same"
    )


def test_who_may_not_even_read_says_so_elsewhere(said: Said) -> None:
    """One line is enough; when the view has the engine again, this may be another matter."""
    intake, view = make()
    view.up = False
    intake.refused(EngineRefused("not you"))
    assert intake.open
    assert not said
    view.up = True
    intake.refused(EngineRefused("not you"))
    assert [kind for kind, _text in said] == [events.WritesRefused]
