"""The condition `message_type`, and types of parts whose content is elsewhere."""

import pytest

from relay.base.message.envelope import Source
from relay.transport.policy.content_conditions import MessageType
from relay.transport.policy.rule_tests import examined_message
from tests.support.tables import each_row
from tests.unit.transport.policy.conftest import rule

HOLD = "{ hold = 'x' }"
SMIME = "Content-Type: application/pkcs7-mime"


def mail(*fields, body="hi"):
    return "".join(f"{each}\r\n" for each in fields).encode() + f"\r\n{body}\r\n".encode()


def multipart(*parts, kind="mixed"):
    body = "".join(f"--b\r\n{each}\r\n" for each in parts) + "--b--"
    return mail(f'Content-Type: multipart/{kind}; boundary="b"', body=body)


CALENDAR = "Content-Type: text/calendar; method=REQUEST\r\n\r\nBEGIN:VCALENDAR"
PLAIN = "Content-Type: text/plain\r\n\r\nhi"


@each_row(
    "content, kinds",
    [
        (mail("Subject: x"), ""),
        (mail("Auto-Submitted: auto-generated"), "automatic"),
        (mail("Auto-Submitted: Auto-Replied; owner-email=a@b.test"), "automatic"),
        (mail("Auto-Submitted: NO"), ""),
        (mail("Auto-Submitted: no (a person); x=y"), ""),
        (mail("Auto-Submitted:"), "automatic"),
        (mail("Precedence: Bulk"), "automatic"),
        (mail("Precedence: list"), ""),
        (mail("List-Id: News <news.example>"), "list"),
        (mail("List-Unsubscribe: <mailto:a@b.test>"), ""),
        (mail("List-Id: <a>", "Precedence: bulk"), "automatic, list"),
        (multipart(PLAIN, kind="report"), "report"),
        (
            mail(
                "Content-Type: Multipart/Report; report-type=disposition-notification; boundary=b"
            ),
            "report",
        ),
        (multipart(PLAIN, kind="signed"), "signed"),
        (mail(f"{SMIME}; smime-type=Signed-Data"), "signed"),
        (mail(f"{SMIME}; name=smime.P7S"), "signed"),
        (multipart(PLAIN, kind="encrypted"), "encrypted"),
        (mail(SMIME), "encrypted"),
        (mail(f"{SMIME}; name=smime.p7m"), "encrypted"),
        (mail(f"{SMIME}; smime-type=authEnveloped-data"), "encrypted"),
        (mail(f"{SMIME}; smime-type=certs-only"), ""),
        (mail("Subject: x", body="-----BEGIN PGP MESSAGE-----"), ""),
        (
            multipart(PLAIN, "Content-Type: multipart/signed; boundary=c\r\n\r\n--c\r\n\r\n--c--"),
            "",
        ),
        (mail("Content-Type: text/calendar"), "calendar"),
        (mail("Content-Type: application/ics; name=a.ics"), "calendar"),
        (multipart(PLAIN, CALENDAR, kind="alternative"), "calendar"),
        (
            multipart(
                PLAIN,
                "Content-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n" + CALENDAR + "\r\n--c--",
            ),
            "calendar",
        ),
        (multipart(PLAIN, f"Content-Type: message/rfc822\r\n\r\n{CALENDAR}"), ""),
        (multipart(PLAIN, "Content-Type: text/plain; name=a.ics\r\n\r\nx"), ""),
    ],
)
def test_the_types_of_a_message(evaluate, content, kinds):
    expected = kinds.split(", ") if kinds else []
    text = "".join(
        rule(HOLD, name=each, when=f"{{ message_type = '{each}' }}") for each in MessageType
    )
    hits = evaluate(text, content=content).hits
    assert [(each.rule, each.because[0].value) for each in hits] == [(one, one) for one in expected]


LARGE = b"x" * 70_000


@pytest.mark.parametrize(
    ("kinds", "content", "needs_thread"),
    [
        (
            "['automatic', 'list', 'report', 'signed', 'encrypted']",
            multipart(PLAIN, kind="signed") + LARGE,
            False,
        ),
        ("'calendar'", multipart(PLAIN, CALENDAR), False),
        ("'calendar'", mail("Subject: x") + LARGE, False),
        ("'calendar'", multipart(PLAIN, CALENDAR) + LARGE, True),
    ],
)
def test_only_the_parts_of_a_large_message_take_a_thread(rules_of, kinds, content, needs_thread):
    rules = rules_of(rule(HOLD, when=f"{{ message_type = {kinds} }}"))
    message = examined_message("", ["b@x.test"], content, source=Source.SMTP, local_domains=())
    assert rules.begin(message).run(in_thread=False) is not needs_thread


PARTIAL = 'Content-Type: message/partial; id="x"; number=1; total=2'
EXTERNAL = 'Content-Type: message/external-body; access-type=URL; URL="http://x.test/"'


@pytest.mark.parametrize("kind", ["message/partial", "message/external-body"])
@pytest.mark.parametrize("inside", ["{}", "message", "multipart"])
def test_a_part_whose_content_is_elsewhere_is_an_attachment(evaluate, kind, inside):
    field = PARTIAL if "partial" in kind else EXTERNAL
    part = f"{field}\r\n\r\nContent-Type: text/plain\r\n\r\nMZ"
    content = part.encode()
    if inside == "multipart":
        content = multipart(PLAIN, part)
    elif inside == "message":
        content = multipart(PLAIN, f"Content-Type: message/rfc822\r\n\r\n{part}")
    [hit] = evaluate(
        rule(HOLD, when=f"{{ attachment = {{ type = '{kind}' }} }}"), content=content
    ).hits
    assert kind in hit.because[0].value
    other = rule(HOLD, name="o", when="{ attachment = { type = 'message/x' } }")
    assert not evaluate(other, content=content).hits
