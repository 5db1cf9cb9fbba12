"""The grammar of RFC 5321 addresses; the table is from the isemail test set (Dominic Sayers)."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.address import (
    AddressError,
    own_mailbox,
    parse_mailbox,
    parse_path,
    shown_address,
    to_ascii_domain,
    with_a_labels,
)
from relay.base.settings.values import parse_domain
from tests.support.tables import each_row

# github.com/dominicsayers/isemail, test/tests.xml, the categories ISEMAIL_RFC5321 and (some)
# ISEMAIL_VALID: what a server must take, with the canonical form that we give it.
ACCEPTED = {
    "test@iana.org": "test@iana.org",
    "test@org": "test@org",
    "test@iana.123": "test@iana.123",
    "test@255.255.255.255": "test@255.255.255.255",
    "a@b-c.d": "a@b-c.d",
    "!#$%&`*+/=?^`{|}~@iana.org": "!#$%&`*+/=?^`{|}~@iana.org",
    "Test.User@IANA.Org": "Test.User@iana.org",
    '"test"@iana.org': "test@iana.org",
    '""@iana.org': '""@iana.org',
    r'"\a"@iana.org': "a@iana.org",
    r'"\""@iana.org': r'"\""@iana.org',
    r'"\\"@iana.org': r'"\\"@iana.org',
    r'"test\ test"@iana.org': '"test test"@iana.org',
    '"te@st"@iana.org': '"te@st"@iana.org',
    '"a.b"@iana.org': "a.b@iana.org",
    '"a..b"@iana.org': '"a..b"@iana.org',
    "test@[255.255.255.255]": "test@[255.255.255.255]",
    "test@[IPv6:1111:2222:3333:4444:5555:6666:7777:8888]": (
        "test@[IPv6:1111:2222:3333:4444:5555:6666:7777:8888]"
    ),
    "test@[ipv6:1111:2222::8888]": "test@[IPv6:1111:2222::8888]",
    "test@[IPv6:::3333:4444:5555:6666:7777:8888]": ("test@[IPv6:::3333:4444:5555:6666:7777:8888]"),
    "test@[IPv6:::]": "test@[IPv6:::]",
    "test@[IPv6:1111:2222:3333:4444:5555:6666:255.255.255.255]": (
        "test@[IPv6:1111:2222:3333:4444:5555:6666:ffff:ffff]"
    ),
    "test@[IPv6:1111:2222:3333:4444::255.255.255.255]": (
        "test@[IPv6:1111:2222:3333:4444::ffff:ffff]"
    ),
}

# The same set, the category ISEMAIL_ERR: what a server must refuse.
REFUSED = [
    *("", "test", "@", "test@", "@io", "@iana.org", ".test@iana.org", "test.@iana.org"),
    *("test..iana.org", "te..st@iana.org", "test_exa-mple.com", r"test\@test@iana.org"),
    *("test@-iana.org", "test@iana-.com", "test@.iana.org", "test@iana.org.", "test@iana..com"),
    *('"""@iana.org', r'"\"@iana.org', 'test"@iana.org', '"test@iana.org', '"test"test@iana.org'),
    *('test"text"@iana.org', '"test""test"@iana.org', '"test\0"@iana.org'),
    *("test@a[255.255.255.255]", "((comment)test@iana.org", "test(comment)test@iana.org"),
    *("test@iana.org\n", "test@iana.org-", "(test@iana.org", "test@(iana.org", "test@[1.2.3.4"),
    *(r'"test\"@iana.org', r"(comment\)test@iana.org", r"test@iana.org(comment\)"),
    *("test@iana.org(comment\\", "test@[RFC-5322]-domain-literal]"),
    *("test@[RFC-5322-[domain-literal]", r"test@[RFC-5322-domain-literal\]"),
    *("test@[RFC-5322-domain-literal\\", "\x7f@iana.org", "test@\x7f.org", '"test\\©"@iana.org'),
    *("test@iana.org\r", "\rtest@iana.org", '"\rtest"@iana.org', "(\r)test@iana.org"),
    *("test@iana.org(\r)", "\ntest@iana.org", '"\n"@iana.org', "(\n)test@iana.org", "\a@iana.org"),
    *("test@\a.org", "\r\ntest@iana.org", "\r\n \r\ntest@iana.org", " \r\ntest@iana.org"),
    *(" \r\n \r\ntest@iana.org", " \r\n\r\ntest@iana.org", "test@iana.org\r\n"),
    *("test@iana.org\r\n \r\n", "test@iana.org \r\n \r\n"),
]

