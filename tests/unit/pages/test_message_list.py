"""The list of messages as a browser without scripts gets it."""

import asyncio
import re
import smtplib
from html import unescape

import pytest

from relay.pages.message_list import ListView, view_of

LINK = re.compile(r'<a id="open-[^"]+" data-row href="(messages/[^"]+)">(.*?)</a>')


async def send(pages, *messages):
    """Send (subject, recipient) pairs, the last one last."""
    at = pages.relay.addresses.smtp

    def submit():
        with smtplib.SMTP(at.host, at.port) as client:
            for subject, recipient in messages:
                text = f"Subject: {subject}\r\n\r\nx".encode()
                client.sendmail("alice@example.test", [recipient], text)

    await asyncio.to_thread(submit)
    await pages.relay.settle()


def subjects(text):
    return [unescape(subject) for _, subject in LINK.findall(text)]


def link(text, name):
    found = re.search(rf'<a(?: rel="\w+")? href="([^"]*)"[^>]*>{name}', text)
    assert found, name
    return "/" + unescape(found[1]).removeprefix("./")


async def test_messages_are_found_by_search_and_filters(pages):
    await send(pages, ("Invoice 1", "bob@example.test"), ("Invoice <2>", "ann@customer.test"))
    await send(pages, ("Hello", "gone+550@customer.test"))
    assert subjects(await pages.text("/")) == ["Hello", "Invoice <2>", "Invoice 1"]
    for query, expected in (
        ("q=invoice", ["Invoice <2>", "Invoice 1"]),
        ("q=to:customer.test+hello", ["Hello"]),
        ("q=state:captured", ["Invoice <2>"]),
        ("state=delivered", ["Invoice 1"]),
        ("mailbox=BOB@example.test", ["Invoice 1"]),
        ("mailbox=alice@example.test&state=failed", ["Hello"]),
    ):
        assert subjects(await pages.text(f"/?{query}")) == expected, query
    first, _ = LINK.search(await pages.text("/?q=hello")).groups()
    assert subjects(await pages.text(f"/?q=id:{first.removeprefix('messages/')}")) == ["Hello"]


async def test_what_matches_nothing_is_named_and_can_be_removed(pages):
    await send(pages, ("Invoice", "bob@example.test"))
    text = await pages.text("/?q=nothing&state=failed")
    assert "No message matches <strong>the search nothing</strong>" in text
    assert subjects(await pages.text(link(text, "remove"))) == []
    assert subjects(await pages.text(link(text, "Show all messages"))) == ["Invoice"]


async def test_a_search_that_cannot_be_read_is_answered_with_a_sentence(pages):
    answer = await pages.get("/?q=form:%3Cb%3E")
    assert answer.status_code == 400
    assert "&#39;form:&#39; is not known; there are from:" in answer.text
    conflict = await pages.get("/?q=state:failed&state=held")
    assert "The search has state:failed, and the filter has held. Remove one." in conflict.text
    assert (await pages.get("/?before=x&newer=%00&state=x&y=1&y=2")).status_code == 200


async def test_pages_go_back_and_forth_while_mail_arrives(pages):
    await send(pages, *((f"m{number}", "bob@example.test") for number in range(120)))
    first = await pages.text("/?q=m")
    second = await pages.text(link(first, "Older"))
    await send(pages, ("m new", "bob@example.test"))
    third = await pages.text(link(second, "Older"))
    found = subjects(first) + subjects(second) + subjects(third)
    assert found == [f"m{number}" for number in reversed(range(120))]
    assert 'rel="next"' not in third
    assert subjects(await pages.text(link(third, "Newer"))) == subjects(second)
    assert "m new" in subjects(await pages.text(link(second, "Newer")))
    assert "m new" in subjects(await pages.text(link(third, "Newest")))


async def test_counts_are_those_of_the_states(pages):
    await send(pages, ("a", "bob@example.test"), ("b", "x@other.test"), ("c", "x@other.test"))
    text = re.sub(r"<[^>]+>", "", await pages.text("/"))
    assert re.search(r"All 3\s+Delivered 1\s+Captured 2\s", text)


async def test_a_stream_sends_the_list_when_it_changes(pages):
    page = await pages.text("/?q=invoice")
    url = unescape(re.search(r'sse-connect="([^"]+)"', page)[1])
    async with pages.http.stream("GET", "/" + url) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        lines = stream.aiter_lines()
        await send(pages, ("Invoice 7", "bob@example.test"))
        async with asyncio.timeout(20):
            found = [line async for line in until_row(lines, "Invoice 7")]
    assert "event: view" in found
    assert not any("csrf" in line for line in found)


async def until_row(lines, text):
    async for line in lines:
        yield line
        if text in line:
            return


@pytest.mark.parametrize("steps", [1, 3, 30])
def test_the_trail_of_pages_is_bounded_and_leads_back(steps):
    view, seen = ListView(), []
    for number in range(1, steps + 1):
        place = view_of([("before", f"{number:x}-06gzy78nhccc7r9c")]).before
        fields = view.older(place)
        assert len(fields.get("newer", "")) < 1000
        seen.append(str(view.before) if view.before else "")
        view = view_of(list(fields.items()))
    for expected in seen[: -min(steps, 20) - 1 : -1]:
        view = view_of(list(view.newer().items()))
        assert (str(view.before) if view.before else "") == expected
