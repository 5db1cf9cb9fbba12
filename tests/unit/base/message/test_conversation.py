"""Conversations: the index in Outlook's format, and one thread for a message and its replies."""

from base64 import b64decode, b64encode

import pytest

from relay.base.message.conversation import (
    REFERENCES_MAX,
    answer_index,
    answer_references,
    answer_subject,
    conversation_id,
    is_index,
    message_ids,
    new_index,
    thread_of,
    topic_of,
)
from relay.base.message.properties import MessageProperties
from tests.support.tables import each_row

FILETIME_2026 = 0x01DC7AB192810000  # 2026-01-01T00:00:00Z in tenths of microseconds since 1601
TIME_US = 1_767_225_600_000_000


def test_an_index_has_a_time_and_a_thread():
    thread = thread_of("<a@b.test>")
    octets = b64decode(new_index(thread, time_us=TIME_US))
    assert octets[:6] == FILETIME_2026.to_bytes(8, "big")[:6]
    assert octets[6:] == thread
    assert new_index(thread, time_us=TIME_US) == new_index(thread, time_us=TIME_US)
    assert len(b64decode(new_index(thread, time_us=-(1 << 70)))) == 22
    assert len(b64decode(new_index(thread, time_us=1 << 70))) == 22


def test_replies_have_the_thread_of_the_first_message():
    first = thread_of("<first@a.test>")
    assert thread_of("<2@a.test>", in_reply_to="<first@a.test>") == first
    references = ("<first@a.test>", "<2@a.test>")
    assert thread_of("<3@a.test>", in_reply_to="<2@a.test>", references=references) == first
    assert thread_of("<2@a.test>") != first


@each_row(
    "subject, topic",
    [
        ("Question", "Question"),
        ("RE: Question", "Question"),
        ("re: AW: Fwd: Question", "Question"),
        ("Re[2]: Question", "Question"),
        ("RE:Question", "Question"),
        ("Note: this", "Note: this"),
        ("12: this", "12: this"),
        ("", ""),
        ("RE: ", ""),
    ],
)
def test_a_topic_is_the_subject_without_prefixes(subject, topic):
    assert topic_of(subject) == topic


@each_row(
    "value, ids",
    [
        ("a@b", ("<a@b>",)),
        ("20261125.1", ("<20261125.1>",)),
        ("a@b\r\n c@d", ("<a@b>", "<c@d>")),
        ("Your message of Tuesday", ()),
        ("Your message of Tuesday <a@b>", ("<a@b>",)),
        ("mail from joe@example.com", ()),
        ("<a@b", ()),
        ("é@b", ()),
        ("", ()),
    ],
)
def test_ids_are_read_without_their_brackets_but_words_of_a_text_are_none(value, ids):
    assert message_ids(value) == ids


def test_the_index_of_a_reply_adds_the_time_since_the_first_message():
    first = MessageProperties(
        conversation_index=new_index(thread_of("<a@b.test>"), time_us=TIME_US)
    )
    day_us = 86_400_000_000
    reply = b64decode(answer_index(first, "<a@b.test>", time_us=TIME_US + day_us))
    assert reply[:22] == b64decode(first.conversation_index)
    delta = int.from_bytes(reply[22:26], "big")
    assert abs((delta << 18) - day_us * 10) < 1 << 18
    late = b64decode(answer_index(first, "<a@b.test>", time_us=TIME_US + 1000 * day_us))
    delta = int.from_bytes(late[22:26], "big")
    assert delta >> 31 == 1
    assert abs(((delta & 0x7FFFFFFF) << 23) - 1000 * day_us * 10) < 1 << 23


@pytest.mark.parametrize("index", ["", "AAAA", "no base64", b64encode(b"\1" * 23).decode()])
def test_a_reply_to_a_message_without_an_index_begins_one_for_its_thread(index):
    original = MessageProperties(conversation_index=index, references=("<root@b.test>",))
    made = answer_index(original, "<a@b.test>", time_us=TIME_US)
    assert is_index(made)
    assert b64decode(made)[6:22] == thread_of("<root@b.test>")


def test_the_longest_index_grows_no_more():
    index = b64encode(b"\1" * (22 + 5020)).decode()
    made = answer_index(MessageProperties(conversation_index=index), "x", time_us=TIME_US)
    assert made == index
    index = b64encode(b"\1" * (22 + 5015)).decode()
    made = answer_index(MessageProperties(conversation_index=index), "x", time_us=TIME_US)
    assert is_index(made)
    assert made != index


@each_row(
    "references, in_reply_to, message_id, expected",
    [
        ((), "", "<1@a>", ("<1@a>",)),
        (("<0@a>", "<x@a>"), "<x@a>", "<1@a>", ("<0@a>", "<x@a>", "<1@a>")),
        ((), "<0@a>", "<1@a>", ("<0@a>", "<1@a>")),
        (("<0@a>",), "", "", ("<0@a>",)),
        (("<0@a>",), "", "no id", ("<0@a>",)),
        (("<0@a>", "<0@a>"), "", "<0@a>", ("<0@a>",)),
        ((), "", "", ()),
    ],
)
def test_references_of_a_reply(references, in_reply_to, message_id, expected):
    original = MessageProperties(
        references=references, in_reply_to=in_reply_to, internet_message_id=message_id
    )
    found = answer_references(original)
    assert found == expected
    if found:
        reply = MessageProperties(references=found)
        assert conversation_id(reply, "<2@a>") == conversation_id(original, message_id)


def test_long_references_are_bounded():
    many = tuple(f"<{number}@a.test>" for number in range(300))
    found = answer_references(MessageProperties(references=many, internet_message_id="<x@a>"))
    assert (len(found), found[0], found[-2:]) == (REFERENCES_MAX, many[0], (many[-1], "<x@a>"))
    long = tuple(f"<{'x' * 900}{number}@a.test>" for number in range(50))
    found = answer_references(MessageProperties(references=long, internet_message_id="<x@a>"))
    assert sum(map(len, found)) <= 16_000
    assert (found[0], found[-1]) == (long[0], "<x@a>")


@each_row(
    "subject, topic",
    [
        ("Re:x", "x"),
        ("RE: Fwd: AW : x", "x"),
        ("re[12]: RE(3): x", "x"),
        ("\u56de\u590d\uff1ax", "x"),
        ("Reply: x", "Reply: x"),
        ("C: x", "C: x"),
        ("12: x", "12: x"),
        ("[list] Re: x", "[list] Re: x"),
    ],
)
def test_the_subject_of_a_reply_has_one_prefix(subject, topic):
    assert answer_subject("RE", subject) == f"RE: {topic}"
    assert answer_subject("RE", answer_subject("FW", subject)) == f"RE: {topic}"
