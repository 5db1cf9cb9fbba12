"""The test kit runs a relay within the test program: send, wait, settle, bounce, clock, internet."""

import asyncio
import json
import re
import smtplib
import ssl
import urllib.request
from email.message import EmailMessage
from pathlib import Path

import httpx
import pytest

from relay.front_door.http.errors import ApiError
from relay.testing import AsyncRelay, Relay, WaitTimeout

ALICE, BOB, GMAIL = "alice@example.test", "bob@example.test", "joe@gmail.com"


@pytest.fixture(scope="module")
def shared():
    with Relay() as relay:
        yield relay


@pytest.fixture
def relay(shared):
    shared.reset()
    return shared


class TestMail:
    def test_a_message_makes_all_steps(self, relay):
        sent = relay.send(ALICE, [BOB, GMAIL], "Hello", "Your code is 123456.")
        got = relay.mailbox(BOB).wait_for(subject="hello", sender=ALICE, timeout=10)
        assert (got.subject, got.text, got.code()) == ("Hello", "Your code is 123456.\n", "123456")
        assert (got.sender, got.recipients) == (ALICE, [BOB, GMAIL])
        assert [step["step"] for step in got.journey["steps"]] == [1, 2, 3, 4, 5, 6, 6]
        assert got.recipient(BOB)["state"] == "delivered"
        assert sent.recipient(GMAIL)["state"] == "captured"
        assert sent.journey["id"] == got.journey["id"]
        assert (sent.subject, sent.text) == (got.subject, got.text)
        assert sent.bounce is None

    def test_reports_and_read_receipts_are_told_apart(self, relay):
        eml = EmailMessage()
        eml["Subject"], eml["From"], eml["To"] = "Please read", ALICE, BOB
        eml["Message-ID"], eml["Disposition-Notification-To"] = "<read-1@x.test>", ALICE
        eml.set_content("Now")
        with smtplib.SMTP(*relay.smtp) as client:
            client.send_message(eml, to_addrs=[BOB, "gone+550@gmail.com"])
        got = relay.mailbox(BOB).wait_for(subject="Please read")
        (failure,) = got.reports
        assert (failure.kind, failure.recipient) == ("failure", "gone+550@gmail.com")
        assert failure.status.startswith("5.")
        assert failure.reply.startswith("550")
        relay.mailbox(BOB).mark_read(got)
        relay.mailbox(ALICE).wait_for(subject="Read: *")
        failure, read = got.reports
        assert (read.kind, read.recipient, read.action) == ("read", BOB, "")
        assert got.bounces == [failure]
        with pytest.raises(LookupError, match=r"is not in the mailbox of alice@example\.test"):
            relay.mailbox(ALICE).mark_read(got)

    def test_a_list_has_what_was_just_sent(self, relay):
        for number in range(5):
            relay.send(ALICE, [BOB, "x+grey@gmail.com"], f"Hello {number}")
            assert len(relay.mailbox(BOB).messages()) == number + 1

    def test_the_bounce_of_a_message_is_found(self, relay):
        sent = relay.send(ALICE, ["joe+550@gmail.com", BOB], "Lost", "x")
        assert sent.bounce.recipient == "joe+550@gmail.com"
        assert (sent.bounce.status, sent.bounce.action) == ("5.1.1", "failed")
        assert sent.bounce.reply.startswith("550 5.1.1 ")
        report = relay.mailbox(ALICE).wait_for(subject="Undeliverable: Lost")
        assert report.bounce == sent.bounce
        assert report.sender == ""

    def test_what_became_of_the_mail_of_a_program_is_asked(self, relay):
        gmail = relay.internet.domain("gmail.com")
        gmail.rcpt("joe").reply("452 4.2.2 mailbox full", times=2)
        gmail.rcpt("ann").reply("550 5.1.1 no such user")
        with smtplib.SMTP(*relay.smtp) as client:
            client.login("app@shop.test", "anything")
            client.sendmail("app@shop.test", [GMAIL, "ann@gmail.com"], b"Subject: Hi\r\n\r\nHi")
            client.sendmail("", "ann@gmail.com", b"Subject: Gone\r\n\r\nx")
        mail = relay.wait_for_journey(to="joe@*", subject="hi")
        assert (mail.state, mail.recipients, mail.text) == (
            "deferred",
            [GMAIL, "ann@gmail.com"],
            "Hi\n",
        )
        assert [one["reply"] for one in mail.recipient(GMAIL)["attempts"]] == [
            "452 4.2.2 mailbox full"
        ]
        assert mail.bounce.reply == "550 5.1.1 no such user"
        relay.clock.advance(hours=1)
        assert (mail.state, len(mail.recipient(GMAIL)["attempts"])) == ("failed", 3)
        with pytest.raises(WaitTimeout) as caught:
            relay.wait_for_journey(subject="Hi", state="failed", timeout=0.1)
        assert '"Hi": failed\n  ! an earlier wait returned this message already' in str(
            caught.value
        )
        with pytest.raises(WaitTimeout, match=r"Nearest: .*\n  ! sender   expected a\*, found <>"):
            relay.wait_for_journey(subject="Gone", sender="a*", timeout=0.1)
        relay.assert_no_more_mail()  # its copy and its report count as seen
        lost = relay.wait_for_journey(q="gone")  # nobody has got its text
        assert (lost.subject, lost.text, lost.state) == ("Gone", "", "failed")
        assert [one.state for one in relay.journeys(kind="mail")] == ["failed", "failed"]

    def test_a_condition_that_is_none_is_refused(self, relay):
        for wrong in ({"recipient": BOB}, {"to": None}, {"state": "sent"}):
            with pytest.raises((ValueError, ApiError), match=r"found .*, expected "):
                relay.journeys(**wrong)

    def test_a_wait_for_a_bounce_ends_when_none_will_come(self, relay):
        sent = relay.send(ALICE, [BOB, GMAIL], "Hello", "x")
        with pytest.raises(WaitTimeout) as caught:
            sent.wait_for_bounce(timeout=60)
        first, *lines = str(caught.value).splitlines()
        assert first == 'no bounce of "Hello", none will come'
        assert [line.split()[:2] for line in lines[1:]] == [[BOB, "delivered"], [GMAIL, "captured"]]

    def test_a_wait_for_the_bounce_of_deferred_mail_says_what_moves_the_time(self, relay):
        sent = relay.send(ALICE, "joe+451@gmail.com", "Later", "x")
        with pytest.raises(WaitTimeout) as caught:
            sent.wait_for_bounce(timeout=0.2)
        text = str(caught.value)
        assert text.startswith('no bounce of "Later", none within 0.2 s\n')
        assert "joe+451@gmail.com deferred after 1 attempt: 451 " in text
        assert text.endswith("clock.advance(days=…) moves the time")
        relay.clock.advance(days=3)
        assert sent.wait_for_bounce().recipient == "joe+451@gmail.com"

    @pytest.mark.parametrize("text", ["joe", "", "Joe <joe@gmail.com>", "a@b@c.test"])
    def test_a_mailbox_has_an_address(self, relay, text):
        for each in (relay, AsyncRelay(relay)):
            with pytest.raises(ValueError, match=r"^no address: "):
                each.mailbox(text)

    def test_each_wait_returns_another_message(self, relay):
        relay.send(ALICE, [BOB, GMAIL], "Twice", "1")
        first = relay.mailbox(BOB).wait_for(subject="Twice")
        relay.send(ALICE, BOB, "Twice", "2")
        second = relay.mailbox(BOB).wait_for(subject="Twice")
        assert (first.text.strip(), second.text.strip()) == ("1", "2")
        assert relay.mailbox(GMAIL).wait_for(subject="Twice").text.strip() == "1"
        assert [one.text.strip() for one in relay.mailbox(BOB).messages()] == ["1", "2"]

    def test_no_more_mail_means_none_that_the_test_has_not_seen(self, relay):
        relay.assert_no_more_mail()
        relay.send(ALICE, BOB, "Sent by the test", "x")
        relay.assert_no_more_mail()
        with smtplib.SMTP(*relay.smtp) as client:
            client.sendmail("app@shop.test", [BOB, GMAIL], "Subject: Surprise\r\n\r\nx")
        with pytest.raises(
            AssertionError, match=r'1 more message than.*\n.*"Surprise" from app@shop'
        ):
            relay.assert_no_more_mail()
        relay.mailbox(GMAIL).wait_for(subject="Surprise")
        relay.assert_no_more_mail()

    def test_a_report_that_the_test_has_not_seen_is_more_mail(self, relay):
        sent = relay.send(ALICE, "joe+550@gmail.com", "Lost", "x")
        with pytest.raises(AssertionError, match="Undeliverable: Lost"):
            relay.assert_no_more_mail()
        assert sent.bounce
        relay.assert_no_more_mail()


