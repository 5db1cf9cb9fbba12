"""Logins of users whom Dovecot alone knows, and the passwords that Dovecot's doveadm hashes."""

import base64
import re
import smtplib
import socket
from collections.abc import Iterator

import pytest

from relay.base.accounts.password_schemes import parse_password
from tests.integration.test_reload import hang_up
from tests.support.commands import run_command
from tests.support.dovecot import NoDovecotError, dovecot_version
from tests.support.dovecot_daemon import DovecotAuth
from tests.support.relay_config import account, to_toml
from tests.support.relay_process import ROOT, RelayProcess, until
from tests.support.tables import each_row

SECRET = "pä55 wörd"
PAGE = (ROOT / "docs" / "operation-users.md").read_text()
RECIPE = PAGE.partition("\n### Logins by Dovecot\n")[2].partition("\n##")[0]
SETTING, SERVICE = re.findall(r"(?ms)^```(?:toml\n\[mailboxes\])?\n(.*?)\n```$", RECIPE)
USERS = {
    f"{name}@example.test": f"{{PLAIN}}{SECRET}"
    for name in ("eve", "eve+tag", "fred", "alice", "gone", "late")
} | {"bare": f"{{PLAIN}}{SECRET}", "ivy@elsewhere.test": f"{{PLAIN}}{SECRET}"}
SCHEMES = [
    *("BLF-CRYPT", "CRYPT", "SHA256-CRYPT", "SHA512-CRYPT", "MD5-CRYPT", "ARGON2I", "ARGON2ID"),
    *("PLAIN", "CLEARTEXT", "SHA", "SHA1", "SHA256", "SHA512", "SSHA", "SSHA256", "SSHA512"),
    *("PBKDF2", "SSHA512.HEX", "SHA512-CRYPT.B64", "PLAIN.HEX"),
]


@pytest.fixture(scope="module")
def dovecot() -> Iterator[DovecotAuth]:
    try:
        with DovecotAuth(USERS, service=SERVICE.replace("relay", "nogroup")) as started:
            yield started
    except NoDovecotError as why:
        pytest.skip(str(why))


def asking(dovecot: DovecotAuth) -> RelayProcess:
    """A relay, not started yet, that asks this Dovecot."""
    key, _, value = SETTING.partition(" = ")
    path = value.strip('"').replace("/run/dovecot", f"{dovecot.folder}/run")
    config = {"mailboxes": {key: path}, "smtp": [{"listen": "127.0.0.1:0", "role": "submission"}]}
    return RelayProcess(config=config, accounts=[account("gone", disabled=True)])


@pytest.fixture(scope="module")
def relay(dovecot: DovecotAuth) -> Iterator[RelayProcess]:
    with asking(dovecot) as made:
        yield made


def login(session: smtplib.SMTP, user: str, password: str, mechanism: str = "PLAIN") -> str:
    """AUTH; return the reply."""
    session.ehlo()
    parts = [f"\0{user}\0{password}"] if mechanism == "PLAIN" else [user, password]
    words = [base64.b64encode(one.encode()).decode() for one in parts]
    code, text = session.docmd("AUTH", f"{mechanism} {words.pop(0)}")
    if code == 334:
        code, text = session.docmd(words.pop(0))
    return f"{code} {text.decode()}"


@each_row("mechanism", ["PLAIN", "LOGIN"])
def test_a_user_of_dovecot_sends_from_its_address_alone(
    relay: RelayProcess, mechanism: str
) -> None:
    with relay.smtp() as session:
        assert login(session, "Eve@example.test", SECRET, mechanism)[:3] == "235"
        for sender in ("alice@example.test", "eve+x@example.test", "eve@elsewhere.test"):
            assert session.mail(sender)[0] == 553, sender
        for sender in ("alice@example.test", "eve+tag@example.test"):
            message = f"From: {sender}\r\nSubject: forged\r\n\r\nx\r\n"
            with pytest.raises(smtplib.SMTPDataError) as refused:
                session.sendmail("eve@example.test", ["bob@example.test"], message)
            assert refused.value.smtp_code == 553
        assert session.mail("")[0] == 250
        session.rset()
        message = f"From: Eve <eve@example.test>\r\nSubject: {mechanism}\r\n\r\nx\r\n"
        assert session.sendmail("eve@example.test", ["bob@example.test"], message) == {}
    until("the mail is there", lambda: mechanism in relay.subjects("bob"))
    for path in ("/me", "/users/eve@example.test/messages", "/relay/v1/messages"):
        answer = relay.graph("GET", path, token=SECRET.encode().hex())
        assert answer.status == 401


@each_row(
    "user, password",
    [
        ("eve@example.test", "wrong"),
        ("eve@example.test", ""),
        ("nobody@example.test", SECRET),
        ("alice@example.test", SECRET),  # an account has the password of the account
        ("alice+tag@example.test", SECRET),
        ("gone@example.test", SECRET),  # also one that is disabled
        ("gone@example.test", "gone"),
        ("bare", SECRET),  # no address, from which it could send
    ],
)
def test_others_are_refused(relay: RelayProcess, user: str, password: str) -> None:
    with relay.smtp() as session:
        assert login(session, user, password).startswith("535 5.7.8 User or password is wrong")


