"""The seven steps, and a process from its start to its end."""

from tests.integration.test_life import *  # noqa: F403
from tests.integration.test_seven_steps import *  # noqa: F403
