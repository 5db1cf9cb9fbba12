"""Mail that a rule holds, in a real relay: it waits over restarts, and a release delivers it."""

import json
import smtplib

import pytest

from tests.support.relay_process import until
from tests.support.remotes import Remotes

ALICE = "alice@example.test"
RULES = """
[[rule]]
name = "offers"
when = { subject = "offer*" }
then = [ { hold = "the sales manager reads it first" } ]
expires = "5d"
notice = '''Your message waits,
until the sales manager has read it.'''
"""


def test_held_mail_waits_over_restarts_and_a_release_delivers_it(remotes: Remotes, serve) -> None:
    host = remotes.start("b.test")
    routes = [{"name": "slow", "domain": "b.test", "next_hop": "hold"}]
    config = {"route": [*routes, {"domain": "*", "next_hop": "mx"}]}
    relay = serve(remotes, config=config, policies={"rules.toml": RULES})
    name = relay.send_mail(subject="offer", to=["x@b.test"])
    relay.until_state(name, "held")
    (shown,) = relay.cli_json("queue", "list", "--state", "held")
    expected = (ALICE, "offer", "offers", "the sales manager reads it first")
    assert (shown["sender"], shown["subject"], shown["rule"], shown["reason"]) == expected
    assert shown["since"]
    notices = until("the notice", relay.maildir)
    (notice,) = [one for one in notices if str(one["subject"]).startswith("Held: ")]
    assert (notice["return-path"], notice["auto-submitted"]) == ("<>", "auto-replied")
    text = notice.get_payload(0).get_payload(0).get_payload(decode=True).decode()
    assert "Your message waits, until the sales manager has read it." in text
    steps = relay.journey(name)["steps"]
    assert [one["detail"]["kind"] for one in steps if one["step"] == 7] == ["held"]
    relay.restart()
    relay.kill()
    relay.start()
    relay.cli("queue", "reroute", "--all", "--to", "default")
    (again,) = relay.cli_json("queue", "list", "--state", "held")
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


def test_rules_hold_no_more_than_held_max(remotes: Remotes) -> None:
    remotes.start("b.test")
    config = {"policy": {"held_max": 2}}
    with remotes.relay(config=config, policies={"rules.toml": RULES}) as relay:
        names = [
            relay.submit(ALICE, ["x@b.test"], b"Subject: offer\r\n\r\nHello.\r\n") for _ in range(2)
        ]
        for _ in range(2):
            with relay.smtp() as session, pytest.raises(smtplib.SMTPDataError) as refused:
                session.sendmail(ALICE, ["x@b.test"], b"Subject: offer\r\n\r\nHello.\r\n")
            assert (refused.value.smtp_code, refused.value.smtp_error[:5]) == (452, b"4.3.1")
        lines = [json.loads(one) for one in relay.log.splitlines() if "bound is full" in one]
        assert [(line["bound"], line["most"]) for line in lines] == [
            ("mail held by rules", "alice@example.test by the rule offers")
        ]
        assert relay.request("GET", "/readyz").body == b"ready; full: mail held by rules\n"
        relay.restart()
        submitted = relay.send_mail(subject="offer", to=["x@b.test"])  # has its 202, and waits
        relay.until_state(submitted, "converting")
        relay.submit(ALICE, ["y@b.test"], b"Subject: another\r\n\r\nHello.\r\n")
        assert len(relay.cli_json("queue", "list", "--state", "held")) == 2
        relay.cli("queue", "release", names[0])
        relay.until_state(submitted, "held")
        assert len(relay.cli_json("queue", "list", "--state", "held")) == 2
