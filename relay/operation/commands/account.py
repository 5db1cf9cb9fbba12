"""`relay account`: change accounts.toml in place.

Comments and the order of entries do not change. One process at a time changes the file. The new
text is checked as a whole, synced, and replaces the file atomically, with the owner and the mode of
the old file; the mode of a new file is 0640. Secrets are stored as hashes, and returned once.
Raises AccountError, OSError, and SettingsError if the old or the new file has a fault.

`relay account import` reads users from a CSV file, or from a passwd-file of Dovecot. A row becomes
the keys of an [[account]]. A CSV has a header with the names of its columns. A passwd-file has
user:password:uid:gid:gecos:home:shell:fields (passwd(5)); address, password, and the quota in the
extra fields of Dovecot 2.3 and 2.4 are used. Both may begin with a byte order mark. A hash that
begins with ! or * belongs to a locked user (passwd(1)), who gets no password.

A line of an alias file (Postfix's aliases(5) and virtual(5)) has a name or address, and the
addresses that get its mail: it becomes an [[alias]]. A line that begins with white space continues
the line above.
"""

import csv
import dataclasses
import io
import os
import re
import secrets
import stat
import tomllib
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import argon2
import tomlkit
from msgspec import Struct

from relay.base.accounts.account import AccountError
from relay.base.accounts.accounts_file import FILE_BYTES_MAX, load_accounts
from relay.base.accounts.passwords import digest_of
from relay.base.clock import Clock
from relay.base.files import create_file, fsync_path, locked_directory
from relay.base.message.address import own_mailbox
from relay.base.phrases import shown, words_in
from relay.base.settings.document import Fault, SettingsError, locate
from relay.base.settings.tree import Settings
from relay.operation.app.account_file import accounts_of
from relay.operation.app.development_folder import MARK

PASSWORD_BYTES_MAX = 1024
_SECRET_BYTES = 32
_SHOWN = words_in(
    "aliases send_as role quota quota_messages client_id scopes acts_for forward_to keep_copy "
    "disabled to from"
)
_OTHER = re.compile(r"((?:account|alias)\S*) in line (\d+)")  # in faults about an address twice
_OF_RING = re.compile(r"(?<=\()line (\d+)(?=\))")
_ALIAS = re.compile(r'("[^"\\]*+"(?:@[^\s:]++)?|[^\s:"]++)\s*+(:|(?<=\s))(.*)', re.DOTALL)
_TARGET = re.compile(r'(?>"(?>\\.?|[^"\\])*+(?:"|\Z)|[^\s,"])++')
_UNFIT = re.compile(r'"?(?:[|/@]|:include:)', re.IGNORECASE)
_Table = dict[str, Any]
COLUMNS = ("address", "hash", "quota", "aliases")
_HEADER = ",".join(COLUMNS)
_FOREIGN = re.compile(r"[;\t]")  # between the columns of other programs
_IS_CSV = re.compile(r"\"?address\"?\Z|[^:#,;\t]*+[,;\t][^:]*+\Z", re.IGNORECASE)  # the first line
_BETWEEN = re.compile(r"[\s,;]+")
_QUOTA = re.compile(
    r"quota(?:_rule=\*:(storage|bytes)|_storage_size)=([0-9]{1,15})([BKMGT]?)\b", re.IGNORECASE
)
_UNITS = "BKMGT"  # each is 1024 of the one before


class ImportedUser(Struct, frozen=True):
    """A row: the number of its line, and the keys of an [[account]] or [[alias]]."""

    line: int
    values: Mapping[str, Any]


