"""Mail that a rule holds, in a real relay: it waits, it is released, refused, or its hold ends."""

from collections.abc import Iterator
from typing import Any

import pytest

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


def held(relay: RelayProcess) -> list[dict[str, Any]]:
    return list(relay.cli_json("queue", "list", "--state", "held"))


def last_report(journey: dict[str, Any]) -> dict[str, Any]:
    return [step["detail"] for step in journey["steps"] if step["step"] == 7][-1]


def test_held_mail_waits_over_restarts_and_a_release_delivers_it(remotes: Remotes) -> None:
    host = remotes.start("b.test")
    routes = [{"name": "slow", "domain": "b.test", "next_hop": "hold"}]
    config = {"route": [*routes, {"domain": "*", "next_hop": "mx"}]}
    with remotes.relay(config=config, policies={"rules.toml": RULES}) as relay:
        name = relay.send_mail(subject="offer", to=["x@b.test"])
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
