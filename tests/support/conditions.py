"""What a condition on messages means, by the plainest code there is, and conditions to try.

Nothing of the index or of the front door's parsers is used; only what a message shows. Raises
KeyError for a property that a message does not show. See Graph's message; texts compare without
case, words without accents as well.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from hypothesis import strategies as st

from relay.front_door.graph.serializer import message_json
from relay.store.mailbox.query import (
    AllOf,
    AnyItem,
    AnyOf,
    Collection,
    Compare,
    CompareItem,
    Condition,
    HasWords,
    ItemProperty,
    Negation,
    Operator,
    Property,
    SearchIn,
    SortOrder,
)
from relay.store.mailbox.stored_message import StoredMessage

Value = str | int | bool
_IMPORTANCES = ("low", "normal", "high")
_TIMES = {
    Property.RECEIVED: "received_us",
    Property.SENT: "sent_us",
    Property.CREATED: "created_us",
    Property.MODIFIED: "modified_us",
}
_FLAG_TIMES = {
    Property.FLAG_START: "start_us",
    Property.FLAG_DUE: "due_us",
    Property.FLAG_COMPLETED: "completed_us",
}


_MARKUP = re.compile("<style>.*?</style>|</?[a-z]+>")  # what HTML of the tests does not show


@dataclass(frozen=True)
class Facts:
    """A message as conditions see it."""

    values: Mapping[Property, Value]
    items: Mapping[Collection, Sequence[Mapping[ItemProperty, str]]]
    texts: Mapping[SearchIn, Sequence[str]]


def facts_of(message: StoredMessage) -> Facts:
    """A stored message's facts, its times to the microsecond."""
    names = [one.name for one in message.attachments]
    facts = facts_of_json(message_json(message), attachments=names)
    exact = {named: getattr(message, field) for named, field in _TIMES.items()}
    dates = {named: getattr(message.flag, field) for named, field in _FLAG_TIMES.items()}
    exact |= {named: -1 if date is None else date for named, date in dates.items()}
    values = facts.values | exact | {Property.MESSAGE_CLASS: message.message_class}
    values[Property.SIZE] = message.size
    return replace(facts, values=values)


def facts_of_json(shown: Mapping[str, Any], *, attachments: Sequence[str] = ()) -> Facts:
    """The facts of a message as Graph shows it, whose times are to the second."""
    people = {one: shown[one] for one in Collection if one is not Collection.CATEGORIES}
    items: dict[Collection, list[dict[ItemProperty, str]]] = {
        one: [
            {
                ItemProperty(f"emailAddress/{key}"): person["emailAddress"][key]
                for key in ("address", "name")
            }
            for person in persons
        ]
        for one, persons in people.items()
    }
    items[Collection.CATEGORIES] = [{ItemProperty.ITSELF: one} for one in shown["categories"]]
    texts = {
        SearchIn.SUBJECT: [shown["subject"]],
        SearchIn.BODY: [_MARKUP.sub(" ", shown["body"]["content"])],
        SearchIn.FROM: list(shown["from"]["emailAddress"].values()) if "from" in shown else [],
        SearchIn.TO: [text for one in items[Collection.TO] for text in one.values()],
        SearchIn.CC: [text for one in items[Collection.CC] for text in one.values()],
        SearchIn.BCC: [text for one in items[Collection.BCC] for text in one.values()],
        SearchIn.ATTACHMENT: list(attachments),
    }
    recipients = (SearchIn.TO, SearchIn.CC, SearchIn.BCC)
    texts[SearchIn.RECIPIENTS] = [text for one in recipients for text in texts[one]]
    texts[SearchIn.PARTICIPANTS] = texts[SearchIn.FROM] + texts[SearchIn.RECIPIENTS]
    texts[SearchIn.ANYWHERE] = [text for several in list(texts.values()) for text in several]
    return Facts({named: _shown(shown, named) for named in Property}, items, texts)


def _shown(shown: Mapping[str, Any], named: Property) -> Value:
    if named is Property.MESSAGE_CLASS:  # no test that reads JSON has a report
        return "IPM.Note"
    if named is Property.SIZE:  # nor asks for a size
        return 0
    value: Any = shown
    for key in named.split("/"):
        value = value.get(key, "") if isinstance(value, Mapping) else ""
    if named in _FLAG_TIMES and not value:
        return -1
    if named in (*_TIMES, *_FLAG_TIMES):
        value = f"{value[:19]}Z"
        return int(datetime.fromisoformat(value).timestamp()) * 1_000_000
    return value


def matches(condition: Condition | None, facts: Facts) -> bool:
    """Whether a message fulfils a condition."""
    match condition:
        case None:
            return True
        case AllOf(parts):
            return all(matches(part, facts) for part in parts)
        case AnyOf(parts):
            return any(matches(part, facts) for part in parts)
        case Negation(part):
            return not matches(part, facts)
        case Compare(named, operator, _) if facts.values[named] == -1:  # a flag without this date
            return operator is Operator.NE
        case Compare(named, operator, value):
            return _compare(operator, _key(named, facts.values[named]), _key(named, value))
        case AnyItem(collection, inner):
            return any(_item_matches(inner, one) for one in facts.items[collection])
        case HasWords(where, words, prefix):
            wanted = words_of(words)
            return any(_has_words(words_of(text), wanted, prefix) for text in facts.texts[where])
    raise AssertionError(condition)


