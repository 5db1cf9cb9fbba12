"""The own domains: which domains they are, and which recipients are valid there.

Callers give domains as A-labels. Whether an address has an account or an alias is not decided here:
aliases come before, accounts are looked up in relay/transport/routing/route_table.py. A file of
recipients has an address a line; blank lines and those that begin with # are ignored. It is read
when the table is made, and raises SettingsError with the faults of all its lines.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from relay.base.message.address import AddressError, own_mailbox, parse_mailbox, untagged
from relay.base.message.envelope import domain_of
from relay.base.phrases import shown
from relay.base.settings.document import Fault, SettingsError
from relay.base.settings.tree import OwnDomain

_FILE_BYTES_MAX = 64 * 1024 * 1024
_FAULTS_MAX = 20


class OwnDomains:
    """The own domains by their names, with A-labels."""

    def __init__(
        self,
        domains: Iterable[str | OwnDomain],
        *,
        catch_all: str,
        mailbox_of: Callable[[str, str], str],
    ) -> None:
        """A plain name is a domain with accounts and this `catch_all`. `mailbox_of` returns the
        mailbox that a key names, and raises ValueError if there is none.
        """
        self._by_name: dict[str, OwnDomain] = {}
        self._listed: dict[str, frozenset[str]] = {}  # by the domain
        self.takers: set[str] = set()  # the mailboxes of all catch_all and postmaster
        number = 0  # of a [[domain]]
        for domain in domains:
            key = f"domain[{number}]"
            if isinstance(domain, str):
                own = OwnDomain(domain.lower(), catch_all=catch_all)
            else:
                number += 1
                own = replace(
                    domain,
                    catch_all=mailbox_of(f"{key}.catch_all", domain.catch_all),
                    postmaster=mailbox_of(f"{key}.postmaster", domain.postmaster),
                )
            self._by_name[own.name] = own
            self.takers |= {own.catch_all, own.postmaster} - {""}
            if own.file is not None:
                self._listed[own.name] = _addresses_in(own.file, own.name, f"{key}.recipients")
        # by a domain with `alias_of`: the one that this names
        self.alias_domains = {
            domain.name: domain.alias_of for domain in self._by_name.values() if domain.alias_of
        }

    def find(self, domain: str) -> OwnDomain | None:
        """Return the own domain of this name (A-labels), None for any other."""
        return self._by_name.get(domain.lower())

    def lists(self, own: OwnDomain, address: str) -> bool:
        """Whether a domain has no file of recipients, or its file has the address, with or without
        a tag.
        """
        listed = self._listed.get(own.name)
        mailbox = own_mailbox(address)
        return listed is None or mailbox in listed or untagged(mailbox) in listed


def catch_alls_elsewhere(domains: Iterable[str | OwnDomain], catch_all: str) -> dict[str, str]:
    """Return, by domain, each catch_all that is an address elsewhere."""
    own = [OwnDomain(x.lower(), catch_all=catch_all) if isinstance(x, str) else x for x in domains]
    here = {"", *(table.name for table in own if table.has_accounts)}
    return {table.name: table.catch_all for table in own if domain_of(table.catch_all) not in here}


def _addresses_in(file: Path, domain: str, key: str) -> frozenset[str]:
    """Return the addresses in a file of recipients. Raises SettingsError for its lines, and
    ValueError that names the `key` for a file that cannot be read.
    """
    try:
        with file.open("rb") as opened:
            octets = opened.read(_FILE_BYTES_MAX + 1)
        text = octets.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        text = f"found {str(file)!r}, expected a file that can be read ({why})"
        raise ValueError(f"{key}: {text}") from None
    if len(octets) > _FILE_BYTES_MAX:
        limit = f"expected a file of at most {_FILE_BYTES_MAX >> 20} MiB"
        raise ValueError(f"{key}: found {str(file)!r}, {limit}")
    addresses: set[str] = set()
    faults = []
    for number, line in _entries(text):
        address = _address(line, domain)
        if address is None:
            message = f"found {shown(line)}, expected an address @{domain}"
            faults.append(Fault(file, number, "", message))
            if len(faults) == _FAULTS_MAX:
                break
        else:
            addresses.add(address)
    if faults:
        raise SettingsError(faults)
    return frozenset(addresses)


def _entries(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if (address := line.strip()) and not address.startswith("#"):
            yield number, address


def _address(text: str, domain: str) -> str | None:
    try:
        address = own_mailbox(parse_mailbox(text, smtputf8=True))
    except AddressError:
        return None
    return address if domain_of(address) == domain else None
