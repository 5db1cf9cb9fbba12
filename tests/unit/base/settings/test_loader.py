"""relay.toml becomes the tree, or every fault of it is told with its place."""

import os
from pathlib import Path

import pytest

from relay.base.settings.document import SettingsError
from relay.base.settings.reader import load
from relay.base.settings.tree import SmtpListener
from relay.base.settings.validation import verifies
from relay.base.socket_address import Address
from tests.support.tables import each_row, rows_of
from tests.support.tls import self_signed

LOGIN = "{user='u', password_file='secret'}"
ROUTE = "[[route]]\ndomain = '*'\n"
OWN = "[[domain]]\nname = '{}.test'\nalias_of = '{}.test'\n"
DKIM = "[[dkim]]\ndomain = 'a.test'\nselector = 's1'\nkey = 'k'\n"
CLIENT = "[[oauth]]\nname = 'm'\nprovider = 'microsoft'\ntenant = 't.test'\nclient_id = 'x'\n"
CLOUD = f"{CLIENT}{ROUTE}next_hop = 'graph://a.test'\nauth = {{user = 'p@b.test', oauth = 'm'}}\n"
AT = "fallback = 'smtp://b:1'\nfallback_auth = {user = 'q@b.test', oauth = "
SMALL = 'hostname = "relay.example.test"\nstate_dir = "state"\n'


# a CA that nobody has the key of
CA = """\
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUWnykbSG/GLXp2N0KO5GxdyQCrugwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjEwMTM4NTNaGA8yMTI2MTAyODAxMzg1
M1owDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABB3C
zq5YgznbTEqS4viLtaMhzc1LU2p2zYi3/0qQRYb78ILDg8M7Evu3srqCNCQvpF7K
AnsWP+IGmtZU9QD/rw2jUzBRMB0GA1UdDgQWBBRrGvyspAPTlj9eCEeHYw9LrBJ8
xjAfBgNVHSMEGDAWgBRrGvyspAPTlj9eCEeHYw9LrBJ8xjAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIA1OCWSZVk3spu4NCpEmxciLyg48ZLTGYsnx
dxLw+BPVAiEAp+6wnHJMxUlN+op06LmaqBeMiTnkgJUcufQOhfU6xLY=
-----END CERTIFICATE-----
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with a short name: the sockets in state_dir need one."""
    (tmp_path / "secret").write_text("pa55\n")
    (tmp_path / "ca.pem").write_text(CA)
    return tmp_path


def loaded(folder: Path, text: str, **environ: str):
    (folder / "relay.toml").write_text(text)
    return load(folder / "relay.toml", environ)


