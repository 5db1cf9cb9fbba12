"""A development relay without mail."""

import pytest

from tests.support.dev_process import DevProcess


@pytest.fixture(scope="module")
def running(dev_module) -> DevProcess:
    return dev_module("--no-demo")


@pytest.fixture
def relay(running: DevProcess) -> DevProcess:
    """The same for all tests of a module, and empty."""
    answer = running.graph("DELETE", "/relay/v1/messages", token=running.ready["token"])
    assert answer.status == 200
    return running
