"""A service finds words in the mailboxes of who asks only, whatever the role."""

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess

WORD = "zyzzyva"


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    with RelayProcess() as started:
        for name in ("bob", OPERATOR):
            sent = started.send_mail(
                to=[f"{name}@example.test"], subject=f"to {name}", text=f"a {WORD} here"
            )
            started.until_final(sent)
        yield started


def found(relay: RelayProcess, who: str, text: str) -> list[str]:
    answer = relay.graph("GET", f"/relay/v1/messages?q={quote(text)}", token=who)
    assert answer.status == 200, answer.body
    return sorted(one["subject"] for one in answer.json()["messages"])


def test_words_are_found_in_own_mailboxes_only(relay: RelayProcess) -> None:
    assert found(relay, "alice", WORD) == ["to bob", f"to {OPERATOR}"]  # in her Sent Items
    assert found(relay, "bob", WORD) == []  # he has sent nothing
    assert found(relay, OPERATOR, WORD) == [f"to {OPERATOR}"]  # its own copy
    assert found(relay, OPERATOR, "to:bob") == ["to bob"]
    assert found(relay, OPERATOR, f"{WORD} to:bob") == []


def test_unread_is_what_is_unread_in_the_own_mailbox(relay: RelayProcess) -> None:
    assert found(relay, OPERATOR, "is:unread") == [f"to {OPERATOR}"]
    assert found(relay, "alice", "is:unread") == []
    assert found(relay, "alice", "has:attachment") == []
    assert found(relay, OPERATOR, "larger:1 after:2020-01-01") == ["to bob", f"to {OPERATOR}"]
