"""A disclaimer on mail from the API, from SMTP and from sendmail, as the next host gets it."""

import smtplib
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest

from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes, received

RULES = """
[[rule]]
name = "strict"
when = { recipient = "*@strict.a.test" }
then = [ { disclaimer = { text = "Für Sie", fallback = "reject" } } ]

[[rule]]
name = "disclaimer"
when = { direction = "outbound" }
then = [ { disclaimer = { text = "Nur für Sie\\n<vertraulich>" } } ]
"""
SIGNED = b"From: alice@example.test\r\nContent-Type: application/pkcs7-mime\r\n\r\nMIAG\r\n"


@pytest.fixture(scope="module")
def remote(remotes_module: Remotes) -> RemoteMx:
    return remotes_module.start("a.test")


@pytest.fixture(scope="module")
def relay(remotes_module: Remotes, remote: RemoteMx, serve_module) -> RelayProcess:
    return serve_module(remotes_module, policies={"10-rules.toml": RULES})


def arrived(remote: RemoteMx, address: str) -> EmailMessage:
    """The message at the next host; it has no defects."""
    found = message_from_bytes(received(remote, address).content, policy=policy.default)
    assert [one.defects for one in found.walk() if one.defects] == []
    return found


def text_of(part: EmailMessage | None) -> str:
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


def test_from_the_api(relay: RelayProcess, remote: RemoteMx) -> None:
    html = {"contentType": "html", "content": "<html><body><p>Hi</p></body></html>"}
    relay.send_mail(to=["graph@a.test", "bob@example.test"], subject="both", body=html)
    found = arrived(remote, "graph@a.test")
    assert text_of(found.get_body(("plain",))) == "Hi\n\nNur für Sie\n<vertraulich>"
    end = "<p>Nur für Sie<br>\n&lt;vertraulich&gt;</p></div>\n</body></html>"
    assert text_of(found.get_body(("html",))).rstrip().endswith(end)
    until("bob has it", lambda: relay.subjects("bob") == ["both"])
    [copy] = relay.maildir("bob")
    assert b"Nur" not in copy.as_bytes()


@pytest.mark.parametrize("size", [0, 2_000_000], ids=["small", "large"])
def test_by_smtp(relay: RelayProcess, remote: RemoteMx, size: int) -> None:
    message = EmailMessage()
    message["From"], message["To"] = "alice@example.test", f"smtp{size}@a.test"
    message.set_content("Hi")
    octets = bytes(range(256)) * (size // 256 + 1)
    message.add_attachment(octets, maintype="application", subtype="x-test", filename="x")
    sent = message.as_bytes(policy=policy.SMTP)
    identity = relay.submit("alice@example.test", [f"smtp{size}@a.test"], sent)
    found = arrived(remote, f"smtp{size}@a.test")
    assert text_of(found.get_body()) == "Hi\n\nNur für Sie\n<vertraulich>\n"
    [attached] = found.iter_attachments()
    assert attached.get_content() == octets
    journey = relay.until_final(identity)
    [hits] = [one["detail"]["rules"] for one in journey["steps"] if one["step"] == 5]
    assert [one["outcome"] for one in hits] == ["disclaimer"]
    # a part was changed, and no octet behind it
    assert received(remote, f"smtp{size}@a.test").content.endswith(sent[-size or -200 :])


def test_signed_mail_is_attached_to_a_new_message(relay: RelayProcess, remote: RemoteMx) -> None:
    identity = relay.submit("alice@example.test", ["signed@a.test"], SIGNED)
    found = arrived(remote, "signed@a.test")
    assert "vertraulich" in text_of(found.get_body())
    [attached] = found.iter_attachments()
    assert attached.get_content().get_content_type() == "application/pkcs7-mime"
    journey = relay.until_final(identity)
    [hits] = [one["detail"]["rules"] for one in journey["steps"] if one["step"] == 5]
    wrapped = {"condition": "disclaimer", "value": "wrap: it is signed or encrypted"}
    assert hits[0]["because"][-1] == wrapped


def test_what_must_have_it_is_rejected(relay: RelayProcess) -> None:
    with relay.smtp() as session:
        session.ehlo()
        with pytest.raises(smtplib.SMTPDataError) as refused:
            session.sendmail("alice@example.test", ["x@strict.a.test"], SIGNED)
    assert refused.value.smtp_code == 554
    text = b"5.6.3 A disclaimer has to be added to this message, but it is signed or encrypted"
    assert text in refused.value.smtp_error
