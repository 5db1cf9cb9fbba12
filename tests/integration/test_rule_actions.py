"""Rules that defer, limit and route mail, in a real relay: by SMTP, by Graph, by the sendmail command."""

import smtplib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_reload import hang_up
from tests.support import relay_starts
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

ALICE = "alice@example.test"
TEMPFAIL, DATA, CONFIGURATION = 75, 65, 78


@pytest.fixture
def remotes() -> Iterator[Remotes]:
    with Remotes() as remotes:
        yield remotes


def letter(subject: str) -> bytes:
    return f"Subject: {subject}\r\n\r\nHello.\r\n".encode()


def by_sendmail(relay: RelayProcess, subject: str, to: str) -> int:
    """Return the exit code."""
    place = {"RELAY_SENDMAIL": "{}:{}".format(*relay.smtp_address())}
    done = relay_starts.run(
        [*relay_starts.RELAY, "sendmail", "-i", f"-f{ALICE}", to], cwd=relay.folder,
        env=relay_starts.environment(relay.folder) | place,
        stdin=f"Subject: {subject}\n\nHello.\n", timeout_s=30,
    )  # fmt: skip
    return done.returncode


def rejection(relay: RelayProcess, subject: str, *to: str) -> tuple[int, str]:
    """Return the reply to a message that is not accepted."""
    with relay.smtp() as session, pytest.raises(smtplib.SMTPDataError) as caught:
        session.sendmail(ALICE, to, letter(subject))
    error = caught.value.smtp_error
    return caught.value.smtp_code, error.decode() if isinstance(error, bytes) else error


DEFER = """
[[rule]]
name = "not yet"
when = { recipient = "later@a.test" }
then = [ { defer = "4.7.1 Not before Monday" } ]

[[rule]]
name = "never reached"
then = [ { reject = "5.7.1 Not at all" } ]
when = { recipient = "later@a.test" }

[[rule]]
name = "marked"
then = [ { set_header = { name = "X-Marked", value = "yes" } } ]
"""


def test_one_recipient_defers_the_whole_message_until_the_rule_is_gone(remotes: Remotes) -> None:
    host = remotes.start("a.test")
    with remotes.relay(policies={"10.toml": DEFER}) as relay:
        expected = (451, "4.7.1 Not before Monday")
        assert rejection(relay, "smtp", "x@a.test", "later@a.test") == expected
        assert by_sendmail(relay, "sendmail", "later@a.test") == TEMPFAIL
        identity = relay.send_mail(subject="graph", to=["later@a.test", "x@a.test"])
        waiting = until(
            "the journey says why it waits",
            lambda: found if "Not before Monday" in str(found := relay.journey(identity)) else None,
        )
        assert waiting["state"] == "converting"
        assert relay.queue() == []
        assert not host.envelopes
        seen = relay.graph("GET", "/relay/v1/refused", token=OPERATOR).json()["refused"]
        shown = {(one["subject"], one["reason"], one["rule"], one["reply"]) for one in seen}
        reply = "451 4.7.1 Not before Monday"
        assert {("smtp", "rule", "not yet", reply), ("sendmail", "rule", "not yet", reply)} <= shown
        assert relay.metric("relay_policy_rule_total", rule="not yet", outcome="defer") >= 3
        assert relay.metric("relay_policy_rule_total", rule="never reached") == 0
        (relay.folder / "policies" / "10.toml").write_text(DEFER.replace("later@", "nobody@"))
        hang_up(relay, "reloaded")
        assert relay.until_final(identity)["state"] == "relayed"
        received(host, "later@a.test")
        assert relay.faults() == []
