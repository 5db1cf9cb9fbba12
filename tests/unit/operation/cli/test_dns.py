"""`relay dns`: what to publish for a domain, compared with a real DNS server."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import dns.rdatatype
import dns.zone
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate

from relay.operation.cli.errors import report_error
from relay.operation.cli.root import cli
from relay.transport.signing.key_files import read_key
from relay.transport.signing.record import key_record, txt_strings
from tests.support.dns_server import DnsThread
from tests.support.ingress import make_certificate
from tests.support.policy_server import PolicyServer
from tests.support.tables import each_row
from tests.support.tls import new_authority, self_signed

HOST = "relay.corp.test"
ADDRESS = {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]}
CONFIG = """\
hostname = "relay.corp.test"
state_dir = "state"
[mailboxes]
domains = ["corp.test", "sub.other.test"]
[dns]
nameservers = ["{dns}"]
timeout = "0.5s"
[[dkim]]
domain = "corp.test"
selector = "s1"
key = "dkim/s1.pem"
[[dkim]]
domain = "corp.test"
selector = "s2"
key = "dkim/s2.pem"
[[dkim]]
domain = "corp.test"
selector = "old"
key = "dkim/s1.pem"
until = "2020-01-31"
"""
MX, SPF, S1, S2 = "corp.test", "corp.test", "s1._domainkey.corp.test", "s2._domainkey.corp.test"
DMARC, STS, RPT = "_dmarc.corp.test", "_mta-sts.corp.test", "_smtp._tls.corp.test"
TLSA = "_25._tcp.relay.corp.test"


class Domain:
    """A configuration with two keys, its name server, and the command on it."""

    def __init__(self, folder: Path, dns: DnsThread) -> None:
        self.folder, self.dns = folder, dns
        self.config = folder / "relay.toml"
        self.config.write_text(CONFIG.format(dns=dns.address))
        dns.zone[HOST] = ADDRESS

    def run(self, *words: str) -> Result:
        arguments = ["--config", str(self.config), *words]
        return CliRunner().invoke(cli, arguments, standalone_mode=False)

    def compare(self, zone: str = "corp.test") -> tuple[int, list[dict[str, str]]]:
        done = self.run("dns", zone, "--json")
        code = report_error(done.exception) if done.exception else 0
        return code, json.loads(done.stdout) if done.stdout else []

    def verdicts(self) -> dict[tuple[str, str], str]:
        return {(one["name"], one["type"]): one["verdict"] for one in self.compare()[1]}

    def printed(self) -> dict[str, dict[str, list[str]]]:
        """The records of the zone file that the command prints, as a name server reads it."""
        text = (
            "$TTL 300\n@ IN SOA ns root 1 1 1 1 1\n@ IN NS ns\n"
            + self.run("dns", "corp.test").stdout
        )
        zone = dns.zone.from_text(text, origin="corp.test", relativize=False)
        found: dict[str, dict[str, list[str]]] = {}
        for name, data in zone.iterate_rdatasets():
            kind = dns.rdatatype.to_text(data.rdtype)
            if kind not in ("SOA", "NS"):
                key = name.to_text(omit_final_dot=True)
                found.setdefault(key, {})[kind] = [one.to_text() for one in data]
        return found

    def publish(self) -> None:
        self.dns.zone.update(self.printed())

    def text(self, name: str, *values: str) -> None:
        """Publish these texts, and no others, at a name."""
        written = [" ".join(f'"{part.decode()}"' for part in txt_strings(one)) for one in values]
        before = self.dns.zone.get(name, {})
        assert not isinstance(before, str)
        self.dns.zone[name] = {**before, "TXT": written}

    def record(self, selector: str) -> str:
        return key_record(read_key(self.folder / f"dkim/{selector}.pem"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with DnsThread() as server:
        made = Domain(tmp_path_factory.mktemp("keys"), server)
        made.run("dkim", "keygen", "corp.test", "s1", "--type", "rsa")
        made.run("dkim", "keygen", "corp.test", "s2", "--type", "ed25519")
        yield made.folder / "dkim"


@pytest.fixture
def domain(tmp_path: Path, keys: Path) -> Iterator[Domain]:
    shutil.copytree(keys, tmp_path / "dkim")
    with DnsThread() as server:
        yield Domain(tmp_path, server)


def test_nothing_is_published(domain: Domain) -> None:
    code, records = domain.compare()
    assert code == 65
    assert [(one["name"], one["type"], one["value"]) for one in records] == [
        (MX, "MX", "10 relay.corp.test."),
        (SPF, "TXT", "v=spf1 a:relay.corp.test ~all"),
        (S1, "TXT", domain.record("s1")),
        (S2, "TXT", domain.record("s2")),
        (DMARC, "TXT", "v=DMARC1; p=none; rua=mailto:postmaster@corp.test"),
    ]
    assert {(one["verdict"], one["found"]) for one in records} == {("missing", "")}
    assert domain.dns.asked("old._domainkey.corp.test", "TXT") == 0  # that key has ended


def test_all_is_published_as_printed(domain: Domain) -> None:
    domain.publish()
    assert set(domain.dns.zone) == {HOST, MX, S1, S2, DMARC}
    code, records = domain.compare()
    assert (code, {one["verdict"] for one in records}) == (0, {"ok"})
    assert all(one["found"].rstrip(".") == one["value"].rstrip(".") for one in records)


ROUTE = '[[route]]\ndomain = "{}"\nnext_hop = "smtp://{}:25"\n{}\n'
ROUTES = (
    ("sub.other.test", "hub.test", ""),
    ("*", "shop.host", 'sender = "*@shop.test"'),
    ("partner.test", "gateway.host", 'fallback = "smtp://second.host:25"'),
    ("far.test", "reports.host", 'sender = "<>"'),
    ("*", "corp.host", 'sender = "*@corp.test"'),
    ("*", "rest.host", ""),
)


@pytest.mark.parametrize(
    ("zone", "hosts"),
    [
        ("corp.test", ["gateway.host", "second.host", "corp.host"]),
        ("shop.test", ["shop.host"]),
        ("sub.other.test", ["gateway.host", "second.host", "rest.host"]),
    ],
)
def test_the_hosts_that_send_mail_of_the_domain_are_named(
    domain: Domain, zone: str, hosts: list[str]
) -> None:
    with domain.config.open("a") as file:
        file.writelines(ROUTE.format(*route) for route in ROUTES)
    [note] = [
        one["note"]
        for one in domain.compare(zone)[1]
        if (one["name"], one["type"]) == (zone, "TXT")
    ]
    assert re.findall(r"sends by (\S+):", note) == hosts


def test_the_policy_of_mta_sts_is_fetched_and_compared(domain: Domain, tmp_path: Path) -> None:
    domain.publish()
    domain.dns.zone[MX] = {
        **domain.dns.zone[MX],
        "MX": ["10 relay.corp.test.", "20 mx2.corp.test."],
    }
    domain.text(STS, "v=STSv1;")
    assert domain.verdicts()[STS, "TXT"] == "wrong"
    domain.text(STS, "v=STSv1; id=1;")
    (found,) = [one for one in domain.compare()[1] if one["name"] == STS]
    assert found["note"] == "the policy: mta-sts.corp.test: the name has no address"
    domain.dns.zone["mta-sts.corp.test"] = {"A": ["127.0.0.1"]}
    (tmp_path / "ca").mkdir()
    authority = new_authority(tmp_path / "ca")
    with PolicyServer(authority.issue("DNS:mta-sts.corp.test")) as server:
        keys = f'mta_sts_port = {server.port}\nmta_sts_ca = "{authority.certificate}"'
        section = f'[delivery]\n{keys}\nmta_sts_allow = ["127.0.0.1/32"]\n'
        domain.config.write_text(domain.config.read_text() + section)
        for mode, hosts, note in [
            ("enforce", ["*.corp.test"], ""),
            ("testing", ["relay.corp.test", "mx2.corp.test"], ""),
            ("none", [], ""),
            ("enforce", ["relay.corp.test"], "the policy does not list mx2.corp.test"),
            ("enforce", [], "the policy: mx: found none, expected a host"),
        ]:
            server.put("corp.test", mode, *hosts)
            (found,) = [one for one in domain.compare()[1] if one["name"] == STS]
            assert (found["verdict"], found.get("note", "")) == ("wrong" if note else "ok", note)


Change = Callable[[Domain], object]


def mx(*exchanges: str) -> Change:
    return lambda domain: domain.dns.zone[MX].update(MX=list(exchanges))


def text(name: str, *values: str) -> Change:
    return lambda domain: domain.text(name, *values)


CHANGES: dict[str, tuple[Change, dict[tuple[str, str], str]]] = {
    "another MX host": (mx("10 mx.other.test."), {(MX, "MX"): "wrong"}),
    "a null MX": (mx("0 ."), {(MX, "MX"): "wrong"}),
    "one MX host of two": (mx("5 mx.other.test.", "20 Relay.Corp.test."), {}),
    "SPF without this host": (text(SPF, "v=spf1 -all"), {(SPF, "TXT"): "wrong"}),
    "SPF twice": (text(SPF, "v=spf1 mx -all", "v=spf1 -all"), {(SPF, "TXT"): "wrong"}),
    "SPF with a bad term": (text(SPF, "v=spf1 mx ipv4:192.0.2.1 -all"), {(SPF, "TXT"): "wrong"}),
    "SPF with MX": (text(SPF, "V=SPF1 MX -all", "site-verification=x"), {}),
    "SPF with addresses": (text(SPF, "v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 -all"), {}),
    "SPF with one address": (text(SPF, "v=spf1 ip4:192.0.2.1 -all"), {(SPF, "TXT"): "wrong"}),
    "SPF that forbids": (text(SPF, "v=spf1 -a:relay.corp.test ?mx -all"), {(SPF, "TXT"): "wrong"}),
    "no SPF but similar": (text(SPF, "v=spf10 mx -all"), {(SPF, "TXT"): "missing"}),
    "another key": (text(S2, "v=DKIM1; k=ed25519; p=AAAA"), {(S2, "TXT"): "wrong"}),
    "a revoked key": (text(S2, "v=DKIM1; k=ed25519; p="), {(S2, "TXT"): "wrong"}),
    "two records of a key": (
        lambda domain: domain.text(S1, domain.record("s1"), domain.record("s2")),
        {(S1, "TXT"): "wrong"},
    ),
    "a key in testing": (
        lambda domain: domain.text(S1, domain.record("s1") + "; t=y"),
        {(S1, "TXT"): "wrong"},
    ),
    "a key in another order": (
        lambda domain: domain.text(
            S2, "p=" + domain.record("s2").partition("p=")[2] + " ;k= ed25519;"
        ),
        {},
    ),
    "DMARC that is strict": (text(DMARC, "v=DMARC1;p=reject; adkim=s"), {}),
    "DMARC without a policy": (text(DMARC, "v=DMARC1; sp=none"), {(DMARC, "TXT"): "wrong"}),
    "DMARC with a wrong policy": (text(DMARC, "v=DMARC1; p=drop"), {(DMARC, "TXT"): "wrong"}),
    "DMARC twice": (
        text(DMARC, "v=DMARC1; p=none", "v=DMARC1; p=reject"),
        {(DMARC, "TXT"): "wrong"},
    ),
    "a text that is no DMARC": (text(DMARC, "v=DMARC2; p=none"), {(DMARC, "TXT"): "missing"}),
    "TLS-RPT": (text(RPT, "v=TLSRPTv1; rua=mailto:a@corp.test"), {(RPT, "TXT"): "ok"}),
    "TLS-RPT twice": (
        text(RPT, "v=TLSRPTv1; rua=mailto:a@corp.test", "v=TLSRPTv1; rua=mailto:b@corp.test"),
        {(RPT, "TXT"): "wrong"},
    ),
    "TLSA without TLS": (
        lambda domain: domain.dns.zone.update({TLSA: {"TLSA": ["3 1 1 " + "ab" * 32]}}),
        {(TLSA, "TLSA"): "extra"},
    ),
}


@pytest.fixture
def before(domain: Domain) -> dict[str, Any]:
    domain.publish()
    return {"zone": dict(domain.dns.zone), "verdicts": domain.verdicts()}


@each_row("name", CHANGES)
def test_one_record_is_another(domain: Domain, before: dict[str, Any], name: str) -> None:
    domain.dns.zone.clear()
    domain.dns.zone.update(before["zone"])
    change, expected = CHANGES[name]
    change(domain)
    code, records = domain.compare()
    found = {(one["name"], one["type"]): one["verdict"] for one in records}
    assert found == before["verdicts"] | expected
    assert code == (65 if {"missing", "wrong"} & set(expected.values()) else 0)
    for one in records:  # who publishes what is printed has done it
        if one["verdict"] in ("missing", "wrong"):
            if one["type"] == "MX":
                mx(one["value"])(domain)
            else:
                domain.text(one["name"], one["value"])
    assert domain.compare()[0] == 0


@pytest.mark.parametrize("terms", ["include:_spf.other.test -all", "redirect=_spf.other.test"])
def test_spf_of_others_stands_for_this_host(domain: Domain, terms: str) -> None:
    domain.publish()
    domain.text("corp.test", f"v=spf1 {terms}")
    domain.text("_spf.other.test", "v=spf1 include:_more.other.test ?all")
    domain.text("_more.other.test", "v=spf1 a:both.other.test -all")
    domain.dns.zone["both.other.test"] = ADDRESS
    assert domain.compare()[0] == 0
    domain.text("_more.other.test", "v=spf1 include:corp.test include:_more.other.test -all")
    assert domain.verdicts()[SPF, "TXT"] == "wrong"  # and it has an end


def test_spf_is_followed_ten_look_ups_far(domain: Domain) -> None:
    domain.publish()
    for number in range(30):
        domain.text(f"{number}.other.test", f"v=spf1 include:{number + 1}.other.test -all")
    domain.text("corp.test", "v=spf1 include:0.other.test -all")
    domain.text("30.other.test", "v=spf1 +all")
    assert domain.verdicts()[SPF, "TXT"] == "wrong"
    assert domain.dns.asked("9.other.test", "TXT") == 1
    assert domain.dns.asked("10.other.test", "TXT") == 0


@pytest.mark.parametrize("name", ["DNS:customer.test", "DNS:relay.corp.test"])
def test_certificates_in_use_have_tlsa_records(domain: Domain, name: str) -> None:
    """Of several, that for the hostname: those who look at the record ask for it."""
    (domain.folder / "other").mkdir()
    pairs = (make_certificate(domain.folder), self_signed(domain.folder / "other", name))
    tables = [f'{{ certificate = "{one.certificate}", key = "{one.key}" }}' for one in pairs]
    with domain.config.open("a") as config:
        config.write(f'[[smtp]]\nlisten = "127.0.0.1:0"\ntls = [{", ".join(tables)}]\n')
    used = pairs["relay" in name].certificate.read_bytes()
    key = load_pem_x509_certificate(used).public_key()
    octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    domain.publish()
    assert TLSA not in domain.dns.zone  # advice is a comment
    [line] = [one for one in domain.run("dns", "corp.test").stdout.splitlines() if " TLSA " in one]
    value = line.partition(" TLSA ")[2]
    assert value == f"3 1 1 {sha256(octets).hexdigest()}"
    domain.dns.zone[TLSA] = {"TLSA": [value, "3 1 1 " + "ab" * 32]}
    code, records = domain.compare()
    found = [(one["verdict"], one["value"]) for one in records if one["type"] == "TLSA"]
    assert (code, found) == (0, [("ok", value), ("extra", "")])
    domain.dns.zone[TLSA] = {"TLSA": ["3 1 1 " + "ab" * 32]}
    assert domain.compare()[0] == 65


@pytest.mark.parametrize("word", ["SERVFAIL", "TIMEOUT", "REFUSED"])
@pytest.mark.parametrize("name", ["corp.test", S1, DMARC])
def test_the_dns_does_not_answer(domain: Domain, name: str, word: str) -> None:
    domain.publish()
    domain.dns.zone[name] = word
    done = domain.run("dns", "corp.test")
    assert done.exception is not None
    assert report_error(done.exception) == 75
    assert str(done.exception).startswith(f"relay dns: the DNS does not answer: {name} ")
    assert done.stdout == ""


@each_row("bad", ["", "a b", "-", "a..b", "x" * 300])
def test_what_is_no_domain(domain: Domain, bad: str) -> None:
    done = domain.run("dns", bad)
    assert done.exception is not None
    assert report_error(done.exception) == 64


def test_answers_of_any_octets_are_shown(domain: Domain) -> None:
    domain.publish()
    domain.dns.zone[DMARC] = {"TXT": ['"v=DMARC1; p=\\255\\010\\027[2J"']}
    found: Any = {one["name"]: one for one in domain.compare()[1]}[DMARC]
    assert (found["verdict"], found["found"][:13]) == ("wrong", "v=DMARC1; p=\ufffd")
    assert "\x1b" not in domain.run("dns", "corp.test").stdout


def test_tags_of_dmarc_that_do_not_do_what_they_say_are_named(domain: Domain) -> None:
    domain.publish()
    domain.dns.zone[DMARC] = {"TXT": ['"v=DMARC1; p=reject; pct=25; RI=3600; t=y"']}
    [found] = [one for one in domain.compare()[1] if one["name"] == DMARC]
    assert found["verdict"] == "ok"
    assert found["note"].startswith("pct=, ri=: RFC 9989 has removed this, ")
    assert found["note"].endswith("; t=y: receivers apply the next weaker policy")
    assert found["note"] in " ".join(domain.run("dns", "corp.test").stdout.split())


def test_the_record_of_a_domain_above_counts(domain: Domain) -> None:
    done = domain.compare("sub.other.test")[1]
    assert {one["name"]: one["verdict"] for one in done}["_dmarc.sub.other.test"] == "missing"
    domain.text("_dmarc.other.test", "v=DMARC1; p=reject")
    [dmarc] = [one for one in domain.compare("sub.other.test")[1] if "_dmarc" in one["name"]]
    assert (dmarc["verdict"], dmarc["found"]) == ("ok", "v=DMARC1; p=reject")
    domain.text("_dmarc.other.test", "v=DMARC1; p=reject; psd=y")  # of a registry, not of a domain
    [dmarc] = [one for one in domain.compare("sub.other.test")[1] if "_dmarc" in one["name"]]
    assert dmarc["verdict"] == "missing"


def test_a_domain_that_only_sends(domain: Domain) -> None:
    records = domain.compare("news.corp.test")[1]
    names = [(one["name"], one["type"]) for one in records]
    assert names == [
        ("news.corp.test", "TXT"),
        (S1, "TXT"),
        (S2, "TXT"),
        ("_dmarc.news.corp.test", "TXT"),
    ]
    done = domain.run("dns", "elsewhere.test")
    assert "no key signs mail from elsewhere.test" in done.stderr
    assert "elsewhere.test is none of mailboxes.domains" in done.stderr
