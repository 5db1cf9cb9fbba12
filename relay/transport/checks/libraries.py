"""The libraries of the extra [checks]."""

from importlib.util import find_spec

_LIBRARIES = {"dkim": "dkimpy", "nacl": "pynacl", "spf": "pyspf"}


def missing_libraries() -> str:
    """Return which libraries are not installed and what installs them, "" if all are."""
    missing = [name for module, name in _LIBRARIES.items() if find_spec(module) is None]
    return (
        f"sender_checks needs {' and '.join(missing)}: pip install 'graph-relay[checks]', or use "
        "the Debian package, which has them"
        if missing
        else ""
    )
