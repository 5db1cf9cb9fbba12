"""Certificate names, and which addresses are of loopback."""

from relay.delivery.smtp.tls import certificate_matches, certificate_names
from tests.support.tables import each_row


def certificate(*names):
    """As ssl gives it: "DNS:a.test", "IP:127.0.0.2"."""
    kinds = {"DNS": "DNS", "IP": "IP Address"}
    pairs = (name.partition(":")[::2] for name in names)
    return {
        "subject": ((("commonName", "mail.test"),),),
        "subjectAltName": tuple((kinds[kind], text) for kind, text in pairs),
    }


@each_row(
    "names, host",
    [
        (["DNS:mail.test"], "mail.test"),
        (["DNS:other.test", "DNS:MAIL.test"], "mail.TEST"),
        (["DNS:*.mail.test"], "mx1.mail.test"),
        (["IP:192.0.2.1"], "192.0.2.1"),
        (["IP:192.0.2.1"], "[192.0.2.1]"),
        (["IP:2001:DB8:0:0:0:0:0:1"], "2001:db8::1"),
        (["IP:2001:DB8:0:0:0:0:0:1"], "[IPv6:2001:db8::1]"),
    ],
)
def test_a_certificate_matches_its_names(names, host):
    assert certificate_matches(certificate(*names), host)


@each_row(
    "names, host, found",
    [
        (["DNS:other.test"], "mail.test", "other.test"),
        ([], "mail.test", "no host"),  # the common name does not count
        (["DNS:mail.test"], "a.mail.test", "mail.test"),
        (["DNS:*.mail.test"], "mail.test", "*.mail.test"),
        (["DNS:*.mail.test"], "a.b.mail.test", "*.mail.test"),
        (["DNS:*.test"], "mail.test", "*.test"),
        (["DNS:m*.mail.test"], "mx.mail.test", "m*.mail.test"),
        (["DNS:*"], "mail", "*"),
        (["DNS:mail.test\0.other.test"], "mail.test", "mail.test\0.other.test"),
        (["DNS:192.0.2.1"], "192.0.2.1", "192.0.2.1"),
        (["DNS:*.0.2.1"], "192.0.2.1", "*.0.2.1"),
        (["IP:192.0.2.2"], "192.0.2.1", "the address 192.0.2.2"),
        (["IP:192.0.2.1"], "mail.test", "the address 192.0.2.1"),
        (
            ["DNS:a.test", "DNS:b.test", "IP:192.0.2.1", "DNS:c.test", "DNS:d.test"],
            "mail.test",
            "a.test, b.test, c.test and 2 more",
        ),
    ],
)
def test_a_certificate_for_others_is_described_by_its_names(names, host, found):
    assert not certificate_matches(certificate(*names), host)
    assert certificate_names(certificate(*names)) == found


def test_a_certificate_without_names_matches_no_host():
    assert not certificate_matches({}, "mail.test")
    assert certificate_names({}) == "no host"
    assert not certificate_matches(certificate("DNS:"), "mail.test")
    assert not certificate_matches(certificate("DNS:"), "")
