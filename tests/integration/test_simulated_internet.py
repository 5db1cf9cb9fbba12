"""`relay dev` and its simulated internet: each test recipient ends as it says, and nothing goes beyond loopback."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.support.dev_process import DevProcess
from tests.support.graph_client import people
from tests.support.long_tests import long
from tests.support.relay_process import until
from tests.support.reports import report_about, reports_of
from tests.support.traced_dev import traced_dev

SENDERS = {"graph": "alice", "smtp": "bob"}
PROGRAMS = {**SENDERS, "swaks": "carol"}  # what sends, and as whom

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
    "temperror@two.test": ("4.3.0", "451 "),
}
DELIVERIES = {  # recipient: outcomes of the attempts
    "x+451x1@four.test": ["deferred", "relayed"],
    "x+slow2@five.test": ["relayed"],
    "x+tls@six.test": ["relayed"],
    "success@simulator.amazonses.com": ["relayed"],
    "delivered@resend.dev": ["relayed"],
}


@pytest.fixture(scope="module")
def relay() -> Iterator[DevProcess]:
    with DevProcess() as started:
        yield started


def send(relay: DevProcess, way: str, *recipients: str) -> str:
    """Send one message; return its id."""
    sender = PROGRAMS[way]
    if way == "smtp":
        return relay.submit(f"{sender}@example.test", recipients)
    if way == "swaks":
        return send_by_swaks(relay, f"{sender}@example.test", recipients)
    return relay.send_mail(token=sender, toRecipients=people(*recipients))


def send_by_swaks(relay: DevProcess, sender: str, recipients: Sequence[str]) -> str:
    swaks = shutil.which("swaks")
    if swaks is None:
        pytest.skip("swaks is not installed")
    host, _, port = relay.ready["submission"][0].rpartition(":")
    command = [swaks, "--server", host, "--port", port, "--from", sender]
    done = subprocess.run(
        [*command, "--to", ",".join(recipients), "--tls"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    [queue_id] = re.findall(r"queued as (\S+)", done.stdout)
    return str(queue_id)


def of_recipient(journey: dict[str, Any], address: str) -> dict[str, Any]:
    [found] = [one for one in journey["recipients"] if one["address"] == address]
    return dict(found)


@pytest.mark.parametrize("way", PROGRAMS)
def test_recipients_that_bounce_are_reported_to_the_sender(relay: DevProcess, way: str) -> None:
    journey = relay.until_final(send(relay, way, *BOUNCES))
    for address, (status, reply) in BOUNCES.items():
        found = of_recipient(journey, address)
        assert (found["state"], found["status"]) == ("failed", status), address
        assert reply in found["reply"]
        report = report_about(relay, address, person=PROGRAMS[way])
        fields = report.recipients[address]
        assert (fields["action"], fields["status"]) == ("failed", status)
        assert reply in fields["diagnostic-code"]
        assert fields["remote-mta"] == f"dns; mx1.{address.rpartition('@')[2]}"


@pytest.mark.parametrize("way", PROGRAMS)
def test_recipients_that_are_refused_for_now_wait(relay: DevProcess, way: str) -> None:
    journey = relay.until_state(send(relay, way, *DEFERRALS), "deferred")

    def waiting() -> dict[str, Any] | None:
        found = relay.journey(journey["id"])
        return found if all(one["attempts"] for one in found["recipients"]) else None

    journey = until("each has been tried", waiting)
    for address, (status, reply) in DEFERRALS.items():
        found = of_recipient(journey, address)
        assert (found["state"], found["status"]) == ("deferred", status), address
        assert reply in found["reply"]


@pytest.mark.parametrize("way", PROGRAMS)
def test_recipients_that_are_accepted_can_be_read(relay: DevProcess, way: str) -> None:
    journey = relay.until_final(send(relay, way, *DELIVERIES))
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
    report = report_about(relay, address, person=SENDERS[way])
    assert report.about["reporting-mta"] == "dns; mx1.seven.test"
    assert report.recipients[address]["status"] == "5.1.1"
    assert report.message["return-path"] == "<>"
    found = of_recipient(until("it is joined", lambda: _reported(relay, key)), address)
    assert (found["state"], found["reported"]["kind"]) == ("relayed", "failure")
    assert found["reported"]["by"] == "remote"
    assert found["reported"]["source"] == {
        "client": "127.0.0.1", "reporting_mta": "mx1.seven.test"
    }  # fmt: skip
    claim = "mx1.seven.test [127.0.0.1] claims that it was not delivered"
    assert relay.cli("trace", key).stdout.count(claim) == 2  # the answer and step 7
    assert relay.request("GET", f"/messages/{key}").body.decode().count(claim) == 2


def _reported(relay: DevProcess, key: str) -> dict[str, Any] | None:
    """The journey, once its recipient has a report."""
    journey = relay.journey(key)
    return journey if journey["recipients"][0]["reported"] else None


def advance(relay: DevProcess, seconds: float) -> None:
    headers = {"Authorization": "Bearer alice", "Content-Type": "application/json"}
    body = json.dumps({"advance_s": seconds}).encode()
    answer = relay.request("POST", "/relay/v1/dev/clock", body, headers, timeout_s=90)
    assert answer.status == 200, answer.body


@pytest.fixture
def fresh() -> Iterator[DevProcess]:
    """A relay of its own, whose clock is advanced."""
    with DevProcess() as started:
        yield started


LATER = {  # local part: state after two minutes, outcomes of the attempts
    "grey": ("relayed", ["deferred", "relayed"]),  # or once more, before the ten seconds are over
    "451x2": ("relayed", ["deferred", "deferred", "relayed"]),
    "451x1": ("relayed", ["deferred", "relayed"]),
    "slow100": ("relayed", ["relayed"]),
}
NEVER = {"graph": ("drop", "4.4.2"), "smtp": ("full", "4.2.2")}  # local part, status


def both_about(relay: DevProcess, address: str, person: str) -> list[tuple[str, str]] | None:
    """Actions and statuses of the reports about `address`, once there are two."""
    blocks = [one.recipients.get(address) for one in reports_of(relay, person)]
    found = sorted((one["action"], one["status"]) for one in blocks if one is not None)
    return found if len(found) >= 2 else None


@long
def test_retries_of_two_days_take_an_advance_of_the_clock(fresh: DevProcess) -> None:
    def sent_to(way: str, tag: str) -> tuple[str, str]:
        address = f"{way}+{tag}@{tag}.test"
        return send(fresh, way, address), address

    sent = {(way, tag): sent_to(way, tag) for way in SENDERS for tag in (*LATER, "later550")}
    never = {way: sent_to(way, tag) for way, (tag, _) in NEVER.items()}
    for key, address in [*sent.values(), *never.values()]:
        if "slow" not in address and "later" not in address:
            fresh.until_state(key, "deferred")
    advance(fresh, 130)
    for (_, tag), (key, address) in sent.items():
        found = of_recipient(fresh.journey(key), address)
        outcomes = [one["outcome"] for one in found["attempts"]]
        if tag == "grey" and len(outcomes) > 2:
            outcomes.remove("deferred")
        assert (found["state"], outcomes) == LATER.get(tag, ("relayed", ["relayed"])), tag
    for way, sender in SENDERS.items():
        key, address = never[way]
        found = of_recipient(fresh.journey(key), address)
        assert (found["state"], found["status"]) == ("deferred", NEVER[way][1])
        [report] = reports_of(fresh, sender)
        assert set(report.recipients) == {f"{way}+later550@later550.test"}
    advance(fresh, 3 * 86_400)
    for way, sender in SENDERS.items():
        key, address = never[way]
        found = of_recipient(fresh.journey(key), address)
        assert found["state"] == "expired"
        assert len(found["attempts"]) > 40
        told = until("both have come", lambda a=address, p=sender: both_about(fresh, a, p))
        assert told == [("delayed", NEVER[way][1]), ("failed", "5.4.7")]


def test_other_mail_stays_captured(relay: DevProcess) -> None:
    recipients = ["x@one.test", "x550@one.test", "x+tag@gmail.com"]
    journey = relay.until_state(relay.submit("alice@example.test", recipients), "captured")
    assert {one["state"] for one in journey["recipients"]} == {"captured"}


FULL_GMAIL = b"""
[[domain]]
name = "gmail.com"
mx = [{ host = "mx1.gmail.com" }, { host = "mx2.gmail.com", preference = 20 }]
reply = [{ verb = "RCPT", reply = "452 4.2.2 over quota" }, { verb = "CONNECT", action = "drop" }]
"""


@pytest.mark.interop
def test_no_connection_goes_beyond_loopback() -> None:
    with traced_dev() as relay:
        scenario = relay.graph(
            "PUT", "/relay/v1/dev/internet", FULL_GMAIL,
            headers={"Content-Type": "application/toml"},
        )  # fmt: skip
        assert scenario.status == 200, scenario.body
        recipients = [*BOUNCES, *DEFERRALS, *DELIVERIES, "x@gmail.com", "x+later550@b.test"]
        send(relay, "graph", *recipients)
        send(relay, "smtp", "x@gmail.com", "x+later550@b.test")
        held = relay.submit("alice@example.test", ["someone@elsewhere.test"])
        relay.until_state(held, "captured")
        for hop in (
            "smtp://192.0.2.1:25",
            "smtp://smtp.elsewhere.test:25",
            "smtps://[2001:db8::1]:465",
        ):
            done = relay.cli("queue", "reroute", held, "--to", hop)
            assert done.returncode == 64
            assert "connects to loopback only" in done.stderr
        done = relay.cli("queue", "reroute", held, "--to", "mx")
        assert done.returncode == 0, done.stderr
        relay.until_state(held, "relayed")
        for sender in SENDERS.values():
            report_about(relay, "x+later550@b.test", person=sender)
        advance(relay, 600)
        assert relay.metric("relay_attempts_total", outcome="deferred") > 15
        hosts = relay.stop_and_see_hosts()
    assert len(hosts) > 8, "the name server and a host for each domain"
