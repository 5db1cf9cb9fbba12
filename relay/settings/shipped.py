"""Find the files that come with Relay: its policies and its configuration.

On the path: `relay dev` and the tests read what is shipped.
Holds: the same names in a checkout and in an installed wheel.
Fails: FileNotFoundError when the installation is incomplete.
Standards: none.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """Return the folder or file `name` ("policies", "conf"). Raises FileNotFoundError."""
    for place in (_PACKAGE / "_shipped" / name, _PACKAGE.parent / name):
        if place.exists():
            return place
    raise FileNotFoundError(f"{name} is missing: this installation of Relay is incomplete")
