"""The blocks of four pages for operators, in their order and as they are printed, lead to a relay that takes
and sends mail; so do the first ones of the page on webhooks.

They run as root on a machine of the test's own. Nothing manages services there: `systemctl` verifies the unit
and starts what it starts, with the rights that it gives. Besides, the test only makes the files that
other programs leave (a certificate of ACME, secrets), the DNS and the next hops.
"""

import json
import re
import shutil
import smtplib
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import run_command
from tests.support.dovecot_daemon import DovecotLmtp
from tests.support.long_tests import long
from tests.support.own_machine import SYSTEMCTL, NoMachineError, OwnMachine, checkout, with_network
from tests.support.relay_config import to_toml
from tests.support.relay_process import ROOT, until
from tests.support.remotes import Remotes, received
from tests.support.tls import Authority, authority

__all__ = ["authority"]

PAGE = "".join(
    (ROOT / f"docs/operation-{name}.md").read_text()
    for name in ("install", "users", "tls", "routes")
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOME = Path("/etc/relay")
PROVIDER = "smtp.provider.example"
STRANGER = "192.0.2.7"
# Blocks that show what is printed, or that other tests have.
ELSEWHERE = {
    "A fallback",
    "A mailbox that moves",
    "Debian package",
    "Import",
    "Limits for each user",
    "Logins by Dovecot",
    "Who may write to an alias",
    "Own domains",
    "Several certificates",
    "HTTPS of `relay dev`",
    "HTTP behind a proxy",
    "Dovecot and mutt on the same mailboxes",
}


def blocks(heading: str) -> list[tuple[str, str]]:
    """Language and text of the blocks of a section, without those of its subsections."""
    section = re.split(rf"^##+ {re.escape(heading)}\n", PAGE, flags=re.MULTILINE)[1]
    return BLOCK.findall(re.split(r"^##+ ", section, maxsplit=1, flags=re.MULTILINE)[0])


class Administrator:
    """Follows the page on the machine."""

    def __init__(self, remotes: Remotes) -> None:
        self._remotes = remotes
        self.config: dict[str, Any] = {"dns": {"nameservers": [str(remotes.dns.address)]}}
        self.followed: set[str] = set()

    def take(self, heading: str) -> list[str]:
        """The texts of the blocks of a section."""
        self.followed.add(heading)
        return [text for _, text in blocks(heading)]

    def run(self, text: str, *, before: list[str] | None = None) -> str:
        """Run a block as it is printed, where the page says that the administrator is."""
        command = [*(before or []), "bash", "-eo", "pipefail", "-c", text]
        done = run_command(command, cwd="checkout", timeout_s=400)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Change relay.toml, which keeps its owner and mode."""
        self.config |= changes
        (HOME / "relay.toml").write_text(to_toml(self.config))

    def restart(self) -> None:
        found = self.run("relay check && systemctl restart relay")
        assert found.startswith("configuration   ok       /etc/relay/relay.toml\n")


def install(administrator: Administrator, *, is_pinned: bool) -> None:
    commands, pinned, edited, start = administrator.take("Install on Debian")
    administrator.run(commands, before=with_network())
    if is_pinned:
        administrator.run(pinned, before=with_network())
    administrator.configure(tomllib.loads(edited))
    Path("/usr/local/bin/systemctl").write_text(SYSTEMCTL)
    Path("/usr/local/bin/systemctl").chmod(0o755)
    printed = administrator.run(start)
    assert printed.split()[-1] == "ready", printed
    shipped, installed = Path("checkout/policies"), HOME / "policies"
    missing = [
        one for one in shipped.rglob("*") if not (installed / one.relative_to(shipped)).exists()
    ]
    assert not missing, missing


def have_accounts(administrator: Administrator) -> None:
    [accounts] = administrator.take("Accounts")
    [alias], [forward] = (
        administrator.take("Aliases"),
        administrator.take("Forward to an outside mailbox"),
    )
    secret = HOME / "billing.secret"
    administrator.run(f"install -m 0640 -g relay /dev/null {secret}; echo plain:x >{secret}")
    documents = [tomllib.loads(each) for each in (accounts, forward, alias)]
    people: dict[str, Any] = {}
    for each in (each for document in documents for each in document.get("account", ())):
        people[each["address"]] = people.get(each["address"], {}) | each
    aliases = [each for document in documents for each in document.get("alias", ())]
    text = to_toml({"account": [*people.values()], "alias": aliases})
    (HOME / "accounts.toml").write_text(text)
    administrator.run("relay check && systemctl reload relay")
    listed = administrator.run("relay account list")
    assert [each for each in people if each not in listed] == []


def have_certificates(administrator: Administrator, authority: Authority) -> None:
    made = authority.issue("DNS:relay.example.org")
    live = Path("/etc/letsencrypt/live/relay.example.org")
    live.mkdir(parents=True)
    shutil.copy(made.certificate, live / "fullchain.pem")
    shutil.copy(made.key, live / "privkey.pem")
    (live / "privkey.pem").chmod(0o600)
    [commands], [https], [pages] = map(
        administrator.take, ("Certificates and keys", "HTTPS", "Pages")
    )
    administrator.run(commands)
    settings = tomllib.loads(https)
    administrator.configure({"http": settings["http"] | tomllib.loads(pages)["http"]})
    administrator.restart()
    with Path("/etc/ssl/certs/ca-certificates.crt").open("a") as file:
        file.write(authority.certificate.read_text())
    url = "https://relay.example.org"
    administrator.run(f"curl -sSf --connect-to ::127.0.0.1:443 {url}/readyz {url}/login")


def send_through_a_provider(
    administrator: Administrator, remotes: Remotes, authority: Authority
) -> None:
    users = {"shop": "s3cret", "relay": "0ther"}
    remotes.port = 587
    tls = authority.issue(f"DNS:{PROVIDER}").server_context()
    provider = remotes.start("customer.example", tls=tls, users=users)
    remotes.dns.zone[PROVIDER] = {"A": [provider.host]}
    [routes] = administrator.take("Send through a provider with a password")
    [command] = re.findall(r"`(install .* /etc/relay/shop.password)`", PAGE)
    for user, password in users.items():
        administrator.run(f"{command.replace('shop', user)} <<<'{password}'")
    administrator.configure(tomllib.loads(routes))
    administrator.restart()
    administrator.run("relay send --to ann@customer.example --body x")
    administrator.run("relay send --from a@shop.example.org --to bob@customer.example --body x")
    for user, route in (("ann", "everybody else"), ("bob", "shop")):
        envelope = received(provider, f"{user}@customer.example")
        assert (envelope.tls, provider.logins[envelope.session]) == (
            True,
            route.split()[0].replace("everybody", "relay"),
        )
    until(
        "the trace names the route",
        lambda: '"shop"' in administrator.run("relay trace last --json"),
    )
    [held], [replies] = administrator.take("Routes"), administrator.take("What providers mean")
    (HOME / "providers.toml").write_text(replies)
    administrator.configure(tomllib.loads(held) | {"delivery": {"providers": "providers.toml"}})
    administrator.restart()
    administrator.run("relay send --to bob@other.test --body x")
    assert len(json.loads(administrator.run("relay queue list --state held --json"))) == 1


def have_a_webhook(administrator: Administrator) -> None:
    page = (ROOT / "docs/webhooks.md").read_text()
    (_, settings), (_, commands), *_ = BLOCK.findall(page)
    *begin, test = commands.splitlines()
    administrator.configure({"webhook": [*tomllib.loads(settings)["webhook"]]})
    administrator.run("\n".join(begin))
    administrator.run(f"{test} || [ $? = 69 ]")  # nobody listens there
    assert "hooks.example.test" in administrator.run("relay webhook list")


def deliver_to_dovecot(administrator: Administrator) -> None:
    route, *services = administrator.take("Deliver to Dovecot by LMTP")
    by_version = dict(zip(("2.3", "2.4"), services, strict=True))
    with DovecotLmtp({"alice@example.org": None}, services=by_version) as dovecot:
        Path("/run/dovecot").mkdir(exist_ok=True)
        Path("/run/dovecot/lmtp").symlink_to(dovecot.path)
        administrator.configure(tomllib.loads(route))
        administrator.restart()
        by_stranger("alice@example.org")
        until("Dovecot has it", lambda: dovecot.mail("alice@example.org"))


def by_lines(administrator: Administrator, text: str) -> None:
    """Run a block of which some lines need the network of the tests."""
    for line in text.splitlines():
        administrator.run(line, before=with_network() if "/pip " in line else [])


def upgrade(administrator: Administrator) -> None:
    unit = Path("/etc/systemd/system/relay.service")
    shipped = unit.read_text()
    old = [line for line in shipped.splitlines() if not line.startswith("RuntimeDirectory")]
    unit.write_text("\n".join(old) + "\n")
    shutil.rmtree("/run/relay")
    shutil.rmtree("/var/spool/relay")
    administrator.configure({"sendmail": {}})
    checked = administrator.run("relay check 2>&1 || true")
    assert 'sendmail.socket: found "/run/relay/submit.sock"' in checked, checked
    [text] = administrator.take("Upgrade")
    by_lines(administrator, text)
    assert unit.read_text() == shipped
    assert "sendmail" not in administrator.run("relay check 2>&1 | grep -v ' ok '")
    administrator.run("echo hello | relay sendmail alice@example.org")


def change_python(administrator: Administrator) -> None:
    for file in Path("/opt/relay/bin").glob("python*"):
        file.unlink()
    administrator.run("! relay --version")
    [text] = administrator.take("After a new release of Debian")
    by_lines(administrator, text)
    administrator.run("echo hello | relay sendmail alice@example.org")


def uninstall(administrator: Administrator) -> None:
    commands, removal = administrator.take("Uninstall")
    administrator.run(commands)
    assert Path("/var/lib/relay/spool.sqlite").exists()
    administrator.run(removal)
    places = "/etc /opt /usr/local/bin /usr/lib/sysusers.d /usr/lib/tmpfiles.d /var/lib /var/spool"
    found = administrator.run(f"find {places} -maxdepth 3 -name 'relay*'").splitlines()
    assert [one for one in found if "letsencrypt" not in one] == []
    assert "relay" not in Path("/etc/passwd").read_text()


def by_stranger(address: str) -> None:
    """Send mail from a host outside."""
    with smtplib.SMTP(STRANGER, 25, source_address=(STRANGER, 0), timeout=20) as client:
        client.sendmail("eve@outside.test", [address], "Subject: hello\r\n\r\nhello\r\n")


def follow(authority: Authority, is_pinned: bool) -> None:
    """All of it, in one process of the machine."""
    subprocess.run(["ip", "address", "add", f"{STRANGER}/32", "dev", "lo"], check=True)
    checkout(Path("checkout"))
    with Remotes() as remotes:
        administrator = Administrator(remotes)
        try:
            install(administrator, is_pinned=is_pinned)
            have_accounts(administrator)
            by_stranger("alice@example.org")
            inbox = Path("/var/lib/relay/mail/example.org/alice/new")
            until("it is in the mailbox", lambda: list(inbox.glob("*")))
            have_certificates(administrator, authority)
            send_through_a_provider(administrator, remotes, authority)
            deliver_to_dovecot(administrator)
            have_a_webhook(administrator)
            upgrade(administrator)
            change_python(administrator)
            uninstall(administrator)
        finally:
            administrator.run("[ ! -x /usr/local/bin/systemctl ] || systemctl stop relay")
    headings = re.findall(r"^##+ (.*)\n", PAGE, re.MULTILINE)
    left = {one for one in headings if blocks(one)} ^ administrator.followed ^ ELSEWHERE
    assert left == set(), left


@pytest.mark.parametrize("is_pinned", [False, pytest.param(True, marks=long)])
def test_the_page_leads_to_a_relay_that_takes_and_sends_mail(
    authority: Authority, *, is_pinned: bool
) -> None:
    for name in (
        "systemd-analyze",
        "systemd-sysusers",
        "systemd-tmpfiles",
        "setpriv",
        "nsenter",
        "ip",
    ):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    try:
        machine = OwnMachine()
    except NoMachineError as error:
        pytest.skip(str(error))
    with machine:
        machine.call(follow, authority, is_pinned)
