"""An attachment is added to MIME, or removed: every other octet stays."""

import email
import email.policy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from relay.base.message.content import BLOCK_BYTES, MemoryOctets
from relay.formats.draft import AttachmentFacts, DraftAttachment, StoredPart, new_attachment
from relay.formats.edit_attachments import add_part, remove_part
from relay.formats.edit_draft import NotEditableError
from relay.formats.read_mime import read_mime
from relay.formats.structure import DEPTH_MAX, ENTITIES_MAX, read_structure
from tests.support.contents import Counted, attached_octets
from tests.support.tables import each_row
from tests.unit.formats.test_edit_draft import (
    ALTERNATIVE,
    FILE,
    FROM,
    HTML,
    IMAGE,
    ITEM,
    SIGNATURE,
    TEXT,
    multipart,
)
from tests.unit.formats.test_structure import entities

NEW = bytes(range(256))
NEW_FIELDS = (
    b"Content-Type: application/pdf;\r\n name=new.pdf\r\nContent-Transfer-Encoding: base64\r\n"
    b"Content-Disposition: attachment;\r\n filename=new.pdf\r\n\r\n"
)


def new_file(**facts):
    given_facts = {"name": "new.pdf", "content_type": "application/pdf", "inline": False, **facts}
    return new_attachment(AttachmentFacts(size=len(NEW), **given_facts), MemoryOctets(NEW))


def new_message(octets):
    part = StoredPart(0, 0, base64=False, name="m", content_type="message/rfc822", item=True)
    return DraftAttachment(part, MemoryOctets(octets))


def octets_of(octets):
    return octets.read(0, octets.size)


def added(content, new=None):
    """Return the content with the new part, and where it is among the attachments."""
    made = add_part(MemoryOctets(content), new or new_file())
    return octets_of(made.content), made.number


def removed(content, number):
    return octets_of(remove_part(MemoryOctets(content), number))


def check_inserted(before, after):
    """Check that `after` is `before` with one run of octets more."""
    assert common(before, after) + common(before[::-1], after[::-1]) >= len(before)


