"""relay check finds everything that a start would refuse, and starts nothing."""

import asyncio
import errno
import json
import os
import socket
import ssl
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from relay.base.clock import SystemClock
from relay.operation.app.configuration import ActiveConfiguration
from relay.operation.app.state_dir import OwnerLock
from relay.operation.commands import check, check_listeners, check_network
from relay.operation.commands.check import check_file
from relay.operation.commands.check_network import CheckResult
from relay.store.spool.sqlite.database import open_database
from relay.transport.routing import dns_client
from relay.transport.signing.private_keys import new_key, read_pem, write_pem
from relay.transport.signing.record import key_record, txt_strings
from tests.support.dns_server import DnsThread
from tests.support.logs import capture_logs
from tests.support.milter import CLOSE, ScriptedMilter
from tests.support.tables import each_row
from tests.support.tls import authority

__all__ = ["authority"]

CONFIG = """\
hostname = "relay.example.test"
state_dir = "state"
[http]
listen = ["127.0.0.1:0"]
[mailboxes]
domains = ["example.test"]
root = "mail"
accounts = "accounts.toml"
[policy]
directory = "policies"
[dns]
timeout = "0.01s"
nameservers = ["127.0.0.1:1"]
"""
SMTP = '[[smtp]]\nlisten = "127.0.0.1:0"\n'
MILTER = '[[milter]]\nname = "m"\naddress = "127.0.0.1:1"\n'
ACCOUNTS = '[[account]]\naddress = "alice@example.test"\n'
RULE = """\
[[rule]]
name = "no exe"
when = { attachment_name = ["*.exe"] }
then = [ { reject = "5.7.1 no" } ]
[[test]]
name = "t"
from = "a@b.test"
to = ["c@d.test"]
attachments = ["a.exe"]
expect = { verdict = "reject" }
"""


@pytest.fixture
def files(tmp_path):
    """Write files over a good set and return what check finds, by what it looked at."""

    def found(**changed):
        written = {"relay": CONFIG, "accounts": ACCOUNTS, "policies/10": RULE, **changed}
        (tmp_path / "policies").mkdir(exist_ok=True)
        for name, text in written.items():
            file = tmp_path / f"{name}.toml"
            file.write_text(text)
            file.chmod(0o600)
        before = sorted(tmp_path.rglob("*"))
        findings = list(check_file(tmp_path / "relay.toml", {}, SystemClock()))
        assert sorted(tmp_path.rglob("*")) == before, "check made something"
        return findings

    found.folder = tmp_path
    found.faults = lambda config: of(found(relay=config), CheckResult.FAULT)
    return found


def of(findings, verdict):
    return [(one.what, one.text) for one in findings if one.verdict is verdict]


@contextmanager
def running(state_dir):
    """As if this process were the relay of that directory."""
    lock = OwnerLock(state_dir / "run")
    lock.take()
    try:
        yield
    finally:
        lock.give_back()


def with_dns(address, timeout="10s"):
    return CONFIG.replace("127.0.0.1:1", str(address)).replace("0.01s", timeout)


def places(warnings):
    """The keys that the warnings name."""
    return [text.partition(": found")[0].rpartition(" ")[2] for _, text in warnings]


def test_a_good_set_has_no_fault(files):
    findings = files()
    assert of(findings, CheckResult.FAULT) == []
    assert [one.what for one in findings] == [
        "configuration",
        "accounts",
        "policy",
        "state_dir",
        "mailboxes.root",
        "listeners",
        "smtp_gate",
        "spool",
        "dns",
    ]


def test_name_servers_that_do_not_answer_are_no_fault_of_the_files(files):
    ((what, text),) = of(files(), CheckResult.FAILED)
    assert (what, "127.0.0.1:1" in text) == ("dns", True)


ALL = '[[route]]\ndomain = "*"\nnext_hop = "{}"\n'
GRAPH = "graph://127.0.0.9"
AUTH = 'auth = { user = "p@a.test", oauth = "o" }\n'
REPORTS = f"reports = true\n{AUTH}"
CLIENT = '[[oauth]]\nname = "o"\nprovider = "microsoft"\ntenant = "t.test"\nclient_id = "c"\nclient_secret = "s"\n'
MX_LOST = "mail that needs an MX record is deferred for that"


@each_row(
    "routes, lost",
    [
        ("", MX_LOST),
        (ALL.format("mx"), MX_LOST),
        (ALL.format("smtp://hub.test:25") + 'sender = "*@example.test"\n', MX_LOST),
        (ALL.format("hold"), MX_LOST),
        (ALL.format("capture") + '[[domain]]\nname = "own.test"\nrecipients = "any"\n', MX_LOST),
        (ALL.format("smtp://hub.test:2525"), ""),
        (ALL.format("smtp://127.0.0.9:2525"), ""),
        (ALL.format("lmtp:unix:/run/x"), ""),
        (ALL.format(GRAPH) + AUTH + CLIENT, MX_LOST),  # where reports go
        (ALL.format("reject:closed"), ""),
        (ALL.format("smtp://gone.test:2525"), "mail by gone.test is deferred for that"),
    ],
)
def test_name_servers_without_an_answer_fail_where_mail_needs_them_unless_they_refuse(
    files, routes, lost
):
    for answer, needed in (("SERVFAIL", CheckResult.FAILED), ("REFUSED", CheckResult.WARNING)):
        zone = dict.fromkeys(("relay-check.invalid", "gone.test"), answer)
        with DnsThread(zone | {"hub.test": {"A": ["127.0.0.9"]}}) as dns:
            found = [
                one for one in files(relay=with_dns(dns.address) + routes) if one.what == "dns"
            ]
        [(verdict, text)] = [(one.verdict, one.text) for one in found]
        assert verdict is (needed if lost else CheckResult.WARNING)
        assert f"answered {answer}: {lost or 'no mail is deferred for that'}" in text


