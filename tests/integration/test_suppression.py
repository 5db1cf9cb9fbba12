"""The list of dead addresses in a real relay: it fills, what it stops, and what operators do with it."""

import smtplib
import subprocess

import pytest

from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes
from tests.support.webhooks import WebhookReceiver, hook

ALICE, BOB = "alice@example.test", "bob@example.test"
DEAD = "550 5.1.1 no such user"
ON = {"after": 1}


def replies(relay: RelayProcess, key: str) -> dict[str, tuple[str, str]]:
    people = relay.until_final(key)["recipients"]
    return {to["address"]: (to["state"], to["reply"]) for to in people}


def listed(relay: RelayProcess, *options: str) -> list[str]:
    return [row["address"] for row in relay.cli_json("suppressed", "list", *options)["suppressed"]]


def test_a_dead_address_stops_the_next_mail_until_it_is_removed(remotes: Remotes) -> None:
    mx = remotes.start("there.test", rcpt={"gone@there.test": DEAD})
    with WebhookReceiver() as receiver:
        hooks = [hook(receiver, events=["suppressed"])]
        with remotes.relay(config={"suppression": ON, "webhook": hooks}) as relay:
            first = relay.submit(ALICE, ["gone@there.test", "well@there.test"])
            assert replies(relay, first)["gone@there.test"] == ("failed", DEAD)
            [row] = relay.cli_json("suppressed", "list", "--domain", "there.test")["suppressed"]
            assert (row["address"], row["by"], row["count"]) == ("gone@there.test", "relay", 1)
            assert row["reply"] == DEAD
            failed = ("failed", f"550 5.1.1 suppressed since {row['since'][:10]}")
            sessions = mx.sessions
            to = [{"emailAddress": {"address": name}} for name in ("Gone@There.test", BOB)]
            second = relay.send_mail(toRecipients=to)
            found = replies(relay, second)
            assert found["Gone@there.test"] == failed
            assert found[BOB][0] == "delivered"
            assert mx.sessions == sessions
            traced = relay.cli("trace", second).stdout
            assert "suppressed since" in traced
            assert DEAD not in traced
            explained = relay.cli("explain", "gone@there.test", "--from", ALICE)
            assert (explained.returncode, failed[1] in explained.stdout) == (65, True)
            assert failed[1] not in relay.cli("explain", "gone@there.test").stdout  # a report
            assert [one["id"] for one in relay.cli_json("search", "has:suppressed")] == [
                relay.journey(second)["id"]
            ]
            assert relay.metric("relay_recipients_total", outcome="suppressed") == 1
            receiver.until(lambda events: len(events) == 1)
            until("the list is counted", lambda: relay.metric("relay_suppressed_addresses") == 1)
            assert relay.cli("suppressed", "remove", "gone@THERE.test").returncode == 0
            assert relay.cli("suppressed", "remove", "gone@there.test").returncode == 65
            third = relay.submit(ALICE, ["gone@there.test"])
            assert replies(relay, third)["gone@there.test"] == ("failed", DEAD)
            assert '"suppression removed","who":' in relay.log


