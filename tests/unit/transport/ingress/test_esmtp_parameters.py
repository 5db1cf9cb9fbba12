"""The arguments and ESMTP parameters of MAIL and RCPT."""

import pytest

from relay.base.message.envelope import Envelope, ForwardPath, Notify
from relay.transport.ingress.esmtp_parameters import (
    MailArgument,
    SmtpRejection,
    parse_mail,
    parse_rcpt,
)
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
    "argument, reply",
    [
        ("", "501 5.5.4"),
        ("TO:<a@example.test>", "501 5.5.4"),
        ("FROM:<a@example.test", "501 5.1.7"),
        ("FROM:<a@@example.test>", "501 5.1.7"),
        ("FROM:<a@example.test>SIZE=1", "501 5.1.7"),
        ("FROM:<a@example.test> SIZE=x", "501 5.5.4"),
        ("FROM:<a@example.test> SIZE=-1", "501 5.5.4"),
        ("FROM:<a@example.test> SIZE", "501 5.5.4"),
        ("FROM:<a@example.test> SIZE=1 SIZE=1", "501 5.5.4"),
        ("FROM:<a@example.test> BODY=BINARYMIME", "501 5.5.4"),
        ("FROM:<a@example.test> RET=BODY", "501 5.5.4"),
        ("FROM:<a@example.test> RET=", "501 5.5.4"),
        ("FROM:<a@example.test> RET=FULL RET=HDRS", "501 5.5.4"),
        ("FROM:<a@example.test> ENVID=a+0g", "501 5.5.4"),
        ("FROM:<a@example.test> ENVID=a=b", "501 5.5.4"),
        (f"FROM:<a@example.test> ENVID={'x' * 101}", "501 5.5.4"),
        ("FROM:<a@example.test> ENVID=a ENVID=b", "501 5.5.4"),
        ("FROM:<a@example.test> AUTH=a+zz", "501 5.5.4"),
        ("FROM:<a@example.test> =x", "501 5.5.4"),
        ("FROM:<a@example.test> NOTIFY=NEVER", "555 5.5.4"),
        ("FROM:<a@example.test> MT-PRIORITY=3", "555 5.5.4"),
        ("FROM:<a@example.test> REQUIRETLS", "530 5.7.10"),
        ("FROM:<a@example.test> REQUIRETLS=1", "501 5.5.4"),
        ("FROM:<ä@example.test>", "553 5.6.7"),
        ("FROM:<ä@example.test> SIZE=1", "553 5.6.7"),
    ],
)
def test_rejected_mail_arguments(argument, reply):
    with pytest.raises(SmtpRejection) as rejected:
        parse_mail(argument, extended=True)
    assert str(rejected.value).startswith(f"{reply} ")


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


@each_row(
    "argument, reply",
    [
        ("TO:<>", "501 5.1.3"),
        ("TO:a@example.test", "501 5.1.3"),
        ("TO:<a@example.test> NOTIFY=NEVER,FAILURE", "501 5.5.4"),
        ("TO:<a@example.test> NOTIFY=FAILURE,FAILURE", "501 5.5.4"),
        ("TO:<a@example.test> NOTIFY=SOMETIMES", "501 5.5.4"),
        ("TO:<a@example.test> NOTIFY=", "501 5.5.4"),
        ("TO:<a@example.test> NOTIFY", "501 5.5.4"),
        ("TO:<a@example.test> NOTIFY=FAILURE NOTIFY=DELAY", "501 5.5.4"),
        ("TO:<a@example.test> ORCPT=bob@b.test", "501 5.5.4"),
        ("TO:<a@example.test> ORCPT=rfc822;", "501 5.5.4"),
        ("TO:<a@example.test> ORCPT=rfc822;b+0", "501 5.5.4"),
        ("TO:<a@example.test> ORCPT=rfc822;a ORCPT=rfc822;b", "501 5.5.4"),
        ("TO:<a@example.test> SIZE=1", "555 5.5.4"),
        ("TO:<ä@example.test>", "553 5.6.7"),
    ],
)
def test_rejected_rcpt_arguments(argument, reply):
    with pytest.raises(SmtpRejection) as rejected:
        parse_rcpt(argument, extended=True, smtputf8=False)
    assert str(rejected.value).startswith(f"{reply} ")


def test_parameters_are_rejected_after_helo():
    assert parse_mail("FROM:<a@example.test>", extended=False) == MailArgument(Envelope(A))
    with pytest.raises(SmtpRejection, match="555"):
        parse_mail("FROM:<a@example.test> SIZE=1", extended=False)
    with pytest.raises(SmtpRejection, match="555"):
        parse_rcpt("TO:<a@example.test> NOTIFY=NEVER", extended=False, smtputf8=False)
