"""Mail of Django's mail backend."""

import smtplib

import pytest
import shop


def test_a_login_code_arrives(relay_django):
    code = shop.send_login_code("joe@gmail.com")
    message = relay_django.mailbox("joe@gmail.com").wait_for(subject="Your login code")
    assert message.code() == code
    relay_django.assert_no_more_mail()


def test_an_invoice_has_a_link_and_a_file(relay_django):
    shop.send_invoice("joe@gmail.com", 12)
    message = relay_django.mailbox("joe@gmail.com").wait_for(sender="shop@example.test")
    assert message.links() == ["https://shop.test/invoices/12"]
    assert [(one.name, one.content) for one in message.attachments] == [("12.pdf", b"%PDF-1.7")]


def test_a_bounce_comes_back_to_the_shop(relay_django, internet):
    internet.domain("gmail.com").rcpt("gone").reply("550 5.1.1 no such user")
    shop.send_invoice("gone@gmail.com", 13)
    report = relay_django.mailbox("shop@example.test").wait_for(subject="Undeliverable: Invoice 13")
    assert report.bounce.status == "5.1.1"


@pytest.mark.relay(config={"smtp": [{"max_message_size": "64 KiB"}]})
def test_a_large_message_is_refused(relay_django):
    with pytest.raises(smtplib.SMTPException, match="larger than 65536"):
        shop.send_mail("Large", "x" * 100_000, "shop@example.test", ["joe@gmail.com"])
    relay_django.assert_no_more_mail()
