"""Read the keys of all [[dkim]] entries, or say what is wrong with which."""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

from relay.settings.document import Fault, SettingsError, read_document
from relay.settings.tree import DkimKey
from relay.signing.keys import KeyRing, PrivateKey, SigningKey

_EPOCH = date(1970, 1, 1)
_DAY_US = 86_400_000_000


def load_keys(entries: Sequence[DkimKey], config: Path | None = None) -> KeyRing:
    """Return the keys of `entries`. Raises SettingsError; its lines are those of `config`."""
    keys, faults = [], []
    for number, entry in enumerate(entries):
        try:
            private = read_key(entry.key)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            faults.append((number, f"found {reason}, expected a private key in PEM"))
            continue
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
    """Return the private key in a file. Raises OSError, ValueError with what was found."""
    from relay.signing import private_keys  # noqa: PLC0415 -- a large library

    return private_keys.read_pem(file.read_bytes())


def ends_us(until: str) -> int | None:
    """Return the first microsecond (wall time) after the day `until`, UTC; None without a day."""
    if not until:
        return None
    return (date.fromisoformat(until) + timedelta(days=1) - _EPOCH).days * _DAY_US
