"""LMTP on real sockets: LHLO, and after the final dot a reply for each accepted recipient."""

import pytest

from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Delivered,
    Failed,
    Indeterminate,
    SmtpStage,
)
from relay.base.message.tls_policy import TlsPolicy
from relay.delivery.smtp.connect import ConnectError
from relay.delivery.smtp.connection import Timeouts
from relay.transport.routing.routes import Credentials
from tests.support.remote_mx import DROP, EXTENSIONS, STALL, RemoteMx
from tests.unit.delivery.smtp.test_connection import kinds

STEP_BY_STEP = [word for word in EXTENSIONS if word != "PIPELINING"]
TIMEOUTS, SHORT = Timeouts(), Timeouts(dot_s=0.5, quit_s=0.1)
PEOPLE = ("a@y.test", "b@y.test", "c@y.test")
both_ways = pytest.mark.parametrize(
    "extensions", [EXTENSIONS, STEP_BY_STEP], ids=["pipelined", "stepwise"]
)
NOBODY_KNOWS = "nobody knows for whom the other replies are"
# what a host says to one recipient after the dot: the outcome, and what the others still get
AFTER_DOT = {
    "250 2.1.5 saved": (Delivered, "a reply each"),
    "250-2.1.5 saved\n250 2.1.5 in two lines": (Delivered, "a reply each"),
    "452 4.2.2 mailbox full": (Deferred, "a reply each"),
    "552 5.2.2 quota exceeded": (Failed, "a reply each"),
    "421 4.3.2 closing": (Deferred, "nothing"),
    "354 what?": (Indeterminate, NOBODY_KNOWS),
    "what is this": (Indeterminate, "nothing"),
    DROP: (Indeterminate, "nothing"),
    STALL: (Indeterminate, "nothing"),
}


@both_ways
@pytest.mark.parametrize("said", AFTER_DOT, ids=lambda said: said.partition(" ")[0])
async def test_each_recipient_has_the_outcome_of_its_own_reply(
    connected, message, extensions, said
):
    """All numbers of recipients up to three, the reply at each place."""
    expected, others = AFTER_DOT[said]
    for count in (1, 2, 3):
        for place in range(count):
            people = PEOPLE[:count]
            async with RemoteMx(lmtp=True, extensions=extensions, dot={people[place]: said}) as mx:
                timeouts = SHORT if said in (STALL, "what is this") else TIMEOUTS
                connection = await connected(mx, timeouts=timeouts)
                result = await connection.transact(message(*people))
                after = Delivered if others == "a reply each" else Indeterminate
                assert kinds(result) == {
                    **dict.fromkeys(range(place), Delivered),
                    place: expected,
                    **dict.fromkeys(range(place + 1, count), after),
                }
                assert result.reusable is connection.is_open is (others == "a reply each")


@both_ways
async def test_the_replies_follow_the_order_of_the_accepted_recipients(
    connected, message, extensions
):
    rcpt = {"a@y.test": "550 5.1.1 who?", "c@y.test": "450 4.2.1 later"}
    dot = {"b@y.test": "552 5.2.2 full", "d@y.test": "250 2.1.5 saved"}
    async with RemoteMx(lmtp=True, extensions=extensions, rcpt=rcpt, dot=dot) as mx:
        connection = await connected(mx)
        result = await connection.transact(message(*PEOPLE, "d@y.test"))
        assert kinds(result) == {0: Failed, 1: Failed, 2: Deferred, 3: Delivered}
        assert [result.outcomes[each].evidence.reply for each in (1, 3)] == list(dot.values())
        again = await connection.transact(message("d@y.test"))
        assert kinds(again) == {0: Delivered}
        assert (mx.sessions, connection.transactions) == (1, 2)


@pytest.mark.parametrize("surplus", ["at once", "later"])
async def test_after_too_many_replies_the_outcomes_stand_and_the_connection_is_closed(
    connected, message, surplus
):
    said = {"b@y.test": "250 saved\r\n250 one more" if surplus == "at once" else "250 saved"}
    async with RemoteMx(lmtp=True, dot=said) as mx:
        connection = await connected(mx)
        result = await connection.transact(message(*PEOPLE[:2]))
        assert kinds(result) == {0: Delivered, 1: Delivered}
        if surplus == "later":
            assert connection.is_open
            mx.hang_up("250 one more")
            await connection.protocol.closed(2)
        assert not connection.is_open


@both_ways
@pytest.mark.parametrize("reply", ["503 5.5.1 no recipients", "354 go on"])
async def test_no_content_is_sent_where_no_recipient_was_accepted(
    connected, message, extensions, reply
):
    rcpt = dict.fromkeys(PEOPLE, "550 5.1.1 who?")
    replies = {"NOBODY": reply}
    async with RemoteMx(lmtp=True, extensions=extensions, rcpt=rcpt, replies=replies) as mx:
        connection = await connected(mx)
        result = await connection.transact(message(*PEOPLE))
        assert kinds(result) == dict.fromkeys(range(3), Failed)
        assert mx.envelopes == []
        pipelined = extensions is EXTENSIONS
        assert ("DATA" in mx.commands) is pipelined
        # how many replies would follow a final dot here is not known
        assert connection.is_open is not (pipelined and reply.startswith("354"))


@pytest.mark.parametrize("reply", ["500 5.5.2 unknown command", "421 4.3.2 busy", "250 x\n250 y"])
async def test_there_is_no_greeting_but_lhlo(connected, reply):
    async with RemoteMx(lmtp=True, replies={"LHLO": reply}) as mx:
        with pytest.raises(ConnectError) as caught:
            await connected(mx)
        assert mx.commands == ["LHLO relay.test"]
    kind = DeferralClass.PROTOCOL if reply.startswith("2") else DeferralClass.SITE
    assert (caught.value.stage, caught.value.outcome.kind) == (SmtpStage.LHLO, kind)


async def test_a_host_that_speaks_smtp_only_is_deferred_with_its_reply(connected):
    async with RemoteMx() as mx:
        with pytest.raises(ConnectError, match=r"500 5\.5\.2 unknown command"):
            await connected(mx, lmtp=True)


async def test_starttls_and_auth_follow_lhlo(connected, message, certificate):
    tls = certificate.server_context()
    async with RemoteMx(lmtp=True, tls=tls, users={"me": "secret"}) as mx:
        policy = TlsPolicy("required")
        connection = await connected(mx, tls=policy, login=Credentials("me", "secret"))
        result = await connection.transact(message())
        assert result.outcomes[0].evidence.tls == "TLSv1.3"
        assert mx.logins == {1: "me"}
        verbs = [line.partition(" ")[0] for line in mx.commands[:4]]
        assert verbs == ["LHLO", "STARTTLS", "LHLO", "AUTH"]


async def test_a_unix_socket_takes_mail_and_a_missing_one_defers(connected, message, tmp_path):
    path = tmp_path / "lmtp"
    async with RemoteMx(lmtp=True, path=str(path)) as mx:
        connection = await connected(mx, tls=TlsPolicy("none"))
        assert kinds(await connection.transact(message(*PEOPLE))) == dict.fromkeys(
            range(3), Delivered
        )
    mx.path = str(tmp_path / "missing")
    with pytest.raises(ConnectError, match=f"{mx.path}: no such file or directory") as caught:
        await connected(mx, tls=TlsPolicy("none"))
    assert caught.value.outcome.kind is DeferralClass.CONNECT
