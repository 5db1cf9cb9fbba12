"""Rules that defer, limit and route mail, in a real relay: by SMTP, by Graph, by the sendmail command."""

import smtplib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.test_reload import hang_up
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received
from tests.support.webhooks import WebhookReceiver, hook, recorded

ALICE = "alice@example.test"
TEMPFAIL = 75


def letter(subject: str) -> bytes:
    return f"Subject: {subject}\r\n\r\nHello.\r\n".encode()


def by_sendmail(relay: RelayProcess, subject: str, to: str) -> int:
    """Return the exit code."""
    return relay.sendmail(ALICE, to, text=f"Subject: {subject}\n\nHello.\n").returncode


def rejection(relay: RelayProcess, subject: str, *to: str) -> tuple[int, str]:
    """Return the reply to a message that is not accepted."""
    with relay.smtp() as session, pytest.raises(smtplib.SMTPDataError) as caught:
        session.sendmail(ALICE, to, letter(subject))
    error = caught.value.smtp_error
    return caught.value.smtp_code, error.decode() if isinstance(error, bytes) else error


def next_hop_rules(url: str) -> str:
    return f"""
[[rule]]
name = "by route"
when = {{ recipient = "*@routed.test" }}
then = [ {{ next_hop = "route:paid" }} ]

[[rule]]
name = "by url"
when = {{ recipient = ["*@named.test", "bob@example.test"] }}
then = [ {{ next_hop = "{url}" }} ]
"""


def test_a_rule_sends_mail_elsewhere_over_restarts_and_lends_no_login(
    remotes: Remotes, tmp_path: Path, serve
) -> None:
    (tmp_path / "password").write_text("secret\n")
    usual = remotes.start("routed.test")
    remotes.dns.zone["named.test"] = {"MX": ["10 mx.routed.test."]}
    # It has a login for whom it is offered, and waits at first.
    hub = remotes.start("hub.test", users={"user": "secret"}, replies={"MAIL": "451 4.7.1 later"})
    url = f"smtp://{hub.host}:{hub.port}"
    auth = {"user": "user", "password_file": str(tmp_path / "password")}
    paid = {"name": "paid", "domain": "of.no.test", "next_hop": url, "auth": auth}
    config = {"route": [paid], "delivery": {"retry": ["1h"]}}
    relay = serve(remotes, config=config, policies={"10.toml": next_hop_rules(url)})
    people = ["x@routed.test", "y@named.test", "bob@example.test"]
    identity = relay.submit(ALICE, people)
    by_api = relay.send_mail(subject="graph", to=["api@routed.test"])
    assert by_sendmail(relay, "sendmail", "drop@named.test") == 0
    for queue_id in (identity, by_api):
        relay.until_state(queue_id, "deferred")
    journey = relay.journey(identity)
    (routed,) = [one["detail"] for one in journey["steps"] if one["step"] == 5]
    assert routed["next_hops"] == {url: people}
    assert routed["routes"] == {url: ["paid", "rule"]}
    assert len(routed["set"]["hash"]) == 12
    assert routed["set"]["loaded"] < journey["steps"][0]["at"]
    ways = {one["address"]: (one["next_hop"], one["route"]) for one in journey["recipients"]}
    assert ways == {people[0]: (url, "paid"), people[1]: (url, "rule"), people[2]: (url, "rule")}
    for address, name in (("x@routed.test", "paid"), ("y@named.test", "rule")):
        explained = relay.cli_json("explain", address, "--from", ALICE)
        route = explained["route"]
        assert (explained["state"], route["name"], route["next_hop"]) == ("remote", name, url)
        assert [one["name"] for one in explained["hosts"]] == [hub.host]
    assert f"a rule chose {url}" in relay.cli("explain", "y@named.test", "--from", ALICE).stdout
    # Neither the rules nor the routes send this mail there any more.
    relay.stop()
    (relay.folder / "policies" / "10.toml").write_text("")
    relay.config["route"] = [{"domain": "routed.test", "next_hop": "mx"}, paid]
    relay.write_config(relay.config)
    hub.replies = {}
    relay.start()
    relay.cli_json("queue", "retry", "--all")
    for queue_id in (identity, by_api):
        assert relay.until_final(queue_id)["state"] == "relayed"
    logins = {
        address: hub.logins.get(received(hub, address).session, "")
        for address in (*people, "api@routed.test", "drop@named.test")
    }
    assert logins == {
        "x@routed.test": "user",
        "api@routed.test": "user",
        "y@named.test": "",
        "bob@example.test": "",
        "drop@named.test": "",
    }
    assert relay.maildir("bob") == []
    assert not usual.envelopes
    assert relay.faults() == []


RATE = """
[[rule]]
name = "ten"
when = { sender = "*@example.test" }
then = [ { rate_limit = { rate = "10/1h", per = "sender", text = "4.7.2 Ten in an hour" } } ]
"""


