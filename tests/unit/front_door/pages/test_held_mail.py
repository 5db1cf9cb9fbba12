"""Mail that a rule holds, on the page of the queue; the clock of a development relay ends the hold."""

import httpx

from relay.testing import Relay
from tests.unit.front_door.pages.conftest import plain

RULES = """
[[rule]]
name = "offers"
when = { subject = "offer*" }
then = [ { hold = "the manager reads it first" } ]
expires = "5d"
"""


def test_it_shows_sender_subject_rule_reason_and_since() -> None:
    with Relay(policies={"rules": RULES}) as relay:
        message = relay.send("alice@example.test", ["bob@b.test"], "offer <b>one</b>", "Hello.")

        def page() -> str:
            return plain(httpx.get(f"{relay.http_url}/queue?state=held", trust_env=False).text)

        relay.settle()
        text = page()
        for shown in (
            "alice@example.test",
            "offer <b>one</b>",
            'rule "offers": the manager reads it first',
            "none, held since ",
        ):
            assert shown in text
        relay.clock.advance(days=4)  # longer than new mail is attempted
        assert "offer" in page()
        relay.clock.advance(days=1)
        message.wait_for_bounce(timeout=20)
        assert "Nothing in the queue meets these conditions" in page()
        assert message.bounce.status == "5.4.7"
