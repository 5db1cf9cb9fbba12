"""Mail that a rule holds, in a real relay: it waits, it is released, refused, or its hold ends."""

import json
import smtplib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import relay_starts
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

ALICE = "alice@example.test"
STRANGER = "127.0.0.9"
RULES = """
[[rule]]
name = "offers"
when = { subject = "offer*" }
then = [ { hold = "the sales manager reads it first" } ]
expires = "5d"
notice = '''Your message waits,
until the sales manager has read it.'''

[[rule]]
name = "short"
when = { subject = "short*" }
then = [ { hold = "soon over" } ]
expires = "1s"

[[rule]]
name = "secret"
when = { subject = "secret*" }
then = [ { hold = "soon over, and nobody hears of it" } ]
expires = "1s"
expired = "silent"

[[rule]]
name = "elsewhere"
when = { subject = "*, redirected" }
then = [ { cc = "copy@b.test" }, { redirect = "instead@b.test" } ]
"""


@pytest.fixture
def remotes() -> Iterator[Remotes]:
    with Remotes() as remotes:
        yield remotes


def letter(subject: str) -> bytes:
    return f"Subject: {subject}\r\n\r\nHello.\r\n".encode()


def by_smtp(relay: RelayProcess, subject: str, to: str) -> str:
    return relay.submit(ALICE, [to], letter(subject))


def by_graph(relay: RelayProcess, subject: str, to: str) -> str:
    return relay.send_mail(subject=subject, to=[to])


