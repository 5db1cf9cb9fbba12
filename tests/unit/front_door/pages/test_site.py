"""The frame of the pages: vendored scripts, relative links, header fields."""

import hashlib
import re
import tomllib
from pathlib import Path

from relay.front_door.pages import site
from relay.front_door.pages.site import relative_url
from tests.support.tables import each_row

PAGES = Path(__file__).parents[4] / "relay/front_door/pages"
VENDORED = tomllib.loads((PAGES / "static/vendored.toml").read_text())


@each_row("name", VENDORED)
def test_a_vendored_script_is_unchanged(name):
    content = (PAGES / "static" / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == VENDORED[name]["sha256"]


def test_each_script_is_ours_or_recorded_as_vendored():
    scripts = {path.name for path in (PAGES / "static").glob("*.js")}
    assert scripts - set(VENDORED) == {"pages.js", "theme.js"}


def test_style_sheet_script_and_templates_are_small():
    own = [*(PAGES / "static").glob("pages.*"), *(PAGES / "templates").iterdir()]
    assert sum(path.stat().st_size for path in own) <= 154_300


@each_row(
    "up, path, query, expected",
    [
        ("", "", {}, "./"),
        ("", "queue", {"state": "held", "after": None}, "queue?state=held"),
        ("../", "messages/<a/b@c>", {}, "../messages/%3Ca/b%40c%3E"),
        ("../", "", {"q": 'to:"x y"'}, "../?q=to%3A%22x+y%22"),
    ],
)
def test_links_are_relative_and_percent_encoded(up, path, query, expected):
    assert relative_url(up, path, query) == expected


@each_row("path", sorted((PAGES / "templates").glob("*.html")))
def test_templates_have_nothing_that_the_content_security_policy_blocks(path):
    text = path.read_text()
    assert not re.search(r"\s(style|on[a-z]+)=", text), "inline styles and handlers are blocked"
    assert not re.search(r"<style|<script(?![^>]*\ssrc=)", text)
    assert not re.search(r"""(href|src|action)=["']/""", text), "an absolute path has no base path"
    assert "hx-on" not in text
    assert '"js:' not in text


@each_row("path", sorted((PAGES / "templates").glob("*.html")))
def test_templates_escape_every_value(path):
    assert not re.search(r"\|\s*safe\b|autoescape\s+false", path.read_text())


ADDRESS, TITLE = '<span class="address"', ' title="xn--bcher-kva.test"'


@each_row(
    "text, shown",
    [
        ("xn--a <b>, no address", "xn--a &lt;b&gt;, no address"),
        ("a.b@c, d", f"{ADDRESS}>a.<wbr>b<wbr>@c</span>, d"),
        ("<a@xn--bcher-kva.test>", f"&lt;{ADDRESS}{TITLE}>a<wbr>@bücher.<wbr>test</span>&gt;"),
        ("a@xn--a.test & b", f"{ADDRESS}>a<wbr>@xn--a.<wbr>test</span> &amp; b"),
        (
            '"a b"@xn--bcher-kva.test.',
            f"&#34;a b&#34;{ADDRESS}{TITLE}><wbr>@bücher.<wbr>test</span>.",
        ),
        ("a&b@c.test@d", f"{ADDRESS}>a&amp;b<wbr>@c.<wbr>test</span>@d"),
    ],
)
def test_an_address_may_break_at_its_signs_and_has_the_a_labels_in_its_title(text, shown):
    page = site._environment().from_string("{{ text | addresses }}")
    assert page.render(text=text) == shown


HTML = "text/html,application/xhtml+xml,*/*;q=0.8"


@each_row(
    "path, accept, is_page",
    [
        ("/favicon.ico", "image/avif,image/*", False),
        ("/no/such/place", HTML, True),
        ("/No", HTML, True),
        ("/no/such/place", "*/*", False),
        ("/no/such/place", "application/json", False),
        ("/relay/v2/messages", HTML, False),
        ("/v1.0/nothing", HTML, False),
    ],
)
async def test_an_unknown_path_is_a_page_in_a_browser(pages, path, accept, is_page):
    answer = await pages.get(path, headers={"accept": accept})
    assert answer.status_code in (401, 404)
    assert answer.headers["content-type"].startswith("text/html" if is_page else "application/json")
    assert ("There is no page" in answer.text) == is_page
