"""Conversations: the index in Outlook's format, and one thread for a message and its replies."""

from base64 import b64decode, b64encode

import pytest

from relay.message.conversation import is_index, message_ids, new_index, thread_of, topic_of

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


@pytest.mark.parametrize(
    ("octets", "is_one"), [(22, True), (27, True), (32, True), (0, False), (21, False), (23, False), (5100, False)]
)  # fmt: skip
def test_an_index_has_a_header_and_five_octets_for_each_reply(octets, is_one):
    assert is_index(b64encode(b"\1" * octets).decode()) is is_one


@pytest.mark.parametrize("text", ["", "é", "AAA", "A" * 30 + " "])
def test_invalid_base64_is_not_an_index(text):
    assert not is_index(text)


@pytest.mark.parametrize(
    ("subject", "topic"),
    [
        ("Question", "Question"), ("RE: Question", "Question"), ("re: AW: Fwd: Question", "Question"),
        ("Re[2]: Question", "Question"), ("RE:Question", "Question"), ("Note: this", "Note: this"),
        ("12: this", "12: this"), ("", ""), ("RE: ", ""),
    ],
)  # fmt: skip
def test_a_topic_is_the_subject_without_prefixes(subject, topic):
    assert topic_of(subject) == topic


def test_message_ids_are_found_in_any_text():
    assert message_ids(" <a@b>\r\n\t<c@d> x <e f> <<g@h>>") == ("<a@b>", "<c@d>", "<g@h>")
