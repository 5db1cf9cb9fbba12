"""The clock of a development relay in the header of its pages and on its own page."""

import httpx
import pytest

from relay.front_door.pages.development import _place
from tests.support.tables import each_row
from tests.unit.front_door.pages.conftest import plain


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"by": "10m"}, 600),
        ({"by": "1d", "own": "5m"}, 86400),
        ({"by": "own", "own": " 1.5h "}, 5400),
    ],
)
async def test_an_advance_leads_back_to_the_page_and_is_shown_there(pages, fields, seconds):
    answer = await pages.post("/clock", fields | {"back": "queue?state=held"})
    assert (answer.status_code, answer.headers["location"]) == (303, "queue?state=held")
    assert pages.relay.clock.advanced_s == seconds
    text = plain(await pages.text("/queue?state=held"))
    assert "ahead" in text
    assert "Advanced by " in text
    assert "0 attempts, 0 reports." in text


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


async def test_a_scheme_in_the_page_to_go_back_to_is_only_a_name(pages):
    answer = await pages.post("/clock", {"by": "10m", "back": "javascript:alert(1)?path=1"})
    location = httpx.URL(answer.headers["location"])
    assert not location.scheme
    assert str(location) == "javascript%3Aalert%281%29?path=1"
