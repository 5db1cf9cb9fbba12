"""The journey of a message as a page shows it, of journeys that a relay has recorded."""

import smtplib
from email.message import EmailMessage
from typing import Any

import httpx
import pytest
from msgspec import convert
from msgspec.structs import replace

from relay.base.clock import rfc3339, time_us_of
from relay.front_door.pages.journey_view import JourneyView, journey_view
from relay.store.journeys.document import Attempt, Journey, JourneyStep
from relay.store.journeys.journey import join
from relay.store.journeys.submission_log import SubmissionFacts, SubmissionRecord
from relay.store.journeys.wording import describe, tls_words
from relay.testing import Relay
from tests.support.tables import each_row

ALICE, BOB = "alice@example.test", "bob@example.test"
RULES = """
[[rule]]
name = "no executables"
when = { attachment_name = "*.exe" }
then = [ { reject = "5.7.1 no programs" } ]

[[rule]]
name = "to the archive"
when = { subject = "redirect*" }
then = [ { redirect = "bob@example.test" } ]

[[rule]]
name = "spam"
when = { subject = "junk*" }
then = [ { quarantine = true } ]
"""


@pytest.fixture(scope="module")
def shared():
    with Relay(policies={"10-test.toml": RULES}) as relay:
        yield relay


@pytest.fixture
def relay(shared):
    shared.reset()
    return shared


def call(relay: Relay, method: str, path: str, body: Any = None) -> Any:
    headers = {"authorization": f"Bearer {relay.operator_token}"}
    answer = httpx.request(method, f"{relay.http_url}{path}", json=body, headers=headers)
    assert answer.is_success, answer.text
    return answer.json() if answer.content else None


def journey_of(relay: Relay, key: str) -> Journey:
    return convert(call(relay, "GET", f"/relay/v1/messages/{key}"), Journey)


def view_of(relay: Relay, key: str) -> JourneyView:
    journey = journey_of(relay, key)
    entries = call(relay, "GET", f"/relay/v1/queue?id={journey.id}") if journey.id else []
    return journey_view(journey, entries)


def sent(relay: Relay, to: str | list[str], subject: str = "Hello", **more: Any) -> JourneyView:
    message = relay.send(ALICE, to, subject, "text", **more)
    relay.settle()
    return view_of(relay, message.journey["id"])


def posted(relay: Relay, **properties: Any) -> JourneyView:
    """A message to bob, sent as properties."""
    message = {"subject": "Hello", "toRecipients": [{"emailAddress": {"address": BOB}}]}
    answer = httpx.post(
        f"{relay.http_url}/v1.0/me/sendMail",
        json={"message": message | properties},
        headers={"authorization": f"Bearer {relay.token(ALICE)}"},
    )
    relay.settle()
    return view_of(relay, answer.headers["x-relay-message-id"])


def states(view: JourneyView) -> list[str]:
    assert [one.number for one in view.steps] == [1, 2, 3, 4, 5, 6, 7]
    assert not [one.fact for one in view.steps if len(one.fact) > 20 or "@" in one.fact]
    return [str(one.state) for one in view.steps]


def lines(view: JourneyView, number: int) -> list[str]:
    return [line for event in view.steps[number - 1].events for line in event.lines]


def links(view: JourneyView, number: int) -> list[str]:
    return [text for event in view.steps[number - 1].events for _, text in event.links]


def test_a_delivered_message_has_evidence_in_six_steps_and_needs_no_report(relay):
    view = posted(relay, body={"contentType": "html", "content": "<p>Grüße an alle Kollegen</p>"})
    assert states(view) == ["done"] * 6 + ["skipped"]
    assert [bool(one.began) for one in view.steps] == [True] + [False] * 6
    assert all(one.fact.startswith("+") for one in view.steps[1:6])
    assert view.steps[6].fact == "none due"
    assert links(view, 1) == ["the properties (Graph JSON)"]
    assert "text/html (utf-8, quoted-printable) made" in lines(view, 3)[0]
    assert links(view, 3) == ["the MIME"]
    assert view.journey.key in lines(view, 4)[0]
    assert lines(view, 5) == [f"local: {BOB}"]
    assert lines(view, 6) == [f"{BOB} delivered: 250 2.1.5 delivered to {BOB}"]
    assert view.steps[6].text == "No report was due: no recipient failed."
    assert view.journey.is_final


