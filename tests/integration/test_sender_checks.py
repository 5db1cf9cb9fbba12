"""`sender_checks`: the verdict of SPF, DKIM and DMARC on what strangers send, and what follows from it."""

import contextlib
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from relay.base.settings.reader import SettingsError, load
from tests.support.dkim import DkimKeys, foreign
from tests.support.dns_server import DnsThread
from tests.support.milter import ScriptedMilter, added, in_thread, packet
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes
from tests.support.tables import each_row

GATE = True
BOB = "bob@example.test"
SPF, OTHER = "127.0.0.2", "127.0.0.3"  # strangers; SPF of the domains passes for the first one
ZONE = {
    **{name: {"TXT": ['"v=spf1 ip4:127.0.0.2 -all"']} for name in ("strict.test", "mild.test")},
    "example.test": {"TXT": ['"v=spf1 ip4:127.0.0.2 -all"']},
    "_dmarc.strict.test": {"TXT": ['"v=DMARC1; p=reject"']},
    "_dmarc.mild.test": {"TXT": ['"v=DMARC1; p=quarantine"']},
    "_dmarc.silent.test": "SERVFAIL",
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> DkimKeys:
    return DkimKeys.made(tmp_path_factory.mktemp("keys"), {("strict.test", "s"): "rsa"})


@pytest.fixture(scope="module")
def dns(keys):
    signed = {
        name: {"TXT": [f'"{record[:200].decode()}" "{record[200:].decode()}"']}
        for name, record in keys.records.items()
    }
    with DnsThread(ZONE | signed) as server:
        yield server


@pytest.fixture(scope="module")
def relay(dns, serve_module) -> RelayProcess:
    return serve_module(dns=dns.address, config=listener("enforce"))


def listener(mode: str, **more) -> dict:
    own = {"listen": "127.0.0.1:0", "trusted_networks": ["127.0.0.1/32"], "sender_checks": mode}
    return {"smtp": [own | more]}


def mail_from(author: str, subject: str = "s") -> bytes:
    return f"From: {author}\r\nTo: {BOB}\r\nSubject: {subject}\r\n\r\nHello.\r\n".encode()


def give(
    relay: RelayProcess,
    sender: str,
    content: bytes,
    ip: str = OTHER,
    to: str = BOB,
    *,
    listener_number: int = 0,
) -> tuple[str, str]:
    """Return the reply to the final dot, and the queue id."""
    with relay.smtp(source=ip, listener=listener_number) as session:
        session.ehlo()
        session.mail(sender)
        session.rcpt(to)
        code, text = session.data(content)
    return f"{code} {text.decode()}", text.decode().rpartition(" ")[2]


@each_row(
    "ip, sender, author, folder",
    [
        (SPF, "a@strict.test", "a@strict.test", ""),
        (SPF, "a@mild.test", "a@mild.test", ""),
        (OTHER, "a@mild.test", "a@mild.test", "Junk"),
        (OTHER, "a@plain.test", "a@plain.test", ""),
        (OTHER, "a@strict.test", "a@plain.test", ""),  # SPF fails, and refuses nothing
        (OTHER, "a@silent.test", "a@silent.test", ""),  # no answer is no refusal
        (OTHER, "", "a@plain.test, b@plain.test", ""),
    ],
)
def test_mail_is_filed_as_the_authors_domain_asks(relay, ip, sender, author, folder) -> None:
    subject = f"{ip} {sender} {author}"
    reply, queue_id = give(relay, sender, mail_from(author, subject), ip)
    assert reply.startswith("250 ")
    until("delivery", lambda: relay.states(queue_id).get(BOB) == "delivered")
    assert subject in relay.subjects("bob", folder)


@each_row(
    "sender, author, reply",
    [
        ("a@strict.test", "a@strict.test", "550 5.7.26 The DMARC policy of strict.test refuses"),
        ("a@plain.test", "a@strict.test", "550 5.7.26 The DMARC policy of strict.test refuses"),
        ("a@plain.test", "A <a@below.STRICT.test>", "550 5.7.26 The DMARC policy of below.strict."),
        ("a@plain.test", "a@plain.test, b@strict.test", "550 5.7.1 The author of the message"),
        ("a@plain.test", "a@plain.test\r\nFrom: b@plain.test", "550 5.7.1 The author of the messa"),
    ],
)
def test_a_forged_author_is_refused(relay, sender, author, reply) -> None:
    before = relay.metric("relay_smtp_refusals_total", reason="checks")
    assert give(relay, sender, mail_from(author))[0].startswith(reply)
    assert relay.metric("relay_smtp_refusals_total", reason="checks") == before + 1
    assert f'"reason":"checks","reply":"{reply}' in relay.log.splitlines()[-1]


def test_a_signature_vouches_for_the_author_from_anywhere(relay, keys) -> None:
    signed = foreign(mail_from("a@strict.test", "signed"), keys.ring.keys[0])
    forged = b"Authentication-Results: relay.example.test; dmarc=pass\r\n" + signed
    reply, queue_id = give(relay, "a@plain.test", forged)
    assert reply.startswith("250 ")
    changed = signed.replace(b"Hello", b"hello")
    assert give(relay, "a@plain.test", changed)[0].startswith("550 5.7.26 ")
    checks = relay.journey(queue_id)["checks"]
    [signature] = checks["dkim"]
    assert (signature["result"], signature["domain"]) == ("pass", "strict.test")
    assert (checks["dmarc"]["policy"], checks["aligned"]) == ("reject", True)
    assert "DKIM pass for strict.test" in relay.cli("trace", queue_id).stdout
    until("delivery", lambda: relay.states(queue_id).get(BOB) == "delivered")
    [message] = [one for one in relay.maildir("bob") if one["subject"] == "signed"]
    [field] = message.get_all("Authentication-Results")
    assert field.startswith("relay.example.test; spf=none")


def test_a_client_that_is_trusted_is_not_checked(relay) -> None:
    reply, queue_id = give(relay, "a@strict.test", mail_from("a@strict.test"), "127.0.0.1")
    assert reply.startswith("250 ")
    assert relay.journey(queue_id)["checks"] is None


@each_row("running", [True, False])
def test_explain_says_the_same(relay, tmp_path, running) -> None:
    file = tmp_path / "m.eml"
    file.write_bytes(mail_from("a@strict.test"))
    words = ("explain", BOB, "--from", "a@strict.test", "--message", str(file), "--ip")
    if not running:
        relay.stop()
    refused, taken = relay.cli(*words, OTHER), relay.cli(*words, SPF)
    if not running:
        relay.start()
    assert (refused.returncode, taken.returncode) == (65, 0)
    assert "rejected: 550 5.7.26 The DMARC policy of strict.test" in refused.stdout
    assert "DMARC pass for strict.test" in taken.stdout


def test_the_refusal_of_a_name_server_lets_no_forgery_in(serve) -> None:
    """Unless another one answers: a resolver says REFUSED when it is full."""
    policy = ZONE["_dmarc.strict.test"]
    others = {"strict": policy, "quiet": "TIMEOUT", "broken": "SERVFAIL", "closed": "REFUSED"}
    zone = {f"_dmarc.{name}.test": answer for name, answer in others.items()}
    with DnsThread(dict.fromkeys(zone, "REFUSED")) as full, DnsThread(zone) as second:
        config = {"dns": {"nameservers": [str(full.address), str(second.address)], "timeout": "1s"}}
        relay = serve(config=config | listener("enforce"))
        for name in others:
            reply, _ = give(relay, "a@plain.test", mail_from(f"a@{name}.test"))
            assert reply[:9] == ("550 5.7.2" if name == "strict" else "451 4.7.1"), name


def test_explain_names_junk_email_and_first_what_rcpt_refuses(relay, tmp_path) -> None:
    file = tmp_path / "m.eml"
    for domain, to, text in (
        ("mild.test", BOB, ", folder Junk Email"),
        ("strict.test", "nobody@example.test", " 550 5.1.1 "),
    ):
        file.write_bytes(mail_from(f"a@{domain}"))
        words = ("--from", f"a@{domain}", "--ip", OTHER, "--message", str(file))
        assert text in relay.cli("explain", to, *words).stdout


def test_what_is_quarantined_goes_on_with_its_field(remotes: Remotes, serve) -> None:
    """Networks and domains that are excepted get no Junk Email."""
    away = remotes.start("away.test")
    excepted = ["127.0.0.4/32", "strict.test"]
    config = listener("enforce", sender_checks_except=excepted)
    remotes.dns.zone.update(ZONE)
    relay = serve(remotes, config=config, aliases={"far@example.test": ["x@away.test"]})
    assert give(relay, "", mail_from("a@mild.test"), to="far@example.test")[0].startswith("250 ")
    until("the copy", lambda: away.envelopes)
    assert b"dmarc=fail" in away.envelopes[0].content.partition(b"\r\n\r\n")[0]
    for sender, ip in (("a@mild.test", "127.0.0.4"), ("a@strict.test", SPF)):
        reply, queue_id = give(relay, sender, mail_from("a@mild.test", ip), ip)
        until("delivery", lambda key=queue_id: relay.states(key).get(BOB) == "delivered")
        assert reply.startswith("250 ")
    assert sorted(relay.subjects("bob")) == ["127.0.0.2", "127.0.0.4"]


def test_a_method_of_a_milter_counts_in_place_of_ours(dns, serve) -> None:
    milter = ScriptedMilter()
    with in_thread(milter) as address:
        listeners = [*listener("enforce")["smtp"], *listener("record")["smtp"]]
        config = {"smtp": listeners, "milter": [{"name": "m", "address": address}]}
        relay = serve(dns=dns.address, config=config)
        for method, author, number, reply in (
            ("dmarc=pass header.from=strict.test", "a@strict.test", 0, "250 "),
            ("spf=pass smtp.mailfrom=strict.test", "a@strict.test", 0, "550 5.7.26 "),
            ("dmarc=fail (p=reject dis=none) header.from=x.test", "a@x.test", 0, "550 5.7.26 "),
            ("dmarc=fail (p=reject dis=none) header.from=x.test", "a@x.test", 1, "250 "),
        ):
            field = added("Authentication-Results", f"mx.test; {method}")
            milter.script[b"E"] = field + packet(b"c")
            given = give(relay, author, mail_from(author), listener_number=number)
            assert given[0].startswith(reply), method


def killed_workers(relay: RelayProcess) -> None:
    """Kill the processes that check senders."""
    for task in Path(f"/proc/{relay.process.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                if b"check_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)


def test_without_a_worker_a_forgery_waits_and_record_refuses_nothing(dns, serve) -> None:
    """A rule that reads the results waits too."""
    config = {"smtp": [*listener("enforce")["smtp"], *listener("record")["smtp"]]}
    rule = "[[rule]]\nname='r'\nwhen={ sender='r@*', auth={ spf='fail' } }\nthen=[{ hold='x' }]\n"
    started = {"PYTHONUTF8": "1"}  # as a program, whose processes take a while until they answer
    rules = {"10-a.toml": rule}
    relay = serve(dns=dns.address, config=config, policies=rules, environment=started)
    unable = {"method": "dmarc", "result": "unable"}
    with ThreadPoolExecutor() as threads:

        def given(number: int, sender: str = "a@plain.test") -> tuple[str, str]:
            mail = mail_from("a@strict.test")
            reply = threads.submit(give, relay, sender, mail, listener_number=number)
            until("a reply", lambda: killed_workers(relay) or reply.done())
            return reply.result()

        assert given(0)[0].startswith("451 4.7.1 The author of the message cannot be checked now")
        assert relay.metric("relay_sender_checks_total", **unable) == 1
        assert b"no sender could be checked" in relay.request("GET", "/readyz").body
        reply, queue_id = given(1)
        assert (reply[:3], relay.journey(queue_id)["checks"]["dmarc"]["result"]) == (
            "250",
            "unable",
        )
        assert "DMARC unable" in relay.cli("trace", queue_id).stdout
        assert given(1, "r@plain.test")[0].startswith(
            "451 4.7.1 The mail rules could not be applied"
        )
    assert give(relay, "a@strict.test", mail_from("a@strict.test"))[0].startswith("550 5.7.26 ")
    assert b"no sender" not in relay.request("GET", "/readyz").body


def test_without_the_libraries_the_key_is_a_fault(relay, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "spf", None)
    with pytest.raises(SettingsError, match=r"sender_checks.*pyspf.*\.\[checks\]"):
        load(relay.folder / "relay.toml", {})
