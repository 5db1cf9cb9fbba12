"""What a test reads of a message: text, links, codes, attachments, and delivery reports."""

import re
from email.message import EmailMessage
from pathlib import Path

import pytest

from relay.testing.message import Message, read_reports
from tests.support.tables import each_row

GOLDEN = Path(__file__).parents[2] / "golden"


class NoSource:
    def journey(self):
        return None

    def reports(self):
        return ()


def message(eml: EmailMessage | bytes) -> Message:
    octets = eml if isinstance(eml, bytes) else eml.as_bytes()
    return Message(lambda: octets, NoSource())


def mail(text="", html="", subject="Hello"):
    made = EmailMessage()
    made["Subject"] = subject
    made["Message-ID"] = "<1@x.test>"
    if text:
        made.set_content(text)
    if html:
        made.add_alternative(html, subtype="html") if text else made.set_content(
            html, subtype="html"
        )
    return made


def test_a_malformed_header_and_an_unknown_charset_are_read_all_the_same():
    found = message(
        b'From: "\r\nSubject: x\r\nContent-Type: text/plain; charset=utf-99\r\n\r\nCode 123456'
    )
    assert repr(found).startswith("<Message 'x' from ")
    assert (found.text, found.code()) == ("Code 123456", "123456")


def test_checks_of_html_and_links():
    html = (
        "<p>Hello</p>\n<div style='display:flex'><a href='http://localhost:3000/'>Confirm</a></div>"
    )
    found = message(mail("see {{url}}", html)).checks()
    assert 50 < found.score < 100
    assert "display:flex" in [one.feature for one in found.problems]
    assert [one.problems for one in found.links] == [("http", "localhost")]
    assert message(mail("text only")).checks().score == 100


@each_row(
    "text, code",
    [
        ("Your code is 123456.", "123456"),
        ("(c) 2026. Your code: 204 512 is not one, 987654 is", "987654"),
        ("PIN 4711", "4711"),
        ("order 12345-99, 1.250000 EUR, code 00112233", "00112233"),
        ("Order 567890 is on its way.\n\nYour PIN: 4821", "4821"),
        ("Order 567890\n\n4821 is your one-time password, valid until 2030", "4821"),
        ("Invoice 567890. Your code is below.\n\n   0042\n", "0042"),
        ("Your code arrives later. " + "x " * 40 + "Order 4711, customer 567890", "567890"),
    ],
)
def test_a_code_is_near_a_word_for_codes_else_of_six_else_of_four_to_eight_digits(text, code):
    assert message(mail(text)).code() == code


def test_a_code_is_found_in_html_but_not_in_its_styles():
    html = "<style>p {color: #123456; width: 654321px}</style><p>Your code: <b>111222</b></p>"
    assert message(mail(html=html)).code() == "111222"


def test_a_code_can_have_a_pattern():
    found = message(mail("Use G-8812 now"))
    assert found.code(r"G-(\d+)") == "8812"
    assert found.code(re.compile(r"g-\d+", re.IGNORECASE)) == "G-8812"


def test_attachments_have_name_type_and_content():
    made = mail("text", "<p>html</p>")
    made.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="a.pdf")
    inner = mail("inner", subject="Forwarded")
    made.add_attachment(inner)
    pdf, forwarded = message(made).attachments
    assert (pdf.name, pdf.content_type, pdf.content) == ("a.pdf", "application/pdf", b"%PDF")
    assert forwarded.content_type == "message/rfc822"
    assert b"Subject: Forwarded" in forwarded.content


def test_text_and_html_are_decoded():
    found = message(mail("Grüße\n", "<p>Grüße</p>\n", subject="Ünïcode"))
    assert (found.subject, found.text, found.html) == ("Ünïcode", "Grüße\n", "<p>Grüße</p>\n")
    assert message(mail("only text")).html == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mixed", [("bob@example.net", "5.1.1"), ("carol@example.net", "5.2.2")]),
        ("headers", [("bob@example.net", "5.1.1")]),
        ("international", [("bøb@example.net", "5.1.1"), ("bob@example.net", "5.1.1")]),
    ],
)
def test_delivery_reports_are_read(name, expected):
    report = message((GOLDEN / f"report-{name}.eml").read_bytes())
    assert [(one.recipient, one.status) for one in report.bounces] == expected
    assert {(one.action, one.kind) for one in report.bounces} == {("failed", "failure")}
    assert report.reports == report.bounces
    assert report.bounce.reply.startswith(("550 5.1.1", "no"))


@pytest.mark.parametrize("name", ["mixed", "headers"])
def test_a_report_names_the_original(name):
    report = message((GOLDEN / f"report-{name}.eml").read_bytes())
    about = "<orig-123@example.com>"
    assert read_reports(report.source, report.eml, about=about) == report.bounces
    assert read_reports(report.source, report.eml, about="<orig-124@example.com>") == []
