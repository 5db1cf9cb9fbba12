"""Delivery by Microsoft Graph: once, whatever answers are lost; who gets it; what each answer means."""

import asyncio
import email
from itertools import count, product
from random import Random

import pytest
from msgspec.structs import replace

from relay.base.message.envelope import Envelope, ForwardPath
from relay.base.message.nexthop import HopKind
from relay.base.message.outcome import DeferralClass, Deferred, Failed, Indeterminate, Peer, Relayed
from relay.base.message.tls_policy import TlsPolicy
from relay.base.observe.metrics import Metrics
from relay.delivery.content_cache import ContentCache
from relay.delivery.graph import connection as graph_connection
from relay.delivery.graph.claim_requests import GraphTransaction
from relay.delivery.graph.connection import open_graph
from relay.delivery.graph.outcomes import outcome_of
from relay.delivery.http_connection import HttpResponse
from relay.delivery.smtp.connect import ConnectError, Target, TokenError
from relay.delivery.smtp.connection import Timeouts
from relay.store.journeys.wording import describe
from relay.store.spool.types import NO_EXTRA, CloudRequest
from relay.transport.routing.mx_hosts import Host, Hosts, Unprotected
from relay.transport.routing.routes import Credentials, GraphOptions, HopOptions
from relay.transport.routing.usable_hosts import with_tls
from relay.transport.signing.signer import Signer
from tests.support.dkim import DkimKeys
from tests.support.fake_graph import OTHERS_ID, FakeGraph, Item, error
from tests.support.journeys import states
from tests.support.manual_clock import ManualClock
from tests.support.receiver import Receiver
from tests.support.sample_reports import report
from tests.support.tables import each_row
from tests.support.tls import authority, certificate

__all__ = ["authority", "certificate"]
TIMEOUTS = Timeouts()
LOGIN = Credentials("o'hara@a.test", oauth="m365")
SECONDS_US = 1_000_000
MESSAGE = b"Message-ID: <o'1@a.test>\r\nTo: r0@x.test, r1@x.test, eve@e.test\r\n\r\nbody\r\n"

REPORT = report()


async def get_token(_login, use, refused) -> str:
    assert use is HopKind.GRAPH
    return "token" if refused != "token" else "token2"


