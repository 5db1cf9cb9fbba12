"""Forged messages, and messages that only look forged: the results of SPF, DKIM and DMARC."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from relay.base.message.authentication_results import AuthResult, checks_of
from tests.support.dkim import DkimKeys, record_of
from tests.support.dns_server import Zone
from tests.support.sender_checks import open_checks, signed, txt
from tests.support.tables import rows_of

OURS, THEIRS = "192.0.2.1", "198.51.100.6"  # the hosts mx.bank.test and mx.attacker.test
# of 512 bits
TINY_KEY = (
    "MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAM6gJFjMtm/rZYyRW+fd/I1lqzTin5WWQF/hX8iw1O4Y"
    "Py7JBbBMZEPubCc84g9QSbnEGCAHdBxbzmpcoyxN2IkCAwEAAQ=="
)
SPF = f"v=spf1 ip4:{OURS} -all"  # of all these domains
# each part after a line that names its columns
_, DMARC, CASES = re.split(r"(?m)^# .*\n", (Path(__file__).parent / "forgeries.txt").read_text())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> DkimKeys:
    domains = (
        "bank.test attacker.test evilbank.test bank.test.attacker.test mail.bank.test bank-one.test"
    )
    made = {(domain, "s1"): "rsa" for domain in domains.split()}
    return DkimKeys.made(tmp_path_factory.mktemp("keys"), made)


def zone_of(keys: DkimKeys) -> Zone:
    policies = dict(rows_of(DMARC))
    record = record_of(keys.ring.of_domain("bank.test")[0]).decode()
    zone: Zone = {f"_dmarc.{name}": txt(f"v=DMARC1; {tags}") for name, tags in policies.items()}
    names = (
        "mx.bank.test x.strict.test x.tree.test two.public.test x.one.public.test x.unit.corp.test"
    )
    return {
        **zone,
        **{name: txt(SPF) for name in [*policies, *names.split()]},
        **{name: txt(text) for name, text in keys.records.items()},
        "attacker.test": txt(f"v=spf1 ip4:{THEIRS} -all"),
        "mx.attacker.test": txt(f"v=spf1 ip4:{THEIRS} -all"),
        "_dmarc.two.test": txt("v=DMARC1; p=reject", "v=DMARC1; p=none"),
        "_dmarc.lower.test": txt("v=dmarc1; p=reject"),
        "down.test": "SERVFAIL",
        "_dmarc.silent.test": "SERVFAIL",
        "tiny._domainkey.bank.test": txt(f"p={TINY_KEY}"),
        "revoked._domainkey.bank.test": txt("v=DKIM1; p="),
        "subdomain._domainkey.bank.test": txt(f"t=y : s; {record}"),
        "s1._domainkey.bank.test": txt(f"h=sha1 : sha256; {record}"),
        "ed25519-only._domainkey.bank.test": txt(record.replace("k=rsa", "k=ed25519")),
        "no-answer._domainkey.bank.test": "SERVFAIL",
        "no-answer._domainkey.attacker.test": "SERVFAIL",
    }


def forged(from_: str, done: Sequence[str], keys: DkimKeys) -> bytes:
    """A message to which these things were done, one after the other."""
    content = f"From: {from_}\r\nSubject: money\r\n\r\nSend it.\r\n".encode()
    by_domain = {key.domain: key for key in keys.ring.keys}
    bank = by_domain["bank.test"]
    for step in done:
        match step:
            case "subject":
                content = content.replace(b"money", b"honey")
            case "body":
                content += b"More.\r\n"
            case "second-from":
                content = b"From: b@bank.test\r\n" + content
            case "no-from":
                content = content.partition(b"\r\n")[2]
            case "broken" | "five-broken":
                for _ in range(5 if step == "five-broken" else 1):
                    content = signed(content, bank).replace(b"c=relaxed", b"c=simple", 1)
            case "five-of-attacker":
                for _ in range(5):
                    content = signed(content, by_domain["attacker.test"])
            case "length":
                content = signed(content, bank, length=True)
            case "sha1":
                content = signed(content, bank, signature_algorithm=b"rsa-sha1")
            case "no-h":
                content = signed(content, bank).replace(b"h=from", b"h=to", 1)
            case "fold-in-name":
                content = signed(content, bank).replace(b"d=bank", b"d=ba\r\n nk", 1)
            case "subdomain":
                content = signed(content, bank, identity=b"@x.bank.test")
                content = content.replace(b"s=s1;", b"s=subdomain;", 1)
            case "no-answer-of-attacker":
                signature = signed(content, by_domain["attacker.test"])
                content = signature.replace(b"s=s1;", b"s=no-answer;", 1)
            case _ if step in by_domain:
                content = signed(content, by_domain[step])
            case _ if step != "nothing":
                content = signed(content, bank).replace(b"s=s1;", f"s={step};".encode(), 1)
    return content


async def test_forgeries_have_the_verdict_of_the_standards(keys: DkimKeys) -> None:
    wrong, seen = [], list[AuthResult]()
    async with open_checks(zone_of(keys)) as checks:
        for case in rows_of(CASES):
            done, from_, sender, client, results, verdict = case
            is_ours = client == "ours"
            ip, host = (OURS, "mx.bank.test") if is_ours else (THEIRS, "mx.attacker.test")
            content = forged(from_, done.split(), keys)
            spf, helo, *dkim, dmarc = await checks(content, sender, ip=ip, helo=host)
            policy = dmarc.properties.get("policy.dmarc", "")
            found = f"{spf.result} {','.join(each.result for each in dkim)}"
            judged = f"{dmarc.result} {policy}".strip()
            if (helo.result, found, judged) != ("pass", results, verdict):
                wrong.append((*case, helo.result, found, judged, dmarc.reason, dkim))
            seen += dkim
    assert not wrong, "\n".join(map(str, wrong))
    checks_of_pass = checks_of([each for each in seen if each.result == "pass"])
    assert checks_of_pass is not None
    assert {each["key_bits"] for each in checks_of_pass["dkim"]} == {2048}
