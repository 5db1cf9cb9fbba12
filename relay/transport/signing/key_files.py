"""Read the keys of all [[dkim]] entries, or raise the faults of the entries."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from relay.base.files import read_key_file
from relay.base.settings.document import Fault, SettingsError, read_document
from relay.base.settings.tree import DkimKey
from relay.transport.signing.keys import DAY_US, KeyRing, PrivateKey, SigningKey

_EPOCH = date(1970, 1, 1)
_EXPECTED = "a file with a private key"


def load_keys(entries: Sequence[DkimKey], config: Path | None = None) -> KeyRing:
    """Return the keys of `entries`. Blocks. Raises SettingsError with all faults.

    With `config`, the faults have its lines. A file that several entries name is read once. The
    size of relay.toml limits the number of entries to 23,000, with 200 MB of keys.
    """
    by_file: dict[Path, PrivateKey | str] = {}
    for file in dict.fromkeys([entry.key for entry in entries]):
        try:
            by_file[file] = read_key(file)
        except ValueError as error:
            by_file[file] = str(error)
    keys, faults = [], []
    for number, entry in enumerate(entries):
        match by_file[entry.key]:
            case str(fault):
                faults.append((number, fault))
            case private:
                end = ends_us(entry.until)
                keys.append(SigningKey(entry.domain, entry.selector, private, entry.key, end))
    if faults:
        raise SettingsError(_placed(faults, entries, config))
    return KeyRing(keys)


def _placed(
    faults: Sequence[tuple[int, str]], entries: Sequence[DkimKey], config: Path | None
) -> list[Fault]:
    if config is None:
        return [Fault(entries[number].key, 0, "", text) for number, text in faults]
    document = read_document(config)
    return [
        document.fault(("dkim", number, "key"), f"{entries[number].key}: {text}")
        for number, text in faults
    ]


def read_key(file: Path) -> PrivateKey:
    """Return the private key in a file. Blocks. Raises ValueError: what was found, and expected."""
    pem = read_key_file(file, expected=_EXPECTED, is_secret=True)
    from relay.transport.signing import private_keys  # noqa: PLC0415 -- a large library

    try:
        return private_keys.read_pem(pem)
    except ValueError as error:
        raise ValueError(f"found {error}, expected {private_keys.EXPECTED}") from None


def ends_us(until: str) -> int | None:
    """Return the first microsecond (wall time) after the day `until`, UTC; None without a day."""
    if not until:
        return None
    return ((date.fromisoformat(until) - _EPOCH).days + 1) * DAY_US
