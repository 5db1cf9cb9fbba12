"""The text of the search box."""

import contextlib

import pytest

from relay.base.clock import time_us_of
from relay.front_door.api.search_text import SearchTextError, parse_search
from relay.store.journeys.message_list import MessageSearch, SearchedTag
from tests.support.tables import each_row

NOW_US = time_us_of("2026-11-01T09:30Z")


@each_row(
    "text, wanted",
    [
        ("", {}),
        ("invoice march", {"words": ("invoice", "march")}),
        ('"invoice march"', {"words": ("invoice march",)}),
        ('"invoice march', {"words": ("invoice march",)}),
        ("from:alice", {"sender": "*alice*"}),
        ("FROM:alice@a.test", {"sender": "*alice@a.test*"}),
        ("from:<>", {"sender": "<>"}),
        ("to:*@b.test", {"to": "*@b.test"}),
        ('subject:"in voice" x', {"subject": "*in voice*", "words": ("x",)}),
        ("state:Deferred", {"state": "deferred"}),
        ("id:<a@b>", {"key": "<a@b>"}),
        ('"from:alice"', {"words": ("from:alice",)}),
        ("Re: hello", {"words": ("Re:", "hello")}),
        ("12:30 http://x.test/a-b - ", {"words": ("12:30", "http://x.test/a-b", "-")}),
        ("Grüße", {"words": ("Grüße",)}),
        ("!from:x !is:unread", {"words": ("!from:x", "!is:unread")}),
        ('tag:"a ""b""" q"', {"tags": (SearchedTag('a "b"'),), "words": ('q"',)}),
        ("has:attachment", {"has_attachment": True}),
        ("has:Complaints", {"has_complaint": True}),
        ("is:Unread x", {"is_unread": True, "words": ("x",)}),
        (
            'tag:x -tag:"two words" !is:tagged',
            {"tags": (SearchedTag("x"), SearchedTag("two words", True), SearchedTag("", True))},
        ),
        ("larger:100k", {"larger_than_bytes": 100_000}),
        ("larger:2MB", {"larger_than_bytes": 2_000_000}),
        ("after:2026-11-01", {"from_us": 1_793_491_200_000_000}),
        ("before:2026-11-01", {"until_us": 1_793_491_200_000_000}),
        ("before:2026-11-01T09:30Z", {"until_us": 1_793_525_400_000_000}),
        ("after:2026-11-01T10:30:00+01:00", {"from_us": 1_793_525_400_000_000}),
        ('after:"yesterday 9:30"', {"from_us": 1_793_439_000_000_000}),
        ("before:1969-12-31", {"until_us": 1}),
        ("client:192.0.2.7", {"client": "192.0.2.7"}),
        ("client:2001:DB8:0::7", {"client": "2001:db8::7"}),
        ("client:192.0.2.*", {"client": "192.0.2.*"}),
        ("login:ali", {"login": "*ali*"}),
        ("login:alice@a.test", {"login": "alice@a.test"}),
    ],
)
def test_a_text_has_conditions(text, wanted):
    assert parse_search(text, NOW_US) == MessageSearch(**wanted)


@each_row(
    "text, said",
    [
        (
            "form:alice",
            "'form:' is not known; there are from:, to:, subject:, state:, id:, tag:, after:, before:",
        ),
        ("has:link", "has: found 'link', expected attachment, complaint or suppressed."),
        ("is:read", "is: found 'read', expected unread or tagged."),
        ("larger:big", "larger: found 'big', expected a size such as 100k or 2M"),
        ("larger:-1", "larger: found '-1', expected a size"),
        ('after:"2 h ago"', "after: found '2 h ago', expected a duration such as"),
        ("after:2026-02-30", 'a day such as "today", "2027-01-31" (UTC without a zone).'),
        ("before:2026-11-01T25", "before: found '2026-11-01T25', expected a duration"),
        ("after:2026-11-02 before:2026-11-02", "before: expected a later time than the search"),
        ("after:20261101", "after: found '20261101', expected a duration"),
        ("larger:1 larger:2", "larger: is there twice."),
        (
            "state:sent",
            "state: 'sent' is not a state; there are final, scheduled, converting, queued",
        ),
        ("from:a from:b", "from: is there twice."),
        ("-to:bob", "'-to:bob': a search can leave out tags alone."),
        ("-draft", "a search can leave out tags alone."),
        ("x" * 1001, "The search has 1,001 characters; it may have 1,000."),
        ("a " * 21, "The search has more than 20 words."),
    ],
)
def test_a_text_that_is_no_search_is_said_in_a_sentence(text, said):
    with pytest.raises(SearchTextError) as caught:
        parse_search(text, NOW_US)
    assert said in str(caught.value)
    assert str(caught.value).endswith(".")


@each_row("text", ['"' * 500, 'a:"' * 300, "\x00\x01", ":::", "- -- ---", '""', "id:"])
def test_any_text_is_a_search_or_a_sentence(text):
    with contextlib.suppress(SearchTextError):
        assert isinstance(parse_search(text, NOW_US), MessageSearch)
