"""Sessions on real sockets: TCP, TLS, EHLO, AUTH, and their failures."""

import socket
import ssl

import pytest
from msgspec import structs

from relay.base.message.outcome import DeferralClass, Deferred, Relayed, SmtpStage
from relay.base.message.tls_policy import TlsPolicy
from relay.delivery.smtp.connect import ConnectError, Target, connect
from relay.delivery.smtp.connection import Timeouts
from relay.transport.routing.routes import Credentials
from tests.support.remote_mx import DROP, RemoteMx


async def refusal(connected, mx, **fields):
    with pytest.raises(ConnectError) as caught:
        await connected(mx, **fields)
    return caught.value


async def test_a_closed_port_defers():
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))  # and does not listen, so that nobody else does either
        target = Target("mx.test", *kept.getsockname())
        with pytest.raises(ConnectError) as caught:
            await connect(target, ehlo_name="relay.test", timeouts=Timeouts())
    outcome = caught.value.outcome
    assert isinstance(outcome, Deferred)
    assert (outcome.kind, outcome.evidence.status) == (DeferralClass.CONNECT, "4.4.1")
    assert outcome.evidence.reply == f"{target.address}:{target.port}: connection refused"


async def test_a_host_that_does_not_answer_defers():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # what is beyond the backlog gets no answer
            filler.setblocking(False)
            filler.connect_ex(address)
        with pytest.raises(ConnectError, match=r"no connection within 0.1 s|timed out|Timed out"):
            await connect(
                Target("mx.test", *address),
                ehlo_name="relay.test",
                timeouts=Timeouts(connect_s=0.1),
            )
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize(
    ("replies", "stage", "kind", "status"),
    [
        ({"CONNECT": "421 4.3.2 busy"}, SmtpStage.BANNER, DeferralClass.SITE, "4.3.2"),
        ({"CONNECT": "250 hello"}, SmtpStage.BANNER, DeferralClass.PROTOCOL, "4.5.0"),
        ({"CONNECT": "220-x\r\n" * 200}, SmtpStage.BANNER, DeferralClass.PROTOCOL, "4.5.0"),
        ({"EHLO": "421 4.3.2 busy"}, SmtpStage.EHLO, DeferralClass.SITE, "4.3.2"),
        ({"EHLO": DROP, "HELO": DROP}, SmtpStage.EHLO, DeferralClass.CONNECT, "4.4.2"),
        ({"EHLO": "250 mx\r\n250 surplus"}, SmtpStage.EHLO, DeferralClass.PROTOCOL, "4.5.0"),
    ],
)
async def test_a_session_that_fails_defers(connected, replies, stage, kind, status):
    async with RemoteMx(replies=replies) as mx:
        error = await refusal(connected, mx)
    assert isinstance(error.outcome, Deferred)
    assert (error.stage, error.outcome.kind, error.outcome.evidence.status) == (stage, kind, status)
    assert error.outcome.evidence.host == mx.name


async def test_a_host_without_ehlo_gets_helo(connected, message):
    async with RemoteMx(replies={"EHLO": "500 5.5.2 what?"}) as mx:
        connection = await connected(mx)
        result = await connection.transact(message())
        assert isinstance(result.outcomes[0], Relayed)
        assert mx.commands[1:3] == ["HELO relay.test", "MAIL FROM:<a@x.test>"]


@pytest.mark.parametrize("level", ["opportunistic", "required"])
async def test_a_host_that_hangs_up_at_ehlo_gets_helo_once(connected, message, level):
    async with RemoteMx(replies={"EHLO": DROP}) as mx:
        if level == "required":  # HELO offers no STARTTLS
            error = await refusal(connected, mx, tls=TlsPolicy(level))
            assert (error.stage, mx.commands) == (SmtpStage.EHLO, ["EHLO relay.test"])
            return
        connection = await connected(mx)
        result = await connection.transact(message())
        assert isinstance(result.outcomes[0], Relayed)
        assert mx.commands[:3] == ["EHLO relay.test", "HELO relay.test", "MAIL FROM:<a@x.test>"]
        mx.replies = {"EHLO": DROP, "HELO": DROP}
        del mx.commands[:]
        assert (await refusal(connected, mx)).stage is SmtpStage.EHLO
        assert mx.commands == ["EHLO relay.test", "HELO relay.test"]


# -- TLS
@pytest.mark.parametrize("tls", ["opportunistic", "required"])
async def test_starttls_encrypts_and_a_second_ehlo_counts(connected, message, certificate, tls):
    async with RemoteMx(tls=certificate.server_context()) as mx:
        connection = await connected(mx, tls=TlsPolicy(tls))
        content = b"x" * 3_000_000 + b"\r\n"
        for body in (b"Subject: x\r\n\r\n", content):
            result = await connection.transact(message(content=body))
            assert result.outcomes[0].evidence.tls.startswith("TLSv1.")
        assert [envelope.tls for envelope in mx.envelopes] == [True, True]
        assert mx.envelopes[1].content == content
        assert mx.commands[:3] == ["EHLO relay.test", "STARTTLS", "EHLO relay.test"]


