"""Settings: the configuration and the environment, each read once into frozen values.

If a file has faults, SettingsError has all of them with their line numbers.

- `reader`: reads relay.toml into typed values, load(); faults of a single key: unknown, wrong type
- `tree`: every key of relay.toml with its type, limits and default
- `removed_keys`: the keys that releases have removed, which are warnings
- `values`: the syntax of durations, sizes, rates, domains, next hops; ${env:NAME} and ${file:PATH}
- `postgres_url`: the syntax of spool.url for PostgreSQL: hosts, TLS, password
- `validation`: values against each other: listeners, certificates, TLS of routes, hidden routes
- `listed_keys`: all keys with their values and lines, for `relay config`; what of them is hidden
- `reloadable_keys`: which keys a reload (SIGHUP) applies, and which need a restart
- `document`: a TOML file with the line of each key; FILE:LINE: KEY: MESSAGE
- `environment`: the environment variables that Relay reads; where policies/ and conf/ are installed

Elsewhere: which file is the configuration: `relay/operation/app/configuration.py`; accounts.toml:
`relay/base/accounts/accounts_file.py`; rule files: `relay/transport/policy/rule_files.py`.
"""
