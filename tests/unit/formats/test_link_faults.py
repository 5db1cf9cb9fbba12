"""What is wrong in the links of a message."""

from relay.formats.body_checks import check_bodies
from relay.formats.links import LINK_PROBLEMS, checked_links
from tests.support.tables import each_row


@each_row(
    "target, expected",
    [
        ("https://a.test/x?y=1&amp;z#u", ""),
        ("", "empty"),
        ("#top", ""),
        ("/x", "relative"),
        ("www.a.test", "relative"),
        ("//a.test/x", "relative"),
        ("http://a.test/", "http"),
        ("https://localhost:3000/", "localhost"),
        ("https://[::1]/", "localhost"),
        ("https://10.0.0.1/", "address"),
        ("https://[fd00::1]:8000/", "address"),
        ("http://8.8.8.8/", "http address"),
        ("https://2130706433/", "address"),
        ("https:///x", "invalid"),
        ("http:", "http invalid"),
        ("javascript:alert(1)", "script"),
        ("data:text/html,x", "script"),
        ("https://a.test/a b", "blank"),
        (" https://a.test/a%20b\n", ""),
        ("https://a.test/\u00a0x", "blank"),
        ("{{url}}", "placeholder"),
        ("{{ url }}", "blank placeholder"),
        ("https://a.test/%7B%7Bid%7D%7D", "placeholder"),
        ("%RECIPIENT%", "placeholder"),
        ("https://a.test/${id}", "placeholder"),
        ("*|UNSUB|*", "placeholder"),
        ("https://a.test/%C3%A9CLAIR%20", ""),
        ("https://a.test/[x]", ""),
        ("mailto:{{to}}", "placeholder"),
        ("mailto:a@b.test", ""),
        ("tel:+49123", ""),
    ],
)
def test_problems_of_a_link(target: str, expected: str):
    [link] = checked_links(f"<a href='{target}'>open</a>", "")
    assert " ".join(link.problems) == expected
    assert set(link.problems) <= LINK_PROBLEMS.keys()


@each_row(
    "text, target, other",
    [
        ("https://bank.test/in", "https://evil.test", "bank.test"),
        ("www.Bank.test", "https://bank.test/x", ""),
        ("bank.test", "https://bank.test.evil.test", "bank.test"),
        ("bank.test", "https://bank.test@evil.test", "bank.test"),
        ("bank.test", "https://evil.test/bank.test", "bank.test"),
        ("bank.test", "mailto:info@Bank.test", ""),
        ("Bank", "https://evil.test", ""),
    ],
)
def test_a_text_that_names_another_host(text: str, target: str, other: str):
    [link] = checked_links(f"<a href='{target}'><b>{text}</b></a>", "")
    assert link.other_host == other
    assert ("other-host" in link.problems) is bool(other)


def test_long_targets_and_texts_are_cut():
    [link] = check_bodies(f"<a href='https://a.test/{'x' * 5000}'>{'y' * 5000}</a>", None).links
    assert (len(link.target), len(link.text)) == (2000, 200)
