"""The seven steps."""

from tests.integration.test_seven_steps import *  # noqa: F403
