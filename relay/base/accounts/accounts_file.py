"""Read accounts.toml.

Each address, alias, token and client id belongs to one account. Other users must not be able to
read the file. load_accounts() raises SettingsError with all faults of the file, including those of
aliases. RFC 5321 2.3.11; RFC 5233 (tags).
"""

import re
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from relay.base.accounts.account import (
    ALL_SCOPES,
    Account,
    ReceiptSetting,
    RegisteredClient,
    Role,
    Scope,
    Writers,
    is_listed,
)
from relay.base.accounts.aliases import AliasTable, Forwarding
from relay.base.accounts.directory import AccountTables, FileAccounts
from relay.base.accounts.password_schemes import is_plain, parse_password, shown_scheme
from relay.base.accounts.passwords import digest_of, parse_token
from relay.base.clock import Clock
from relay.base.files import open_to_others
from relay.base.message.address import AddressError, lower_case, own_mailbox, untagged
from relay.base.message.address import parse_mailbox as parse_any_mailbox
from relay.base.message.envelope import main_address
from relay.base.phrases import shown
from relay.base.settings.document import (
    Document,
    Fault,
    KeyPath,
    SettingsError,
    dotted,
    read_document,
    unknown_key,
)
from relay.base.settings.reader import DocumentReader
from relay.base.settings.tree import Between, Bytes, Language, Limits, Mailbox, OwnDomain, Secret

FILE_BYTES_MAX = 16 * 1024 * 1024  # 75,000 accounts, which take 14 s of CPU
_CLIENT_ID = re.compile(r"[!-~]{1,128}")
_HASHED_FORMS = {
    "password": "$argon2id$...",
    "token": "sha256:HEX",
    "client_secret": "$argon2id$...",
}
_Parsed = TypeVar("_Parsed")
# Arguments: `from` of an alias, the address of the alias, whether an account may send from that
# address. Returns who may write to the alias. Raises ValueError with what was expected.
ReadWriters = Callable[[tuple[str, ...] | str, str, bool], Writers]


@dataclass(frozen=True, slots=True)
class _Entry:
    """`[[account]]`: a mailbox and its user, or an application."""

    # required, in an own domain with accounts; it gets mail to `alice+anything@` too
    address: Mailbox
    password: Annotated[str, Secret] = ""  # for SMTP and the pages: a hash, or `plain:…`
    token: Annotated[str, Secret] = ""  # for HTTP: `sha256:…`, or `plain:…`
    aliases: tuple[Mailbox, ...] = ()  # more addresses of the mailbox, also for From, with any +tag
    send_as: tuple[Mailbox, ...] = ()  # addresses of others for From, or "*@example.org"
    # of all folders; reports may exceed it by a tenth (by 10 MiB or 100 messages if that is more)
    quota: Bytes | None = None
    quota_messages: Annotated[int, Between(1, 1_000_000_000)] | None = None  # the same in messages
    role: Role = Role.USER  # in the pages and /relay/v1: user, read, operate
    client_id: str = ""  # of an application
    client_secret: Annotated[str, Secret] = ""  # its secret, in a form of `password`
    # what tokens may do in Graph, everything if absent: Mail.Read, Mail.ReadWrite, Mail.Send,
    # MailboxSettings.Read, MailboxSettings.ReadWrite, SMTP.Send, User.Read. A login by SMTP with a
    # token needs SMTP.Send or Mail.Send
    scopes: tuple[Scope, ...] | None = None
    # accounts whose mailboxes the tokens open in Graph as `/users/{address}`, or "*@example.org"
    acts_for: tuple[Mailbox, ...] = ()
    read_receipts: ReceiptSetting = ReceiptSetting.AUTO  # never, ask, always, auto (default)
    language: Language | None = None  # of its reports: en, de
    forward_to: tuple[str, ...] = ()  # addresses that get its mail too
    keep_copy: bool = True  # false: only they get it
    limits: Limits = field(default_factory=Limits)  # of mail to other domains
    # true: it receives mail only. It cannot log in, no account may use its addresses in From or
    # open its mailbox by HTTP, and a reload ends its sessions
    disabled: bool = False


_NO_ASSERTIONS = "0.7.0 has removed: the application signs in with a client_secret"
_REMOVED_KEYS: Mapping[type, Mapping[str, str]] = {
    _Entry: {"client_certificate": _NO_ASSERTIONS, "client_keys": _NO_ASSERTIONS}
}


