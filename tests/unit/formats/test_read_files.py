"""Names, sizes and contents of attachments, as mail programs read them."""

import base64

import pytest

from relay.base.message.content import MemoryOctets
from relay.formats.content_fields import content_field
from relay.formats.edit_attachments import remove_part
from relay.formats.edit_draft import NotEditableError
from relay.formats.read_mime import ENCODINGS_MAX, read_mime
from relay.formats.transfer_encoding import decoded_blocks, decoded_octets, decoded_size
from tests.support.contents import attached_octets
from tests.support.tables import each_row


def message(*fields: str, body: str = "x") -> bytes:
    return ("\r\n".join(fields) + "\r\n\r\n" + body).encode()


def mixed(*parts: bytes, boundary: str = "b") -> bytes:
    head = f"Content-Type: multipart/mixed; boundary={boundary}\r\n\r\n".encode()
    lead = f"\r\n--{boundary}".encode()
    return head + b"".join(lead + b"\r\n" + one for one in parts) + lead + b"--\r\n"


def coded(content: bytes, field: str) -> bytes:
    head = f"Content-Type: {field}\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    return head.encode() + base64.encodebytes(content).replace(b"\n", b"\r\n")


def names(content: bytes) -> list[str]:
    return [one.name for one in read_mime(content).attachments]


# What follows "Content-Disposition: attachment", the name that is shown, and why.
NAMES = [
    ('; filename="v.bat" (x)', "v.bat"),  # RFC 2045 5.1: a comment
    ('; filename=(x)"v.bat"', "v.bat"),  # the same
    ("; filename=plan(1).pdf", "plan(1).pdf"),  # in a token it is meant
    ('; filename="v"".bat"', "v.bat"),  # quoted pieces are one value
    ('; filename="v" ".bat"', "v.bat"),  # the same
    ("; filename='v.bat'", "v.bat"),  # quotes of another language
    (' filename="v.bat"', "v.bat"),  # a semicolon is missing
    ('; size=3 filename="v.bat"', "v.bat"),  # the same
    ("; filename=my file.pdf", "my file.pdf"),  # quotes are missing
    # RFC 6266 4.3: the extended form first
    ("; filename=\"a.pdf\"; filename*=utf-8''%e2%82%ac.pdf", "€.pdf"),
    ("; filename*0*=utf-8''%e2; filename*1*=%82%ac; filename*2=.pdf", "€.pdf"),  # RFC 2231 4.1
    # joined before it is decoded, as most programs do
    ("; filename*0*=utf-8''%e2%8; filename*1*=2%ac.pdf", "€.pdf"),
    # RFC 2231 4.1: only what is marked is encoded
    ("; filename*0*=utf-8''a%20; filename*1=b%20.pdf", "a b%20.pdf"),
    ("; filename*1=b.pdf; filename*0=a", "ab.pdf"),  # RFC 2231 3
    # no control characters; rules read v.bat too
    ("; filename*=utf-8''v.bat%00.txt", "v.bat .txt"),
    ("; filename*=v%2Ebat", "v.bat"),  # a charset is missing
    # most programs write and read words there
    ('; filename="=?utf-8?Q?=E2=82=AC?=\r\n =?utf-8?Q?.pdf?="', "€.pdf"),
    ('; filename*="=?utf-8?Q?=E2=82=AC.pdf?="', "€.pdf"),  # some write words there as well
    (";\r\nfilename=v.bat\r\nX: y", "v.bat"),  # a fold without a blank
    ("; filename=a.txt; filename=b.txt", "a.txt"),  # the first of two
    ('; filename="C:\\\\v.bat"', "C:\\v.bat"),  # RFC 5322 3.2.4
    ('; filename="v.bat\\', "v.bat"),  # quotes without an end
]


@each_row("written, shown", NAMES)
def test_the_name_of_a_file(written, shown):
    assert names(message(f"Content-Disposition: attachment{written}")) == [shown]
    field = written.replace("filename", "name")
    assert names(message(f"Content-Type: application/x{field}")) == [shown]


def test_the_disposition_names_a_file_before_the_type():
    fields = ("Content-Type: a/b; name=type.txt", "Content-Disposition: attachment; filename=d.txt")
    assert names(message(*fields)) == ["d.txt"]


@each_row(
    "kind, name",
    [
        ("application/pdf", "attachment.pdf"),
        ("image/jpeg", "attachment.jpg"),
        ("a/odd", "attachment.bin"),
        ("text/plain", "attachment.txt"),
        ("message/rfc822", "attachment.eml"),
        ("image/svg+xml", "attachment.svg"),
        (
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            "attachment.docx",
        ),
        ("audio/wav", "attachment.wav"),
        ("audio/x-wav", "attachment.wav"),
        ("text/x-vcard", "attachment.vcf"),
        ("message/delivery-status", "attachment.txt"),
        ("text/rfc822-headers", "attachment.txt"),
    ],
)
def test_a_file_without_a_name_has_one_by_its_type(kind, name):
    fields = (f"Content-Type: {kind}", "Content-Disposition: attachment")
    assert names(message(*fields, body="X: y\r\n\r\nx")) == [name]