def test_a_refusal_of_the_name_servers_is_451_for_checked_senders(files):
    with DnsThread({"relay-check.invalid": "REFUSED"}) as dns:
        for mode in ("off", "enforce"):
            config = with_dns(dns.address) + SMTP + f'sender_checks = "{mode}"'
            [text] = [one.text for one in files(relay=config) if one.what == "dns"]
            assert ("strangers get 451" in text) is (mode != "off")


async def test_each_milter_is_connected_to(files, short_path):
    gone = f"unix:{short_path / 'gone'}"
    async with (
        ScriptedMilter().at() as good,
        ScriptedMilter(version=7).at() as new,
        ScriptedMilter({b"O": CLOSE}).at() as shut,
    ):
        addresses = {"good": good, "new": new, "shut": shut, "gone": gone}
        milters = [f'[[milter]]\nname = "{x}"\naddress = "{y}"\n' for x, y in addresses.items()]
        found = await asyncio.to_thread(files, relay=CONFIG + "".join(milters))
    assert ("milter", f'"good" at {good}') in of(found, CheckResult.OK)
    down = [
        text.partition("relay.toml:")[2]
        for what, text in of(found, CheckResult.WARNING)
        if what == "milter"
    ]
    assert down == [
        f'19: milter[1].address: "new" at {new} is down: version 7 of the protocol, expected 2 to 6',
        f'22: milter[2].address: "shut" at {shut} is down: the connection was closed',
        f'25: milter[3].address: "gone" at {gone} is down: no such file or directory',
    ]


def test_the_key_of_srs_addresses_is_read_and_never_made(files):
    state = files.folder / "state"  # files() fails if a check makes the key
    assert of(files(), CheckResult.FAULT) == []
    state.mkdir(exist_ok=True)
    (state / "srs.key").touch(0o600)
    ((what, text),) = of(files(), CheckResult.FAULT)
    assert what == "srs key"
    assert text.startswith(f"{state}/srs.key: found nothing, expected a secret of 16 to 1,024 ")


def more(text: str) -> dict[str, str]:
    """What is changed where relay.toml goes on with `text`."""
    return {"relay": CONFIG + text}


def instead(old: str, new: str) -> dict[str, str]:
    return {"relay": CONFIG.replace(old, new)}


def http(line: str) -> dict[str, str]:
    return instead("[http]", f"[http]\n{line}")


AS_ALICE = http('anonymous = "alice@example.test"')
OWN = '[[domain]]\nname = "b.test"\n'
FAULTS = [
    (more("bogus = 1\n"), "configuration", "relay.toml:14: dns.bogus: "),
    ({"relay": "x = ["}, "configuration", "relay.toml:1: "),
    (
        more('[reports]\nlanguage = "fr"\n'),
        "configuration",
        'reports.language: found "fr", expected one of de',
    ),
    (
        {"relay": f'smtp_gate = "on"\n{CONFIG}{SMTP}{MILTER}'},
        "configuration",
        'relay.toml:1: smtp_gate: found "on"',
    ),
    ({"accounts": ACCOUNTS + "pasword = 1\n"}, "accounts", "accounts.toml:3: account[0].pasword"),
    (
        {"accounts": ACCOUNTS + 'language = "fr"\n'},
        "accounts",
        'account[0].language: found "fr", expected one of de',
    ),
    (http('anonymous = "nobody@example.test"'), "accounts", "http.anonymous: found"),
    *[
        (
            {**AS_ALICE, "accounts": f'{ACCOUNTS}role = "{role}"\n'},
            "accounts",
            f"with the role {role}, expected the role user",
        )
        for role in ("read", "operate")
    ],
    (more(f'{OWN}postmaster = "no@b.test"\n'), "routes", "relay.toml:16: domain[0].postmaster: "),
    (more(f'{OWN}recipients = "file:l"\n'), "routes", "relay.toml:16: domain[0].recipients: "),
    (
        more('[reports]\ncomplaints = "no@x.test"\n'),
        "routes",
        "relay.toml:15: reports.complaints: ",
    ),
    ({"policies/10": RULE.replace("when", "wen")}, "policy", "10.toml:3: "),
    ({"policies/10": RULE.replace('"reject"', '"accept"')}, "policy", "10.toml:5: "),
    (instead("127.0.0.1:0", "192.0.2.1:8025"), "listeners", "expected an address of this machine"),
    (
        more('[sendmail]\nsocket = "nowhere/submit.sock"\ndrop = ""\n'),
        "sendmail",
        "sendmail.socket: found",
    ),
]


@each_row("changed, what, expected_text", FAULTS)
def test_a_fault_has_its_file_and_line_and_refuses_a_start(files, changed, what, expected_text):
    findings = files(**changed)
    [(name, text)] = of(findings, CheckResult.FAULT)
    assert [one.refuses_start for one in findings if one.verdict is CheckResult.FAULT] == [True]
    assert name == what
    assert f"{files.folder}/" in text or what == "accounts"
    assert expected_text in text


