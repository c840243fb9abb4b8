"""Events: an id for each."""

import re

from shadow import events


def test_every_event_has_a_message_id_of_its_own() -> None:
    kinds = events.Event.__subclasses__()
    assert len({kind.MESSAGE_ID for kind in kinds}) == len(kinds) > 40
    for kind in kinds:
        assert re.fullmatch(r"[0-9a-f]{32}", kind.MESSAGE_ID)