async def opened(graph, *, token=get_token, options=None, **fields):
    fields = {"host": graph.host, "tls": TlsPolicy("none"), "login": LOGIN} | fields
    options = options or GraphOptions(confirm=True, mime_max=2000)
    target = Target(address=graph.host, port=graph.port, graph=options, **fields)
    return await open_graph(
        target, get_token=token, proxy=None, timeouts=TIMEOUTS, real_s=lambda: 0.0
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def graph(clock):
    async with FakeGraph(clock.queue_us) as running:
        yield running


class Spooled:
    """A claim: its live recipients by number, and the requests that are durable."""

    def __init__(self, clock, count, content=MESSAGE, sender="a@a.test") -> None:
        self.clock, self.content, self.sender = clock, content, sender
        self.live = {number: f"r{number}@x.test" for number in range(count)}
        self.noted, self.recipients, self.only_ask = NO_EXTRA, (), False
        self.size, self.is_sending = len(content), False
        self.outcomes, self.ever_lost = {}, set()
        self.step = bool  # whether it ends here

    @property
    def requests(self):
        return self.noted.requests

    @requests.setter
    def requests(self, requests) -> None:
        self.noted = replace(self.noted, requests=requests)

    async def note(self, noted) -> None:
        self._end_here()
        self.noted = noted
        self._end_here()

    def _end_here(self) -> None:
        if self.step():
            raise asyncio.CancelledError

    async def message_id(self, given) -> str:
        before = self.noted.requests_before
        return f"<{before}@relay.test>" if before or not given else given

    async def attempt(self, session) -> list[object]:
        """Attempt all that are live, as OutboundSession does; return the outcomes."""
        self.outcomes = {}
        self.ever_lost |= {message_id for _, message_id in self.noted.lost_posts}
        left = tuple(self.live)
        while left:
            self.recipients = left
            paths = tuple(ForwardPath(self.live[number]) for number in left)
            result = await session.transact(
                GraphTransaction(Envelope(self.sender), paths, self.content, requests=self)
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
        bad = [number for number in claim.live if rng.random() < 0.2]
        claim.live |= {number: f"bad{number}@x.test" for number in bad}
        expected = sorted(address for address in claim.live.values() if address[0] == "r")
        for number in range(60):
            session = await opened(graph)
            attempt = asyncio.create_task(claim.attempt(session))

            def fault(_method, path, task=attempt, quiet=number > 12):
                chosen = "" if quiet else rng.choice(faults)
                if chosen == "late":  # and so is the answer
                    clock.now_us += 115 * SECONDS_US
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
        leaves_no_trace(graph, claim)


def faulty(end: str, fault):
    """A fault of each POST whose path has this end."""
    return lambda method, path: fault if method == "POST" and path.endswith(end) else ""


def leaves_no_trace(graph, claim) -> None:
    """Others have what they had; of ours, only drafts of lost POSTs are left."""
    assert {name: graph.items.get(name) for name in graph.others} == graph.others
    assert {item.message_id for item in graph.in_folder("drafts")} <= claim.ever_lost


@pytest.mark.parametrize("first", range(0, 200, 50))
async def test_each_recipient_gets_it_once_whatever_answers_are_lost(first, monkeypatch) -> None:
    monkeypatch.setattr(graph_connection, "RECIPIENTS_MAX", 2)
    for seed in range(first, first + 50):
        try:
            await world(seed)
        except BaseException as failure:
            failure.add_note(f"seed {seed}")
            raise


async def killed(graph, claim, moment: int) -> bool:
    """Attempt a claim, and end it at this request or write; return whether there were as many."""
    session, steps = await opened(graph), count()
    task = asyncio.create_task(claim.attempt(session))

    def step() -> bool:
        if is_now := next(steps) == moment:
            task.cancel()
        return is_now

    claim.step = step
    graph.fault = lambda *_: "lost before" if step() else "lost after" if step() else ""
    await asyncio.gather(task, return_exceptions=True)
    session.close()
    claim.step = bool
    return task.cancelled()


@each_row(
    "before, moments",
    [
        (None, 8),
        (("/send", "lost before"), 6),
        (("/send", "lost after"), 4),
        (("/messages", "lost after"), 8),
    ],
)
async def test_a_kill_at_any_moment_is_no_second_copy(before, moments) -> None:
    for moment, is_report in product(range(moments + 1), (False, True)):
        clock = ManualClock()
        async with FakeGraph(clock.queue_us) as graph:
            claim = Spooled(clock, 1, REPORT, "") if is_report else Spooled(clock, 1)
            if before is not None:
                await attempt(graph, claim, faulty(*before))
                clock.now_us += 150 * SECONDS_US
            assert await killed(graph, claim, moment) == (moment < moments)
            while claim.live:
                clock.now_us += 150 * SECONDS_US
                await attempt(graph, claim)
            assert len(graph.sent) == 1
            assert (b"\r\nX-Relay-Report: " in graph.sent[0].mime) == is_report
            leaves_no_trace(graph, claim)


@each_row(
    "options, requests",
    [
        ({}, ["POST messages", "POST send"]),
        ({"mime_max": 5}, ["POST messages", "POST send"]),  # never converted
        ({"confirm": False}, ["POST sendMail"]),
        ({"confirm": False, "mime_max": 5}, ["POST sendMail"]),
    ],
)
async def test_a_report_leaves_as_mail_of_the_mailbox(options, requests) -> None:
    clock = ManualClock()
    async with FakeGraph(clock.queue_us) as graph:
        claim = Spooled(clock, 1, REPORT, "")
        (outcome,), asked = await attempt(graph, claim, **{"mime_max": 9000} | options)
        assert (type(outcome), asked) == (Relayed, requests)
        [sent] = graph.sent
        found = email.message_from_bytes(sent.mime)
        assert (found["From"], found["To"]) == (
            "Mail Delivery System <o'hara@a.test>",
            "r0@x.test",
        )
        assert found["Message-ID"] == "<01jd3q8zreport00.dsn@relay.example.com>"
        last = "message.txt" if "mime_max" in options else "message.eml"
        assert [part.get_filename() for part in found.get_payload()] == [None, "details.txt", last]
        assert not outcome.evidence.left_out


@each_row(
    "status, code, fields, kind, enhanced, pause_s",
    [
        (200, "", {}, "failed", "5.3.4", 0),
        (400, "ErrorInvalidRecipients", {}, "failed", "5.1.3", 0),
        (400, "ErrorMessageSizeExceeded", {}, "failed", "5.3.4", 0),
        (400, "ErrorMimeContentInvalidBase64String", {}, "failed", "5.6.0", 0),
        (400, "ErrorUnheardOf", {}, "site", "4.3.0", 0),
        (401, "InvalidAuthenticationToken", {}, "auth", "4.7.8", 0),
        (403, "ErrorAccessDenied", {}, "auth", "4.7.0", 0),
        (403, "ErrorSendAsDenied", {}, "failed", "5.7.1", 0),
        *[(status, "ErrorQuotaExceeded", {}, "site", "4.2.2", 0) for status in (403, 413)],
        (404, "ErrorInvalidUser", {}, "auth", "4.7.0", 0),
        (404, "MailboxNotEnabledForRESTAPI", {}, "auth", "4.7.0", 0),
        (404, "ResourceNotFound", {}, "auth", "4.7.0", 0),
        (413, "", {}, "failed", "5.3.4", 0),
        (429, "ApplicationThrottled", {"retry-after": "17"}, "site", "4.3.2", 17),
        (429, "MailboxConcurrency", {"retry-after": "9" * 9}, "site", "4.3.2", 3600),
        *[(status, "", {}, "site", "4.3.0", 0) for status in (500, 502, 504)],
        (502, "", {"retry-after": "7"}, "site", "4.3.0", 7),
        (503, "", {"retry-after": "x"}, "site", "4.3.0", 0),
        (503, "", {"retry-after": f"27 Nov 2026 10:01 +{'9' * 17}"}, "site", "4.3.0", 0),
        (
            503,
            "",
            {
                "retry-after": "Fri, 27 Nov 2026 10:01:00 GMT",
                "date": "Fri, 27 Nov 2026 10:00:00 GMT",
            },
            "site",
            "4.3.0",
            60,
        ),
    ],
)
def test_what_each_answer_means(status, code, fields, kind, enhanced, pause_s) -> None:
    body = b'{"error": {"code": "%b", "message": "a\\nb"}}' % code.encode() if code else b"<html>"
    outcome = outcome_of(HttpResponse(status, {"request-id": "r1"} | fields, body), Peer("g.test"))
    assert (outcome.kind if isinstance(outcome, Deferred) else "failed") == kind
    evidence = outcome.evidence
    assert (evidence.status, evidence.pause_s, evidence.remote) == (enhanced, pause_s, True)
    said = f" {code}: a\\nb" if code else ""
    assert evidence.reply.startswith(f"HTTP {status}{said} (request-id r1)")


def test_a_body_of_any_shape_is_an_answer_without_a_code() -> None:
    for body in (b"\xff", b'{"error": "denied"}', b'{"error": {"inner": ' + b"[" * 100_000):
        outcome = outcome_of(HttpResponse(400, {}, body), Peer("g.test"))
        assert (outcome.evidence.reply, outcome.kind) == ("HTTP 400", DeferralClass.SITE)


async def attempt(graph, claim, fault=lambda _method, _path: "", **options):
    """Attempt a claim once; return the outcomes, and the requests."""
    graph.fault, before = fault, len(graph.asked)
    session = await opened(
        graph, options=GraphOptions(**{"confirm": True, "mime_max": 2000} | options)
    )
    outcomes = await claim.attempt(session)
    session.close()
    return outcomes, [
        f"{method} {path.rpartition('/')[2]}" for method, path in graph.asked[before:]
    ]


async def test_a_draft_for_others_is_deleted_and_a_message_is_made_for_who_is_left(
    graph, clock
) -> None:
    claim = Spooled(clock, 3)
    throttled = error(429, "ApplicationThrottled", retry_after="20")
    outcomes, _ = await attempt(graph, claim, lambda _, path: throttled if "/send" in path else "")
    assert {one.evidence.pause_s for one in outcomes} == {20}
    del claim.live[1]
    outcomes, asked = await attempt(graph, claim)
    assert [type(one) for one in outcomes] == [Relayed, Relayed]
    assert [one.split("%")[0] for one in asked[1:4]] == ["GET id", "DELETE id", "POST messages"]
    assert graph.sent[0].recipients == ["r0@x.test", "r2@x.test"]
    assert graph.sent[0].message_id == "<1@relay.test>"
    leaves_no_trace(graph, claim)


async def test_others_get_the_message_where_graph_refuses_a_recipient(graph, clock) -> None:
    claim = Spooled(clock, 5)
    claim.live[3] = "bad@x.test"
    outcomes, _ = await attempt(graph, claim)
    assert [type(one) for one in outcomes] == [Relayed, Relayed, Relayed, Failed, Relayed]


@each_row(
    "end, fault, is_dated",
    [
        *[("/messages", fault, True) for fault in ("lost before", "lost after", error(503, ""))],
        *[("/send", fault, True) for fault in ("lost before", "lost after", error(504, ""))],
        ("/send", "lost before", False),
    ],
)
async def test_what_another_sent_is_not_taken_for_ours(end, fault, is_dated) -> None:
    clock = ManualClock()
    async with FakeGraph(clock.queue_us) as graph:
        claim, graph.is_dated = Spooled(clock, 1), is_dated
        await attempt(graph, claim, faulty(end, fault))
        assert bool(claim.requests) == (end == "/send")
        if claim.requests:  # once more, with an id that is not found
            clock.now_us += 150 * SECONDS_US
            (outcome,), _ = await attempt(
                graph,
                claim,
                lambda _, path: error(404, "ErrorItemNotFound") if "id" in path else "",
            )
            assert isinstance(outcome, Relayed) == (fault == "lost after")
            if isinstance(outcome, Deferred):
                assert "looked for" in outcome.evidence.reply
        if claim.live:
            (outcome,), _ = await attempt(graph, claim)
            assert isinstance(outcome, Relayed)
        assert [item.recipients for item in graph.sent] == [["r0@x.test"]]
        leaves_no_trace(graph, claim)


async def test_a_404_of_a_gateway_does_not_say_that_the_draft_is_gone(graph, clock) -> None:
    claim = Spooled(clock, 1)
    await attempt(graph, claim, faulty("/send", "lost before"))
    clock.now_us += 150 * SECONDS_US
    mime = b"Message-ID: " + claim.requests[0].message_id.encode() + b"\r\n\r\n"
    kept = Item(mime, "sentitems", created_us=clock.now_us, is_draft=False)  # by IMAP
    graph.items["kept"] = kept
    page = (404, b"<html>", {})
    (outcome,), _ = await attempt(graph, claim, lambda _, path: page if "/id" in path else "")
    assert isinstance(outcome, Deferred)
    (outcome,), _ = await attempt(graph, claim)
    assert isinstance(outcome, Relayed)
    assert len(graph.sent) == 1


async def test_each_send_has_a_wait_of_its_own_from_the_loss_of_its_answer(graph, clock) -> None:
    async def after(seconds: int, fault=""):
        clock.now_us += seconds * SECONDS_US
        (outcome,), asked = await attempt(graph, claim, faulty("/send", fault))
        (request,) = claim.requests
        return type(outcome), (request.sent_us, request.lost_us), asked[-1].endswith("send")

    claim, began_us = Spooled(clock, 1), clock.now_us
    session = await opened(graph)
    task = asyncio.create_task(claim.attempt(session))
    graph.fault = lambda _, path: "lost before" if "/send" in path and task.cancel() else ""
    await asyncio.gather(task, return_exceptions=True)
    session.close()
    assert (claim.requests[0].sent_us, claim.requests[0].lost_us) == (began_us, 0)
    noted = (began_us, began_us + 300 * SECONDS_US)
    assert await after(300) == (Deferred, noted, False), "the first that finds it notes it"
    assert await after(119) == (Deferred, noted, False)
    refused = error(429, "ApplicationThrottled")
    assert await after(2, refused) == (Deferred, noted, True), "it is as it was before"
    again = (clock.now_us, clock.now_us)
    assert await after(0, "lost before") == (Deferred, again, True)
    assert await after(119) == (Deferred, again, False)
    assert (await after(2))[0] is Relayed


@each_row(
    "prior, seconds, expected, drafts",
    [
        (faulty("/messages", "lost before"), 0, None, 0),
        (faulty("/send", error(429, "")), 0, None, 0),
        (faulty("/send", "lost before"), 0, Deferred, 1),
        (faulty("/send", "lost before"), 121, None, 0),
        (faulty("/send", "lost after"), 0, Deferred, 0),
        (faulty("/send", "lost after"), 121, Relayed, 0),
        (faulty("/send", error(404, "ErrorItemNotFound")), 601, None, 0),
    ],
)
async def test_with_an_order_it_is_only_asked(prior, seconds, expected, drafts) -> None:
    clock = ManualClock()
    async with FakeGraph(clock.queue_us) as graph:
        claim = Spooled(clock, 2)
        await attempt(graph, claim, prior)
        claim.only_ask, made = True, len(graph.sent)
        clock.now_us += seconds * SECONDS_US
        outcomes, asked = await attempt(graph, claim)
        assert [type(one) for one in outcomes] == [expected] * (2 if expected else 0)
        assert len(graph.in_folder("drafts")) == drafts
        assert not any(one.startswith("POST") for one in asked)
        assert len(graph.sent) == made


async def test_a_draft_in_the_mailbox_of_another_login_is_left_there(graph, clock) -> None:
    claim = Spooled(clock, 1)
    await attempt(graph, claim, faulty("/send", error(429, "")))
    claim.requests = (replace(claim.requests[0], mailbox="former@a.test"),)
    (outcome,), asked = await attempt(graph, claim)
    assert isinstance(outcome, Relayed)
    assert asked == ["POST messages", "POST send"]


async def test_an_older_release_did_not_say_when_the_draft_was_made(graph, clock) -> None:
    claim = Spooled(clock, 1)
    claim.requests = (CloudRequest(LOGIN.user, OTHERS_ID, (0,), 1, draft="gone", sent_us=1),)
    (outcome,), _ = await attempt(graph, claim)
    assert "so it was sent" in outcome.evidence.reply
    assert not graph.sent


async def test_what_is_seen_nowhere_is_looked_for_then_made_again(graph, clock) -> None:
    claim = Spooled(clock, 1)
    await attempt(graph, claim, lambda _, path: "lost before" if "/send" in path else "")
    graph.items = {**graph.others}  # a person has removed the draft for good
    kinds = []
    for _ in range(3):
        (outcome,), _ = await attempt(graph, claim)
        kinds.append((type(outcome), getattr(outcome, "unanswered", None)))
        clock.now_us += 600 * SECONDS_US
    assert kinds == [(Deferred, None), (Indeterminate, True), (Relayed, None)]
    assert len(graph.sent) == 1


@each_row(
    "options, content, fault, expected",
    [
        ({"confirm": False}, b"To: x\r\n\r\n" + b"x" * 2000, "", (Failed, "5.3.4")),
        ({}, MESSAGE, (200, {}, {}), (Failed, "5.3.4")),
        ({}, MESSAGE, (201, {"id": ".."}, {}), (Deferred, "4.4.2")),
        ({"confirm": False}, MESSAGE, "", (Relayed, "2.0.0")),
        ({"confirm": False}, MESSAGE, "lost after", (Indeterminate, "4.4.2")),
        ({"confirm": False}, MESSAGE, error(504, ""), (Indeterminate, "4.3.0")),
        ({"confirm": False}, MESSAGE, error(503, "", retry_after="3"), (Deferred, "4.3.0")),
        ({"confirm": False}, MESSAGE, error(403, "ErrorSendAsDenied"), (Failed, "5.7.1")),
    ],
)
async def test_one_request_and_its_outcome(options, content, fault, expected) -> None:
    clock = ManualClock()
    async with FakeGraph(clock.queue_us) as graph:
        claim = Spooled(clock, 1, content)
        (outcome,), asked = await attempt(graph, claim, lambda *_: fault, **options)
        assert (type(outcome), outcome.evidence.status) == expected
        assert len(asked) <= 1
        assert not claim.requests
        assert not graph.in_folder("drafts")


@pytest.mark.parametrize("fault", [error(429, ""), error(401, "")])
async def test_a_request_without_effect_leaves_its_message_id_free(graph, clock, fault) -> None:
    claim = Spooled(clock, 1)
    (outcome,), _ = await attempt(graph, claim, lambda *_: fault)
    assert (type(outcome), claim.requests) == (Deferred, ())
    await attempt(graph, claim, lambda *_: "")
    assert [item.message_id for item in graph.sent] == ["<o'1@a.test>"]


async def test_a_refused_token_and_a_closed_connection_are_replaced(graph, clock) -> None:
    session = await opened(graph)
    graph.token = "token2"
    assert isinstance((await Spooled(clock, 1).attempt(session))[0], Relayed)
    assert session.is_open
    graph.hang_up()
    async with asyncio.timeout(120):
        while session.is_open:
            await asyncio.sleep(0)
    assert isinstance((await Spooled(clock, 1).attempt(session))[0], Relayed)
    session.close()


async def test_the_words_of_the_host_stay_where_no_further_token_is_to_be_had() -> None:
    async def token(_login, _use, refused) -> str:
        if refused:
            raise TokenError("the host refuses new tokens as well", error="invalid_token")
        return "token"

    async with FakeGraph(ManualClock().queue_us) as graph:
        session = await opened(graph, token=token)
        graph.token = "another"
        (outcome,) = await Spooled(ManualClock(), 1).attempt(session)
    expected = "HTTP 401 InvalidAuthenticationToken: said Graph (request-id r1); the host refuses"
    assert outcome.evidence.reply.startswith(expected)
    session.close()


async def test_no_evidence_repeats_the_token() -> None:
    token = "tok-4f1c9a7be0d2-and-more"

    async def get_long_token(*_) -> str:
        return token

    escaped = "".join(f"\\u{ord(letter):04x}" for letter in token)
    long = "x" * 280 + token  # it is cut
    async with FakeGraph(ManualClock().queue_us) as graph:
        graph.token = token
        for code, words in ((f"E{token}", "x"), ("E", escaped), ("E", long)):
            body = f'{{"error": {{"code": "{code}", "message": "{words}"}}}}'.encode()
            answer = 403, body, {"request-id": token}
            graph.fault = lambda *_, answer=answer: answer
            session = await opened(graph, token=get_long_token)
            [outcome] = await Spooled(ManualClock(), 1).attempt(session)
            assert outcome.evidence.reply.startswith("HTTP 403 E")
            assert outcome.evidence.reply.endswith(" (request-id ...)")
            assert token[:16] not in outcome.evidence.reply
            session.close()


async def refused(graph, **fields):
    with pytest.raises(ConnectError) as failure:
        await opened(graph, **fields)
    return failure.value.outcome.kind, failure.value.outcome.evidence.reply


async def test_a_token_goes_to_the_host_of_a_verified_name_alone(authority, certificate) -> None:
    names = authority.issue("DNS:localhost")
    policy = TlsPolicy("verify", ca=authority.certificate)

    async def no_token(*_) -> str:
        raise TokenError("AADSTS7000222: the secret has expired")

    async with FakeGraph(lambda: 0, names.server_context()) as graph:
        session = await opened(graph, host="localhost", tls=policy)
        assert (session.peer.tls[:3], session.peer.session.verified) == ("TLS", "name")
        await session.quit()
        kind, reply = await refused(graph, host="graph.test", tls=policy)
        assert (kind, "not graph.test" in reply) == ("tls", True)
        kind, reply = await refused(
            graph, host="localhost", tls=replace(policy, ca=certificate.certificate)
        )
        assert (kind, "in the route's ca" in reply) == ("tls", True)
        assert (await refused(graph, host="graph.test"))[0] == "tls"
        assert await refused(graph, token=no_token) == (
            "auth",
            "AADSTS7000222: the secret has expired",
        )
        graph.hang_up()
    assert (await refused(graph))[0] == "connect"
    with Receiver() as plain:
        assert (await refused(plain, host="localhost", tls=policy))[0] == "connect"  # no TLS there
    assert not graph.asked


def routed(delivery, graph, *, mime_max=2_000_000) -> None:
    """All mail goes to this Graph."""
    host = Host(graph.host, 0, (graph.host,), graph.port)
    delivery.table.hosts[graph.host] = Hosts((host,))
    delivery.table.limits[graph.host] = {"login": LOGIN, "graph": GraphOptions(mime_max=mime_max)}
    delivery.table.hop = lambda _address, _domain: f"graph://{graph.host}:{graph.port}"

    async def connect(target, *, ehlo_name, timeouts, real_s):
        return await open_graph(
            target, get_token=get_token, proxy=None, timeouts=timeouts, real_s=real_s
        )

    delivery.connect = connect


async def test_parts_of_500_recipients_each_get_it_once(delivery, monkeypatch) -> None:
    monkeypatch.setattr(graph_connection, "LOOKED_FOR_US", SECONDS_US // 4)
    everyone = [f"r{number}@x.test" for number in range(700)]
    content = f"To: {', '.join(everyone[::2])},\r\n eve@e.test\r\n\r\nbody\r\n".encode()
    async with FakeGraph(lambda: 0) as graph:
        away = iter(["", error(503, "")])
        graph.fault = lambda method, path: (
            "" if path[-9:] != "/messages" or method == "GET" else next(away, "")
        )
        routed(delivery, graph)
        await delivery.start()
        journey = await delivery.done(
            await delivery.send(*everyone, contents=(content,), notify="SUCCESS")
        )
    assert set(states(journey).values()) == {"relayed"}
    assert [len(item.recipients) for item in graph.sent] == [500, 200]
    assert sorted(one for item in graph.sent for one in item.recipients) == sorted(everyone)
    assert {len(one.attempts) for one in journey.recipients[:500]} == {1}
    detail = next(one for one in journey.steps if one.step == 6)
    assert detail.detail["left_out"] == ["eve@e.test"]
    told = [
        one for kind, people in delivery.reporter.reported if kind == "relayed" for one in people
    ]
    assert sorted(told) == sorted(everyone)


async def test_a_lost_draft_is_made_again_at_once_and_deleted_after_the_result(delivery) -> None:
    async with FakeGraph(lambda: 0) as graph:
        lost = iter(["lost after", "lost after", error(503, "")])
        graph.fault = lambda method, path: (
            next(lost, "") if (method, path[-9:]) == ("POST", "/messages") else ""
        )
        routed(delivery, graph)
        await delivery.start()
        content = f"Message-ID: {OTHERS_ID}\r\n\r\n".encode()
        queue_id = await delivery.send("a@x.test", contents=(content,), message_id=OTHERS_ID)
        journey = await delivery.done(queue_id)
        assert set(states(journey).values()) == {"relayed"}
        while delivery.scheduler.drafts.looks:
            await asyncio.sleep(0.01)
        journey = await delivery.spool.journey(queue_id)
    (draft,) = graph.in_folder("drafts")
    assert draft.message_id == OTHERS_ID, "whose draft that is, is not known"
    *_, named, removed = [line for one in journey.steps for line in describe(one.step, one.detail)]
    assert f"a draft may be left in Drafts: Message-ID {OTHERS_ID} of " in named
    assert removed.startswith(f"delete drafts by relay, deleted: <{queue_id}.")
    (deleted,) = graph.in_folder("deleteditems")
    assert deleted.message_id.startswith(f"<{queue_id}.")
    assert {name: graph.items.get(name) for name in graph.others} == graph.others


async def test_retry_after_pauses_the_mailbox(delivery) -> None:
    async with FakeGraph(lambda: 0) as graph:
        graph.fault = lambda *_: error(429, "ApplicationThrottled", retry_after="900")
        routed(delivery, graph)
        await delivery.start()
        await delivery.send("a@x.test")
        await delivery.changed.get()
        await delivery.send("b@x.test")
        await delivery.changed.get()
        assert len(graph.asked) == 1
        assert [one.provider for one in delivery.scheduler.sites.paused()] == ["Retry-After"]


@each_row("vouched", [True, False])
def test_requiretls_leaves_where_the_route_vouches_for_the_name(vouched) -> None:
    host = Hosts((Host("graph.microsoft.com", 0, ("192.0.2.1",), 443),))
    via = HopOptions(
        TlsPolicy("verify", implicit=True), LOGIN, requiretls=vouched, graph=GraphOptions()
    )
    resolved = with_tls(host, via, "route x", demand="requiretls")
    assert isinstance(resolved, Hosts if vouched else Unprotected)


def test_our_own_signature_leaves_the_copy(tmp_path) -> None:
    ring = DkimKeys.made(tmp_path, {("a.test", "s1"): "ed25519"}).ring
    signer = Signer(lambda: ring, clock=ManualClock(), metrics=Metrics())
    cache = ContentCache(None, budget_bytes=1, signer=signer)
    others = b"DKIM-Signature: v=1; d=a.test; s=s2; b=x\r\nTo: b@b.test\r\n\r\nDKIM-Signature: d=a.test\r\n"
    own = b"DKIM-Signature: v=1; a=ed25519-sha256; d=a.test;\r\n\ts=s1; b=x\r\n"
    assert cache.without_own_signatures(b"Delivered-To: c@c.test\r\n" + own + others) == (
        b"Delivered-To: c@c.test\r\n" + others
    )