def test_what_operators_add_and_what_they_may_not(serve) -> None:
    relay = serve(config={"suppression": {}})
    names = ["x@a.test", "O'Hara+1@a.test", "bücher@bücher.test", '"a b"@a.test']
    assert relay.cli_json("suppressed", "add", *names, "--reason", "complained")["added"] == 4
    assert relay.cli("suppressed", "add", "X@a.test").returncode == 0
    assert listed(relay) == [
        '"a b"@a.test',
        "bücher@xn--bcher-kva.test",
        "o'hara+1@a.test",
        "x@a.test",
    ]
    assert listed(relay, "--domain", "bücher.test", "--since", "1h") == [
        "bücher@xn--bcher-kva.test"
    ]
    assert "complained" in relay.cli("suppressed", "list").stdout
    assert '"addresses suppressed","who":' in relay.log
    body = {"addresses": ["z@a.test"], "reason": "abuse"}
    assert relay.graph("POST", "/relay/v1/suppressed", body).status == 403
    assert relay.graph("POST", "/relay/v1/suppressed", body, token=OPERATOR).json() == {"added": 1}
    fits = "\n" + "".join(f"{number}@many.test\n" for number in range(99_995))
    command = relay.command("suppressed", "add", "-", "--reason", "import")
    at_line = ("no address", BOB, "\udcff")
    for more in (*at_line, "one@more.test", " " * 26_000_000, ""):
        octets = b'\xef\xbb\xbf"0"@many.test\n' + (fits + more).encode(errors="surrogateescape")
        done = subprocess.run(command, input=octets, check=False, capture_output=True)
        assert done.returncode == (65 if more else 0), done.stderr
        assert (b"standard input, line 99998: " in done.stderr) == (more in at_line)
        assert len(listed(relay)) == (5 if more else 100_000)
    assert relay.cli("suppressed", "add", "one@more.test").returncode == 65
    del relay.config["suppression"]
    relay.write_config(relay.config)
    relay.restart()
    assert relay.cli_json("suppressed", "list") == {"suppressed": [], "off": True}
    off = "off: the configuration has no [suppression]\n"
    assert relay.cli("suppressed", "list").stdout == off
    for verb, code in (("add", 64), ("remove", 0), ("remove", 65)):
        assert relay.cli("suppressed", verb, "x@a.test").returncode == code


def test_what_is_looked_up(remotes: Remotes) -> None:
    """Where mail would leave now; not what is held, captured, by LMTP, or of Relay itself."""
    smarthost = remotes.start("host.test")
    routes = [
        {"domain": "smart.test", "next_hop": f"smtp://127.0.0.1:{smarthost.port}"},
        {"domain": "boxes.test", "next_hop": "lmtp://127.0.0.1:1"},
        {"domain": "held.test", "next_hop": "hold"},
        {"domain": "kept.test", "next_hop": "capture"},
    ]
    rule = (
        '[[rule]]\nname = "copy"\nwhen = { subject = "copy" }\nthen = [ { bcc = ["x@mx.test"] } ]\n'
    )
    relay = remotes.relay(
        config={"route": routes, "suppression": {}},
        aliases={"all@example.test": ["x@smart.test", BOB]},
        policies={"10.toml": rule},
    )
    domains = ("mx", "smart", "boxes", "held", "kept")
    with relay:
        names = [f"x@{name}.test" for name in domains]
        assert relay.cli_json("suppressed", "add", *names)["added"] == 5
        key = relay.submit(ALICE, [*names, "well@host.test"])
        people = relay.journey(key)["recipients"]
        stopped = {to["address"] for to in people if "suppressed" in (to["reply"] or "")}
        assert stopped == {"x@mx.test", "x@smart.test"}
        by_alias = relay.submit(ALICE, ["all@example.test"])
        assert replies(relay, by_alias)["x@smart.test"][0] == "failed"
        assert replies(relay, by_alias)[BOB][0] == "delivered"
        copied = relay.submit(ALICE, [BOB], b"Subject: copy\r\n\r\n")
        relay.until_final(copied)
        [row] = relay.cli_json("log", "--message-id", copied)
        assert [(to["address"], to["state"]) for to in row["added"]] == [("x@mx.test", "failed")]
        with relay.smtp() as client, pytest.raises(smtplib.SMTPDataError, match="suppressed since"):
            client.sendmail(ALICE, ["x@mx.test"], b"Subject: s\r\n\r\n")


def test_the_kit_has_the_list(kit) -> None:
    relay = kit(config={"suppression": ON})
    for expected in ("No such user", "suppressed since"):
        message = relay.send(ALICE, "user+550@recipient.test", "hello")
        assert expected in message.wait_for_bounce().reply
