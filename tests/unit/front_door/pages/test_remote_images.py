"""Which remote images a preview may load: only URLs that are read in one way, and not the relay's own."""

import pytest

from relay.formats.safe_markup import safe_framed_style, safe_style_sheet
from relay.front_door.pages import sanitize
from tests.support.tables import each_row

OWN = sanitize.OwnPlaces(frozenset({8025, 8443, 1025}), frozenset({"relay.corp.test"}))


def written(url: str) -> str | None:
    return sanitize.remote_image_url(url, OWN)


def document(html: str) -> sanitize.SafeDocument:
    return sanitize.safe_document(html, lambda _: None, remote_url=written)


@each_row(
    "url, expected",
    [
        ("http://a.test/x.png", "http://a.test/x.png"),
        (" \thttps://A.test/X.png?a=1&b=%20#top\n", "https://a.test/X.png?a=1&b=%20"),
        ("HTTP://a.test", "http://a.test/"),
        ("http://a.test?x", "http://a.test?x"),
        ("http://a.test:80/", "http://a.test/"),
        ("http://a.test:443/", "http://a.test:443/"),
        ("https://a.test:/x", "https://a.test/x"),
        ("http://a.test:03000/x", "http://a.test:3000/x"),
        ("http://a.test/a b\"'()<>`é", "http://a.test/a%20b%22%27%28%29%3C%3E%60%C3%A9"),
        ("http://192.0.2.1/x", "http://192.0.2.1/x"),
        ("http://127.0.0.1:3000/x", "http://127.0.0.1:3000/x"),  # another program here
        ("http://localhost:3000/x", "http://localhost:3000/x"),
        ("http://[2001:db8::1]/x", "http://[2001:db8::1]/x"),
        ("http://a.test:8025/x", "http://a.test:8025/x"),  # the same port elsewhere
        ("http://xn--e1aybc.test/x", "http://xn--e1aybc.test/x"),
    ],
)
def test_whole_urls_are_written_in_one_form(url, expected):
    assert written(url) == expected


@each_row(
    "url",
    [
        # a user part
        "http://user@a.test/x",
        "http://a.test@b.test/",
        "http://a.test%40b.test/x",
        # other schemes, and what is no whole URL
        "",
        "x.png",
        "//a.test/x.png",
        "http:a.test/x",
        "http:///a.test/x",
        "https:\\\\a.test\\x",
        "ftp://a.test/x",
        "javascript:alert(1)",
        "data:image/svg+xml,<svg/>",
        "blob:http://a.test/x",
        "http://a\n.test/x",
        "http://a.test/\x00",
        "http://a.test/a\\b",
        "view-source:http://a.test/",
        # hosts that are read in more than one way
        "http://a.test\\@b.test/",
        "http://a%2etest/x",
        "http://\uff41.test/",
        "http://a.test:99999/",
        "http://a.test:80:80/",
        "http\u017f://a.test/",
        "http://a.test/" + "x" * 8192,
    ],
)
def test_other_urls_stay_boxes(url):
    assert written(url) is None


@pytest.mark.parametrize("port", [8025, 8443, 1025])
@each_row(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "127.0.0.1.",
        "0",
        "0.0.0.0",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "127.0.0.0x1",
        "0x",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::1.2.3.4]",
        "192.0.2.7",
        "[2001:db8::7]",  # perhaps this machine
        "localhost",
        "localhost.",
        "a.localhost",
        "localhost.localdomain",
        "relay",
        "ip6-localhost",
        "RELAY.corp.test",
    ],
)
def test_the_relay_itself_stays_a_box_in_any_spelling(host, port):
    for spelling in (
        f"http://{host}:{port}/messages/last",
        f"https://{host}:0{port}?x",
        f"http://{host}:{port}",
    ):
        assert written(spelling) is None, spelling


