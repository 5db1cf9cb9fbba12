"""Milters of a running relay: what it tells of them, a reload, `relay explain`, `relay dev --milter`."""

import html
import re
from pathlib import Path

import pytest

from tests.support.dev_process import DevProcess
from tests.support.milter import ScriptedMilter, added, in_thread, packet
from tests.support.ports import free_port
from tests.support.relay_process import RelayProcess, until

STRANGER = "127.0.0.2"
MESSAGE = "From: a@x.test\r\nSubject: {}\r\n\r\nHello\r\n"
JUNK = """\
[[rule]]
name = "spam"
when = { header = { name = "X-Spam", matches = "yes" } }
then = [ { quarantine = true } ]
"""
SPAM = added("X-Spam", "yes") + packet(b"c")


def test_one_that_is_down_is_named_until_a_reload_removes_it(serve) -> None:
    port = free_port()
    milter = {"name": "gone", "address": f"127.0.0.1:{port}"}
    relay = serve(config={"milter": [milter]})
    with relay.smtp(source=STRANGER) as client:
        client.ehlo()
        assert client.mail("a@x.test") == (451, b"4.7.1 Service unavailable - try again later")
    answer = relay.request("GET", "/readyz")
    assert answer.status == 200
    assert answer.body == b'ready; the milter "gone" is down: connection refused\n'
    assert relay.metric("relay_milter_answers_total", milter="gone", answer="down") == 1
    assert relay.metric("relay_milter_seconds_count", milter="gone") == 1
    relay.write_config(relay.config | {"milter": []})
    assert relay.cli("reload").returncode == 0
    assert relay.request("GET", "/readyz").body == b"ready\n"
    relay.until_final(relay.submit("a@x.test", ["bob@example.test"], source=STRANGER))


def test_its_state_is_that_of_now_although_no_mail_comes(short_path: Path) -> None:
    path, milter = short_path / "milter", ScriptedMilter()
    with DevProcess("--no-demo", f"--milter=unix:{path}") as relay:

        def states() -> tuple[bool, float | None]:
            [name] = re.findall(
                '^relay_milter_down{milter="(.*)"}', relay.exposition(), re.MULTILINE
            )
            gauge = relay.metric("relay_milter_down", milter=name)
            return b"is down: " in relay.request("GET", "/readyz").body, gauge

        until("it is down", lambda: states() == (True, 1))
        with in_thread(milter, path):
            relay.advance(60)
            until("it is up", lambda: states() == (False, 0))
            assert milter.commands() == b"OQ"
        relay.advance(60)
        until("it is down again", lambda: states() == (True, 1))
        assert relay.log.count("milter failed") in (1, 2)  # a line a second


@pytest.mark.parametrize("runs", [True, False])
def test_an_explanation_asks_the_milters(tmp_path, runs: bool) -> None:
    (tmp_path / "spam.eml").write_text(MESSAGE.format("spam"))
    words = ("explain", "bob@example.test", "--from=a@x.test", f"--message={tmp_path}/spam.eml")
    milter = ScriptedMilter({b"E": SPAM})
    with in_thread(milter) as address:
        table = [{"name": "scripted", "address": address}]
        with RelayProcess(config={"milter": table}, policies={"10-spam.toml": JUNK}) as relay:
            if not runs:
                relay.stop()
            assert "milters" not in relay.cli_json(*words)
            document = relay.cli_json(*words, "--ip=2001:db8::7")
            assert document["milters"] == [
                {
                    "name": "scripted",
                    "stage": "end of message",
                    "answer": "continue",
                    "reason": "",
                    "changes": ["add X-Spam"],
                }
            ]
            assert [one["matched"] for one in document["rules"]] == [True]  # it sees the change
            assert b"2001:db8::7\0" in b"".join(milter.of(b"C"))
            assert milter.of(b"H") == [b"[IPv6:2001:db8::7]\0"]
            milter.script[b"R"] = packet(b"y", b"550 5.7.1 not to bob\0")
            refused = relay.cli(*words, "--ip=192.0.2.7")
            assert refused.returncode == 65
            assert (
                refused.stdout.splitlines()[0]
                == "bob@example.test is rejected: 550 5.7.1 not to bob"
            )
            assert "  said    milter scripted refused it: 550 5.7.1 not to bob" in refused.stdout
            assert relay.maildir("bob") == []
            if runs:
                assert relay.queue() == []


def test_a_development_relay_shows_what_its_milters_said() -> None:
    milter = ScriptedMilter({b"E": SPAM})
    with in_thread(milter) as address:
        name = address.replace(":", "-")
        with DevProcess("--no-demo", f"--milter={address}", "--milter=127.0.0.1:1") as relay:
            sent = relay.send_mail(to=["bob@example.test"], subject="by Graph")
            taken = relay.submit(
                "a@x.test", ["bob@example.test"], MESSAGE.format("by SMTP").encode()
            )
            for identity in (sent, taken):
                relay.until_final(identity)
                page = relay.request("GET", f"/messages/{identity}").body.decode()
                shown = map(html.unescape, re.findall(r"<li>(milter .*?)</li>", page))
                assert list(shown) == [
                    f"milter {name} added X-Spam",
                    "milter 127.0.0.1-1 was down: connection refused",
                ]
            assert f"  Milter     {address}" in relay.log
