"""The keys that sign mail: make a new one; what is published for keys in use, and what is wrong.

For `relay dkim` and `relay check`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomlkit
from msgspec import Struct

from relay.base.files import create_file, fsync_path
from relay.base.phrases import table_lines
from relay.base.settings.document import Document, Fault
from relay.base.settings.tree import Settings
from relay.base.socket_address import Address
from relay.transport.routing.dns_client import look_up
from relay.transport.routing.mx_hosts import Answer, NoAnswer, Records
from relay.transport.signing.keys import RSA_BITS_ADVISED, KeyRing, SigningKey
from relay.transport.signing.record import (
    ComparedRecord,
    RecordVerdict,
    compare_record,
    key_record,
    txt_strings,
    zone_line,
)

DNS_TIMEOUT_S = 3.0
_Owner = tuple[int, int]  # user and group


def default_files(base: Path, domain: str, selector: str) -> tuple[Path, Path]:
    """Return the file for a new key, and the file to use if that exists. `base` has relay.toml."""
    folder = base / "dkim"
    return folder / f"{selector}.pem", folder / f"{domain}-{selector}.pem"


def write_key(pem: bytes, files: Sequence[Path], settings: Settings) -> Path:
    """Write a private key durably into the first of `files` that does not exist; return the file.

    Root makes the owner of state_dir the owner of the file, and of a directory that it creates.
    Raises FileExistsError if all files exist, OSError.
    """
    owner = _owner_of_state(settings) if not os.geteuid() else None

    def give(file: int | Path) -> None:
        if owner is not None:
            os.chown(file, *owner)

    folder = files[0].parent
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        give(folder)
        fsync_path(folder.parent)
    try:
        create_file(files[0], pem, mode=0o600, prepare=give)
    except FileExistsError:
        if len(files) == 1:
            raise
        return write_key(pem, files[1:], settings)
    fsync_path(files[0].parent)
    return files[0]


def _owner_of_state(settings: Settings) -> _Owner | None:
    try:
        status = settings.state_dir.stat()
    except FileNotFoundError:
        return None
    return status.st_uid, status.st_gid


def unreadable_for_service(file: Path, settings: Settings) -> str:
    """Return why the service cannot read a new key, or ""."""
    user = file.stat().st_uid
    service = _owner_of_state(settings)
    if service is None and not user:
        reason = f"{settings.state_dir}, whose owner would get it, does not exist yet"
        return f"{file} belongs to root: {reason}"
    if service is None or service[0] == user:
        return ""
    return f"{file} belongs to the user {user}, the service is the user {service[0]}"


def key_document(key: SigningKey) -> dict[str, Any]:
    """Return the JSON of a key, as `relay dkim` prints it."""
    return {
        "domain": key.domain,
        "selector": key.selector,
        "algorithm": key.private.algorithm,
        "bits": key.private.bits,
        "file": str(key.file.absolute()),
        "name": key.name,
        "record": key_record(key.private),
    }


def new_key_document(key: SigningKey, config: Path) -> dict[str, Any]:
    """Return the JSON of a new key, with the strings of its record and the lines for `config`."""
    document = key_document(key)
    strings = [part.decode() for part in txt_strings(document["record"])]
    return {**document, "strings": strings, "config": _entry(key, config)}


def new_key_lines(key: SigningKey, config: Path) -> list[str]:
    """Return what to publish, and what to add to the configuration."""
    return [
        f"{key.file}: {key.private.algorithm}, {key.private.bits} bits",
        "",
        "Publish in the DNS:",
        zone_line(key.name, key_record(key.private)),
        "",
        f"Add to {config}:",
        *_entry(key, config).splitlines(),
    ]


def _entry(key: SigningKey, config: Path) -> str:
    """Return the [[dkim]] table of a key; paths in `config` are relative to its directory."""
    file, base = key.file.absolute(), config.absolute().parent
    path = file.relative_to(base) if file.is_relative_to(base) else file
    values = {"domain": key.domain, "selector": key.selector, "key": str(path)}
    lines = [f"{name} = {tomlkit.item(value).as_string()}\n" for name, value in values.items()]
    return "".join(["[[dkim]]\n", *lines])


_PUBLISHED = {RecordVerdict.OK: "yes", RecordVerdict.MISSING: "no", RecordVerdict.WRONG: "differs"}


class ShownKey(Struct, frozen=True):
    """A key, whether its record is published, and why it is wrong or unknown."""

    key: SigningKey
    published: str  # yes, no, differs, or unknown
    reasons: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the JSON of `relay dkim show`."""
        document = {**key_document(self.key), "until": self.key.last_day or None}
        return {**document, "published": self.published, "reasons": self.reasons}


