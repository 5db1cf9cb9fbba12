"""What holds for every test.

Properties are checked with the same examples every time, so that a failure is a change's; new ones
come with `make test TESTS="tests/unit --hypothesis-profile=search"`.
"""

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


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for a state_dir that a test does not choose: sockets have short names only."""
    with tempfile.TemporaryDirectory(prefix="relay-", dir="/tmp") as folder:
        yield Path(folder)
