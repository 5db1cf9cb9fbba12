"""Recipients that name what their host does, and addresses that must not."""

import re

from hypothesis import assume, given
from hypothesis import strategies as st

from relay.development.internet.test_recipients import EXAMPLES, MARK, Manner, find_test_recipient
from tests.support.tables import each_row

MARKED = f" ({MARK})"


@each_row(
    "address, reply, times",
    [
        ("bob+550@example.org", "550 5.1.1 No such user", 0),
        ("+550@example.org", "550 5.1.1 No such user", 0),
        ("Bob+550@Example.ORG", "550 5.1.1 No such user", 0),
        ("a+b+554@gmail.com", "554 5.7.1 Transaction failed", 0),
        ("bob+451x2@example.org", "451 4.3.0 Local error, try again later", 2),
        ("bob+421@example.org", "421 4.3.2 Service not available, closing the connection", 0),
        ("bob+452@example.org", "452 4.2.2 Mailbox full", 0),
        ("bob+full@example.org", "452 4.2.2 Mailbox full", 0),
        ("bob+599@example.org", None, 0),
        ("bob+559@example.org", "559 5.0.0 Permanent failure", 0),
        ("bob+441@example.org", "441 4.0.0 Temporary failure", 0),
        ("bob+550-5.7.26@example.org", "550 5.7.26 No such user", 0),
        (
            "bob+421-4.7.28x3@example.org",
            "421 4.7.28 Service not available, closing the connection",
            3,
        ),
        ("bob+550-4.7.28@example.org", None, 0),
        ("bob+451x0@example.org", None, 0),
        ("bounce+550@example.org", "550 5.1.1 No such user", 0),
        ("bounce+550+no+such+user+here@inbox.mailtrap.io", "550 no such user here", 0),
        ("bounce+550+%4eo+such+user+here@inbox.mailtrap.io", "550 No such user here", 0),
        ("Bounce+550+No+Such+User@inbox.mailtrap.io", "550 No Such User", 0),
        ("bounce+451+server+unavailable@inbox.mailtrap.io", "451 server unavailable", 0),
        ("bounce+454+authentication+required@anydomain.com", "454 authentication required", 0),
        ("bounce+550+a%0d%0ab%ff@example.org", "550 a??b?", 0),
        ("bounce@simulator.amazonses.com", "550 5.1.1 Unknown user", 0),
        ("bounce+label1@simulator.amazonses.com", "550 5.1.1 Unknown user", 0),
        (
            "suppressionlist@simulator.amazonses.com",
            "550 5.1.1 The address is on the suppression list",
            0,
        ),
        ("bounced@resend.dev", "550 5.1.1 Unknown user", 0),
        ("bounced+order-7@resend.dev", "550 5.1.1 Unknown user", 0),
        ("suppressed@resend.dev", "550 5.1.1 The address is on the suppression list", 0),
    ],
)
def test_the_host_refuses_the_recipient(address, reply, times):
    wanted = find_test_recipient(address)
    if reply is None:
        assert wanted is None
        return
    assert (wanted.manner, wanted.stage) == (Manner.REPLY, "RCPT")
    assert (wanted.reply, wanted.times) == (reply + MARKED, times)


@each_row(
    "local, reply, stage",
    [
        ("temperror", "451 4.3.0 Local error, try again later", "DOT"),
        ("x-permerror", "550 5.1.1 No such user", "DOT"),
        ("550", "550 5.1.1 No such user", "DOT"),
        ("rcptto550", "550 5.1.1 No such user", "RCPT"),
        ("rcptto-x-temperror", "451 4.3.0 Local error, try again later", "RCPT"),
        ("mailfrom451", "451 4.3.0 Local error, try again later", "RCPT"),
        ("queue450", "450 4.2.1 Mailbox busy", "DOT"),
    ],
)
def test_recipients_of_mox_localserve(local, reply, stage):
    wanted = find_test_recipient(f"{local}@example.org")
    assert (wanted.manner, wanted.reply, wanted.stage) == (Manner.REPLY, reply + MARKED, stage)


