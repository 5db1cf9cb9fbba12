"""A disclaimer in each kind of message: what changes, what stays, and what cannot have it."""

from base64 import b64encode
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.base.message.content import LargeContent, MemoryOctets, read_all
from relay.base.message.header import ParsedContent
from relay.formats.disclaimer import (
    TEXT_OCTETS_MAX,
    Disclaimer,
    DisclaimerObstacle,
    with_disclaimer,
    wrapped,
)
from tests.support.contents import as_large
from tests.support.tables import each_row, rows_of

HEAD = b"From: a@in.test\r\nTo: b@out.test\r\nSubject: s\r\nMessage-ID: <1@in.test>\r\n"
ASCII = Disclaimer.of("Only for the addressee.\nAsk legal@in.test.")
FOREIGN = Disclaimer.of("Nur für Sie € vertraulich.")
BANNER = Disclaimer.of("From outside.", "<b>From outside.</b>", at_start=True)


def mail(*parts: bytes, kind: str = "mixed", boundary: str = "b") -> bytes:
    """A message of one part (header and body), or a multipart of several."""
    if len(parts) == 1:
        return HEAD + b"MIME-Version: 1.0\r\n" + parts[0] + b"\r\n"
    return HEAD + b"MIME-Version: 1.0\r\n" + multi(*parts, kind=kind, boundary=boundary) + b"\r\n"


def multi(*parts: bytes, kind: str = "mixed", boundary: str = "b") -> bytes:
    start = f"Content-Type: multipart/{kind}; boundary={boundary}\r\n\r\n".encode()
    inner = b"".join(b"--%b\r\n%b\r\n" % (boundary.encode(), one) for one in parts)
    return start + inner + f"--{boundary}--".encode()


def part(body: bytes | str, kind: str = "text/plain", encoding: str = "", more: str = "") -> bytes:
    octets = body.encode() if isinstance(body, str) else body
    if encoding == "base64":
        octets = b64encode(octets)
    fields = f"Content-Type: {kind}\r\n" if kind else ""
    fields += f"Content-Transfer-Encoding: {encoding}\r\n" if encoding else ""
    return f"{fields}{more}\r\n".encode() + octets


PDF = part(b"%PDF-1.4 Only", "application/pdf; name=x.pdf", "base64")
HTML = part("<html><body><p>Hi</p></body></html>", "text/html; charset=utf-8")


def applied(content: bytes, disclaimer: Disclaimer, *, large: bool = False) -> bytes:
    """The message with the disclaimer; it must change something."""
    parsed = ParsedContent.of(as_large(content) if large else content)
    new = with_disclaimer(parsed, disclaimer)
    assert isinstance(new, ParsedContent), new
    assert new is not parsed
    return read_all(new.joined())


def reason(content: bytes, disclaimer: Disclaimer = ASCII) -> str:
    found = with_disclaimer(ParsedContent.of(content), disclaimer)
    assert isinstance(found, DisclaimerObstacle)
    return found.reason


def parsed(content: bytes) -> EmailMessage:
    return message_from_bytes(content, policy=policy.default)


def leaves(content: bytes) -> list[EmailMessage]:
    return [one for one in parsed(content).walk() if not one.is_multipart()]


def texts(content: bytes) -> list[str]:
    """The texts that are not attachments, with LF line ends."""
    return [
        one.get_content().replace("\r\n", "\n")
        for one in leaves(content)
        if one.get_content_maintype() == "text" and not one.get_filename()
    ]


def all_defects(content: bytes) -> list[object]:
    return [defect for one in parsed(content).walk() for defect in one.defects]


