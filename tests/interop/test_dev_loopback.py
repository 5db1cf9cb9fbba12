"""A traced `relay dev` opens no connection beyond loopback: neither to hosts of its internet nor as a proxy."""

import json
import shlex
from pathlib import Path

import pytest

from tests.integration import test_simulated_internet as internet
from tests.integration.test_dev_https import CURL
from tests.integration.test_dev_proxy import ME, bare, run
from tests.support.commands import run_command
from tests.support.recipients_by_client import EXPECTED
from tests.support.reports import report_about

FULL_GMAIL = b"""
[[domain]]
name = "gmail.com"
mx = [{ host = "mx1.gmail.com" }, { host = "mx2.gmail.com", preference = 20 }]
reply = [{ verb = "RCPT", reply = "452 4.2.2 over quota" }, { verb = "CONNECT", action = "drop" }]
"""


@pytest.mark.interop
def test_no_connection_goes_beyond_loopback(tmp_path: Path, dev) -> None:
    relay = dev(traced=True)
    toml = {"Content-Type": "application/toml"}
    scenario = relay.graph("PUT", "/relay/v1/dev/internet", FULL_GMAIL, headers=toml)
    assert scenario.status == 200, scenario.body
    further = ("x@gmail.com", "x+later550@b.test")
    known = [expected.address for expected in EXPECTED]
    internet.by_graph(relay, "alice@example.test", [*known, *further])
    internet.by_smtp(relay, "bob@example.test", further)
    held = relay.submit("alice@example.test", ["someone@elsewhere.test"])
    relay.until_state(held, "captured")
    for hop in ("192.0.2.1", "smtp.elsewhere.test", "[2001:db8::1]"):
        done = relay.cli("queue", "reroute", held, "--to", f"smtp://{hop}:25")
        assert done.returncode == 64
        assert "connects to loopback only" in done.stderr
    done = relay.cli("queue", "reroute", held, "--to", "mx")
    assert done.returncode == 0, done.stderr
    relay.until_state(held, "relayed")
    for sender in internet.CLIENTS:
        report_about(relay, "x+later550@b.test", person=sender)
    relay.advance(600)
    assert relay.metric("relay_attempts_total", outcome="deferred") > 15
    bundle = relay.ready["bundle"]
    variables = {"HTTPS_PROXY": f"http://{relay.ready['http'][0]}", "CURL_CA_BUNDLE": bundle}
    assert "alice@example.test" in run((*CURL, ME), variables, tmp_path)
    refused = ["https://example.com/", "https://192.0.2.1/", "https://graph.microsoft.com:25/"]
    for url in [*refused, "http://example.com/"]:
        words = ["curl", "--silent", "--show-error", "--fail", url]
        done = run_command(words, env=bare() | variables | {"http_proxy": variables["HTTPS_PROXY"]})
        assert "403" in done.stderr, (shlex.join(words), done.stderr)
    assert "value" in json.loads(run((*CURL, f"{ME}/messages"), variables, tmp_path))
    hosts = relay.stop_and_see_hosts()
    assert len(hosts) > 8, "the name server and a host for each domain"
