"""Mail of msgraph-sdk."""

import asyncio

import pytest
import shop

pytest.importorskip("msgraph", reason="msgraph-sdk is not installed: make clients")


@pytest.fixture
def graph(relay, monkeypatch):
    monkeypatch.setenv("SHOP_GRAPH", f"{relay.env['RELAY_URL']}/v1.0")
    monkeypatch.setenv("SHOP_TOKEN", relay.token("ann@example.test"))
    return relay


def test_a_message_makes_all_steps(graph):
    asyncio.run(shop.send_by_graph("From Graph", "bob@example.test"))
    message = graph.mailbox("bob@example.test").wait_for(subject="From Graph")
    assert (message.sender, message.state) == ("ann@example.test", "delivered")
    assert {step["step"] for step in message.journey["steps"]} == {1, 2, 3, 4, 5, 6}
    assert "Hello" in message.html


def test_greylisting_delays_it(graph, internet, clock):
    internet.domain("gmail.com").rcpt().reply("451 4.7.1 later", times=1)
    asyncio.run(shop.send_by_graph("From Graph", "joe@gmail.com"))
    graph.settle()
    assert internet.messages() == []
    clock.advance(minutes=5)
    assert internet.domain("gmail.com").wait_for(subject="From Graph").recipients == [
        "joe@gmail.com"
    ]
