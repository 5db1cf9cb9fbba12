"""Signatures of Relay, of dkimpy and of the RFCs hold, and do not with one octet changed."""

import itertools
from pathlib import Path

from relay.base.message.content import LargeContent, MemoryOctets, read_all
from relay.base.message.header import ParsedContent
from relay.base.observe.metrics import Metrics
from relay.transport.checks import checker
from relay.transport.signing.signer import Signer
from tests.support.dkim import DkimKeys
from tests.support.manual_clock import ManualClock
from tests.support.sender_checks import Checks, open_checks, signed, txt
from tests.support.tables import rows_of

EXAMPLES = [
    (Path(__file__).parent / name).read_bytes().replace(b"\n", b"\r\n")
    for name in ("rfc6376.eml", "rfc8463.eml")
]
LETTER = EXAMPLES[1][EXAMPLES[1].index(b"From:") :]
KEYS = dict(rows_of((Path(__file__).parent / "rfc-keys.txt").read_text()))


async def dkim_of(checks: Checks, content: bytes | LargeContent) -> list[str]:
    results = await checks(content, "")
    return [each.result for each in results if each.method == "dkim"]


async def test_signatures_hold_until_an_octet_is_changed(tmp_path: Path) -> None:
    keys = DkimKeys.made(
        tmp_path, {("football.example.com", "s1"): "rsa", ("football.example.com", "s2"): "ed25519"}
    )
    signer = Signer(lambda: keys.ring, clock=ManualClock(), metrics=Metrics())
    relays = read_all(signer.sign_report(ParsedContent.of(LETTER)).contents[0].joined())
    key = keys.ring.keys[0]
    forms = itertools.product((b"relaxed", b"simple"), repeat=2)
    messages = [relays, *EXAMPLES, *[signed(LETTER, key, canonicalize=form) for form in forms]]
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
    header, blank, text = LETTER.partition(b"\r\n\r\n")
    async with open_checks(zone) as checks:
        for size, result, verdict in ((3_000_000, "pass", "pass"), (10_100_000, "none", "fail")):
            whole = signed(header + blank + text * (size // len(text)), keys.ring.keys[0])
            fields, _, rest = whole.partition(b"\r\n\r\n")
            body = MemoryOctets(b"\r\n" + rest)
            content = LargeContent(fields + b"\r\n", (body,), eight_bit=False)
            *_, dkim, dmarc = await checks(content, "")
            assert (dkim.result, dmarc.result) == (result, verdict), dkim
    assert checker.SIGNED_OCTETS_MAX == 10_000_000
