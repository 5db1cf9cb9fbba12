"""Output for people: aligned, bounded, without terminal escape sequences."""

import json

import pytest
from msgspec import convert, to_builtins

from relay.base.message.envelope import Client
from relay.operation.cli.output import journey_lines, print_json, print_lines
from relay.operation.cli.queue import entry_lines
from relay.operation.cli.trace import diagnosis
from relay.store.journeys.document import Journey, JourneyStep, Recipient

AT = "2026-11-20T09:11:43.766123Z"


def step(number, name, at=AT, **detail):
    return JourneyStep(number, name, at, detail)


def recipient(address, state="delivered", reply="", attempts=()):
    tried = {"at": AT, "host": "", "outcome": "", "status": "", "reply": "", "tls": ""}
    found = {"address": address, "state": state, "next_hop": "local", "reply": reply}
    return convert(found | {"attempts": [tried | one for one in attempts]}, Recipient)


def journey(*, steps=(), recipients=(), state="delivered", subject="Hello"):
    return Journey(
        id="q1",
        graph_id="g1",
        submission_id="g1.1",
        message_id="<m@x>",
        sender="alice@example.test",
        subject=subject,
        state=state,
        client=to_builtins(Client()),
        steps=tuple(steps),
        recipients=tuple(recipients),
    )


def entry(number, state="deferred", due="2026-11-20T10:00:00.000000Z", people=1, **more):
    return {
        "id": f"q{number}",
        "entry": 1,
        "sender": "a@x.test",
        "next_hop": "mx:b.test",
        "state": state,
        "due": due,
        "attempts": 3,
        "size": 12,
        "recipients": to_builtins(
            [recipient(f"u{n}@b.test", state, "451 4.7.1 later") for n in range(people)]
        ),
        **more,
    }


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


def test_names_of_files_are_any_octets_and_the_output_is_text(capsys):
    name = "\udcff\x1b[31m\nb.toml"
    print_json({"file": name})
    assert json.loads(capsys.readouterr().out) == {"file": "?\x1b[31m\nb.toml"}
    print_lines([f"{name}: ok", "2"])
    assert capsys.readouterr().out == "??[31m?b.toml: ok\n2\n"


def test_an_alias_does_not_count_among_the_recipients_of_a_state():
    alias = to_builtins(recipient("r@x.test", "redirected")) | {"successors": ["ann@x.test"]}
    people = convert([alias, to_builtins(recipient("ann@x.test"))], list[Recipient])
    assert "DELIVERED (" not in "".join(journey_lines(journey(recipients=people)))
