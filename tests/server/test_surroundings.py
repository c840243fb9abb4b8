"""What every robot of a server needs from it."""

import tomllib

from shadow.server.surroundings import SOFTWARE
from tests.support import CHECKOUT


def test_the_robot_is_told_which_program_it_talks_to() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    version = project.get("version") or SOFTWARE.split()[1]
    assert f"shadow-server {version}" == SOFTWARE