class AccountFile:
    """The accounts.toml of a configuration."""

    def __init__(self, settings: Settings, *, clock: Clock, environ: Mapping[str, str]) -> None:
        self._given = settings.mailboxes.accounts
        self._path = self._given.resolve()  # a symbolic link is not replaced by a file
        self.settings = settings
        self.is_alone = False  # True: no other file counts; see load_accounts()
        self._names = settings.account_domains
        self._clock = clock
        self._environ = environ

    def entries(self) -> Sequence[Mapping[str, Any]]:
        """Return the accounts without their secrets, then the aliases, which have `to`."""
        schemes = self._check(self._path)
        documents = []
        text = self._path.read_text()
        for table in (*_parse(text), *_aliases(text)):
            address = own_mailbox(str(table["address"]))
            facts = {name: table[name] for name in _SHOWN if name in table}
            if address in schemes:
                facts["scheme"] = schemes[address]
            has = {name: bool(table.get(name)) for name in ("password", "token", "client_secret")}
            documents.append({"address": address, **facts, "has": has})
        return documents

    def add(self, address: str, values: Mapping[str, Any]) -> None:
        """Add an account; `values` are further keys of its table."""
        if not self.is_alone and address.rpartition("@")[2] not in self._names:
            domains = ", ".join(self._names) or "none"
            raise AccountError(f"{address}: expected an address in mailboxes.domains ({domains})")
        table = {"address": address} | dict(values)

        def appended(text: str) -> str:
            if any(known == address for known in _addresses(_parse(text))):
                raise AccountError(f"{address}: there is such an account already")
            return f"{text}{_gap(text)}{_table(table)}"

        self._change(appended, lambda entries: [*entries, table])

    def add_all(
        self, users: Sequence[ImportedUser], file: Path, *, is_trial: bool
    ) -> Sequence[Fault]:
        """Add the users of `file`. Return their faults, with the lines in `file`. Nothing is
        changed if there are faults, and with `is_trial`.
        """
        begins: list[int] = []  # the line of each new table

        def appended(text: str) -> str:
            above = f"{text}{_gap(text)}"
            sizes = (len(user.values) + 2 for user in users)
            begins.extend(accumulate(sizes, initial=above.count("\n") + 1))
            return above + "\n".join(_table(user.values) for user in users)

        def place_of(line: int) -> str:
            place = bisect_right(begins, line) - 1
            return f"line {users[place].line}" if place >= 0 else f"{self._given}:{line}"

        def in_import(fault: Fault) -> Fault:
            line, key, message = fault.line, fault.key, fault.message
            if match := _OTHER.search(message):
                other = int(match[2])
                if line < begins[0]:  # of an old alias: aliases are read after all accounts
                    line, key, other = other, match[1], line
                message = message.replace(match[0], place_of(other))
            elif line < begins[0]:
                return fault
            message = _OF_RING.sub(lambda ref: place_of(int(ref[1])), message)
            user = users[bisect_right(begins, line) - 1]
            key = key.partition(".")[2].replace("password", "hash")
            return Fault(file, user.line, key, message)

        try:
            added = [dict(user.values) for user in users if "to" not in user.values]
            self._change(appended, lambda entries: [*entries, *added], is_trial=is_trial)
        except SettingsError as error:
            if not begins:  # the old file has faults
                raise
            return [in_import(fault) for fault in error.faults]
        return []

    def remove(self, address: str) -> None:
        """Remove an account, but not its mailbox."""
        self._change(
            lambda text: _without_table(text, _index(_parse(text), address)),
            lambda entries: [table for table in entries if not _is_of(table, address)],
        )

    def set(self, address: str, values: Mapping[str, Any]) -> None:
        """Set keys of an account; None removes a key."""

        def changed(text: str) -> str:
            index = _index(_parse(text), address)
            for key, value in values.items():
                text = _with_key(text, index, key=key, value=value)
            return text

        def expected(table: _Table) -> _Table:
            merged = table | dict(values)
            return {key: value for key, value in merged.items() if value is not None}

        self._change(
            changed,
            lambda entries: [expected(old) if _is_of(old, address) else old for old in entries],
        )

    def client_id_of(self, address: str) -> str:
        """Return the client id of an account, "" if it has none."""
        return str(self._table_of(address).get("client_id", ""))

    def _table_of(self, address: str) -> _Table:
        entries = _parse(self._path.read_text())
        return entries[_index(entries, address)]

    def _change(
        self,
        edit: Callable[[str], str],
        expected: Callable[[list[_Table]], list[_Table]],
        *,
        is_trial: bool = False,
    ) -> None:
        """Replace the text by the result of `edit`. Its accounts must be `expected`; its aliases
        must begin with the old aliases. With `is_trial`, only check it.
        """
        with locked_directory(self._path.parent):
            before = self._path.read_text() if self._path.exists() else ""
            if before.startswith(MARK):
                raise AccountError("the development relay makes accounts by itself, for any token")
            if before:
                self._check(self._path)
            after = edit(before)
            try:
                kept = _aliases(before)
                parsed = _parse(after), _aliases(after)[: len(kept)]
                is_right = parsed == (expected(_parse(before)), kept)
            except tomllib.TOMLDecodeError:
                is_right = False
            if not is_right:
                raise AccountError(f"{self._given}: cannot be edited; expected [[account]] tables")
            self._replace(after, is_trial=is_trial)

    def _replace(self, text: str, *, is_trial: bool) -> None:
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}.part")
        create_file(part, text.encode(), mode=0o600, prepare=self._give_owner)
        try:
            self._check(part)
            if not is_trial:
                part.replace(self._path)
                fsync_path(self._path.parent)
        finally:
            part.unlink(missing_ok=True)

    def _give_owner(self, descriptor: int) -> None:
        """Give the new file the owner and mode of the old file. If there is none, root gives it the
        owner of the directory.
        """
        if self._path.exists():
            before = self._path.stat()
            os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            return
        if not os.geteuid():
            folder = self._path.parent.stat()
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
        os.fchmod(descriptor, 0o640)

    def _check(self, file: Path) -> Mapping[str, str]:
        """Load `file` as the service does. Return the schemes of passwords, by address. Faults name
        the file of the configuration.
        """
        try:
            load = partial(accounts_of, self.settings, file=file)
            if self.is_alone:
                load = partial(load_accounts, file, self.settings.domains, writers=None)
            accounts = load(clock=self._clock, environ=self._environ)
        except SettingsError as error:
            raise SettingsError(
                dataclasses.replace(fault, file=self._given) for fault in error.faults
            ) from None
        accounts.close()
        return accounts.tables.scheme_of


