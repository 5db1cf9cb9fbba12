"""Time zones by name: a name of the IANA database, or the name that Windows and Exchange use.

Graph's clients write both kinds. The Windows names and their zones are those of CLDR 47,
windowsZones.xml, territory 001, in windows_zones.txt. The rules of a zone come from the system's
database, or from the package tzdata if there is none. Graph uses it, and the mailbox room for its
settings file.
"""

import re
from pathlib import Path
from zoneinfo import ZoneInfo

_IANA_NAME = re.compile(r"[A-Za-z]{1,32}+(?:/?[A-Za-z0-9_+-]{1,32}+){0,4}+")
# Files of a database that are no zones: the zone of the host, and zones that count leap seconds.
_NO_ZONES = frozenset(("localtime", "posixrules", "Factory", "right", "posix"))


def time_zone(name: str) -> ZoneInfo:
    """Return the zone of an IANA name, or of a Windows name in any case.

    Raises ValueError, with a text for users.
    """
    iana_name = _IANA_NAMES.get(name.casefold(), name)
    if _IANA_NAME.fullmatch(iana_name) and iana_name.partition("/")[0] not in _NO_ZONES:
        try:
            return ZoneInfo(iana_name)
        except (LookupError, ValueError, OSError):  # OSError: "Europe" is a directory
            pass
    excerpt = name if len(name) <= _SHOWN_MAX else name[:_SHOWN_MAX] + "…"
    raise ValueError(
        f"found {excerpt!r}, expected a time zone such as Europe/Berlin or W. Europe Standard Time"
    )


_SHOWN_MAX = 100
WINDOWS_ZONES = dict(
    line.split(": ")
    for line in Path(__file__).with_name("windows_zones.txt").read_text().splitlines()
)
_IANA_NAMES = {name.casefold(): iana for name, iana in WINDOWS_ZONES.items()}
