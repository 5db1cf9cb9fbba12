"""Aliases: the addresses that get the mail of an [[alias]], or of an account with `forward_to`.

Pure. Acceptance expands each address with AliasTable.expand(). check() yields the faults of a
table; in a table without faults every expansion has at most ten levels and 1,000 addresses.

An account that names one of its own addresses in `forward_to` keeps a copy, as in Postfix's
virtual(5). An alias has no mailbox: naming its own address is a ring.
RFC 5321 3.9.1.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from msgspec import Struct

from relay.base.accounts.account import AliasTarget, Expansion, Writers
from relay.base.message.address import own_mailbox, untagged
from relay.base.settings.document import Document, Fault, KeyPath

# limit: levels of aliases
DEPTH_MAX = 10
# limit: addresses of one alias
TARGETS_MAX = 1000


class Forwarding(Struct, frozen=True):
    """An [[alias]], or an account that forwards. `place` is the key that names `targets`."""

    address: str
    targets: tuple[str, ...]
    keeps_copy: bool  # its mailbox is one more target
    place: KeyPath
    writers: Writers | None = None  # None: everybody may write to it


@dataclass(slots=True)
class _Node:
    """A forwarding in check(); `bound` is at least the number of addresses that it leads to."""

    forwarding: Forwarding
    inner: list[str]  # the addresses of the forwardings that it names
    depth: int = 1
    bound: int = 0
    is_faulty: bool = False  # it, or a forwarding that it names


class AliasTable:
    """The forwardings of a file. Case does not matter, and `team+tag@` is `team@`."""

    def __init__(
        self,
        forwardings: Iterable[tuple[Forwarding, Sequence[str]]] = (),
        *,
        named: Collection[str] = (),
    ) -> None:
        """Each forwarding comes with all of its addresses.

        `named` are the addresses with a tag that the file names as the address of an account or an
        alias.
        """
        self._named = frozenset(named)
        self._by_address: dict[str, Forwarding] = {}
        for forwarding, addresses in forwardings:
            for address in addresses:
                self._by_address.setdefault(address, forwarding)

    def expand(self, address: str) -> Expansion | None:
        """Return who gets the mail for `address`; None if it is no alias and does not forward."""
        first = self._find(address) if self._by_address else None  # nearly always empty
        if first is None:
            return None
        targets: dict[str, AliasTarget] = {}
        self._collect(address, first, (), targets=targets, seen=set())
        return Expansion(tuple(targets.values()), first.writers)

    def leaves(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield the place and the address of each target that is no forwarding itself."""
        for forwarding in self._forwardings().values():
            for number, address in enumerate(forwarding.targets):
                if self._find(address) is None:
                    yield (*forwarding.place, number), address

    def _find(self, address: str) -> Forwarding | None:
        mailbox = own_mailbox(address)
        forwarding = self._by_address.get(mailbox)
        if forwarding is None and "+" in mailbox and mailbox not in self._named:
            return self._by_address.get(untagged(mailbox))
        return forwarding

    def _forwardings(self) -> dict[str, Forwarding]:
        return {forwarding.address: forwarding for forwarding in self._by_address.values()}

    def _collect(
        self,
        address: str,
        forwarding: Forwarding,
        through: tuple[str, ...],
        *,
        targets: dict[str, AliasTarget],
        seen: set[str],
    ) -> None:
        """Add the targets of a forwarding that was not seen yet, in their order."""
        if forwarding.address in seen:
            return
        seen.add(forwarding.address)
        if forwarding.keeps_copy:
            targets.setdefault(own_mailbox(address), AliasTarget(address, through))
        through = (*through, forwarding.address)
        for target in forwarding.targets:
            inner = self._find(target)
            if inner is None:
                targets.setdefault(own_mailbox(target), AliasTarget(target, through))
            else:
                self._collect(target, inner, through, targets=targets, seen=seen)

    # -- faults

    def check(self, document: Document) -> Iterator[Fault]:
        """Yield the faults of the whole table: the first ring, and aliases that lead too far.

        An alias that names a faulty alias is not reported again.
        """
        nodes = self._nodes()
        order = TopologicalSorter({name: node.inner for name, node in nodes.items()})
        try:
            order.prepare()
        except CycleError as error:  # the order is complete except for rings
            yield _ring_fault(error.args[1][::-1], nodes, document)
        while ready := order.get_ready():
            for name in ready:
                yield from self._check_forwarding(nodes[name], nodes, document)
            order.done(*ready)

    def _nodes(self) -> dict[str, _Node]:
        nodes = {}
        for name, forwarding in self._forwardings().items():
            aliases = (self._find(target) for target in forwarding.targets)
            inner = list(dict.fromkeys(alias.address for alias in aliases if alias is not None))
            nodes[name] = _Node(forwarding, inner)
        return nodes

    def _check_forwarding(
        self, node: _Node, nodes: dict[str, _Node], document: Document
    ) -> Iterator[Fault]:
        """Check a forwarding after those that it names."""
        forwarding, inner = node.forwarding, [nodes[name] for name in node.inner]
        node.is_faulty = any(alias.is_faulty for alias in inner)
        if node.is_faulty:
            return
        node.depth = 1 + max((alias.depth for alias in inner), default=0)
        if node.depth > DEPTH_MAX:
            node.is_faulty = True
            chain = f"{node.depth} aliases, each of which leads to the next"
            yield document.fault(forwarding.place, f"found {chain}, expected at most {DEPTH_MAX}")
            return
        node.bound = (
            forwarding.keeps_copy + len(forwarding.targets) + sum(alias.bound for alias in inner)
        )
        if node.bound > TARGETS_MAX:  # it may count an address twice
            expansion = self.expand(forwarding.address)
            node.bound = len(expansion.targets) if expansion is not None else 0
        if node.bound > TARGETS_MAX:
            node.is_faulty = True
            chain = f"{node.bound} addresses after all aliases"
            yield document.fault(forwarding.place, f"found {chain}, expected at most {TARGETS_MAX}")


def _ring_fault(names: Sequence[str], nodes: dict[str, _Node], document: Document) -> Fault:
    """Return the fault of a ring. Each of the names leads to the next, the last is the first."""
    places = [nodes[name].forwarding.place for name in names]
    ring = " -> ".join(
        f"{name} (line {document.line(place)})" for name, place in zip(names, places, strict=True)
    )
    message = f"found the ring {ring}, expected addresses that do not lead back"
    return document.fault(places[0], message)