async def shown_keys(keys: Sequence[SigningKey], settings: Settings) -> list[ShownKey]:
    """Return the keys with the state of their records; ask the DNS for all at the same time."""
    timeout_s = min(DNS_TIMEOUT_S, settings.dns.timeout)
    compared = await _compared(keys, settings.dns.nameservers, timeout_s=timeout_s)
    return [_shown(key, record) for key, record in zip(keys, compared, strict=True)]


async def _compared(
    keys: Sequence[SigningKey], nameservers: Sequence[Address], *, timeout_s: float
) -> list[ComparedRecord | NoAnswer]:
    """Return the published record of each key, compared with the key."""
    questions = [(key.name, "TXT") for key in keys]
    answers = await look_up(nameservers, questions, timeout_s=timeout_s)
    return [_compare(key, answers[key.name, "TXT"]) for key in keys]


def _compare(key: SigningKey, answer: Answer) -> ComparedRecord | NoAnswer:
    if isinstance(answer, NoAnswer):
        return answer
    return compare_record(answer.values if isinstance(answer, Records) else (), key.private)


def _shown(key: SigningKey, compared: ComparedRecord | NoAnswer) -> ShownKey:
    if isinstance(compared, NoAnswer):
        return ShownKey(key, "unknown", (compared.text,))
    return ShownKey(key, _PUBLISHED[compared.verdict], tuple(map(str, compared.faults)))


def shown_lines(keys: Sequence[ShownKey], *, now_us: int) -> list[str]:
    """Return the keys as a table, with the file and the record of each."""
    head = ("DOMAIN", "SELECTOR", "ALGORITHM", "BITS", "UNTIL", "PUBLISHED")
    first, *rows = table_lines([head, *(_cells(key, now_us) for key in keys)])
    lines = [first]
    for status, row in zip(keys, rows, strict=True):
        record = zone_line(status.key.name, key_record(status.key.private))
        remarks = (*status.reasons, str(status.key.file), record)
        lines += [row, *(f"    {text}" for text in remarks)]
    return lines


def _cells(status: ShownKey, now_us: int) -> tuple[str, ...]:
    key = status.key
    until = (key.last_day or "-") + ("" if key.is_usable(now_us) else " (ended)")
    private = key.private
    return key.domain, key.selector, private.algorithm, str(private.bits), until, status.published


def key_warnings(ring: KeyRing, place: Document, *, now_us: int) -> Iterator[Fault]:
    """Yield the faults of the keys; `ring` has them in the order of the document `place`."""
    ending = {key.name for key in ring.ending(now_us)}
    for number, key in enumerate(ring.keys):
        if key.private.kind == "rsa" and key.private.bits < RSA_BITS_ADVISED:
            fault = f"{key.file}: found an RSA key of {key.private.bits} bits"
            text = f"{fault}, expected {RSA_BITS_ADVISED} or more: receivers may not accept it"
            yield place.fault(("dkim", number, "key"), text)
        if key.name in ending:
            does = "goes out unsigned" if not key.is_usable(now_us) else "then goes out unsigned"
            text = (
                f"found {key.last_day}, after which no key of {key.domain} signs: its mail {does}"
            )
            yield place.fault(("dkim", number, "until"), text)


async def record_warnings(
    ring: KeyRing, place: Document, nameservers: Sequence[Address], *, now_us: int, timeout_s: float
) -> list[Fault]:
    """Ask the DNS for the record of each usable key; return the faults of these records."""
    usable = {number: key for number, key in enumerate(ring.keys) if key.is_usable(now_us)}
    compared = await _compared([*usable.values()], nameservers, timeout_s=timeout_s)
    return [
        place.fault(("dkim", number, "selector"), f"{key.name}: {text}")
        for (number, key), record in zip(usable.items(), compared, strict=True)
        for text in _record_faults(record)
    ]


def _record_faults(compared: ComparedRecord | NoAnswer) -> list[str]:
    if isinstance(compared, NoAnswer):
        return [f"the record cannot be compared: {compared.text}"]
    if compared.verdict is RecordVerdict.MISSING:
        return ["found no record, expected that of the key: no receiver can verify its signatures"]
    return [str(fault) for fault in compared.faults]
