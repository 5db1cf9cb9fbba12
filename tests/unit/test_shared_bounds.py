"""Each bound of what runs or waits at once has a key, by which keys share it, or a reason for none.

A key that takes until it is refused, and a second one that does the same, leave something for a
third one. What `relay dev` has for its one user is not listed.
"""

import ast
import asyncio
import importlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from relay.base.shares import Shares
from relay.base.turns import Turns
from tests.support.relay_process import ROOT

KINDS = {
    *("Lock", "Semaphore", "BoundedSemaphore"),
    *("Shares", "Turns", "ConcurrencyCounter"),
    *("ThreadPool", "ThreadPoolExecutor", "ProcessPoolExecutor"),
}
NOT_HERE = ("relay/base/", "relay/development/")
# The key of each bound that keys share, and the limit if it is not a constant of the module.
SHARED: dict[str, str | tuple[str, int]] = {
    "delivery.content_cache _room": ("next hop", 64 << 20),
    "delivery.recipient_verification _turns": "client",
    "front_door.api.explain _questions": "principal",
    "front_door.api.explain _with_message": "principal",
    "front_door.api.explain _arriving": "account or client",
    "front_door.api.handlers checks": "principal",
    "front_door.api.handlers _waits": "account",
    "front_door.graph.batch _held": "account",
    "front_door.graph.dependencies streamed_bodies": "account",
    "front_door.graph.dependencies conversions": "account",
    "front_door.graph.dependencies answers": "account",
    "front_door.http.connection_limits _requests": ("client", 1000),
    "front_door.http.connection_limits _unread": ("client", 128 << 20),
    "front_door.http.gateway _bodies": ("account or client", 140 << 20),
    "front_door.notifications.sender _posts, _retries": ("account", 32),
    "front_door.notifications.subscriptions _handshakes": "account",
    "front_door.notifications.subscriptions _shares": "account",
    "front_door.pages.content_pages _turns": "visitor",
    "operation.commands.sendmail collector": ("the program itself", 1 << 20),
    "store.journeys.journey _pages": "account",
    "store.journeys.list_places _turns": "account",
    "store.mailbox.threads _turns": ("mailbox", 4),
    "submission.pickup.conversion _shared": "account",
    "submission.pickup.conversion _alone": "account",
    "submission.pickup.start_limits _in_progress": ("account", 16),
    "transport.checks.workers _turns": "client",
    "transport.gate.child dependencies": ("account or client", 256 << 20),
    "transport.ingress.maildrop _budget": ("Relay itself, which reads files one by one", 512 << 20),
    "transport.ingress.places kinds": ("client, user of this machine or account", 1000),
    "transport.ingress.smtp_server _listener_dependencies": ("account or client", 512 << 20),
    "transport.milter.connection places": "account or client",
    "transport.routing.client_questions _places, _kept": ("client", 32),
}
# Why others have no key.
OTHERS = {
    "delivery.attempt_recorder _warning": "of one message",
    "delivery.content_cache _encoding": "each ends within a second",
    "delivery.graph.drafts _turn": "of one mailbox",
    "delivery.graph.drafts _sessions": "of orders of operators",
    "delivery.oauth.tokens _renew": "of one client of OAuth",
    "delivery.scheduler _scan_lock": "one task holds it",
    "front_door.api.event_streams _open": "an account has a tenth",
    "front_door.api.event_streams _turn": "each reading ends within a second",
    "front_door.graph.admission _requests": "of one account",
    "front_door.graph.admission _strict_requests": "of one account",
    "front_door.graph.batch collecting": "of one request",
    "front_door.graph.batch run": "of one request",
    "front_door.graph.graph_request patch_lock": "of one mailbox",
    "front_door.graph.graph_request draft_lock": "of one draft",
    "front_door.notifications.subscriptions lock": "of one mailbox",
    "front_door.notifications.subscriptions reads": "each mailbox waits once",
    "front_door.notifications.webhooks _reading": "of one webhook",
    "front_door.notifications.webhooks _turn": "of the operator's webhooks",
    "front_door.notifications.webhooks _writer": "of the operator's webhooks",
    "front_door.pages.content_pages _threads": "used in turn, above",
    "front_door.pages.live _readers": "a visitor has a third",
    "front_door.pages.live _turn": "visitors take it in turn, each with one view",
    "front_door.pages.live _render": "of one visitor",
    "front_door.pages.live turn": "of one view",
    "operation.app.foundation _turn": "of reloads",
    "operation.app.notifications build_subscriptions": "one file is written",
    "store.mailbox.index.indexes _readers": "each mailbox waits once",
    "store.spool.postgres.storage _ask": "of one command",
    "store.spool.postgres.tables _executor": "one connection; searches have turns",
    "store.spool.shared.group_commit _wake": "wakes one thread",
    "store.spool.shared.suppression _adding": "of orders of operators",
    "store.spool.sqlite.database _executor": "one connection; searches have turns",
    "store.spool.sqlite.spool threads": "of large contents",
    "submission.outbox.store pool": "queries have turns; other calls are short",
    "transport.ingress.places clients": "of one client",
    "transport.ingress.policy_threads _executor": "a client or account has one thread",
    "transport.refusals.day_files _turn": "one file is written",
    "transport.routing.dns_cache _slots": "of delivery, which takes senders in turn",
    "transport.routing.dns_client servers, slots": "of one command",
    "transport.routing.resolver _threads": "of delivery, which takes senders in turn",
    "transport.routing.sts_policies _slots": "of delivery, which takes senders in turn",
    "transport.signing.signer _large": "each ends within a second",
}