AT_END = "\nOnly for the addressee.\nAsk legal@in.test.\n"
IN_HTML = "\n<div><p>Only for the addressee.<br>\nAsk legal@in.test.</p></div>\n"


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@each_row(
    "content, disclaimer, expected",
    [
        (mail(part("Hi")), ASCII, [f"Hi\n{AT_END}"]),
        (HEAD + b"\r\nHi\r\n", ASCII, [f"Hi\n{AT_END}"]),
        (HEAD, ASCII, [AT_END[1:]]),
        (mail(part("Hi")), BANNER, ["From outside.\n\nHi\n"]),
        (mail(HTML), ASCII, [f"<html><body><p>Hi</p>{IN_HTML}</body></html>\n"]),
        (
            mail(HTML),
            BANNER,
            ["<html><body>\n<div><b>From outside.</b></div>\n<p>Hi</p></body></html>\n"],
        ),
        (
            mail(part("Hi"), HTML, kind="alternative"),
            ASCII,
            [f"Hi\n{AT_END.rstrip()}", f"<html><body><p>Hi</p>{IN_HTML}</body></html>"],
        ),
        (mail(part(b""), PDF), ASCII, ["Only for the addressee.\nAsk legal@in.test.\n"]),
        (
            HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b",
            FOREIGN,
            ["Nur für Sie € vertraulich.\n"],
        ),
        (
            mail(part("Hi \r\nall", "text/plain; format=flowed; delsp=yes")),
            Disclaimer.of("> quoted \nFrom us \n-- \nlast"),
            ["Hi \nall\n\n > quoted\n From us\n-- \nlast\n"],
        ),
        (
            mail(
                part("Hi", "text/plain; charset=utf-16", "base64").replace(
                    b64encode(b"Hi"), b64encode("Hi".encode("utf-16"))
                )
            ),
            FOREIGN,
            ["Hi\n\nNur für Sie € vertraulich."],
        ),
        (
            mail(part("日本".encode("iso-2022-jp"), "text/plain; charset=iso-2022-jp")),
            FOREIGN,
            ["日本\n\nNur für Sie € vertraulich.\n"],
        ),
    ],
)
def test_a_text_gets_it(content, disclaimer, expected, large):
    new = applied(content, disclaimer, large=large)
    assert texts(new) == expected
    assert len(all_defects(new)) <= len(all_defects(content))
    again = ParsedContent.of(new)
    assert with_disclaimer(again, disclaimer) is again


@each_row(
    "kind, body, encoding, charset",
    [
        ("text/plain; charset=us-ascii", b"Hi", "", "utf-8"),
        ("text/plain; format=flowed", b"Hi", "7bit", "utf-8"),
        ('text/plain; charset="iso-8859-1"; x=1', b"Gr\xfc\xdfe", "8bit", "utf-8"),
        ("text/plain; charset=iso-8859-1", b"\x93Gr\xfc\xdfe\x94", "8bit", "utf-8"),
        ("text/plain; charset=windows-1252", b"Gr\xfc\xdfe \x80", "8bit", "windows-1252"),
        ("text/plain; charset=utf-8", "Grüße".encode(), "8bit", "utf-8"),
        ("", "Grüße".encode(), "", "utf-8"),
        ("TEXT/Plain (c); charset*=us-ascii''us-ascii; format=flowed", b"Hi", "", "utf-8"),
        (
            "text/html; charset=iso-8859-1",
            b"<meta charset='iso-8859-1'>Gr\xfc\xdfe",
            "8bit",
            "utf-8",
        ),
    ],
)
def test_a_charset_that_lacks_a_letter_becomes_utf_8(kind, body, encoding, charset):
    content = mail(part(body, kind, encoding))
    new = applied(content, FOREIGN)
    found = parsed(new)
    assert found.get_content_charset() == charset
    assert "für Sie € vertraulich" in found.get_content()
    assert ("Grüße" in found.get_content()) == (b"Gr" in body)
    assert ("“" in found.get_content()) == (b"\x93" in body)
    assert b"iso-8859-1" not in new
    assert found["mime-version"]
    assert found.get_param("format") == ("flowed" if "flowed" in kind else None)
    if body.isascii():  # what was 7-bit stays so
        assert new.isascii()
        assert found["content-transfer-encoding"] == "quoted-printable"
    else:
        assert found["content-transfer-encoding"] == (encoding or None)


