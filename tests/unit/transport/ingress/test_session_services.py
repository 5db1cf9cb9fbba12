"""What a session asks: answers that may be kept, what it cannot claim, what it imports."""

import subprocess
import sys

import pytest

from relay.base.message.envelope import Envelope, ForwardPath
from relay.transport.ingress.data import ReceivedContent
from relay.transport.ingress.esmtp_parameters import MailArgument
from relay.transport.ingress.session_services import RecipientAnswer, SessionClaims
from tests.support.ingress import FakeAccounts, Relay

TRUSTED, STRANGER = "127.0.0.1", "192.0.2.7"
SENDER = "app@example.test"
ALIASES = {"team": ["alice@example.test", "q@other.test"], "away": ["q@other.test"]}
DENIED = "550 5.7.1 Relaying denied: authenticate, or use your own mail server"


def services(relay: Relay, ip: str = TRUSTED, **listener):
    server = relay.server(trusted_networks=("127.0.0.0/8",), **listener)
    return server._client(ip).services


@pytest.mark.parametrize(
    ("ip", "sender", "address", "answer"),
    [
        (TRUSTED, SENDER, "q@other.test", RecipientAnswer(may_keep=True)),
        (TRUSTED, "", "q@other.test", RecipientAnswer()),  # an SRS address takes a report
        (TRUSTED, SENDER, "alice@example.test", RecipientAnswer()),  # quota
        (TRUSTED, SENDER, "team@example.test", RecipientAnswer(expanded=2)),
        (TRUSTED, SENDER, "away@example.test", RecipientAnswer(expanded=1)),
        (STRANGER, SENDER, "alice@example.test", RecipientAnswer()),
        (STRANGER, SENDER, "q@other.test", RecipientAnswer(DENIED)),
    ],
)
async def test_an_answer_says_whether_it_may_be_kept(ip, sender, address, answer):
    relay = Relay(accounts=FakeAccounts(**ALIASES))
    assert await services(relay, ip).recipient(address, sender, size_bytes=0) == answer


async def test_a_session_keeps_its_login_until_it_forgets_it():
    asked = services(Relay(), STRANGER)
    assert not await asked.log_in("alice@example.test", "wrong", is_token=False)
    assert (asked.login, asked.has_ended) == ("", False)
    assert await asked.log_in("alice@example.test", "alice", is_token=False)
    assert asked.login == "alice@example.test"
    answer = await asked.recipient("q@other.test", "alice@example.test", size_bytes=0)
    assert answer == RecipientAnswer(may_keep=True)
    assert (await asked.sender_rejection("bob@example.test"))[:9] == "553 5.7.1"
    asked.forget_login()
    assert asked.login == ""
    answer = await asked.recipient("q@other.test", SENDER, size_bytes=0)
    assert answer.reply == DENIED


@pytest.mark.parametrize(("ip", "is_trusted"), [(TRUSTED, True), (STRANGER, False)])
async def test_the_owner_knows_who_sent_a_message(ip, is_trusted):
    relay, released = Relay(), []
    received = ReceivedContent(b"Subject: x\r\n\r\nx\r\n", lambda: released.append(True))
    mail, paths = MailArgument(Envelope(SENDER)), (ForwardPath("alice@example.test"),)
    reply = await services(relay, ip).accept(
        mail, paths, received, claims=SessionClaims("client.test", tls="TLSv1.3")
    )
    assert reply.queue_id
    [message] = relay.spool.accepted
    assert message.facts.trusted is is_trusted
    assert message.facts.client == f"client.test [{ip}]"
    assert released == [True]


async def test_a_message_over_its_declared_size_is_asked_for_again():
    relay, released = Relay(), []
    received = ReceivedContent(b"x" * 200, lambda: released.append(True))
    for declared, code in ((0, "452"), (200, "250")):
        mail = MailArgument(Envelope(SENDER), declared)
        paths = (ForwardPath("small@example.test"),)
        reply = await services(relay).accept(mail, paths, received, claims=SessionClaims())
        assert reply.reply[:3] == code
    assert released == [True, True]


NOT_IMPORTED = (
    "apsw", "argon2", "cryptography", "prometheus_client", "relay.delivery", "relay.front_door.graph", "relay.transport.ingress.acceptance",
    "relay.transport.ingress.local_services", "relay.store.mailbox", "relay.transport.milter", "relay.transport.policy", "relay.transport.routing",
    "relay.transport.signing", "relay.store.spool.engine", "relay.store.spool.sqlite",
)  # fmt: skip


@pytest.mark.parametrize(
    "module", ["relay.transport.ingress.smtp_sessions", "relay.transport.gate.child"]
)
def test_the_session_side_imports_nothing_of_the_owners(module):
    code = f"""
import sys, {module}
print([x for x in {NOT_IMPORTED!r} if x in sys.modules])"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
