"""The texts that people write for durations, sizes, addresses, domains and next hops."""

from functools import partial
from pathlib import Path

import pytest

from relay.base.settings import values
from relay.base.socket_address import Address
from tests.support.tables import each_row

HOUR_US = 3_600_000_000
past = partial(values.parse_time, now_us=14 * HOUR_US)  # 1970-01-01 14:00
ahead = partial(past, is_ahead=True)
address_below_base = partial(values.parse_address, base=Path("/base"))


@each_row(
    "parse, read",
    [
        (
            values.parse_duration,
            {"8s": 8, "5m": 300, "4h": 14400, "2d": 172800, "1.5 h": 5400, " 1s ": 1},
        ),
        (past, {"13:00": 13 * HOUR_US, "15:00": -9 * HOUR_US, "15:00+02:00": 13 * HOUR_US}),
        (ahead, {"13:00": 37 * HOUR_US, "15:00 utc": 15 * HOUR_US, "2h": 16 * HOUR_US}),
        (values.parse_rate, {"100/1m": "100/60.0", " 20 / 1.5h": "20/5400.0", "9/1d": "9/86400.0"}),
        (
            values.parse_size,
            {
                "150 MiB": 150 << 20,
                "64 kB": 64000,
                "64KB": 64000,
                "10 B": 10,
                "5000": 5000,
                "1.5KiB": 1536,
                "1 TiB": 1 << 40,
            },
        ),
        (
            address_below_base,
            {
                "127.0.0.1:25": Address("127.0.0.1", 25),
                "LOCALHOST:0": Address("localhost", 0),
                "[0:0:0:0:0:0:0:1]:25": Address("::1", 25),
                "unix:run/x.sock": Address(path="/base/run/x.sock"),
                "unix:/run/x.sock": Address(path="/run/x.sock"),
            },
        ),
        (
            values.parse_name_server,
            {
                "192.0.2.53": Address("192.0.2.53", 53),
                "192.0.2.53:5300": Address("192.0.2.53", 5300),
                "2001:db8::53": Address("2001:db8::53", 53),
                "[2001:db8::53]:5300": Address("2001:db8::53", 5300),
            },
        ),
        (
            values.parse_domain,
            {"Example.TEST": "example.test", "xn--p1ai": "xn--p1ai", "a-1.b": "a-1.b"},
        ),
        (values.parse_domain_pattern, {"*": "*", "*.A.test": "*.a.test", "A.test": "a.test"}),
        (
            values.parse_mailbox,
            {
                "Alice@Example.test": "alice@example.test",
                "a.b+c@a.test": "a.b+c@a.test",
                "Jörg@a.test": "jörg@a.test",
            },
        ),
        (
            values.parse_network,
            {"10.0.0.0/8": "10.0.0.0/8", "192.0.2.1": "192.0.2.1/32", "FD00::/8": "fd00::/8"},
        ),
        (
            values.parse_next_hop,
            {
                "mx": "mx",
                "local": "local",
                "capture": "capture",
                "smtp://Mail.test:25": "smtp://mail.test:25",
                "smtps://[::1]:465": "smtps://[::1]:465",
                "lmtp://Mail.test:24": "lmtp://mail.test:24",
                "lmtp:unix:/run/Dovecot/lmtp": "lmtp:unix:/run/Dovecot/lmtp",
                "reject: 5.1.2 gone ": "reject:5.1.2 gone",
            },
        ),
        (
            values.parse_web_url,
            {"https://mail.test/": "https://mail.test", "http://[::1]:80/r": "http://[::1]:80/r"},
        ),
    ],
)
def test_a_text_has_a_value(parse, read):
    assert {text: parse(text) for text in read} == read


SOCKET = "an absolute path without spaces"


