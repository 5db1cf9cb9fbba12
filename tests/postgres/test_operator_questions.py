"""The ten questions of an operator, with the history in PostgreSQL."""

from tests.integration.test_operator_questions import *  # noqa: F403
