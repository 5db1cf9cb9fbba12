"""`relay dev` and its simulated internet: each test recipient ends as it says, and nothing goes beyond loopback."""

from typing import Any

import pytest

from tests.support.dev_process import DevProcess
from tests.support.graph_client import people
from tests.support.relay_process import until
from tests.support.reports import report_about

SENDERS = {"graph": "alice", "smtp": "bob"}

BOUNCES = {  # recipient: status and a part of the reply
    "x+550@one.test": ("5.1.1", "550 5.1.1 "),
    "x+554-5.7.1@one.test": ("5.7.1", "554 5.7.1 "),
    "bounce+552+too+big@two.test": ("5.2.2", "552 too big"),
    "permerror@two.test": ("5.1.1", "550 "),
    "rcptto550@two.test": ("5.1.1", "550 "),
    "bounce@simulator.amazonses.com": ("5.1.1", "550 5.1.1 "),
    "suppressionlist@simulator.amazonses.com": ("5.1.1", "550 5.1.1 "),
    "bounced@resend.dev": ("5.1.1", "550 5.1.1 "),
}
DEFERRALS = {  # recipient: status and a part of the reply
    "x+450@one.test": ("4.2.1", "450 4.2.1 "),
    "x+full@one.test": ("4.2.2", "452 4.2.2 "),
    "x+drop@three.test": ("4.4.2", "closed the connection"),
    "temperror@eight.test": ("4.3.0", "451 "),
}
DELIVERIES = {  # recipient: outcomes of the attempts
    "x+451x1@four.test": ["deferred", "relayed"],
    "x+slow2@five.test": ["relayed"],
    "x+tls@six.test": ["relayed"],
    "success@simulator.amazonses.com": ["relayed"],
    "delivered@resend.dev": ["relayed"],
}


@pytest.fixture(scope="module")
def relay(dev_module) -> DevProcess:
    return dev_module("--no-demo")


def send(relay: DevProcess, way: str, *recipients: str) -> str:
    """Send one message; return its id."""
    sender = SENDERS[way]
    if way == "smtp":
        return relay.submit(f"{sender}@example.test", recipients)
    return relay.send_mail(token=sender, toRecipients=people(*recipients))


def of_recipient(journey: dict[str, Any], address: str) -> dict[str, Any]:
    [found] = [one for one in journey["recipients"] if one["address"] == address]
    return dict(found)


@pytest.mark.parametrize("way", SENDERS)
def test_recipients_end_as_they_say(relay: DevProcess, way: str) -> None:
    """Those that bounce are reported to the sender; what others accept can be read."""
    key = send(relay, way, *BOUNCES, *DEFERRALS, *DELIVERIES)
    relay.until_state(key, "deferred")
    relay.advance(20)  # to the next attempt

    def tried() -> dict[str, Any] | None:
        found = relay.journey(key)
        is_tried = [one["attempts"] and one["state"] != "queued" for one in found["recipients"]]
        waits = of_recipient(found, "x+451x1@four.test")["state"] == "deferred"
        return found if all(is_tried) and not waits else None

    journey = until("each has been tried", tried)
    for expected, state in ((BOUNCES, "failed"), (DEFERRALS, "deferred")):
        for address, (status, reply) in expected.items():
            found = of_recipient(journey, address)
            assert (found["state"], found["status"]) == (state, status), address
            assert reply in found["reply"]
    for address, (status, reply) in BOUNCES.items():
        fields = report_about(relay, address, person=SENDERS[way]).recipients[address]
        assert (fields["action"], fields["status"]) == ("failed", status)
        assert reply in fields["diagnostic-code"]
        assert fields["remote-mta"] == f"dns; mx1.{address.rpartition('@')[2]}"
    for address, outcomes in DELIVERIES.items():
        found = of_recipient(journey, address)
        assert [one["outcome"] for one in found["attempts"]] == outcomes, address
        assert {one["tls"] for one in found["attempts"]} == {"TLSv1.3"}
        assert list((relay.mailbox_of(address) / "new").iterdir())


@pytest.mark.parametrize("way", SENDERS)
def test_a_recipient_that_bounces_later_is_reported_by_its_host(
    relay: DevProcess, way: str
) -> None:
    address = f"{way}+later550@seven.test"
    key = send(relay, way, address)
    assert relay.until_final(key)["state"] == "relayed"
    relay.advance(10)
    report = report_about(relay, address, person=SENDERS[way])
    assert report.about["reporting-mta"] == "dns; mx1.seven.test"
    assert report.recipients[address]["status"] == "5.1.1"
    assert report.message["return-path"] == "<>"
    found = of_recipient(until("it is joined", lambda: _reported(relay, key)), address)
    assert (found["state"], found["reported"]["kind"]) == ("relayed", "failure")
    assert found["reported"]["by"] == "remote"
    assert found["reported"]["source"] == {"client": "127.0.0.1", "reporting_mta": "mx1.seven.test"}
    claim = "mx1.seven.test [127.0.0.1] claims that it was not delivered"
    assert relay.cli("trace", key).stdout.count(claim) == 2  # the answer and step 7
    assert relay.request("GET", f"/messages/{key}").body.decode().count(claim) == 2


def _reported(relay: DevProcess, key: str) -> dict[str, Any] | None:
    """The journey, once its recipient has a report."""
    journey = relay.journey(key)
    return journey if journey["recipients"][0]["reported"] else None