def route(domain: str, **more: str) -> str:
    keys = {"domain": domain, "next_hop": "mx"} | more
    return "[[route]]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items())


NAMED = 'public_url = "https://mail.example.test"'
OFF = '[[rule]]\nname = "r"\nmode = "off"\nwhen = { sender = "group:staff" }\nstop = true\n'
TO = '[[rule]]\nname = "to"\nwhen = {{ recipient = ["{}"] }}\nthen = [{{ hold = "seen" }}]\n'
ANYWHERE, LOOPBACK = '"0.0.0.0:0"', '"127.0.0.1:0"'
FALLBACK = {"domain": "a.test", "fallback": "smtp://b.test:25"}
WARNINGS = [
    (instead("relay.example.test", "relay.example.org"), ["hostname"]),
    ({**instead('domains = ["example.test"]\n', ""), "accounts": ""}, ["mailboxes.domains"]),
    *[
        (more(route("*", next_hop=hop)), ["route[0].next_hop"])
        for hop in ("reject:no", "capture", "local")
    ],
    (more(route("*.corp.test", next_hop="reject:no")), []),
    (more(route("a.test") + route("*", next_hop="reject:no")), []),
    (more('[delivery]\nexpire_after = "5m"\nretry = ["6m"]\n'), ["delivery.expire_after"]),
    (more('[delivery]\nexpire_after = "5m"\nretry = ["5m"]\n'), []),
    (more(route("a.test", fallback_after="1h")), ["route[0].fallback_after: found 3600 s"]),
    (more(route(**FALLBACK, fallback_after="2d")), ["route[0].fallback_after"]),
    (more(route(**FALLBACK, fallback_after="47h")), []),
    ({"accounts": ACCOUNTS + 'token = "plain:hidden"\n'}, ["account[0].token"]),
    ({"policies/10": RULE + OFF}, ['found no group "staff"']),
    *[
        ({"policies/10": RULE + TO.format(to)}, [f"never match, found {to}, expected"])
        for to in ("nobody@example.test", "al.ice@example.test")
    ],
    *[
        ({"policies/10": RULE + TO.format(to)}, [])
        for to in (
            *("ALICE+x@example.test", "?@example.test", "anybody@elsewhere.test"),
            *("group:own", "postmaster@example.test"),
        )
    ],
    (instead(LOOPBACK, f'{ANYWHERE}, "[::1]:0", "unix:http.sock"'), ["http.listen[0]"]),
    (instead("[policy]", '[observe]\nmetrics = "0.0.0.0:0"\n[policy]'), ["observe.metrics"]),
    *[
        ({"relay": http(NAMED)["relay"].replace(LOOPBACK, listen)}, ["http.public_url"])
        for listen in (LOOPBACK, '"unix:http.sock"')
    ],
    (http(f'{NAMED}\nproxy_networks = ["127.0.0.1/32"]'), []),
    (more('[limits]\nalert = "gone@example.test"\n'), ["limits.alert: "]),
    (more('[limits]\nalert = "alice+x@example.test"\n'), []),
    (more('[limits]\nalert = "x@other.test"\n'), []),
]


HASHED = '[[account]]\naddress = "h@example.test"\npassword = "$6$salt$' + "a" * 86 + '"\n'
DOVECOT = CONFIG.replace("[mailboxes]\n", '[mailboxes]\ndovecot_auth = "unix:/nowhere/auth"\n')
NO_USER = '[sendmail]\nsocket = "submit.sock"\ndrop = ""\nusers = ["root", "no-such-user"]\n'
TOLD = [
    (
        {"accounts": f'{ACCOUNTS}password = "plain:x"\n{HASHED}'},
        "accounts",
        "passwords: 1 PLAIN, 1 SHA512-CRYPT",
    ),
    ({"relay": DOVECOT}, "dovecot_auth", "unix:/nowhere/auth: No such file or directory"),
    ({}, "smtp_gate", "relay serve: there is no [[smtp]]"),
    ({"relay": CONFIG + SMTP + MILTER}, "smtp_gate", "relay serve: there are milters"),
    ({"relay": f'smtp_gate = "off"\n{CONFIG}{SMTP}'}, "smtp_gate", 'smtp_gate is "off"'),
    ({"relay": f'smtp_gate = "on"\n{CONFIG}{SMTP}'}, "smtp_gate", "in a process of their own"),
    ({"relay": CONFIG + NO_USER}, "sendmail", 'users[1]: found "no-such-user"'),
    (
        {"relay": CONFIG + route("none.test", tls="none") + route("x.test")},
        "routes",
        "goes before what a domain publishes: none.test mx",
    ),
]


@each_row("changed, what, text", TOLD)
def test_what_else_is_told(files, changed, what, text):
    [found] = [one for one in files(**changed) if one.what == what and text in one.text]
    assert found.verdict is not CheckResult.FAULT or what == "sendmail"


@each_row("changed, expected", WARNINGS)
def test_what_is_doubtful_causes_a_warning(files, changed, expected):
    warnings = [one for one in of(files(**changed), CheckResult.WARNING) if one[0] != "dns"]
    assert len(warnings) == len(expected), warnings
    assert all(part in text for part, (_, text) in zip(expected, warnings, strict=True))
    assert "hidden" not in str(warnings)


