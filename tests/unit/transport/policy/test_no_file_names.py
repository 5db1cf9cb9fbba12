"""Names that end in .com and are no file names: subjects of messages, Content-IDs of pictures."""

import base64
import io
import zipfile
from binascii import b2a_uu
from itertools import chain

import pytest

from relay.base.message.envelope import Source
from relay.base.settings.environment import shipped
from relay.transport.policy.content_conditions import AttachmentCondition, AttachmentNameCondition
from relay.transport.policy.message_view import MessageView
from relay.transport.policy.rule_files import load_rules
from relay.transport.policy.rule_tests import examined_message, overall_verdict
from relay.transport.policy.rules import OverallVerdict
from tests.support.contents import as_large
from tests.support.tables import each_row

PNG, GIF = b"\x89PNG\r\n\x1a\n" + bytes(40), b"GIF89a" + bytes(9)
JPEG, WEBP = b"\xff\xd8\xff\xe0" + bytes(9), b"RIFF\4\0\0\0WEBPVP8 "
ID, COM = "logo@shop.com", "Your order at shop.com"
INLINE = "Content-Disposition: inline\r\n"
HEADER = b"Received: by a\r\n (b)\r\nFrom: a@shop.com\r\nSubject: x\r\n\r\n"


def around(*parts):
    whole = b"Subject: x\r\nContent-Type: multipart/related; boundary=b\r\n\r\n"
    return whole + b"".join(b"\r\n--b\r\n" + part for part in parts) + b"\r\n--b--\r\n"


def picture(body=PNG, kind="image/png", name=f'"{ID}"', ids=f"Content-ID: <{ID}>\r\n", more=INLINE):
    fields = f"Content-Type: {kind}; name={name}\r\n{ids}{more}"
    head = f"{fields}Content-Transfer-Encoding: base64\r\n\r\n".encode()
    return around(b"\r\n<img>", head + base64.encodebytes(body))


def message(body=HEADER + b"hi", kind="message/rfc822", name=COM, more=""):
    named = f'Content-Disposition: attachment; filename="{name}"\r\n'
    return around(f"Content-Type: {kind}\r\n{named}{more}\r\n".encode() + body)


def coded(name):
    return f"Content-Transfer-Encoding: {name}\r\n"


def zipped(name):
    with zipfile.ZipFile(octets := io.BytesIO(), "w") as archive:
        archive.writestr(name, HEADER)
    return octets.getvalue()


def id_as_name(text, **more):
    return picture(name=f'"{text}"', ids=f"Content-ID: <{text}>\r\n", **more)


