"""The DNS record of a key: RFC 6376 3.6.1, RFC 8463 4.2, RFC 8301."""

import base64
import re

import dns.name
import dns.zone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.transport.signing import record
from relay.transport.signing.private_keys import new_key, read_pem
from tests.support.tables import each_row

# RFC 8463 A.2: the private key, and the record that belongs to it
_RFC_SEED = base64.b64decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
_RFC_RECORD = "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
_PKCS8_ED25519 = bytes.fromhex("302e020100300506032b657004220420")

RSA = new_key("rsa", bits=1024)
ED25519 = new_key("ed25519")
P_RSA = base64.b64encode(RSA.public()).decode()
P_OTHER = base64.b64encode(new_key("rsa", bits=1024).public()).decode()


def test_the_record_of_rfc_8463() -> None:
    body = base64.b64encode(_PKCS8_ED25519 + _RFC_SEED).decode()
    pem = f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"
    key = read_pem(pem.encode())
    assert record.key_record(key) == _RFC_RECORD
    assert record.compare_record([_RFC_RECORD], key).verdict == "ok"


@pytest.mark.parametrize("bits", [1024, 2048, 4096])
def test_a_zone_line_gives_the_record_in_strings_of_at_most_255_octets(bits: int) -> None:
    text = record.key_record(new_key("rsa", bits=bits))
    strings = record.txt_strings(text)
    assert b"".join(strings).decode() == text
    assert [len(one) for one in strings[:-1]] == [255] * (len(text) // 255)
    assert _read_by_dnspython("s1._domainkey.corp.example", text) == strings


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=600))
def test_any_text_survives_a_zone_file(text: str) -> None:
    assert b"".join(_read_by_dnspython("corp.example.", text)) == text.encode()


def _read_by_dnspython(name: str, text: str) -> tuple[bytes, ...]:
    file = f"$TTL 3600\n{record.zone_line(name, text)}\n"
    zone = dns.zone.from_text(file, origin="example.", relativize=False, check_origin=False)
    strings: tuple[bytes, ...] = zone.find_rdataset(dns.name.from_text(name), "TXT")[0].strings
    return strings


@each_row(
    "text",
    [
        f"v=DKIM1; k=rsa; p={P_RSA}",
        f"v=DKIM1;k=rsa;p={P_RSA};",
        f" v = DKIM1 ;\tk =\trsa ;\r\n p = {P_RSA} ; ",
        f"p={P_RSA}",
        f"p={P_RSA}; k=rsa",
        f"v=DKIM1; h=sha1 : sha256; s=tlsrpt : email; t=s; n=of the second office; p={P_RSA}",
        f"v=DKIM1; s=*; t=; x_1=later; p={P_RSA}",
        f"v=DKIM1; p={P_RSA[:40]} {P_RSA[40:90]}\r\n {P_RSA[90:]}",
    ],
)
def test_what_the_rfc_allows_is_ok(text: str) -> None:
    assert record.compare_record([text], RSA).verdict is record.RecordVerdict.OK
    assert record.compare_record(["v=spf1 -all", text], RSA).verdict is record.RecordVerdict.OK


@each_row(
    "text, fault",
    [
        (f"v=DKIM1; p={P_OTHER}", "found p= of another key, expected p= of this key"),
        ("v=DKIM1; k=rsa; p=", "found p= without a key, which revokes it, expected p= of this key"),
        (f"v=DKIM1; t=s:y; p={P_RSA}", "found t=s:y, which is testing, expected no y in t="),
        (f"v=DKIM1; k=ed25519; p={P_RSA}", "found k=ed25519, expected k=rsa"),
        (f"v=DKIM1; k=RSA; p={P_RSA}", "found k=RSA, expected k=rsa"),
        (f"v=DKIM1; h=sha1; p={P_RSA}", "found h=sha1, expected h=sha256, or no h="),
        (f"v=DKIM1; s=tlsrpt; p={P_RSA}", "found s=tlsrpt, expected s=email, or no s="),
        (f"k=rsa; v=DKIM1; p={P_RSA}", "found v=DKIM1 that is not the first tag, expected v=DKIM1"),
        (rf"v=DKIM1\; p={P_RSA}", r"found v=DKIM1\, expected v=DKIM1 first"),
        (f"v= dkim1; p={P_RSA}", "found v=dkim1, expected v=DKIM1 first"),
        ("v=DKIM1; k=rsa", "found no p=, expected p= of this key"),
        (f"v=DKIM1; p={P_RSA[:-16]}", "found p= without its last 16 letters"),
        (f"v=DKIM1; p={P_RSA[:41]}", f"found p= without its last {len(P_RSA) - 41} letters"),
        (f"v=DKIM1; p=*{P_RSA[1:]}", "found p= that is no base64"),
        (f'"v=DKIM1; p={P_RSA}"', 'found ""v=DKIM1", expected tags'),
        (f"v=DKIM1;; p={P_RSA}", 'found "", expected tags'),
        (f"v=DKIM1; p={P_RSA}; p={P_RSA}", "found p= twice"),
        ("hello", 'found "hello", expected tags'),
        ("", "found no tags"),
        (";", 'found "", expected tags'),
        ("\x1b[2J" * 30, 'found "?[2J?[2J'),
        (f"v=DKIM1; p={P_RSA}{' ' * 9000}", "octets, expected tags"),
    ],
)
def test_what_is_wrong_is_said(text: str, fault: str) -> None:
    compared = record.compare_record([text], RSA)
    assert compared.verdict is record.RecordVerdict.WRONG
    assert fault in str(compared.faults[0])
    assert len(compared.faults) == 1
    assert str(compared.faults[0]).isprintable()


def test_each_fault_of_a_record_is_said() -> None:
    text = f"v=DKIM1; k=rsa; h=sha1; s=web; t=y; p={P_RSA}"
    found = [one.found for one in record.compare_record([text], ED25519).faults]
    assert found == ["k=rsa", "h=sha1", "s=web", "t=y, which is testing", "p= of another key"]


def test_a_record_without_a_kind_is_of_rsa() -> None:
    assert str(record.compare_record([f"v=DKIM1; p={P_RSA}"], ED25519).faults[0]) == (
        "found no k=, expected k=ed25519"
    )


@pytest.mark.parametrize("published", [[], ["v=spf1 -all"], ["v = TLSRPTv1; rua=mailto:a@b.c"]])
def test_no_record_of_a_key_is_missing(published: list[str]) -> None:
    assert record.compare_record(published, RSA).verdict is record.RecordVerdict.MISSING


@pytest.mark.parametrize("second", [record.key_record(RSA), f"p={P_OTHER}", "hello"])
def test_two_records_for_one_name_are_wrong(second: str) -> None:
    compared = record.compare_record([record.key_record(RSA), second], RSA)
    assert compared.verdict is record.RecordVerdict.WRONG
    assert [str(fault) for fault in compared.faults] == ["found 2 records, expected one"]


def test_names_of_tags_differ_in_their_case() -> None:
    assert record.parse_record("P=a; p=b") == {"P": "a", "p": "b"}


@given(st.text(st.sampled_from("vkp= ;\t\r\nDKIM1rsa\x00é"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    record.compare_record([text], RSA)
    try:
        tags = record.parse_record(text)
    except record.RecordError:
        return
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) for name in tags)
    assert record.parse_record(";".join(f"{name}={value}" for name, value in tags.items())) == tags
