"""Commands: parameters by extension, unsupported messages, dot-stuffing."""

from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.content import LargeContent, MemoryOctets
from relay.base.message.envelope import Envelope, ForwardPath, Notify
from relay.delivery.smtp.transaction import (
    Extensions,
    Transaction,
    Unsupported,
    dot_stuffed,
    mail_command,
    plan,
    rcpt_command,
)
from tests.support.tables import each_row

EVERYTHING = Extensions.offered(
    {"pipelining": "", "8bitmime": "", "smtputf8": "", "dsn": "", "size": "1000"}
)
BARE = Extensions()


def large(header=b"Subject: x\r\n", body=b"\r\nhi\r\n", *, eight_bit=False):
    """The content of transaction(), said to be a large one."""
    return LargeContent(header, (MemoryOctets(body),), eight_bit)


def transaction(content=b"Subject: x\r\n\r\nhi\r\n", address="b@y.test", **fields):
    whole = fields.pop("whole", False)
    return Transaction(
        Envelope("a@x.test", **fields), (ForwardPath(address),), content, whole=whole
    )


@each_row(
    "fields, parameters",
    [
        ({}, "SIZE=18"),
        ({"eight_bit": True}, "SIZE=18 BODY=8BITMIME"),
        ({"content": "\r\né\r\n".encode()}, "SIZE=6 BODY=8BITMIME"),
        ({"address": "ü@y.test"}, "SIZE=18 SMTPUTF8"),
        ({"smtputf8": True}, "SIZE=18"),
        ({"smtputf8": True, "content": "S: é\r\n\r\n".encode()}, "SIZE=9 BODY=8BITMIME SMTPUTF8"),
        ({"ret": "HDRS", "envid": "Q=1 2"}, "SIZE=18 RET=HDRS ENVID=Q+3D1+202"),
        ({"envid": "not ascii: é"}, "SIZE=18"),
        ({"content": large()}, "SIZE=18"),
        ({"content": large(eight_bit=True), "smtputf8": True}, "SIZE=18 BODY=8BITMIME"),
        (
            {"content": large("S: é\r\n".encode()), "smtputf8": True},
            "SIZE=13 BODY=8BITMIME SMTPUTF8",
        ),
    ],
)
def test_mail_has_the_parameters_that_the_peer_offers(fields, parameters):
    one = transaction(**fields)
    assert mail_command(one, EVERYTHING) == f"MAIL FROM:<a@x.test> {parameters}\r\n".encode()
    assert mail_command(one, BARE) == b"MAIL FROM:<a@x.test>\r\n"


@each_row(
    "recipient, parameters",
    [
        (ForwardPath("b@y.test"), ""),
        (ForwardPath("b@y.test", frozenset({Notify.NEVER})), " NOTIFY=NEVER"),
        (
            ForwardPath(
                "b@y.test", frozenset({Notify.SUCCESS, Notify.FAILURE}), "rfc822;B+1@y.test"
            ),
            " NOTIFY=FAILURE,SUCCESS ORCPT=rfc822;B+2B1@y.test",
        ),
        (ForwardPath("b@y.test", orcpt="rfc822;not ascii é"), ""),
    ],
)
def test_rcpt_has_its_dsn_parameters_where_dsn_is_offered(recipient, parameters):
    assert rcpt_command(recipient, EVERYTHING) == f"RCPT TO:<b@y.test>{parameters}\r\n".encode()
    assert rcpt_command(recipient, BARE) == b"RCPT TO:<b@y.test>\r\n"


@each_row(
    "one, offered, status",
    [
        (transaction(), BARE, None),
        (transaction(content="\r\né\r\n".encode()), EVERYTHING, None),
        (transaction(address="ü@y.test"), Extensions(eight_bit=True), "5.6.7"),
        (transaction(smtputf8=True), BARE, None),
        (transaction(content=b"x" * 1001), EVERYTHING, "5.3.4"),
        (transaction(content=b"x" * 1000), EVERYTHING, None),
        (transaction(content=b"x" * 1001), Extensions.offered({"size": "0"}), None),
        (transaction(content=large()), BARE, None),
        # a rule may have removed its only part with 8 bits
        (transaction(content=large(eight_bit=True)), BARE, None),
        (transaction(content=large(body=b"x" * 990)), EVERYTHING, "5.3.4"),
        (transaction(address="b@y.test>\r\nDATA"), EVERYTHING, "5.1.3"),
    ],
)
def test_a_message_that_the_peer_does_not_support_is_not_sent(one, offered, status):
    planned = plan(one, offered)
    assert (planned.status if isinstance(planned, Unsupported) else None) == status


@each_row("size", ["", "x", "-1", "9" * 21, "²"])
def test_an_invalid_size_means_no_limit(size):
    assert Extensions.offered({"size": size}).size_max == 0


@each_row("value", ["", "0", "x", "-1", "9" * 7, "²", " 5", "1.5"])
def test_an_invalid_limit_means_none(value):
    offered = Extensions.offered(
        {"limits": f"RCPTMAX={value} MAILMAX={value} rcptdomainmax=3 junk"}
    )
    assert (offered.recipients_max, offered.transactions_max, offered.domains_max) == (0, 0, 3)


@given(
    st.lists(st.sampled_from([b"\r\n", b".", b"x", b".\r\n", b"\r\n..", b""])), st.integers(1, 9)
)
def test_dot_stuffing_is_undone_by_the_receiver_wherever_blocks_end(pieces, block_bytes):
    content = b"".join(pieces)
    wire = b"".join(
        dot_stuffed(content[at : at + block_bytes] for at in range(0, len(content), block_bytes))
    )
    expected = content if content.endswith(b"\r\n") or not content else content + b"\r\n"
    assert b"\r\n.\r\n" not in b"\r\n" + wire
    lines = [line.removeprefix(b".") for line in wire.split(b"\r\n")]
    assert b"\r\n".join(lines) == expected
