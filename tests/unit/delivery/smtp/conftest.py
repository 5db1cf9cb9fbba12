import pytest

from relay.base.message.envelope import Envelope, ForwardPath
from relay.delivery.smtp.connect import Target, connect
from relay.delivery.smtp.connection import Timeouts
from relay.delivery.smtp.transaction import Transaction
from tests.support.tls import authority, certificate

__all__ = ["authority", "certificate"]
TIMEOUTS = Timeouts()


@pytest.fixture
async def connected():
    """`await connected(mx, ...)` gives a Connection to it, closed when the test ends."""
    connections = []

    async def open_one(mx, *, timeouts=TIMEOUTS, **fields):
        fields = {"host": mx.name, "address": mx.host, "port": mx.port, "lmtp": mx.lmtp} | fields
        target = Target(path=mx.path, **fields)
        connections.append(await connect(target, ehlo_name="relay.test", timeouts=timeouts))
        return connections[-1]

    yield open_one
    for connection in connections:
        await connection.quit()


@pytest.fixture
def message():
    """`message("a@y.test", ...)` is a transaction for these recipients."""

    def make(*addresses, content=b"Subject: x\r\n\r\n.dot\r\n", **fields):
        paths = tuple(ForwardPath(address) for address in addresses or ("b@y.test",))
        whole = fields.pop("whole", False)
        return Transaction(Envelope("a@x.test", **fields), paths, content, whole=whole)

    return make