@each_row(
    "address, manner, stage",
    [
        ("bob+grey@example.org", Manner.GREYLIST, "RCPT"),
        ("bob+drop@example.org", Manner.DROP, "RCPT"),
        ("bob+timeout@example.org", Manner.STALL, "RCPT"),
        ("bob+tls@example.org", Manner.NEEDS_TLS, "RCPT"),
        ("bob+slow10@example.org", Manner.DELAY, "RCPT"),
        ("bob+later550@example.org", Manner.LATER, "DOT"),
        ("timeout@example.org", Manner.STALL, "DOT"),
        ("rcpttotimeout@example.org", Manner.STALL, "RCPT"),
        ("success@simulator.amazonses.com", Manner.ACCEPT, "RCPT"),
        ("ooto@simulator.amazonses.com", Manner.ACCEPT, "RCPT"),
        ("complaint@simulator.amazonses.com", Manner.ACCEPT, "RCPT"),
        ("delivered+x@resend.dev", Manner.ACCEPT, "RCPT"),
        ("complained@resend.dev", Manner.ACCEPT, "RCPT"),
    ],
)
def test_the_host_does_something_else(address, manner, stage):
    wanted = find_test_recipient(address)
    assert (wanted.manner, wanted.stage) == (manner, stage)


def test_the_delay_is_bounded():
    assert find_test_recipient("bob+slow10@example.org").delay_s == 10.0
    assert find_test_recipient("bob+slow300@example.org").delay_s == 300.0
    assert find_test_recipient("bob+slow301@example.org") is None
    assert find_test_recipient("bob+slow0@example.org") is None


@each_row(
    "address",
    [
        *("john@gmail.com", "john1550@gmail.com", "john550@gmail.com", "john.550@gmail.com"),
        *("room-404@example.org", "user+1550@example.org", "user+5500@example.org"),
        *("user+news@example.org", "user+slow@example.org", "user+later@example.org"),
        *("bounce@gmail.com", "bounce@resend.dev", "bounced@gmail.com", "delivered@example.org"),
        *("complaint@example.org", "bounce+label@example.org", "bounces+12345-6789@example.org"),
        *("someone@simulator.amazonses.com", "someone@mail.resend.dev"),
        *("session-timeout@example.org", "queue@example.org", "mailfrom@example.org"),
        *("1550@example.org", "650@example.org", "550", "", "@example.org"),
        "postmaster@example.org",
    ],
)
def test_an_ordinary_address_does_not_match(address):
    assert find_test_recipient(address) is None


@given(st.text(max_size=80), st.text(max_size=20))
def test_a_reply_is_one_line_that_a_host_can_send(local, domain):
    for address in (f"{local}@{domain}", f"bounce+550+{local}@example.org", f"x+{local}@e.org"):
        wanted = find_test_recipient(address)
        if wanted is None or not wanted.reply:
            continue
        assert re.fullmatch(r"[45][0-5][0-9] [ -~]+", wanted.reply, re.ASCII)
        assert len(wanted.reply) < 510
        assert wanted.reply.endswith(MARKED)


@given(st.from_regex(r"\A[a-z]{1,10}[0-9]{0,6}\Z"))
def test_letters_and_digits_are_an_address_of_a_person(local):
    assume(not local.startswith(("mailfrom", "rcptto", "queue")))
    assume(not local.endswith(("temperror", "permerror")) and local != "timeout")
    assert find_test_recipient(f"{local}@example.org") is None


def test_the_examples_are_test_recipients_of_every_kind():
    found = {}
    for address, meaning in EXAMPLES:
        wanted = find_test_recipient(address)
        assert wanted, address
        found[wanted.manner] = meaning
        if wanted.manner is Manner.REPLY and not wanted.times:
            assert f"replies {wanted.reply[:3]}" in meaning
    assert set(found) == set(Manner)
