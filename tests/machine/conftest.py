"""The machine as a fixture; and what it has to say when a test fails.

Tests in this directory boot a machine, which takes root, tools (``tests/machine/setup``) and time. Without
``SHADOW_MACHINE=1`` they are not collected; with it they run or fail, and are never skipped.
``SHADOW_MACHINE_RELEASE`` says of which Debian release the machine is.
"""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from . import debian, image, package, qemu
from . import fleet as fleets

if os.environ.get("SHADOW_MACHINE") != "1":
    collect_ignore_glob = ["test_*.py"]

HERE = Path(__file__).parent
TEST_DEADLINE = (
    600.0  # seconds for a test itself, more on a slow machine; making the image and booting have their own
)

_mark = pytest.StashKey[tuple[qemu.Machine, str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("SHADOW_MACHINE_RELEASE") == "bookworm":  # it has no python3-varlink
        without = [item for item in items if item.get_closest_marker("api")]
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_DEADLINE, func_only=True))


@pytest.fixture(scope="session")
def release() -> str:
    """The Debian release of the machine."""
    return os.environ.get("SHADOW_MACHINE_RELEASE") or debian.RELEASES[0]


@pytest.fixture(scope="session")
def machine(release: str) -> Iterator[qemu.Machine]:
    """One machine for the whole run; tests leave it as they found it."""
    with qemu.Machine(image.find(release)) as running:
        yield running


@pytest.fixture(scope="session")
def installed(machine: qemu.Machine, release: str) -> qemu.Machine:
    """The machine with the Debian package of this working tree; nothing is set up yet."""
    package.install(machine, package.build(release))
    return machine


@pytest.fixture(scope="session")
def _settled(installed: qemu.Machine) -> fleets.Fleet:
    fleet = fleets.Fleet(installed)
    fleet.set_up()
    return fleet


@pytest.fixture
def fleet(_settled: fleets.Fleet) -> fleets.Fleet:
    """Keys and settings in place as after an installation; nothing runs."""
    _settled.reset()
    return _settled


@pytest.fixture(autouse=True)
def _patience(request: pytest.FixtureRequest) -> None:
    """A test may take longer on a slow machine. The clock of a test starts when its fixtures are there."""
    mark = request.node.get_closest_marker("timeout")
    if "machine" in request.fixturenames and mark.kwargs.get("func_only"):
        running: qemu.Machine = request.getfixturevalue("machine")
        seconds = mark.args[0] * running.slowness
        request.node.add_marker(pytest.mark.timeout(seconds, func_only=True), append=False)


@pytest.fixture(autouse=True)
def _journal_mark(request: pytest.FixtureRequest) -> None:
    """Remember where the journal ended before the test."""
    if "machine" in request.fixturenames:
        running: qemu.Machine = request.getfixturevalue("machine")
        request.node.stash[_mark] = (running, running.cursor())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Figures that tests have measured and recorded as ``measured``."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "measured":
                terminalreporter.write_line(f"measured by {report.nodeid}: {value}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and _mark in item.stash:
        running, cursor = item.stash[_mark]
        try:
            evidence = running.journal(after=cursor)
        except Exception as error:  # noqa: BLE001  # the machine may be gone: the test's own failure matters more
            evidence = f"{error}\n{running.console()}"
        report.sections.append(("journal of the machine", evidence))
    return report