def new_token() -> tuple[str, str]:
    """Return a token, and its form in the file."""
    token = secrets.token_urlsafe(_SECRET_BYTES)
    return token, f"sha256:{digest_of(token).hex()}"


def new_client_id() -> str:
    """Return a client id in the form of Entra's: a random UUID."""
    return str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))


def new_client_secret() -> tuple[str, str]:
    """Return a client secret, and its form in the file."""
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    return secret, hash_of(secret)


def hash_of(password: str) -> str:
    """Return the form of a password in the file. Takes a tenth of a second."""
    return argon2.PasswordHasher().hash(password)


def _parse(text: str) -> list[_Table]:
    tables = tomllib.loads(text).get("account", [])
    return [row for row in tables if isinstance(row, dict)] if isinstance(tables, list) else []


def _aliases(text: str) -> list[_Table]:
    tables: list[_Table] = tomllib.loads(text).get("alias", [])
    return tables


def _is_of(table: _Table, address: str) -> bool:
    return own_mailbox(str(table.get("address", ""))) == address


def _addresses(entries: Sequence[_Table]) -> Iterator[str]:
    for table in entries:
        named = (table.get("address", ""), *table.get("aliases", ()))
        yield from (own_mailbox(str(name)) for name in named)


def _index(entries: Sequence[_Table], address: str) -> int:
    for index, table in enumerate(entries):
        if _is_of(table, address):
            return index
    raise AccountError(f"unknown account {shown(address)}")


def _table(table: Mapping[str, Any]) -> str:
    kind = "alias" if "to" in table else "account"
    return f"[[{kind}]]\n" + "".join(f"{key} = {_toml(field)}\n" for key, field in table.items())


def _gap(text: str) -> str:
    """Return the line ends between a text and a new table after it."""
    if not text:
        return ""
    return "\n" if text.endswith("\n") else "\n\n"


def _toml(value: Any) -> str:
    return str(tomlkit.item(value).as_string())


def _with_key(text: str, index: int, *, key: str, value: Any) -> str:
    """Return `text` with a key of an account set. A new key is put below the address."""
    if key not in _parse(text)[index]:
        if value is None:
            return text
        lines = text.splitlines(keepends=True)
        at = locate(text).get(("account", index, "address"), 0)
        above = lines[at - 1]
        indent = above[: len(above) - len(above.lstrip())]
        lines.insert(at, f"{indent}{key} = {_toml(value)}\n")
        if not above.endswith("\n"):
            lines[at - 1] = f"{above}\n"
        return "".join(lines)
    document = tomlkit.parse(text)
    table: Any = document["account"][index]
    if value is None:
        del table[key]
    else:
        table[key] = value
    return tomlkit.dumps(document)


def _without_table(text: str, index: int) -> str:
    """Return `text` without the lines of an account, but with the comments around it."""
    lines = text.splitlines(keepends=True)
    places = locate(text)
    begin = places[("account", index)] - 1
    # the next table: another account, or an alias
    tables = (line for path, line in places.items() if len(path) == 2 and isinstance(path[1], int))
    end = min((line for line in tables if line - 1 > begin), default=len(lines) + 1) - 1
    while end > begin and lines[end - 1].strip()[:1] in ("", "#"):
        end -= 1
    if begin and not lines[begin - 1].strip() and not "".join(lines[end : end + 1]).strip():
        begin -= 1
    return "".join(lines[:begin] + lines[end:])


