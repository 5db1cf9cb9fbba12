"""Output for people: aligned, bounded, without terminal escape sequences."""

import json

import pytest
from msgspec import convert, to_builtins

from relay.base.message.envelope import Client
from relay.operation.cli.output import (
    journey_lines,
    print_json,
    print_lines,
    recipient_lines,
    step_lines,
)
from relay.operation.cli.queue import entry_lines
from relay.operation.cli.trace import diagnosis
from relay.store.journeys.document import Journey, JourneyStep, Recipient
from relay.store.journeys.wording import describe

AT = "2026-11-20T09:11:43.766123Z"


def step(number, name, at=AT, **detail):
    return JourneyStep(number, name, at, detail)


def recipient(address, state="delivered", reply="", attempts=()):
    tried = {"at": AT, "host": "", "outcome": "", "status": "", "reply": "", "tls": ""}
    found = {"address": address, "state": state, "next_hop": "local", "reply": reply}
    return convert(found | {"attempts": [tried | one for one in attempts]}, Recipient)


def journey(*, steps=(), recipients=(), state="delivered", subject="Hello"):
    return Journey(
        id="q1", graph_id="g1", submission_id="g1.1", message_id="<m@x>",
        sender="alice@example.test", subject=subject, state=state,
        client=Client().as_json(), steps=tuple(steps), recipients=tuple(recipients),
    )  # fmt: skip


def entry(number, state="deferred", due="2026-11-20T10:00:00.000000Z", people=1, **more):
    return {
        "id": f"q{number}", "entry": 1, "sender": "a@x.test", "next_hop": "mx:b.test",
        "state": state, "due": due, "attempts": 3, "size": 12, "recipients":
        to_builtins([recipient(f"u{n}@b.test", state, "451 4.7.1 later") for n in range(people)]),
        **more,
    }  # fmt: skip


def test_a_journey_has_a_headline_steps_and_recipients_in_columns():
    found = journey(
        steps=[
            step(1, "created", folder="drafts"),
            step(
                5, "policy and routing", rules=[{"rule": "tag", "outcome": "subject_prefix"}],
                next_hops={"local": ["bob@x.test"]},
                refused=[{"address": "no@x.test", "reply": "550 5.1.1 no such user"}],
            ),
        ],
        recipients=[recipient("bob@x.test"), recipient("no@x.test", "failed", "550 5.1.1 no")],
        state="failed",
    )  # fmt: skip
    assert journey_lines(found) == [
        'q1  "Hello"  alice@example.test -> bob@x.test, no@x.test  FAILED (1 of 2)',
        " 1 created            09:11:43.766Z  folder drafts",
        ' 5 policy and routing 09:11:43.766Z  rule "tag": subject_prefix',
        "                                     local: bob@x.test",
        "                                     refused: no@x.test 550 5.1.1 no such user",
        "   no@x.test   failed     550 5.1.1 no",
        "   bob@x.test  delivered",
    ]


def test_an_attempt_names_recipient_outcome_and_host():
    people = [{"address": "a@x.test", "outcome": "relayed", "reply": "250 2.0.0 Ok"}]
    lines = step_lines(step(6, "delivery", recipients=people, host="mx1.x.test"))
    assert lines[0].endswith("  a@x.test relayed by mx1.x.test: 250 2.0.0 Ok")


def test_an_attempt_that_held_its_entry_says_why():
    people = [{"address": "a@x.test", "outcome": "deferred", "reply": "451 4.3.0 cannot be read"}]
    lines = step_lines(step(6, "delivery", recipients=people, held="release it when it is back"))
    assert [line.strip() for line in lines[1:]] == ["held: release it when it is back"]


def test_a_step_that_counts_its_recipients_is_shown_as_it_is():
    assert step_lines(step(3, "converted", size=302, recipients=2))[0].endswith(
        "size 302, recipients 2"
    )


def test_steps_of_more_than_one_day_have_their_dates():
    later = step(6, "delivery", at="2026-11-21T00:00:01.000000Z")
    lines = journey_lines(journey(steps=[step(1, "created"), later]))
    assert lines[1] == " 1 created            2026-11-20 09:11:43.766Z"
    assert lines[2] == " 6 delivery           2026-11-21 00:00:01.000Z"


@pytest.mark.parametrize("nasty", ["\x1b]0;pwned\x07", "\x9b31m", "\u202e", "a\r\nb", "\udcff"])
def test_nothing_of_a_message_reaches_the_terminal_as_a_command(nasty, capsys):
    found = journey(
        subject=nasty,
        steps=[step(1, "created", folder=nasty), step(5, "x", next_hops={nasty: [nasty]})],
        recipients=[recipient(nasty, reply=nasty)],
    )
    lines = [*journey_lines(found), *entry_lines([entry(1, sender=nasty)])]
    print_lines(lines)
    printed = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert len(printed) == len(lines)
    assert all(line.isprintable() for line in [*printed, *diagnosis(found, [])])