def by_sendmail(relay: RelayProcess, subject: str, to: str) -> str:
    place = {"RELAY_SENDMAIL": "{}:{}".format(*relay.smtp_address())}
    done = relay_starts.run(
        [*relay_starts.RELAY, "sendmail", "-i", f"-f{ALICE}", to], cwd=relay.folder,
        env=relay_starts.environment(relay.folder) | place,
        stdin=f"Subject: {subject}\n\nHello.\n", timeout_s=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (one,) = until("queued", lambda: [one for one in relay.queue() if one["subject"] == subject])
    return str(one["id"])


WAYS = {"smtp": by_smtp, "graph": by_graph, "sendmail": by_sendmail}


def held(relay: RelayProcess) -> list[dict[str, Any]]:
    return list(relay.cli_json("queue", "list", "--state", "held"))


def last_report(journey: dict[str, Any]) -> dict[str, Any]:
    return [step["detail"] for step in journey["steps"] if step["step"] == 7][-1]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_held_mail_waits_over_restarts_and_a_release_delivers_it(remotes: Remotes, way) -> None:
    host = remotes.start("b.test")
    routes = [{"name": "slow", "domain": "b.test", "next_hop": "hold"}]
    config = {"route": [*routes, {"domain": "*", "next_hop": "mx"}]}
    with remotes.relay(config=config, policies={"rules.toml": RULES}) as relay:
        name = way(relay, "offer", "x@b.test")
        relay.until_state(name, "held")
        (shown,) = held(relay)
        expected = (ALICE, "offer", "offers", "the sales manager reads it first")
        assert (shown["sender"], shown["subject"], shown["rule"], shown["reason"]) == expected
        assert shown["since"]
        notices = until("the notice", relay.maildir)
        (notice,) = [one for one in notices if str(one["subject"]).startswith("Held: ")]
        assert (notice["return-path"], notice["auto-submitted"]) == ("<>", "auto-replied")
        text = notice.get_payload(0).get_payload(0).get_payload(decode=True).decode()
        assert "Your message waits, until the sales manager has read it." in text
        assert last_report(relay.journey(name))["kind"] == "held"
        relay.restart()
        relay.kill()
        relay.start()
        relay.cli("queue", "reroute", "--all", "--to", "default")
        (again,) = held(relay)
        names = ("rule", "reason", "since", "expires", "state")
        assert [again[one] for one in names] == [shown[one] for one in names]
        listed = relay.cli("queue", "list").stdout
        assert 'held by rule "offers": the sales manager reads it first, since ' in listed
        assert "subject: offer" in listed
        relay.cli("queue", "release", again["id"])
        assert relay.until_final(name)["state"] == "relayed"
        (got,) = host.received("x@b.test")
        assert b"Subject: offer\r\n" in got.content
        assert relay.subjects() == ["Held: offer"]
        assert relay.faults() == []


def test_both_expiries_and_a_cancel_with_a_report(remotes: Remotes) -> None:
    host = remotes.start("b.test")
    with remotes.relay(policies={"rules.toml": RULES}) as relay:
        reported = relay.submit(ALICE, ["x@b.test"], letter("short"))
        silent = relay.submit(ALICE, ["x@b.test"], letter("secret"))
        refused = relay.submit(ALICE, ["x@b.test"], letter("offer"))
        stranger = relay.submit(
            "s@other.test", ["bob@example.test"], letter("offer"), source=STRANGER
        )
        both = relay.submit(ALICE, ["x@b.test"], letter("secret, redirected"))
        relay.restart()  # the start looks when the next entry is due
        for one in (reported, silent, both):
            relay.until_final(one)
        assert relay.journey(reported)["state"] == "expired"
        (ended,) = [
            step["detail"] for step in relay.journey(silent)["steps"] if "expired" in step["detail"]
        ]
        assert (ended["rule"], ended["silent"]) == ("secret", True)
        assert all(step["step"] != 7 for step in relay.journey(silent)["steps"])
        report = last_report(relay.journey(reported))
        assert (report["kind"], report["to"]) == ("failure", ALICE)
        until("the copy of cc", lambda: host.received("copy@b.test"))  # it leaves at once
        # what a redirect leads to was held as well, and has ended with its hold
        assert relay.states(both) == {"x@b.test": "redirected"}
        until("only offers are left", lambda: len(held(relay)) == 2)
        relay.cli("queue", "cancel", refused, "--bounce", "--text", "not at that price")
        assert relay.journey(refused)["state"] == "cancelled"
        relay.cli("queue", "cancel", stranger, "--bounce")
        wanted = ["Held: offer", "Undeliverable: offer", "Undeliverable: short"]
        until("the reports", lambda: relay.subjects() == wanted)
        (text,) = [str(one) for one in relay.maildir() if one["subject"] == wanted[1]]
        assert "not at that price" in text
        (text,) = [str(one) for one in relay.maildir() if one["subject"] == wanted[2]]
        assert "it was held, and not released in time" in text
        assert "Rule: short" in text
        assert [*host.received("x@b.test"), *host.received("instead@b.test")] == []
        assert not relay.subjects("bob")
        until("nothing is left", lambda: not relay.queue())
        assert relay.metric("relay_queue_unaccounted") == 0
        assert relay.faults() == []


def test_rules_hold_no_more_than_held_max(remotes: Remotes) -> None:
    remotes.start("b.test")
    config = {"policy": {"held_max": 2}}
    with remotes.relay(config=config, policies={"rules.toml": RULES}) as relay:
        names = [relay.submit(ALICE, ["x@b.test"], letter("offer")) for _ in range(2)]
        for _ in range(2):
            with relay.smtp() as session, pytest.raises(smtplib.SMTPDataError) as refused:
                session.sendmail(ALICE, ["x@b.test"], letter("offer"))
            assert (refused.value.smtp_code, refused.value.smtp_error[:5]) == (452, b"4.3.1")
        lines = [one for one in relay.log.splitlines() if "rules hold as much" in one]
        assert len(lines) == 1
        assert json.loads(lines[0])["rule"] == "offers"
        relay.restart()
        submitted = by_graph(relay, "offer", "x@b.test")  # has its 202, and waits
        relay.until_state(submitted, "converting")
        relay.submit(ALICE, ["y@b.test"], letter("another"))
        assert len(held(relay)) == 2
        relay.cli("queue", "release", names[0])
        relay.until_state(submitted, "held")
        assert len(held(relay)) == 2
