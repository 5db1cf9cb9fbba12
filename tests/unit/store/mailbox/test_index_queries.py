"""Queries of the index find what a naive evaluation finds; pages continue after the last one."""

import os
import random
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.base.message.properties import Attachment, EmailAddress, MessageProperties
from relay.store.mailbox.errors import StalePositionError
from relay.store.mailbox.index import indexes
from relay.store.mailbox.query import (
    AllOf,
    AnyItem,
    Collection,
    Compare,
    CompareItem,
    Condition,
    HasWords,
    ItemProperty,
    MessageQuery,
    Operator,
    Property,
    SearchIn,
    SortOrder,
)
from relay.store.mailbox.stored_message import MessageChange, StoredMessage
from relay.store.mailbox.threads import QueryTimeLimit
from relay.submission.outbox.store import FileStore
from tests.support.conditions import any_items, comparisons, facts_of, matches, order_key, trees
from tests.support.manual_clock import ManualClock
from tests.support.stores import blocking, store_on
from tests.support.tables import each_row

ALICE = "alice@example.test"
SUBJECTS = ("invoice", "Invoice 2", "Grüße", "GRÜSSE", "100%", "a_b", "", "re: invoice", "ÿ")
NAMES = ("Zoë", "bob", "Carol O'Neil", "")
ADDRESSES = ("bob@b.test", "BOB@b.test", "carol@c.test", "zoe@a.test")
WORDS = ("invoice", "house", "grüße", "x1", "naïve")
PARTS = ("inv", "ss", "b", "voice", "b.test", "red", "Blue", "inbox", "dr")
TEXTS = st.sampled_from([*SUBJECTS, *NAMES, *ADDRESSES, *PARTS])
TIMES = st.integers(0, 40).map(lambda number: (1_600_000_000 + number * 50) * 1_000_000)
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Box:
    """A mailbox with drafts of all kinds and mail of others."""

    def __init__(self, root: Path, clock: ManualClock, store: FileStore) -> None:
        self.clock, self.store = clock, store
        self.path = root / "example.test/alice"
        self.rng = random.Random(5)

    def fill(self) -> None:
        for number in range(14):
            made = blocking(self.store.messages.create)(ALICE, self.properties())
            state = {"is_other": number % 5 == 0, "is_complete": number % 7 == 2}
            if number % 4 == 0:
                start_us = self.clock.time_us() - 1_000_000
                state |= {"start_us": start_us, "due_us": start_us + number * 1_000_000}
            if number % 7 == 2:
                state["completed_us"] = self.clock.time_us()
            flags = MessageChange(is_read=number % 3 > 0, flagged=number % 4 == 0, state=state)
            blocking(self.store.messages.update)(ALICE, made.id, flags)
            if number % 2:
                self.clock.advance(50)
        for number in range(14):
            path = self.path / (".Archive" if number % 3 else "") / "cur" / f"{number}.M1.h:2,"
            path.write_bytes(self.mime(number).as_bytes(policy=SMTP))
            at_s = 1_600_000_000 + number // 2 * 100
            os.utime(path, (at_s, at_s + 0.25))
        self.messages = self.store.lists._find(
            ALICE, MessageQuery(top=1000), QueryTimeLimit(self.clock)
        ).messages
        assert len(self.messages) == 28

    def properties(self) -> MessageProperties:
        attached = Attachment("House plan.pdf", "a/b", b"QQ==", 1, inline=self.rng.random() < 0.5)
        return MessageProperties(
            subject=self.rng.choice(SUBJECTS),
            body_type="html",
            body=f"<p>{self.rng.choice(WORDS)}</p><style>house</style>{self.words()}",
            from_=self.person(),
            to=tuple(self.person() for _ in range(self.rng.randrange(3))),
            cc=tuple(self.person() for _ in range(self.rng.randrange(2))),
            bcc=tuple(self.person() for _ in range(self.rng.randrange(2))),
            reply_to=tuple(self.person() for _ in range(self.rng.randrange(2))),
            importance=self.rng.choice(("low", "normal", "high")),
            categories=tuple(self.rng.sample(("red", "Blue", "red wine"), self.rng.randrange(3))),
            attachments=(attached,) if self.rng.random() < 0.4 else (),
        )

    def mime(self, number: int) -> EmailMessage:
        made = EmailMessage()
        made["From"] = f"{self.rng.choice(NAMES) or 'Old'} <{self.rng.choice(ADDRESSES)}>"
        made["To"] = ", ".join(self.rng.choice(ADDRESSES) for _ in range(2))
        made["Subject"] = self.rng.choice(SUBJECTS)
        made["Message-ID"] = f"<{number}@a.test>"
        if number % 2:
            made["Date"] = f"Mon, {number + 10} Jan 2023 10:00:00 +0100"
        if number % 5 == 0:
            made["References"] = "<0@a.test>"
            made["Keywords"] = "red, Blue"
        made.set_content(self.words())
        if number % 4 == 0:
            made.add_attachment(b"x", maintype="a", subtype="b", filename="naïve invoice.doc")
        return made

    def words(self) -> str:
        return " ".join(self.rng.choices(WORDS, k=4))

    def person(self) -> EmailAddress:
        return EmailAddress(self.rng.choice(ADDRESSES), self.rng.choice(NAMES))

    def found(self, query: MessageQuery) -> list[str]:
        return [
            hit.located.message_id for hit in self.store.messages.index.query(self.path, query).hits
        ]

    def expected(self, condition: Condition | None) -> list[StoredMessage]:
        return [one for one in self.messages if matches(condition, facts_of(one))]


