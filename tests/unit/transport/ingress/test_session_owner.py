"""The owner's side of a session: answers that may be kept, what a session cannot claim; what the
session's side imports.
"""

import subprocess
import sys

import pytest

from relay.base.message.envelope import Envelope, ForwardPath
from relay.transport.ingress.data import ReceivedContent
from relay.transport.ingress.esmtp_parameters import MailArgument
from relay.transport.ingress.session_client import OfferedMail, RecipientAnswer, SessionClaims
from tests.support.ingress import FakeAccounts, Relay
from tests.support.tables import each_row

TRUSTED, STRANGER = "127.0.0.1", "192.0.2.7"
SENDER = "app@example.test"
ALIASES = {"team": ["alice@example.test", "q@other.test"], "away": ["q@other.test"]}
DENIED = "550 5.7.1 Relaying denied: authenticate, or use your own mail server"


def owner(relay: Relay, ip: str = TRUSTED, **listener):
    server = relay.server(trusted_networks=("127.0.0.0/8",), **listener)
    return server._owner(ip)


@each_row(
    "ip, sender, address, answer",
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
    assert await owner(relay, ip).check_recipient(address, sender, 0) == answer


async def test_the_owner_keeps_the_login_of_a_session_while_its_account_is_the_same():
    relay = Relay()
    asked = owner(relay, STRANGER)
    assert await asked.log_in("alice@example.test", "wrong", False) == ""
    answer = await asked.check_recipient("q@other.test", SENDER, 0)
    assert answer.reply == DENIED
    assert await asked.log_in("alice@example.test", "alice", False) == "alice@example.test"
    answer = await asked.check_recipient("q@other.test", "alice@example.test", 0)
    assert answer == RecipientAnswer(may_keep=True)
    assert (await asked.sender_rejection("bob@example.test"))[:9] == "553 5.7.1"
    assert await asked.sender_rejection("alice@example.test") == ""
    relay.accounts.names = ()
    answer = await asked.check_recipient("q@other.test", "alice@example.test", 0)
    assert answer.reply[:9] == "421 4.7.0"
    assert (await asked.sender_rejection("alice@example.test"))[:9] == "421 4.7.0"
    mail, paths = MailArgument(Envelope("alice@example.test")), (ForwardPath("q@other.test"),)
    reply = await asked.accept(OfferedMail(mail, paths, SessionClaims()), received([]))
    assert (reply.reply[:9], reply.queue_id) == ("421 4.7.0", "")
    assert not relay.spool.accepted


def received(released: list[bool], content: bytes = b"Subject: x\r\n\r\nx\r\n"):
    return ReceivedContent(content, lambda: released.append(True))


@pytest.mark.parametrize(("ip", "is_trusted"), [(TRUSTED, True), (STRANGER, False)])
async def test_the_owner_knows_who_sent_a_message(ip, is_trusted):
    relay, released = Relay(), []
    mail, paths = MailArgument(Envelope(SENDER)), (ForwardPath("alice@example.test"),)
    claims = SessionClaims("client.test", tls="TLSv1.3")
    reply = await owner(relay, ip).accept(OfferedMail(mail, paths, claims), received(released))
    assert reply.queue_id
    [message] = relay.spool.accepted
    assert message.facts.trusted is is_trusted
    assert message.facts.client == f"client.test [{ip}]"
    assert released == [True]


NOT_IMPORTED = (
    "apsw",
    "argon2",
    "cryptography",
    "prometheus_client",
    "relay.delivery",
    "relay.front_door.graph",
    "relay.transport.ingress.acceptance",
    "relay.transport.ingress.session_owner",
    "relay.store.mailbox",
    "relay.transport.milter",
    "relay.transport.policy",
    "relay.transport.routing",
    "relay.transport.signing",
    "relay.store.spool.engine",
)


@each_row(
    "module, absent",
    [
        ("relay.transport.gate.child", NOT_IMPORTED),
        ("relay.operation.cli.serve", ("cryptography", "jinja2", "joserfc")),
        ("relay.front_door.sign_in.token_endpoint", ("cryptography", "joserfc")),
    ],
)
def test_a_start_does_not_import_what_others_need(module, absent):
    code = f"""
import sys, {module}
print([x for x in {absent!r} if x in sys.modules])"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
