"""Conditions of a search on the content of messages: in mailboxes, and in the queue."""

from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

import pytest
from msgspec import structs

from relay.base.message.content import Content
from relay.base.message.properties import MessageProperties
from relay.front_door.api.content_search import ContentSearch
from relay.front_door.api.message_source import MessageCopies
from relay.store.journeys.message_list import ALL_MAILBOXES, NO_MAILBOX, FoundMessage, MessageSearch
from relay.store.mailbox.stored_message import MessageChange
from relay.submission.outbox.store import FileStore
from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on

ALICE, BOB, ANN = "alice@example.test", "bob@example.test", "ann@customer.example"
LOCAL = "@example.test"


def mime(text: str, *, html: str = "", attachment: str = "", charset: str = "utf-8") -> bytes:
    message = EmailMessage()
    message["Subject"] = "a subject"
    message.set_content(text, charset=charset)
    if html:
        message.add_alternative(html, subtype="html")
    if attachment:
        message.add_attachment(b"x", maintype="application", subtype="pdf", filename=attachment)
    return message.as_bytes().replace(b"\n", b"\r\n")


@dataclass
class Queue:
    """What the spool has; the number of calls."""

    contents: dict[str, Content] = field(default_factory=dict)
    calls: int = 0

    async def read_contents(self, queue_ids):
        assert len(queue_ids) <= 50
        self.calls += 1
        return {one: self.contents[one] for one in queue_ids if one in self.contents}


@dataclass
class Searched:
    store: FileStore
    clock: ManualClock
    queue: Queue = field(default_factory=Queue)
    is_development: bool = True
    number: int = 0

    async def deliver(self, *people: str, content: bytes, state: str = "") -> FoundMessage:
        """Put a copy into the mailbox of each recipient; return the message."""
        self.number += 1
        queue_id = f"{self.number:016}"
        recipients = []
        for number, address in enumerate(people, 1):
            await self.store.deliver(address, unique=f"{queue_id}-{number}", content=content)
            default = "delivered" if address.endswith(LOCAL) else "captured"
            recipients.append((number, address, state or default))
        return FoundMessage(queue_id, "", recipients=tuple(recipients))

    def queued(self, content: bytes, state: str = "deferred") -> FoundMessage:
        self.number += 1
        queue_id = f"{self.number:016}"
        self.queue.contents[queue_id] = content
        return FoundMessage(queue_id, "", recipients=((1, "x@remote.test", state),))

    async def sent(self, account: str, properties: MessageProperties) -> FoundMessage:
        draft = await self.store.messages.create(account, properties)
        return FoundMessage("", f"{draft.id}.1", account=account)

    def begin(self, reader: str = ALL_MAILBOXES, *, lookup_s: float = 60, **wanted: Any) -> Any:
        def mailbox_for(address: str) -> str | None:
            return address if address.endswith(LOCAL) else None

        copies = MessageCopies(
            self.store.messages, mailbox_for=mailbox_for, keeps_captured=self.is_development
        )
        search = ContentSearch(
            self.store.messages, self.queue, copies, lists=self.store.lists, clock=self.clock
        )
        return search.begin(MessageSearch(reader=reader, **wanted), lookup_s=lookup_s)

    async def find(
        self, words: str, *found: FoundMessage, reader: str = ALL_MAILBOXES
    ) -> list[bool]:
        """Search for words, none of which is in the history of the messages."""
        wanted = tuple(words.split())
        candidates = [
            FoundMessage(one.queue_id, one.submission_id, one.account, wanted, one.recipients)
            for one in found
        ]
        return [*await self.begin(reader, words=wanted).matching(candidates)]


@pytest.fixture
def searched(tmp_path):
    clock = ManualClock()
    with store_on(tmp_path / "mail", clock) as store:
        yield Searched(store, clock)


async def test_words_are_those_of_the_text_and_may_be_their_beginnings(searched) -> None:
    one = await searched.deliver(BOB, content=mime("Grüße aus Köln, the quick brown fox"))
    for words, is_found in [
        ("fox", True),
        ("fo", True),
        ("FOX quick", True),
        ("koln", True),
        ("ox", False),
        ("fox wolf", False),
        ("grusse", False),
        ("***", False),
        ('"', False),
    ]:
        assert await searched.find(words, one) == [is_found], words
    phrase = FoundMessage(one.queue_id, "", words_left=("quick br",), recipients=one.recipients)
    assert await searched.begin(words=("quick br",)).matching([phrase]) == [True]


@pytest.mark.parametrize(
    "content",
    [
        mime("a giraffe"),
        mime("a giraffe", charset="us-ascii"),
        mime("é" * 100 + " giraffe"),  # base64
        mime("é giraffe " + "x" * 300),  # quoted-printable
        mime("plain", html="<p>a <b>giraffe</b></p>"),
        mime("plain", html="<p>&#103;iraffe</p>"),
        mime("plain", attachment="giraffe.pdf"),
    ],
)
async def test_what_waits_in_the_queue_is_read_whatever_its_encoding(searched, content) -> None:
    assert await searched.find("giraffe", searched.queued(content)) == [True]
    assert await searched.find("elephant", searched.queued(content)) == [False]