@dataclass(frozen=True, slots=True)
class _AliasEntry:
    """One [[alias]] of the file."""

    address: Mailbox
    to: tuple[str, ...]  # addresses that get its mail
    from_: tuple[str, ...] | str | None = None  # who may write to it; None: everybody


def _no_writers() -> ReadWriters:
    raise ValueError("none: there are no groups")


def load_accounts(
    path: Path,
    domains: Iterable[str | OwnDomain],
    *,
    clock: Clock,
    environ: Mapping[str, str],
    writers: Callable[[], ReadWriters] | None = _no_writers,
) -> FileAccounts:
    """Read accounts.toml. Raises SettingsError.

    `domains` are the own domains; a domain given as a string has accounts. `environ` is for
    ${env:NAME}. `writers` is called if an alias has `from`. With None no other file counts: the
    domains of all addresses are own domains, and everybody may write to an alias.
    """
    document = read_document(path, bytes_max=FILE_BYTES_MAX)
    base = path.absolute().parent
    reader = DocumentReader(document, base=base, environ=environ, removed_keys=_REMOVED_KEYS)
    faults = [
        document.fault((key,), unknown_key(key, ["account", "alias"]))
        for key in document.table.keys() - {"account", "alias"}
    ]
    entries = reader.tables(_Entry, document.table.get("account", []), ("account",))
    aliases = reader.tables(_AliasEntry, document.table.get("alias", []), ("alias",))
    if others := open_to_others(path, to_read=True):
        faults.append(Fault(path, 0, "", others))
    faults += reader.faults
    addresses = [address for place, entry in entries for _, address in _addresses(place, entry)]
    addresses += [entry.address for _, entry in aliases]
    if writers is None:
        opened = (address for _, entry in entries for address in entry.acts_for)
        domains = (*domains, *(address.rpartition("@")[2] for address in (*addresses, *opened)))
    known = _Domains(
        [OwnDomain(domain) if isinstance(domain, str) else domain for domain in domains]
    )
    tagged = [address for address in addresses if address != untagged(address)]
    disabled = [
        address
        for place, entry in entries
        if entry.disabled
        for _, address in _addresses(place, entry)
    ]
    loading = _Loading(
        document,
        known,
        reserved=frozenset(known.doubled(tagged)),
        barred=frozenset(known.doubled(disabled)),
        read_writers=writers,
    )
    for place, entry in entries:
        faults += loading.take(place, entry)
    for place, alias in aliases:
        faults += loading.take_alias(place, alias)
    faults += loading.join_aliases()
    if faults:
        raise SettingsError(faults)
    for place, file in reader.secret_files:
        if text := open_to_others(file, to_read=True):
            loading.warn(place, text)
    tables = loading.tables
    tables.removed_keys = reader.removed
    tables.take_time_of_most()
    tables.digest = sha256(msgspec.json.encode(document.table, order="sorted")).hexdigest()
    return FileAccounts(tables, clock)