class TestInternet:
    def test_a_host_refuses_a_recipient(self, relay):
        relay.internet.domain("gmail.com").rcpt("joe").reply("550 5.1.1 no such user here")
        sent = relay.send(ALICE, [GMAIL, "ann@gmail.com"], "Hello", "x")
        assert (sent.bounce.recipient, sent.bounce.status) == (GMAIL, "5.1.1")
        assert sent.bounce.reply == "550 5.1.1 no such user here"
        assert sent.recipient("ann@gmail.com")["state"] == "relayed"

    def test_what_a_host_received_can_be_read(self, relay):
        gmail = relay.internet.domain("gmail.com")
        relay.send(ALICE, [GMAIL, "ann@gmail.com", "x@other.test"], "Hello", "x")
        got = gmail.wait_for(subject="Hello", sender=ALICE)
        assert (got.host, got.sender) == ("mx1.gmail.com", ALICE)
        assert got.recipients == [GMAIL, "ann@gmail.com"]
        assert got.state == "relayed" or got.recipient(GMAIL)["state"] == "relayed"
        assert len(gmail.messages()) == len(relay.internet.messages()) == 1
        assert relay.mailbox(GMAIL).wait_for(subject="Hello").text.strip() == "x"
        with pytest.raises(WaitTimeout, match=r"Received by the hosts of gmail\.com: 1"):
            gmail.wait_for(subject="Hello", timeout=0.1)

    def test_strict_forbids_mail_to_other_domains(self, relay):
        relay.internet.domain("gmail.com")
        relay.internet.strict = True
        relay.send(ALICE, [GMAIL, BOB], "Hello", "x")
        relay.check()
        relay.send(ALICE, "x@elsewhere.test", "Hello", "x")
        with pytest.raises(AssertionError, match=r"does not describe: elsewhere\.test\n.*Hello"):
            relay.check()
        relay.internet.strict = False  # or the check at the end of the module fails