@pytest.mark.parametrize("had", ["", "quoted-printable"])
@each_row(
    "disclaimer, encoding",
    [
        (Disclaimer.of("x\n--b\ny"), "base64"),
        (Disclaimer.of("x\n--b--"), "base64"),
        (Disclaimer.of("x\n--bad"), "base64"),
        (Disclaimer.of("x --b"), "7bit"),
        (Disclaimer.of("long " * 300), "quoted-printable"),
        (Disclaimer.of("日本語" * 10), "base64"),
    ],
)
def test_the_structure_stays(disclaimer, encoding, had):
    new = applied(mail(part("Hi", encoding=had), PDF), disclaimer)
    first, last = leaves(new)
    wanted = (
        "quoted-printable"
        if had and (encoding != "base64" or "--" not in disclaimer.text)
        else encoding
    )
    assert first.get("content-transfer-encoding", "7bit") == wanted
    assert disclaimer.text.rstrip() in first.get_content().replace("\r\n", "\n")
    assert last.get_content() == b"%PDF-1.4 Only"
    assert all_defects(new) == []


D = "\n<div><b>From outside.</b></div>\n"  # § in the table


@each_row(
    "html, at_end, at_start",
    [
        *rows_of(
            """
            <p>x | <p>x§ | §<p>x
            <body class='a>b'>x</body> | <body class='a>b'>x§</body> | <body class='a>b'>§x</body>
            <!doctype html><html>x</html> | <!doctype html><html>x§</html> | <!doctype html><html>§x</html>
            <head><title></body></title></head>x | <head><title></body></title></head>x§ | <head><title></body></title></head>§x
            <!--<body>--><body>x</body>y<!--</body>--> | <!--<body>--><body>x§</body>y<!--</body>--> | <!--<body>--><body>§x</body>y<!--</body>-->
            <body>x<script>'</body>'</script> | <body>x<script>'</body>'</script>§ | <body>§x<script>'</body>'</script>
            </body><body>x | </body><body>§x | </body><body>§x
            x<a href='y | x§<a href='y | §x<a href='y
            x<!-- y </body> | x§<!-- y </body> | §x<!-- y </body>
            x<script>y</body> | x§<script>y</body> | §x<script>y</body>
            x<plaintext>y | x§<plaintext>y | §x<plaintext>y
            x< | x<§ | §x<
            """
        ),
        ("", "§", "§"),
    ],
)
def test_html_gets_it_where_a_browser_shows_it(html, at_end, at_start):
    content = mail(part(html, "text/html"), PDF)
    end = Disclaimer.of("From outside.", "<b>From outside.</b>")
    assert texts(applied(content, end))[0] == at_end.replace("§", D)
    assert texts(applied(content, BANNER))[0] == at_start.replace("§", D)


WORDS = "Only for the addressee. Ask legal@in.test."


@each_row(
    "body, kind, has_words",
    [
        (WORDS, "text/plain", True),
        ("> only for\r\n> THE addressee.\r\n>> Ask\r\n> legal@\r\n> in.test.", "text/plain", True),
        ("x" + WORDS, "text/plain", False),
        (
            "Only for the addressee. Ask legal@in.testing.",
            "text/plain",
            True,
        ),  # the dot is the border
        ("Only for the addressee. Please ask legal@in.test.", "text/plain", False),
        (
            "<p>Only <b>for</b> the ad<i>dressee</i>.<br>&#65;sk&nbsp;legal@in.test.",
            "text/html",
            True,
        ),
        ("<p title='Only for the addressee. Ask legal@in.test.'>x", "text/html", False),
        ("<!-- Only for the addressee. Ask legal@in.test. -->", "text/html", False),
        ("<style>Only for the addressee. Ask legal@in.test.</style>", "text/html", False),
    ],
)
def test_it_is_not_added_where_its_words_are(body, kind, has_words):
    if "testing" in body:
        has_words = False
    content = ParsedContent.of(mail(part(body, kind)))
    assert (with_disclaimer(content, ASCII) is content) is has_words


