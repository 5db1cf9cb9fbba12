"""The envelope, and the DSN parameters: xtext, NOTIFY, RET, ENVID and ORCPT."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message import envelope
from tests.support.tables import each_row


@each_row(
    "address, domain",
    [
        ("Bob@Example.NET", "example.net"),
        ('"a@b"@example.net', "example.net"),
        ("", ""),
        ("postmaster", ""),
        ("bob@[192.0.2.1]", "[192.0.2.1]"),
    ],
)
def test_domain_of(address, domain):
    assert envelope.domain_of(address) == domain


printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=90)


@given(printable)
def test_xtext_encoding_and_decoding_are_inverse(text):
    encoded = envelope.encode_xtext(text)
    assert " " not in encoded
    assert "=" not in encoded
    assert envelope.decode_xtext(encoded) == text
    assert envelope.parse_envid(encoded) == text


@each_row("text", ["a b", "a=b", "a+b", "a+2", "a+2b", "a+GG", "ü", "a\r\n", "+"])
def test_bad_xtext(text):
    with pytest.raises(ValueError, match="xtext"):
        envelope.decode_xtext(text)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("NEVER", {envelope.Notify.NEVER}),
        ("success", {envelope.Notify.SUCCESS}),
        ("FAILURE,Delay", {envelope.Notify.FAILURE, envelope.Notify.DELAY}),
        (
            "DELAY,SUCCESS,FAILURE",
            {envelope.Notify.DELAY, envelope.Notify.SUCCESS, envelope.Notify.FAILURE},
        ),
    ],
)
def test_notify(value, words):
    assert envelope.parse_notify(value) == words


def test_envid_keeps_its_case_and_has_at_most_100_decoded_characters():
    assert envelope.parse_envid("QQ314159+2Bab") == "QQ314159+ab"
    assert envelope.parse_envid("+3D" * 100) == "=" * 100


@each_row(
    "value, orcpt",
    [
        ("rfc822;Bob@Example.NET", "rfc822;Bob@Example.NET"),
        ("rfc822;a+2Bb@x.org", "rfc822;a+b@x.org"),
        ("RFC822;+22a+20b+22@x.org", 'RFC822;"a b"@x.org'),
        (r"utf-8;\x{FC}ser@x.org", "utf-8;üser@x.org"),
        ("utf-8;üser@x.org", "utf-8;üser@x.org"),
    ],
)
def test_orcpt_is_decoded_and_can_be_written_again(value, orcpt):
    assert envelope.parse_orcpt(value) == orcpt
    assert envelope.parse_orcpt(envelope.encode_orcpt(orcpt)) == orcpt
    assert envelope.encode_orcpt(orcpt).isascii()


def test_unprintable_text_cannot_be_written_as_xtext():
    for orcpt in ("rfc822;a\r\nb", "utf-8;a\nb", "nothing"):
        with pytest.raises(ValueError):
            envelope.encode_orcpt(orcpt)
