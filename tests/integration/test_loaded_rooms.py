"""A relay loads the rooms that its configuration needs, and all of them at the start."""

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from relay.transport.signing.private_keys import new_key, write_pem
from tests.integration.test_reload import hang_up
from tests.support.dev_process import run_dev
from tests.support.ports import free_port
from tests.support.relay_process import ROOT, until

NO_HTTP = {"http": {"listen": [], "pages": True}}
ONLY_FOR_HTTP = re.compile(
    r"relay\.front_door\.(pages|graph)\b|relay\.development\b|(joserfc|cryptography|nh3)\b"
)
FOR_POSTGRES = re.compile(r"asyncpg|relay\.store\.spool\.postgres")
ANONYMOUS_KIB_MAX = 64 * 1024  # 44 MiB with Python 3.11; the largest message of a rule test has 26


def test_without_http_listeners_a_relay_loads_neither_pages_nor_graph(serve):
    relay = serve(config=NO_HTTP, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert relay.ready["http"] == relay.ready["https"] == []
    relay.submit("app@example.test", ["bob@example.test"])
    until("delivered", lambda: relay.maildir("bob"))
    names = set(re.findall(r"^import time: .*\| +(\S+)$", relay.log, re.MULTILINE))
    assert "relay.transport.ingress.smtp_session" in names
    assert sorted(filter(ONLY_FOR_HTTP.match, names)) == []
    assert "apsw" in names
    assert sorted(filter(FOR_POSTGRES.match, names)) == []
    status = Path(f"/proc/{relay.process.pid}/status").read_text()
    assert int(re.search(r"RssAnon:\s+(\d+)", status)[1]) < ANONYMOUS_KIB_MAX


def test_a_development_relay_loads_nothing_of_postgresql(short_path):
    done = run_dev(short_path, "--once", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    names = set(re.findall(r"^import time: .*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "relay.store.spool.sqlite.spool" in names
    assert sorted(filter(FOR_POSTGRES.match, names)) == []


def test_the_library_for_keys_is_loaded_by_the_reload_that_brings_a_key(tmp_path, serve):
    file = tmp_path / "s1.pem"
    file.write_bytes(write_pem(new_key("rsa")))
    file.chmod(0o600)
    key = {"domain": "example.test", "selector": "s1", "key": str(file)}
    library = re.compile(r"^import time: .*\| +cryptography$", re.MULTILINE)
    relay = serve(config=NO_HTTP, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    hang_up(relay, '"event":"reloaded"')
    assert not library.search(relay.log)
    relay.write_config(relay.config | {"dkim": [key]})
    hang_up(relay, '"event":"reloaded"')
    assert library.search(relay.log)
    content = b"From: alice@example.test\r\nSubject: x\r\n\r\nx\r\n"
    relay.submit("alice@example.test", ["bob@example.test"], content)
    [mail] = until("delivered", lambda: relay.maildir("bob"))
    assert "d=example.test" in mail["DKIM-Signature"]
    relay.write_config(relay.config)
    hang_up(relay, '"event":"reloaded"')
    relay.submit("alice@example.test", ["carol@example.test"], content)
    [mail] = until("delivered", lambda: relay.maildir("carol"))
    assert mail["DKIM-Signature"] is None


def test_without_http_listeners_commands_and_metrics_work(serve):
    port = free_port()
    relay = serve(config=NO_HTTP | {"observe": {"metrics": f"127.0.0.1:{port}"}})
    relay.submit("app@example.test", ["bob@example.test"])
    assert relay.cli("trace", "last").returncode == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert b"relay_messages_accepted_total" in answer.read()
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1.0/me")
    refused.value.close()
    assert relay.stop() == 0


def test_what_a_room_lacks_is_reported_at_the_start(tmp_path, serve):
    (tmp_path / "nh3.py").write_text("raise ModuleNotFoundError(\"No module named 'nh3'\")")
    lacking = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    relay = serve(config={"http": {"pages": True}}, environment=lacking, start=False)
    relay.start(wait=False)
    assert relay.wait_end() == 69
    text = "relay: the installation is not complete: No module named 'nh3'"
    assert relay.log.splitlines()[-1] == text
    assert "Traceback" not in relay.log
