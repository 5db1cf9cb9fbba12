"""Read everything that a service runs with: settings, accounts, rules.

On the path: before it, and at SIGHUP.
Holds: nothing is half-read: all of it is without a fault, or there is none.
Fails: SettingsError with every fault of the first of them that has any.
Standards: none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from relay.accounts import Account, AccountDirectory, FileAccounts, load_accounts
from relay.clock import Clock
from relay.message.address import AddressError, to_ascii_domain
from relay.message.envelope import domain_of
from relay.message.nexthop import CAPTURE, LOCAL, HopKind, NextHop
from relay.policy import RuleSet, load_rules
from relay.routing import RouteTable
from relay.routing.route_table import parse_action
from relay.settings import Fault, Settings, SettingsError, load
from relay.settings.values import parse_domain
from relay.spool.operating import Way


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that the files say at one moment."""

    settings: Settings
    accounts: FileAccounts
    rules: RuleSet


class ActiveConfiguration:
    """The files as last read without a fault; an AccountDirectory that follows them."""

    def __init__(self, read: Callable[[], Configuration]) -> None:
        """Read for the first time. Raises what `read` raises."""
        self._read = read
        self._now = read()

    @property
    def settings(self) -> Settings:
        """Those of the start: they need a restart."""
        return self._now.settings

    def rules(self) -> RuleSet:
        """The rules for the next message."""
        return self._now.rules

    def reload(self) -> bool:
        """Read again and take rules and accounts over; whether the settings differ (blocking).

        Raises SettingsError; then nothing has changed.
        """
        before, read = self._now, self._read()
        self._now = Configuration(before.settings, read.accounts, read.rules)
        before.accounts.close()
        return read.settings != before.settings

    def close(self) -> None:
        """End the threads of the accounts."""
        self._now.accounts.close()

    # -- AccountDirectory
    def by_token(self, token: str) -> Account | None:
        """See AccountDirectory."""
        return self._now.accounts.by_token(token)

    def by_address(self, address: str) -> Account | None:
        """See AccountDirectory."""
        return self._now.accounts.by_address(address)

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        """See AccountDirectory."""
        return await self._now.accounts.by_password(user, password, client=client)


_WAY_EXPECTED = "default, mx, mx:DOMAIN, local, smtp://HOST:PORT or smtps://HOST:PORT"


def route_table(settings: Settings, accounts: AccountDirectory) -> RouteTable:
    """Return the table of the routes and local domains in `settings`."""
    boxes = settings.mailboxes
    return RouteTable(
        settings.route,
        boxes.domains,
        accounts,
        catch_all=boxes.catch_all,
        postmaster=boxes.postmaster,
    )


def parse_next_hop(text: str, table: Callable[[], RouteTable]) -> Way:
    """Return the way that an operator's words mean, for any address.

    "default" asks the routes, as for mail that is new; "mx" is that of each recipient's own domain;
    "local" takes recipients who have a mailbox here, and no others.
    Nothing is captured so: what is to stay here can be held. Raises ValueError.
    """
    if text == "default":
        return table().next_hop_for
    if text == "mx":
        return _own_mx
    if text == "local":
        return lambda address: _local(address, table())
    hop = _next_hop(text)
    return lambda _address: hop


def _next_hop(text: str) -> NextHop:
    if text.startswith("mx:"):
        try:
            return NextHop(HopKind.MX, parse_domain(text.removeprefix("mx:")))
        except ValueError:
            raise ValueError(f"found {text!r}, expected {_WAY_EXPECTED}") from None
    try:
        action = parse_action(text)
    except ValueError:
        action = CAPTURE
    if not isinstance(action, NextHop) or action == CAPTURE:
        raise ValueError(f"found {text!r}, expected {_WAY_EXPECTED}")
    return action


def _own_mx(address: str) -> NextHop | None:
    domain = _ascii_domain(address)
    return NextHop(HopKind.MX, domain) if domain else None


def _local(address: str, table: RouteTable) -> NextHop | None:
    """Return LOCAL if local delivery takes `address`: a catch_all is for local domains only."""
    is_local = table.is_local_domain(_ascii_domain(address)) or table.next_hop_for(address) == LOCAL
    return LOCAL if is_local and table.mailbox_for(address) else None


def _ascii_domain(address: str) -> str:
    """Return the domain of an address in lower case and ASCII, "" where it has none."""
    domain = domain_of(address)
    if not domain.isascii():
        try:
            domain = to_ascii_domain(domain)
        except AddressError:
            return ""
    return domain.lower()


def read_configuration(file: Path, environ: Mapping[str, str], clock: Clock) -> Configuration:
    """Return what the configuration `file` and the files it names say. Raises SettingsError."""
    settings = load(file, environ)
    boxes = settings.mailboxes
    rules = load_rules(settings.policy.directory, local_domains=boxes.domains)
    accounts = load_accounts(boxes.accounts, boxes.domains, clock=clock, environ=environ)
    try:
        route_table(settings, accounts)
    except ValueError as error:
        accounts.close()
        raise SettingsError([Fault(file, 0, "route", str(error))]) from None
    return Configuration(settings, accounts, rules)