@each_row(
    "more, warned",
    [
        ("", True),
        ("reports = true\n", False),
        (route("a.test", next_hop="mx", sender="<>"), True),
        (route("*", next_hop="reject:5.7.1 No", sender="<>"), False),
        (route("*", next_hop="", sender="<>"), True),  # left out
        (route("*", next_hop="smtp://127.0.0.1:9"), False),
    ],
)
def test_reports_without_a_way_out_cause_a_warning(files, more, warned):
    reports = more if more.startswith("reports") else ""
    graph = route("*", next_hop=GRAPH) + reports + AUTH
    warnings = of(
        files(relay=CONFIG + graph + more.removeprefix(reports) + CLIENT), CheckResult.WARNING
    )
    assert [place for place in places(warnings) if "route" in place] == [
        "route[0].next_hop"
    ] * warned


@each_row(
    "first, second, hidden",
    [
        (route("*"), route("a.test", sender="<>"), True),
        (route("*.a.test"), route("*.x.a.test"), True),
        (route("*.a.test"), route("a.test"), False),
        (route("*", sender="*@s.test"), route("a.test"), False),
        (route("*", sender="*@*.s.test"), route("a.test", sender="*@x.s.test"), True),
        (route("*", sender="*@s.test"), route("a.test", sender="<>"), False),
        (route("*", sender="me@s.test"), route("a.test", sender="*@s.test"), False),
        (route("*", next_hop=GRAPH) + REPORTS, route("a.test", sender="<>") + CLIENT, False),
        (route("*", next_hop=GRAPH) + REPORTS, route("a.test", sender="*@s.test") + CLIENT, True),
        (route("*", sender="<>"), route("a.test", sender="<>"), True),
        (route("*", sender="<>", next_hop=""), route("a.test", sender="<>"), False),  # left out
        (route("*", sender="<>"), route("*", sender="<>", next_hop=""), False),
        (route("*", sender="<>"), route("*", sender="<>", next_hop="reject:5.7.1 No"), False),
        (route("*", next_hop="hold"), route("a.test"), False),  # says where a release sends it
        (route("*", next_hop="hold"), route("a.test", next_hop="hold"), True),
        (route("*"), route("*.test"), False),  # below which is an own domain
        (route("*.test"), route("example.test"), True),
        (route("a.test", recipient="b@a.test"), route("a.test"), False),
        (route("a.test", recipient="b@a.test"), route("a.test", recipient="b+x@a.test"), True),
        (route("a.test", recipient="b+x@a.test"), route("a.test", recipient="b@a.test"), False),
        (route("a.test"), route("a.test", recipient="b@a.test"), True),
    ],
)
def test_a_route_that_gets_no_mail_causes_a_warning(files, first, second, hidden):
    warnings = of(files(relay=CONFIG + first + second), CheckResult.WARNING)
    assert places(warnings) == ["route[1].domain"] * hidden
    text = "found a route that gets no mail: route[0] takes all of it"
    assert all(text in one for _, one in warnings)


@each_row(
    "listen, host, is_own",
    [
        ("127.0.0.1", "localhost:2525", True),
        ("0.0.0.0", "127.0.0.1:2525", True),
        ("0.0.0.0", "relay.example.test:2525", True),
        ("0.0.0.0", "192.0.2.1:2525", False),
        ("127.0.0.1", "127.0.0.1:2526", False),
        ("127.0.0.1", "127.0.0.2:2525", False),
    ],
)
def test_a_route_to_an_own_listener_causes_a_warning(files, listen, host, is_own):
    config = f'{CONFIG}[[smtp]]\nlisten = "{listen}:2525"\n'
    warnings = of(
        files(relay=config + route("a.test", next_hop=f"smtp://{host}")), CheckResult.WARNING
    )
    found = [text for what, text in warnings if what == "routes"]
    text = f'found "smtp://{host}", the address of smtp[0].listen: mail comes back here'
    assert [f"route[0].next_hop: {text}" in one for one in found] == [True] * is_own


def test_a_source_address_that_this_machine_lacks_is_reported(files):
    config = CONFIG + route("a.test", source_address="127.0.0.1")
    assert "routes" not in dict(of(files(relay=config), CheckResult.FAILED))
    config = CONFIG + route("a.test", source_address="192.0.2.1")
    found = dict(of(files(relay=config), CheckResult.FAILED))
    text = found["routes"]
    assert "route[0].source_address: found 192.0.2.1, expected an address of this machine" in text


@each_row(
    "accounts, is_warned",
    [
        ("", True),
        ('[[alias]]\naddress = "root@example.test"\nto = ["alice@example.test"]\n', False),
        ('[[account]]\naddress = "postmaster@example.test"\n', True),
    ],
)
def test_mail_of_cron_that_nobody_gets_causes_a_warning(files, accounts, is_warned):
    config = CONFIG + '[sendmail]\nsocket = "submit.sock"\ndrop = ""\n'
    warnings = dict(of(files(relay=config, accounts=ACCOUNTS + accounts), CheckResult.WARNING))
    assert ("cron writes to root" in warnings.get("accounts", "")) == is_warned


