"""Put in what ${env:NAME} and ${file:PATH} stand for.

On the path: reader expands every text of a file before it reads it.
Holds: what is put in is never expanded again, and is never shown by a fault.
Fails: ValueError, whose text is only what was expected.
Standards: none.
"""

import re
from collections.abc import Mapping
from pathlib import Path

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_FILE_SIZE_MAX = 64 * 1024


def has_reference(text: str) -> bool:
    """Whether something in `text` is to be replaced."""
    return "${" in text


def expand(text: str, *, base: Path, environ: Mapping[str, str]) -> str:
    """Return `text` with its references replaced; PATH is relative to `base`.

    A file's last end of line is left out. Raises ValueError.
    """
    return _REFERENCE.sub(lambda found: _meaning(found[1], base, environ), text)


def _meaning(reference: str, base: Path, environ: Mapping[str, str]) -> str:
    kind, _, name = reference.partition(":")
    if kind == "env" and name:
        if name not in environ:
            raise ValueError(f"the environment variable {name} to be set")
        return _as_utf_8(environ[name], name)
    if kind == "file" and name:
        return _read(base / name, name)
    raise ValueError("${env:NAME} or ${file:PATH}")


def _as_utf_8(value: str, name: str) -> str:
    """Return an environment variable that has no bytes which Python could only smuggle in."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the environment variable {name} to be UTF-8") from None
    return value


def _read(file: Path, name: str) -> str:
    try:
        if not file.is_file():  # never wait on a pipe or a device
            raise FileNotFoundError(None, "no such file")
        with file.open("rb") as stream:
            content = stream.read(_FILE_SIZE_MAX + 1)
    except OSError as error:
        raise ValueError(f"the file {name} to be readable ({error.strerror})") from None
    if len(content) > _FILE_SIZE_MAX:
        raise ValueError(f"the file {name} to have at most {_FILE_SIZE_MAX} bytes")
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(f"the file {name} to be UTF-8") from None
