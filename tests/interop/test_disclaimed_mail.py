"""mutt shows the disclaimer of each kind of message, and what the author wrote."""

import pytest

from relay.base.message.content import read_all
from relay.base.message.header import ParsedContent
from relay.formats.disclaimer import Disclaimer, with_disclaimer, wrapped
from tests.interop.conftest import program
from tests.support.mutt import run_mutt

HEAD = b"From: a@in.test\r\nTo: b@out.test\r\nSubject: s\r\nMIME-Version: 1.0\r\n"
DISCLAIMER = Disclaimer.of("Nur für Sie €.\n--b\nZweite Zeile")
FLOWED = b"Content-Type: text/plain; format=flowed\r\n\r\nthe author \r\nwrote\r\n"
LATIN = "Content-Type: text/plain; charset=iso-8859-1\r\n\r\nthe author wrote äöü\r\n".encode(
    "latin-1"
)
NESTED = b"""\
Content-Type: multipart/mixed; boundary=b\r
\r
--b\r
Content-Type: multipart/alternative; boundary=a\r
\r
--a\r
\r
the author wrote\r
--a\r
Content-Type: text/html\r
\r
<p>the author wrote</p>\r
--a--\r
--b\r
Content-Type: application/pdf; name=x.pdf\r
Content-Transfer-Encoding: base64\r
\r
JVBERg==\r
--b--\r
"""
BASE64 = b"Content-Transfer-Encoding: base64\r\n\r\ndGhlIGF1dGhvciB3cm90ZQ==\r\n"
UNKNOWN = b"Content-Transfer-Encoding: x-new\r\n\r\nthe author wrote\r\n"


@pytest.mark.parametrize(
    "content",
    [FLOWED, LATIN, NESTED, BASE64, b"\r\nthe author wrote\r\n"],
    ids=["flowed", "latin-1", "nested", "base64", "plain"],
)
def test_mutt_shows_it_after_the_text(tmp_path, content):
    new = with_disclaimer(ParsedContent.of(HEAD + content), DISCLAIMER)
    assert isinstance(new, ParsedContent)
    text = shown(tmp_path, new)
    assert text.count("Nur für Sie €.\n--b\nZweite Zeile") == 1
    assert text.index("the author") < text.index("Nur für Sie")
    assert ("x.pdf" in text) is (content is NESTED)
    assert ("wrote äöü" in text) is (content is LATIN)


def test_mutt_shows_a_wrapped_message_after_it(tmp_path):
    text = shown(tmp_path, wrapped(ParsedContent.of(HEAD + UNKNOWN), DISCLAIMER))
    assert text.index("Nur für Sie €.\n--b\nZweite Zeile") < text.index("the author wrote")
    assert text.count("Subject: s") == 2


def shown(work, content: ParsedContent) -> str:
    """What mutt shows of a message in a Maildir."""
    home = work / "mail"
    for name in ("cur", "new", "tmp"):
        (home / name).mkdir(parents=True)
    (home / "new/1.x").write_bytes(read_all(content.joined()).replace(b"\r\n", b"\n"))
    return run_mutt(program("mutt"), "<display-message><quit>", home=home, work=work).read_text()