def read_users(
    file: Path, octets: bytes, *, alias_domain: str = ""
) -> tuple[Sequence[ImportedUser], Sequence[Fault]]:
    """Return the users of a file, and the faults of other lines. With `alias_domain`, the file has
    aliases, and names without a domain are in this domain.
    """
    if len(octets) > FILE_BYTES_MAX:
        return (), [Fault(file, 0, "", f"found more than {FILE_BYTES_MAX} bytes, expected fewer")]
    try:
        text = octets.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        detail = f"found the byte 0x{octets[error.start]:02x}, expected UTF-8"
        return (), [Fault(file, line, "", detail)]
    if alias_domain:
        rows = list(_alias_file(text, file, alias_domain))
    else:
        is_csv = _IS_CSV.match(text.partition("\n")[0].strip())
        rows = list(_csv(text, file) if is_csv else _passwd(text, file))
    faults = [row for row in rows if isinstance(row, Fault)]
    if not rows:
        kind = "alias" if alias_domain else "account"
        faults = [Fault(file, 0, "", f"found no {kind}, expected one or several")]
    return [row for row in rows if isinstance(row, ImportedUser)], faults


def _csv(text: str, file: Path) -> Iterator[ImportedUser | Fault]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    line = 1
    try:
        for cells in rows:
            if not columns:
                columns = [cell.strip().lower() for cell in cells]
                if wrong := _wrong_header(columns):
                    yield Fault(file, 1, "", f"found {wrong}, expected the header {_HEADER}")
                    return
            elif len(cells) > len(columns):
                expected = f"expected {len(columns)}: a hash with commas is in quotes"
                yield Fault(file, line, "", f"found {len(cells)} columns, {expected}")
            elif any(cells):
                yield _user(line, dict(zip(columns, map(str.strip, cells), strict=False)))
            line = rows.line_num + 1
    except csv.Error as error:
        yield Fault(file, line, "", f"found no CSV ({error}), expected quotes around such a value")


def _wrong_header(columns: Sequence[str]) -> str:
    """Return what is wrong with the columns, "" if nothing is. The text has only one column,
    because without a header the row has a hash.
    """
    if between := _FOREIGN.search(columns[0]):
        return f"{shown(between[0])} between columns"
    for column in columns:
        if column not in COLUMNS or columns.count(column) > 1:
            return f"the column {shown(column)}"
    return "" if "address" in columns else 'no column "address"'


def _passwd(text: str, file: Path) -> Iterator[ImportedUser | Fault]:
    for number, line in enumerate(text.split("\n"), 1):
        address, colon, rest = line.strip().partition(":")
        if not address or address.startswith("#"):
            continue
        if not colon:
            expected = f"ADDRESS:HASH:..., or a CSV with the header {_HEADER}"
            yield Fault(file, number, "", f"found no colon, expected {expected}")
            continue
        fields = rest.split(":", 6)
        match = _QUOTA.search(fields[6]) if len(fields) > 6 else None
        quota = ""
        if match:
            unit = match[3].upper() or ("K" if match[1] == "storage" else "B")
            quota = str(int(match[2]) * 1024 ** _UNITS.index(unit) or "")
        yield _user(number, {"address": address, "hash": fields[0], "quota": quota})


def _alias_file(text: str, file: Path, domain: str) -> Iterator[ImportedUser | Fault]:
    lines: list[tuple[int, list[str]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            if not line[0].isspace() or not lines:
                lines.append((number, []))
            lines[-1][1].append(line.strip())
    for number, parts in lines:
        match = _ALIAS.match(" ".join(parts))
        if match and not match[2] and "@" not in match[1]:  # virtual(5) begins with an address
            match = None
        names = [match[1].replace('"', ""), *_TARGET.findall(match[3])] if match else ()
        if unfit := next(filter(_UNFIT.match, names), "" if match else parts[0]):
            expected = "NAME: ADDRESS, ... (no program, file, :include:, or whole domain)"
            unfit = shown(unfit.strip('"'))
            yield Fault(file, number, "", f"found {unfit}, expected {expected}")
            continue
        address, *to = [
            name if "@" in name.rpartition('"')[2] else f"{name}@{domain}" for name in names
        ]
        yield ImportedUser(number, {"address": address, "to": to})


def _user(line: int, cells: Mapping[str, str]) -> ImportedUser:
    quota = cells.get("quota", "")
    keys = {
        "address": cells.get("address"),
        "password": "" if (hashed := cells.get("hash", "")).startswith(("!", "*")) else hashed,
        "quota": int(quota) if re.fullmatch(r"[0-9]{1,18}", quota) else quota,
        "aliases": [alias for alias in _BETWEEN.split(cells.get("aliases", "")) if alias],
    }
    values = {name: value for name, value in keys.items() if value or name == "address"}
    return ImportedUser(line, values)
