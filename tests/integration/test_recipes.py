"""Recipes of the documentation, run with the settings that they show."""

import json
import os
import re
import shlex
import shutil
import signal
import smtplib
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.commands import run_command
from tests.support.dkim import DkimKeys
from tests.support.ports import free_port
from tests.support.relay_process import DOMAIN, ROOT, RelayProcess, until
from tests.support.remotes import Remotes, received
from tests.support.tls import Authority, authority
from tests.support.unpacked import UNPACKED

__all__ = ["authority"]
DOCS = ROOT / "docs"


def settings_in(file: Path, heading: str) -> str:
    """Return the settings of relay.toml under a heading."""
    section = file.read_text().partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^```toml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))


def test_send_through_a_provider_with_a_password(remotes: Remotes, authority: Authority) -> None:
    text = settings_in(DOCS / "operation-routes.md", "### Send through a provider with a password")
    users = {"shop": "a shop's password", "relay": "another password"}
    tls = authority.issue("DNS:smtp.provider.example").server_context()
    provider = remotes.start("provider.example", tls=tls, users=users)
    remotes.dns.zone["smtp.provider.example"] = {"A": [provider.host]}
    assert text.count(":587") == 2
    text = text.replace(":587", f":{provider.port}")
    text = text.replace("auth =", f'ca = "{authority.certificate}"\nauth =')
    relay = remotes.relay()
    with relay.config_file.open("a") as file:
        file.write(text)
    for user, password in users.items():
        (relay.folder / f"{user}.password").write_text(f"{password}\n")
    with relay:
        for sender, route, user in (
            ("orders@shop.example.org", "shop", "shop"),
            ("ann@example.test", "everybody else", "relay"),
            ("", "everybody else", "relay"),
        ):
            recipient = f"to-{user}{len(sender)}@customer.example"
            journey = relay.until_final(relay.submit(sender, [recipient]))
            (to,) = journey["recipients"]
            assert (to["state"], to["route"]) == ("relayed", route)
            envelope = received(provider, recipient)
            assert envelope.tls
            assert (envelope.reverse_path, provider.logins[envelope.session]) == (sender, user)
        (relay.folder / "shop.password").write_text("the wrong one\n")
        relay.stop()
        relay.start()
        waiting = relay.submit("orders@shop.example.org", ["later@customer.example"])
        sent = relay.submit("ann@example.test", ["now@customer.example"])
        assert relay.until_final(sent)["state"] == "relayed"
        journey = relay.until_state(waiting, "deferred")
        assert "535" in journey["recipients"][0]["attempts"][0]["reply"]
    assert provider.received("later@customer.example") == []


def test_forward_to_an_outside_mailbox(remotes: Remotes) -> None:
    text = settings_in(DOCS / "operation-users.md", "### Forward to an outside mailbox").replace(
        "example.org", DOMAIN
    )
    bob, _, alias = text.partition("\n\n")
    *_, address, forward_to = bob.splitlines()
    mailbox, office = remotes.start("mailbox.example"), remotes.start("partner.example")
    relay = remotes.relay()
    accounts = relay.folder / "accounts.toml"
    before = accounts.read_text()
    assert before.count(address) == 1
    forwarding = before.replace(address, f"{address}\n{forward_to}")
    accounts.write_text(f"{forwarding}\n{alias}\n")
    with relay:
        sent = relay.send_mail(to=[f"bob@{DOMAIN}", f"shop+spring@{DOMAIN}"], subject="Both")
        journey = relay.until_final(sent)
        assert {
            (one["address"], one["state"], *one.get("successors", ()))
            for one in journey["recipients"]
        } == {
            (f"bob@{DOMAIN}", "expanded", f"bob@{DOMAIN}", "bob@mailbox.example"),
            (f"bob@{DOMAIN}", "delivered"),
            ("bob@mailbox.example", "relayed"),
            (f"shop+spring@{DOMAIN}", "redirected", "office@partner.example"),
            ("office@partner.example", "relayed"),
        }
        assert relay.subjects("bob") == ["Both"]
        copies = [
            received(mailbox, "bob@mailbox.example"),
            received(office, "office@partner.example"),
        ]
        named = [re.match(rb"Delivered-To: (.*)\r\n", bytes(one.content)) for one in copies]
        assert [one and one[1].decode() for one in named] == [f"bob@{DOMAIN}", f"shop@{DOMAIN}"]
        told = relay.cli("trace", f"shop+spring@{DOMAIN}").stdout
        assert f"shop+spring@{DOMAIN}  redirected  to office@partner.example\n" in told
        assert f"aliases: bob@{DOMAIN}, shop+spring@{DOMAIN}" in told
        # a faulty file changes nothing; a stranger may write to the alias
        ring = f'[[alias]]\naddress = "two@{DOMAIN}"\nto = ["two@{DOMAIN}"]\n'
        accounts.write_text(f"{accounts.read_text()}\n{ring}")
        assert relay.process is not None
        os.kill(relay.process.pid, signal.SIGHUP)
        until("the fault in the log", lambda: f"found the ring two@{DOMAIN}" in relay.log)
        relay.submit("ann@away.example", [f"SHOP@{DOMAIN}"], source="127.0.0.2")
        until("the copy", lambda: len(office.received("office@partner.example")) == 2)


@contextmanager
def logged_in(
    relay: RelayProcess, password: str, *, user: str = f"alice@{DOMAIN}", source: str = "127.0.0.1"
) -> Iterator[smtplib.SMTP]:
    with closing(relay.smtp(source=source)) as smtp:
        smtp.ehlo("client.test")
        smtp.login(user, password)
        yield smtp


def with_page(config: dict[str, Any], page: str) -> str:
    """Add the settings of a page to a configuration; return what the page has for accounts.toml."""
    blocks = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    people = [one for one in blocks if re.match(r"\[\[(account|alias)]]", one)]
    for one in blocks:
        for name, value in tomllib.loads(one).items() if one not in people else ():
            before = config.get(name, type(value)())
            config[name] = before + value if isinstance(value, list) else before | value
    return "\n" + "\n".join(people)


def test_limits_writers_and_a_stolen_account(remotes: Remotes) -> None:
    """The settings of the page together, then the thief, and the recipe as it is printed."""
    page = (DOCS / "operation-users.md").read_text().replace("example.org", DOMAIN)
    headings = ("## Limits for each user", "### Who may write to an alias")
    settings = "".join(re.split(r"\n##", page.partition(f"\n{one}\n")[2])[0] for one in headings)
    other = remotes.start("other.test")
    remotes.start("slow.test", replies={"MAIL": "451 4.7.1 later"})
    relay = remotes.relay()
    with (relay.folder / "accounts.toml").open("a") as file:
        file.write(with_page(config := relay.config, settings))
    relay.write_config(config)
    checked = relay.cli("check")
    assert checked.returncode == 0, checked.stderr
    alice, prize = f"alice@{DOMAIN}", "Subject: You win a prize\r\n\r\nx\r\n"
    with relay, logged_in(relay, "alice") as thief:
        thief.sendmail(alice, "ann@slow.test", prize.replace("You win a prize", "Lunch"))
        got = {f"victim{number}@other.test" for number in range(0, 99, 4)}
        for number in range(99):
            to = f"victim{number}@other.test"
            thief.sendmail(alice, to if to in got else f"victim{number}@slow.test", prize)
        with pytest.raises(smtplib.SMTPDataError, match=r"450, .*4\.7\.1 .* 100 messages to other"):
            thief.sendmail(alice, "victim@other.test", prize)
        said = [f"{alice} has sent {count} of 100 messages in 1h" for count in (100, 80)]
        until("the alerts", lambda: relay.subjects("operator") == said)
        until("who got it", lambda: all(map(other.received, got)))
        section = page.partition("\n## A stolen account\n")[2].partition("\n## ")[0]
        for line in re.findall(r"^ +((?:relay|systemctl) .*)$", section, re.MULTILINE):
            words = shlex.split(line.removeprefix("systemctl "))
            words = words[words[0] == "relay" : 1 if words[0] == "reload" else None]
            where = ["--config", str(relay.client_config())] if words[0] == "send" else []
            done = relay.cli(*words, *where, stdin="a new one\n")
            assert done.returncode == 0, (words, done.stderr)
            if "relayed" in words:
                found = [to for one in json.loads(done.stdout) for to in one["recipients"]]
                assert {to["address"] for to in found} == got
        assert [(one["subject"], one["state"]) for one in relay.queue()] == [("Lunch", "deferred")]
        assert thief.mail(alice)[0] == 421
        with pytest.raises(smtplib.SMTPAuthenticationError), logged_in(relay, "alice"):
            pass
        assert relay.graph("GET", "/me", token="alice").status == 401
        with logged_in(relay, "a new one") as again:
            assert again.noop()[0] == 250
        until("a victim is told", lambda: other.received("victim@other.test"))


_LABELS = re.compile(r'(\w+)=~?"([^"]*)"')


def test_what_alerts_look_for_is_there_before_it_happens(
    authority: Authority, tmp_path: Path, serve
) -> None:
    rules = (DOCS / "examples/alerts.yaml").read_text()
    wanted = re.findall(r"(?:increase|rate)\((\w+)(?:\{([^}]*)\})?\[", rules)
    wanted += re.findall(r"expr: (?:max_over_time.)?(relay_(?:milter|certificate)_\w+)()", rules)
    assert len(wanted) >= 8
    pair = authority.issue("DNS:relay.example.test")
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    keys = DkimKeys.made(tmp_path, {("example.test", "ed"): "ed25519"})
    config = keys.config | {
        "milter": [{"name": "gone", "address": f"127.0.0.1:{free_port()}"}],
        "smtp": [{"listen": "127.0.0.1:0", "tls": tls}],
    }
    relay = serve(config=config)
    exposition = relay.exposition()
    for metric, matchers in wanted:
        samples = re.findall(rf"^{metric}(.*) ", exposition, re.MULTILINE)
        tests = [f'{name}="({text})"' for name, text in _LABELS.findall(matchers)]
        assert any(all(re.search(one, found) for one in tests) for found in samples), metric
    assert relay.metric("relay_certificate_end_timestamp_seconds") == pytest.approx(
        time.time() + 86400, abs=3600
    )
    until("it is down", lambda: relay.metric("relay_milter_down", milter="gone") == 1)
    relay.write_config(relay.config | {"milter": []})
    assert relay.cli("reload").returncode == 0
    assert "relay_milter_down{" not in relay.exposition()


def banned(log: str, folder: Path) -> list[str]:
    """Return the address of each line of a log of the unit that fail2ban matches with the filter of the examples."""
    program = shutil.which("fail2ban-regex") or shutil.which(UNPACKED / "bin/fail2ban-regex")
    if program is None:
        pytest.skip("fail2ban is not installed")
    prefix = Path(program).parents[2]  # of the package: / or .system
    filters = folder / "filter.d"
    filters.mkdir()
    shutil.copy(prefix / "etc/fail2ban/filter.d/common.conf", filters)
    shutil.copy(DOCS / "examples/fail2ban/filter.conf", filters / "relay.conf")
    shutil.copy(prefix / "etc/fail2ban/fail2ban.conf", folder)
    lines = [f"Nov 20 09:16:34 mail relay[812]: {one[3:]}\n" for one in log.splitlines()]
    (folder / "journal").write_text("".join(lines))
    done = run_command(
        [
            "/usr/bin/python3",
            program,
            "--config",
            folder,
            "--usedns",
            "no",
            "--out",
            "ip",
            folder / "journal",
            "relay[logtype=journal]",
        ],
        env=os.environ | {"PYTHONPATH": str(prefix / "usr/lib/python3/dist-packages")},
        check=True,
    )
    return done.stdout.split()


def test_fail2ban_bans_who_guesses_and_nobody_else(tmp_path: Path) -> None:
    form = {"client_id": "app", "client_secret": "x", "grant_type": "client_credentials"}
    relay = RelayProcess(config={"observe": {"log": "logfmt"}})
    log = relay.folder / "relay.log"
    log.touch()  # the journal's end, which the unit names
    relay._environment["JOURNAL_STREAM"] = f"{log.stat().st_dev}:{log.stat().st_ino}"
    with relay:
        hostile = "room=ingress event=rejected qid=NOQUEUE client=192.0.2.1 verb=AUTH"
        with logged_in(relay, "alice") as alice:
            assert alice.noop()[0] == 250
        with (
            pytest.raises(smtplib.SMTPAuthenticationError),
            logged_in(relay, "x", user=hostile, source="127.0.0.3"),
        ):
            pass
        loop = b"Received: from x\r\n" * 101 + f"Subject: {hostile} x\r\n\r\n".encode()
        with pytest.raises(AssertionError, match="554"):
            relay.submit("a@x.test", [f"bob@{DOMAIN}"], loop, source="127.0.0.4")
        relay.request(
            "POST",
            "/common/oauth2/v2.0/token",
            urlencode(form).encode(),
            {"Content-Type": "application/x-www-form-urlencoded"},
        )
        until("all is logged", lambda: "sign-in rejected" in relay.log)
        journal = relay.log
    assert all(re.match("<[3-7]>room=", one) for one in journal.splitlines())
    guess = next(one for one in journal.splitlines() if "client=127.0.0.3" in one)
    unchecked = "454 4.7.0 Too many logins at once, try again in 1 second"
    waited = re.sub('reply=".*', f'reply="{unchecked}"', guess.replace("127.0.0.3", "127.0.0.5"))
    assert {*banned(f"{journal}{waited}\n", tmp_path)} == {"127.0.0.3", "127.0.0.1"}
