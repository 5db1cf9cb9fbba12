"""Aliases in accounts.toml: where they lead, and what is told about faulty ones."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.accounts.accounts_file import load_accounts
from relay.base.accounts.aliases import AliasTable, Forwarding
from relay.base.accounts.directory import FileAccounts
from relay.base.settings.document import Document, SettingsError
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row, rows_of

ACCOUNTS = """
[[account]]
address = "alice@example.test"
[[account]]
address = "bob@example.test"
aliases = ["info@example.test"]
forward_to = ["Bob.Smith@Outside.test"]
[[account]]
address = "carol@example.test"
aliases = ["team+x@example.test"]
forward_to = ["carol@outside.test"]
keep_copy = false
[[account]]
address = "dave@example.test"
forward_to = ["dave+old@example.test", "dave@outside.test"]
keep_copy = false
[[account]]
address = "erin@example.test"
forward_to = ["ERIN@example.test"]
"""
ALIASES = """
[[alias]]
address = "Team@example.test"
to = ["alice@example.test", "bob+team@example.test", "list@outside.test"]
[[alias]]
address = "all@example.test"
to = ["team+all@example.test", "alice@example.test", "carol@example.test"]
[[alias]]
address = "bob+shop@example.test"
to = ["shop@outside.test"]
"""


def load(path: Path, text: str) -> FileAccounts:
    file = path / "accounts.toml"
    file.write_text(text)
    file.chmod(0o600)
    return load_accounts(file, ("example.test",), clock=ManualClock(), environ={})


def faults(path: Path, text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(path, text)
    return str(caught.value).replace(f"{path}/accounts.toml:", "").splitlines()


@each_row(
    "address, expected",
    [
        ("alice@example.test", None),
        ("erin@example.test", None),  # it forwards to itself only
        ("nobody@example.test", None),
        ("team", None),
        ("", None),
        ("team+x@example.test", ["carol@outside.test < carol"]),  # carol has it by name
        ("BOB@example.test", ["BOB@example.test < ", "Bob.Smith@outside.test < bob"]),
        ("info@example.test", ["info@example.test < ", "Bob.Smith@outside.test < bob"]),
        ("bob+tag@example.test", ["bob+tag@example.test < ", "Bob.Smith@outside.test < bob"]),
        ("bob+shop@example.test", ["shop@outside.test < bob+shop"]),
        ("carol@example.test", ["carol@outside.test < carol"]),
        ("dave@example.test", ["dave@example.test < ", "dave@outside.test < dave"]),
        (
            "TEAM@Example.test",
            [
                "alice@example.test < team",
                "bob+team@example.test < team",
                "Bob.Smith@outside.test < team bob",
                "list@outside.test < team",
            ],
        ),
        (
            "all+1@example.test",
            [
                "alice@example.test < all team",
                "bob+team@example.test < all team",
                "Bob.Smith@outside.test < all team bob",
                "list@outside.test < all team",
                "carol@outside.test < all carol",
            ],
        ),
    ],
)
def test_where_an_address_leads(tmp_path, address, expected):
    found = load(tmp_path, ACCOUNTS + ALIASES).expand(address)
    told = found and [
        f"{one.address} < {' '.join(each.removesuffix('@example.test') for each in one.through)}"
        for one in found.targets
    ]
    assert told == expected


def chain(length: int, end: str = "x@outside.test") -> str:
    tables = (
        f'[[alias]]\naddress = "a{number}@example.test"\n'
        f'to = ["{f"a{number + 1}@example.test" if number < length else end}"]\n'
        for number in range(1, length + 1)
    )
    return "".join(tables)


def list_of(count: int, address: str = "list@example.test", begin: int = 0) -> str:
    targets = ", ".join(f'"m{begin + number}@outside.test"' for number in range(count))
    return f'[[alias]]\naddress = "{address}"\nto = [{targets}]\n'


def test_the_limits_are_reached(tmp_path):
    both = (
        '[[alias]]\naddress = "both@example.test"\n'
        'to = ["list@example.test", "more@example.test"]\n'
    )
    twice = list_of(600, "more@example.test", begin=400)  # 200 of them are in both lists
    accounts = load(tmp_path, chain(10) + list_of(600) + twice + both)
    (deepest,) = accounts.expand("a1@example.test").targets
    assert (deepest.address, len(deepest.through)) == ("x@outside.test", 10)
    assert len(accounts.expand("both@example.test").targets) == 1000


def test_no_alias_is_expanded_twice():
    """However many ways lead to it: here a million."""

    class Counting(AliasTable):
        looked_up = 0

        def _find(self, address: str) -> Forwarding | None:
            self.looked_up += 1
            return super()._find(address)

    def names(level: int) -> tuple[str, ...]:
        return tuple(f"a{level}-{number}@here.test" for number in range(4))

    table = Counting(
        (Forwarding(name, names(level + 1), keeps_copy=False, place=()), [name])
        for level in range(10)
        for name in names(level)
    )
    expansion = table.expand("a0-0@here.test")
    assert expansion is not None
    assert expansion.addresses == names(10)
    assert table.looked_up < 200


ONE = '[[account]]\naddress = "a@example.test"\naliases = ["b@example.test"]\n'
ALIAS = '[[alias]]\naddress = "{}"\nto = ["x@outside.test"]\n'
RING = """\
[[alias]]
address = "a@example.test"
to = ["x@outside.test", "b@example.test"]
[[account]]
address = "b@example.test"
forward_to = ["C+tag@example.test"]
[[alias]]
address = "c@example.test"
to = ["a@example.test"]
[[alias]]
address = "before@example.test"
to = ["a@example.test"]
"""


@each_row(
    "text, expected",
    [
        *rows_of(
            """
            [[alias]] / address = "x@e.test" / to = ["x@outside.test"] | 2: alias[0].address: found "x@e.test", expected an address in one of mailboxes.domains, or of a [[domain]] without alias_of
            [[alias]] / address = "c@example.test" / to = ["x@outside.test", "bob"] | 3: alias[0].to[1]: found "bob", expected an address with its domain, such as bob@example.org
            [[alias]] / address = "c@example.test" | 1: alias[0].to: found nothing, expected a value: this key is required
            [[account]] / address = "a@example.test" / aliases = ["b@example.test"] / keep_copy = false | 4: account[0].keep_copy: found false without forward_to, expected both
            [[alias]] / address="c@example.test" / to=["c+x@example.test"] | 3: alias[0].to: found the ring c@example.test (line 3) -> c@example.test (line 3), expected addresses that do not lead back
            """
        ),
        (
            ONE + ALIAS.format("A@example.test"),
            (
                '5: alias[0].address: found "a@example.test", expected one of its own:'
                " account[0].address in line 2 has the same"
            ),
        ),
        (
            ALIAS.format("c@example.test") * 2,
            (
                '5: alias[1].address: found "c@example.test", expected one of its own:'
                " alias[0].address in line 2 has the same"
            ),
        ),
        (
            list_of(1001),
            "3: alias[0].to: found 1001 addresses after all aliases, expected at most 1000",
        ),
        (
            chain(12),
            "6: alias[1].to: found 11 aliases, each of which leads to the next, expected at most 10",
        ),
        (
            RING,
            (
                "6: account[0].forward_to: found the ring b@example.test (line 6) -> c@example.test"
                " (line 9) -> a@example.test (line 3) -> b@example.test (line 6), expected addresses that"
                " do not lead back"
            ),
        ),
    ],
)
def test_one_fault_is_told(tmp_path, text, expected):
    assert faults(tmp_path, text.replace(" / ", "\n")) == [expected]


# -- any table

NAMES = [f"a{number}@here.test" for number in range(12)]
OUTSIDE = [f"x{number}@outside.test" for number in range(4)]
Graph = Mapping[str, tuple[Sequence[str], bool]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Draw who names whom; most graphs have no ring, because they point forward."""
    may_turn = draw(st.booleans())
    found = {}
    for number, name in enumerate(NAMES):
        after = NAMES if may_turn else NAMES[number + 1 :]
        targets = draw(st.lists(st.sampled_from([*after, *OUTSIDE]), max_size=4, unique=True))
        if targets:
            found[name] = (targets, draw(st.booleans()))
    return found


