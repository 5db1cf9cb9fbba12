"""`relay config`: what is in force and where it is written, without secrets; what has changed in the file."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from click.testing import CliRunner

from relay.base.settings import tree
from relay.operation.cli.root import cli
from tests.support.relay_config import keys_of
from tests.support.relay_process import RelayProcess
from tests.support.remotes import Remotes

MARKER = "bWFya2VyMTIzNDU2Nzg5MDEyMzQ1Njc4OTA="  # a valid key of each kind
REFERENCE = {"text": MARKER, "file": "${file:secret}", "environment": "${env:SECRET}"}
CONFIG = """\
hostname = "relay.example.test"
state_dir = "${{env:STATE}}"
[mailboxes]
srs_key = "{secret}"
[spool]
url = "postgresql://relay:{reference}@127.0.0.1/relay"
[delivery]
proxy = "http://user:{secret}@127.0.0.1:3128"
retry = ["1m", 90]
[[oauth]]
name = "m365"
provider = "microsoft"
tenant = "contoso.example"
client_id = "1"
client_secret = "{secret}"
[[webhook]]
url = "https://hooks.example.test/mail"
events = ["failed"]
secret = "whsec_{secret}"
"""


def secrets_of(kind: Any) -> Iterator[str]:
    """The keys that the tree marks as secret."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        tables = [table for table in (hint, *get_args(hint)) if dataclasses.is_dataclass(table)]
        for table in tables:
            yield from secrets_of(table)
        if tree.Secret in get_args(hint):
            yield name


def shown(folder: Path, *words: str) -> str:
    arguments = ["config", "show", "--config", str(folder / "relay.toml"), *words]
    variables = {"SECRET": MARKER, "STATE": str(folder / "state")}
    done = CliRunner(env=variables).invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_all_keys_are_shown_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(MARKER)
    for secret in REFERENCE.values():
        reference = secret if secret != MARKER else REFERENCE["file"]
        text = CONFIG.format(secret=secret, reference=reference)
        (tmp_path / "relay.toml").write_text(text)
        names = [
            line.split(" = ")[0] for line in text.splitlines() if MARKER in line or "${" in line
        ]
        assert {*names, "state_dir"} == {*secrets_of(tree.Settings), "state_dir"}
        for words in ((), ("--origin",), ("--changed",), ("--json",)):
            output = shown(tmp_path, *words)
            assert MARKER not in output
            assert str(tmp_path / "state") not in output
        keys = {row["key"]: row["value"] for row in json.loads(shown(tmp_path, "--json"))}
        assert keys["oauth[0].client_secret"] == (secret if secret != MARKER else "(hidden)")
        assert keys["delivery.proxy"] == "http://…@127.0.0.1:3128"
        assert keys["state_dir"] == "${env:STATE}"
        missing = set(keys_of()) - {key.replace("[0]", "") for key in keys}
        tables = (
            "http.tls.",
            "sendmail.",
            "smtp.",
            "domain.",
            "route.",
            "dkim.",
            "tenant.",
            "milter.",
        )
        assert {key for key in missing if not key.startswith(tables)} == set()


def test_each_key_has_its_line_or_is_a_default(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(MARKER)
    text = CONFIG.format(secret="${file:secret}", reference="${file:secret}")
    (tmp_path / "relay.toml").write_text(text)
    lines = shown(tmp_path, "--origin").splitlines()
    assert f'delivery.retry = ["1m", 90]  # {tmp_path}/relay.toml:9' in lines
    assert 'delivery.expire_after = "2d"  # default' in lines
    changed = shown(tmp_path, "--changed").splitlines()
    assert 'delivery.retry = ["1m", 90]' in changed
    assert len(changed) == text.count(" = ")


def test_a_diff_names_what_a_reload_and_a_restart_would_change(remotes: Remotes) -> None:
    with remotes.relay() as relay:
        assert diff(relay) == {"changes": [], "needs_restart": []}
        relay.config["delivery"]["expire_after"] = "1d"
        relay.config["reports"] = {"per_sender": "5/1h"}
        relay.config["observe"]["log"] = "logfmt"
        relay.write_config(relay.config)
        log = [["-", "observe.log", "json"], ["+", "observe.log", "logfmt"]]
        changes = diff(relay)
        assert changes["needs_restart"] == ["observe.log"]
        assert ["-", "delivery.expire_after", "2d"] in changes["changes"]
        assert ["+", "delivery.expire_after", "1d"] in changes["changes"]
        assert [change for change in changes["changes"] if change[1] == "observe.log"] == log
        assert relay.cli("reload").returncode == 0
        assert diff(relay) == {"changes": [], "needs_restart": ["observe.log"]}
        relay.stop()
        assert relay.cli("config", "diff").returncode == 69


def diff(relay: RelayProcess) -> Any:
    done = relay.cli("config", "diff", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
