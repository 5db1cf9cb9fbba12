"""Signatures of Relay, of dkimpy and of the RFCs hold, and do not with one octet changed."""

from pathlib import Path

from relay.base.message.content import LargeContent, MemoryOctets, read_all
from relay.base.message.header import ParsedContent
from relay.base.observe.metrics import Metrics
from relay.transport.checks import checker
from relay.transport.signing.signer import Signer
from tests.support.dkim import DkimKeys
from tests.support.manual_clock import ManualClock
from tests.support.sender_checks import Checks, open_checks, signed, txt

LETTER = b"""\
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game. Are you hungry yet?

Joe.
"""
RFC_6376 = b"""\
DKIM-Signature: v=1; a=rsa-sha256; s=brisbane; d=example.com;
      c=simple/simple; q=dns/txt; i=joe@football.example.com;
      h=Received : From : To : Subject : Date : Message-ID;
      bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
      b=AuUoFEfDxTDkHlLXSZEpZj79LICEps6eda7W3deTVFOk4yAUoqOB
      4nujc7YopdG5dWLSdNg6xNAZpOPr+kHxt1IrE+NahM6L/LbvaHut
      KVdkLLkpVaVVQPzeRDI009SO2Il5Lu7rDNH6mZckBdrIx0orEtZV
      4bmp/YzhwvcubU4=;
Received: from client1.football.example.com  [192.0.2.1]
      by submitserver.example.com with SUBMISSION;
      Fri, 11 Jul 2003 21:01:54 -0700 (PDT)
"""
RFC_8463 = b"""\
DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
"""
KEYS = {
    "brisbane._domainkey.example.com": (
        "v=DKIM1; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7"
        "/zYtIxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fz"
        "fVjH4OuKhitdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB"
    ),
    "brisbane._domainkey.football.example.com": (
        "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    ),
    "test._domainkey.football.example.com": (
        "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5"
        "qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3r"
        "G4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB"
    ),
}


async def dkim_of(checks: Checks, content: bytes | LargeContent) -> list[str]:
    results = await checks(content, "")
    return [each.result for each in results if each.method == "dkim"]


async def test_signatures_hold_until_an_octet_is_changed(tmp_path: Path) -> None:
    letter = LETTER.replace(b"\n", b"\r\n")
    keys = DkimKeys.made(
        tmp_path,
        {("football.example.com", "s1"): "rsa", ("football.example.com", "s2"): "ed25519"},
    )
    signer = Signer(lambda: keys.ring, clock=ManualClock(), metrics=Metrics())
    relays = read_all(signer.sign_report(ParsedContent.of(letter)).contents[0].joined())
    key = keys.ring.keys[0]
    messages = [relays, RFC_6376.replace(b"\n", b"\r\n") + letter]
    messages.append(RFC_8463.replace(b"\n", b"\r\n") + letter)
    for header in (b"relaxed", b"simple"):
        for body in (b"relaxed", b"simple"):
            messages.append(signed(letter, key, canonicalize=(header, body)))
    zone = {name: txt(text) for name, text in (KEYS | keys.records).items()}
    async with open_checks(zone) as checks:
        for number, content in enumerate(messages):
            results = await dkim_of(checks, content)
            assert set(results) == {"pass"}, (number, results)
            assert len(results) == content.count(b"DKIM-Signature:")
            for old, new in ((b"dinner", b"Dinner"), (b"hungry", b"Hungry")):
                changed = await dkim_of(checks, content.replace(old, new))
                assert set(changed) == {"fail"}, (number, old, changed)


async def test_a_large_body_is_read_once_and_one_above_10_mb_is_not_judged(tmp_path: Path) -> None:
    keys = DkimKeys.made(tmp_path, {("football.example.com", "s1"): "rsa"})
    zone = {name: txt(text) for name, text in keys.records.items()}
    zone["_dmarc.football.example.com"] = txt("v=DMARC1; p=reject")
    header, blank, text = LETTER.replace(b"\n", b"\r\n").partition(b"\r\n\r\n")
    async with open_checks(zone) as checks:
        for size, result, verdict in (
            (3_000_000, "pass", "pass"),
            (10_100_000, "none", "temperror"),
        ):
            whole = signed(header + blank + text * (size // len(text)), keys.ring.keys[0])
            fields, _, rest = whole.partition(b"\r\n\r\n")
            body = MemoryOctets(b"\r\n" + rest)
            content = LargeContent(fields + b"\r\n", (body,), eight_bit=False)
            *_, dkim, dmarc = await checks(content, "")
            assert (dkim.result, dmarc.result) == (result, verdict), dkim
    assert checker.SIGNED_OCTETS_MAX == 10_000_000