def common(one, other):
    """Return how many octets two runs of octets have in common at their beginning."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )


def by_email(content):
    """Return type and decoded content of all leaves as the standard library reads them."""
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert not [part.defects for part in message.walk() if part.defects]
    leaves = (part for part in message.walk() if not part.is_multipart())
    return [(part.get_content_type(), part.get_payload(decode=True)) for part in leaves]


# -- examples, octet for octet


def test_a_part_is_spliced_before_the_closing_delimiter():
    content = FROM + multipart(b"mixed", TEXT, FILE, preamble=b"pre\n") + b"epilogue\n\xff"
    made, number = added(content)
    new = b"--mix\r\n" + NEW_FIELDS + octets_of(new_file().octets) + b"\r\n"
    assert made == content.replace(b"--mix--", new + b"--mix--")
    assert number == 1
    assert removed(made, 1) == content


@each_row("encoding", ["7bit", "8bit", "binary", "base64", "quoted-printable"])
def test_a_new_multipart_names_the_widest_encoding_in_it(encoding):
    content = b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: %b\r\n\r\nx" % encoding.encode()
    made = email.message_from_bytes(added(content)[0])
    wide = encoding if encoding in ("8bit", "binary") else None
    assert made["content-transfer-encoding"] == wide
    assert made.get_payload(0)["content-transfer-encoding"] == encoding
    assert made.get_all("mime-version") == ["1.0"]


@each_row("end", [b"", b"\r\n", b"\n", b"\r\n--mi", b"\r\n--mix-"])
def test_a_missing_closing_delimiter_is_written(end):
    content = FROM + multipart(b"mixed", TEXT, FILE).partition(b"\r\n--mix--")[0] + end
    made, number = added(content)
    assert made.startswith(content + b"\r\n--mix\r\n" + NEW_FIELDS)
    assert made.endswith(b"\r\n--mix--\r\n")
    assert (number, attached_octets(made)) == (1, [*attached_octets(content), NEW])


def test_an_attached_message_with_the_boundary_in_it_goes_around_the_old_message():
    inner = multipart(b"mixed", TEXT)
    content = FROM + multipart(b"mixed", TEXT, FILE)
    made, number = added(content, new_message(inner))
    assert (number, attached_octets(made)[1]) == (1, inner)
    assert multipart(b"mixed", TEXT, FILE) in made
    by_email(made)


@pytest.mark.parametrize(
    "message",
    [
        multipart(b"signed", TEXT, SIGNATURE),
        multipart(b"encrypted", TEXT, SIGNATURE),
        b"Content-Type: application/pkcs7-mime; name=smime.p7m\r\n\r\nAAAA",
        b"Content-Type: application/x-pkcs7-mime; name=smime.p7m\r\n\r\nAAAA",
    ],
)
def test_a_signed_or_encrypted_message_is_not_changed(message):
    with pytest.raises(NotEditableError, match="signed or encrypted"):
        added(FROM + message)
    with pytest.raises(NotEditableError, match="signed or encrypted"):
        removed(FROM + message, 0)


def test_a_signed_part_stays_as_it_is():
    signed = multipart(b"signed", HTML, SIGNATURE)
    content = FROM + multipart(b"mixed", signed, ITEM)
    image = new_file(inline=True, content_id="i", name="a.png", content_type="image/png")
    made, number = added(content, image)
    check_inserted(content, made)
    assert number == 2
    with pytest.raises(NotEditableError, match="signed or encrypted"):
        removed(made, 0)
    assert signed in removed(made, 1)


def test_more_parts_than_are_read_are_not_changed():
    content = FROM + multipart(b"mixed", TEXT, *[FILE] * (ENTITIES_MAX - 1))
    deep = TEXT
    for number in range(DEPTH_MAX):
        deep = multipart(b"%03d" % number, deep)
    for one in (content, FROM + deep):
        with pytest.raises(NotEditableError, match="more parts"):
            added(one)


def test_neither_the_draft_nor_the_new_file_is_in_memory():
    large = b"Content-Type: a/b\r\n\r\n" + b"x\r\n" * 1_000_000
    facts = AttachmentFacts("f", "a/b", 3_000_000, inline=False)
    for content in (multipart(b"mixed", TEXT, large), multipart(b"related", TEXT, large)):
        old, new = Counted(content), Counted(bytes(3_000_000))
        made = add_part(old, new_attachment(facts, new))
        remove_part(old, 0)
        assert made.content.size > len(content) + 4_000_000
        assert max(old.most_bytes, new.most_bytes) <= BLOCK_BYTES


# -- any message

NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30)
NEW_PARTS = st.one_of(
    st.builds(
        new_file,
        name=NAMES,
        inline=st.booleans(),
        content_type=st.sampled_from(
            ["text/html", "image/png", "multipart/mixed", "message/rfc822", ""]
        ),
        content_id=st.sampled_from(["", "c1", "é"]),
    ),
    entities().map(
        lambda lines: new_message(b"\r\n".join([b"Subject: x", *lines, b""]).replace(b"\0", b""))
    ),
)
ENDS = st.sampled_from([b"\r\n", b"\n"])


def files_of(content):
    """Return the attached files; the last line end of a message without a blank line may vary."""
    return [one.removesuffix(b"\r\n") for one in attached_octets(content)]


def check_added(content, new):
    """Add a part; check what holds of any message. Return the result."""
    was, had = read_mime(content), files_of(content)
    made, number = added(content, new)
    now, has = read_mime(made), files_of(made)
    assert has[:number] + has[number + 1 :] == had
    kept = now.attachments[:number] + now.attachments[number + 1 :]
    assert [structs.replace(one, size=0) for one in kept] == [
        structs.replace(one, size=0) for one in was.attachments
    ]
    assert now.attachments[number].name == new.part.name
    assert now.attachments[number].item == new.part.item
    assert attached_octets(made)[number] == (octets_of(new.octets) if new.part.item else NEW)
    assert (now.properties.body, now.properties.body_type) == (
        was.properties.body,
        was.properties.body_type,
    )
    return made, number


@given(entities(), ENDS, NEW_PARTS)
def test_an_attachment_is_added_to_any_message(lines, line_end, new):
    content = line_end.join([b"Subject: x", *lines, b""])
    made, number = check_added(content, new)
    old, whole = read_structure(content).message, read_structure(made).message
    if whole.boundary == old.boundary != b"":
        if not (new.part.inline and new.part.content_id):
            check_inserted(content, made)
            assert removed(made, number) == content
    elif not (new.part.inline and new.part.content_id):
        assert whole.content_type == "multipart/mixed"
        assert b"\r\n" + content[old.body_start :] + b"\r\n--" in made
        content_fields = old.header.removeprefix(b"Subject: x" + line_end)
        moved = b"".join(re.findall(rb"(?im)^content-.*\n(?:[ \t].*\n)*", content_fields))
        assert b"\r\n" + moved + b"\r\n" + content[old.body_start :] in made
    assert len(attached_octets(removed(made, number))) == len(attached_octets(content))


@given(entities(), ENDS, st.data())
def test_an_attachment_is_removed_from_any_message(lines, line_end, data):
    content = line_end.join([b"Subject: x", *lines, b""])
    had = attached_octets(content)
    if not had:
        return
    number = data.draw(st.integers(0, len(had) - 1))
    made = removed(content, number)
    assert attached_octets(made) == had[:number] + had[number + 1 :]
    was, now = read_mime(content), read_mime(made)
    assert now.properties.body == was.properties.body
    assert now.attachments == was.attachments[:number] + was.attachments[number + 1 :]
    if len(had) > 1 or was.properties.body:
        check_inserted(made, content)


@given(entities(), NEW_PARTS, st.data())
def test_damage_does_not_spread(lines, new, data):
    content = b"\r\n".join([b"Subject: x", *lines, b""])
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(content)))
        end = place + data.draw(st.integers(0, 30))
        mark = st.sampled_from([b"", b"\r", b"\n", b"\0", b"\r\n\r\n", b"--", b"\xff"])
        content = content[:place] + data.draw(mark) + content[end:]
    made, number = check_added(content, new)
    assert files_of(removed(made, number)) == files_of(content)


@given(st.lists(st.sampled_from([TEXT, HTML, IMAGE, FILE, ITEM, ALTERNATIVE]), min_size=1), ENDS)
def test_the_standard_library_reads_the_same(parts, line_end):
    content = FROM + b"MIME-Version: 1.0\r\n" + multipart(b"mixed", *parts)
    content = content.replace(b"\r\n", line_end)
    made, _ = added(content)
    assert by_email(made) == [*by_email(content), ("application/pdf", NEW)]
