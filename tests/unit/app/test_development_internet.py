"""A development relay and its simulated internet, in one process: what remote hosts do with mail."""

import asyncio
import email
import smtplib
from email import policy

import httpx
import pytest

from relay.app.development import remote_side
from relay.app.development.folder import open_folder
from relay.app.development.relay import DevelopmentOptions, DevelopmentRelay
from relay.app.development.retention import KeepLimits, MailRetention
from relay.internet.scenario_file import parse_scenario
from relay.settings.tree import Address

FREE = Address("127.0.0.1", 0)
SENDER = "alice@example.test"


@pytest.fixture
async def relay(short_path):
    folder = open_folder(short_path / "dev")
    relay = await asyncio.to_thread(
        DevelopmentRelay, folder, DevelopmentOptions(http=FREE, https=FREE, smtp=FREE)
    )
    try:
        await relay.start()
        yield relay
    finally:
        await relay.stop()
        folder.remove()


async def send(relay, *recipients, sender=SENDER, options=(), text="hello"):
    at = relay.addresses.smtp

    def submit():
        with smtplib.SMTP(at.host, at.port) as client:
            client.sendmail(
                sender, recipients, f"Subject: to {recipients[0]}\r\n\r\n{text}\r\n",
                rcpt_options=options,
            )  # fmt: skip

    await asyncio.to_thread(submit)


def mailbox(relay, address):
    local, _, domain = address.rpartition("@")
    place = relay.folder.path / "mail" / domain / local
    return [one.read_bytes() for kind in ("new", "cur") for one in (place / kind).glob("*")]


async def until(condition):
    async with asyncio.timeout(10):
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


async def test_an_advance_of_the_clock_makes_no_mail_old(relay):
    await send(relay, "before@elsewhere.test")
    await until(lambda: mailbox(relay, "before@elsewhere.test"))
    await relay.advance_clock(30 * 86400.0)
    await send(relay, "after@elsewhere.test")
    await until(lambda: mailbox(relay, "after@elsewhere.test"))
    daemon = relay.daemon
    limits = KeepLimits(messages=3)  # those of the other limits are met
    retention = MailRetention(
        daemon.store, daemon.spool.maintenance, keep=limits, clock=relay.clock
    )
    await retention.remove()
    for address in ("before@elsewhere.test", "after@elsewhere.test"):
        assert mailbox(relay, address), address
        assert await daemon.journeys.journey(address, account=None)


async def test_the_later_reports_that_wait_are_limited_in_octets(relay, monkeypatch):
    monkeypatch.setattr(remote_side, "REPORTS_BYTES_MAX", 1)
    await send(relay, "a+later550@b.test")
    await send(relay, "b+later550@b.test")
    await until(lambda: len(relay.internet.received) == 2)
    await until(lambda: relay.daemon.scheduler.claims_in_progress == 0)
    await relay.advance_clock(remote_side.LATER_S + 1)
    [octets] = mailbox(relay, SENDER)
    assert b"Final-Recipient: rfc822;" in octets
    await send(relay, "c+later550@b.test")  # the first is not counted any more
    await until(lambda: len(relay.internet.received) == 3)
    await relay.advance_clock(remote_side.LATER_S + 1)
    assert len(mailbox(relay, SENDER)) == 2


async def test_a_test_recipient_bounces_later_by_smtp_from_the_remote_host(relay, monkeypatch):
    monkeypatch.setattr(remote_side, "LATER_S", 0.1)
    await send(relay, "bob+later550@b.test", options=["ORCPT=rfc822;bob@old.test"])
    [octets] = await until(lambda: mailbox(relay, SENDER))
    report = email.message_from_bytes(octets, policy=policy.default)
    assert report["From"] == "Mail Delivery System <MAILER-DAEMON@mx1.b.test>"
    assert report["Return-Path"] == "<>"
    assert report["Received"].startswith("from mx1.b.test ")
    _, status, original = report.iter_parts()
    blocks = status.get_payload()
    assert blocks[0]["Reporting-MTA"] == "dns; mx1.b.test"
    assert blocks[1]["Final-Recipient"] == "rfc822;bob+later550@b.test"
    assert blocks[1]["Original-Recipient"] == "rfc822;bob@old.test"
    assert blocks[1]["Action"] == "failed"
    assert blocks[1]["Status"] == "5.1.1"
    assert blocks[1]["Diagnostic-Code"].startswith("smtp; 550 5.1.1 ")
    assert original.get_payload(0)["Subject"] == "to bob+later550@b.test"


@pytest.mark.parametrize(
    ("sender", "options"), [("", ()), (SENDER, ["NOTIFY=NEVER"]), (SENDER, ["NOTIFY=DELAY"])]
)
async def test_a_sender_who_wants_no_report_gets_none_later(relay, sender, options):
    await send(relay, "bob+later550@b.test", sender=sender, options=options)
    await until(lambda: relay.internet.received)
    assert not relay.remote_side._waiting


async def test_a_report_that_is_refused_for_now_is_sent_again(relay, monkeypatch):
    monkeypatch.setattr(remote_side, "LATER_S", 0.05)
    monkeypatch.setattr(remote_side, "_RETRY_S", 0.05)
    attempts = []

    def nowhere():
        attempts.append(1)
        return relay.addresses.smtp if len(attempts) == 3 else Address("127.0.0.9", 9)

    relay.remote_side._smtp = nowhere
    await send(relay, "bob+later550@b.test")
    assert len(await until(lambda: mailbox(relay, SENDER))) == 1
    assert len(attempts) == 3


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
            async with asyncio.timeout(10):
                found = (await client.get("/relay/v1/messages")).json()["messages"]
            if found and all(map(condition, found)):
                return found
            await asyncio.sleep(0.05)


async def test_mail_for_a_domain_of_the_scenario_goes_there_and_other_mail_stays(relay):
    relay.internet.use(
        parse_scenario(
            '[[domain]]\nname = "gmail.com"\n'
            'reply = [{ verb = "RCPT", recipient = "no", reply = "550 5.1.1 no such user" }]'
        ).scenario
    )
    await send(relay, "yes@gmail.com", "no@gmail.com", "someone@other.test")
    [message] = [
        one
        for one in await journeys(relay, lambda one: one["state"] not in ("queued", "deferred"))
        if one["sender"] == SENDER
    ]
    states = {one["address"]: one["state"] for one in message["recipients"]}
    assert states == {
        "yes@gmail.com": "relayed", "no@gmail.com": "failed", "someone@other.test": "captured",
    }  # fmt: skip
    assert [one.addresses for one in relay.internet.received] == [["yes@gmail.com"]]
