"""Settings: the configuration, and the environment, each read once into frozen values.

On the path: before step 1; app hands every room its branch of the tree.
Touches: relay.toml and the files it names, and the environment.
Promises: a tree that exists is right; a file that is wrong tells all its faults, with their lines.
"""

from relay.settings.document import Fault, SettingsError
from relay.settings.environment import Environment, read_environment, shipped
from relay.settings.reader import load
from relay.settings.tree import Settings

__all__ = [
    "Environment",
    "Fault",
    "Settings",
    "SettingsError",
    "load",
    "read_environment",
    "shipped",
]
