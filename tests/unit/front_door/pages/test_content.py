"""The content of a message as pages show it: bounded, decoded, and honest about what is cut."""

import base64
import time

import pytest

from relay.base.message.content import MemoryOctets, octets_of
from relay.front_door.pages.content import (
    ATTACHMENTS_MAX,
    IMAGE_OCTETS_MAX,
    ShownField,
    content_disposition,
    decoded,
    file_name,
    html_document,
    read_content,
    shown_text,
)
from tests.support.contents import as_large
from tests.support.tables import each_row

GIF = base64.b64encode(b"GIF89a\x01\0\x01\0\0\0\0,").decode()


def message(*lines):
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def content(*lines):
    return read_content(MemoryOctets(message(*lines)))


WHOLE = (
    "From: =?utf-8?q?J=C3=BCrgen?= <j@a.test>",
    "Subject: Hello",
    "Content-Type: multipart/mixed; boundary=m",
    "",
    "--m",
    "Content-Type: multipart/related; boundary=r",
    "",
    "--r",
    "Content-Type: multipart/alternative; boundary=a",
    "",
    "--a",
    "",
    "Your code is 123456. See https://a.test/help.",
    "--a",
    "Content-Type: text/html; charset=utf-8",
    "Content-Transfer-Encoding: 8bit",
    "",
    '<p>é <img src="cid:pic"> <a href="https://a.test/go">www.b.test</a><img src="//t.test/x">',
    "--a--",
    "--r",
    "Content-Type: image/gif; name=p.gif",
    "Content-ID: <pic>",
    "Content-Transfer-Encoding: base64",
    "",
    GIF,
    "--r--",
    "--m",
    "Content-Type: application/pdf",
    'Content-Disposition: attachment; filename="a.pdf"',
    "",
    "%PDF",
    "--m--",
)


@pytest.mark.parametrize("form", ["small", "large"])
def test_a_message_is_shown_with_all_its_parts(form):
    raw = message(*WHOLE)
    found = read_content(octets_of(raw if form == "small" else as_large(raw)))
    assert found.size == len(raw)
    assert found.fields[0] == ShownField("From", "Jürgen <j@a.test>")
    assert found.text == "Your code is 123456. See https://a.test/help."
    assert found.codes == ("123456",)
    assert [(one.number, one.name, one.content_type, one.inline) for one in found.attachments] == [
        (1, "p.gif", "image/gif", True),
        (2, "a.pdf", "application/pdf", False),
    ]
    assert [(one.text, one.target, one.other_host) for one in found.links] == [
        ("www.b.test", "https://a.test/go", "b.test"),
        ("https://a.test/help", "https://a.test/help", ""),
    ]
    assert found.notes == ()
    document = html_document(found.parts)
    assert f'<img src="data:image/gif;base64,{GIF}"' in document.html
    assert (document.blocked.images, document.blocked.hosts) == (1, ("t.test",))
    assert b"".join(decoded(found.parts.attachments[1])) == b"%PDF"


def test_a_message_without_html_has_no_document_and_one_without_text_has_that_of_its_html():
    assert html_document(content("Subject: x", "", "hi").parts).html == ""
    only_html = content("Content-Type: text/html", "", "<p>a<p>b")
    assert (only_html.text, shown_text(only_html.parts)) == (None, "a\n\nb")


@each_row(
    "link, opens, other",
    [
        ('<a href="https://a.test/">a.test</a>', True, ""),
        ('<a href="https://www.a.test/">https://a.test/login</a>', True, ""),
        ('<a href="https://evil.test/">https://bank.test/login</a>', True, "bank.test"),
        ('<a href="https://bank.test@evil.test/">bank.test</a>', True, "bank.test"),
        ('<a href="mailto:a@a.test">write</a>', True, ""),
        ('<a href="javascript:alert(1)">x</a>', False, ""),
        ('<a href=" JAVASCRIPT:alert(1)">x</a>', False, ""),
        ('<a href="data:text/html,x">x</a>', False, ""),
        ('<a href="https://a.test/\u202egnp.exe">x</a>', False, ""),
        ('<a href="http://[">a.test</a>', True, "a.test"),
    ],
)
def test_links_show_their_true_target(link, opens, other):
    (found,) = content("Content-Type: text/html; charset=utf-8", "", link).links
    assert (bool(found.target), found.other_host) == (opens, other)
    assert found.shown_target


