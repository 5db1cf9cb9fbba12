"""`relay account import`: read users from a CSV file, or from a passwd-file of Dovecot.

A row becomes the keys of an [[account]]; whether their values are valid is decided where
accounts.toml is read. A CSV has a header with the names of its columns. A passwd-file has
user:password:uid:gid:gecos:home:shell:fields (passwd(5)), of which the quota in the extra fields is
taken, in the words of Dovecot 2.3 and 2.4. Both begin with a byte order mark or not. A hash that
begins with ! or * is that of a locked user (passwd(1)), who gets no password.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from relay.accounts.directory import FILE_BYTES_MAX
from relay.base.phrases import shown
from relay.settings.document import Fault

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
    """A row: its line in the file, and keys of an [[account]]."""

    line: int
    values: Mapping[str, Any]


def read_users(file: Path, octets: bytes) -> tuple[Sequence[ImportedUser], Sequence[Fault]]:
    """Return the users of a file, and the faults of other lines."""
    if len(octets) > FILE_BYTES_MAX:
        return (), [Fault(file, 0, "", f"found more than {FILE_BYTES_MAX} bytes, expected fewer")]
    try:
        text = octets.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        found = f"found the byte 0x{octets[error.start]:02x}, expected UTF-8"
        return (), [Fault(file, line, "", found)]
    is_csv = _IS_CSV.match(text.partition("\n")[0].strip())
    rows = list(_csv(text, file) if is_csv else _passwd(text, file))
    faults = [one for one in rows if isinstance(one, Fault)]
    if not rows:
        faults = [Fault(file, 0, "", "found no account, expected one or several")]
    return [one for one in rows if isinstance(one, ImportedUser)], faults


def _csv(text: str, file: Path) -> Iterator[ImportedUser | Fault]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    line = 1
    try:
        for cells in rows:
            if not columns:
                columns = [one.strip().lower() for one in cells]
                if found := _wrong_header(columns):
                    yield Fault(file, 1, "", f"found {found}, expected the header {_HEADER}")
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
    """Return what is wrong with the columns, "" if nothing is; no more of them than a name, as a
    row without a header has a hash.
    """
    if between := _FOREIGN.search(columns[0]):
        return f"{shown(between[0])} between columns"
    for one in columns:
        if one not in COLUMNS or columns.count(one) > 1:
            return f"the column {shown(one)}"
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
        found = _QUOTA.search(fields[6]) if len(fields) > 6 else None
        quota = ""
        if found:
            unit = found[3].upper() or ("K" if found[1] == "storage" else "B")
            quota = str(int(found[2]) * 1024 ** _UNITS.index(unit) or "")
        yield _user(number, {"address": address, "hash": fields[0], "quota": quota})


def _user(line: int, cells: Mapping[str, str]) -> ImportedUser:
    quota = cells.get("quota", "")
    given = {
        "address": cells.get("address"),
        "password": "" if (hashed := cells.get("hash", "")).startswith(("!", "*")) else hashed,
        "quota": int(quota) if re.fullmatch(r"[0-9]{1,18}", quota) else quota,
        "aliases": [one for one in _BETWEEN.split(cells.get("aliases", "")) if one],
    }
    values = {name: value for name, value in given.items() if value or name == "address"}
    return ImportedUser(line, values)