def test_default_ports_are_ports():
    own = sanitize.OwnPlaces(frozenset({80}), frozenset())
    assert sanitize.remote_image_url("http://127.1/x", own) is None
    assert sanitize.remote_image_url("http://127.1:80/x", own) is None
    assert sanitize.remote_image_url("https://127.1/x", own) == "https://127.1/x"
    assert sanitize.remote_image_url("http://a.test/x", own) == "http://a.test/x"


@each_row(
    "srcset, expected",
    [
        ("http://a.test/1 1x, http://a.test/2 2x", "http://a.test/1 1x, http://a.test/2 2x"),
        (
            "http://a.test/w_1,h_2/x 300w,http://a.test/2 1.5x",
            "http://a.test/w_1,h_2/x 300w, http://a.test/2 1.5x",
        ),
        (",, http://a.test/1,\nhttp://a.test/2,", "http://a.test/1, http://a.test/2"),
        ("http://127.0.0.1:8025/ 1x, http://a.test/2 2x", "http://a.test/2 2x"),
        ("http://u@a.test/ 1x, //b.test/ 2x, javascript:x 3x, data:x", ""),
        ("http://a.test/1 1x,http://127.1:8025/ 2x", "http://a.test/1 1x"),
        ("http://a.test/1 (http://127.1:8025/ 1x, http://a.test/2 2x", "http://a.test/2 2x"),
        ("http://a.test/1 onerror=x, http://a.test/2 1x", "http://a.test/2 1x"),
        ("", ""),
    ],
)
def test_a_srcset_keeps_the_candidates_that_may_be_loaded(srcset, expected):
    assert sanitize.remote_srcset(srcset, written) == expected


def test_a_srcset_is_read_up_to_a_limit():
    assert (
        sanitize.remote_srcset(", ".join(["http://a.test/1 1x"] * 5000), written).count("1x") == 100
    )


@each_row(
    "style, expected",
    [
        ("background:url(http://a.test/1)", 'background:url("http://a.test/1")'),
        (
            "background: RED url( 'http://a.test/1' ) no-repeat",
            'background:RED url("http://a.test/1") no-repeat',
        ),
        (
            'background-image:url("http://a.test/1"),url(http://a.test/2)',
            'background-image:url("http://a.test/1"),url("http://a.test/2")',
        ),
        (
            "background:rgb(1,2,3) url(http://a.test/1)",
            'background:rgb(1,2,3) url("http://a.test/1")',
        ),
        (
            "background-size:cover;background-position:0 0",
            "background-size:cover; background-position:0 0",
        ),
        # a URL that is not allowed becomes none
        (
            "background:url(http://a.test/1),url(http://127.1:8025/)",
            'background:url("http://a.test/1"),none',
        ),
        ("background:url(//a.test/1)", "background:none"),
        ("background:url(data:image/svg+xml;base64,x)", ""),
        ("background:url()", ""),
        ("background:url(#a)", "background:none"),
        # what a browser may read in another way
        (r"background:u\72l(http://a.test/1)", ""),
        (r"background:url(http://a.test/\29 x)", ""),
        ("background:url(http://a.test/1", ""),
        ("background:url('http://a.test/1\")", ""),
        ('background:"x" url(http://a.test/1)', ""),
        ("background:image-set(url(http://a.test/1) 1x)", ""),
        ("background:image(url(http://a.test/1))", ""),
        ("background:cross-fade(url(http://a.test/1),red)", ""),
        ("background:xurl(http://a.test/1)", ""),
        ("background:src(http://a.test/1)", ""),
        ("background:url(http://a.test/1)}x{a:b", ""),
        # other properties load nothing
        ("list-style-image:url(http://a.test/1)", ""),
        ("border-image:url(http://a.test/1)", ""),
        ("cursor:url(http://a.test/1),auto", ""),
        ("content:url(http://a.test/1)", ""),
        ("src:url(http://a.test/1)", ""),
        ("--x:url(http://a.test/1)", ""),
        ("behavior:url(http://a.test/1)", ""),
    ],
)
def test_only_backgrounds_have_images(style, expected):
    assert safe_framed_style(style, written) == expected
    assert "url" not in safe_framed_style(style)


