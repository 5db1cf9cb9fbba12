"""Answers to reports: which are kept, and that none causes a report."""

import pytest

from relay.base.accounts.account import DEAD_LETTER
from relay.base.message.envelope import Envelope, ForwardPath, Notify
from relay.base.message.lifecycle import RecipientState
from relay.base.message.verdict import RecipientVerdict, Verdict
from relay.base.observe.metrics import Metrics
from relay.transport.ingress.fanout import fan_out
from relay.transport.ingress.forwarding import expand_recipients
from relay.transport.ingress.message_limits import ANSWER_BYTES_MAX, ANSWERS_PER_HOUR, AnswerLimit
from relay.transport.routing.routing_result import LocalRecipient
from tests.support.manual_clock import ManualClock

ANN = Envelope("ann@example.test")


def test_so_many_answers_are_kept_in_an_hour() -> None:
    clock, metrics = ManualClock(), Metrics()
    limit = AnswerLimit(clock, metrics)
    assert limit.why_discarded(Envelope(""), 100)
    assert limit.why_discarded(ANN, ANSWER_BYTES_MAX + 1)
    assert [limit.why_discarded(ANN, 100) for _ in range(ANSWERS_PER_HOUR)] == [""] * 100
    assert limit.why_discarded(ANN, 100) == "over 100 answers to reports in an hour"
    clock.advance(3661)
    assert limit.why_discarded(ANN, ANSWER_BYTES_MAX) == ""
    samples = metrics.answers_discarded.collect()[0].samples
    counted = {one.labels["reason"]: one.value for one in samples if one.name.endswith("_total")}
    assert counted == {"null-sender": 1, "size": 1, "rate": 1}


@pytest.mark.parametrize("why", ["", "too many"])
def test_an_answer_never_causes_a_report(why: str) -> None:
    wanted = frozenset({Notify.SUCCESS, Notify.FAILURE})
    paths = [ForwardPath("MAILER-DAEMON@relay.test", wanted), ForwardPath("bob@a.test", wanted)]
    found = [LocalRecipient(DEAD_LETTER, is_answer=True), LocalRecipient("bob@a.test")]
    verdict = Verdict(tuple(RecipientVerdict(one.address) for one in paths), (), (None,), ())
    recipients = expand_recipients(paths, lambda _: None)
    fan = fan_out(
        recipients,
        found,
        verdict,
        examine=lambda *_: found[0],
        expand=lambda _: None,
        sender_of=lambda *_: "unused",
        answers_discarded=why,
    )
    kept = {one.path.address: one.path.notify for entry in fan.entries for one in entry.recipients}
    expected = {"bob@a.test": wanted}
    if why:
        (discarded,) = fan.final_recipients
        assert (discarded.state, discarded.reply) == (RecipientState.DISCARDED, why)
    else:
        expected["MAILER-DAEMON@relay.test"] = frozenset({Notify.NEVER})
    assert kept == expected
