"""Settings: the configuration and the environment, each read once into frozen values.

`load` (in `reader`) reads relay.toml and the files it names, checks them, and returns Settings. If
a file has faults, it raises SettingsError with all of them and their line numbers. `tree` has
every key with its type, limits and default.
"""
