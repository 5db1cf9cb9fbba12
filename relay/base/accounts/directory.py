"""The accounts of accounts.toml.

Each address, alias, token and client id belongs to one account, and others must not be able to read
the file. load_accounts() raises SettingsError with all faults of the file, those of its aliases too
(RFC 5321 2.3.11; RFC 5233 for tags).
"""

import hmac
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from relay.base.accounts.account import (
    ALL_SCOPES,
    Account,
    ClientKey,
    DovecotUser,
    Expansion,
    ReceiptSetting,
    RegisteredClient,
    Role,
    Scope,
    UnknownUserError,
    Writers,
    is_listed,
)
from relay.base.accounts.aliases import AliasTable, Forwarding
from relay.base.accounts.password_schemes import Password, is_plain, parse_password, shown_scheme
from relay.base.accounts.passwords import (
    FORGOTTEN_S,
    DovecotPassword,
    PasswordChecker,
    SuccessTable,
    digest_of,
    parse_token,
)
from relay.base.clock import Clock
from relay.base.files import open_to_others
from relay.base.message.address import AddressError, own_mailbox, untagged
from relay.base.message.address import parse_mailbox as parse_any_mailbox
from relay.base.message.envelope import main_address
from relay.base.observe.logs import get_logger
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

_NOBODY = Password(
    # makes a check for an unknown user as slow as for a known one
    hashed="$argon2id$v=19$m=65536,t=3,p=4$cmVsYXlyZWxheXJlbGF5cg$"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)
