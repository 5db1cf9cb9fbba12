"""Next hops: text and value."""

import pytest

from relay.message.nexthop import CAPTURE, LOCAL, HopKind, NextHop

HOPS = {
    "local": LOCAL,
    "capture": CAPTURE,
    "mx:example.net": NextHop(HopKind.MX, "example.net"),
    "smtp://127.0.0.1:2525": NextHop(HopKind.SMTP, "127.0.0.1", 2525),
    "smtps://mail.example.net:465": NextHop(HopKind.SMTPS, "mail.example.net", 465),
    "smtp://[2001:db8::1]:25": NextHop(HopKind.SMTP, "2001:db8::1", 25),
}


@pytest.mark.parametrize(("text", "hop"), HOPS.items())
def test_text_and_value_are_inverse(text, hop):
    assert str(hop) == text
    assert NextHop.parse(text) == hop


@pytest.mark.parametrize(
    "text",
    ["", "mx", "mx:", "smtp:", "smtp://host", "smtp://:25", "smtp://host:0", "smtp://host:65536",
     "smtp://host:x", "http://host:25", "lmtp://host:24", "LOCAL"],
)  # fmt: skip
def test_invalid_next_hops_are_rejected(text):
    with pytest.raises(ValueError, match="is not a next hop: expected"):
        NextHop.parse(text)
