"""A PATCH of a MIME draft changes what it names; every other octet stays."""

import email
import email.policy
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from relay.base.message.content import BLOCK_BYTES, MemoryOctets
from relay.base.message.properties import EmailAddress
from relay.formats.edit_draft import NotEditableError, changed_mime
from relay.formats.read_mime import read_mime
from relay.formats.structure import read_structure
from tests.support.contents import Counted, attached_octets
from tests.support.tables import each_row
from tests.unit.formats.test_structure import entities

FROM = b"From: a@a.test\r\n"
TEXT = b"Content-Type: text/plain\r\n\r\nold text"
HTML = b"Content-Type: text/html; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n<p>\xfc</p>"
IMAGE = (
    b"Content-Type: image/png\r\nContent-ID: <i>\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC"
)
FILE = b'Content-Type: application/pdf; name="f.pdf"\r\nContent-Transfer-Encoding: base64\r\n\r\nAAECAw=='
ITEM = b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\nTo: x@x.test\r\n\r\ninner text"
SIGNATURE = b"Content-Type: application/pgp-signature\r\n\r\nsignature"


def multipart(kind, *parts, preamble=b""):
    mark = kind[:3]
    body = b"".join(b"--%b\r\n%b\r\n" % (mark, part) for part in parts)
    return b"Content-Type: multipart/%b; boundary=%b\r\n\r\n%b%b--%b--\r\n" % (
        kind,
        mark,
        preamble,
        body,
        mark,
    )


def changed(content, **new):
    before = read_mime(content).properties
    octets = changed_mime(MemoryOctets(content), before, structs.replace(before, **new))
    made = octets.read(0, octets.size)
    message = email.message_from_bytes(made, policy=email.policy.default)
    assert not [part.defects for part in message.walk() if part.defects]
    return made


def kinds(content):
    return [one.content_type for one in read_structure(content).entities]


@each_row(
    "new, had, has",
    [
        ({"subject": "néu"}, b"Subject: old\r\n", b"Subject: =?utf-8?B?bsOpdQ==?=\r\n"),
        ({"subject": ""}, b"Subject: old\r\n", b""),
        (
            {"to": (EmailAddress("n@n.test", "N, N"),)},
            b"To: b@b.test,\r\n c@c.test\r\n",
            b'To: "N, N" <n@n.test>\r\n',
        ),
        ({"bcc": ()}, b"bcc: d@d.test\r\n", b""),
        (
            {"importance": "high"},
            b"Importance: low\r\nX-Priority: 5\r\n",
            b"Importance: high\r\nX-Priority: 1 (Highest)\r\n",
        ),
        ({"read_receipt": False}, b"Disposition-Notification-To: a@a.test\r\n", b""),
        ({"categories": ("x", "y z")}, b"Keywords: w\r\n", b"Keywords: x,\r\n y z\r\n"),
    ],
)
def test_only_the_fields_of_a_changed_property_change(new, had, has):
    header = (
        FROM
        + b"X-Odd:\t odd  \r\n more\r\nSubject: old\r\nTo: b@b.test,\r\n c@c.test\r\nbcc: d@d.test\r\nImportance: low\r\nX-Priority: 5\r\n"
        b"Disposition-Notification-To: a@a.test\r\nKeywords: w\r\nMIME-Version: 1.0 (odd)\r\nmessage-id: <m@m>\r\n"
    )
    content = header + multipart(b"mixed", TEXT, ITEM, FILE, preamble=b"odd \r\n") + b"epilogue\n"
    assert changed(content, **new) == content.replace(had, has)


def test_a_new_field_is_added_before_a_line_that_is_not_a_field():
    """There the header ends for others."""
    content = FROM + b"junk line\r\nX-A: b\r\n\r\nx"
    assert (
        changed_octets(content, to=(EmailAddress("b@b.test"),))
        == FROM + b"To: b@b.test\r\njunk line\r\nX-A: b\r\n\r\nx"
    )