def _item_matches(condition: Condition, item: Mapping[ItemProperty, str]) -> bool:
    match condition:
        case AllOf(parts):
            return all(_item_matches(part, item) for part in parts)
        case AnyOf(parts):
            return any(_item_matches(part, item) for part in parts)
        case Negation(part):
            return not _item_matches(part, item)
        case CompareItem(named, operator, value):
            return _compare(operator, item[named].casefold(), value.casefold())
    raise AssertionError(condition)


def _compare(operator: Operator, left: Any, right: Any) -> bool:
    return {
        Operator.EQ: lambda: left == right,
        Operator.NE: lambda: left != right,
        Operator.GT: lambda: left > right,
        Operator.GE: lambda: left >= right,
        Operator.LT: lambda: left < right,
        Operator.LE: lambda: left <= right,
        Operator.STARTS_WITH: lambda: left.startswith(right),
        Operator.ENDS_WITH: lambda: left.endswith(right),
        Operator.CONTAINS: lambda: right in left,
    }[operator]()


def _key(named: Property, value: Value) -> Value:
    """What a value is compared and sorted by."""
    if named is Property.IMPORTANCE:
        return _IMPORTANCES.index(str(value))
    return value.casefold() if isinstance(value, str) else value


def words_of(text: str) -> list[str]:
    """Letters and digits in a row, in lower case, without accents."""
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(one for one in plain if not unicodedata.combining(one))
    return re.findall(r"[^\W_]+", plain)


def _has_words(words: Sequence[str], wanted: Sequence[str], prefix: bool) -> bool:
    for begin in range(len(words) - len(wanted) + 1):
        found = list(words[begin : begin + len(wanted)])
        if prefix and found and found[-1].startswith(wanted[-1]):
            found[-1] = wanted[-1]
        if found == list(wanted):
            return True
    return False


def order_key(order: Sequence[SortOrder], facts: Facts) -> tuple[Any, ...]:
    """What a message is sorted by: smaller ones come first, also where a key descends."""
    return tuple(
        _Descending(key) if one.descending else key
        for one in order
        for key in (_key(one.property, facts.values[one.property]),)
    )


@dataclass(frozen=True)
class _Descending:
    """A key that is the smaller the greater it is."""

    key: Any

    def __lt__(self, other: "_Descending") -> bool:
        return bool(other.key < self.key)


# -- conditions to try


def trees(leaves: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    """Conditions made of `leaves` by and, or, not."""

    def grown(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
        parts = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.builds(AllOf, parts) | st.builds(AnyOf, parts) | st.builds(Negation, inner)

    return st.recursive(leaves, grown, max_leaves=8)


def comparisons(
    texts: st.SearchStrategy[str], times: st.SearchStrategy[int]
) -> st.SearchStrategy[Condition]:
    """Comparisons of every property, as $filter can ask for them."""
    equal = st.sampled_from([Operator.EQ, Operator.NE])
    ordered = st.sampled_from([Operator.GT, Operator.GE, Operator.LT, Operator.LE])
    flags = (Property.IS_READ, Property.IS_DRAFT, Property.HAS_ATTACHMENTS)
    of_no_text = {
        *_TIMES,
        *_FLAG_TIMES,
        *flags,
        Property.IMPORTANCE,
        Property.FLAG,
        Property.CLASSIFICATION,
        Property.SIZE,
    }
    of_text = [one for one in Property if one not in of_no_text]
    return st.one_of(
        st.builds(Compare, st.sampled_from(of_text), st.sampled_from(Operator), texts),
        st.builds(Compare, st.sampled_from([*_TIMES, *_FLAG_TIMES]), ordered, times),
        st.builds(Compare, st.sampled_from(flags), equal, st.booleans()),
        st.builds(
            Compare, st.just(Property.IMPORTANCE), equal | ordered, st.sampled_from(_IMPORTANCES)
        ),
        st.builds(
            Compare,
            st.just(Property.FLAG),
            equal,
            st.sampled_from(["notFlagged", "flagged", "complete"]),
        ),
        st.builds(
            Compare, st.just(Property.CLASSIFICATION), equal, st.sampled_from(["focused", "other"])
        ),
    )


def any_items(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Condition]:
    """Conditions on the items of every list."""

    def of(*named: ItemProperty) -> st.SearchStrategy[Condition]:
        return trees(
            st.builds(CompareItem, st.sampled_from(named), st.sampled_from(Operator), texts)
        )

    people = st.sampled_from([one for one in Collection if one is not Collection.CATEGORIES])
    return st.builds(AnyItem, people, of(ItemProperty.ADDRESS, ItemProperty.NAME)) | st.builds(
        AnyItem, st.just(Collection.CATEGORIES), of(ItemProperty.ITSELF)
    )