OPS = "ops@copy.test"
HIDDEN = """
[[rule]]
name = "to the archive"
then = [ { bcc = "archive@copy.test" } ]
"""


def test_a_copy_that_a_rule_adds_is_seen_by_operators_only(remotes: Remotes) -> None:
    remotes.start("a.test")
    remotes.start("copy.test", rcpt={"archive@copy.test": "550 5.1.1 no such archive"})
    with WebhookReceiver() as receiver:
        config = {"webhook": [hook(receiver, events=["failed"])], "reports": {"copy_to": OPS}}
        with remotes.relay(policies={"10.toml": HIDDEN}, config=config) as relay:
            relay.until_final(relay.send_mail(to=["bob@a.test"], subject="secret"))
            found = relay.cli_json("log", "--subject", "secret")[0]
            until(
                "the copy has failed", lambda: "failed" in str(relay.cli_json("trace", found["id"]))
            )
            (copy,) = relay.cli_json("trace", found["id"])["added"]
            assert (copy["address"], copy["state"]) == ("archive@copy.test", "failed")
            assert (copy["added_by"], copy["reply"]) == (
                "to the archive",
                "550 5.1.1 no such archive",
            )
            shown = (
                'archive@copy.test  failed     550 5.1.1 no such archive  (added by rule "to the'
            )
            assert shown in relay.cli("trace", "archive@copy.test").stdout
            for options in (("--address", "archive@copy.test"), ("--state", "failed")):
                (row,) = relay.cli_json("log", *options)
                assert (row["id"], row["state"]) == (found["id"], "relayed")
                assert [one["address"] for one in row["added"]] == ["archive@copy.test"]
            steps = relay.cli_json("trace", found["id"])["steps"]
            reports = [
                (one["detail"]["kind"], one["detail"]["to"]) for one in steps if one["step"] == 7
            ]
            assert reports == [("postmaster", "postmaster"), ("copy", OPS)]
            line = relay.cli("log", "--subject", "secret").stdout
            assert 'bob@a.test, archive@copy.test (failed, added by rule "to the archive")' in line
            until("the failure is posted", lambda: "archive@copy.test" in str(receiver.requests))
            for path in (
                f"messages/{found['id']}",
                "messages?q=",
                "log",
                "log?to=archive@copy.test",
                f"messages?q=id:{found['id']}&to=archive@copy.test",
            ):
                answer = relay.graph("GET", f"/relay/v1/{path}", token="alice")
                assert answer.status == 200, answer.body
                assert b"archive" not in answer.body.replace(b"to the archive", b"")
                assert OPS.encode() not in answer.body
                assert (b"secret" in answer.body) is ("to=" not in path), path
            events = {token: str(recorded(relay, token=token)) for token in (OPERATOR, "alice")}
            for address in ("archive@copy.test", OPS):
                assert [address in one for one in events.values()] == [True, False]
            assert "bob@a.test" in events["alice"]


def test_of_parallel_messages_as_many_pass_as_the_limit_allows(remotes: Remotes, serve) -> None:
    remotes.start("a.test")
    relay = serve(remotes, policies={"10.toml": RATE})

    def send(number: int) -> str:
        try:
            with relay.smtp() as session:
                session.sendmail(ALICE, [f"x{number}@a.test"], letter(f"{number}"))
        except smtplib.SMTPDataError as error:
            return f"{error.smtp_code} {bytes(error.smtp_error).decode()}"
        return "250"

    with ThreadPoolExecutor(20) as threads:
        replies = list(threads.map(send, range(20)))
    assert replies.count("250") == 10
    assert replies.count("451 4.7.2 Ten in an hour") == 10
    hang_up(relay, "reloaded")  # the same rule and rate: it goes on
    assert rejection(relay, "one more", "y@a.test")[0] == 451
    assert by_sendmail(relay, "one more", "y@a.test") == TEMPFAIL
    with relay.smtp() as session:  # the limit of another sender
        session.sendmail("bob@example.test", ["y@a.test"], letter("bob's"))
    # Three that wait delay no other mail of the API.
    waiting = [relay.send_mail(subject="waits", to=["y@a.test"]) for _ in range(4)]
    until("it waits", lambda: "Ten in an hour" in str(relay.journey(waiting[0])))
    other = relay.send_mail(subject="passes", to=["z@a.test"], token="bob")
    assert relay.until_final(other)["state"] == "relayed"
    (shown, *_) = relay.graph("GET", "/relay/v1/refused", token=OPERATOR).json()["refused"]
    assert (shown["reason"], shown["rule"]) == ("rule", "ten")
    assert relay.metric("relay_policy_rule_total", rule="ten", outcome="rate_limit") == 12
    assert relay.metric("relay_policy_rule_total", rule="ten", outcome="defer") >= 11
    (relay.folder / "policies" / "10.toml").write_text(RATE.replace("10/1h", "100/1h"))
    hang_up(relay, "reloaded")
    for identity in waiting:
        assert relay.until_final(identity)["state"] == "relayed"
    assert relay.faults() == []