@pytest.mark.parametrize("line", [b" white space\r\n", b"From a Mon\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_no_field_is_added_before_the_first_line(mark, line):
    made = changed_octets(mark + line + FROM + b"\r\nx", subject="s")
    assert made == line + FROM + b"Subject: s\r\n\r\nx"


def changed_octets(content, **new):
    before = read_mime(content).properties
    made = changed_mime(MemoryOctets(content), before, structs.replace(before, **new))
    return made.read(0, made.size)


ALTERNATIVE = multipart(b"alternative", TEXT, HTML)
RELATED = multipart(b"related", HTML, IMAGE)
NEW_HTML = {"body_type": "html", "body": "<p>nëw <img src='cid:i'></p>"}
NEW_TEXT = {"body_type": "text", "body": "nëw text\nsecond"}


@pytest.mark.parametrize("wanted", ["to_html", "to_text"])
@pytest.mark.parametrize("between", [b"--\r\n\r\n--", b"--\r\n--"], ids=["", "tight"])
@each_row(
    "content, to_html, to_text",
    [
        (TEXT, "alternative plain html", "plain"),
        (HTML, "html", "plain"),
        (b"\r\nno type", "alternative plain html", "plain"),
        (ALTERNATIVE, "alternative plain html", "plain"),
        (RELATED, "related html png", "mixed plain png"),
        (multipart(b"mixed", TEXT, FILE), "mixed alternative plain html pdf", "mixed plain pdf"),
        (
            multipart(b"mixed", ALTERNATIVE, FILE, ITEM),
            "mixed alternative plain html pdf rfc822 plain",
            "mixed plain pdf rfc822 plain",
        ),
        (
            multipart(b"alternative", TEXT, RELATED),
            "alternative plain related html png",
            "mixed plain mixed png",
        ),
        (
            multipart(b"alternative", TEXT, multipart(b"related", HTML), IMAGE),
            "alternative plain related html png",
            "mixed plain png",
        ),
        (FILE, "mixed alternative plain html pdf", "mixed plain pdf"),
        (
            multipart(b"mixed", FILE, preamble=b"preamble\r\n"),
            "mixed alternative plain html pdf",
            "mixed plain pdf",
        ),
        (ITEM, "mixed alternative plain html rfc822 plain", "mixed plain rfc822 plain"),
        (
            multipart(b"signed", FILE, SIGNATURE),
            "mixed alternative plain html signed pdf pgp-signature",
            "mixed plain signed pdf pgp-signature",
        ),
    ],
)
def test_a_new_body_replaces_the_body(content, to_html, to_text, wanted, between):
    """Tight: the line end of a closing delimiter is that in front of the next one."""
    content = FROM + content.replace(b"--\r\n\r\n--", between)
    new, structure = (NEW_HTML, to_html) if wanted == "to_html" else (NEW_TEXT, to_text)
    made = changed(content, **new)
    assert " ".join(kind.partition("/")[2] for kind in kinds(made)) == structure
    was, now = read_mime(content), read_mime(made)
    assert (now.properties.body_type, now.properties.body.replace("\r\n", "\n").strip()) == (
        new["body_type"],
        new["body"],
    )
    assert [structs.replace(one, inline=False) for one in now.attachments] == [
        structs.replace(one, inline=False) for one in was.attachments
    ]
    for part in (IMAGE, FILE, ITEM, SIGNATURE):
        body = part.partition(b"\r\n\r\n")[2]
        assert (body in made) == (body in content)
    message = email.message_from_bytes(made, policy=email.policy.default)
    text = message.get_body(("plain",))
    if text is not None and "plain" in structure.partition("rfc822")[0]:
        assert "nëw" in text.get_content()
    assert "old text" not in made.decode("latin-1")
    assert message["mime-version"] == "1.0"
    # again: what was changed can be changed
    assert read_mime(changed(made, **NEW_TEXT)).properties.body.strip().startswith("nëw text")


@pytest.mark.parametrize("new", [NEW_HTML, NEW_TEXT])
@pytest.mark.parametrize("kind", [b"signed", b"encrypted"])
def test_the_body_of_a_signed_message_cannot_be_changed(kind, new):
    content = FROM + multipart(kind, TEXT, SIGNATURE)
    with pytest.raises(NotEditableError, match="cannot be changed"):
        changed(content, **new)
    assert multipart(kind, TEXT, SIGNATURE).partition(b"\r\n\r\n")[2] in changed(
        content, subject="new"
    )


def test_a_new_text_contains_no_delimiter():
    content = FROM + multipart(b"mixed", TEXT, FILE)
    body = "--mix\r\nContent-Type: x/y\r\n\r\n--mix--"
    made = changed(content, body=body)
    assert read_mime(made).properties.body == body
    assert kinds(made) == kinds(content)


PEOPLE = st.lists(
    st.sampled_from([EmailAddress("a@a.test"), EmailAddress("b@b.test", "B, Ü")]), max_size=2
).map(tuple)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "subject": st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20),
        "to": PEOPLE,
        "cc": PEOPLE,
        "bcc": PEOPLE,
        "reply_to": PEOPLE,
        "importance": st.sampled_from(["low", "normal", "high"]),
        "sensitivity": st.sampled_from(["normal", "personal", "private", "confidential"]),
        "categories": st.lists(
            st.sampled_from(["a", "b c", "ü", 'd"e', "f, g"]), max_size=3, unique=True
        ).map(tuple),
        "in_reply_to": st.sampled_from(["", "<x@y.test>"]),
        "body": st.sampled_from(["", "x", "--=_0_1", "line\r\nü", "<p>x</p>"]),
        "body_type": st.sampled_from(["text", "html"]),
    },
)


@given(entities(), CHANGES)
def test_a_changed_draft_reads_as_intended(lines, new):
    content = b"\r\n".join([b"From: a@a.test", b"Subject: old", *lines, b""])
    was = read_mime(content)
    made = changed_octets(content, **new)
    now = read_mime(made)
    wanted = structs.replace(was.properties, **new, internet_message_headers=())
    got = structs.replace(now.properties, internet_message_headers=())
    if {"body", "body_type"} & set(new):
        got = structs.replace(got, body=got.body.replace("\r\n", "\n").strip())
        wanted = structs.replace(
            wanted, body=wanted.body.replace("\r\n", "\n").replace("\r", "\n").strip()
        )
    assert got == wanted
    assert bytes_of(made) == bytes_of(content)
    if not {"body", "body_type"} & set(new):
        assert made.endswith(content.partition(b"\r\n\r\n")[2])
        assert now.attachments == was.attachments


def bytes_of(content):
    """Return the attachments' bytes; a former whole message has lost its last line end."""
    return [one.removesuffix(b"\r\n") for one in attached_octets(content)]


def test_only_headers_and_text_of_a_large_draft_are_in_memory():
    large = b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b64encode(
        bytes(3_000_000)
    )
    content = FROM + multipart(b"mixed", TEXT, large)
    before = read_mime(content).properties
    octets = Counted(content)
    made = changed_mime(octets, before, structs.replace(before, **NEW_HTML, subject="new"))
    assert octets.most_bytes <= BLOCK_BYTES
    assert made.size > 4_000_000
    assert b64encode(bytes(3_000_000)) in made.read(0, made.size)


def test_without_changes_the_octets_are_the_same():
    content = b"\nodd\n" + multipart(b"mixed", TEXT)
    assert changed_octets(content) == content
