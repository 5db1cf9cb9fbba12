"""The HTML of a disclaimer in Chromium: it is seen where it should be, whatever the document is."""

from pathlib import Path

from relay.formats.disclaimer import Disclaimer, in_html
from tests.support.browser import Browser
from tests.support.tables import each_row

DOCUMENTS = {
    "document": "<!doctype html><html><head><title>t</title></head><body>the<p>author</body></html>",
    "fragment": "the author",
    "no body tag": "<!doctype html><html><head><style>p { color: red }</style></head><p>the author",
    "comment": "<body>the<!-- </body> <body> --> author</body>",
    "script": "<body>the author<script>'<body></body>'</script>",
    "two bodies": "<body>the </body></html><html><body>author</body></html>",
    "in a tag": "<body>the author<a href='</body>",
    "in a comment": "<body>the author<!-- </body></html>",
    "in a style": "<body>the author<style>p {</body>",
    "in a title": "the author<title>x",
    "in a text area": "<body>the author<textarea hidden>x</body>",
    "plain text": "the author<plaintext style='display: none'></body>",
    "open table": "<table><tr><td>the author",
    "quirky": "<BODY BGCOLOR=white text='</body>'>the author</BODY ><!-- <body> -->",
}


@each_row("html", DOCUMENTS.values())
def test_it_is_shown_before_or_after_the_text(browser: Browser, tmp_path: Path, html: str):
    first = Disclaimer.of("From outside.\n<Take care>", at_start=True)
    last = Disclaimer.of("x", "<p style='color: rgb(102, 102, 102)'>Nur für Sie")
    page = tmp_path / "mail.html"
    page.write_text("\ufeff" + in_html(last, in_html(first, html)), encoding="utf-8")
    browser.open(page.as_uri())
    words = browser.evaluate("document.body.innerText").split()
    begin = ["From", "outside.", "<Take", "care>"]
    if html == DOCUMENTS["open table"]:  # Chromium puts what is not in a cell before the table
        assert sorted(words) == sorted([*begin, "the", "author", "Nur", "für", "Sie"])
    else:
        assert words == [*begin, "the", "author", "Nur", "für", "Sie"]
    colour = browser.evaluate("getComputedStyle([...document.querySelectorAll('p')].at(-1)).color")
    assert colour == "rgb(102, 102, 102)"