async def test_required_tls_that_is_not_offered_defers(connected):
    async with RemoteMx() as mx:
        error = await refusal(connected, mx, tls=TlsPolicy("required"))
    assert (error.outcome.kind, error.outcome.evidence.status) == (DeferralClass.TLS, "4.7.4")
    assert not any(line.startswith("MAIL") for line in mx.commands)


@pytest.mark.parametrize("replies", [{}, {"STARTTLS": "454 4.7.0 not now"}, {"STARTTLS": DROP}])
async def test_broken_opportunistic_tls_is_retried_without_tls(connected, message, replies):
    no_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    async with RemoteMx(tls=no_certificate, replies=replies) as mx:
        connection = await connected(mx, tls=TlsPolicy("opportunistic"))
        result = await connection.transact(message())
        assert isinstance(result.outcomes[0], Relayed)
        assert (mx.sessions, mx.envelopes[0].tls) == (2, False)
        error = await refusal(connected, mx, tls=TlsPolicy("required"))
        assert (error.outcome.kind, error.outcome.evidence.status) == (DeferralClass.TLS, "4.7.5")
        assert mx.sessions == 3


def context_of(authority, names, days=1):
    """What a host shows: a certificate for `names`, none that works, or without names no TLS."""
    if names == "broken":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return authority.issue(*names, days=days).server_context() if names else None


@pytest.mark.parametrize(
    ("names", "days", "replies", "mismatch"),
    [
        (["DNS:mx.test"], 1, {}, ""),
        (["DNS:other.test"], 1, {}, "certificate-host-mismatch"),
        (["DNS:mx.test"], -1, {}, "certificate-expired"),
        ([], 1, {}, "starttls-not-supported"),
        (None, 1, {}, "certificate-not-trusted"),
        (["DNS:mx.test"], 1, {"STARTTLS": "454 4.7.0 not now"}, "validation-failure"),
        ("broken", 1, {}, "validation-failure"),
        (["DNS:mx.test"], 1, {"EHLO": DROP}, "starttls-not-supported"),
    ],
)
async def test_a_policy_in_testing_changes_nothing_but_the_evidence(
    connected, message, authority, certificate, names, days, replies, mismatch
):
    tls = TlsPolicy("opportunistic", ca=authority.certificate)
    shown = certificate.server_context() if names is None else context_of(authority, names, days)
    async with RemoteMx(tls=shown, replies=replies) as mx:
        plain = await connected(mx, host="mx.test", tls=tls)
        await plain.transact(message())
        tested = await connected(mx, host="mx.test", tls=structs.replace(tls, testing=True))
        await tested.transact(message())
        assert mx.envelopes[0].tls == mx.envelopes[1].tls
    session = tested.peer.session
    assert (session.mismatch, session.level) == (mismatch, "opportunistic")
    assert session.verified == ("none" if mismatch else "name")
    assert tested.peer.tls == plain.peer.tls
    assert plain.peer.session.mismatch == ""


LOGIN = Credentials("me", "secret")


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("names", "host"),
    [
        (["DNS:mail.test"], "mail.test"),
        (["DNS:*.mail.test"], "mx1.mail.test"),
        (["IP:127.0.0.1"], "127.0.0.1"),
    ],
)
async def test_a_certificate_of_a_trusted_ca_for_the_host_is_verified(
    connected, message, authority, names, host, implicit
):
    tls = authority.issue(*names).server_context()
    async with RemoteMx(tls=tls, implicit_tls=implicit, users={"me": "secret"}) as mx:
        connection = await connected(
            mx,
            host=host,
            login=LOGIN,
            tls=TlsPolicy("verify", implicit=implicit, ca=authority.certificate),
        )
        result = await connection.transact(message())
    assert isinstance(result.outcomes[0], Relayed)
    assert mx.envelopes[0].tls


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("names", "days", "ca", "told"),
    [
        (["DNS:other.test"], 1, True, "the certificate is for other.test, not mail.test; "),
        (
            ["IP:127.0.0.1"],
            1,
            True,
            "the certificate is for the address 127.0.0.1, not mail.test; ",
        ),
        ([], 1, True, "the certificate is for no host, not mail.test; "),
        (["DNS:mail.test"], -1, True, "the certificate is refused: certificate has expired; "),
        (["DNS:mail.test"], 1, False, "the certificate is refused: unable to get local issuer"),
    ],
)
async def test_an_invalid_certificate_defers(connected, authority, names, days, ca, told, implicit):
    tls = authority.issue(*names, days=days).server_context()
    trusted = authority.certificate if ca else None
    async with RemoteMx(tls=tls, implicit_tls=implicit, users={"me": "secret"}) as mx:
        error = await refusal(
            connected,
            mx,
            host="mail.test",
            login=LOGIN,
            tls=TlsPolicy("verify", implicit=implicit, ca=trusted),
        )
    outcome = error.outcome
    assert (outcome.kind, outcome.evidence.status) == (DeferralClass.TLS, "4.7.5")
    assert outcome.evidence.reply.startswith(f"127.0.0.1:{mx.port}: {told}")
    assert mx.sessions <= 1  # there is no second try in the clear
    assert not [line for line in mx.commands if line.startswith(("AUTH", "MAIL"))]