def test_a_deferred_recipient_says_when_the_next_attempt_is(relay):
    relay.internet.domain("slow.test").rcpt("joe").reply("451 4.3.0 later", times=9)
    view = sent(relay, ["joe@slow.test", BOB])
    assert states(view) == ["done"] * 5 + ["waiting", "waiting"]
    assert (view.steps[5].fact, bool(view.steps[5].until)) == ("1 of 2", True)
    (attempt,) = [event for event in view.steps[5].events if event.next_at]
    assert time_us_of(attempt.next_at) > relay.clock.now.timestamp() * 1e6
    outcome, connection = attempt.lines
    assert outcome == "joe@slow.test deferred by mx1.slow.test: 451 4.3.0 later"
    assert connection.startswith("to [127.")
    assert "TLSv1.3, TLS_" in connection
    assert ", certificate not verified, configuration: opportunistic" in connection
    assert view.recipients[0].facts.address == "joe@slow.test"
    assert "goes to the mail hosts (MX) of slow.test" in view.recipients[0].text


@each_row(
    "tls, verified, policy, words",
    [
        ("TLSv1.3", "name", "mta-sts: verify", "TLSv1.3, name verified, MTA-STS enforce"),
        ("", "none", "mta-sts: verify", "no TLS, MTA-STS enforce"),
        (
            "TLSv1.3",
            "name",
            "requiretls: verify; by mta-sts",
            "TLSv1.3, name verified, REQUIRETLS; by MTA-STS",
        ),
        (
            "TLSv1.3",
            "dane",
            "dane: dane; MX answer not validated",
            "TLSv1.3, TLSA record verified, DANE; MX answer not validated",
        ),
        (
            "TLSv1.2",
            "chain",
            "route a: required; policy overridden by route",
            "TLSv1.2, certificate for another name, route a: required; policy overridden by route",
        ),
        ("", "none", "", "no TLS"),
    ],
)
def test_the_tls_of_an_attempt_in_words(tls, verified, policy, words):
    one = Attempt("", "mx.a.test", "relayed", "2.0.0", "250 ok", tls, verified, policy)
    assert tls_words(one) == words


@each_row(
    "step, detail",
    [(number, {"host": "x", "tls": "x", "client": "x", "route": "x"}) for number in (1, 2, 3, 4, 7)]
    + [(6, {"entry": 1, "attempt": 2, "next_hop": "mx:a.test", "route": "x"})],
)
def test_an_event_says_no_host_tls_or_route_that_is_not_its_subject(step, detail):
    assert list(describe(step, detail)) == []


def test_attempts_with_the_same_reply_are_one(relay):
    rcpt = relay.internet.domain("slow.test").rcpt("joe")
    rcpt.reply("451 4.3.0 later", times=4)
    rcpt.reply("452 4.2.2 full", times=1)
    rcpt.reply("451 4.3.0 later", times=2)
    name = sent(relay, "joe@slow.test").journey.key
    for _ in range(6):
        relay.clock.advance(hours=5)
    view = view_of(relay, name)
    _, same, other, *more = view.steps[5].events
    assert same.lines == ("Attempts 2\u20134: the same reply.",)
    assert same.count == 3
    assert "452 4.2.2 full" in other.lines[0]
    assert len(more) == 3
    (recipient,) = view.recipients
    assert len(recipient.facts.attempts) == 8


def test_an_attempt_names_each_host_that_was_tried(relay):
    site = relay.internet.domain("two.test").mx(("mx1.two.test", 10), ("mx2.two.test", 20))
    site.banner().reply("421 4.3.2 busy", times=1)
    found = lines(sent(relay, "joe@two.test"), 6)
    first, second = (line.removeprefix("tried ") for line in found if line.startswith("tried "))
    assert first.startswith("10 mx1.two.test [127.")
    assert first.endswith("]: 421 4.3.2 busy")
    assert second.startswith("20 mx2.two.test [127.")
    assert second.endswith("]: connected")


def test_a_rule_is_shown_with_the_condition_that_matched(relay):
    view = sent(relay, BOB, attachments=[("setup.exe", b"x")])
    assert states(view) == ["done"] * 4 + ["failed", "skipped", "done"]
    assert lines(view, 5) == [
        'rule "no executables": reject (attachment_name "setup.exe")',
        f"refused: {BOB} 550 5.7.1 no programs",
    ]
    assert view.steps[5].text == "No recipient was left to deliver to after step 5."


