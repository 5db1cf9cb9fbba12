"""The inboxes of a real development relay: captured mail is read as with Graph, by anyone."""

from base64 import urlsafe_b64encode
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.dev_process import DevProcess
from tests.support.graph_client import Answer, message

APP = "app@shop.test"
MIXED = "Ann+Tag@Gmail.com"
CAPTURED = "ann+tag@gmail.com"


@pytest.fixture(scope="module")
def relay(dev_module) -> DevProcess:
    return dev_module("--no-demo")


def inbox(relay: DevProcess, address: str, query: str = "", *, token: str = "alice") -> Any:
    """The messages of an inbox."""
    path = f"/users/{quote(address, safe='')}/mailFolders/inbox/messages{query}"
    answer = relay.graph("GET", path, token=token)
    assert answer.status == 200, answer.body
    return answer.json()["value"]


def application(client_id: str = "app") -> str:
    """Return a JWT without a user."""
    claims = urlsafe_b64encode(f'{{"appid": "{client_id}"}}'.encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{claims}."


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["code"]


def submit(relay: DevProcess, recipient: str, subject: str, sender: str = APP) -> str:
    """Send by SMTP and wait until the message is there; return its queue id."""
    content = f"From: {sender}\r\nSubject: {subject}\r\n\r\nThe code is 4711.\r\n".encode()
    queue_id = relay.submit(sender, [recipient], content)
    relay.until_state(queue_id, "there")
    return queue_id


def test_a_captured_message_is_listed_read_and_searched(relay: DevProcess) -> None:
    queue_id = submit(relay, MIXED, "read me")
    assert relay.states(queue_id) == {MIXED.replace("Gmail", "gmail"): "captured"}
    [found] = inbox(relay, CAPTURED, "?$filter=subject eq 'read me'".replace(" ", "%20"))
    assert (found["bodyPreview"], found["isRead"]) == ("The code is 4711.", False)
    path = f"/users/{quote(CAPTURED)}/messages"
    assert relay.graph("GET", f"{path}/{found['id']}").json()["body"]["content"].strip()
    assert (
        b"Delivered-To: Ann+Tag@gmail.com"
        in relay.graph("GET", f"{path}/{found['id']}/$value").body
    )
    searched = relay.graph("GET", f'{path}?$search="4711"'.replace('"', "%22"), token="bob")
    assert found["id"] in [one["id"] for one in searched.json()["value"]]
    assert relay.mailbox_of(CAPTURED).is_dir()


def test_a_tag_is_part_of_a_captured_address_and_not_of_a_local_one(relay: DevProcess) -> None:
    submit(relay, "tina@gmail.com", "plain")
    submit(relay, "tina+x@gmail.com", "tagged")
    assert [one["subject"] for one in inbox(relay, "tina@gmail.com")] == ["plain"]
    assert [one["subject"] for one in inbox(relay, "tina+x@gmail.com")] == ["tagged"]
    submit(relay, "fresh+x@example.test", "to a new local recipient")
    assert relay.states("fresh+x@example.test") == {"fresh+x@example.test": "delivered"}
    assert [one["subject"] for one in inbox(relay, "fresh@example.test", token="fresh")] == [
        "to a new local recipient"
    ]


def test_only_recipients_that_got_mail_exist(relay: DevProcess) -> None:
    submit(relay, "known@gmail.com", "here")
    unknown = relay.graph("GET", "/users/unknown@gmail.com/messages")
    assert code(unknown) == (404, "ErrorInvalidUser")
    assert "unknown@gmail.com" in unknown.json()["error"]["message"]
    assert not relay.mailbox_of("unknown@gmail.com").exists()
    closed = relay.graph("GET", "/users/bob@example.test/messages")
    assert code(closed) == (403, "ErrorAccessDenied")
    users = [one["mail"] for one in relay.graph("GET", "/users?$top=999").json()["value"]]
    assert {"alice@example.test", "known@gmail.com"} <= {*users}
    assert not {"bob@example.test", "unknown@gmail.com"} & {*users}


def test_a_recipient_of_mail_on_its_way_exists(relay: DevProcess) -> None:
    for number in range(5):
        relay.send(APP, f"smtp{number}@gmail.com", "polled at once")
        inbox(relay, f"smtp{number}@gmail.com")
        relay.send_mail(to=[f"graph{number}@gmail.com"], subject="polled at once")
        inbox(relay, f"graph{number}@gmail.com")
    scheduled = [{"id": "SystemTime 0x3FEF", "value": "2999-01-01T00:00:00Z"}]
    relay.send_mail(to=["later@gmail.com"], singleValueExtendedProperties=scheduled)
    unknown = relay.graph("GET", "/users/later@gmail.com/messages")
    assert code(unknown) == (404, "ErrorInvalidUser")


def test_an_application_sends_from_users_that_exist(relay: DevProcess) -> None:
    def answer(user: str, token: str = application()) -> Answer:
        mail = {"message": message(to=["bob@example.test"], subject="from an application")}
        return relay.graph("POST", f"/users/{quote(user, safe='')}/sendMail", mail, token=token)

    submit(relay, "captured@gmail.com", "here")
    for user in ("dora", "captured@gmail.com", '"e f"@example.test'):
        assert answer(user).status == 202, user
    for client_id in ("My App", "api://shop"):
        assert answer(client_id, application(client_id)).status == 202, client_id
    for user, hint in (
        ("noreply@contsoo.test", "no mail. With --domain example.test --domain contsoo.test,"),
        ("a@[127.0.0.1]", "This address has no mail."),
        ("a@example.test,b@example.test", "Expected an address, or a local part."),
        ("A <a@example.test>", "Expected an address, or a local part."),
    ):
        refused = answer(user)
        assert code(refused) == (404, "ErrorInvalidUser"), user
        assert hint in refused.message
        assert ("--domain" in hint) == ("--domain" in refused.message)
    assert code(answer("A <a@example.test>", "alice")) == (403, "ErrorAccessDenied")


def test_an_account_of_another_domain_gets_its_own_mail(relay: DevProcess) -> None:
    sent = relay.send_mail(token="megan@contoso.test", to=["megan@contoso.test"], subject="to me")
    relay.until_state(sent, "there")
    messages = relay.messages("inbox", token="megan@contoso.test")
    assert [one["subject"] for one in messages] == ["to me"]
    assert messages[0]["from"]["emailAddress"]["address"] == "megan@contoso.test"
    assert len(relay.messages("sentitems", token="megan@contoso.test")) == 1


def test_a_bounce_to_another_domain_is_in_the_inbox_of_the_sender(relay: DevProcess) -> None:
    body = {
        "message": message(
            to=["x@gmail.com"],
            subject="program",
            attachments=[
                {
                    "@odata.type": "#microsoft.graph.fileAttachment",
                    "name": "setup.exe",
                    "contentBytes": "TVo=",
                }
            ],
        )
    }
    token = "noreply@shop.test"
    answer = relay.graph("POST", "/me/sendMail", body, token=token)
    relay.until_state(answer.headers["x-relay-message-id"], "final")
    reports = relay.until_messages("noreply@shop.test", 1)
    assert reports[0]["subject"] == "Undeliverable: program"


def test_wait_ends_for_captured_mail(relay: DevProcess) -> None:
    queue_id = submit(relay, "waited@gmail.com", "wait")
    done = relay.cli("wait", queue_id)
    assert (done.returncode, done.stderr) == (0, "")
    assert "captured" in done.stdout
    for state in ("final", "delivered", "failed", "scheduled"):
        waited = relay.cli("wait", queue_id, "--state", state, "--timeout", "600", timeout_s=120)
        assert (waited.returncode, waited.stdout) == (75, done.stdout)
        assert waited.stderr.splitlines()[0] == (
            f"relay wait: captured: {state} can no longer come by itself"
        )
        assert "waited@gmail.com is captured by a route, 1 attempt so far: 250" in waited.stderr


def test_wait_fails_for_states_that_are_not_ok(relay: DevProcess) -> None:
    """For `relay wait ID --ok ... && deploy`."""
    ok = ("--ok", "delivered,relayed,captured")
    sent = relay.submit(APP, ["fine@gmail.com", "bob@example.test"], b"Subject: x\r\n\r\nx\r\n")
    assert relay.cli("wait", sent, *ok).returncode == 0
    sent = relay.submit(APP, ["fine@gmail.com", "x+550@gmail.com"], b"Subject: x\r\n\r\nx\r\n")
    assert relay.cli("wait", sent).returncode == 0
    waited = relay.cli("wait", sent, *ok)
    assert waited.returncode == 75
    first, *rest = waited.stderr.splitlines()
    assert first == "relay wait: failed, expected captured or delivered or relayed"
    [reason] = [line for line in rest if "gmail.com" in line]
    assert reason.startswith("  x+550@gmail.com is failed")
    assert relay.cli("wait", sent, "--ok", "sent").returncode == 64


def test_the_mailboxes_are_known_after_a_restart(dev) -> None:
    relay = dev("--no-demo")
    submit(relay, "kept@gmail.com", "still here")
    assert relay.stop() in (0, 130)
    relay.start()
    assert [one["subject"] for one in inbox(relay, "kept@gmail.com")] == ["still here"]
    assert relay.states("kept@gmail.com") == {"kept@gmail.com": "captured"}


@pytest.mark.parametrize("address", ['"a b/c"@gmail.com', "jörg@müller.test", "x" * 64 + "@y.test"])
def test_an_unusual_address_has_a_mailbox_too(relay: DevProcess, address: str) -> None:
    subject = f"for {len(address)}"
    with relay.smtp() as session:
        session.command_encoding = "utf-8"
        session.ehlo()
        assert session.mail(APP, ["SMTPUTF8"])[0] == 250
        assert session.rcpt(address)[0] == 250
        code, reply = session.data(f"Subject: {subject}\r\n\r\nx\r\n".encode())
    assert code == 250
    relay.until_state(reply.decode().rpartition(" ")[2], "there")
    assert [one["subject"] for one in inbox(relay, address)] == [subject]
