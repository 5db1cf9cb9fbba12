"""The arguments and ESMTP parameters of MAIL and RCPT."""

from relay.base.message.envelope import Envelope, ForwardPath, Notify
from relay.transport.ingress.esmtp_parameters import MailArgument, parse_mail, parse_rcpt
from tests.support.tables import each_row

A = "a@example.test"
F, S, D = Notify.FAILURE, Notify.SUCCESS, Notify.DELAY


@each_row(
    "argument, expected",
    [
        ("FROM:<>", MailArgument(Envelope(""))),
        ("from:<a@EXAMPLE.test>", MailArgument(Envelope(A))),
        ("FROM:<a@example.test> SIZE=1234", MailArgument(Envelope(A), size_bytes=1234)),
        ("FROM:<a@example.test> size=0", MailArgument(Envelope(A))),
        ("FROM:<a@example.test> BODY=8BITMIME", MailArgument(Envelope(A, eight_bit=True))),
        ("FROM:<a@example.test> BODY=7bit", MailArgument(Envelope(A))),
        ("FROM:<a@example.test> SMTPUTF8", MailArgument(Envelope(A, smtputf8=True))),
        ("FROM:<ä@example.test> SMTPUTF8", MailArgument(Envelope("ä@example.test", smtputf8=True))),
        ("FROM:<a@example.test> RET=HDRS", MailArgument(Envelope(A, ret="HDRS"))),
        ("FROM:<a@example.test> RET=full", MailArgument(Envelope(A, ret="FULL"))),
        ("FROM:<a@example.test> ENVID=QqXx+2B1", MailArgument(Envelope(A, envid="QqXx+1"))),
        ("FROM:<a@example.test> AUTH=<>", MailArgument(Envelope(A))),
        ("FROM:<a@example.test> AUTH=e+3Dmc2@example.com", MailArgument(Envelope(A))),
        (
            "FROM:<a@example.test>  RET=FULL  ENVID=x ",
            MailArgument(Envelope(A, ret="FULL", envid="x")),
        ),
    ],
)
def test_valid_mail_arguments(argument, expected):
    assert parse_mail(argument, extended=True) == expected


@each_row(
    "argument, expected",
    [
        ("TO:<a@example.test>", ForwardPath(A)),
        ("to:<Postmaster>", ForwardPath("postmaster")),
        ("TO:<a@example.test> NOTIFY=NEVER", ForwardPath(A, frozenset({Notify.NEVER}))),
        ("TO:<a@example.test> NOTIFY=success,FAILURE,DELAY", ForwardPath(A, frozenset({S, F, D}))),
        (
            "TO:<a@example.test> ORCPT=rfc822;Bob+40B.test",
            ForwardPath(A, orcpt="rfc822;Bob@B.test"),
        ),
        (
            "TO:<a@example.test> ORCPT=rfc822;B@c.test NOTIFY=FAILURE",
            ForwardPath(A, frozenset({F}), "rfc822;B@c.test"),
        ),
    ],
)
def test_valid_rcpt_arguments(argument, expected):
    assert parse_rcpt(argument, extended=True, smtputf8=False) == expected