def naive(graph: Graph, address: str, depth: int = 0) -> Iterator[str]:
    """Yield all addresses to which `address` leads, as often as it does. Raises RecursionError."""
    if address not in graph:
        yield address
        return
    if depth > len(NAMES):
        raise RecursionError
    targets, keeps_copy = graph[address]
    if keeps_copy:
        yield address
    for target in targets:
        yield from naive(graph, target, depth + 1)


def depth_of(graph: Graph, address: str) -> int:
    if address not in graph:
        return 0
    return 1 + max(depth_of(graph, target) for target in graph[address][0])


@given(graphs())
def test_any_table_leads_where_a_naive_one_does_or_names_a_ring(graph: Graph):
    table = AliasTable(
        (Forwarding(name, tuple(targets), keeps_copy, (name,)), [name])
        for name, (targets, keeps_copy) in graph.items()
    )
    document = Document(Path("f"), {}, {(name,): int(name[1:-10]) + 1 for name in graph})
    told = [str(one) for one in table.check(document)]
    try:
        expected = {name: list(dict.fromkeys(naive(graph, name))) for name in graph}
    except RecursionError:
        (ring,) = [one for one in told if "found the ring" in one][:1]
        names = [part.split()[-1] for part in ring.partition(", expected")[0].split(" (line")[:-1]]
        assert names[0] == names[-1]
        assert all(after in graph[name][0] for name, after in itertools.pairwise(names))
        return
    deepest = max((depth_of(graph, name) for name in graph), default=0)
    assert bool(told) == (deepest > 10)
    for name, addresses in expected.items():
        found = table.expand(name)
        assert found is not None
        assert sorted(found.addresses) == sorted(addresses)
        for one in found.targets:
            steps = [*one.through, one.address]
            assert steps[0] == name
            assert all(after in graph[before][0] for before, after in itertools.pairwise(steps))
            assert one.address not in graph or graph[one.address][1]
            assert one.forwarded_by == "".join(one.through[-1:])
