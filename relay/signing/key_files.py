"""Read the keys of all [[dkim]] entries, or say what is wrong with which."""

import os
import stat
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from relay.settings.document import Fault, SettingsError, read_document
from relay.settings.tree import DkimKey
from relay.signing.keys import DAY_US, KeyRing, PrivateKey, SigningKey

_EPOCH = date(1970, 1, 1)
_FILE_BYTES_MAX = 64 * 1024  # an RSA key of 4,096 bits has 3.3 KB
_EXPECTED = "a file with a private key"


def load_keys(entries: Sequence[DkimKey], config: Path | None = None) -> KeyRing:
    """Return the keys of `entries`. Blocks. Raises SettingsError with all faults; their lines are
    those of `config`.

    A file that several entries name is read once. The size of relay.toml limits the number of
    entries, to 23,000 with 200 MB of keys.
    """
    found: dict[Path, PrivateKey | str] = {}
    for file in dict.fromkeys([entry.key for entry in entries]):
        try:
            found[file] = read_key(file)
        except ValueError as error:
            found[file] = str(error)
    keys, faults = [], []
    for number, entry in enumerate(entries):
        match found[entry.key]:
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
    """Return the private key in a file. Blocks. Raises ValueError: what was found and expected."""
    pem = _read(file)
    from relay.signing import private_keys  # noqa: PLC0415 -- a large library

    try:
        return private_keys.read_pem(pem)
    except ValueError as error:
        raise ValueError(f"found {error}, expected {private_keys.EXPECTED}") from None


def _read(file: Path) -> bytes:
    """Return the content of a file that others cannot read. Raises ValueError."""
    try:
        with open(file, "rb", opener=_open_at_once) as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"found no regular file, expected {_EXPECTED}")
            if mode & (stat.S_IROTH | stat.S_IWOTH):
                raise ValueError(
                    f"found mode {stat.S_IMODE(mode):04o}, expected one with which others cannot "
                    "read it (chmod o-rwx)"
                )
            octets = stream.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ValueError(f"found no such file, expected {_EXPECTED}") from None
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        text = f"found one that cannot be read ({reason}), expected one that the service can read"
        raise ValueError(text) from None
    if len(octets) > _FILE_BYTES_MAX:
        raise ValueError(f"found more than {_FILE_BYTES_MAX} bytes, expected {_EXPECTED}")
    return octets


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for a writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def ends_us(until: str) -> int | None:
    """Return the first microsecond (wall time) after the day `until`, UTC; None without a day."""
    if not until:
        return None
    return ((date.fromisoformat(until) - _EPOCH).days + 1) * DAY_US
