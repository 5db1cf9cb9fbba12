"""The clock of a development relay in the header of its pages and on its own page."""

import asyncio
import re

import httpx
import pytest

from relay.front_door.pages import development as clock_page
from relay.front_door.pages.development import _place
from relay.operation.app.settling import UnsettledError
from tests.unit.front_door.pages.conftest import plain, send


async def test_each_page_shows_the_clock_and_can_advance_it(pages):
    for path in ("/", "/queue", "/health"):
        text = await pages.text(path)
        assert 'class="clock menu"' in text, path
        assert f'name="back" value="{path[1:]}"' in text
        assert "ahead" not in re.search(r"<summary>.*?</summary>", text, re.DOTALL)[0]
        assert text.count('name="csrf"') == text.count('method="post"')


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


async def test_an_advance_to_the_next_retry_delivers_a_deferred_message(pages):
    await send(pages, "bob+451x1@b.test")
    assert not pages.relay.internet.received
    answer = await pages.post("/clock", {"by": "next", "back": ""})
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    assert len(pages.relay.internet.received) == 1
    assert 0 < pages.relay.clock.advanced_s < 10
    assert ": 1 attempt, 0 reports." in plain(await pages.text("/clock"))


@pytest.mark.parametrize(
    ("fields", "status", "expected"),
    [
        ({"by": "next"}, 409, "No message waits for another attempt."),
        ({"by": "own", "own": "soon"}, 400, "Found 'soon', expected a duration such as"),
        ({"by": "own", "own": "<b>"}, 400, "Found '<b>', expected a duration such as"),
        ({"by": "own", "own": ""}, 400, "expected a duration such as"),
        (
            {"by": "own", "own": "401d"},
            400,
            "Found '401d', expected a time over 0 and of at most 400 d.",
        ),
        (
            {"by": "own", "own": "0s"},
            400,
            "Found '0s', expected a time over 0 and of at most 400 d.",
        ),
        ({}, 400, "expected a duration such as"),
    ],
)
async def test_an_advance_that_is_not_possible_says_why_and_keeps_what_was_typed(
    pages, fields, status, expected
):
    answer = await pages.post("/clock", fields)
    assert answer.status_code == status
    assert expected in plain(answer.text).replace("\u202f", " ")
    assert pages.relay.clock.advanced_s == 0
    if own := fields.get("own"):
        assert f'name="own" value="{own.replace("<", "&lt;").replace(">", "&gt;")}"' in answer.text


async def test_an_advance_needs_the_token_of_the_form(pages):
    for fields in ({"by": "1h"}, {"by": "1h", "csrf": "x" * 43}):
        answer = await pages.http.post("/clock", data=fields)
        assert answer.status_code == 403
        assert "Nothing was changed" in answer.text
    assert pages.relay.clock.advanced_s == 0


async def test_an_advance_goes_on_without_the_client_and_another_is_refused(pages, monkeypatch):
    let_go, settle = asyncio.Event(), pages.relay._advances._settle
    begun = asyncio.Event()

    async def held():
        begun.set()
        await let_go.wait()
        await settle()

    monkeypatch.setattr(pages.relay._advances, "_settle", held)
    csrf = await pages.csrf()
    fields = {"by": "1h", "csrf": csrf}
    first = asyncio.create_task(pages.http.post("/clock", data=fields))
    await begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = await pages.post("/clock", {"by": "1d"})
    assert second.status_code == 409
    assert "The clock is being advanced already." in second.text
    state = await pages.text("/clock?part=state")
    assert "The clock is being advanced." in state
    assert 'hx-get="clock?part=state"' in state
    let_go.set()
    async with asyncio.timeout(30):
        while pages.relay.is_advancing:
            await asyncio.sleep(0.01)
    assert pages.relay.clock.advanced_s == 3600
    state = await pages.text("/clock?part=state")
    assert "hx-get" not in state
    assert "0 attempts, 0 reports." in plain(state)


async def test_a_long_advance_is_shown_while_it_is_in_progress(pages, monkeypatch):
    let_go, settle = asyncio.Event(), pages.relay._advances._settle

    async def held():
        await let_go.wait()
        await settle()

    monkeypatch.setattr(pages.relay._advances, "_settle", held)
    monkeypatch.setattr(clock_page, "_WAIT_S", 0.01)
    answer = await pages.post("/clock", {"by": "1h", "back": "queue"})
    assert (answer.status_code, answer.headers["location"]) == (303, "clock")
    assert "being advanced" in await pages.text("/clock")
    let_go.set()


async def test_an_advance_that_stops_early_says_so(pages, monkeypatch):
    async def never():
        raise UnsettledError("still in progress: <x>")

    monkeypatch.setattr(pages.relay._advances, "_settle", never)
    answer = await pages.post("/clock", {"by": "1h"})
    assert answer.status_code == 503
    assert "still in progress: &lt;x&gt;" in answer.text
    assert "It stopped early:" in await pages.text("/health")


@pytest.mark.parametrize(
    ("back", "expected"),
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
