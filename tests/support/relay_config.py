"""The configuration and the accounts of a relay under test, as the files' text.

Every port is 0, so the relay takes free ones; times are short. See TOML 1.0, as much as these
files need.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from relay.base.settings.reader import load
from relay.base.settings.tree import RELOADED, Settings
from relay.base.socket_address import Address

DOMAIN = "example.test"
PEOPLE = ("alice", "bob", "carol", "dave")
OPERATOR = "operator"


def keys_of(
    kind: type = Settings, prefix: str = "", *, only_reloaded: bool = False
) -> Iterator[str]:
    """Every key of the settings such as "smtp.tls.key", without the indexes of tables, in their order."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name == "further":
            continue  # the other tables of a list, no key
        hint, left_out = hints[field.name], only_reloaded and field.metadata != RELOADED
        table = next((t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)), None)
        if table is not None and table is not Address:
            yield from keys_of(table, f"{prefix}{field.name}.", only_reloaded=left_out)
        elif not left_out:
            yield prefix + field.name


def configuration(dns: Address | None, mx_port: int) -> dict[str, Any]:
    """What a relay under test has unless the test says otherwise; 127.0.0.1 may relay, no other address."""
    return {
        "hostname": "relay.example.test",
        "state_dir": "state",
        "http": {"listen": ["127.0.0.1:0"]},
        "smtp": [{"listen": "127.0.0.1:0", "trusted_networks": ["127.0.0.1/32"]}],
        "mailboxes": {"domains": [DOMAIN], "root": "mail", "accounts": "accounts.toml"},
        "dns": {"nameservers": [str(dns or "127.0.0.1:9")], "timeout": "20s" if dns else "0.05s"},
        "delivery": {"port": mx_port, "tls": "none", "retry": [0.2, 0.2, 0.5]},
        "policy": {"directory": "policies"},
        "pressure": {"commit_latency": "1m"},  # whatever else the machine has to do
        "observe": {"log": "json"},
    }


def account(name: str, **more: Any) -> dict[str, Any]:
    """An account whose token and password are its name."""
    secret = f"plain:{name}"
    return {"address": f"{name}@{DOMAIN}", "password": secret, "token": secret, **more}


def to_toml(table: Mapping[str, Any]) -> str:
    """Enough TOML for configuration files: values, tables, arrays of tables, inline tables below them."""
    values: list[str] = []
    tables: list[str] = []
    for name, value in table.items():
        if isinstance(value, Mapping):
            tables.append(f"\n[{name}]\n" + _lines(value))
        elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            tables += [f"\n[[{name}]]\n" + _lines(one) for one in value]
        else:
            values.append(f"{name} = {_inline(value)}\n")
    return "".join(values + tables)


def written_settings(directory: Path, changes: Mapping[str, Any]) -> Settings:
    """Write a configuration with the account alice and some keys changed, and load it."""
    base = configuration(None, 9) | {"delivery": {"retry": [0.2], "shutdown_grace": "1s"}}
    (directory / "relay.toml").write_text(to_toml(changed(base, changes)))
    accounts = directory / "accounts.toml"
    accounts.write_text(to_toml({"account": [account("alice")]}))
    accounts.chmod(0o600)
    (directory / "policies").mkdir(exist_ok=True)
    return load(directory / "relay.toml", {})


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{name} = {_inline(value)}\n" for name, value in table.items())


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_inline(one)}" for name, one in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def changed(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `change`, tables key by key."""
    result = dict(base)
    for name, value in change.items():
        old = result.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            result[name] = changed(old, value)
        else:
            result[name] = value
    return result