@pytest.fixture
def taken():
    """The address of somebody else's listener."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@each_row(
    "old, new, key",
    [
        ('["127.0.0.1:0"]', '["127.0.0.1:0", "{}"]', ":4: http.listen[1]"),
        ("[policy]", '[[smtp]]\nlisten = "{}"\n[policy]', ":10: smtp[0].listen"),
        ("[policy]", '[observe]\nmetrics = "{}"\n[policy]', ":10: observe.metrics"),
    ],
)
def test_a_port_that_another_program_has_is_a_fault(files, taken, old, new, key):
    faults = files.faults(CONFIG.replace(old, new.format(taken)))
    this = f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
    expected = f'found "{taken}", expected a free address: {this} listens there'
    ((what, text),) = faults
    assert what == "listeners"
    assert text.startswith(f"{files.folder}/relay.toml{key}: {expected}")


def test_the_ports_of_the_relay_that_runs_there_are_no_fault(files, taken):
    config = CONFIG.replace("127.0.0.1:0", taken)
    with running(files.folder / "state"):
        assert files.faults(config) == []
    assert len(files.faults(config)) == 1


def test_unix_sockets_are_checked(files, tmp_path):
    config = CONFIG.replace("127.0.0.1:0", "unix:http.sock")
    place = files.folder / "http.sock"
    assert files.faults(config) == []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        ((_, text),) = files.faults(config)
        assert "expected a free socket: another program listens there" in text
    assert files.faults(config) == []  # it is left behind, and replaced
    place.unlink()
    place.touch()
    ((_, text),) = files.faults(config)
    assert "expected the path of a socket" in text
    ours = CONFIG.replace("127.0.0.1:0", "unix:state/http.sock")  # where a start makes the folder
    assert files.faults(ours) == []
    nowhere = CONFIG.replace("127.0.0.1:0", "unix:nowhere/http.sock")
    ((_, text),) = files.faults(nowhere)
    assert "expected a socket in a directory that this user can write" in text


SMTP_TLS = """\
[[smtp]]
listen = "127.0.0.1:0"
tls = {{ certificate = "{0.certificate}", key = "{0.key}" }}
[policy]"""


def with_certificate(certificate):
    return CONFIG.replace("[policy]", SMTP_TLS.format(certificate))


NAME, EXPECTED = "DNS:relay.example.test", "expected one for relay.example.test or"


@each_row(
    "name, days, verdict, expected",
    [
        (NAME, -1, CheckResult.FAULT, "found one that expired on 20"),
        ("DNS:other.test", 30, CheckResult.FAULT, f"found one for other.test, {EXPECTED}"),
        ("", 30, CheckResult.FAULT, f"found one for no host, {EXPECTED}"),
        (NAME, 5, CheckResult.WARNING, "found one that expires on 20"),
        *[
            (name, 30, None, "")
            for name in (NAME, "DNS:*.example.test", "DNS:localhost", "IP:127.0.0.1")
        ],
    ],
)
def test_a_certificate_is_one_that_clients_accept(files, authority, name, days, verdict, expected):
    made = authority.issue(*[name] * bool(name), days=days)
    findings = files(relay=with_certificate(made))
    found = [one for one in findings if one.verdict in (CheckResult.FAULT, CheckResult.WARNING)]
    assert [(one.what, one.verdict) for one in found] == [("certificates", verdict)] * bool(verdict)
    key = "relay.toml:11: smtp[0].tls.certificate: "
    assert all(key + expected in one.text for one in found)


@each_row(
    "listen, keys, password, is_named",
    [
        ("0.0.0.0:0", "", "x", True),
        ("systemd:25", "", "x", True),  # a start knows where that is
        ("0.0.0.0:0", "auth = false", "x", False),
        ("0.0.0.0:0", "", "", False),
        ("127.0.0.1:0", "", "x", False),
        ("127.0.0.1:0", 'proxy_networks = ["127.0.0.1/32"]', "x", True),
    ],
)
def test_a_port_without_auth_by_default_is_named(
    files, authority, listen, keys, password, is_named
):
    made = authority.issue("DNS:relay.example.test", days=30)
    smtp = SMTP_TLS.format(made).replace('"127.0.0.1:0"', f'"{listen}"\n{keys}')
    accounts = ACCOUNTS + f'password = "plain:{password}"\n' * bool(password)
    config = CONFIG.replace("[policy]", smtp)
    warnings = of(files(relay=config, accounts=accounts), CheckResult.WARNING)
    named = ["smtp[0].auth"] * is_named
    assert places(warnings) == ["account[0].password"] * bool(password) + named
    with capture_logs() as logs:
        ActiveConfiguration(files.folder / "relay.toml", {}, clock=SystemClock()).close()
    assert [one["key"] for one in logs if one["event"] == "AUTH is off"] == named
    with_submission = f'{config}[[smtp]]\nlisten = "127.0.0.1:0"\nrole = "submission"\n'
    warnings = of(files(relay=with_submission, accounts=accounts), CheckResult.WARNING)
    assert "smtp[0].auth" not in places(warnings)


def with_https(made, listen='"0.0.0.0:0"'):
    tls = f'tls = {{ certificate = "{made.certificate}", key = "{made.key}" }}'
    return CONFIG.replace('listen = ["127.0.0.1:0"]', f"listen = [{listen}]\n{tls}")


def test_faults_with_which_a_start_goes_on_say_so(files, authority):
    """Rules of a tenant, an old certificate, a mail root, a secret for tokens, a port in use."""
    made = authority.issue(NAME, days=-1)
    more = '[[tenant]]\nname = "t"\ndomains = ["t.test"]\n' + CLIENT
    more = more.replace('client_secret = "s"', f'certificate = "{made.certificate}"')
    config = with_certificate(made).replace('root = "mail"', 'root = "relay.toml/mail"')
    config = config.replace('["example.test"]', '["example.test", "t.test"]') + more
    (files.folder / "policies/t").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        config = config.replace('listen = ["127.0.0.1:0"]', f'listen = ["127.0.0.1:{port}"]')
        findings = files(relay=config, **{"policies/t/10": "x = 1\n"})
        ActiveConfiguration(files.folder / "relay.toml", {}, clock=SystemClock()).close()
    found = {one.what: one.refuses_start for one in findings if one.verdict is CheckResult.FAULT}
    whats = ("policy", "mailboxes.root", "listeners", "certificates", "oauth")
    assert found == dict.fromkeys(whats, False)


def test_https_for_other_machines_is_in_order(files, authority):
    made = authority.issue("DNS:relay.example.test", days=30)
    findings = files(relay=with_https(made))
    assert of(findings, CheckResult.FAULT) == of(findings, CheckResult.WARNING) == []
    config = with_https(made, '"http://0.0.0.0:0", "127.0.0.1:0"')
    assert places(of(files(relay=config), CheckResult.WARNING)) == ["http.listen[0]"]


ROUTE = """\
[[route]]
domain = "*"
next_hop = "smtp://{}:587"
auth = {{ user = "u", password_file = "secret" }}
{}
[policy]"""


@each_row(
    "host, tls, count",
    [
        ("h.test", "required", 1),
        ("h.test", "opportunistic", 1),
        ("h.test", "verify", 0),
        ("h.test", "", 0),
        ("127.0.0.1", "required", 0),
        ("localhost", "required", 0),
    ],
)
def test_a_login_without_tls_verification_causes_a_warning(files, host, tls, count):
    (files.folder / "secret").write_text("pa55\n")
    (files.folder / "secret").chmod(0o600)
    line = f'tls = "{tls}"' if tls else ""
    findings = files(relay=CONFIG.replace("[policy]", ROUTE.format(host, line)))
    assert of(findings, CheckResult.FAULT) == []
    warnings = [one for one in of(findings, CheckResult.WARNING) if one[0] == "routes"]
    assert len(warnings) == count
    expected_text = f'relay.toml:13: route[0].tls: found "{tls}" with auth, expected verify: '
    assert all(expected_text in text for _, text in warnings)


def test_secrets_that_others_can_read_cause_a_warning(files, authority):
    made = authority.issue("DNS:relay.example.test", days=31)
    (files.folder / "secret").write_text("pa55\n")
    route = ROUTE.format("h.test", "").replace('"*"', '"h.test"')
    config = with_certificate(made).replace("[policy]", route)
    for mode, count in ((0o640, 0), (0o604, 2)):
        for file in (files.folder / "secret", made.key):
            file.chmod(mode)
        warnings = of(files(relay=config), CheckResult.WARNING)
        assert len(warnings) == count
    assert places(warnings) == ["route[0].auth.password_file", "smtp[0].tls.key"]
    assert f"found mode 0604 of {made.key}: others can read it (chmod o-rwx)" in warnings[1][1]
    made.key.chmod(0o600)


def test_files_of_references_that_others_can_read_cause_a_warning(files):
    """By ${file:PATH}; a file that holds no secret may be open to all."""
    texts = {
        "name": "relay.example.test",
        "token": f"sha256:{'0' * 64}",
        "queue": "sqlite:spool.sqlite",
    }
    for name, text in texts.items():
        (files.folder / name).write_text(f"{text}\n")
    config = CONFIG.replace('"relay.example.test"', '"${file:name}"')
    config = config.replace("[policy]", '[spool]\nurl = "${file:queue}"\n[policy]')
    for mode, expected in ((0o640, []), (0o602, ["account[0].token", "spool.url"])):
        for name in ("token", "queue"):
            (files.folder / name).chmod(mode)
        found = files(relay=config, accounts=ACCOUNTS + 'token = "${file:token}"\n')
        warnings = of(found, CheckResult.WARNING)
        assert places(warnings) == expected
    text = f"account[0].token: found mode 0602 of {files.folder}/token: others can read it (chmod o-rwx)"
    assert text in warnings[0][1]


def test_mailboxes_with_automatic_replies_of_an_older_release_are_named(files):
    for name, status in (("alice", "scheduled"), ("bob", "disabled"), ("carol", "alwaysEnabled")):
        mailbox = files.folder / "mail/example.test" / name
        mailbox.mkdir(parents=True)
        settings = {"time_zone": "UTC", "automatic_replies": {"status": status, "internal": "x"}}
        (mailbox / "relay-settings").write_text(json.dumps(settings))
    named = "automatic replies are set in alice@example.test, carol@example.test; 0.7.0 sends none"
    assert any(named in text for _, text in of(files(), CheckResult.WARNING))


def test_folders_that_others_can_write_cause_a_warning(files):
    for name in ("state", "mail"):
        (files.folder / name).mkdir()
        (files.folder / name).chmod(0o777)
    warnings = of(files(), CheckResult.WARNING)
    assert places(warnings) == ["state_dir", "mailboxes.root"]
    assert "found mode 0777 of" in warnings[0][1]


def test_a_configuration_that_others_can_write_causes_a_warning(files):
    files()
    (files.folder / "relay.toml").chmod(0o646)
    findings = check_file(files.folder / "relay.toml", {}, SystemClock())
    assert "relay.toml: found mode 0646 of" in str(of(findings, CheckResult.WARNING))


def header(schema):
    return b"SQLite format 3\0".ljust(60, b"\1") + schema.to_bytes(4, "big") + bytes(4) + b"Rely"


def test_a_damaged_wal_is_a_fault_unless_a_relay_runs(files):
    folder = files.folder / "state"
    folder.mkdir()
    with closing(open_database(folder / "spool.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 1")
        kept = {
            one: one.read_bytes() for one in folder.glob("spool.sqlite*") if "shm" not in one.name
        }
    log = folder / "spool.sqlite-wal"
    kept[log] = b"\xff" * 32 + kept[log][32:]
    for file, octets in kept.items():
        file.write_bytes(octets)
    (folder / "spool.sqlite.last-commit").write_text("00000000000000000001           \n")
    [found] = [one for one in files() if one.what == "spool"]
    assert found.verdict is CheckResult.FAULT
    assert f"spool.url: {folder}/spool.sqlite is damaged: it has no tables" in found.text
    with running(folder):
        [found] = [one for one in files() if one.what == "spool"]
    assert found.verdict is CheckResult.OK


@pytest.mark.parametrize(
    ("name", "octets", "verdict", "expected_text"),
    [
        ("spool.sqlite", b"", CheckResult.OK, "spool.sqlite"),
        ("spool.sqlite", header(256), CheckResult.FAULT, "newer Relay (schema 256"),
        (
            "spool.sqlite/x",
            b"",
            CheckResult.FAULT,
            "spool.sqlite: found a directory, expected the spool's file",
        ),
        ("spool.sqlite", b"nothing of ours", CheckResult.FAULT, "see relay restore"),
        ("spool.sqlite.damage", b"a page", CheckResult.FAILED, "is damaged and accepts no mail"),
    ],
)
def test_the_spool_file_is_checked(files, name, octets, verdict, expected_text):
    place = files.folder / "state" / name
    place.parent.mkdir(parents=True)
    place.write_bytes(octets)
    [found] = [one for one in files() if one.what == "spool"]
    assert found.verdict is verdict
    assert expected_text in found.text


def key_of(files, selector, kind="ed25519", *, mode=0o600, bits=2048, until=""):
    """Write a key, and return its entry."""
    (files.folder / "dkim").mkdir(exist_ok=True)
    file = files.folder / f"dkim/{selector}.pem"
    file.write_bytes(write_pem(new_key(kind, bits=bits)))
    file.chmod(mode)
    ends = f'until = "{until}"\n' if until else ""
    return f"""[[dkim]]