def bounds_of(file: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """The bounds that a module makes: where it keeps each of them, its kind, and the call."""

    def visit(node: ast.AST, name: str) -> Iterator[tuple[str, str, ast.Call]]:
        match node:
            case ast.Assign(targets=[ast.AST() as target]) | ast.AnnAssign(target=target):
                names = ast.unparse(target).strip("()").split(", ")
                name = ", ".join(text.removeprefix("self.").partition("[")[0] for text in names)
            case ast.FunctionDef(name=called) | ast.AsyncFunctionDef(name=called):
                name = called
            case ast.Call():
                for made in (node.func, *node.args, *(word.value for word in node.keywords)):
                    kind = getattr(made, "attr", getattr(made, "id", ""))
                    if kind in KINDS and "threading.Lock" not in ast.unparse(made):
                        yield f"{module} {name}", kind, node
        for child in ast.iter_child_nodes(node):
            yield from visit(child, name)

    module = ".".join(file.relative_to(ROOT / "relay").with_suffix("").parts)
    yield from visit(ast.parse(file.read_text()), "")


FILES = [
    file
    for file in sorted((ROOT / "relay").rglob("*.py"))
    if not str(file.relative_to(ROOT)).startswith(NOT_HERE)
]
FOUND = {place: (kind, call) for file in FILES for place, kind, call in bounds_of(file)}


def test_each_bound_is_in_a_list() -> None:
    assert FOUND.keys() - SHARED.keys() - OTHERS.keys() == set(), "name its key, or why it has none"
    assert (SHARED.keys() | OTHERS.keys()) - FOUND.keys() == set(), "there is no such bound"
    by_rule = {place for place, (kind, _) in FOUND.items() if kind in ("Shares", "Turns")}
    assert by_rule == SHARED.keys()


def shared(place: str) -> Shares | Turns:
    """A bound as its module makes it, or with the limit in the list."""
    entry, (_, call) = SHARED[place], FOUND[place]
    kind = Turns if "Turns" in ast.unparse(call) else Shares
    if isinstance(entry, tuple):
        return kind("tested", entry[1])
    module = importlib.import_module(f"relay.{place.partition(' ')[0]}")
    made = eval(ast.unparse(call), dict(vars(module)))
    return made() if isinstance(made, partial) else made


class Taker:
    """Takes a hundredth of a bound of octets, or one of places, again and again."""

    def __init__(self, bound: Shares | Turns) -> None:
        self.held = bound._held if isinstance(bound, Turns) else bound
        self.bound, self.size = bound, max(1, self.held.limit // 100)

    def takes_all(self, key: str) -> None:
        while self.takes(key):
            pass

    def takes(self, key: str) -> bool:
        take = self.bound.take_at_once if isinstance(self.bound, Turns) else self.bound.take
        return take(key, self.size)


@pytest.mark.parametrize("place", SHARED)
async def test_two_keys_that_take_all_that_they_can_leave_something_for_a_third(place: str) -> None:
    taker = Taker(shared(place))
    for key in ("first", "second"):
        taker.takes_all(key)
    if taker.held.limit > 2:
        assert taker.takes("third")
        return
    assert isinstance(taker.bound, Turns)  # the third one waits, and is the next but one
    others = [asyncio.ensure_future(taker.bound.take("first")) for _ in range(9)]
    await asyncio.sleep(0)
    waits = asyncio.ensure_future(taker.bound.take("third"))
    await asyncio.sleep(0)
    for _ in range(2):
        taker.bound.give_back("first")
    async with asyncio.timeout(60):
        assert await waits
    for other in others:
        other.cancel()