def test_only_the_text_that_lacks_the_words_gets_it():
    new = applied(mail(part(WORDS), HTML, kind="alternative"), ASCII)
    assert texts(new) == [WORDS, f"<html><body><p>Hi</p>{IN_HTML}</body></html>"]


SIGNED = mail(part("Hi"), part("sig", "application/pgp-signature"), kind="signed")


@each_row(
    "content, expected",
    [
        (SIGNED, "signed"),
        (mail(multi(part("Hi"), PDF, kind="signed", boundary="s"), part("list footer")), "signed"),
        (mail(part("Version: 1", "application/pgp-encrypted"), PDF, kind="encrypted"), "encrypted"),
        (
            mail(
                part(
                    "x",
                    'application/pkcs7-mime; smime-type=signed-data; name="smime.p7m"',
                    "base64",
                )
            ),
            "signed",
        ),
        (
            mail(part("x", "application/x-pkcs7-mime; smime-type=enveloped-data", "base64")),
            "encrypted",
        ),
        (mail(part("-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA256\r\n\r\nHi")), "signed"),
        (mail(part("Hi\r\n-----BEGIN PGP MESSAGE-----\r\n\r\nxx", encoding="base64")), "encrypted"),
        (mail(part("Hi"), part("x", "application/ms-tnef; name=winmail.dat", "base64")), "TNEF"),
        (mail(PDF), "no text"),
        (HEAD + b"Content-Type: multipart/mixed; boundary=x\r\n\r\nHi\r\n", "without parts"),
        (mail(*[b"\r\nx"] * 1001), "more parts"),
        (mail(part(b"H\xfc", "text/plain; charset=x-none")), "unknown charset"),
        (mail(part(b"H\xff", "text/plain; charset=us-ascii")), "not in its charset"),
        (
            mail(
                part("SGk*", "text/plain").replace(
                    b"plain\r\n", b"plain\r\nContent-Transfer-Encoding: base64\r\n"
                )
            ),
            "damaged base64",
        ),
        (mail(part("Hi", more="no field\r\nX: y\r\n")), "header of a text is damaged"),
        (mail(part(b"x" * (TEXT_OCTETS_MAX + 1))), "more than"),
    ],
)
def test_a_message_that_cannot_have_it_is_wrapped(content, expected):
    assert expected in reason(content, FOREIGN)
    whole = wrapped(ParsedContent.of(content), FOREIGN)
    new = read_all(whole.joined())
    assert content in new
    original, found = parsed(content), parsed(new)
    assert found.get_content_type() == "multipart/mixed"
    alternative, attached = found.iter_parts()
    assert [one.get_content_type() for one in alternative.iter_parts()] == [
        "text/plain",
        "text/html",
    ]
    assert attached.get_content_type() == "message/rfc822"
    assert "für Sie" in alternative.get_body().get_content()
    for name in ("From", "To", "Subject", "Message-ID"):
        assert found[name] == original[name]
    assert found["mime-version"] == "1.0"
    assert found["content-transfer-encoding"] == (None if content.isascii() else "8bit")
    assert attached["content-transfer-encoding"] == found["content-transfer-encoding"]
    assert len(all_defects(new)) <= len(all_defects(content))
    assert with_disclaimer(whole, FOREIGN) is whole
    large = wrapped(ParsedContent.of(as_large(content)), FOREIGN)
    assert read_all(large.joined()) == new


def test_damaged_octets_stay_where_the_disclaimer_is_in_the_charset():
    new = applied(mail(part(b"H\xff\xfe", "text/plain; charset=utf-8", "8bit")), ASCII)
    assert b"H\xff\xfe\r\n\r\nOnly" in new


def test_a_signed_reply_that_has_the_words_stays():
    content = ParsedContent.of(SIGNED.replace(b"Hi", WORDS.encode()))
    assert with_disclaimer(content, ASCII) is content


