"""Values of Authentication-Results: which results are found, and the checks of a journey."""

import time

from relay.base.message.authentication_results import (
    RESULTS_MAX,
    AuthResult,
    checks_of,
    read_results,
)
from tests.support.tables import each_row


@each_row(
    "value, found",
    [
        (b"mx.test; none", ()),
        (b"mx.test 1; DMARC/1 = Fail", (AuthResult("dmarc", "fail"),)),
        (b"dmarc=pass; spf=none", (AuthResult("spf", "none"),)),  # the id is no result
        (b"a; (dmarc=pass); dmarc=(c;=) none", (AuthResult("dmarc", "none", "c;="),)),
        (b"a; dmarc=; =pass; spf pass; x", ()),
        (b"a; spf=pass (open; dmarc=pass", (AuthResult("spf", "pass", "open; dmarc=pass"),)),
        (b'a; spf=pass reason="; dmarc=pass"', (AuthResult("spf", "pass", "; dmarc=pass"),)),
        (b'a; spf=pass "open; dmarc=pass', (AuthResult("spf", "pass"),)),
        (b"a; spf=\xff\x00", (AuthResult("spf", "\ufffd?"),)),
        (
            b'a;\n\tdkim=fail reason="bad \\"sig" (one (two)) header.d=x.test header.S=s1;\n spf=pass',
            (
                AuthResult(
                    "dkim", "fail", 'bad "sig one (two)', {"header.d": "x.test", "header.s": "s1"}
                ),
                AuthResult("spf", "pass"),
            ),
        ),
    ],
)
def test_results(value, found):
    assert read_results([value]) == found


def test_results_are_bounded():
    assert len(read_results([b"a" + b"; spf=pass" * 9_000, b"a; spf=pass"])) == RESULTS_MAX


@each_row("unit", [b"(", b"()", b'"', b'"a"', b";", b"=", b"a=b ", b"\\(", b" "])
def test_the_time_is_linear(unit):
    began_s = time.process_time()
    read_results([unit * 2_000_000])
    assert time.process_time() - began_s < 2


def test_checks():
    values = [
        b"mx; dkim=pass header.d=a.test header.s=s1; dkim=fail (bad) header.i=@b.test",
        b"mx; spf=pass (ok) smtp.helo=h.test; spf=fail smtp.mailfrom=x@c.test; arc=pass",
        b"mx; dmarc=pass (policy=REJECT) header.from=d.test",
        b"mx; dmarc=fail",
    ]
    assert checks_of(read_results(values)) == {
        "spf": {"result": "fail", "domain": "c.test", "reason": ""},
        "helo": {"result": "pass", "domain": "h.test", "reason": "ok"},
        "dkim": [
            {
                "domain": "a.test",
                "selector": "s1",
                "result": "pass",
                "reason": "",
                "key_bits": None,
            },
            {
                "domain": "b.test",
                "selector": "",
                "result": "fail",
                "reason": "bad",
                "key_bits": None,
            },
        ],
        "dmarc": {
            "result": "pass",
            "domain": "d.test",
            "reason": "policy=REJECT",
            "policy": "reject",
        },
        "aligned": True,
    }
    assert checks_of(read_results([b"mx; arc=pass"])) is None
