"""The texts that people write for durations, sizes, addresses, domains and next hops."""

from pathlib import Path

import pytest

from relay.base.settings import values
from relay.base.socket_address import Address
from tests.support.tables import each_row

BASE = Path("/base")


@each_row(
    "text, seconds",
    [("8s", 8), ("5m", 300), ("4h", 14400), ("2d", 172800), ("1.5 h", 5400), (" 1s ", 1)],
)
def test_duration(text, seconds):
    assert values.parse_duration(text) == seconds


@each_row("text", ["", "5", "m", "5 M", "-5m", "5m5s", "1e3s", "٣m", "5m\n5"])
def test_no_duration(text):
    with pytest.raises(ValueError, match="a duration such as"):
        values.parse_duration(text)


@each_row(
    "text, rate",
    [("100/1m", "100/60.0"), ("1/1s", "1/1.0"), (" 20 / 1.5h", "20/5400.0"), ("9/1d", "9/86400.0")],
)
def test_rate(text, rate):
    assert values.parse_rate(text) == rate


@each_row(
    "text",
    [
        "",
        "100",
        "0/1s",
        "-1/1s",
        "1/0s",
        "1/2d",
        "1.5/1s",
        "1/m",
        "/1s",
        "1/",
        "1/1s/1s",
        "12345678/1s",
    ],
)
def test_no_rate(text):
    with pytest.raises(ValueError, match=r"such as \"100/1m\""):
        values.parse_rate(text)


@each_row(
    "text, size_bytes",
    [
        ("150 MiB", 150 << 20),
        ("64 kB", 64000),
        ("64KB", 64000),
        ("10 B", 10),
        ("1.5KiB", 1536),
        ("2 GB", 2_000_000_000),
        ("1 TiB", 1 << 40),
    ],
)
def test_size(text, size_bytes):
    assert values.parse_size(text) == size_bytes


@each_row("text", ["", "5", "5 iB", "5 Mi", "MiB", "-1 B", "5 PiB", "1 M B"])
def test_no_size(text):
    with pytest.raises(ValueError, match="a size such as"):
        values.parse_size(text)


@each_row(
    "text, address",
    [
        ("127.0.0.1:25", Address("127.0.0.1", 25)),
        ("LOCALHOST:0", Address("localhost", 0)),
        ("[::1]:25", Address("::1", 25)),
        ("[0:0:0:0:0:0:0:1]:25", Address("::1", 25)),
        ("unix:run/x.sock", Address(path="/base/run/x.sock")),
        ("unix:/run/x.sock", Address(path="/run/x.sock")),
    ],
)
def test_address(text, address):
    assert values.parse_address(text, BASE) == address


@each_row(
    "text, address",
    [
        ("192.0.2.53", Address("192.0.2.53", 53)),
        ("192.0.2.53:5300", Address("192.0.2.53", 5300)),
        ("2001:db8::53", Address("2001:db8::53", 53)),
        ("[2001:db8::53]:5300", Address("2001:db8::53", 5300)),
    ],
)
def test_a_name_server_without_a_port_has_port_53(text, address):
    assert values.parse_name_server(text) == address


@each_row("text", ["", "dns.test", "dns.test:53", "1.2.3.4:0", "unix:x", "[::1]"])
def test_no_name_server(text):
    with pytest.raises(ValueError, match="the IP address of a name server"):
        values.parse_name_server(text)


@each_row("text", ["", "25", ":25", "h:", "h:65536", "h:-1", "h:²", "::1:25", "[h]:25", "a b:1", "unix:",
     "unix:a\0b", "unix:/" + "x" * 200, "h:25:25", "1.2.3:25", "http://h:25"])  # fmt: skip
def test_no_address(text):
    with pytest.raises(ValueError, match=r"HOST:PORT|socket path|brackets"):
        values.parse_address(text, BASE)


@each_row(
    "text, domain", [("Example.TEST", "example.test"), ("xn--p1ai", "xn--p1ai"), ("a-1.b", "a-1.b")]
)
def test_domain(text, domain):
    assert values.parse_domain(text) == domain


@each_row("text", ["", ".", "a.", ".a", "a..b", "-a", "a-", "a_b", "a b", "jö_rg.de", "♥.de", "a" * 64, "a." * 130 + "a",
     "1.2.3.4", "*.a", "a\n"])  # fmt: skip
def test_no_domain(text):
    with pytest.raises(ValueError, match="a domain"):
        values.parse_domain(text)


@each_row("text, pattern", [("*", "*"), ("*.A.test", "*.a.test"), ("A.test", "a.test")])
def test_domain_pattern(text, pattern):
    assert values.parse_domain_pattern(text) == pattern


