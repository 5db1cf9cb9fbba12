"""A disabled account gets mail, and does nothing else; a reload ends what it has open."""

import smtplib

import pytest

from tests.integration.test_reload import hang_up
from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess, until

APP = account("app", client_id="app-1", client_secret="plain:s3cret", acts_for=["*@example.test"])
MESSAGE = {
    "message": {
        "subject": "x",
        "body": {"content": "x"},
        "toRecipients": [{"emailAddress": {"address": "bob@example.test"}}],
    }
}


def send(relay: RelayProcess, user: str, token: str) -> int:
    return relay.graph("POST", f"/{user}/sendMail", MESSAGE, token=token).status


@pytest.fixture
def relay(serve):
    config = {"smtp": [{"listen": "127.0.0.1:0", "role": "submission"}]}
    return serve(config=config, accounts=[APP])


def test_a_disabled_account_only_gets_mail(relay: RelayProcess) -> None:
    text = relay.folder.joinpath("accounts.toml").read_text()
    alice = 'address = "alice@example.test"\n'
    assert [send(relay, "me", "alice"), send(relay, "users/alice@example.test", "app")] == [202] * 2
    with relay.smtp() as session, relay.smtp() as other:
        session.login("alice@example.test", "alice")
        session.mail("alice@example.test")
        session.rcpt("bob@example.test")
        other.login("bob@example.test", "bob")
        other.sendmail("bob@example.test", ["alice@example.test"], b"Subject: before\r\n\r\nx\r\n")

        file = relay.folder / "accounts.toml"
        file.write_text(text.replace(alice, f"{alice}disabled = true\n"))
        hang_up(relay, "reloaded")

        assert session.data(b"Subject: after\r\n\r\nx\r\n")[0] == 421
        other.sendmail("bob@example.test", ["alice@example.test"], b"Subject: after\r\n\r\nx\r\n")
        message = b"From: alice@example.test\r\nSubject: x\r\n\r\nx\r\n"
        with pytest.raises(smtplib.SMTPDataError) as refused:
            other.sendmail("bob@example.test", ["bob@example.test"], message)
        assert refused.value.smtp_code == 553
    with relay.smtp() as session:
        with pytest.raises(smtplib.SMTPAuthenticationError) as wrong:
            session.login("alice@example.test", "alice")
        assert wrong.value.smtp_code == 535
    assert send(relay, "me", "alice") == 401
    assert send(relay, "users/alice@example.test", "app") == 403
    assert relay.graph("GET", "/users/alice@example.test/messages", token="app").status == 403
    assert send(relay, "users/bob@example.test", "app") == 202
    relay.until_final(relay.send_mail(token="bob", to=["alice@example.test"], subject="by Graph"))

    done = relay.cli("account", "list", "alice@example.test")
    assert done.stdout == "alice@example.test  password (PLAIN), token  disabled\n"
    file.write_text(text)
    hang_up(relay, "reloaded")
    assert send(relay, "me", "alice") == 202
    until(
        "mail from all the time",
        lambda: (
            {"before", "after", "by Graph"} <= {one["subject"] for one in relay.messages("inbox")}
        ),
    )