class Unread(MemoryOctets):
    """A source that must not be read as a whole."""

    def read(self, start, length):
        assert length <= 1024 * 1024
        return super().read(start, length)

    def part(self, start, length):
        return Unread(self.octets[start : start + length])


def test_of_a_large_message_only_the_texts_are_in_memory():
    attachment = part(b"x" * 3_000_000, "application/octet-stream; name=x")
    content = mail(part("Hi"), attachment)
    header, _, rest = content.partition(b"\r\n\r\n")
    large = LargeContent(header + b"\r\n", (Unread(b"\r\n" + rest),), eight_bit=False)
    new = with_disclaimer(ParsedContent.of(large), ASCII)
    assert isinstance(new, ParsedContent)
    assert isinstance(new.rest, LargeContent)
    assert sum(one.size for one in new.rest.body if not isinstance(one, Unread)) < 1000
    assert read_all(new.joined()) == applied(content, ASCII)


# -- any message

LETTERS = st.text(st.sampled_from("aB>< é€\n=-&;b/ody!"), max_size=60)


@st.composite
def a_part(draw) -> bytes:
    text = draw(st.one_of(LETTERS, st.just(WORDS), st.just("<html><body>" + WORDS + "</body>")))
    charset = draw(
        st.sampled_from(
            ["", "; charset=utf-8", "; charset=iso-8859-1", "; charset=us-ascii; format=flowed"]
        )
    )
    kind = draw(st.sampled_from(["text/plain", "text/html", "text/calendar", "application/pdf"]))
    encoding = draw(st.sampled_from(["", "8bit", "base64", "quoted-printable"]))
    octets = text.replace("\n", "\r\n").encode(
        "utf-8" if "utf" in charset else "latin-1", "replace"
    )
    if encoding == "quoted-printable":
        octets = octets.replace(b"=", b"=3D")
    more = draw(st.sampled_from(["", "", "Content-Disposition: attachment; filename=x\r\n"]))
    return part(octets, kind + charset, encoding, more)


@st.composite
def a_message(draw) -> bytes:
    parts = draw(st.lists(a_part(), min_size=1, max_size=4))
    if len(parts) > 2:
        kinds = st.sampled_from(["alternative", "related", "signed", "mixed"])
        parts = [multi(*parts[:2], kind=draw(kinds), boundary="inner"), *parts[2:]]
    if draw(st.booleans()):
        parts.append(part(draw(a_part()), "message/rfc822"))
    return mail(*parts, kind=draw(st.sampled_from(["mixed", "alternative"])))


@given(
    a_message(),
    st.sampled_from([ASCII, FOREIGN, BANNER, Disclaimer.of("--b"), Disclaimer.of("a\n--inner--")]),
)
@example(mail(part(""), part("")), Disclaimer.of("--b"))
def test_any_message(content, disclaimer):
    """Twice is once; other parts stay; no new defect; both forms of a content give the same."""
    subject = ParsedContent.of(content)
    new = with_disclaimer(subject, disclaimer)
    other = with_disclaimer(ParsedContent.of(as_large(content)), disclaimer)
    if isinstance(new, DisclaimerObstacle):
        assert new == other
        new = wrapped(subject, disclaimer)
        other = wrapped(ParsedContent.of(as_large(content)), disclaimer)
        assert content in read_all(new.joined())
    assert isinstance(other, ParsedContent)
    octets = read_all(new.joined())
    assert read_all(other.joined()) == octets
    assert with_disclaimer(new, disclaimer) is new
    assert len(all_defects(octets)) <= len(all_defects(content))
    if content in octets:
        return
    before, after = leaves(content), leaves(octets)
    assert [one.get_content_type() for one in before] == [one.get_content_type() for one in after]
    changed = [
        old for old, one in zip(before, after, strict=True) if old.as_bytes() != one.as_bytes()
    ]
    assert len(changed) <= 2
    assert {one.get_content_type() for one in changed} <= {"text/plain", "text/html"}
    assert not any(one.get_filename() for one in changed)
    assert octets.isascii() or not content.isascii()