@pytest.fixture(scope="module")
def box(tmp_path_factory) -> Iterator[Box]:
    root, clock = tmp_path_factory.mktemp("queries") / "mail", ManualClock(1_600_001_000_000_000)
    with store_on(root, clock) as store:
        made = Box(root, clock, store)
        made.fill()
        yield made


words = st.builds(
    HasWords,
    st.sampled_from(SearchIn),
    st.sampled_from([*WORDS, "Grusse", "inv", "house x1", "bob@b.test", "plan.pdf"]),
    st.booleans(),
)
conditions = trees(comparisons(TEXTS, TIMES) | any_items(TEXTS) | words)
# A flag's words are in no order that two people would agree on, and most messages have no dates.
unordered = (
    *(Property.FLAG, Property.FLAG_START, Property.FLAG_DUE, Property.FLAG_COMPLETED),
    Property.CLASSIFICATION,
)
sortable = st.sampled_from([one for one in Property if one not in unordered])
orders = st.lists(st.builds(SortOrder, sortable, st.booleans()), max_size=3).map(tuple)


@SETTINGS
@given(condition=conditions)
def test_a_condition_finds_what_fulfils_it(box, condition):
    expected = [one.id for one in box.expected(condition)]  # they came newest first
    query = MessageQuery(condition=condition, top=100, count=True)
    assert box.found(query) == expected
    assert box.store.messages.index.query(box.path, query).total == len(expected)


@SETTINGS
@given(
    condition=st.none() | conditions,
    order=orders,
    top=st.integers(1, 9),
    folder_id=st.sampled_from(["", "", "drafts", "archive"]),
)
def test_pages_follow_each_other_in_any_order(box, condition, order, top, folder_id):
    of_folder = [one for one in box.expected(condition) if folder_id in ("", one.folder.id)]
    facts = {one.id: facts_of(one) for one in of_folder}
    seen, after = [], ""
    while True:
        query = MessageQuery(folder_id, condition, order, top=top, after=after)
        page = box.store.messages.index.query(box.path, query)
        seen += [hit.located.message_id for hit in page.hits]
        if not page.more:
            break
        assert len(page.hits) == top
        after = page.hits[-1].position
    assert sorted(seen) == sorted(facts)
    keys = [order_key(order, facts[one]) for one in seen]
    assert keys == sorted(keys)


def test_what_is_skipped_counts_from_the_page_before(box):
    everything = box.found(MessageQuery(top=100))
    first = box.store.messages.index.query(box.path, MessageQuery(top=3)).hits[-1]
    assert box.found(MessageQuery(skip=2, top=3, after=first.position)) == everything[5:8]


@each_row(
    "after",
    [
        "x",
        "é",
        "A" * 10_000,
        urlsafe_b64encode(b"[]").decode(),
        urlsafe_b64encode(b'["-message.uid"]').decode(),
        urlsafe_b64encode(b'["-message.uid","1"]').decode(),
        urlsafe_b64encode(b'["-message.uid",true]').decode(),
        urlsafe_b64encode(b'["-message.uid",99999999999999999999]').decode(),
        urlsafe_b64encode(b"[" * 2000).decode(),
    ],
)
def test_a_token_of_no_page_is_refused(box, after):
    with pytest.raises(StalePositionError):
        box.found(MessageQuery(after=after))


def test_a_token_of_another_order_is_refused(box):
    page = box.store.messages.index.query(box.path, MessageQuery(top=1))
    by_subject = (SortOrder(Property.SUBJECT),)
    with pytest.raises(StalePositionError):
        box.found(MessageQuery(order=by_subject, after=page.hits[0].position))


def compare(named: Property, operator: Operator, value: str | int | bool) -> Condition:
    return Compare(named, operator, value)


TO_BOB = AnyItem(Collection.TO, CompareItem(ItemProperty.ADDRESS, Operator.EQ, "bob@b.test"))


@each_row(
    "condition, order",
    [
        (None, (SortOrder(Property.RECEIVED, descending=True),)),
        (None, (SortOrder(Property.RECEIVED),)),
        (None, (SortOrder(Property.SUBJECT),)),
        (compare(Property.FROM_ADDRESS, Operator.EQ, "bob@b.test"), ()),
        (compare(Property.SUBJECT, Operator.EQ, "invoice"), ()),
        (compare(Property.INTERNET_MESSAGE_ID, Operator.EQ, "<1@a.test>"), ()),
        (compare(Property.IS_READ, Operator.EQ, value=False), ()),
        (compare(Property.RECEIVED, Operator.GE, 1_600_000_000_000_000), ()),
        (compare(Property.SUBJECT, Operator.CONTAINS, "voice"), ()),
        (HasWords(SearchIn.ANYWHERE, "house"), ()),
        (AllOf((HasWords(SearchIn.BODY, "house"), HasWords(SearchIn.FROM, "bob"))), ()),
        (TO_BOB, ()),
    ],
)
def test_what_is_asked_every_day_is_neither_scanned_nor_sorted(box, condition, order, monkeypatch):
    plans: list[str] = []

    def explained(cursor, sql, values=()):
        plans.extend(row[3] for row in real(cursor, f"EXPLAIN QUERY PLAN {sql}", values))
        return real(cursor, sql, values)

    real = indexes.fetch
    with monkeypatch.context() as patch:
        patch.setattr(indexes, "fetch", explained)
        box.found(MessageQuery(condition=condition, order=order))
    assert plans
    assert not any("TEMP B-TREE FOR ORDER" in plan for plan in plans), plans
    tables = [plan for plan in plans if plan.startswith("SCAN message")]
    assert condition is None or not tables, plans
