"""A process from its start to its end."""

from tests.integration.test_life import *  # noqa: F403
