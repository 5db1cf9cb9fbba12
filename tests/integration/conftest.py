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


@pytest.fixture
def remotes() -> Iterator[Remotes]:
    with Remotes() as running:
        yield running


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedRelay]:
    with Remotes() as remotes:
        a = remotes.start("a.test")
        b = remotes.start("b.test", rcpt={"nobody@b.test": "550 5.1.1 No such user here"})
        c = remotes.start("c.test", greylist=True)
        with remotes.relay() as relay:
            yield SharedRelay(remotes, a, b, c, relay)


@pytest.fixture
def relay(shared: SharedRelay) -> RelayProcess:
    """The module's relay."""
    return shared.relay