def test_a_rule_that_was_skipped_did_not_match():
    hits = [
        {"rule": "a", "mode": "enforce", "outcome": "error", "recipients": [], "error": "broken"},
        {"rule": "b", "mode": "audit", "outcome": "bcc", "recipients": [BOB]},
    ]
    assert list(describe(5, {"rules": hits, "next_hops": {}})) == [
        'rule "a": skipped: broken',
        'rule "b": bcc (audit mode: recorded only)',
    ]


@each_row(
    "detail, lines",
    [
        (
            {
                "dkim": [
                    {"domain": "a.test", "selector": "s1", "algorithm": "rsa-sha256"},
                    {"domain": "a.test", "selector": "s2", "algorithm": "ed25519-sha256"},
                    {"domain": "b.test", "selector": "s1", "algorithm": "rsa-sha256"},
                ]
            },
            ["signed for a.test (s1, s2), b.test (s1)"],
        ),
        ({"unsigned": "the client is not trusted"}, ["not signed: the client is not trusted"]),
        (
            {
                "dkim": [{"domain": "a.test", "selector": "s1", "algorithm": "rsa-sha256"}],
                "unsigned": "no signing key for b.test",
            },
            ["signed for a.test (s1); a copy is not signed: no signing key for b.test"],
        ),
        ({"unsigned": "no signing key is configured"}, []),
        ({}, []),  # of an older version
    ],
)
def test_who_signed_is_in_step_5_where_keys_are_configured(detail, lines):
    assert list(describe(5, detail)) == lines


def test_mail_by_smtp_skips_the_steps_of_a_draft(relay):
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "app@example.test", BOB, "By SMTP"
    mail.set_content("x")
    with smtplib.SMTP(*relay.smtp) as client:
        client.send_message(mail)
    relay.settle()
    view = view_of(relay, "app@example.test")
    assert states(view) == ["skipped"] * 3 + ["done"] * 3 + ["skipped"]
    assert view.steps[2].text == "Nothing to build: the client sent a whole mail."
    assert view.journey.key in lines(view, 4)[0]


def test_steps_whose_history_is_gone_say_so(relay):
    message = relay.send(ALICE, BOB, "Old", "text")
    relay.settle()
    journey = convert(message.journey, Journey)
    late = tuple(one for one in journey.steps if one.step >= 5)
    view = journey_view(replace(journey, steps=late))
    assert states(view) == ["no evidence"] * 4 + ["done", "done", "skipped"]
    assert "No evidence: later steps are recorded" in view.steps[0].text


def before_transport(*steps: tuple[int, dict[str, Any]]) -> Journey:
    facts = SubmissionFacts("a.1", "a", ALICE, ALICE, "<m@x>", "s", recipients=(BOB,))
    made = [JourneyStep(number, "", rfc3339(number), detail) for number, detail in steps]
    found = join(SubmissionRecord(facts, made), None)
    assert found is not None
    return found


@each_row(
    "steps, expected",
    [
        ([(1, {})], "done running waiting waiting waiting waiting waiting"),
        ([(1, {}), (2, {})], "done done running waiting waiting waiting waiting"),
        (
            [(1, {}), (2, {}), (3, {"size": 1, "recipients": 1})],
            "done done done waiting running waiting waiting",
        ),
        ([(1, {}), (2, {"cancelled": "x"})], "done failed skipped skipped skipped skipped skipped"),
        (
            [
                (1, {}),
                (2, {}),
                (3, {"failed": "5.6.3 no"}),
                (7, {"kind": "failure", "to": ALICE, "reply": "5.6.3 no"}),
            ],
            "done done failed skipped skipped skipped done",
        ),
        (
            [
                (1, {}),
                (2, {}),
                (3, {"size": 1, "recipients": 1}),
                (7, {"kind": "failure", "to": ALICE, "reply": "550 5.1.1 no"}),
            ],
            "done done done failed skipped skipped done",
        ),
    ],
)
def test_a_submission_before_transport(steps, expected):
    view = journey_view(before_transport(*steps))
    assert " ".join(states(view)) == expected.replace("no evidence", "no-evidence")
