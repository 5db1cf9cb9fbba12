"""The TXT record and the file of an MTA-STS policy, and which hosts it names (RFC 8461 3, 4.1)."""

import pytest

from relay.base.message import mta_sts
from tests.support.tables import each_row

GOOD = "version: STSv1\r\nmode: enforce\r\nmx: mx.a.test\r\nmax_age: 86400\r\n"


def policy(*mx: str, mode="enforce", max_age_s=86400) -> mta_sts.StsPolicy:
    return mta_sts.StsPolicy(mode, frozenset(mx), max_age_s)


@each_row(
    "text, expected",
    [
        (GOOD, policy("mx.a.test")),
        (GOOD.replace("\r\n", "\n"), policy("mx.a.test")),
        (GOOD.removesuffix("\r\n"), policy("mx.a.test")),
        (GOOD.replace(": ", ":\t ").replace("\r\n", " \t\r\n") + "\r\n", policy("mx.a.test")),
        (GOOD + "mx: *.B.test\nmx: mx.a.test\n", policy("mx.a.test", "*.b.test")),
        (GOOD + "mx: *.bücher.test\n", policy("mx.a.test", "*.xn--bcher-kva.test")),
        (GOOD + "mode: none\nmax_age: 1\nversion: STSv2\n", policy("mx.a.test")),
        (GOOD + "x-new.key: anything: at all\nfurther:\n", policy("mx.a.test")),
        (GOOD.replace("enforce", "testing"), policy("mx.a.test", mode="testing")),
        ("version: STSv1\nmode: none\nmax_age: 0\n", policy(mode="none", max_age_s=300)),
        (GOOD.replace("86400", "31557601"), policy("mx.a.test", max_age_s=mta_sts.MAX_AGE_S_MAX)),
        (GOOD.replace("86400", "9999999999"), policy("mx.a.test", max_age_s=mta_sts.MAX_AGE_S_MAX)),
    ],
)
def test_policies(text: str, expected: mta_sts.StsPolicy) -> None:
    assert mta_sts.read_policy(text.encode()) == expected


@each_row(
    "text, said",
    [
        ("", "version: found none, expected STSv1"),
        (GOOD.replace("STSv1", "STSv2"), "version: found 'STSv2', expected STSv1"),
        (GOOD.replace("version", "Version"), "version: found none"),
        (GOOD.replace("enforce", "Enforce"), "mode: found 'Enforce', expected enforce, testing or"),
        (GOOD.replace("mode: enforce\r\n", ""), "mode: found none"),
        (GOOD.replace("mx: mx.a.test\r\n", ""), "mx: found none, expected a host"),
        (GOOD.replace("mx.a.test", "*."), r"line 3: mx: found '\*\.', expected a host, or"),
        (GOOD.replace("mx.a.test", "*"), r"line 3: mx: found '\*', expected"),
        (GOOD.replace("mx.a.test", ""), "line 3: mx: found '', expected"),
        (GOOD.replace("mx.a.test", "mx.*.test"), "line 3: mx: found 'mx"),
        (GOOD.replace("mx.a.test", "mx..test"), "line 3: mx: found 'mx"),
        (GOOD.replace("mx.a.test", "ü" * 300), "line 3: mx: found 'ü"),
        (GOOD.replace("mx.a.test", "a." * 128 + "a"), "line 3: mx: found 'a.a"),
        (GOOD + "".join(f"mx: {n}.a.test\n" for n in range(100)), "mx: found 101 hosts, expected"),
        (GOOD.replace("max_age: 86400\r\n", ""), "max_age: found none, expected seconds"),
        (GOOD.replace("86400", "-1"), "max_age: found '-1', expected seconds"),
        (GOOD.replace("86400", "1e3"), "max_age: found '1e3'"),
        (GOOD.replace("86400", "1" * 11), "max_age: found '11111111111'"),
        (GOOD.replace("86400", "\uff11"), "max_age: found .\uff11"),
        ("<!DOCTYPE html>\n<title>x</title>\n", "line 1: found '<!DOCTYPE html>', expected KEY: V"),
        ("\ufeff" + GOOD, "line 1: found"),
        (GOOD.replace("mode:", "mode :"), "line 2: found 'mode : enforce', expected KEY: VALUE"),
        (GOOD + "x" * 33 + ": y\n", "line 5: found 'x"),
    ],
)
def test_what_is_no_policy(text: str, said: str) -> None:
    with pytest.raises(mta_sts.StsPolicyError, match=said):
        mta_sts.read_policy(text.encode())


def test_octets_that_are_no_text_are_no_policy() -> None:
    with pytest.raises(mta_sts.StsPolicyError, match="not UTF-8"):
        mta_sts.read_policy(GOOD.encode() + b"x: \xff\n")


@each_row(
    "texts, expected",
    [
        (("v=STSv1; id=20161201T120000;",), "20161201T120000"),
        (("v=STSv1;id=a",), "a"),
        (("v=STSv1; \t id=a ;",), "a"),
        (("v=STSv1; new=x/y; id=a",), "a"),
        (("v=spf1 -all", "v=STSv1; id=a", ""), "a"),
        ((), ""),
        (("v=spf1 -all",), ""),
        (("v=STSv1; id=a", "v=STSv1; id=a"), ""),
        (("v=STSv1; id=a", "v=STSv1; nonsense"), ""),
        (("v=STSv1;",), ""),
        (("v=STSv1",), ""),
        (("v=STSv1; id=",), ""),
        (("v=STSv1; id=a b",), ""),
        (("v=STSv1; id=a-b",), ""),
        (("v=STSv1; id=a; id=b",), ""),
        (("v=STSv1; id=" + "a" * 32,), "a" * 32),
        (("v=STSv1; id=" + "a" * 33,), ""),
        (("v=STSv1; ; id=a",), ""),
        (("id=a; v=STSv1;",), ""),
        (("V=STSv1; id=a",), ""),
        (("v=STSv1; id=é",), ""),
    ],
)
def test_records(texts: tuple[str, ...], expected: str) -> None:
    assert mta_sts.read_record(texts) == expected


@each_row(
    "host, is_listed",
    [
        ("mx.a.test", True),
        ("mx1.b.test", True),
        ("xn--mx-1ia.b.test", True),
        ("b.test", False),
        ("x.mx1.b.test", False),
        ("mx2.a.test", False),
        ("a.mx.a.test", False),
        ("", False),
    ],
)
def test_hosts(host: str, is_listed: bool) -> None:
    assert policy("mx.a.test", "*.b.test").lists(host) is is_listed


def test_which_domains_may_have_a_policy() -> None:
    names = ["a.test", "xn--bcher-kva.test", "a_b.test", "localhost"]
    assert all(map(mta_sts.may_publish, names))
    others = ["[192.0.2.1]", "", "a..test", "a/b.test", "..", "../x", "A.test", ".a.test", "a test"]
    assert not any(map(mta_sts.may_publish, others))
