"""The clock of a development relay in the header of its pages and on its own page."""

from relay.front_door.pages.development import _place
from tests.support.tables import each_row


async def test_an_advance_leads_back_to_the_page(pages):
    advanced_s = 0
    for fields, seconds, back, location in (
        ({"by": "10m"}, 600, "queue?state=held", "queue?state=held"),
        ({"by": "1d", "own": "5m"}, 86400, "", "./"),
        ({"by": "own", "own": " 1.5h "}, 5400, "javascript:x?path=1", "javascript%3Ax?path=1"),
    ):
        answer = await pages.post("/clock", fields | {"back": back})
        assert (answer.status_code, answer.headers["location"]) == (303, location)
        advanced_s += seconds
        assert pages.relay.clock.advanced_s == advanced_s


@each_row(
    "back, expected",
    [
        ("", ("", {})),
        ("?q=a+b", ("", {"q": "a b"})),
        ("queue?state=held", ("queue", {"state": "held"})),
        ("messages/%3Ca%2Fb%40c%3E", ("", {})),
        ("messages/abc", ("messages/abc", {})),
        ("//evil.test/x", ("", {})),
        ("/queue", ("", {})),
        ("../x", ("", {})),
        ("a/%2e%2e/x", ("", {})),
        ("queue?path=1&request=2", ("queue", {"path": "1", "request": "2"})),
    ],
)
def test_the_page_to_go_back_to_is_one_of_this_relay(back, expected):
    assert _place(back) == expected
