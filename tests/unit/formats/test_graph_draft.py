"""A message as a draft of Graph: its JSON and files, or the shape that is not converted."""

import json
import re
from functools import partial

import pytest

from relay.formats.graph_draft import NotConverted, graph_draft
from tests.support.tables import each_row

ANN, BOB = "ann@a.test", "bob@b.test"


def part(kind: str, body="AAEC", encoding="", more="") -> str:
    coded = f"Content-Transfer-Encoding: {encoding}\n" if encoding else ""
    return f"Content-Type: {kind}\n{coded}{more}\n{body}\n"


def multi(kind: str, *parts: str, end="--") -> str:
    boundary = f"{kind}{len(parts)}{end}"
    inner = "".join(f"--{boundary}\n{one}" for one in parts)
    return f'Content-Type: multipart/{kind}; boundary="{boundary}"\n\n{inner}--{boundary}{end}\n'


def file(name: str, body="AAEC", kind="application/pdf") -> str:
    return part(kind, body, "base64", f"Content-Disposition: attachment; filename={name}\n")


TEXT, HTML, PDF = part("text/plain", "text"), part("text/html", "<p>"), file("a.pdf")
MESSAGE = """\
From: =?utf-8?q?J=C3=BCrgen?= <j@a.test>
Sender: boss@a.test
Reply-To: r@r.test
To: Bob <bob@b.test>, carl@c.test
Subject: =?utf-8?b?R3LDvMOfZQ==?= and
 more
Date: Mon, 2 Jan 2006 15:04:05 -0700
Message-ID: <x@a.test>
Importance: High
References: <a@a.test> <b@a.test>
In-Reply-To: <b@a.test>
X-Mailer: =?utf-8?q?=C3=BC?=
List-Id: l.a.test
"""
LATIN = part("text/html; charset=iso-8859-1", 'Gr=FC=DFe<img src="cid:c1">', "quoted-printable")
IMAGE = part("image/png", "AAEC", "base64", "Content-ID: c1\nContent-Location: a.png\n")
INLINE = """Content-ID: <c2>
Content-Disposition: inline; filename*0*=utf-8''%C3%9C; filename*1=b.pdf
"""
MESSAGE += multi(
    "mixed",
    multi("alternative", TEXT, multi("related", LATIN, IMAGE)),
    part("application/pdf", "AAECAw==", "base64", INLINE),
    part("message/rfc822", "Subject: inner\n\nx"),
    part("text/plain; name=a.txt", "ü", "8bit"),
)


def person(address: str, name="") -> dict[str, dict[str, str]]:
    return {"emailAddress": {"address": address, "name": name}}


def test_a_draft_has_the_message_and_its_files():
    content = MESSAGE.replace("\n", "\r\n").encode()
    draft = graph_draft(content, [BOB, ANN], message_id="<n@r.test>", signed=False)
    assert json.loads(draft.message) == {
        "from": person("j@a.test", "Jürgen"),
        "sender": person("boss@a.test"),
        "replyTo": [person("r@r.test")],
        "toRecipients": [person(BOB, "Bob")],
        "bccRecipients": [person(ANN)],
        "subject": "Grüße and more",
        "body": {"contentType": "html", "content": 'Grüße<img src="cid:c1">'},
        "importance": "high",
        "internetMessageId": "<n@r.test>",
        "internetMessageHeaders": [{"name": "X-Mailer", "value": "ü"}],
        "singleValueExtendedProperties": [
            {"id": "String 0x1042", "value": "<b@a.test>"},
            {"id": "String 0x1039", "value": "<a@a.test> <b@a.test>"},
        ],
    }
    files = [(one.name, one.content_id, one.size, [*one.blocks(3)]) for one in draft.files]
    assert files == [
        ("attachment.png", "c1", 3, [b"\0\1\2"]),
        ("Üb.pdf", "", 4, [b"\0\1\2", b"\3"]),  # the HTML does not show it
        ("inner.eml", "", 19, [b"Sub", b"jec", b"t: ", b"inn", b"er\r", b"\n\r\n", b"x"]),
        ("a.txt", "", 2, ["ü".encode()]),
    ]
    assert draft.left_out == ("carl@c.test",)
    assert draft.not_carried == ("Date", "List-Id", "Content-Location", "the text beside the HTML")


ICS = part("text/calendar; method=REQUEST", "BEGIN")
SHAPES = """application/pkcs7-mime application/x-pkcs7-mime application/pkcs7-signature text/calendar
application/pgp-encrypted message/delivery-status message/external-body message/partial application/ms-tnef"""
SEVERAL, CHARSET, NAME = "several texts", "not in its charset", "a file whose name is too long"
BESIDE = "the text beside the HTML"