def test_guessers_wait(relay: RelayProcess) -> None:
    replies = []
    for guess in range(6):  # the pause after each failure is as long as the first delay
        with relay.smtp() as session:
            replies.append(login(session, "fred@example.test", f"guess {guess}")[:9])
    assert replies[:3] == ["535 5.7.8"] * 3
    assert "454 4.7.0" in replies
    done = relay.cli("account", "unlock", "fred@example.test")
    assert "1 delay lifted" in done.stdout, done.stderr
    with relay.smtp() as session:
        assert login(session, "fred@example.test", SECRET)[:3] == "235"


def test_a_dovecot_that_is_down_puts_logins_off(dovecot: DovecotAuth) -> None:
    """Not those of accounts, and nobody counts as a guesser."""
    with asking(dovecot) as relay:
        dovecot.stop()
        try:
            for _ in range(4):
                with relay.smtp() as session:
                    assert login(session, "eve@example.test", SECRET).startswith("454 4.7.0 ")
            with relay.smtp() as session:
                assert login(session, "alice@example.test", "alice")[:3] == "235"
            assert f"{dovecot.path}: " in relay.log
            with socket.socket(socket.AF_UNIX) as deaf:
                deaf.bind(str(dovecot.path))
                deaf.listen()
                with relay.smtp() as session:
                    session.ehlo()
                    session.sock.settimeout(60)
                    deaf.settimeout(30)
                    session.putcmd("AUTH", "PLAIN AGV2ZUBleGFtcGxlLnRlc3QAeA==")
                    deaf.accept()[0].close()
                    assert session.getreply()[0] == 454
            dovecot.path.unlink()
        finally:
            dovecot.start()
        with relay.smtp() as session:
            assert login(session, "eve@example.test", SECRET)[:3] == "235"


def test_an_account_ends_the_session_of_the_same_name(relay: RelayProcess) -> None:
    file = relay.folder / "accounts.toml"
    with relay.smtp() as session, relay.smtp() as other:
        assert login(session, "late@example.test", SECRET)[:3] == "235"
        assert login(other, "ivy@elsewhere.test", SECRET)[:3] == "235"
        more = to_toml({"account": [account("late", disabled=True)]})
        file.write_text(file.read_text() + more)
        hang_up(relay, "reloaded")
        assert session.mail("late@example.test")[0] == 421
        assert other.mail("ivy@elsewhere.test")[0] == 250
        other.rset()
        text = relay.config_file.read_text()
        relay.config_file.write_text(text.replace("dovecot_auth", "# "))
        hang_up(relay, "reloaded")
        assert other.mail("ivy@elsewhere.test")[0] == 421


def test_the_name_that_dovecot_knows_decides() -> None:
    """A Dovecot that leaves the domain out takes eve of any domain."""
    forms = {
        "2.3": "auth_username_format = %n\n",
        "2.4": "auth_username_format = %{user|username}\n",
    }
    try:
        with DovecotAuth(
            {"eve": f"{{PLAIN}}{SECRET}"}, service=forms[dovecot_version()]
        ) as dovecot:
            config = {"mailboxes": {"dovecot_auth": f"unix:{dovecot.path}"}}
            with RelayProcess(config=config) as relay, relay.smtp() as session:
                assert login(session, "eve@victim.test", SECRET).startswith("535 5.7.8 ")
                assert '"dovecot_user":"eve"' in relay.log
    except NoDovecotError as why:
        pytest.skip(str(why))


BROKEN = "passdb {\n  driver = checkpassword\n  args = /nonexistent\n}\n"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mechanisms": "cram-md5"}, "expected it in auth_mechanisms"),
        ({"service": BROKEN}, "temporary failure"),
    ],
    ids=["without PLAIN", "with a data base that is down"],
)
def test_a_dovecot_that_cannot_say_puts_logins_off(changes: dict[str, str], told: str) -> None:
    """And tells the operator why."""
    try:
        if "service" in changes and dovecot_version() != "2.3":
            pytest.skip("the part of dovecot.conf is one of 2.3")
        with DovecotAuth({}, **changes) as dovecot:
            config = {"mailboxes": {"dovecot_auth": f"unix:{dovecot.path}"}}
            with RelayProcess(config=config) as relay, relay.smtp() as session:
                assert login(session, "eve@example.test", SECRET).startswith("454 4.7.0 ")
                assert told in relay.log
    except NoDovecotError as why:
        pytest.skip(str(why))


@each_row("scheme", SCHEMES)
def test_what_doveadm_hashes_is_a_password(scheme: str) -> None:
    try:
        done = run_command(["doveadm", "pw", "-s", scheme, "-p", SECRET])
    except FileNotFoundError:
        pytest.skip("doveadm is not installed")
    assert done.returncode == 0, done.stderr
    stored = parse_password(done.stdout.strip())
    assert stored.matches(SECRET)
    assert not stored.matches(SECRET[:-1])


@each_row("option", ["-1", "-5", "-6"])
def test_what_openssl_hashes_is_a_password(option: str) -> None:
    try:
        done = run_command(["openssl", "passwd", option, "-stdin"], input=SECRET + "\n", check=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    stored = parse_password(done.stdout.strip())
    assert stored.matches(SECRET)
    assert not stored.matches(SECRET[:-1])