def faults(folder: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        loaded(folder, text, **environ)
    return [str(fault).removeprefix(f"{folder}/relay.toml") for fault in caught.value.faults]


def test_two_lines_are_enough(folder):
    settings = loaded(folder, SMALL)
    assert settings.hostname == "relay.example.test"
    assert settings.state_dir == folder / "state"
    assert settings.mailboxes.root == folder / "mail"
    assert settings.mailboxes.accounts == folder / "accounts.toml"
    assert settings.policy.directory == folder / "policies"
    assert settings.http.listen == (Address("127.0.0.1", 8025),)
    assert settings.smtp == ()


@pytest.mark.parametrize("written", [None, (), ("192.0.2.0/24",)])
@pytest.mark.parametrize("role", ["relay", "submission", "submissions"])
def test_only_a_relay_listener_trusts_loopback_unless_told(role, written):
    given = {} if written is None else {"trusted_networks": written}
    listener = SmtpListener(listen=Address("::1", 25), role=role, **given)
    by_role = ("127.0.0.0/8", "::1/128") if role == "relay" else ()
    assert listener.trusted_networks == (by_role if written is None else written)


@each_row(
    "next_hop, more, verified",
    [
        ("smtp://h.test:587", f"auth = {LOGIN}", True),
        ("smtps://h.test:465", f"auth = {LOGIN}", True),
        ("smtp://192.0.2.1:587", f"auth = {LOGIN}", True),
        ("smtp://127.0.0.1.h.test:587", f"auth = {LOGIN}", True),
        ("smtp://h.test:587", f"auth = {LOGIN}\nca = 'ca.pem'", True),
        ("smtp://h.test:587", f"auth = {LOGIN}\nca = ''", True),
        ("smtp://h.test:587", f"auth = {LOGIN}\ntls = 'required'", False),
        ("smtp://h.test:587", f"auth = {LOGIN}\ntls = 'opportunistic'", False),
        ("smtp://h.test:587", "", False),
        ("smtp://h.test:587", "tls = 'none'", False),
        ("smtp://h.test:587", "tls = 'verify'\nca = 'ca.pem'", True),
        ("smtp://localhost:587", f"auth = {LOGIN}", False),
        ("smtp://127.0.0.11:587", f"auth = {LOGIN}", False),
        ("smtp://127.0.0.11:587", f"auth = {LOGIN}\ntls = 'none'", False),
        ("smtp://127.0.0.11:587", f"auth = {LOGIN}\ntls = 'verify'", True),
        ("smtps://[::1]:465", f"auth = {LOGIN}", False),
        ("mx", "tls = 'verify'", True),
        ("mx", "", False),
        ("capture", "", False),
    ],
)
def test_a_login_for_another_machine_has_the_certificate_verified(folder, next_hop, more, verified):
    (route,) = loaded(folder, f"{SMALL}{ROUTE}next_hop = '{next_hop}'\n{more}\n").route
    assert verifies(route) is verified


def test_all_faults_are_told_at_once(folder):
    told = faults(
        folder,
        """hostnme = "x"
state_dir = "state"
[http]
listen = ["127.0.0.1:80"]
[[smtp]]
listen = "127.0.0.1:80"
role = "submision"
[delivery]
retry = ["1m",
  "5 lightyears"]
max_connections = 0
""",
    )
    assert told == [
        ": hostname: found nothing, expected a value: this key is required",
        (
            ":1: hostnme: found an unknown key, expected one of delivery, dkim, dns, domain, hostname, http,"
            " limits, mailboxes, milter, oauth, observe, policy, pressure, reports, route, sendmail, smtp, smtp_gate, spool,"
            ' state_dir, suppression, tenant, webhook (did you mean "hostname"?)'
        ),
        (
            ':6: smtp[0].listen: found "127.0.0.1:80", expected an address that no other'
            " listener has"
        ),
        (
            ':7: smtp[0].role: found "submision", expected one of relay, submission, submissions'
            ' (did you mean "submission"?)'
        ),
        (
            ':10: delivery.retry[1]: found "5 lightyears", expected a duration such as "8s", "5m",'
            ' "4h", "2d", or a number of seconds'
        ),
        ":11: delivery.max_connections: found 0, expected a whole number from 1 to 10000",
    ]


@each_row(
    "text, fault",
    [
        *rows_of(
            r"""
            [http] / listen = '127.0.0.1:80' | 4: http.listen: found "127.0.0.1:80", expected a list
            [smtp] / listen = '127.0.0.1:25' | 3: smtp: found a table, expected [[smtp]]
            http = 5 | 3: http: found 5, expected a table
            [http] / anonymous = "a@b.test" / listen = ["127.0.0.1:1", "0.0.0.0:2"] | 4: http.anonymous: found
            [http] / anonymous = "a@b.test" / proxy_networks = ["127.0.0.1/32"] | expected no proxy_networks
            [http] / anonymous = "a@b.test" / public_url = "https://a.test" | and no public_url
            [delivery] / port = 1.0 | 4: delivery.port: found 1.0, expected a whole
            [delivery] / retry = [] | 4: delivery.retry: found a list, expected a list of at least
            [pressure] / memory = '1 kiB' | 4: pressure.memory: found "1 kiB", expected 0, or a size of 16 MiB to 1024 TiB
            [mailboxes] / domains = ['b.test'] / srs_domain = 'a.test' | 5: mailboxes.srs_domain: found "a.test", expected one of mailboxes.domains
            [[domain]] / name = 'a.test' / recipients = 'all' | 5: domain[0].recipients: found "all", expected accounts, any, verify or "file:PATH"
            [mailboxes] / domains = ['a.test'] / [[domain]] / name = 'A.test' | 6: domain[0].name: found "A.test", expected a name that is not in mailboxes.domains
            [[domain]] / name = 'a.test' / recipients = 'any' / alias_of = 'b.test' / [[domain]] / name = 'b.test' | domain[0]: found a table, expected no recipients, catch_all or postmaster with
            [[domain]] / name = 'a.test' / recipients = 'any' / catch_all = 'x@b.test' / [[domain]] / name = 'b.test' | domain[0].catch_all: found "x@b.test", expected catch_all only with recipients
            [[domain]] / name = 'a.test' / recipients = 'any' / [[route]] / domain = 'a.test' / next_hop = 'local' | route[0].next_hop: found "local", expected another one: no account has an address
            [[route]] / domain = '*' / next_hop = 'local' / max_connections = 3 | 6: route[0].max_connections: found 3, expected max_connections only with an mx
            [[route]] / domain = '*' / next_hop = 'mx' / recipient = 'b@a.test' | route[0].recipient: found "b@a.test", expected an address at *, the domain of the route
            [[route]] / next_hop = 'mx' / recipient = '*@a.test' | found "*@a.test", expected one address: domain takes all
            [[route]] / domain = '*' / next_hop = 'local' / fallback = 'smtp://a.test:25' | route[0].fallback: found "smtp://a.test:25", expected fallback only with
            [[route]] / domain = '*' / next_hop = 'mx' / fallback = 'smtps://a.test:25' / tls = 'none' | route[0].tls: found
            [dns] / protocols = ['ipv4'] / [[route]] / domain = '*' / next_hop = 'smtp://[::1]:25' | route[0].next_hop: found
            [[route]] / domain = '*' / next_hop='smtp://h:25' / requiretls = 'verified' | 6: route[0].requiretls: found "verified", expected requiretls only with tls = "verify" and
            [[route]] / domain = '*' / next_hop='lmtp:unix:/run/lmtp' / auth = {user='u', password_file='secret'} | 6: route[0].auth: found a table, expected auth only with an smtp://, smtps://
            [[route]] / domain = '*' / next_hop='smtp://a.test:25' / auth = { user = 'a@b.test', oauth = 'x' } | 6: route[0].auth.oauth: found "x", expected the name of an [[oauth]]: there is none
            [[route]] / domain = '*' / next_hop = 'smtp://h.test:1' / fallback_auth = {user='u', password_file='secret'} | fallback_auth only with a graph:// next hop
            [[route]] / domain = '*' / next_hop = 'smtp://h.test:1' / reports = true | reports only with a graph:// next hop
            [[route]] / domain = '*' / next_hop='smtp://h:1' / auth = {user='u', password_file='nope'} | 6: route[0].auth.password_file: found "nope", expected the path of an existing file
            [[route]] / domain = '*' / next_hop='mx' / tls = 'dane' | 6: route[0].tls: found "dane", expected another level: dane needs validating = true
            [dns] / validating = true / [[route]] / domain = '*' / next_hop='smtp://192.0.2.1:25' / tls = 'dane' | 8: route[0].tls: found "dane", expected another level: dane needs a host that the
            [[route]] / domain = '*' / next_hop = 'smtp://h.test:1' / auth = {user='u', password_file='secret'} / tls = 'none' | 7: route[0].tls: found "none", expected verify or required: a password
            [[route]] / domain = '*' / next_hop = 'smtp://h.test:1' / ca = 'ca.pem' | 6: route[0].ca: found "ca.pem", expected tls = "verify" with ca
            [delivery] / mta_sts_ca = 'secret' | :4: delivery.mta_sts_ca: found "secret", expected a PEM file of CA certificates
            [[smtp]] / listen = '192.0.2.1:587' / role = 'submission' | 5: smtp[0].role: found "submission", expected tls, or a loopback address
            [[smtp]] / listen = 'unix:smtp.sock' / proxy_networks = ['10.0.0.0/8'] | 5: smtp[0].proxy_networks: found a list, expected HOST:PORT in listen
            [[smtp]] / listen = '127.0.0.1:465' / role = 'submissions' | 5: smtp[0].role: found "submissions", expected tls with a certificate
            [[smtp]] / listen = '0.0.0.0:25' / [[smtp]] / listen = '127.0.0.1:25' | 6: smtp[1].listen: found
            [[smtp]] / listen = '127.0.0.1:25' / trusted_networks = ['0.0.0.0/0'] | 5: smtp[0].trusted_networks[0]: found "0.0.0.0/0", expected a network of your own
            """
        ),
        ('"\\u001b[2J" = 5', r"3: '\x1b[2J': found an unknown key"),
        (
            f"[mailboxes]\ndomains = ['c.test']\n{OWN.format('a', 'b')}{OWN.format('b', 'c')}",
            '7: domain[0].alias_of: found "b.test", expected another own domain, without alias_of',
        ),
        (
            (
                "[[oauth]]\nname = 'g'\nprovider = 'google'\nclient_id = 'x'\n"
                f"{ROUTE}next_hop='graph://a.test'\nauth = {{ user = 'a@b.test', oauth = 'g' }}"
            ),
            '10: route[0].auth.oauth: found "g", expected an [[oauth]] that is not Google',
        ),
        (f"{CLOUD}sender = '<>'\nreports = true", "expected addresses, or no sender"),
        (f"{CLOUD}fallback_auth = {LOGIN}", "expected fallback_auth only with a fallback"),
        (f"{CLOUD}{AT}'x'}}", 'fallback_auth.oauth: found "x", expected the name of an [[oau'),
        (f"{CLOUD}{AT}'m'}}".replace("ten", "scope = 'x'\nten", 1), "[[oauth]] without scope"),
        (f"{CLOUD}{AT}'m'}}".replace("smtp:", "lmtp:"), "a password: a token is for smtp://"),
        (
            f"{CLOUD}sender = '*@b.test'\n{AT}'m'}}".replace("q@b.test", "sender"),
            "user of auth too",
        ),
        (
            DKIM.replace("s1", ".".join(["x" * 60] * 4)),
            "expected at most 253 characters of SELECTOR._domainkey.DOMAIN",
        ),
        (
            DKIM + DKIM.replace("s1", "s2") + DKIM.replace("s1", "S1").replace("a.test", "A.Test"),
            '13: dkim[2].selector: found "S1", expected a selector of its own for a.test: dkim[0] has it too',
        ),
        (
            "".join(DKIM.replace("s1", f"s{number}") for number in range(11)),
            '44: dkim[10].domain: found "a.test", expected at most 10 keys for a.test: each signs',
        ),
    ],
)
def test_one_fault(folder, text, fault):
    told = faults(folder, SMALL + text.replace(" / ", "\n"))
    assert len(told) == 1
    assert fault in told[0]


def test_a_password_in_a_url_is_not_shown(folder):
    (fault,) = faults(folder, SMALL + '[spool]\nurl = "postgresql://relay:pa55@db/spool"')
    assert "spool.url: found something else" in fault
    assert "pa55" not in fault


@each_row(
    "text, fault",
    [
        ("hostname = \n", ':1: hostname: found no value of TOML, expected "TEXT" in straight'),
        ('a = 1\nb = "open', ":2: b: found a text without its second quote, expected"),
        ('a = 1\nb = ["c]\n', ":2: b: found a text without its second quote, expected"),
        ("a = 1\na = 2\n", ":2: a: found this key twice, expected it once"),
        ("x = { a = 1, a = 2 }\n", ":1: x: found this key twice, expected it once"),
        ("[http]\n[dns]\n[http]\n", ":3: http: found this table twice, expected it once"),
        ("[[smtp]]\n[smtp]\n", ":2: smtp: found this table twice, expected it once"),
        ('password = Secret="x"\n', ":1: password: found no value of TOML"),
        ('\n  Secret=", "b"]', ":2: found no valid TOML: "),  # no key of Relay: not shown
        ("a = 1\n\u2028b", ":2: found no valid TOML: invalid statement"),
        ("a = " + "[" * 5000, ": found values nested too deeply"),
        ("\na" + ".a" * 20_000 + " = 1", ":2: found a key of more than 130 parts"),
        ("x = {" + "\"a b\" . 'c'." * 100 + "d = 1}", ":1: found a key of more than 130 parts"),
        ("a = 1" + "0" * 5000, ": found a number of thousands of digits"),
        ("# " + "x" * (1 << 20), ": found more than 1048576 bytes"),
    ],
)
def test_what_is_no_toml(folder, text, fault):
    (told,) = faults(folder, text)
    assert told.startswith(fault)


def test_a_file_with_a_byte_order_mark(folder):
    (folder / "relay.toml").write_bytes(b"\xef\xbb\xbfa = 1\n")
    with pytest.raises(
        SettingsError, match=r"relay\.toml:1: found a byte order mark, expected UTF"
    ):
        load(folder / "relay.toml", {})


def test_a_file_that_is_not_utf_8(folder):
    (folder / "relay.toml").write_bytes(b'a = 1\nhostname = "\xff"\n')
    with pytest.raises(SettingsError, match=r"relay\.toml:2: found the byte 0xff, expected UTF-8"):
        load(folder / "relay.toml", {})


def test_a_file_that_is_not_there_or_would_never_end(folder):
    with pytest.raises(SettingsError, match="found no such file"):
        load(folder / "nowhere.toml", {})
    os.mkfifo(folder / "pipe.toml")
    with pytest.raises(SettingsError, match="found no regular file"):
        load(folder / "pipe.toml", {})


@each_row(
    "value, fault",
    [
        ('"${env:NOPE}"', 'found "${env:NOPE}", expected the environment variable NOPE to be set'),
        ('"${file:nope}"', "expected the file nope to be readable (no such file)"),
        ('"${nope}"', "expected ${env:NAME} or ${file:PATH}"),
        ('"${env:BAD}"', 'found "${env:BAD}", expected a domain such as'),
        ('"${env:AGAIN}"', 'found "${env:AGAIN}", expected a domain such as'),  # expanded once
    ],
)
def test_a_reference_that_leads_nowhere_tells_no_secret(folder, value, fault):
    environ = {"BAD": "a secret", "AGAIN": "${env:DOMAIN}", "DOMAIN": "b.test"}
    (told,) = faults(folder, f'state_dir = "state"\nhostname = {value}', **environ)
    assert fault in told
    assert "a secret" not in told


def test_references_are_for_every_kind_of_value(folder):
    (folder / "name").write_text("mail.example.test\r\n")
    settings = loaded(
        folder,
        'hostname = "${file:name}"\nstate_dir = "${env:DIR}/x"\n'
        '[delivery]\nport = "${env:PORT}"\nconnect_timeout = "${env:PORT}"\n'
        'retry = ["${env:AFTER}"]\n',
        DIR="s",
        PORT="2525",
        AFTER="5m",
    )
    assert settings.hostname == "mail.example.test"
    assert settings.state_dir == folder / "s/x"
    assert settings.delivery.port == 2525
    assert settings.delivery.connect_timeout == 2525.0
    assert settings.delivery.retry == (300.0,)


@pytest.mark.parametrize(("written", "size"), [("0", 0), ("'0 MiB'", 0), ("'16 MiB'", 1 << 24)])
def test_a_bound_on_memory_is_left_to_the_relay_or_is_no_slip(folder, written, size):
    assert loaded(folder, SMALL + f"[pressure]\nmemory = {written}").pressure.memory == size


def test_a_certificate_needs_its_own_key(folder):
    for name in ("one", "two"):
        (folder / name).mkdir()
        self_signed(folder / name, "DNS:localhost")
    text = SMALL + '[[smtp]]\nlisten = "192.0.2.1:465"\nrole = "submissions"\n'
    right = 'tls = { certificate = "one/certificate.pem", key = "one/key.pem", require = true }\n'
    tls = loaded(folder, text + right).smtp[0].tls
    assert (tls.certificate, tls.key, tls.require) == (
        folder / "one/certificate.pem",
        folder / "one/key.pem",
        True,
    )
    (told,) = faults(folder, text + right.replace("one/key.pem", "two/key.pem"))
    assert ':6: smtp[0].tls.certificate: found "one/certificate.pem", expected' in told
    assert "KEY_VALUES_MISMATCH" in told
    (told,) = faults(folder, text + right.replace("one/key.pem", "relay.toml"))
    assert "smtp[0].tls.certificate" in told


def test_a_list_of_certificates(folder):
    for name, names in (("one", ()), ("two", ("DNS:b.test",))):
        (folder / name).mkdir()
        self_signed(folder / name, *names or ("IP:127.0.0.1",))
    one, two = (
        f'{{ certificate = "{name}/certificate.pem", key = "{name}/key.pem" }}'
        for name in ("one", "two")
    )
    text = SMALL + '[[smtp]]\nlisten = "127.0.0.1:25"\ntls = '
    tls = loaded(folder, f"{text}[{one}, {two}]").smtp[0].tls
    assert [(place, file.key) for place, file in tls.pairs] == [
        ((0,), folder / "one/key.pem"),
        ((1,), folder / "two/key.pem"),
    ]
    assert loaded(folder, f"{text}[{one}]").smtp[0].tls == loaded(folder, text + one).smtp[0].tls
    for value, expected in [
        (
            f"[{one}, {one}]",
            'smtp[0].tls[1].certificate: found "one/certificate.pem", expected one with a DNS name',
        ),
        (f"[{one}, {two[:-1]}, require = true }}]", "smtp[0].tls[1].require: found an unknown key"),
        (f"[{one}, {two.replace('two/key', 'one/key')}]", "smtp[0].tls[1].certificate: found"),
        (f"[[{one}]]", "smtp[0].tls[0]: found a list, expected a table"),
        ("[]", "smtp[0].tls: found a list, expected a table"),
        (f"[{one}, 1]", "smtp[0].tls[1]: found 1, expected a table"),
        (f"{one[:-1]}, further = [] }}", "smtp[0].tls.further: found an unknown key"),
    ]:
        (told,) = faults(folder, text + value)
        assert expected in told


def test_a_state_dir_too_long_for_its_sockets(folder):
    (told,) = faults(folder, SMALL.replace('"state"', f'"{"d" * 120}"'))
    assert told.startswith(":2: state_dir: found")
    assert "at most 90 bytes" in told


def test_a_folder_whose_name_is_not_utf_8_is_a_fault(folder):
    """SQLite could open nothing in it."""
    (folder / "\udcff").mkdir()
    with pytest.raises(SettingsError, match="expected a name in UTF-8"):
        loaded(folder / "\udcff", SMALL)
