"""Reports of other hosts."""

from tests.integration.test_remote_reports import *  # noqa: F403
