"""What happens in a fleet is found where all other events are."""

from shadow import events, fleetevents


def test_events_passes_all_of_them_on() -> None:
    ours = {kind for kind in events.Event.__subclasses__() if kind.__module__ == fleetevents.__name__}
    assert events.EngineLost in ours
    assert {getattr(events, kind.__name__) for kind in ours} == ours
    assert {kind.__name__ for kind in ours} <= set(events.__all__)