@each_row(
    "field, kind, parameters",
    [
        ("(a (b)) text / PLAIN (c) ; charset=(d)utf-8 (e)", "text/plain", {"charset": "utf-8"}),
        ("multipart/mixed boundary=b", "multipart/mixed", {"boundary": "b"}),
        ('multipart/mixed; boundary="b" (no end', "multipart/mixed", {"boundary": "b"}),
        ("a/b; x=(; y=z", "a/b", {"x": "(", "y": "z"}),
        ("; name=a", "", {"name": "a"}),
        ("name=a", "", {"name": "a"}),
        ("a/b;;flag; =; x=", "a/b", {"": "", "x": ""}),
    ],
)
def test_values_and_parameters(field, kind, parameters):
    found = content_field(field)
    assert (found.value, dict(found.parameters)) == (kind, parameters)


@each_row(
    "encoding, body, octets",
    [
        ("base64", "aGVsbA==\r\nbyB3b3JsZA==", b"hello world"),
        ("base64", "aGVs!bG8", b"hello"),
        ("base64", "aGVsbG8=\r\n\r\n", b"hello"),
        ("quoted-printable", "a=\r\nb=3D", b"ab="),
        *(
            (one, "begin 644 t.txt\r\n$=&5S=```\r\n`\r\nend\r\n", b"test")
            for one in ("x-uuencode", "uuencode", "X-UUE", "uue")
        ),
        ("x-uuencode", "TEXT\r\nbegin 644 t\r\n#=&5S\r\n!=\r\n", b"test"),
        ("x-uuencode", "begin 644 x\r\n#86)C\r\n`\r\nend\r\nRegards\r\n-- \r\nJoe", b"abc"),
        ("base64", "QQ=\r\nQUJD", b"AABC"),
    ],
)
def test_the_content_of_a_file_and_its_size(encoding, body, octets):
    content = message(
        "Content-Type: application/x; name=t", f"Content-Transfer-Encoding: {encoding}", body=body
    )
    [one] = read_mime(content).attachments
    assert (attached_octets(content), one.size) == ([octets], len(octets))


@each_row("before", [b"QQ=\r\n", b"QQ==", b"QQ", b"QQ=!=\r\n", b""])
def test_base64_is_read_on_after_any_padding(before):
    octets = bytes(range(256)) * 3000
    coded_octets = before + base64.encodebytes(octets).replace(b"\n", b"\r\n")
    if before == b"QQ":
        octets = base64.b64decode(coded_octets + b"==")
    else:
        octets = b"A" * bool(before) + octets
    source = MemoryOctets(coded_octets)
    found = decoded_octets(source, "base64")
    assert found.read(0, found.size) == octets
    assert decoded_size(source, "base64") == len(octets)
    assert b"".join(decoded_blocks(source, "base64")) == octets


def test_a_uuencoded_text_ends_with_its_file():
    body = "TEXT\r\nbegin 644 x\r\n#86)C\r\n`\r\nend\r\nRegards\r\n-- \r\nJoe"
    assert read_mime(message("Content-Transfer-Encoding: uue", body=body)).properties.body == "abc"
    octets = decoded_octets(MemoryOctets(body.encode() + b"\r\nJ" * 400_000), "uue")
    assert octets.read(0, octets.size) == b"abc"


@pytest.mark.parametrize("encoding", ["x-uuencode", "uuencode", "x-uue", "uue"])
def test_the_name_of_a_uuencoded_file(encoding):
    fields = ("Content-Disposition: attachment", f"Content-Transfer-Encoding: {encoding}")
    body = "begin 644 v.bat\r\n#86)C\r\n`\r\nend\r\n"
    assert names(message(*fields, body=body)) == ["v.bat"]
    assert names(message(f"{fields[0]}; filename=a.txt", fields[1], body=body)) == ["a.txt"]


INNER = b"Subject: inner\r\n" + mixed(message("Content-Type: a/b; name=v.bat"))


def test_an_encoded_message_is_an_attached_message():
    content = mixed(coded(INNER, "message/rfc822"))
    [one] = read_mime(content).attachments
    assert (one.name, one.item, one.size) == ("inner", True, len(INNER))
    assert attached_octets(content) == [INNER]
    assert names(INNER) == ["v.bat"]


def test_the_parts_of_an_encoded_multipart_are_those_of_the_message():
    parts = mixed(
        message("Content-Type: text/plain", body="hello"), message("Content-Type: a/b; name=a.pdf")
    )
    body = parts.partition(b"\r\n\r\n")[2]
    content = mixed(
        coded(body, "multipart/mixed; boundary=b").replace(b"=b\r\n", b"=b\r\n", 1), boundary="o"
    )
    found = read_mime(content)
    assert (found.properties.body, [one.name for one in found.attachments]) == ("hello", ["a.pdf"])
    with pytest.raises(NotEditableError, match="encoded together"):
        remove_part(MemoryOctets(content), 0)


def test_a_file_in_a_text_stays_in_the_text():
    body = "see\r\nbegin 644 x\r\n$=&5S=```\r\n`\r\nend\r\n"
    found = read_mime(message("Subject: s", body=body))
    assert (found.properties.body, found.attachments) == (body, ())


def test_an_encoding_inside_an_encoding_50_deep_is_read_to_a_depth():
    content = b"--b\r\n\r\nhello\r\n--b--\r\n"
    for at in range(50):
        quoted = content.replace(b"=", b"=3D").replace(b"--", b"=2D=2D")
        head = b"Content-Type: multipart/x; boundary=b%d\r\n" % at
        head += b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
        content = b"--b%d\r\n" % (at + 1) + head + quoted + b"\r\n--b%d--\r\n" % (at + 1)
    content = b"Content-Type: multipart/x; boundary=b50\r\n\r\n" + content
    body = read_mime(content).properties.body
    assert body.startswith(f"--b{49 - ENCODINGS_MAX}\r\n")
