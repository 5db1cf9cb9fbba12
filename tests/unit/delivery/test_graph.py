"""Delivery by Microsoft Graph: once, whatever answers are lost; who gets it; what each answer means."""

import asyncio
from random import Random

import pytest
from msgspec.structs import replace

from relay.base.message.content import LargeContent
from relay.base.message.envelope import Envelope, ForwardPath
from relay.base.message.nexthop import HopKind, NextHop
from relay.base.message.outcome import Deferred, Failed, Indeterminate, Peer, Relayed
from relay.base.message.tls_policy import TlsPolicy
from relay.delivery.graph import request as graph_request
from relay.delivery.graph.connection import open_graph
from relay.delivery.graph.outcomes import outcome_of
from relay.delivery.http_connection import HttpAnswer
from relay.delivery.smtp.connect import ConnectError, GraphOptions, Target, TokenError
from relay.delivery.smtp.connection import Timeouts
from relay.delivery.smtp.transaction import Transaction
from relay.transport.routing.route_table import Credentials
from tests.support.fake_graph import FakeGraph, error
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row
from tests.support.tls import authority, certificate

__all__ = ["authority", "certificate"]
QUICK = Timeouts(connect_s=2, command_s=2, dot_s=2)
LOGIN = Credentials("o'hara@a.test", oauth="m365")
SECONDS_US = 1_000_000
MESSAGE = b"Message-ID: <o'1@a.test>\r\nTo: r0@x.test, r1@x.test, eve@e.test\r\n\r\nbody\r\n"


async def get_token(_login, use, refused) -> str:
    assert use is HopKind.GRAPH
    return "token" if refused != "token" else "token2"


async def opened(graph, *, token=get_token, options=None, **fields):
    fields = {"host": graph.host, "tls": TlsPolicy("none")} | fields
    options = options or GraphOptions(confirm=True, mime_max=2000)
    target = Target(address=graph.host, port=graph.port, login=LOGIN, graph=options, **fields)
    return await open_graph(
        target, get_token=token, proxy=None, timeouts=QUICK, real_s=lambda: 0.0
    )


class Spooled:
    """A claim: its live recipients by number, and the requests that are durable."""

    def __init__(self, clock, count, content=MESSAGE) -> None:
        self.clock, self.content = clock, content
        self.live = {number: f"r{number}@x.test" for number in range(count)}
        self.requests, self.recipients, self.ended = (), (), set()
        self.now_us = clock.queue_us
        self.outcomes = {}
        self._before = 0

    async def note(self, requests, *, new=False) -> None:
        self.requests, self._before = tuple(requests), self._before + new

    async def message_id(self, given) -> str:
        return f"<{self._before}@relay.test>" if self._before else given

    async def attempt(self, session) -> list[object]:
        """Attempt all that are live, as OutboundSession does; return the outcomes."""
        self.ended, self.outcomes = set(), {}
        left = tuple(self.live)
        while left:
            self.recipients = left
            paths = tuple(ForwardPath(self.live[number]) for number in left)
            result = await session.transact(
                Transaction(Envelope("a@a.test"), paths, self.content, graph=self)
            )
            self.outcomes |= {left[index]: one for index, one in result.outcomes.items()}
            for number, outcome in self.outcomes.items():
                if isinstance(outcome, Relayed | Failed):
                    self.live.pop(number, None)
            left = tuple(left[index] for index in result.again)
        return [self.outcomes[number] for number in sorted(self.outcomes)]


async def world(seed: int) -> None:
    """One message with faults at random requests, attempted until all is relayed."""
    rng, clock = Random(seed), ManualClock()
    faults = ["lost before", "lost after", "late", "stop", error(503, ""), error(404, "x")]
    faults += [error(429, "ApplicationThrottled"), error(403, "ErrorAccessDenied"), *[""] * 8]
    async with FakeGraph(clock.queue_us) as graph:
        claim = Spooled(clock, rng.randint(1, 5))
        expected = sorted(claim.live.values())
        for number in range(60):
            session = await opened(graph)
            attempt = asyncio.create_task(claim.attempt(session))

            def fault(_method, path, task=attempt, quiet=number > 12):
                chosen = "" if quiet else rng.choice(faults)
                if chosen == "stop":
                    task.cancel()
                    return rng.choice(["lost before", "lost after"])
                is_real = not isinstance(chosen, tuple) or path.endswith(("/send", "/messages"))
                return chosen if is_real else ""

            graph.fault = fault
            await asyncio.gather(attempt, return_exceptions=True)
            session.close()
            assert attempt.cancelled() or not attempt.exception()
            if not claim.live:
                break
            for item in graph.in_folder("drafts"):  # a person
                item.folder = rng.choice(["drafts"] * 9 + ["deleteditems"])
            clock.now_us += rng.choice([20, 70, 150, 700]) * SECONDS_US
        assert not claim.live
        clock.now_us += 700 * SECONDS_US
        graph.settle()
        assert sorted(one for item in graph.sent for one in item.recipients) == expected
        assert not graph.in_folder("drafts")


@pytest.mark.parametrize("first", range(0, 300, 50))
async def test_each_recipient_gets_it_once_whatever_answers_are_lost(first, monkeypatch) -> None:
    monkeypatch.setattr(graph_request, "RECIPIENTS_MAX", 2)
    for seed in range(first, first + 50):
        try:
            await world(seed)
        except BaseException as failure:
            failure.add_note(f"seed {seed}")
            raise
