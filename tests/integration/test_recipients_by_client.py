"""smtplib, swaks and Django send to each test recipient of `relay dev`; tests/clients has other clients."""

import os
import re
import shutil
import smtplib
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage

import pytest

from relay.development.internet.test_recipients import Manner, find_test_recipient
from tests.support.dev_process import DevProcess
from tests.support.long_tests import long
from tests.support.recipients_by_client import EXPECTED, Client, SentToAll, subject_for
from tests.support.relay_process import ROOT

PAGE = ROOT / "docs/internet.md"
DJANGO = """\
import sys
from django.conf import settings
from django.core.mail import EmailMessage, get_connection

port, sender, *recipients = sys.argv[1:]
settings.configure(EMAIL_HOST="127.0.0.1", EMAIL_PORT=int(port))
get_connection().send_messages([
    EmailMessage(f"For {one}", "Hello", sender, [one]) for one in recipients
])
"""


def by_smtplib(relay: DevProcess, sender: str, recipients: Sequence[str]) -> None:
    with smtplib.SMTP(*relay.smtp_address(), timeout=60) as session:
        for recipient in recipients:
            message = EmailMessage()
            message["From"], message["To"], message["Subject"] = (
                sender,
                recipient,
                subject_for(recipient),
            )
            message.set_content("Hello")
            session.send_message(message)


def by_swaks(relay: DevProcess, sender: str, recipients: Sequence[str]) -> None:
    host, port = relay.smtp_address()

    def send(recipient: str) -> None:
        command = ["swaks", "--server", host, "--port", str(port), "--helo", "client.test"]
        words = ["--from", sender, "--to", recipient, "--h-Subject", subject_for(recipient)]
        run([*command, *words])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(send, recipients))


def by_django(relay: DevProcess, sender: str, recipients: Sequence[str]) -> None:
    port = str(relay.smtp_address()[1])
    run([sys.executable, "-c", DJANGO, port, sender, *recipients])


def run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


CLIENTS: dict[str, Client] = {"smtplib": by_smtplib, "swaks": by_swaks, "django": by_django}


@long
def test_recipients_have_the_outcomes_that_they_name(subtests: pytest.Subtests) -> None:
    clients = {name: one for name, one in CLIENTS.items() if name != "swaks" or shutil.which(name)}
    with DevProcess("--no-demo") as relay:
        sent = SentToAll(relay, clients)
        for client in CLIENTS:
            for expected in EXPECTED:
                with subtests.test(client=client, recipient=expected.address):
                    if client not in clients:
                        pytest.skip(f"{client} is not installed")
                    sent.check(client, expected)


def test_all_but_the_captured_one_are_test_recipients() -> None:
    others = [one.address for one in EXPECTED if find_test_recipient(one.address) is None]
    assert others == ["ann@customer.example"]


def test_each_recipient_of_the_page_has_a_row() -> None:
    """Apart from a silent host, which costs a time-out in real time at each attempt."""

    def kind(address: str) -> tuple[object, ...]:
        found = find_test_recipient(address)
        assert found is not None, f"{address} is no test recipient"
        return found.manner, found.stage, found.reply, found.times

    section = PAGE.read_text().partition("\n## Test recipients\n")[2].partition("\n## ")[0]
    cells = "\n".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))
    named = set(re.findall(r"`([^`@]+@[^`@]+)`", cells))
    assert len(named) > 12
    silent = {one for one in named if kind(one)[0] is Manner.STALL}
    sent = {kind(one.address) for one in EXPECTED if find_test_recipient(one.address)}
    assert [one for one in sorted(named - silent) if kind(one) not in sent] == []