class TestFacts:
    def test_urls_and_certificate_work(self, relay):
        trusted = ssl.create_default_context(cafile=relay.ca)
        for url in (relay.http_url, relay.https_url):
            context = trusted if url.startswith("https") else None
            with urllib.request.urlopen(f"{url}/healthz", context=context) as answer:
                assert answer.status == 200

    def test_a_token_opens_the_mailbox_of_any_address(self, relay):
        request = urllib.request.Request(
            f"{relay.http_url}/v1.0/me",
            headers={"Authorization": f"Bearer {relay.token('ann@corp.test')}"},
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["userPrincipalName"] == "ann@corp.test"

    def test_programs_get_it_all_from_the_environment(self, relay):
        env = relay.env
        assert (env["SMTP_HOST"], int(env["SMTP_PORT"])) == relay.smtp
        assert env["EMAIL_URL"] == f"smtp://{relay.smtp.host}:{relay.smtp.port}"
        assert env["RELAY_URL"] == relay.http_url
        assert Path(env["SSL_CERT_FILE"]).read_text().startswith("-----BEGIN CERTIFICATE")
        assert env["RELAY_TOKEN"] == relay.operator_token
        assert all(isinstance(value, str) for value in env.values())


class TestOptions:
    def test_keys_of_the_configuration_are_changed(self):
        config = {"smtp": [{"max_message_size": "64 KiB"}], "delivery": {"retry": ["1m"]}}
        with Relay(config=config) as relay, smtplib.SMTP(*relay.smtp) as client:
            client.ehlo()
            assert client.esmtp_features["size"] == "65536"

    def test_the_profile_strict_refuses_as_graph(self):
        with Relay(config={"http": {"profile": "strict"}}) as relay:
            message = {"toRecipients": [{"emailAddress": {"address": ALICE}}], "colour": "red"}
            answer = httpx.post(
                f"{relay.http_url}/v1.0/me/sendMail",
                json={"message": message},
                headers={"Authorization": "Bearer alice"},
            )
            assert answer.json()["error"]["code"] == "RequestBodyRead"
            relay.send(ALICE, BOB, "Hello", "x", attachments=[("a.txt", b"x")])
            relay.mailbox(BOB).wait_for(subject="Hello")

    def test_there_are_no_rules_unless_given(self, tmp_path):
        rule = (
            '[[rule]]\nname = "no exe"\nwhen = {attachment_name = ["*.exe"]}\n'
            'then = [{reject = "5.7.1 no"}]\n'
        )
        (tmp_path / "10-exe.toml").write_text(rule)
        states = []
        for policies in (None, {"exe": rule}, tmp_path, str(tmp_path)):
            with Relay(policies=policies) as relay:
                sent = relay.send(ALICE, BOB, "x", "x", attachments=[("a.exe", b"MZ")])
                states.append(sent.state)
        assert states == ["delivered", "failed", "failed", "failed"]


class TestAsynchronous:
    async def test_the_methods_that_wait_are_coroutines(self):
        async with Relay() as relay:
            relay.internet.domain("gmail.com").rcpt().reply("451 4.7.1 later", times=1)
            sent = await relay.send(ALICE, [BOB, GMAIL], "Hello", "x")
            got, _ = await asyncio.gather(
                relay.mailbox(BOB).wait_for(subject="Hello"), relay.settle()
            )
            assert got.text.strip() == "x"
            assert sent.recipient(GMAIL)["state"] == "deferred"
            await relay.clock.advance(minutes=1)
            assert (await relay.wait_for_journey(state="relayed")).subject == "Hello"
            assert [one.sender for one in await relay.journeys(to=BOB)] == [ALICE]
            remote = await relay.internet.domain("gmail.com").wait_for(subject="Hello")
            assert remote.recipients == [GMAIL]
            assert [one.subject for one in await relay.mailbox(BOB).messages()] == ["Hello"]
            await relay.assert_no_more_mail()
            with pytest.raises(WaitTimeout, match="no message for bob"):
                await relay.mailbox(BOB).wait_for(subject="None", timeout=0.05)

    async def test_a_wait_does_not_stop_the_test_s_own_loop(self, relay):
        waiting = asyncio.create_task(
            AsyncRelay(relay).mailbox(BOB).wait_for(subject=re.compile("^Later$"))
        )
        await AsyncRelay(relay).settle()
        assert not waiting.done()
        relay.send(ALICE, BOB, "Later", "x")
        assert (await waiting).subject == "Later"


def test_a_relay_that_does_not_run_says_so():
    with pytest.raises(RuntimeError, match="use it within `with Relay"):
        _ = Relay().http_url
