"""`relay config`: what is in force and where it is written, without secrets; what has changed in the file."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from click.testing import CliRunner

from relay.base.settings import tree
from relay.base.settings.reader import load
from relay.operation.cli.root import cli
from tests.support.relay_config import keys_of
from tests.support.relay_process import RelayProcess
from tests.support.remotes import Remotes

MARKER = "bWFya2VyMTIzNDU2Nzg5MDEyMzQ1Njc4OTA="  # a valid key of each kind
REFERENCE = {"text": MARKER, "file": "${file:secret}", "environment": "${env:SECRET}"}
SHORT = 'hostname = "relay.example.test"\nstate_dir = "state"\n'
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
scope = "mail"
client_id = "1"
client_secret = "{secret}"
token_url = "https://login.example.test/token?code={secret}"
[[webhook]]
url = "https://hooks.example.test/{secret}?{secret}"
events = ["failed"]
secret = "whsec_{secret}"
"""


def secrets_of(kind: Any) -> Iterator[str]:
    """The keys that the tree marks as secret."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        types = [one for one in (hint, *get_args(hint)) if isinstance(one, type)]
        tables = [one for one in types if dataclasses.is_dataclass(one)]
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
        assert {*names, "state_dir"} == {*secrets_of(tree.Settings), "state_dir", "token_url"}
        for words in ((), ("--origin",), ("--changed",), ("--json",)):
            output = shown(tmp_path, *words)
            assert MARKER not in output
            assert "https://hooks.example.test/…" in output
            assert "https://login.example.test/token?…" in output
            assert str(tmp_path / "state") not in output
        keys = {row["key"]: row["value"] for row in json.loads(shown(tmp_path, "--json"))}
        assert keys["oauth[0].client_secret"] == (secret if secret != MARKER else "(hidden)")
        assert keys["delivery.proxy"] == "http://…@127.0.0.1:3128"
        assert keys["state_dir"] == "${env:STATE}"
        missing = set(keys_of()) - {key.replace("[0]", "") for key in keys}
        tables = (
            "http.tls",  # has no value, as sendmail, suppression and observe.metrics
            "observe.metrics",
            "sendmail",
            "suppression.",
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


def test_what_is_shown_is_what_the_file_takes(tmp_path: Path) -> None:
    """A file of all lines is the same configuration."""
    file = tmp_path / "relay.toml"
    file.write_text(f"{SHORT}delivery.retry = [90.5]\ndelivery.expire_after = 12345678.0\n")
    before = load(file, {})
    lines = shown(tmp_path)
    assert "delivery.retry = [90.5]\ndelivery.shutdown_grace" in lines
    assert "delivery.expire_after = 12345678.0\n" in lines
    file.write_text(lines)
    assert load(file, {}) == before


def test_tables_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    routes = "".join(f'[[route]]\ndomain = "d{n}.test"\nnext_hop = "mx"\n' for n in range(12))
    (tmp_path / "relay.toml").write_text(SHORT + routes)
    lines = [line for line in shown(tmp_path).splitlines() if ".domain = " in line]
    assert lines == [f'route[{n}].domain = "d{n}.test"' for n in range(12)]


def test_a_diff_names_what_a_reload_and_a_restart_would_change(remotes: Remotes) -> None:
    with remotes.relay() as relay:
        assert diff(relay) == {"changes": [], "needs_restart": []}
        first = copy.deepcopy(relay.config)
        relay.config["delivery"]["expire_after"] = "1d"
        relay.config["delivery"]["delay_warning_after"] = "4h"  # the default
        relay.config["reports"] = {"per_sender": "5/1h"}
        relay.config["observe"]["log"] = "logfmt"
        relay.write_config(relay.config)
        log = [["-", "observe.log", "json"], ["+", "observe.log", "logfmt"]]
        changes = diff(relay)
        assert changes["needs_restart"] == ["observe.log"]
        assert ["-", "delivery.expire_after", "2d"] in changes["changes"]
        assert ["+", "delivery.expire_after", "1d"] in changes["changes"]
        assert [change for change in changes["changes"] if change[1] == "observe.log"] == log
        assert "delivery.delay_warning_after" not in {key for _, key, _ in changes["changes"]}
        assert relay.cli("reload").returncode == 0
        assert diff(relay) == {"changes": [], "needs_restart": ["observe.log"]}
        relay.write_config(first)
        assert diff(relay)["needs_restart"] == []
        relay.stop()
        assert relay.cli("config", "diff").returncode == 69


def test_a_diff_after_files_have_moved(remotes: Remotes) -> None:
    """What the service read is faulty today: a directory is elsewhere, and a secret."""
    with remotes.relay() as relay:
        hook = {"url": "https://hooks.example.test/", "events": ["failed"]}
        for name in ("old", "new"):
            (relay.folder / name).mkdir()
            (relay.folder / f"{name}.key").write_text(f"whsec_{MARKER}")
            relay.config["reports"] = {"templates": name}
            relay.config["webhook"] = [hook | {"secret": f"${{file:{name}.key}}"}]
            relay.write_config(relay.config)
            assert name == "new" or relay.cli("reload").returncode == 0
        (relay.folder / "old").rmdir()
        (relay.folder / "old.key").unlink()
        assert diff(relay)["changes"] == [
            ["-", "reports.templates", "old"],
            ["+", "reports.templates", "new"],
            ["-", "webhook[0].secret", "${file:old.key}"],
            ["+", "webhook[0].secret", "${file:new.key}"],
        ]


def diff(relay: RelayProcess) -> Any:
    done = relay.cli("config", "diff", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