# Ours: comments and white space are RFC 5322's, never SMTP's; limits of RFC 5321 4.5.3.1.
REFUSED_BY_US = [
    *("a b@iana.org", "a@iana .org", "a@b@iana.org", "a@exa_mple.org", "<a@iana.org>"),
    *("a@[IPv6:fe80::1%eth0]", "a@[256.1.1.1]", "a@[IPv6:1]", "a@[Tag:x]", "a@[]", "a@["),
    *("a" * 65 + "@x.org", "a@" + "b" * 64 + ".org", "a@" + ".".join(["b" * 60] * 5)),
]


@each_row("text, canonical", ACCEPTED.items())
def test_valid_addresses_have_one_canonical_form(text, canonical):
    assert parse_mailbox(text) == canonical
    assert parse_mailbox(canonical) == canonical


@pytest.mark.parametrize("smtputf8", [False, True])
@pytest.mark.parametrize("text", REFUSED + REFUSED_BY_US)
def test_invalid_addresses_are_rejected_with_a_status(text, smtputf8):
    with pytest.raises(AddressError) as caught:
        parse_mailbox(text, smtputf8=smtputf8)
    assert caught.value.status in ("5.1.3", "5.6.7")
    text = str(caught.value)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 200


def test_longest_address():
    longest = "a" * 64 + "@" + ".".join(["b" * 62] * 3)
    assert len(longest) == 253
    assert parse_mailbox(longest) == longest
    with pytest.raises(AddressError, match="longer than 254"):
        parse_mailbox(f"{longest}.c")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("üser@example.org", "üser@example.org"),
        ('"ü ser"@example.org', '"ü ser"@example.org'),
        ("用户@例子.广告", "用户@xn--fsqu00a.xn--4rr70v"),
    ],
)
def test_local_parts_beyond_ascii_need_smtputf8(text, canonical):
    assert parse_mailbox(text, smtputf8=True) == canonical
    with pytest.raises(AddressError) as caught:
        parse_mailbox(text)
    assert caught.value.status == "5.6.7"


DOMAINS = {  # IDNA 2008 with the mapping of UTS 46
    "BÜCHER.Example": "xn--bcher-kva.example",
    "XN--BCHER-KVA.example": "xn--bcher-kva.example",
    "bu\u0308cher\u3002example": "xn--bcher-kva.example",  # decomposed, and an ideographic full stop
    "xn--bcher-kva.bücher.example": "xn--bcher-kva.xn--bcher-kva.example",
    "straße.test": "xn--strae-oqa.test",  # not strasse.test, another owner's (RFC 5894 7.2)
    "βόλος.test": "xn--nxasmm1c.test",
    "\uff45xample.org": "example.org",  # a full-width e
    "xn--i-7iq.ws": "xn--i-7iq.ws",  # ASCII passes, also what IDNA 2008 does not allow
}


@each_row("domain, ascii_domain", DOMAINS.items())
def test_a_domain_becomes_a_labels_without_smtputf8(domain, ascii_domain):
    assert parse_mailbox(f"A.b@{domain}") == f"A.b@{ascii_domain}"
    assert parse_path(f"<A.b@{domain}> X") == (f"A.b@{ascii_domain}", "X")
    assert parse_domain(domain) == ascii_domain
    assert own_mailbox(f"A.b@{domain}") == f"a.b@{ascii_domain}"


@each_row(
    "address, shown",
    [
        ("a@xn--bcher-kva.test", "a@bücher.test"),
        ("xn--bcher-kva.test", "bücher.test"),
        ("*@*.xn--bcher-kva.test", "*@*.bücher.test"),
        ("xn--a@b.test", "xn--a@b.test"),
        ("a@xn--a.test", "a@xn--a.test"),  # no A-label
        ("a@xn--i-7iq.ws", "a@xn--i-7iq.ws"),  # the heart is no letter
        ("a@xn--example-.test", "a@xn--example-.test"),
        ("a@xn--strasse-oqa.test", "a@xn--strasse-oqa.test"),
    ],
)
def test_people_see_u_labels_that_stand_for_the_same_domain(address, shown):
    assert shown_address(address) == shown
    assert with_a_labels(f"@{shown}") == f"@{address}"