domain = "example.test"
selector = "{selector}"
key = "dkim/{selector}.pem"
{ends}"""


def day(days):
    return (datetime.now(UTC) + timedelta(days=days)).date().isoformat()


def test_all_faults_of_signing_keys_are_reported_with_their_lines(files):
    entries = key_of(files, "s1", mode=0o644) + key_of(files, "s2") + key_of(files, "s3")
    (files.folder / "dkim/s3.pem").write_text("")
    found = files.faults(CONFIG + entries)
    assert [what for what, _ in found] == ["dkim", "dkim"]
    lines = len(CONFIG.splitlines())
    first, second = [text.removeprefix(f"{files.folder}/") for _, text in found]
    file = f"{files.folder}/dkim/s1.pem"
    assert first.startswith(
        f"relay.toml:{lines + 4}: dkim[0].key: {file}: found mode 0644, expected"
    )
    assert second.startswith(f"relay.toml:{lines + 12}: dkim[2].key: ")
    assert "s3.pem: found no key, expected an RSA key of 1024 to 4096 bits or" in second


def test_a_short_rsa_key_is_a_warning(files):
    config = CONFIG + key_of(files, "s1", "rsa", bits=1024) + key_of(files, "s2", "rsa")
    [(what, text)] = of(files(relay=config), CheckResult.WARNING)
    file = files.folder / "dkim/s1.pem"
    assert what == "dkim"
    expected = f": dkim[0].key: {file}: found an RSA key of 1024 bits, expected 2048 or more"
    assert expected in text


@each_row(
    "lasts, number, then",
    [
        ([-1, None], None, ""),
        ([-1, 20], None, ""),
        ([12], 0, "then "),
        ([2, 9, -5], 1, "then "),
        ([0], 0, "then "),
        ([-2, -1], 1, ""),
    ],
)
def test_a_domain_whose_last_key_ends_is_a_warning(files, lasts, number, then):
    untils = ["" if one is None else day(one) for one in lasts]
    entries = [key_of(files, f"s{at}", until=until) for at, until in enumerate(untils)]
    warnings = of(files(relay=CONFIG + "".join(entries)), CheckResult.WARNING)
    assert [what for what, _ in warnings] == ["dkim"] * (number is not None)
    for _, text in warnings:
        found = f"found {untils[number]}, after which no key of example.test signs"
        assert text.endswith(f": dkim[{number}].until: {found}: its mail {then}goes out unsigned")


@pytest.fixture
def asked(files):
    """Check a configuration with keys s1 and s2 by a real name server; what it warns of, from the key on."""
    entries = key_of(files, "s1") + key_of(files, "s2", "rsa")
    folder = files.folder / "dkim"
    privates = {one: read_pem((folder / f"{one}.pem").read_bytes()) for one in ("s1", "s2")}

    def found(zone):
        with DnsThread(zone) as dns:
            findings = files(relay=with_dns(dns.address) + entries)
            found.queries = dns.queries
        assert [one.verdict for one in findings if one.what == "dns"] == [CheckResult.OK]
        warnings = of(findings, CheckResult.WARNING)
        assert {what for what, _ in warnings} <= {"dkim"}
        return [text.partition(": ")[2] for _, text in warnings]

    found.records = {
        f"{one}._domainkey.example.test": {
            "TXT": [" ".join(f'"{part.decode()}"' for part in txt_strings(key_record(private)))]
        }
        for one, private in privates.items()
    }
    return found


S1, S2 = "s1._domainkey.example.test", "s2._domainkey.example.test"
NO_RECORD = "found no record, expected that of the key: no receiver can verify its signatures"


def test_records_of_signing_keys_are_compared_with_the_dns(asked):
    assert asked(asked.records) == []
    assert [asked.queries[one, "TXT"] for one in (S1, S2)] == [1, 1]
    assert asked({}) == [
        f"dkim[0].selector: {S1}: {NO_RECORD}",
        f"dkim[1].selector: {S2}: {NO_RECORD}",
    ]
    assert asked(asked.records | {S2: asked.records[S1]}) == [
        f"dkim[1].selector: {S2}: found k=ed25519, expected k=rsa",
        f"dkim[1].selector: {S2}: found p= of another key, expected p= of this key",
    ]
    [text] = asked(asked.records | {S1: "SERVFAIL"})
    assert text.startswith(f"dkim[0].selector: {S1}: the record cannot be compared: name server")
    assert text.endswith("answered SERVFAIL")


def test_a_silent_name_server_delays_the_check_by_one_time_out_for_all_keys(files, monkeypatch):
    monkeypatch.setattr(dns_client, "QUERIES_MAX", 4)
    entry = key_of(files, "s1")
    entries = [entry.replace("example.test", f"d{at}.test") for at in range(60)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        config = with_dns(f"127.0.0.1:{silent.getsockname()[1]}", timeout="3s")
        began = time.monotonic()
        findings = files(relay=config + "".join(entries))
        took_s = time.monotonic() - began
    [(what, text)] = of(findings, CheckResult.FAILED)
    assert (what, "no answer within 3 s" in text) == ("dns", True)
    assert of(findings, CheckResult.WARNING) == []
    assert 3 <= took_s < 40  # one round after the other takes 45


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_the_owner_of_the_drop_directory_is_known_when_state_dir_is(files):
    (drop := files.folder / "drop").mkdir()
    drop.chmod(0o3733)
    os.chown(drop, 1, 1)
    config = f'{CONFIG}[sendmail]\nsocket = "submit.sock"\ndrop = "drop"\n'
    assert [one.text for one in files(relay=config) if one.what == "sendmail"] == []
    (files.folder / "state").mkdir()
    [finding] = [one for one in files(relay=config) if one.what == "sendmail"]
    assert "the owner 1, expected the mode 3733 and the owner 0" in finding.text


NO_AD = "found true, expected name servers that validate: the root's answer is without AD"
ON_THE_WAY = "found true, expected nameservers on this machine: on the way answers can be changed"


@each_row(
    "zone, insecure, verdict, text",
    [
        ({".": {"SOA": ["ns. root. 1 1 1 1 1"]}}, set(), None, ""),
        ({}, set(), None, ""),
        (
            {".": {"SOA": ["ns. root. 1 1 1 1 1"]}},
            None,
            CheckResult.FAILED,
            f"dns.validating: {NO_AD}",
        ),
        (
            {".": "SERVFAIL"},
            set(),
            CheckResult.OK,
            "no answer for the root: not known whether the name servers validate DNSSEC",
        ),
    ],
)
def test_dns_validating_needs_name_servers_that_do(files, zone, insecure, verdict, text):
    with DnsThread(zone) as dns:
        dns.insecure = insecure
        config = with_dns(dns.address)
        found = [one for one in files(relay=f"{config}validating = true") if one.what == "dns"][1:]
        assert not [one for one in files(relay=config) if one.what == "dns"][1:]
    assert [one.verdict for one in found] == ([verdict] if verdict else [])
    assert not found or found[0].text.endswith(text)


@each_row("servers", ["", '"127.0.0.1:1", "192.0.2.1"'])
def test_validating_name_servers_elsewhere_are_warned_of(files, monkeypatch, servers):
    monkeypatch.setattr(check, "name_servers_answer", answers)
    config = CONFIG.replace('"127.0.0.1:1"', servers)
    warnings = of(files(relay=f"{config}validating = true"), CheckResult.WARNING)
    assert ("dns", True) in [(what, text.endswith(ON_THE_WAY)) for what, text in warnings]


async def answers(_nameservers, *, timeout_s):
    return ""


def test_a_certificate_of_the_future_is_a_fault(authority):
    certificate = {
        "notBefore": "Jan  2 00:00:00 2030 GMT",
        "notAfter": "Jan  2 00:00:00 2031 GMT",
        "subjectAltName": (("DNS", "a.test"),),
    }

    def fault(day):
        moment_s = ssl.cert_time_to_seconds(f"Jan  {day} 00:00:00 2030 GMT")
        return check_listeners.assess_certificate(certificate, ["a.test"], moment_s).fault

    assert fault(1) == "found one that begins on 2030-01-02, expected one that is valid"
    assert fault(3) == ""


def test_a_port_that_this_user_may_not_bind_is_a_fault(files, monkeypatch):
    monkeypatch.setattr(check_network, "bind_error", lambda *_: errno.EACCES)  # root may bind all
    ((what, text),) = files.faults(CONFIG.replace(":0", ":25"))
    assert what == "listeners"
    assert 'http.listen[0]: found "127.0.0.1:25", expected a port that this user may bind' in text
    assert "CAP_NET_BIND_SERVICE" in text
