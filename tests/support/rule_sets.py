"""Rule sets and messages for properties: small alphabets, so that many rules match."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from relay.base.message.authentication_results import AuthResult
from relay.base.message.envelope import Source
from relay.base.message.verdict import ExaminedMessage, Verdict
from relay.transport.policy.actions import ACTIONS, FINAL
from relay.transport.policy.conditions import CONDITIONS
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.globs import Globs
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_files import NESTED_MAX
from relay.transport.policy.rule_tests import examined_message
from relay.transport.policy.rules import (
    ConditionSet,
    NestedConditions,
    NestedKey,
    OnError,
    Rule,
    RuleMode,
)

LOCAL = frozenset({"in.test"})
GROUPS = {
    "one": Globs(whole=frozenset({"a@in.test", "b@out.test"})),
    "far": Globs(whole=frozenset({"a@in.test"}), domains=frozenset({"far.test"})),
}
TEXT = st.text("ab", max_size=3)
ADDRESS = st.builds(
    "{}@{}.test".format,
    st.text("ab", min_size=1, max_size=2),
    st.sampled_from(["in", "out", "far"]),
)
_GLOB = st.one_of(
    TEXT,
    TEXT.map("*{}".format),
    TEXT.map("{}*".format),
    TEXT.map("*{}*".format),
    st.text("ab?*", min_size=1, max_size=4),
    st.just("[a]*"),
).filter(bool)
_GLOBS = st.lists(_GLOB, min_size=1, max_size=2)
_OF_ADDRESSES = st.lists(
    st.one_of(
        ADDRESS,
        _GLOB.map("{}@*".format),
        st.sampled_from(["*@in.test", "*@*.test", "<>", "group:one", "group:far"]),
    ),
    min_size=1,
    max_size=2,
)
_FIELD = st.sampled_from(["X", "Y", "Subject"])
_TESTED_FIELD = st.one_of(
    st.fixed_dictionaries({"name": _FIELD, "matches": _GLOBS}),
    st.fixed_dictionaries({"name": _FIELD, "pattern": st.sampled_from(["a", "^b+$", "ab|^$"])}),
    st.fixed_dictionaries({"name": _FIELD, "over": st.sampled_from([-1, 0, 2.5])}),
)
_OTHERS = st.lists(ADDRESS, min_size=1, max_size=2)
_DISCLAIMER = st.fixed_dictionaries(
    {"text": st.sampled_from(["For you only.", "Große Namen"])},
    optional={
        "where": st.sampled_from(["end", "start"]),
        "fallback": st.sampled_from(["wrap", "ignore"]),
    },
)

# The values of each key that a rule file may have.
CONDITION_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "source": st.sampled_from(["graph", "smtp", ["graph", "smtp"]]),
    "direction": st.sampled_from(["inbound", "outbound", ["internal", "outbound"]]),
    "size_over": st.sampled_from([0, 200, 10_000]),
    "sender": _OF_ADDRESSES,
    "recipient": _OF_ADDRESSES,
    "header_from": _OF_ADDRESSES,
    "to_or_cc": _OF_ADDRESSES,
    "message_type": st.sampled_from(
        ["list", "automatic", "calendar", ["signed", "report", "encrypted"]]
    ),
    "subject": _GLOBS,
    "header": st.one_of(_TESTED_FIELD, st.lists(_TESTED_FIELD, min_size=1, max_size=2)),
    "recipients_over": st.sampled_from([0, 1, 3]),
    "client": st.sampled_from(["192.0.2.0/24", ["10.0.0.0/8", "::1"]]),
    "login": st.sampled_from(["<>", "a*", ["b", "<>"]]),
    "auth": st.sampled_from([{"spf": "pass"}, {"spf": "*", "dmarc": ["fail", "temp*"]}]),
    "attachment_name": st.sampled_from(["*.exe", "a*", "b.exe"]),
    "attachment": st.sampled_from([{"name": "a*"}, {"name": "*", "type": "executable"}]),
    "body": st.sampled_from([{"words": "hi"}, {"words": ["ab", "not there"]}, {"cards": True}]),
}
ACTION_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "hold": st.sampled_from(["a look", "first mail"]),
    "next_hop": st.sampled_from(["route:x", "smtp://h.test:25"]),
    "rate_limit": st.fixed_dictionaries(
        {"rate": st.just("9/1h"), "per": st.sampled_from(["sender", "login", "client"])}
    ),
    "cc": _OTHERS,
    "bcc": _OTHERS,
    "journal": ADDRESS,
    "notify": st.fixed_dictionaries({"to": _OTHERS, "text": st.just("Look.")}),
    "set_header": st.fixed_dictionaries({"name": st.sampled_from("XY"), "value": TEXT}),
    "remove_header": st.sampled_from(["X", ["Y", "X-Raw"]]),
    "set_sender": st.sampled_from(["s@in.test", "t@out.test"]),
    "subject_prefix": st.sampled_from(["b", "[a]"]),
    "disclaimer": _DISCLAIMER,
    "reject": st.just("5.7.1 no"),
    "discard": st.just(True),
    "redirect": _OTHERS,
    "quarantine": st.sampled_from([True, "x@out.test"]),
    "defer": st.just("4.7.1 later"),
}
_PLAIN_ACTIONS = sorted(ACTION_VALUES.keys() - set(FINAL))
# A set in which much ends early says little about what follows.
_LAST = st.sampled_from([*["none"] * 8, "reject", "discard", "redirect", "quarantine", "defer"])
# Made once: to make a strategy takes longer than to draw from it.
_KEYS = st.sampled_from(sorted(CONDITION_VALUES))
_CONDITION_KEYS = [st.lists(_KEYS, max_size=most, unique=True) for most in range(3)]
_NESTED_KEYS = [st.lists(st.sampled_from(NestedKey), max_size=n, unique=True) for n in (2, 1)]
_ACTION_KEYS = st.lists(st.sampled_from(_PLAIN_ACTIONS), max_size=3, unique=True)
_MODES = st.sampled_from([*[RuleMode.ENFORCE] * 4, RuleMode.AUDIT, RuleMode.OFF])


@st.composite
def condition_sets(draw: st.DrawFn, most: int, depth: int = 0) -> ConditionSet:
    """A `when` or an `unless`, or a table below it."""
    keys = draw(_CONDITION_KEYS[most])
    nested = []
    for key in draw(_NESTED_KEYS[depth > 0]) if depth < NESTED_MAX else []:
        if not draw(st.integers(0, depth)):  # most are flat
            tables = draw(_TABLES[depth])
            ordered = sorted(enumerate(tables), key=lambda each: each[1].is_deep)
            nested.append(NestedConditions(key, tuple(ordered)))
    found = [CONDITIONS[key].parse(draw(CONDITION_VALUES[key]), GROUPS) for key in keys]
    return ConditionSet.of(found, nested)


_TABLES = [st.lists(condition_sets(2, at + 1), min_size=1, max_size=3) for at in range(NESTED_MAX)]


@st.composite
def rule_sets(draw: st.DrawFn, most: int = 6) -> RuleSet:
    """Rules in any mode."""
    rules = []
    for number in range(draw(st.integers(1, most))):
        keys = draw(_ACTION_KEYS)
        last = draw(_LAST)
        keys += [last] if last in ACTIONS else []
        rules.append(
            Rule(
                f"r{number}",
                draw(_MODES),
                when=draw(condition_sets(2)),
                unless=draw(condition_sets(1)),
                actions=tuple(ACTIONS[key].parse(draw(ACTION_VALUES[key])) for key in keys),
                outcome=",".join(keys),
                stop=draw(st.booleans()) and not keys,
                on_error=OnError.DEFER,
                file=Path("x"),
                line=1,
            )
        )
    return RuleSet(tuple(rules))


_BODIES = st.sampled_from(
    [
        b"\r\nab\r\n",
        b"\r\n",
        b"",
        (
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhi\r\n--b\r\n"
            b"Content-Type: application/x; name=a.exe\r\n\r\nMZ\r\n--b--\r\n"
        ),
        b"Content-Type: text/html\r\n\r\n<p>hi</p>\r\n",
        b"Content-Type: text/plain; charset=iso-8859-1\r\n\r\n\xe4\r\n",
        b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n4111 1111 1111 1111\r\n",
        b"Content-Type: text/calendar\r\n\r\nBEGIN:VCALENDAR\r\n",
    ]
)
_FIELDS = st.one_of(
    TEXT.map("Subject: {}\r\n".format),
    TEXT.map("X: {}\r\n".format),
    st.sampled_from(["X: 3.5\r\n", "Y: -1 of 9\r\n"]),
    TEXT.map("y:{}\r\n".format),
    st.sampled_from(
        [
            "To: a@in.test,\r\n b@out.test\r\n",
            "CC:b@out.test \r\n",
            "cC: a@in.test,\r\n",
            "X-Raw: \xff\r\n",
            "From: a@in.test\r\n",
            "List-Id: <a>\r\n",
            "Precedence: bulk\r\n",
        ]
    ),
)


@st.composite
def messages(draw: st.DrawFn) -> ExaminedMessage:
    """A message with at most five recipients, and fields that are written in any way."""
    fields = "".join(draw(st.lists(_FIELDS, min_size=1, max_size=6))).encode("latin-1")
    login = draw(st.sampled_from(["", "ann"]))
    results = draw(st.sampled_from([(), (AuthResult("spf", "pass"), AuthResult("dmarc", "fail"))]))
    message = examined_message(
        draw(st.one_of(ADDRESS, st.just(""))),
        draw(st.lists(ADDRESS, min_size=1, max_size=5, unique=True)),
        fields + draw(_BODIES),
        source=draw(st.sampled_from([Source.SMTP, Source.GRAPH])),
        local_domains=LOCAL,
        client=draw(st.sampled_from(["", "192.0.2.1", "2001:db8::1"])),
        login=login,
        is_trusted=bool(login),
    )
    return replace(message, results=results)


def evaluated(rules: RuleBook, message: ExaminedMessage) -> Verdict:
    """What the rules of the operator and of all tenants decide about a message."""
    evaluation = rules.begin(message)
    evaluation.run(in_thread=True)
    return evaluation.verdict()