def test_a_thousand_recipients_fit_on_a_screen_with_failures_first():
    people = [recipient(f"u{n}@x.test") for n in range(999)]
    failed = recipient("bad@x.test", "failed", "550 no")
    names = [one.address for one in people]
    found = journey(
        recipients=[*people, failed], steps=[step(5, "policy", next_hops={"local": names})]
    )
    lines = journey_lines(found)
    assert len(lines) < 30
    assert "bad@x.test" in lines[2]
    assert lines[-1] == "   and 980 more: 980 delivered"
    assert max(map(len, lines)) < 200


@pytest.mark.parametrize(("tries", "ending"), [(0, "5.4.7 late"), (1, "late"), (2, "(2 attempts)")])
def test_expiry_is_no_attempt(tries, ending):
    attempts = [{"outcome": "deferred"}] * tries + [{"outcome": "expired"}]
    (line,) = recipient_lines([recipient("u@x.test", "expired", "5.4.7 late", attempts)])
    assert line.endswith(ending)


def test_an_event_counts_recipients_it_does_not_name():
    names = [f"u{n}@x.test" for n in range(100)]
    refused = [{"address": name, "reply": "550 no"} for name in names]
    counts = {"local": 1000, "refused": 300}
    lines = [*describe(5, {"next_hops": {"local": names}, "refused": refused, "counts": counts})]
    assert lines[0].endswith("u4@x.test and 995 more")
    assert lines[-1] == "and 295 more"


def test_a_rule_that_was_skipped_says_why():
    hit = {"rule": "r", "mode": "enforce", "outcome": "error", "recipients": [], "error": "broken"}
    assert list(describe(5, {"rules": [hit]})) == ['rule "r": skipped: broken']


def test_entries_are_printed_as_a_table():
    assert entry_lines([entry(1), entry(22, "captured", due=None, people=2)]) == [
        "ID     STATE     BYTES  ATTEMPTS  NEXT ATTEMPT (UTC)   SENDER -> NEXT HOP",
        "q1-1   deferred     12         3  2026-11-20 10:00:00  a@x.test -> mx:b.test",
        "    u0@b.test  deferred   451 4.7.1 later",
        "q22-1  captured     12         3  -                    a@x.test -> mx:b.test",
        "    u0@b.test  captured   451 4.7.1 later",
        "    u1@b.test  captured   451 4.7.1 later",
        "2 entries, 3 recipients: 1 deferred, 1 captured",
    ]
    assert entry_lines([]) == ["0 entries, 0 recipients"]


def test_an_entry_without_its_message_does_not_look_like_a_report():
    lost, report = entry_lines([entry(1, sender=None, size=None), entry(2, sender="")])[1:6:3]
    assert lost.split() == [
        "q1-1", "deferred", "-", "3", "2026-11-20", "10:00:00", "?", "->", "mx:b.test",
    ]  # fmt: skip
    assert "<> -> mx:b.test" in report
    remark = "    its message is lost: see relay storage verify"
    assert remark in entry_lines([entry(1, sender=None, size=None)])
    assert remark not in entry_lines([entry(2, sender="")])


@pytest.mark.parametrize(
    ("found", "entries", "expected"),
    [
        (
            journey(steps=[step(2, "notified")], recipients=[recipient("b@x.test", "queued")]),
            [],
            [
                "it is at step 2 (notified): pickup has not converted it yet",
                "b@x.test waits for its first attempt",
            ],
        ),
        (
            journey(
                steps=[step(6, "delivery")],
                recipients=[
                    recipient("u0@b.test", "deferred", "451", [{"host": "mx1.b.test"}]),
                    recipient("done@b.test"),
                ],
            ),
            [entry(1)],
            [
                "it is at step 6 (delivery): delivery was attempted",
                "u0@b.test will be retried at 10:00:00Z, 1 attempt so far, the last by mx1.b.test: 451",
            ],
        ),
        (
            journey(
                steps=[step(5, "policy and routing")], recipients=[recipient("c@x", "captured")]
            ),
            [],
            [
                "it is at step 5 (policy and routing): routed, but no delivery was attempted yet",
                "c@x is captured by a route",
            ],
        ),
    ],
    ids=["not picked up", "deferred", "captured"],
)
def test_a_diagnosis_names_the_step_and_the_reason(found, entries, expected):
    assert diagnosis(found, entries) == expected


def test_an_unsaved_original_has_no_folder():
    assert list(describe(4, {"folder": None, "queue_id": "q1"})) == ["not kept, queue_id q1"]
    assert list(describe(4, {"folder": "sentitems", "queue_id": "q1"})) == [
        "folder sentitems, queue_id q1"
    ]


def test_names_of_files_are_any_octets_and_the_output_is_text(capsys):
    name = "\udcff\x1b[31m\nb.toml"
    print_json({"file": name})
    assert json.loads(capsys.readouterr().out) == {"file": "?\x1b[31m\nb.toml"}
    print_lines([f"{name}: ok", "2"])
    assert capsys.readouterr().out == "??[31m?b.toml: ok\n2\n"