@each_row(
    "message, expected",  # its words, or its files and what is not carried
    [
        (multi("signed", TEXT, part("application/x-own")), "multipart/signed"),
        (multi("mixed", multi("signed", TEXT, PDF), TEXT), "multipart/signed"),  # of a list
        (multi("encrypted", part("application/pgp-encrypted"), PDF), "multipart/encrypted"),
        (multi("report", TEXT, part("message/delivery-status", "a: b")), "multipart/report"),
        (file("smime.p7m", kind="application/octet-stream"), "a file smime.p7m"),
        (part("text/plain", "-----BEGIN PGP MESSAGE-----"), "text with PGP"),
        (multi("alternative", TEXT, HTML, ICS), "text/calendar"),
        *((multi("mixed", TEXT, part(kind)), kind) for kind in SHAPES.split()),
        (part("application/pkcs7-mime; smime-type=enveloped-data"), "application/pkcs7-mime"),
        (multi("mixed", TEXT, file("WINMAIL.DAT", kind="a/b")), "a file WINMAIL.DAT"),
        *(
            (multi("alternative", TEXT, part(kind), HTML), f"alternative with {kind}")
            for kind in ("text/x-amp-html", "text/enriched", "application/pdf")
        ),
        (multi("alternative", TEXT, TEXT, HTML), SEVERAL),
        (multi("mixed", HTML, TEXT), SEVERAL),
        (multi("mixed", multi("alternative", TEXT), HTML), SEVERAL),
        (multi("mixed", multi("alternative", TEXT, HTML), TEXT), SEVERAL),  # the footer of a list
        (multi("mixed", TEXT, PDF, TEXT), SEVERAL),
        (part("text/plain; charset=x-own", "a"), CHARSET),
        (part("text/plain; charset=utf-8", "gr=FC", "quoted-printable"), CHARSET),
        (part("text/plain; charset=us-ascii", "grü", "8bit"), CHARSET),
        (f"Subject: =?utf-8?b?4pg=?=\n{TEXT}", "header field that is not in its charset"),
        (multi("mixed", TEXT, PDF, end=""), "damaged MIME"),
        (f"no field\n{TEXT}", "damaged MIME (a line in a header"),
        (part("text/plain", "a", "8-bit"), "an unknown transfer encoding: '8-bit'"),
        (file("a", body="AA!!EC*"), "a part in damaged or unusual base64"),
        (file("a", body="#86)C", kind="a/b").replace("base64", "x-uuencode"), "x-uuencode"),
        (part("text/plain", "AGE=", "base64"), "a text with a NUL"),
        (multi("mixed", TEXT, file("a", body="")), "an empty file"),
        (file('"a\1b"'), NAME),
        (file("a" * 256), NAME),
        (f"DKIM-Signature: v=1\n{TEXT}", "DKIM-Signature of another"),
        (multi("mixed", *[PDF] * 251), "more than 250 files"),
        (PDF, ["a.pdf"]),
        (multi("mixed", part("text/plain", ""), PDF, part("text/plain", "\n \n")), ["a.pdf"]),
        (multi("mixed", part("text/plain; charset=utf-8", "grü"), PDF), ["a.pdf"]),
        (multi("alternative", TEXT, multi("mixed", HTML, PDF)), ["a.pdf", BESIDE]),
        (multi("mixed", HTML, IMAGE), ["attachment.png", "Content-Location"]),
        (part("message/rfc822", multi("signed", ICS, TEXT)), ["attachment.eml"]),
        (multi("mixed", TEXT, part("text/csv")), ["attachment.csv"]),
        (part("text/plain", "grü"), []),  # without its encoding
        (multi("mixed", TEXT, part("image/tiff", "AAEC", "Base64")), ["attachment.tiff"]),
        (multi("mixed", TEXT, file("a.asc", kind="application/pgp-keys")), ["a.asc"]),
        (multi("mixed", TEXT, file("a.ics", kind="application/octet-stream")), ["a.ics"]),
        (file('"=?utf-8?q?=C3=BC?=\tb"'), ["ü b"]),
        (file("a" * 255), ["a" * 255]),
        (f"Received: a\nReturn-Path: <a@a.test>\nDate: a\nX-Priority: 1\n{TEXT}", ["Date"]),
        ("".join(f"X-{n}: a\n" for n in range(6)) + TEXT, ["X-5"]),
        ("\n", []),
    ],
)
def test_what_is_not_converted_and_what_is(message: str, expected: str | list[str]) -> None:
    content = f"From: {ANN}\nMIME-Version: 1.0\n{message}".replace("\n", "\r\n").encode()
    make = partial(graph_draft, content, [BOB], message_id="<n@r.test>")
    if isinstance(expected, list):
        draft = make(signed=False)
        files = [f"{one.name} {one.content_id}".rstrip() for one in draft.files]
        assert [*files, *draft.not_carried] == expected
        return
    with pytest.raises(NotConverted, match=f"{re.escape(expected)}.* is not converted .* fallback"):
        make(signed=False)
    if "DKIM" in expected:
        assert make(signed=True).not_carried == ("DKIM-Signature",)
