"""A development relay and its simulated internet, in one process: what remote hosts do with mail."""

import asyncio
import email
import smtplib
from email import policy

import httpx
import pytest

from relay.base.advanceable_clock import AdvanceError
from relay.base.settings.document import SettingsError
from relay.base.socket_address import Address
from relay.development import simulated_recipients
from relay.development.internet.scenario_file import parse_scenario
from relay.development.options import DevelopmentOptions
from relay.development.relay import DevelopmentRelay
from relay.development.removal import KeepLimits, MailRetention
from relay.operation.app.development_folder import open_folder
from relay.operation.app.settling import UnsettledError

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
    async with asyncio.timeout(30):
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


async def test_an_advance_of_the_clock_makes_no_mail_old(relay):
    await send(relay, "before@elsewhere.test")
    await until(lambda: mailbox(relay, "before@elsewhere.test"))
    await relay.advance_clock(30 * 86400.0)
    await send(relay, "after@elsewhere.test")
    await until(lambda: mailbox(relay, "after@elsewhere.test"))
    daemon = relay.daemon
    limits = KeepLimits(messages=3)  # those of the other limits are met
    retention = MailRetention(
        daemon.base.store, daemon.base.spool.maintenance, keep=limits, clock=relay.clock
    )
    await retention.remove()
    for address in ("before@elsewhere.test", "after@elsewhere.test"):
        assert mailbox(relay, address), address
        assert await daemon.base.journeys.journey(address, account=None)


async def test_after_an_advance_the_newest_mail_stays_in_mailboxes_and_in_the_list(relay):
    addresses = [f"u{number}@elsewhere.test" for number in range(4)]
    for address in addresses:
        await send(relay, address)
        await until(lambda address=address: mailbox(relay, address))
    await relay.advance_clock(86400.0)
    daemon = relay.daemon
    limits = KeepLimits(messages=2)
    retention = MailRetention(
        daemon.base.store, daemon.base.spool.maintenance, keep=limits, clock=relay.clock
    )
    await retention.remove()
    listed = [one for one in addresses if await daemon.base.journeys.journey(one, account=None)]
    assert listed == addresses[2:]
    assert [one for one in addresses if mailbox(relay, one)] == addresses[2:]


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


async def test_a_test_recipient_bounces_later_by_smtp_from_the_remote_host(relay, monkeypatch):
    monkeypatch.setattr(simulated_recipients, "LATER_S", 0.1)
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
    assert not relay.simulated_recipients._waiting


async def test_a_report_that_is_refused_for_now_is_sent_again(relay, monkeypatch):
    monkeypatch.setattr(simulated_recipients, "LATER_S", 0.05)
    monkeypatch.setattr(simulated_recipients, "_RETRY_S", 0.05)
    attempts = []

    def nowhere():
        attempts.append(1)
        return relay.addresses.smtp if len(attempts) == 3 else Address("127.0.0.9", 9)

    relay.simulated_recipients._smtp = nowhere
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
            async with asyncio.timeout(30):
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


async def test_a_reply_that_is_added_is_used_at_once_and_can_be_removed(relay):
    await relay.add_reply("b.test", {"verb": "RCPT", "reply": "550 5.1.1 not here"})
    await send(relay, "x@b.test")
    [octets] = await until(lambda: mailbox(relay, SENDER))
    assert b"550 5.1.1 not here" in octets
    assert 'reply = "550 5.1.1 not here"' in relay.scenario_toml
    [domain] = relay.internet_overview()["domains"]
    assert [one["used"] for one in domain["replies"]] == [1]
    await relay.remove_reply(0, 0)
    await send(relay, "y@b.test")
    [mail] = await until(lambda: relay.internet.received)
    [host] = relay.internet_overview()["hosts"]
    assert host["messages"][0]["id"] == mail.queue_id
    journey = await relay.daemon.base.journeys.journey(mail.queue_id, account=None)
    assert journey.recipients[0].address == "y@b.test"
    with pytest.raises(IndexError):
        await relay.remove_reply(0, 0)


async def test_a_faulty_reply_changes_nothing(relay):
    await relay.use_shipped_scenario("gmail")
    before = relay.scenario_toml
    with pytest.raises(SettingsError, match="expected a reply such as"):
        await relay.add_reply("gmail.com", {"verb": "RCPT", "reply": "no"})
    assert relay.scenario_toml == before
    assert relay.internet.state.scenario == parse_scenario(before).scenario


async def test_changes_of_the_scenario_at_once_are_all_made(relay):
    replies = [{"verb": "RCPT", "recipient": f"r{n}", "reply": "550 no"} for n in range(5)]
    await asyncio.gather(*(relay.add_reply("b.test", one) for one in replies))
    [domain] = relay.internet.state.scenario.domain
    assert {one.recipient for one in domain.reply} == {f"r{n}" for n in range(5)}


@pytest.mark.parametrize("name", ["gmail", "outlook:S3150"])
async def test_a_shipped_scenario_is_chosen_by_name(relay, name):
    await relay.use_shipped_scenario(name)
    first = relay.internet.state.scenario.domain[0].reply[0]
    assert first.recipient == ("*" if ":" in name else f"*+{first.name}")
    scenario, _, reply = name.partition(":")
    assert reply in ("", *relay.internet_overview()["shipped"][scenario])


async def test_only_shipped_scenarios_can_be_chosen(relay):
    for name in ("", "hotmail", "gmail:nothing", "scenarios/gmail.toml", "gmail:/x.toml"):
        with pytest.raises(SettingsError, match="expected"):
            await relay.use_shipped_scenario(name)
        assert relay.scenario_toml == "", name


async def test_the_clock_is_advanced_to_the_next_retry(relay):
    assert await relay.next_retry_s() is None
    assert relay.last_advance is None
    await send(relay, "bob+451x1@b.test")
    await relay.settle()
    wait_s = await relay.next_retry_s()
    assert 3 < wait_s <= 5 * 1.25
    await relay.advance_clock(wait_s)
    [mail] = relay.internet.received
    assert mail.addresses == ["bob+451x1@b.test"]
    assert relay.last_advance == {"seconds": wait_s, "attempts": 1, "reports": 0, "error": ""}
    assert await relay.next_retry_s() is None
    assert not relay.is_advancing


async def test_it_tells_what_was_done_by_an_advance_and_that_one_is_in_progress(relay):
    await send(relay, "bob+451@b.test")
    await relay.settle()
    task = asyncio.create_task(relay.advance_clock(3 * 86400.0))
    await until(lambda: relay.is_advancing)
    assert relay.last_advance is None
    await task
    assert not relay.is_advancing
    last = relay.last_advance
    assert (last["seconds"], last["error"]) == (3 * 86400.0, "")
    assert last["attempts"] > 20
    assert last["reports"] == len(mailbox(relay, SENDER)) == 2  # of the delay, and of the end


async def test_an_advance_that_fails_says_so_afterwards(relay, monkeypatch):
    async def never(_timeout_s=0):
        raise UnsettledError("still in progress")

    monkeypatch.setattr(relay._advances, "_settle", never)
    with pytest.raises(AdvanceError):
        await relay.advance_clock(60)
    assert relay.last_advance["seconds"] == 0
    assert "still in progress" in relay.last_advance["error"]