async def test_captured_mail_is_found_in_its_mailbox_and_without_a_copy_in_the_queue(
    searched,
) -> None:
    encoded = mime("é" * 100 + " giraffe")
    captured = await searched.deliver(ANN, content=encoded)
    searched.queue.contents[captured.queue_id] = encoded
    assert await searched.find("giraffe", captured) == [True]
    [copy] = searched.begin()._places(captured)
    await searched.store.messages.delete(*copy, permanently=True)
    assert await searched.find("giraffe", captured) == [True]
    assert await searched.find("elephant", captured) == [False]


async def test_the_text_of_a_message_before_step_4_is_that_of_the_draft(searched) -> None:
    one = await searched.sent(ALICE, MessageProperties(subject="s", body="a giraffe"))
    assert await searched.find("giraffe", one) == [True]
    assert await searched.find("giraffe", one, reader=ALICE) == [True]
    assert await searched.find("giraffe", one, reader=BOB) == [False]


async def test_a_service_finds_words_in_the_mailbox_of_who_asks_only(searched) -> None:
    searched.is_development = False
    to_bob = await searched.deliver(BOB, content=mime("a giraffe"))
    waiting = searched.queued(mime("a giraffe"))
    to_both = await searched.deliver(ALICE, BOB, content=mime("a giraffe"))
    found = [to_bob, waiting, to_both]
    assert await searched.find("giraffe", *found, reader=BOB) == [True, False, True]
    assert await searched.find("giraffe", *found, reader=ALICE) == [False, False, True]
    assert await searched.find("giraffe", *found, reader="operator@example.test") == [False] * 3
    assert searched.queue.calls == 0
    flag = searched.begin(ALICE, words=("giraffe",), has_attachment=True)
    assert await flag.matching([to_both]) == [False]


async def test_attachments_are_found_for_all_roles(searched) -> None:
    searched.is_development = False
    found = [
        await searched.deliver(BOB, content=mime("x", attachment="a.pdf")),
        await searched.deliver(BOB, content=mime("x", html="<p>x</p>")),
        searched.queued(mime("x", attachment="a.pdf")),
        searched.queued(mime("é" * 99)),
        FoundMessage("q" * 16, "", recipients=((1, "x@remote.test", "relayed"),)),
    ]
    for reader in (ALICE, BOB, NO_MAILBOX):
        check = searched.begin(reader, has_attachment=True)
        assert await check.matching(found) == [True, False, True, False, False]


async def test_unread_is_the_copy_of_who_asks(searched) -> None:
    to_both = await searched.deliver(ALICE, BOB, content=mime("x"))
    to_bob = await searched.deliver(BOB, content=mime("x"))
    own = await searched.sent(ALICE, MessageProperties(subject="s"))
    [_, (mailbox, copy_id)] = searched.begin()._places(to_both)
    await searched.store.messages.update(mailbox, copy_id, MessageChange(is_read=True))
    for reader, expected in [
        (ALL_MAILBOXES, [True, True, False]),
        (ALICE, [True, False, False]),
        (BOB, [False, True, False]),
        (NO_MAILBOX, [False, False, False]),
    ]:
        check = searched.begin(reader, is_unread=True)
        assert await check.matching([to_both, to_bob, own]) == expected, reader


async def test_a_request_answers_as_many_as_its_time_allows_and_one_always(searched) -> None:
    people = [f"user{number}@example.test" for number in range(5)]
    found = [await searched.deliver(one, content=mime("x")) for one in people]
    look_up, asked = searched.store.lists.look_up, []

    async def slow(mailbox, *args, **more):
        asked.append(mailbox)
        searched.clock.advance(1)
        return await look_up(mailbox, *args, **more)

    searched.store.lists.look_up = slow
    for lookup_s, expected in [(0, 1), (1.5, 2), (60, 5)]:
        asked.clear()
        check = searched.begin(words=("x",), lookup_s=lookup_s)
        candidates = [
            FoundMessage(one.queue_id, "", words_left=("x",), recipients=one.recipients)
            for one in found
        ]
        assert await check.matching(candidates) == [True] * expected
        assert asked == people[:expected]
        searched.clock.advance(60)
        assert await check.matching(candidates) == []


async def test_the_contents_of_a_request_are_read_in_one_time(searched) -> None:
    found = [await searched.deliver(f"u{n}@example.test", content=mime("x")) for n in range(5)]
    look_up, left_s = searched.store.lists.look_up, []

    async def slow(*args, read_s):
        left_s.append(read_s)
        return structs.replace(await look_up(*args, read_s=read_s), read_s=0.4)

    searched.store.lists.look_up = slow
    assert await searched.find("x", *found) == [True] * 5
    assert left_s == pytest.approx([1.0, 0.6, 0.2, 0.0, 0.0])
