"""The SMTP sessions have a process of their own where the host or its disk affects them: GATE = True."""

from tests.integration.conftest import sessions  # noqa: F401 - a fixture