@each_row(
    "text, found",
    [
        ("bücher", "bücher"),
        ("jörg@*.bücher.test", "jörg@*.xn--bcher-kva.test"),
        ("*@*bücher.test", "*@*bücher.test"),
        ("Jörg <jörg@Bücher.test>, b@ü.test", "Jörg <jörg@xn--bcher-kva.test>, b@xn--tda.test"),
        ("@♥.test", "@♥.test"),
    ],
)
def test_texts_that_are_compared_have_a_labels(text, found):
    assert with_a_labels(text) == found


@each_row(
    "text",
    [
        *("a@x\u2028.org", "\x85@x.org", "\ud800@x.org", "a@\ud800.org", "a@℀.org", "a@ü..org"),
        *("a@i♥.ws", "a@ü_.org", "a@" + "ü" * 200 + ".org", "a@1א.ü.org"),
        "a" * 64 + "@" + ".".join(["ü" * 46] * 4),
    ],
)
def test_invalid_international_addresses_are_rejected(text):
    with pytest.raises(AddressError):
        parse_mailbox(text, smtputf8=True)


@each_row(
    "argument, address, rest",
    [
        ("<Bob@Example.NET>", "Bob@example.net", ""),
        (" <bob@example.net> SIZE=10 BODY=8BITMIME", "bob@example.net", "SIZE=10 BODY=8BITMIME"),
        ("<> RET=HDRS", "", "RET=HDRS"),
        ("<Postmaster>", "postmaster", ""),
        ("<@a.org,@b.org:bob@example.net>", "bob@example.net", ""),
        ('<"a> b"@example.net> X=y', '"a> b"@example.net', "X=y"),
        (r'<"a\"> b"@example.net>', r'"a\"> b"@example.net', ""),
        ("<bob@[192.0.2.1]>", "bob@[192.0.2.1]", ""),
    ],
)
def test_paths(argument, address, rest):
    assert parse_path(argument) == (address, rest)


def test_ascii_domain():
    assert to_ascii_domain("Example.ORG") == "example.org"
    assert to_ascii_domain("bücher.example") == "xn--bcher-kva.example"
    with pytest.raises(AddressError):
        to_ascii_domain("ü" * 64 + ".example")
    started = time.process_time()
    for _ in range(10):
        with pytest.raises(AddressError):
            to_ascii_domain("".join(map(chr, range(0x4E00, 0x4E00 + 2000))))
    assert time.process_time() - started < 1  # Punycode is quadratic


@given(st.text(max_size=300), st.booleans())
def test_any_text_is_rejected_or_becomes_canonical(text, smtputf8):
    for candidate in (text, f"{text}@example.org", f'"{text}"@example.org', f"a@{text}"):
        try:
            canonical = parse_mailbox(candidate, smtputf8=smtputf8)
        except AddressError:
            continue
        assert not set(canonical) & {"\r", "\n", "\0", "\x85", "\u2028"}
        assert canonical.isascii() or smtputf8
        assert parse_mailbox(canonical, smtputf8=smtputf8) == canonical
        assert parse_path(f"<{canonical}> X", smtputf8=smtputf8) == (canonical, "X")
        canonical.encode()


@each_row(
    "path, address",
    [
        ("<root>", "root@own.test"),
        ('<"a b">', '"a b"@own.test'),
        ("<a@Web_1>", "a@web_1"),
        ("<@x.test:a@_dns.web_1.test>", "a@_dns.web_1.test"),
        ('<"a_b"@c_d>', "a_b@c_d"),
        ("<a_b@c.test>", "a_b@c.test"),
        ("<>", ""),
        ("<postmaster>", "postmaster@own.test"),
    ],
)
def test_odd_paths_have_a_domain_and_underscores(path, address):
    assert parse_path(f"{path} SIZE=1", odd_domain="own.test") == (address, "SIZE=1")


def test_odd_labels_have_their_lengths():
    for domain in ("_" * 64, "a_b." * 64 + "c", "a_b..c", "-_"):
        with pytest.raises(AddressError):
            parse_path(f"<a@{domain}>", odd_domain="own.test")


def test_an_address_with_a_name_is_told_to_go_without():
    with pytest.raises(AddressError, match="the address alone, without a name and <>"):
        parse_mailbox("Jörg Müller <jörg@exämple.test>", smtputf8=True)
