"""One relay and three remote domains that the tests of a module share; each test uses addresses of its own."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.relay_process import RelayProcess
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes


@dataclass(frozen=True)
class SharedRelay:
    """`a` takes all, `b` knows no nobody@b.test, `c` greylists each pair of addresses once."""

    remotes: Remotes
    a: RemoteMx
    b: RemoteMx
    c: RemoteMx
    relay: RelayProcess


@pytest.fixture(scope="module", autouse=True)
def sessions(request: pytest.FixtureRequest) -> Iterator[None]:
    """The SMTP sessions have no process of their own, which takes as long to start as all else, but in
    files with GATE = True. Other folders use this fixture as well.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "GATE", False):
            patch.setattr(RelayProcess, "smtp_gate", "off")
        yield


@pytest.fixture(scope="module")
def shared(remotes_module, serve_module) -> SharedRelay:
    a = remotes_module.start("a.test")
    b = remotes_module.start("b.test", rcpt={"nobody@b.test": "550 5.1.1 No such user here"})
    c = remotes_module.start("c.test", greylist=True)
    return SharedRelay(remotes_module, a, b, c, serve_module(remotes_module))


@pytest.fixture
def relay(shared: SharedRelay) -> RelayProcess:
    """The module's relay."""
    return shared.relay