class _Domains:
    """The own domains: which may have accounts, which may have aliases, and which have alias_of."""

    def __init__(self, domains: Sequence[OwnDomain]) -> None:
        self.of_accounts = frozenset(domain.name for domain in domains if domain.has_accounts)
        self.of_aliases = frozenset(domain.name for domain in domains if not domain.alias_of)
        self._targets = {domain.name: domain.alias_of for domain in domains if domain.alias_of}

    def doubled(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return addresses or patterns, and the same ones in the domains with alias_of."""
        all_addresses = list(addresses)
        for name, target in self._targets.items():
            parts = [address.rpartition("@") for address in addresses]
            all_addresses += [f"{local_part}@{name}" for local_part, _, at in parts if at == target]
        return tuple(all_addresses)

    def target_of(self, address: str) -> str:
        """Return an address in a domain with alias_of in the domain that alias_of names.

        Any other address is returned as it is.
        """
        return main_address(address, self._targets)


@dataclass(eq=False, repr=False)
class _Loading:
    """Converts entries to accounts and detects duplicates."""

    document: Document
    domains: _Domains
    reserved: frozenset[str]
    barred: frozenset[str]
    read_writers: Callable[[], ReadWriters] | None

    def __post_init__(self) -> None:
        self.tables = AccountTables()
        self._lent: set[str] = set()  # send_as of all accounts, without tags
        self._taken: dict[str | bytes | tuple[str, str], KeyPath] = {}
        self._forwardings: list[tuple[Forwarding, Sequence[str]]] = []

    def take(self, place: KeyPath, entry: _Entry) -> Iterator[Fault]:
        """Add the account; yield its faults."""
        for path, address in _addresses(place, entry):
            yield from self._check_domain(path, address, self.domains.of_accounts)
            yield from self._claim(path, address, shown(address))
        for name in ("send_as", "acts_for"):
            for number, address in enumerate(getattr(entry, name)):
                yield from self._check_pattern((*place, name, number), address)
        for number, address in enumerate(entry.acts_for):
            path = (*place, "acts_for", number)
            yield from self._check_domain(path, address, self.domains.of_accounts)
        password = yield from self._parsed((*place, "password"), entry.password, parse_password)
        token = yield from self._parsed((*place, "token"), entry.token, parse_token)
        path = (*place, "client_secret")
        secret = yield from self._parsed(path, entry.client_secret, parse_password)
        if token:
            yield from self._claim((*place, "token"), token, "a token")
        yield from self._check_client(place, entry)
        self._warn_of_plain(place, entry)
        account = Account(
            entry.address,
            self.domains.doubled((entry.address, *entry.aliases))[1:],
            entry.quota,
            role=entry.role,
            send_as=self.domains.doubled(entry.send_as),
            quota_messages=entry.quota_messages,
            reserved=self.reserved,
            barred=self.barred,
            scopes=ALL_SCOPES if entry.scopes is None else frozenset(entry.scopes),
            acts_for=entry.acts_for,
            read_receipts=entry.read_receipts,
            language=entry.language or "",
            limits=entry.limits,
            credentials=digest_of(f"{entry.password}\0{entry.token}\0{entry.disabled}"),
        )
        self._lent.update(map(untagged, account.send_as))
        yield from self._take_forwarding(place, entry, account)
        if password:
            self.tables.scheme_of[entry.address] = password.scheme
        if entry.disabled:
            password = token = None
        self.tables.add(account, password=password, token=token)
        if secret and not entry.disabled:
            client = RegisteredClient(entry.client_id, account, digest_of(entry.client_secret))
            self.tables.add_client(client, secret)

    def take_alias(self, place: KeyPath, entry: _AliasEntry) -> Iterator[Fault]:
        """Add the alias, after all accounts; yield its faults."""
        path = (*place, "address")
        yield from self._check_domain(path, entry.address, self.domains.of_aliases)
        yield from self._claim(path, entry.address, shown(entry.address))
        if "*" in entry.address:
            expected = "one address (mailboxes.catch_all takes the mail for unknown ones)"
            yield self.document.fault(path, f"found {shown(entry.address)}, expected {expected}")
        path = (*place, "to")
        if not self.document.value(path):
            yield self.document.fault(path, "found [], expected an address or several")
        targets = yield from self._targets(path, entry.to)
        writers = yield from self._writers((*place, "from"), entry)
        forwarding = Forwarding(entry.address, targets, False, path, writers)
        self._forwardings.append((forwarding, self.domains.doubled([entry.address])))

    def _writers(self, path: KeyPath, entry: _AliasEntry) -> Generator[Fault, None, Writers | None]:
        """Yield the fault of `from`; return who may write to the alias."""
        if entry.from_ is None or self.read_writers is None:
            return None
        reports = is_listed(entry.address, self._lent)
        try:
            return self.read_writers()(entry.from_, entry.address, reports)
        except ValueError as error:
            written = shown(self.document.value(path))
            yield self.document.fault(path, f"found {written}, expected {error}")
            return None

    def _take_forwarding(self, place: KeyPath, entry: _Entry, account: Account) -> Iterator[Fault]:
        """Add the account if it forwards. It keeps a copy if `forward_to` has its own address."""
        path = (*place, "forward_to")
        if not entry.keep_copy and not self.document.value(path):
            message = "found false without forward_to, expected both"
            yield self.document.fault((*place, "keep_copy"), message)
        addresses = yield from self._targets(path, entry.forward_to)
        targets = tuple([target for target in addresses if not account.owns(target)])
        if targets:
            keeps_copy = entry.keep_copy or len(targets) < len(addresses)
            forwarding = Forwarding(entry.address, targets, keeps_copy, path)
            self._forwardings.append((forwarding, (account.address, *account.aliases)))

    def _targets(
        self, path: KeyPath, texts: Sequence[str]
    ) -> Generator[Fault, None, tuple[str, ...]]:
        """Yield the faults of target addresses; return the valid ones."""
        targets = []
        for number, text in enumerate(texts):
            try:
                address = parse_any_mailbox(text, smtputf8=True)
                targets.append(self.domains.target_of(address))
            except AddressError:
                expected = "an address with its domain, such as bob@example.org"
                message = f"found {shown(text)}, expected {expected}"
                yield self.document.fault((*path, number), message)
        return tuple(targets)

    def join_aliases(self) -> Iterator[Fault]:
        """Make the table of all aliases; yield the faults of their expansion."""
        table = AliasTable(self._forwardings, named=self.reserved)
        yield from table.check(self.document)
        self.tables.aliases = table
        for path, address in table.leaves():
            local_part, _, domain = own_mailbox(address).rpartition("@")
            is_here = domain in self.domains.of_accounts and local_part != "postmaster"
            if is_here and self.tables.find(address) is None:
                self.warn(path, f"found {shown(address)}, which is no account and no alias")

    def _check_domain(
        self, path: KeyPath, address: str, domains: Collection[str]
    ) -> Iterator[Fault]:
        if address.rpartition("@")[2] not in domains:
            kind = "with accounts" if domains is self.domains.of_accounts else "without alias_of"
            expected = f"an address in one of mailboxes.domains, or of a [[domain]] {kind}"
            yield self.document.fault(path, f"found {shown(address)}, expected {expected}")

    def _check_pattern(self, path: KeyPath, address: str) -> Iterator[Fault]:
        local_part = address.rpartition("@")[0]
        if "*" in local_part and local_part != "*":
            expected = 'an address, or "*@DOMAIN" for all of a domain'
            yield self.document.fault(path, f"found {shown(address)}, expected {expected}")

    def _check_client(self, place: KeyPath, entry: _Entry) -> Iterator[Fault]:
        path = (*place, "client_id")
        if entry.client_id and not _CLIENT_ID.fullmatch(entry.client_id):
            expected = "1 to 128 ASCII characters without spaces"
            yield self.document.fault(path, f"found {shown(entry.client_id)}, expected {expected}")
        elif entry.client_id:
            yield from self._claim(path, ("client", lower_case(entry.client_id)), "a client id")
        table = self.document.value(place)
        had_keys = isinstance(table, dict) and not _REMOVED_KEYS[_Entry].keys().isdisjoint(table)
        if bool(entry.client_id) != bool(entry.client_secret) and not had_keys:
            there, missing = "client_id", "client_secret"
            if entry.client_secret:
                there, missing = missing, there
            message = f"found no {missing}, expected one: a {there} does not work alone"
            yield self.document.fault((*place, there), message)

    def _parsed(
        self, path: KeyPath, secret: str, parse: Callable[[str], _Parsed]
    ) -> Generator[Fault, None, _Parsed | None]:
        """Yield the fault of a secret; return the parsed secret, None if it is empty or faulty."""
        try:
            return parse(secret) if secret else None
        except ValueError as error:
            scheme = "something else" if path[-1] == "token" else shown_scheme(secret)
            yield self.document.fault(path, f"found {scheme}, expected {error}")
            return None

    def warn(self, path: KeyPath, message: str) -> None:
        """Add a warning for `relay check`."""
        self.tables.warnings.append(str(self.document.fault(path, message)))

    def _claim(
        self, path: KeyPath, value: str | bytes | tuple[str, str], written: str
    ) -> Iterator[Fault]:
        earlier = self._taken.setdefault(value, path)
        if earlier != path:
            where = f"{dotted(earlier)} in line {self.document.line(earlier)} has the same"
            yield self.document.fault(path, f"found {written}, expected one of its own: {where}")

    def _warn_of_plain(self, place: KeyPath, entry: _Entry) -> None:
        for name, form in _HASHED_FORMS.items():
            path = (*place, name)
            if is_plain(str(self.document.value(path))) and getattr(entry, name):
                self.warn(path, f"found a plain secret; {form} keeps it from readers of the file")


def _addresses(place: KeyPath, entry: _Entry) -> Iterator[tuple[KeyPath, str]]:
    yield (*place, "address"), entry.address
    for number, alias in enumerate(entry.aliases):
        yield (*place, "aliases", number), alias
