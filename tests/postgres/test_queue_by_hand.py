"""The commands of operators, with the service running and stopped."""

from tests.integration.test_queue_by_hand import *  # noqa: F403
