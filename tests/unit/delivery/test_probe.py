"""A probe of a site: it connects as delivery does, within the site's limit, and stops before MAIL."""

import asyncio
import socket
from types import SimpleNamespace

from relay.base.message.nexthop import NextHop
from tests.support.remote_mx import RemoteMx

HOP = NextHop.parse("mx:a.test")


async def probe(delivery):
    return await delivery.scheduler.probe(HOP, delivery.table.decided("a.test"))


async def test_a_probe_stops_before_mail(delivery) -> None:
    async with RemoteMx() as mx:
        await delivery.start()
        delivery.table.at("a.test", mx)
        found = await probe(delivery)
        assert (found.host, found.address) == ("mx0.a.test", f"{mx.host}:{mx.port}")
        assert (found.reply, found.tried) == ("", ())
        assert [command.partition(" ")[0] for command in mx.commands] == ["EHLO", "QUIT"]


async def test_the_hosts_are_tried_in_order_and_the_last_says_why_there_is_no_session(delivery):
    with socket.create_server(("127.0.0.3", 0)) as unused:
        port = unused.getsockname()[1]
    closed = SimpleNamespace(host="127.0.0.3", port=port, lmtp=False)
    async with RemoteMx() as mx:
        await delivery.start()
        delivery.table.at("a.test", closed, mx)
        found = await probe(delivery)
        assert found.host == "mx1.a.test"
        assert found.tried[0].startswith("0 mx0.a.test [127.0.0.3]: ")
        assert found.tried[1] == f"1 mx1.a.test [{mx.host}]: connected"
        mx.replies = {"CONNECT": "554 5.7.1 not you"}
        delivery.table.at("a.test", mx)
        found = await probe(delivery)
        assert (found.host, found.reply) == ("", "554 5.7.1 not you")


async def test_a_known_failure_does_not_count(delivery) -> None:
    async with RemoteMx(replies={"CONNECT": ["421 4.3.2 later", "220 ready"]}) as mx:
        delivery.unreachable_s = 60.0
        await delivery.start()
        delivery.table.at("a.test", mx)
        assert (await probe(delivery)).reply == "421 4.3.2 later"
        assert (await probe(delivery)).host == "mx0.a.test"


async def test_a_probe_opens_no_connection_beyond_the_limit(delivery) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DATA": gate}) as mx:
        delivery.connections_max = 1
        await delivery.start()
        delivery.table.at("a.test", mx)
        sent = await delivery.send("x@a.test")
        await mx.reached("DATA")
        found = await probe(delivery)
        assert found.reply == "the site has the connections that it may have now: 1 connection"
        gate.set()
        await delivery.done(sent)
        assert mx.sessions == 1


async def test_a_stop_ends_a_probe(delivery) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"EHLO": gate}) as mx:
        await delivery.start()
        delivery.table.at("a.test", mx)
        probing = asyncio.create_task(probe(delivery))
        await mx.reached("EHLO")
        await delivery.scheduler.drain(0.1)
        assert (await probing).reply == "the relay is shutting down"
        assert (await probe(delivery)).reply == "the relay is shutting down"
        gate.set()