@each_row(
    "parse, expected, texts",
    [
        (
            values.parse_duration,
            "a duration such as",
            ["", "5", "m", "5 M", "-5m", "5m5s", "1e3s", "٣m", "5m\n5"],
        ),
        (
            past,
            "UTC without a zone",
            ["", "Z", "24:00", "14:03 pm", "12:0", "1970-02-30", "2h ago"],
        ),
        (
            values.parse_rate,
            r"such as \"100/1m\"",
            [
                *("", "100", "0/1s", "-1/1s", "1/0s", "1/2d", "1.5/1s", "1/m", "/1s", "1/"),
                *("1/1s/1s", "12345678/1s"),
            ],
        ),
        (
            values.parse_size,
            "a size such as",
            ["", "5 iB", "5 Mi", "MiB", "-1 B", "5 PiB", "1 M B"],
        ),
        (
            values.parse_name_server,
            "the IP address of a name server",
            ["", "dns.test", "dns.test:53", "1.2.3.4:0", "unix:x", "[::1]"],
        ),
        (
            address_below_base,
            r"HOST:PORT|socket path|brackets",
            [
                *("", "25", ":25", "h:", "h:65536", "h:-1", "h:²", "::1:25", "[h]:25", "a b:1"),
                *("unix:", "unix:a\0b", "unix:/" + "x" * 200, "h:25:25", "1.2.3:25", "http://h:25"),
            ],
        ),
        (
            values.parse_domain,
            "a domain",
            [
                *("", ".", "a.", ".a", "a..b", "-a", "a-", "a_b", "a b", "jö_rg.de", "♥.de"),
                *("a" * 64, "a." * 130 + "a", "1.2.3.4", "*.a", "a\n"),
            ],
        ),
        (values.parse_domain_pattern, "suffix", ["", "**", "*a.test", "a.*", "*.", "*.*.a"]),
        (
            values.parse_mailbox,
            "an address such as",
            [
                *("", "a", "@a.test", "a@", "a..b@c.test", ".a@c.test", "a b@c.test"),
                *("../x@c.test", '"a"@c.test', "a@b@c.test", "a\0@c.test", "a\r\n@c.test"),
                *("x" * 65 + "@c.test", "a@[1.2.3.4]"),
            ],
        ),
        (
            values.parse_network,
            "a network",
            ["", "10.0.0.1/8", "0.0.0.0/0", "0.0.0.0/1", "::/0", "2000::/3"],
        ),
        (
            values.parse_next_hop,
            r"smtp://HOST:PORT|printable ASCII|at most 400",
            [
                *("", "MX", "held", "smtp://mail.test", "smtp://mail.test:0", "smtp://unix:/x"),
                *("lmtp://h", "lmtp://unix:/x", "LMTP://h:24", "lmtps://h:24", "http://h:80"),
                *("reject:", "reject: ", "reject:a\r\nb", "reject:ä", "reject:" + "x" * 500),
                *("smtp://h:25\n", "smtp://h:65536"),
            ],
        ),
        (
            values.parse_next_hop,
            r"another port than 25, which is for SMTP only \(RFC 2033\)",
            ["lmtp://127.0.0.1:25"],
        ),
        (
            values.parse_next_hop,
            SOCKET,
            ["lmtp:unix:", "lmtp:unix:run/lmtp", "lmtp:unix:/run/my lmtp", "lmtp:unix:/run/lmtp\n"],
        ),
        (values.parse_next_hop, "a socket path of at most 107 bytes", ["lmtp:unix:/" + "x" * 107]),
        (
            values.parse_spool_url,
            "inside state_dir",
            ["sqlite:", "sqlite:/abs", "sqlite:../x", "mysql://h/d", "x"],
        ),
        (
            values.parse_web_url,
            "a URL such as",
            [
                *("", "mail.test", "ftp://m.test", "https://", "https://m.test?q"),
                *("https://u@m.test", "https://m.test:99999", "https://[m", "https://a b"),
                "https://m.test\r\nX: y",
            ],
        ),
    ],
)
def test_another_text_is_refused_with_what_is_expected(parse, expected, texts):
    for text in texts:
        with pytest.raises(ValueError, match=expected):
            parse(text)