PICTURES = [
    picture(),
    picture(more=""),
    picture(name=ID),
    picture(JPEG, "image/jpeg"),
    picture(GIF, "IMAGE/GIF"),
    picture(WEBP, "image/webp"),
    id_as_name("Logo.1@Shop.COM"),
    picture(ids=f"Content-ID: {ID}\r\n", more=f'Content-Disposition: inline; filename="{ID}"\r\n'),
    picture(more='Content-Disposition: inline; name="divider.png"; filename="divider.png"\r\n'),
]
MESSAGES = [
    message(),
    message(more=coded("7bit")),
    message(more=coded("8bit")),
    message(more=coded("Binary")),
    message(kind=f'message/rfc822; name="{COM}"'),
    message(kind="message/global", body=b"Date: x\r\nSubject: \xc3\xbc\r\n\r\n\xc3\xbc"),
    message(name="=?utf-8?q?Gr=C3=BC=C3=9Fe_von_shop=2Ecom?="),
    message(name="Re: (www.shop.com"),
    message(body=b"Content-Type: message/rfc822; name=a.com\r\nDate: x\r\n\r\n" + HEADER),
    around(
        b"Content-Type: message/rfc822\r\n\r\n" + HEADER, message()[message().index(b"--b") + 5 :]
    ),
]
FALSE_PICTURES = [
    picture(ids=""),
    picture(ids=f"Content-ID: <{ID.upper()}>\r\n"),
    picture(ids=f"Content-ID: <x{ID}>\r\n"),
    picture(ids=2 * f"Content-ID: <{ID}>\r\n"),
    picture(ids=f"Content-ID: <a@b>\r\nContent-ID: <{ID}>\r\n"),
    id_as_name("logo.com"),
    *[id_as_name(f"logo@shop.{kind}") for kind in ("exe", "scr", "pif", "js", "bat", "lnk")],
    picture(name=f'"x/{ID}"'),
    picture(name=f'"{ID}."'),
    picture(name=f'"{ID}\u200b"'),
    picture(name='"\uff4cogo@shop.com"'),
    picture(name=f'"{ID}\\"'),
    picture(more=f"{INLINE}Content-Location: setup.com\r\n"),
    picture(more='Content-Disposition: inline; filename="setup.com"\r\n'),
    picture(more=f'Content-Disposition: inline; filename="{ID}"; filename="a@setup.com"\r\n'),
    picture(more="Content-Disposition: inline; filename*=utf-8''setup%2Ecom\r\n"),
    picture(more="Content-Disposition: attachment\r\n"),
    picture(more=2 * INLINE),
    picture(more=f"{INLINE}Content-Disposition: attachment\r\n"),
    picture(more=f"{INLINE}Content-Type: application/octet-stream\r\n"),
    picture(more=f"{INLINE}no field\r\n"),
    picture(kind="application/octet-stream"),
    picture(kind="image/png (x)"),
    picture(kind="image/png x"),
    picture(b"<svg/>", "image/svg+xml"),
    picture(b"BM" + bytes(12) + b"\x28" + bytes(9), "image/bmp"),
    picture(JPEG),
    picture(b"MZ" + PNG),
    picture(b" " + PNG),
    picture(b""),
    picture(more=f"{INLINE}{coded('quoted-printable')}"),
    picture(zipped(ID), "application/zip"),
    around(f"Content-ID: <{ID}>\r\n\r\nbegin 644 {ID}\r\n".encode() + b2a_uu(PNG[:45]) + b"`\r\nend\r\n"),
]  # fmt: skip
FALSE_MESSAGES = [
    *[
        message(name=f"shop.{kind}")
        for kind in ("exe", "scr", "pif", "js", "bat", "lnk", "com.exe")
    ],
    *[message(kind=f"message/{kind}") for kind in ("partial", "external-body", "delivery-status")],
    message(kind="message/rfc822x"),
    message(kind="message/rfc822 (x)"),
    message(kind="application/octet-stream"),
    message(kind="text/rfc822-headers"),
    message(kind="message/rfc822\r\nContent-Type: application/octet-stream"),
    message(kind="application/octet-stream\r\nContent-Type: message/rfc822"),
    message(kind=2 * "message/rfc822\r\nContent-Type: a/b\r\nContent-Type: " + "message/rfc822"),
    message(kind="message/rfc822", more="no field\r\n"),
    message(more='Content-Type: message/rfc822; name="setup.exe"\r\n'),
    message(more=coded("base64"), body=base64.encodebytes(HEADER)),
    message(more=coded("quoted-printable")),
    message(more=coded("x-unknown")),
    message(more=coded("7bit") + coded("base64")),
    message(b"MZ" + HEADER),
    message(b"MZ: x\r\n" + HEADER),
    message(b""),
    message(b"\r\n" + HEADER),
    message(b" x\r\n" + HEADER),
    message(b"no field\r\n" + HEADER),
    message(b"X: y\r\nno field\r\n" + HEADER),
    message(b"X: \0\r\n" + HEADER),
    message(b"\xb4\x09\xba\x10\x01\xcd\x21\r\n" + HEADER),
    message(b"\xef\xbb\xbf" + HEADER),
    message(b"Subject: x\r\n\r\nFrom: a@b\r\n"),
    message(b"Subject: x\r\n From: a@b\r\n\r\n"),
    message(b"Fromage: x\r\nX-Date: y\r\n\r\n"),
    message(HEADER[:-2] + b"Date"),
    message(HEADER + b"\r\n" + around(b"Content-Type: a/b; name=setup.com\r\n\r\nx")[12:]),
    message(message(kind="a/b"), name="x.eml"),
]


def mail(content):
    return examined_message("a@a.test", ["b@b.test"], content, source=Source.SMTP, local_domains=())


@pytest.mark.parametrize("form", [bytes, as_large], ids=["small", "large"])
def test_the_shipped_rules_refuse_programs_and_no_subjects_or_content_ids(form):
    assert min(len(FALSE_PICTURES), len(FALSE_MESSAGES)) >= 30
    rules = load_rules(shipped("policies"))
    for shapes in (PICTURES, MESSAGES), (FALSE_PICTURES, FALSE_MESSAGES):
        right = OverallVerdict.REJECT if shapes[0] is FALSE_PICTURES else OverallVerdict.ACCEPT
        for one in chain.from_iterable(shapes):
            assert (overall_verdict(rules.evaluate(mail(form(one)))), one) == (right, one)


@each_row(
    "globs, matches",
    [
        (["*.com"], False),
        (["*SHOP.com", "*order*.com", "*.c?m"], False),
        (["*.com", "your*"], True),
        (["*at shop*"], True),
        (["*"], True),
        ([COM], True),
        (["*.eml"], False),
    ],
)
def test_only_the_ending_com_is_another(globs, matches):
    view = MessageView(mail(message()), mail(message()).content, {})
    for condition in (
        AttachmentNameCondition.parse(globs, {}),
        AttachmentCondition.parse({"name": globs, "type": "message/rfc822"}, {}),
    ):
        assert condition.matches(view) is matches
        assert condition.value_in(view).startswith(COM.lower())