FILE_BYTES_MAX = 16 * 1024 * 1024  # 75,000 accounts, which take 14 s of CPU
_TOKEN_LENGTH_MAX = 4096
_USER_LENGTH_MAX = 320  # user names of failed logins are stored for a while
_OF_CLIENT = "client "  # begins the name by which failures of a client id are counted
_CLIENT_ID = re.compile(r"[!-~]{1,128}")
_Parsed = TypeVar("_Parsed")
# Reads `from` of an alias; then come its address, and whether an account sends in its name. Raises
# ValueError with what was expected.
ReadWriters = Callable[[tuple[str, ...] | str, str, bool], Writers]
_log = get_logger("accounts")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One [[account]] of the file."""

    address: Mailbox  # the mailbox
    password: Annotated[str, Secret] = ""  # a hash, or plain:…; "": no login by SMTP
    token: Annotated[str, Secret] = ""  # a hash, or plain:…; "": no token
    aliases: tuple[Mailbox, ...] = ()  # further addresses of the mailbox
    send_as: tuple[Mailbox, ...] = ()  # addresses of others that it may send from
    quota: Bytes | None = None  # of all folders together; None: no limit
    quota_messages: Annotated[int, Between(1, 1_000_000_000)] | None = None  # None: no limit
    role: Role = Role.USER  # what it may do in /relay/v1
    client_id: str = ""  # of the application; "": none
    client_secret: Annotated[str, Secret] = ""  # a hash, or plain:…
    client_certificate: str = ""  # the path of its certificates (PEM), or their text
    client_keys: str = ""  # the path of its JWK set, or its text
    scopes: tuple[Scope, ...] | None = None  # None: all
    acts_for: tuple[Mailbox, ...] = ()  # whose mailboxes its tokens may open
    read_receipts: ReceiptSetting = ReceiptSetting.AUTO  # when they are sent
    language: Language | None = None  # of the reports that it gets; None: not known
    forward_to: tuple[str, ...] = ()  # addresses that get its mail
    keep_copy: bool = True  # of forwarded mail
    limits: Limits = field(default_factory=Limits)  # of what it sends to the outside
    disabled: bool = False  # it only gets mail


@dataclass(frozen=True, slots=True)
class _AliasEntry:
    """One [[alias]] of the file."""

    address: Mailbox
    to: tuple[str, ...]  # addresses that get its mail
    from_: tuple[str, ...] | str | None = None  # who may write to it; None: everybody


@dataclass(slots=True)
class AccountTables:
    """What accounts.toml says. Nothing is added any more when the file is loaded."""

    accounts: list[Account] = field(default_factory=list)  # in the order of the file
    by_address: dict[str, Account] = field(default_factory=dict)  # and by alias
    by_token: dict[bytes, tuple[bytes, Account]] = field(default_factory=dict)  # by its digest
    passwords: dict[str, Password] = field(default_factory=dict)  # by the address of the account
    scheme_of: dict[str, str] = field(default_factory=dict)  # those of disabled accounts too
    # by client id in lower case; the password is the secret, or matches nothing
    clients: dict[str, tuple[RegisteredClient, Password]] = field(default_factory=dict)
    aliases: AliasTable = field(default_factory=AliasTable)  # and accounts that forward
    nobody: Password = field(default_factory=lambda: _NOBODY)  # that of unknown users
    # of `relay check`: about secrets in plain text or open to others, and about addresses of
    # aliases that nobody here has
    warnings: list[str] = field(default_factory=list)
    digest: str = ""  # of the file

    def add(self, account: Account, *, password: Password | None, token: bytes | None) -> None:
        """Add an account whose addresses and token are unique; `token` is a digest."""
        self.accounts.append(account)
        for address in (account.address, *account.aliases):
            self.by_address[address] = account
        if password:
            self.passwords[account.address] = password
        if token:
            self.by_token[token] = (token, account)

    def schemes(self) -> Counter[str]:
        """Count the passwords by their scheme."""
        return Counter(self.scheme_of.values())

    def take_time_of_most(self) -> None:
        """Have the check for unknown users take as long as that of most passwords that take time:
        those which take none tell that they are there.
        """
        count = self.schemes()
        if self.passwords:
            most = max(
                self.passwords.values(),
                key=lambda password: (bool(password.hashed), count[password.scheme]),
            )
            self.nobody = most.for_nobody()

    def find(self, address: str) -> Account | None:
        """Return the account whose address, alias or `local+tag` is `address`, or None."""
        mailbox = own_mailbox(address)
        return self.by_address.get(mailbox) or self.by_address.get(untagged(mailbox))


class FileAccounts:
    """The accounts of a file as it was last loaded (an AccountDirectory)."""

    def __init__(self, tables: AccountTables, clock: Clock, *, dovecot_auth: str = "") -> None:
        """`dovecot_auth` is the path of a socket, or ""."""
        self.tables, self._dovecot_auth = tables, dovecot_auth
        self._clock = clock
        self._begin_checks(SuccessTable())

    def _begin_checks(self, successes: SuccessTable) -> None:
        self._checker = PasswordChecker(
            self._clock, rng=os.urandom, on_delay=self._log_delay, successes=successes
        )
        self._delays_logged_s: dict[str, float] = {}

    def use(self, tables: AccountTables, *, dovecot_auth: str) -> None:
        """Have these accounts from now on. Failed logins and remembered passwords are forgotten,
        clients from which users have logged in are not. May run in a thread.
        """
        before = self._checker
        self.tables, self._dovecot_auth = tables, dovecot_auth
        self._begin_checks(before.successes)
        before.close()

    def opened(self, address: str, caller: Account) -> Account | None:
        """See AccountDirectory."""
        owner = self.by_address(address)
        return owner if owner is not None and caller.may_open(owner) else None

    def every(self) -> Sequence[Account]:
        """Return all accounts, in the order of the file."""
        return tuple(self.tables.accounts)

    def by_token(
        self,
        token: str,
        *,
        client: str = "",  # noqa: ARG002 -- nobody guesses the tokens that relay account makes
    ) -> Account | None:
        """Return the account of a bearer token: found by its digest, then compared in full."""
        if not token or len(token) > _TOKEN_LENGTH_MAX:
            return None
        digest = digest_of(token)
        stored, account = self.tables.by_token.get(digest, (b"", None))
        return account if hmac.compare_digest(stored, digest) else None

    def by_address(self, address: str) -> Account | None:
        """Return the account whose address, alias or `local+tag` is `address`, or None."""
        return self.tables.find(address)

    def expand(self, address: str) -> Expansion | None:
        """See AccountDirectory."""
        return self.tables.aliases.expand(address)

    async def by_password(self, user: str, password: str, *, client: str) -> Account | None:
        """Return the account that logs in with its address or an alias, or None.

        An unknown user takes as much time, and is delayed as much, as a known one. Raises
        LoginDelayedError.
        """
        account = self.tables.by_address.get(own_mailbox(user))
        name = account.address if account else user[:_USER_LENGTH_MAX].lower()
        stored = self.tables.passwords.get(name)
        nobody = self.tables.nobody
        is_right = await self._checker.check(name, stored or nobody, password, client=client)
        return account if is_right and stored else None

    async def by_smtp_login(self, user: str, password: str, *, client: str) -> Account | None:
        """See AccountDirectory. Who is in accounts.toml logs in with what is there."""
        address = self._in_dovecot(user)
        if not address:
            return await self.by_password(user, password, client=client)
        stored = DovecotPassword(self._dovecot_auth, user, client)
        is_right = await self._checker.check(address, stored, password, client=client)
        return DovecotUser(address) if is_right else None

    def of_login(self, login: str) -> Account | None:
        """See AccountDirectory."""
        if address := self._in_dovecot(login):
            return DovecotUser(address)
        account = self.tables.by_address.get(login)
        return account if account and account.address == login else None

    def _in_dovecot(self, user: str) -> str:
        """Return the address of a user whose password only Dovecot may know, else ""."""
        if not self._dovecot_auth or self.tables.find(user) is not None:
            return ""
        try:
            return own_mailbox(parse_any_mailbox(user, smtputf8=True))
        except AddressError:
            return ""

    def by_client_id(self, client_id: str) -> RegisteredClient | None:
        """See AccountDirectory."""
        client, _ = self.tables.clients.get(client_id.lower(), (None, None))
        return client

    async def by_client_secret(
        self, client_id: str, secret: str, *, client: str
    ) -> RegisteredClient | None:
        """Return the client if this is its secret, or None.

        An unknown client takes as much time, and is delayed as much, as a known one. Raises
        LoginDelayedError.
        """
        name = client_id[:_USER_LENGTH_MAX].lower()
        application, stored = self.tables.clients.get(name, (None, _NOBODY))
        # its failures are counted apart from those of the user with this name
        is_right = await self._checker.check(_OF_CLIENT + name, stored, secret, client=client)
        return application if is_right else None

    def by_client_assertion(
        self,
        client_id: str,
        check: Callable[[RegisteredClient | None], RegisteredClient],
        *,
        client: str,
    ) -> RegisteredClient | None:
        """See AccountDirectory. Failures are counted together with wrong secrets."""
        name = client_id[:_USER_LENGTH_MAX].lower()
        application, _ = self.tables.clients.get(name, (None, None))
        return self._checker.attempt(_OF_CLIENT + name, lambda: check(application), client=client)

    def unlock(self, address: str) -> int:
        """See AccountDirectory."""
        account = self.tables.by_address.get(own_mailbox(address))
        name = account.address if account else self._in_dovecot(address)
        if not name:
            raise UnknownUserError(address)
        names = [name]
        names += [
            _OF_CLIENT + name
            for name, (application, _) in self.tables.clients.items()
            if application.account is account
        ]
        for name in names:
            self._delays_logged_s.pop(name, None)
        return sum(map(self._checker.unlock, names))

    def _log_delay(self, name: str, client: str) -> None:
        """Log that the logins of a known user or client id are delayed.

        Guesses from many addresses cause one line, until failures would be forgotten.
        """
        client_id = name.removeprefix(_OF_CLIENT) if name.startswith(_OF_CLIENT) else ""
        known = self.tables.clients if client_id else self.tables.passwords
        now = self._clock.monotonic()
        before_s = self._delays_logged_s.get(name)
        if (client_id or name) in known and (before_s is None or now - before_s >= FORGOTTEN_S):
            self._delays_logged_s[name] = now
            who = {"client_id": client_id} if client_id else {"user": name}
            _log.warning("logins delayed", client=client, **who)

    def close(self) -> None:
        """Stop the threads that check passwords."""
        self._checker.close()


def _no_writers() -> ReadWriters:
    raise ValueError("none: there are no groups")


def load_accounts(
    path: Path,
    domains: Iterable[str | OwnDomain],
    *,
    clock: Clock,
    environ: Mapping[str, str],
    writers: Callable[[], ReadWriters] = _no_writers,
) -> FileAccounts:
    """Read accounts.toml. `domains` are the own domains; one that is given as a name has accounts.
    `environ` is for ${env:NAME}, `writers` is called for `from` of an alias.

    Raises SettingsError.
    """
    document = read_document(path, bytes_max=FILE_BYTES_MAX)
    reader = DocumentReader(document, base=path.absolute().parent, environ=environ)
    faults = [
        document.fault((key,), unknown_key(key, ["account", "alias"]))
        for key in document.table.keys() - {"account", "alias"}
    ]
    entries = reader.tables(_Entry, document.table.get("account", []), ("account",))
    aliases = reader.tables(_AliasEntry, document.table.get("alias", []), ("alias",))
    faults += [*_permission_faults(path), *reader.faults]
    addresses = [address for place, entry in entries for _, address in _addresses(place, entry)]
    addresses += [entry.address for _, entry in aliases]
    known = _Domains(
        [OwnDomain(domain) if isinstance(domain, str) else domain for domain in domains]
    )
    tagged = [address for address in addresses if address != untagged(address)]
    now_s = clock.time_us() / 1_000_000
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
        now_s=now_s,
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
    tables.take_time_of_most()
    tables.digest = sha256(msgspec.json.encode(document.table, order="sorted")).hexdigest()
    return FileAccounts(tables, clock)


_HASHED_FORMS = {
    "password": "$argon2id$...",
    "token": "sha256:HEX",
    "client_secret": "$argon2id$...",
}
_PROOFS = ("client_secret", "client_certificate", "client_keys")


class _Domains:
    """The own domains: in which accounts or aliases may have an address; those with alias_of."""

    def __init__(self, domains: Sequence[OwnDomain]) -> None:
        self.of_accounts = frozenset(domain.name for domain in domains if domain.has_accounts)
        self.of_aliases = frozenset(domain.name for domain in domains if not domain.alias_of)
        self._targets = {domain.name: domain.alias_of for domain in domains if domain.alias_of}

    def doubled(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return addresses or patterns, and those of the same name in domains with alias_of."""
        all_addresses = list(addresses)
        for name, target in self._targets.items():
            same = [address.rpartition("@") for address in addresses]
            all_addresses += [f"{local_part}@{name}" for local_part, _, at in same if at == target]
        return tuple(all_addresses)

    def target_of(self, address: str) -> str:
        """Return the address that is meant by one in a domain with alias_of. Any other address
        stays as it is.
        """
        return main_address(address, self._targets)


