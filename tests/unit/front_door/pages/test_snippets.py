"""The programs of docs/snippets.md are found, each with its name, and get the ports of a relay."""

import re
from pathlib import Path

from relay.front_door.api.dependencies import ClientSettings
from relay.front_door.pages.help import read_snippets, with_ports

DOCUMENT = Path(__file__).parents[4] / "docs/snippets.md"


def test_every_program_is_there_and_has_a_name_of_its_own():
    titles = [one.title for one in read_snippets()]
    assert {"Python: smtplib", "Python: Django", "Node: nodemailer", "Ruby: Net::SMTP"} <= {*titles}
    assert len(titles) == len(re.findall(r"^```\w+$", DOCUMENT.read_text(), re.MULTILINE))
    assert len({*titles}) == len(titles)


def test_ports_are_those_of_the_relay():
    clients = ClientSettings(
        smtp_host="127.0.0.1",
        smtp_port=11,
        submission_port=12,
        submissions_port=13,
        http_port=22,
        https_port=33,
        sender="a@example.test",
        recipient="b@example.test",
        needs_token=False,
    )
    codes = "\n".join(with_ports(one, clients).code for one in read_snippets())
    assert not re.search(r"\b(1025|1587|1465|8025|8443)\b", codes)
    assert "127.0.0.1:22/relay/v1" in codes
    assert re.search(r"[, ]11\b", codes)
