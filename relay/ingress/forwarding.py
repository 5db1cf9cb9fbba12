"""What an address leads to: aliases, accounts that forward, and SRS addresses; and the senders of
copies that are forwarded to other domains.

An SRS address of a local domain takes reports only, and leads to the sender that it stands for
(relay/message/srs.py). Its days are those of queue time, which a wrong clock does not change. Mail
that an alias or an account has forwarded already, as Delivered-To says, is not forwarded again: the
account keeps it, the alias rejects it.

RFC 5321 4.5.5; RFC 9228 (Delivered-To).
"""

from collections.abc import Callable, Collection
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from relay.accounts.account import AccountDirectory, AliasTarget, Expansion
from relay.clock import Clock
from relay.message.address import AddressError, parse_mailbox
from relay.message.header import Header
from relay.message.srs import Srs, SrsError, is_srs
from relay.message.status import own_reply
from relay.routing.route_table import (
    InvalidRecipient,
    RemoteRecipient,
    RouteTable,
    RoutingResult,
    ascii_domain_of,
)

_LOOP = Expansion(())  # what an alias leads to that has forwarded the mail before
_NOTHING: frozenset[str] = frozenset()


class Forwarder(Struct, frozen=True):
    """The aliases in force, and the key of SRS addresses."""

    accounts: AccountDirectory  # aliases, and accounts that forward
    router: RouteTable  # which domains are local
    srs: Srs
    clock: Clock

    def expand(self, address: str, reverse_path: str) -> Expansion | None:
        """Return who gets the mail for `address`; None for an address that leads nowhere else."""
        expansion = self.router.expand(address, reverse_path)
        if expansion is not None or reverse_path or not self._is_own_srs(address):
            return expansion
        try:
            original = self.srs.original(address, now_us=self.clock.queue_us())
        except SrsError:
            return None
        return self.expand(original, "") or Expansion((AliasTarget(original),))

    def expander(self, reverse_path: str, header: Header) -> Callable[[str], Expansion | None]:
        """Return expand() for one message, without loops: no target where it has to be rejected."""
        passed = _passed(header)
        if not passed:  # nearly always
            return partial(self.expand, reverse_path=reverse_path)
        return partial(self._expand_once, reverse_path=reverse_path, passed=passed)

    def examine(self, address: str, reverse_path: str, *, forwarded_by: str = "") -> RoutingResult:
        """Return where mail for an address goes that expand() does not replace; `forwarded_by` led
        to it.
        """
        found = self._srs_fault(address, reverse_path) or self.router.examine(address, reverse_path)
        is_answer = isinstance(found, RemoteRecipient) and self.router.is_daemon(forwarded_by)
        return replace(found, is_answer=True) if is_answer else found

    def sender_of(self, forwarded_by: str, address: str, reverse_path: str) -> str:
        """Return the sender of the copy that an alias forwards to `address`; "" for `reverse_path`.

        It is rewritten for another domain, unless it is null or of a local domain.
        """
        is_local = self.router.is_local_domain
        if not reverse_path or not forwarded_by or is_local(ascii_domain_of(address)):
            return ""
        if is_local(ascii_domain_of(reverse_path)):
            return ""
        domain, now_us = ascii_domain_of(forwarded_by), self.clock.queue_us()
        written = self.srs.rewritten(reverse_path, domain, now_us=now_us)
        return "" if written == reverse_path else written

    def _is_own_srs(self, address: str) -> bool:
        return is_srs(address) and self.router.is_local_domain(ascii_domain_of(address))

    def _srs_fault(self, address: str, reverse_path: str) -> InvalidRecipient | None:
        if not self._is_own_srs(address):
            return None
        if reverse_path:
            # RFC 3463 3.8
            text = "takes only reports of mail that was forwarded, with the null sender"
            return _invalid("5.7.1", f"<{address}> {text}")
        try:
            self.srs.original(address, now_us=self.clock.queue_us())
        except SrsError as error:
            # RFC 3463 3.2
            return _invalid("5.1.1", f"<{address}>: no such user here; the SRS address is {error}")
        return None

    def _expand_once(
        self, address: str, *, reverse_path: str, passed: Collection[str]
    ) -> Expansion | None:
        """Return expand() without what was forwarded before: the accounts of these targets keep it.

        An account that would get it alone leads nowhere else. If an alias has forwarded it, which
        has no mailbox, the whole of it has no target.
        """
        expansion = self.expand(address, reverse_path)
        if expansion is None:
            return None
        found: dict[str, AliasTarget] = {}  # by mailbox
        for target in expansion.targets:
            place = next((at for at, one in enumerate(target.through) if one in passed), None)
            if place is None:
                account = self.accounts.by_address(target.address)
                found.setdefault(account.address if account else target.address.lower(), target)
                continue
            account = self.accounts.by_address(target.through[place])
            if account is None:
                return _LOOP
            keeper = AliasTarget(account.address, target.through[:place])
            found.setdefault(account.address, keeper)
        own = self.accounts.by_address(address)
        if own is not None and list(found) == [own.address]:
            return None
        return Expansion(tuple(found.values()))


def _passed(header: Header) -> frozenset[str]:
    """Return the addresses in Delivered-To, as accounts.toml has them."""
    if "Delivered-To" not in header:
        return _NOTHING
    found = set()
    for value in header.values("Delivered-To"):
        text = value.decode("utf-8", "replace").strip().removeprefix("<").removesuffix(">")
        try:
            found.add(parse_mailbox(text, smtputf8=True).lower())
        except AddressError:  # of a program that writes something else there
            continue
    return frozenset(found)


def _invalid(status: str, text: str) -> InvalidRecipient:
    return InvalidRecipient(status, own_reply(status, text))