def test_a_background_has_a_bounded_number_of_images():
    style = f"background:{','.join(['url(http://a.test/1)'] * 21)}"
    assert safe_framed_style(style, written) == ""


@each_row(
    "sheet",
    [
        *("@import 'http://a.test/1';", "@import url(http://a.test/1);"),
        "@import\turl('http://a.test/1') screen;",
        *("@font-face{font-family:x;src:url(http://a.test/1)}", "@namespace url(http://a.test/1);"),
        "@media all{@import 'http://a.test/1';}",
        *("@supports(a:b){p{cursor:url(http://a.test/1)}}", "p{list-style:url(http://a.test/1)}"),
        "p{background:url(http://127.0.0.1:8025/messages/last)}",
        "p{background:url(http://u@a.test/)}",
        "@property --x{syntax:'<url>';initial-value:url(http://a.test/1)}",
        *("p{color:';background:url(http://a.test/1)}", "@charset 'x';@import 'http://a.test/1'"),
    ],
)
def test_a_style_sheet_loads_nothing_else(sheet):
    assert "url(" not in safe_style_sheet(sheet, written)
    assert "import" not in safe_style_sheet(sheet, written)


def test_a_style_sheet_has_backgrounds():
    sheet = "p { background: url(http://a.test/1) } @media print { b { background:url('https://b.test/2') } }"
    found = safe_style_sheet(sheet, written)
    assert 'p { background:url("http://a.test/1") }' in found
    assert 'b { background:url("https://b.test/2") }' in found
    assert "url" not in safe_style_sheet(sheet)


def test_a_document_counts_what_it_loads_and_what_stays_out():
    found = document(
        "<img src=http://a.test/1.png><img src='http://a.test/1.png'><img src=//a.test/2>"
        "<img srcset='http://b.test/x 1x, http://127.1:8025/messages/last 2x'>"
        "<p style='background:url(http://c.test/bg)'><img src=http://u:p@d.test/>"
        "<img src=http://localhost:8025/queue><link rel=stylesheet href=http://e.test/x.css>"
        "<video poster=http://f.test/p></video><table><tr><td background=http://g.test/></table>"
        "<style>h1{background:url(http://h.test/)} @import 'http://i.test/x.css';</style>"
    )
    assert found.loaded == sanitize.RemoteLoads(4, 0, ("a.test", "b.test", "c.test", "h.test"))
    assert set(found.blocked.hosts) == {
        *("127.1:8025", "a.test", "d.test", "localhost:8025", "f.test", "g.test", "e.test"),
        "i.test",
    }
    assert (found.blocked.images, found.blocked.files) == (6, 2)
    assert found.html.count('src="http://a.test/1.png"') == 2
    assert 'srcset="http://b.test/x 1x"' in found.html
    assert "background:url(&quot;http://c.test/bg&quot;)" in found.html
    for absent in {*found.blocked.hosts, "u:p@", "//a.test/2"} - {"a.test"}:
        assert absent not in found.html


def test_without_a_request_a_document_loads_nothing():
    html = "<img src=http://a.test/1.png srcset='http://a.test/2 1x'><p style='background:url(http://a.test/3)'>"
    found = sanitize.safe_document(html, lambda _: None)
    assert (found.loaded, found.blocked.images) == (sanitize.RemoteLoads(), 3)
    assert "a.test" not in found.html


def test_a_document_loads_a_bounded_number_of_images():
    found = document(
        "".join(f"<img src=http://a.test/{n}>" for n in range(sanitize.REMOTE_IMAGES_MAX + 5))
    )
    assert found.loaded.images == found.html.count(" src=") == sanitize.REMOTE_IMAGES_MAX
    assert found.blocked.images == 5