class _Loading:
    """Converts entries to accounts and detects duplicates."""

    def __init__(
        self,
        document: Document,
        domains: _Domains,
        *,
        reserved: frozenset[str],
        barred: frozenset[str],
        now_s: float,
        read_writers: Callable[[], ReadWriters],
    ) -> None:
        self.tables = AccountTables()
        self._now_s, self._read_writers = now_s, read_writers
        self._lent: set[str] = set()  # send_as of all accounts, without tags
        self._reserved, self._barred = reserved, barred
        self._document = document
        self._domains = domains
        self._taken: dict[str | bytes | tuple[str, str], KeyPath] = {}
        self._forwardings: list[tuple[Forwarding, Sequence[str]]] = []

    def take(self, place: KeyPath, entry: _Entry) -> Iterator[Fault]:
        """Add the account; yield its faults."""
        for path, address in _addresses(place, entry):
            yield from self._check_domain(path, address, self._domains.of_accounts)
            yield from self._claim(path, address, shown(address))
        for name in ("send_as", "acts_for"):
            for number, address in enumerate(getattr(entry, name)):
                yield from self._check_pattern((*place, name, number), address)
        for number, address in enumerate(entry.acts_for):
            path = (*place, "acts_for", number)
            yield from self._check_domain(path, address, self._domains.of_accounts)
        password = yield from self._parsed((*place, "password"), entry.password, parse_password)
        token = yield from self._parsed((*place, "token"), entry.token, parse_token)
        path = (*place, "client_secret")
        secret = yield from self._parsed(path, entry.client_secret, parse_password)
        if token:
            yield from self._claim((*place, "token"), token, "a token")
        keys = yield from self._keys(place, entry)
        yield from self._check_client(place, entry)
        self._warn_of_plain(place, entry)
        account = Account(
            entry.address,
            self._domains.doubled((entry.address, *entry.aliases))[1:],
            entry.quota,
            role=entry.role,
            send_as=self._domains.doubled(entry.send_as),
            quota_messages=entry.quota_messages,
            reserved=self._reserved,
            barred=self._barred,
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
        if (secret or keys) and not entry.disabled:
            digest = digest_of(entry.client_secret) if secret else keys[0].digest
            client = RegisteredClient(entry.client_id, account, digest, keys)
            self.tables.clients[entry.client_id.lower()] = (client, secret or _NOBODY)

    def take_alias(self, place: KeyPath, entry: _AliasEntry) -> Iterator[Fault]:
        """Add the alias, after all accounts; yield its faults."""
        path = (*place, "address")
        yield from self._check_domain(path, entry.address, self._domains.of_aliases)
        yield from self._claim(path, entry.address, shown(entry.address))
        if "*" in entry.address:
            expected = "one address (mailboxes.catch_all takes the mail for unknown ones)"
            yield self._document.fault(path, f"found {shown(entry.address)}, expected {expected}")
        path = (*place, "to")
        if not self._document.value(path):
            yield self._document.fault(path, "found [], expected an address or several")
        targets = yield from self._targets(path, entry.to)
        writers = yield from self._writers((*place, "from"), entry)
        forwarding = Forwarding(entry.address, targets, False, path, writers)
        self._forwardings.append((forwarding, self._domains.doubled([entry.address])))

    def _writers(self, path: KeyPath, entry: _AliasEntry) -> Generator[Fault, None, Writers | None]:
        """Yield the fault of `from`; return who may write to the alias."""
        if entry.from_ is None:
            return None
        reports = is_listed(entry.address, self._lent)
        try:
            return self._read_writers()(entry.from_, entry.address, reports)
        except ValueError as error:
            written = shown(self._document.value(path))
            yield self._document.fault(path, f"found {written}, expected {error}")
            return None

    def _take_forwarding(self, place: KeyPath, entry: _Entry, account: Account) -> Iterator[Fault]:
        """Add the account if it forwards. Its own address in `forward_to` keeps a copy."""
        path = (*place, "forward_to")
        if not entry.keep_copy and not self._document.value(path):
            message = "found false without forward_to, expected both"
            yield self._document.fault((*place, "keep_copy"), message)
        named = yield from self._targets(path, entry.forward_to)
        targets = tuple([target for target in named if not account.owns(target)])
        if targets:
            keeps_copy = entry.keep_copy or len(targets) < len(named)
            forwarding = Forwarding(entry.address, targets, keeps_copy, path)
            self._forwardings.append((forwarding, (account.address, *account.aliases)))

    def _targets(
        self, path: KeyPath, texts: Sequence[str]
    ) -> Generator[Fault, None, tuple[str, ...]]:
        """Yield the faults of addresses outside or here; return the others."""
        targets = []
        for number, text in enumerate(texts):
            try:
                address = parse_any_mailbox(text, smtputf8=True)
                targets.append(self._domains.target_of(address))
            except AddressError:
                expected = "an address with its domain, such as bob@example.org"
                message = f"found {shown(text)}, expected {expected}"
                yield self._document.fault((*path, number), message)
        return tuple(targets)

    def join_aliases(self) -> Iterator[Fault]:
        """Make the table of all aliases; yield the faults of their expansion."""
        table = AliasTable(self._forwardings, named=self._reserved)
        yield from table.check(self._document)
        self.tables.aliases = table
        for path, address in table.leaves():
            local_part, _, domain = own_mailbox(address).rpartition("@")
            is_here = domain in self._domains.of_accounts and local_part != "postmaster"
            if is_here and self.tables.find(address) is None:
                self.warn(path, f"found {shown(address)}, which is no account and no alias")

    def _check_domain(
        self, path: KeyPath, address: str, domains: Collection[str]
    ) -> Iterator[Fault]:
        if address.rpartition("@")[2] not in domains:
            kind = "with accounts" if domains is self._domains.of_accounts else "without alias_of"
            expected = f"an address in one of mailboxes.domains, or of a [[domain]] {kind}"
            yield self._document.fault(path, f"found {shown(address)}, expected {expected}")

    def _check_pattern(self, path: KeyPath, address: str) -> Iterator[Fault]:
        local_part = address.rpartition("@")[0]
        if "*" in local_part and local_part != "*":
            expected = 'an address, or "*@DOMAIN" for all of a domain'
            yield self._document.fault(path, f"found {shown(address)}, expected {expected}")

    def _check_client(self, place: KeyPath, entry: _Entry) -> Iterator[Fault]:
        path = (*place, "client_id")
        if entry.client_id and not _CLIENT_ID.fullmatch(entry.client_id):
            expected = "1 to 128 ASCII characters without spaces"
            yield self._document.fault(path, f"found {shown(entry.client_id)}, expected {expected}")
        elif entry.client_id:
            yield from self._claim(path, ("client", entry.client_id.lower()), "a client id")
        proofs = [name for name in _PROOFS if getattr(entry, name)]
        if bool(entry.client_id) != bool(proofs):
            proof = proofs[0] if proofs else "client_id"
            missing = "client_id" if proofs else f"{', '.join(_PROOFS[:-1])} or {_PROOFS[-1]}"
            message = f"found no {missing}, expected one: a {proof} does not work alone"
            yield self._document.fault((*place, proof), message)

    def _keys(self, place: KeyPath, entry: _Entry) -> Generator[Fault, None, tuple[ClientKey, ...]]:
        """Yield the faults of the client's certificates and JWK set; return their keys."""
        if not (entry.client_certificate or entry.client_keys):
            return ()
        from relay.base.accounts import client_keys  # noqa: PLC0415 -- a large library

        base, now_s = self._document.file.absolute().parent, self._now_s
        read: Mapping[str, Callable[[str, Path], client_keys.FoundKeys]] = {
            "client_certificate": partial(client_keys.read_certificates, now_s=now_s),
            "client_keys": client_keys.read_key_set,
        }
        keys: list[ClientKey] = []
        for name, read_keys in read.items():
            path, text = (*place, name), getattr(entry, name)
            try:
                file = read_keys(text, base) if text else client_keys.FoundKeys(())
            except ValueError as error:
                yield self._document.fault(path, str(error))
                continue
            keys += file.keys
            for warning in file.warnings:
                self.warn(path, warning)
        return tuple(keys)

    def _parsed(
        self, path: KeyPath, secret: str, parse: Callable[[str], _Parsed]
    ) -> Generator[Fault, None, _Parsed | None]:
        """Yield the fault of a secret; return what it is, None for none."""
        try:
            return parse(secret) if secret else None
        except ValueError as error:
            scheme = "something else" if path[-1] == "token" else shown_scheme(secret)
            yield self._document.fault(path, f"found {scheme}, expected {error}")
            return None

    def warn(self, path: KeyPath, message: str) -> None:
        """Add a warning for `relay check`."""
        self.tables.warnings.append(str(self._document.fault(path, message)))

    def _claim(
        self, path: KeyPath, value: str | bytes | tuple[str, str], written: str
    ) -> Iterator[Fault]:
        earlier = self._taken.setdefault(value, path)
        if earlier != path:
            where = f"{dotted(earlier)} in line {self._document.line(earlier)} has the same"
            yield self._document.fault(path, f"found {written}, expected one of its own: {where}")

    def _warn_of_plain(self, place: KeyPath, entry: _Entry) -> None:
        for name, form in _HASHED_FORMS.items():
            path = (*place, name)
            if is_plain(str(self._document.value(path))) and getattr(entry, name):
                self.warn(path, f"found a plain secret; {form} keeps it from readers of the file")


def _addresses(place: KeyPath, entry: _Entry) -> Iterator[tuple[KeyPath, str]]:
    yield (*place, "address"), entry.address
    for number, alias in enumerate(entry.aliases):
        yield (*place, "aliases", number), alias


def _permission_faults(path: Path) -> Iterator[Fault]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        message = f"found mode {mode:04o}, expected a file that others cannot read (chmod o-rwx)"
        yield Fault(path, 0, "", message)