@each_row("text", ["", "**", "*a.test", "a.*", "*.", "*.*.a"])
def test_no_domain_pattern(text):
    with pytest.raises(ValueError, match="suffix"):
        values.parse_domain_pattern(text)


@each_row(
    "text, mailbox",
    [
        ("Alice@Example.test", "alice@example.test"),
        ("a.b+c@example.test", "a.b+c@example.test"),
        ("Jörg@example.test", "jörg@example.test"),
    ],
)
def test_mailbox(text, mailbox):
    assert values.parse_mailbox(text) == mailbox


@each_row("text", ["", "a", "@a.test", "a@", "a..b@c.test", ".a@c.test", "a b@c.test", "../x@c.test",
     '"a"@c.test', "a@b@c.test", "a\0@c.test", "a\r\n@c.test", "x" * 65 + "@c.test", "a@[1.2.3.4]"])  # fmt: skip
def test_no_mailbox(text):
    with pytest.raises(ValueError, match="an address such as"):
        values.parse_mailbox(text)


@each_row(
    "text, network",
    [("10.0.0.0/8", "10.0.0.0/8"), ("192.0.2.1", "192.0.2.1/32"), ("FD00::/8", "fd00::/8")],
)
def test_network(text, network):
    assert values.parse_network(text) == network


@each_row("text", ["", "10.0.0.1/8", "0.0.0.0/0", "0.0.0.0/1", "::/0", "2000::/3"])
def test_no_network(text):
    with pytest.raises(ValueError, match="a network"):
        values.parse_network(text)


@each_row(
    "text, hop",
    [
        ("mx", "mx"),
        ("local", "local"),
        ("capture", "capture"),
        ("smtp://Mail.test:25", "smtp://mail.test:25"),
        ("smtps://[::1]:465", "smtps://[::1]:465"),
        ("lmtp://Mail.test:24", "lmtp://mail.test:24"),
        ("lmtp:unix:/run/Dovecot/lmtp", "lmtp:unix:/run/Dovecot/lmtp"),
        ("reject: 5.1.2 gone ", "reject:5.1.2 gone"),
    ],
)
def test_next_hop(text, hop):
    assert values.parse_next_hop(text) == hop


@each_row("text", ["", "MX", "held", "smtp://mail.test", "smtp://mail.test:0", "smtp://unix:/x", "lmtp://h",
     "lmtp://unix:/x", "LMTP://h:24", "lmtps://h:24", "http://h:80", "reject:", "reject: ", "reject:a\r\nb", "reject:ä", "reject:" + "x" * 500,
     "smtp://h:25\n"])  # fmt: skip
def test_no_next_hop(text):
    with pytest.raises(ValueError, match=r"smtp://HOST:PORT|printable ASCII|at most 400"):
        values.parse_next_hop(text)


@each_row(
    "text, expected",
    [
        ("lmtp://127.0.0.1:25", r"another port than 25, which is for SMTP only \(RFC 2033\)"),
        ("lmtp:unix:", "an absolute path without spaces"),
        ("lmtp:unix:run/lmtp", "an absolute path without spaces"),
        ("lmtp:unix:/run/my lmtp", "an absolute path without spaces"),
        ("lmtp:unix:/run/lmtp\n", "an absolute path without spaces"),
        ("lmtp:unix:/" + "x" * 107, "a socket path of at most 107 bytes"),
        ("ftp://h:21", r"smtp://HOST:PORT, smtps://HOST:PORT, lmtp://HOST:PORT, lmtp:unix:PATH or"),
    ],
)
def test_an_lmtp_next_hop_says_what_is_expected(text, expected):
    with pytest.raises(ValueError, match=expected):
        values.parse_next_hop(text)


@each_row("text", ["sqlite:", "sqlite:/abs", "sqlite:../x", "mysql://h/d", "x"])
def test_no_spool_url(text):
    with pytest.raises(ValueError, match="inside state_dir"):
        values.parse_spool_url(text)


@each_row(
    "text, url",
    [("https://mail.test/", "https://mail.test"), ("http://[::1]:80/r", "http://[::1]:80/r")],
)
def test_web_url(text, url):
    assert values.parse_web_url(text) == url


@each_row("text", ["", "mail.test", "ftp://m.test", "https://", "https://m.test?q", "https://u@m.test",
     "https://m.test:99999", "https://[m", "https://a b", "https://m.test\r\nX: y"])  # fmt: skip
def test_no_web_url(text):
    with pytest.raises(ValueError, match="a URL such as"):
        values.parse_web_url(text)
