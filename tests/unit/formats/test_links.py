"""Links and codes in bodies."""

from relay.formats.links import BodyLink, links_of_html, links_of_text, text_of_html


def test_links_of_html_have_their_text_and_their_true_target():
    html = (
        '<a href="https://evil.test/?a=1&amp;b=2"><b>https://bank.test</b> log&nbsp;in</a>'
        "<area href=mailto:a@b.test>x<a name=x>y</a><a href=' /z\n'>open<a href='#top'></a>"
    )
    assert list(links_of_html(html)) == [
        BodyLink("https://bank.test log in", "https://evil.test/?a=1&b=2"),
        BodyLink("", "mailto:a@b.test"),
        BodyLink("open", "/z"),
        BodyLink("", "#top"),
    ]


def test_links_of_a_text_end_before_punctuation_that_is_not_theirs():
    text = "(see https://a.test/b?c=d), <mailto:x@y.test>. [this](https://a.test/w_(x))."
    found = [one.target for one in links_of_text(text)]
    assert found == ["https://a.test/b?c=d", "mailto:x@y.test", "https://a.test/w_(x)"]


def test_the_text_of_html_has_no_styles_and_no_comments():
    assert text_of_html("<style>p{}</style><p>1 &lt; 2<!-- 3 --></p><p>4") == "1 < 2 4"
