"""A development relay and its simulated internet, in one process: what remote hosts do with mail."""

import asyncio
import smtplib

import httpx
import pytest

from relay.development import simulated_recipients
from tests.support.development_relay import development_relay

SENDER = "alice@example.test"


@pytest.fixture
async def relay(short_path):
    async with development_relay(short_path / "dev") as relay:
        yield relay


async def send(relay, *recipients, sender=SENDER, options=(), text="hello"):
    at = relay.addresses.smtp

    def submit():
        with smtplib.SMTP(at.host, at.port) as client:
            client.sendmail(
                sender,
                recipients,
                f"Subject: to {recipients[0]}\r\n\r\n{text}\r\n",
                rcpt_options=options,
            )

    await asyncio.to_thread(submit)


def mailbox(relay, address):
    local, _, domain = address.rpartition("@")
    place = relay.folder.path / "mail" / domain / local
    return [one.read_bytes() for kind in ("new", "cur") for one in (place / kind).glob("*")]


async def until(condition):
    async with asyncio.timeout(120):
        while not (found := condition()):
            await asyncio.sleep(0.01)
    return found


async def test_what_a_remote_host_accepts_can_be_read_in_the_mailbox_of_each_recipient(relay):
    await send(relay, "a+slow1@b.test", "A+Slow1+x+later550@B.test")
    [mail] = await until(lambda: relay.internet.received)
    for address in ("a+slow1@b.test", "a+slow1+x+later550@b.test"):
        [copy] = mailbox(relay, address)
        assert copy.startswith(b"Return-Path: <alice@example.test>\r\n")
        assert f"\r\nDelivered-To: {address}\r\n".encode().lower() in copy.lower()
        assert copy.endswith(mail.content)
    assert mail.helo == "relay.example.test"


async def test_a_slow_recipient_and_dropped_connections_stop_no_other_mail_of_the_domain(relay):
    def received():
        return {mail.addresses[0] for mail in relay.internet.received}

    async def arrived(*addresses):
        for address in addresses:
            await send(relay, address)
        await until(lambda: {*addresses} <= received())

    await send(relay, "a+drop@b.test")
    await journeys(relay, lambda one: one["state"] == "deferred")
    await arrived("a+tls@b.test", "b+tls@b.test", "c+tls@b.test", "d+tls@b.test")
    await send(relay, "b+drop@b.test")
    await journeys(relay, lambda one: one["state"] in ("deferred", "relayed"))
    await send(relay, "a+slow10@b.test")
    await arrived(*(f"{number}+tls@b.test" for number in range(10)))
    assert "a+slow10@b.test" not in received()


async def test_the_later_reports_that_wait_are_limited_in_octets(relay, monkeypatch):
    monkeypatch.setattr(simulated_recipients, "REPORTS_BYTES_MAX", 1)
    await send(relay, "a+later550@b.test")
    await send(relay, "b+later550@b.test")
    await until(lambda: len(relay.internet.received) == 2)
    await until(lambda: relay.daemon.transport.scheduler.claims_in_progress == 0)
    await relay.advance_clock(simulated_recipients.LATER_S + 1)
    [octets] = mailbox(relay, SENDER)
    assert b"Final-Recipient: rfc822;" in octets
    await send(relay, "c+later550@b.test")  # the first is not counted any more
    await until(lambda: len(relay.internet.received) == 3)
    await relay.advance_clock(simulated_recipients.LATER_S + 1)
    assert len(mailbox(relay, SENDER)) == 2


@pytest.mark.parametrize(
    ("sender", "options"), [("", ()), (SENDER, ["NOTIFY=NEVER"]), (SENDER, ["NOTIFY=DELAY"])]
)
async def test_a_sender_who_wants_no_report_gets_none_later(relay, sender, options):
    await send(relay, "bob+later550@b.test", sender=sender, options=options)
    await until(lambda: relay.internet.received)
    await relay.advance_clock(simulated_recipients.LATER_S + 1)
    assert mailbox(relay, SENDER) == []


async def test_a_message_that_cannot_be_kept_is_deferred(relay):
    place = relay.folder.path / "mail" / "b.test"
    place.parent.mkdir(exist_ok=True)
    place.write_text("in the way")
    await send(relay, "bob+slow1@b.test")
    [message] = await journeys(relay, lambda one: one["state"] == "deferred")
    assert message["recipients"][0]["reply"].startswith("451 4.3.0")
    assert relay.internet.received == ()


async def journeys(relay, condition):
    """The messages of the relay, when the condition holds for all."""
    async with httpx.AsyncClient(base_url=f"http://{relay.addresses.http}") as client:
        client.headers["Authorization"] = f"Bearer {relay.token}"
        while True:
            async with asyncio.timeout(120):
                found = (await client.get("/relay/v1/messages")).json()["messages"]
            if found and all(map(condition, found)):
                return found
            await asyncio.sleep(0.05)


async def test_a_reply_that_is_added_is_used_at_once_and_can_be_removed(relay):
    await relay.add_reply("b.test", {"verb": "RCPT", "reply": "550 5.1.1 not here"})
    await send(relay, "x@b.test")
    [octets] = await until(lambda: mailbox(relay, SENDER))
    assert b"550 5.1.1 not here" in octets
    assert 'reply = "550 5.1.1 not here"' in relay.scenario_toml
    [(_, replies)] = relay.internet_overview()["domains"]
    assert [use.used for _, use in replies] == [1]
    await relay.remove_reply(0, 0)
    await send(relay, "y@b.test")
    [mail] = await until(lambda: relay.internet.received)
    [host] = relay.internet_overview()["hosts"]
    assert host["messages"][0]["id"] == mail.queue_id
    journey = await relay.daemon.base.journeys.journey(mail.queue_id, account=None)
    assert journey.recipients[0].address == "y@b.test"
    with pytest.raises(IndexError):
        await relay.remove_reply(0, 0)
