"""The ten questions of an operator, with the history in PostgreSQL."""

from tests.integration.test_operator_questions import *  # noqa: F403

del test_10_what_was_yesterday  # noqa: F821 - the clock is the server's