async def test_the_policy_may_name_what_the_certificate_must_be_for(connected, authority):
    tls = authority.issue("DNS:b.test").server_context()
    policy = TlsPolicy("verify", ca=authority.certificate, names=("a.test", "b.test"))
    async with RemoteMx(tls=tls) as mx:
        assert (await connected(mx, host="mail.test", tls=policy)).peer.host == "mail.test"
        wrong = structs.replace(policy, names=("a.test", "192.0.2.1"))
        error = await refusal(connected, mx, host="b.test", tls=wrong)
    told = "the certificate is for b.test, not a.test or the address 192.0.2.1; "
    assert error.outcome.evidence.reply.startswith(f"127.0.0.1:{mx.port}: {told}")


async def test_a_missing_ca_file_defers(connected, certificate, tmp_path):
    async with RemoteMx(tls=certificate.server_context()) as mx:
        error = await refusal(connected, mx, tls=TlsPolicy("verify", ca=tmp_path / "gone.pem"))
        assert "gone.pem cannot be used: no such file" in error.outcome.evidence.reply
        (tmp_path / "empty.pem").touch()
        error = await refusal(connected, mx, tls=TlsPolicy("verify", ca=tmp_path / "empty.pem"))
        assert "empty.pem cannot be used: it holds no certificates" in error.outcome.evidence.reply
    assert error.outcome.kind is DeferralClass.TLS
    assert mx.sessions == 0


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("opportunistic", "a password is not sent without TLS"),
        ("required", "the host does not offer STARTTLS, and a password is not sent without TLS"),
        ("verify", "the host does not offer STARTTLS, and a password is not sent without TLS"),
        ("none", "a password is not sent without TLS"),
    ],
)
async def test_no_password_is_sent_in_the_clear(connected, level, told):
    async with RemoteMx(users={"me": "secret"}) as mx:  # its name is none of loopback's
        error = await refusal(connected, mx, tls=TlsPolicy(level), login=LOGIN)
    assert (error.outcome.kind, error.outcome.evidence.status) == (DeferralClass.TLS, "4.7.4")
    assert error.outcome.evidence.reply.startswith(f"127.0.0.1:{mx.port}: {told}")
    assert not [line for line in mx.commands if line.startswith(("AUTH", "MAIL"))]


@pytest.mark.parametrize("replies", [{}, {"STARTTLS": "454 4.7.0 not now"}, {"STARTTLS": DROP}])
async def test_no_password_is_sent_in_the_clear_when_tls_breaks(connected, replies):
    no_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    async with RemoteMx(tls=no_certificate, replies=replies, users={"me": "secret"}) as mx:
        error = await refusal(connected, mx, tls=TlsPolicy("required"), login=LOGIN)
    assert error.outcome.kind is DeferralClass.TLS
    assert mx.sessions == 1
    assert not any(line.startswith("AUTH") for line in mx.commands)


# -- AUTH
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_credentials_are_sent(connected, message, host):
    async with RemoteMx(users={"me": "secret"}) as mx:
        connection = await connected(mx, host=host, login=LOGIN)
        await connection.transact(message())
        assert len(mx.received("b@y.test")) == 1


@pytest.mark.parametrize(
    ("users", "replies"),
    [
        ({"me": "other"}, {}),
        ({}, {}),
        ({"me": "secret"}, {"AUTH": DROP}),
        ({"me": "secret"}, {"AUTH": "535 5.7.8 no"}),
    ],
)
async def test_rejected_credentials_defer(connected, users, replies):
    async with RemoteMx(users=users, replies=replies) as mx:
        error = await refusal(connected, mx, host="localhost", login=LOGIN)
    assert isinstance(error.outcome, Deferred)
    assert (error.outcome.kind, error.outcome.evidence.status) == (DeferralClass.AUTH, "4.7.8")
    assert "secret" not in str(error)