@each_row(
    "text, codes",
    [
        ("Your PIN is 4711", ("4711",)),
        ("Copyright 2026, 10115 Berlin", ()),
        ("Ref 123456 and 654321", ("123456", "654321")),
    ],
)
def test_codes_have_six_digits_or_a_word_about_codes(text, codes):
    assert content("Subject: x", "", text).codes == codes


@each_row(
    "given, name",
    [
        ('filename="../../etc/passwd"', "_.._etc_passwd"),
        (r'filename="C:\\boot.ini"', "C__boot.ini"),
        ("filename*=utf-8''%2e%2e%2fx%00%0d%0aSet-Cookie:%20a", "_x Set-Cookie_ a"),
        ("filename*=utf-8''exe%E2%80%AEgnp.exe", "exe\ufffdgnp.exe"),
        ('filename=".htaccess"', "htaccess"),
        ('filename="-rf"', "rf"),
        ('filename=""', "attachment.txt"),
        ('filename="."', "part-1"),
        (f'filename="{"a" * 400}.pdf"', "a" * 146 + ".pdf"),
        ('filename="a;b\'c.txt"', "a;b'c.txt"),
    ],
)
def test_a_download_has_a_harmless_name(given, name):
    found = content(MIXED, "", "--b", f"Content-Disposition: attachment; {given}", "", "x")
    assert file_name(1, found.parts.attachments[0]) == name
    field = content_disposition(name)
    assert field.isascii()
    assert not any(one in field for one in "\r\n\0")
    assert field.count('"') == 2


MIXED, PART = "Content-Type: multipart/mixed; boundary=b", "--b\r\nContent-Type: a/b\r\n\r\nx"
MANY_LINKS = "".join(f"<a href=http://a.test/{i}>x</a>" for i in range(999))


@each_row(
    "lines, note",
    [
        (("Subject: x", *(f"X-{i}: y" for i in range(25_000)), "", "t"), "a long header"),
        (("Subject: " + "=?utf-8?q?=41?= " * 25_000, "", "t"), "a long header"),
        (("Subject: x", "", "a" * 500_000), "200,000 are shown"),
        ((MIXED, "", *[PART] * 1001), "more than 1000 parts"),
        ((MIXED, "", *[PART] * 300), f"{ATTACHMENTS_MAX} are listed"),
        (("Content-Type: text/html", "", MANY_LINKS), "links"),
        (("Content-Type: text/plain; charset=klingon", "", "ä"), "not in its charset"),
        (
            (
                *(
                    line
                    for i in range(200)
                    for line in (f"Content-Type: multipart/mixed; boundary=b{i}", "", f"--b{i}")
                ),
                "x",
            ),
            "deep",
        ),
    ],
)
def test_what_is_cut_or_damaged_is_said(lines, note):
    started = time.process_time()
    found = content(*lines)
    assert time.process_time() - started < 1.5
    assert any(note in one for one in found.notes), found.notes
    assert sum(len(one.value) for one in found.fields) < 500_000


def test_names_and_fields_cannot_hide_or_reorder_what_follows():
    part = "Content-Type: x/y; name*=utf-8''%E2%80%AEfdp.exe"
    found = content("Subject: a\u202eb\u200bc", MIXED, "", "--b", part, "", "z")
    assert found.fields[0].value == "a\ufffdb\ufffdc"
    assert found.attachments[0].name == "\ufffdfdp.exe"


@each_row("damage", ["=", "====", "A", "\0\xff" * 50, "A=A=A=", "\r\n" * 50])
def test_damaged_base64_gives_what_can_be_read(damage):
    found = content(
        "Content-Type: text/html", "Content-Transfer-Encoding: base64", "", "PGI+eDwvYj4" + damage
    )
    assert found.has_html
    assert html_document(found.parts).html.startswith("<!DOCTYPE html>")


def related(image, html="<img src=cid:i>", kind="image/png"):
    return content(
        *("Content-Type: multipart/related; boundary=r", "", "--r", "Content-Type: text/html", ""),
        *(html, "--r", f"Content-Type: {kind}", "Content-ID: <i>", ""),
        *("Content-Transfer-Encoding: base64" if not kind else "", image, "--r--"),
    )


def test_an_image_of_the_message_is_shown_only_if_it_is_a_small_raster_image():
    assert html_document(related("x").parts).lost_images == 0
    assert html_document(related("x", kind="image/svg+xml").parts).lost_images == 1
    assert html_document(related("x", kind="text/html").parts).lost_images == 1
    assert html_document(related("x" * (IMAGE_OCTETS_MAX + 1)).parts).lost_images == 1
