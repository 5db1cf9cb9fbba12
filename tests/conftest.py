"""What holds for every test.

Properties are checked with the same examples every time, so that a failure is a change's; new ones
come with `make test TESTS="tests/unit --hypothesis-profile=search"`.
"""

import asyncio
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the simulation, whose single tests take longest, so that the workers end together."""
    items.sort(key=lambda item: "simulation" not in item.path.parts)


def pytest_collection_finish() -> None:
    """What is there before the first test is none of what they leave: no need to look at it."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_abandoned() -> Iterator[None]:
    """A loop, socket or coroutine that nobody ends is this module's failure, not that of the test
    during which it happens to be found.
    """
    yield
    asyncio.set_event_loop(None)
    gc.collect()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for a state_dir that a test does not choose: sockets have short names only."""
    with tempfile.TemporaryDirectory(prefix="relay-", dir="/tmp") as folder:
        yield Path(folder)
