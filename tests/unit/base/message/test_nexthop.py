"""Next hops: text and value."""

from relay.base.message.nexthop import CAPTURE, LOCAL, HopKind, NextHop
from tests.support.tables import each_row

HOPS = {
    "local": LOCAL,
    "capture": CAPTURE,
    "mx:example.net": NextHop(HopKind.MX, "example.net"),
    "smtp://127.0.0.1:2525": NextHop(HopKind.SMTP, "127.0.0.1", 2525),
    "smtps://mail.example.net:465": NextHop(HopKind.SMTPS, "mail.example.net", 465),
    "smtp://[2001:db8::1]:25": NextHop(HopKind.SMTP, "2001:db8::1", 25),
    "lmtp://mail.example.net:24": NextHop(HopKind.LMTP, "mail.example.net", 24),
    "lmtp://[::1]:24": NextHop(HopKind.LMTP, "::1", 24),
    "lmtp:unix:/run/dovecot/lmtp": NextHop(HopKind.LMTP, "/run/dovecot/lmtp"),
    "lmtp:unix:/run/lmtp:24": NextHop(HopKind.LMTP, "/run/lmtp:24"),
}


@each_row("text, hop", HOPS.items())
def test_text_and_value_are_inverse(text, hop):
    assert str(hop) == text
    assert NextHop.parse(text) == hop


@each_row("text, hop", HOPS.items())
def test_the_key_in_the_queue_has_the_name_of_the_route(text, hop):
    if hop.host:
        named = hop._replace(route="a name")
        assert (named.key, NextHop.parse(named.key)) == (f"{text} a name", named)
