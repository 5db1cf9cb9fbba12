"""Each condition of a rule in a real relay, for mail by SMTP, by Graph and by the sendmail command."""

import base64
from collections.abc import Iterator
from email.message import EmailMessage, Message
from email.policy import SMTP

import pytest

from tests.support.relay_process import RelayProcess, until

ALICE, TO = "alice@example.test", ["bob@example.test", "carol@example.test"]
PROGRAM = b"MZ" + bytes(58) + (64).to_bytes(4, "little") + b"PE\0\0" + bytes(200)
ALWAYS = {
    "sender": "sender = 'alice@*'",
    "group": "sender = 'group:staff'",
    "recipient": "recipient = ['bob@*', 'group:everybody']",
    "direction": "direction = 'internal'",
}
OF_THE_CONTENT = {
    "subject": "subject = '*invoice*'",
    "header": "header = { name = 'X-Kind', matches = 'ask*' }",
    "header-pattern": "header = { name = 'X-Kind', pattern = '^ask.*again$' }",
    "header-over": "header = { name = 'X-Score', over = 5 }",
    "attachment-name": "attachment_name = '*.txt'",
    "program": "attachment_name = ['*.com', '*.txt']",
    "attachment-type": "attachment = { name = '*.txt', type = 'executable' }",
    "body-words": "body = { words = 'please pay' }",
    "body-matches": "body = { matches = '*account ?12*' }",
    "body-pattern": "body = { pattern = 'IBAN.{0,9}\\d{4}' }",
    "size": "size_over = 700",
    "recipients": "recipients_over = 1",
}
OF_THE_WAY = {
    "client": "client = '127.0.0.0/8'",
    "login": "login = 'alice@*'",
    "no-login": "login = '<>'",
    "from-graph": "source = 'graph'",
    "from-smtp": "source = 'smtp'",
}
BY_SMTP = {"client", "no-login", "from-smtp"}
EXPECTED = {"smtp": BY_SMTP, "graph": {"login", "from-graph"}, "sendmail": BY_SMTP}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(9)).decode()
GROUPS = {"staff": ALICE, "everybody": "# all of us\nexample.test\n"}


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    rules = "".join(
        f"[[rule]]\nname = '{name}'\nwhen = {{ {when} }}\n"
        f"then = [ {{ set_header = {{ name = 'X-Rule-{name}', value = 'yes' }} }} ]\n"
        for name, when in {**ALWAYS, **OF_THE_CONTENT, **OF_THE_WAY}.items()
    )
    process = RelayProcess(policies={"10-each.toml": rules})
    groups = process.folder / "policies" / "groups"
    groups.mkdir()
    for name, text in GROUPS.items():
        (groups / f"{name}.txt").write_text(text)
    with process:
        yield process


def full(subject: str) -> EmailMessage:
    """A message that all conditions on the content match."""
    letter = EmailMessage()
    letter["From"], letter["To"], letter["Subject"] = ALICE, ", ".join(TO), f"{subject}: invoice"
    letter["X-Kind"], letter["X-Score"] = "asks once again", "Yes, score=7.5"
    letter.set_content("Please  pay to account 712.\n\nIBAN DE00 1234.\n")
    letter.add_attachment(PROGRAM, "application", "octet-stream", filename="readme.TXT")
    return letter


def plain(subject: str) -> EmailMessage:
    """A message that none of them matches."""
    letter = EmailMessage()
    letter["From"], letter["To"], letter["Subject"] = ALICE, TO[0], subject
    letter.set_content("Hello.\n")
    return letter


def send(relay: RelayProcess, way: str, letter: EmailMessage) -> None:
    to = letter["To"].split(", ")
    if way == "smtp":
        relay.submit(ALICE, to, letter.as_bytes(policy=SMTP))
    elif way == "graph":
        answer = relay.request(
            "POST",
            "/v1.0/me/sendMail",
            base64.b64encode(letter.as_bytes(policy=SMTP)),
            {"Authorization": "Bearer alice", "Content-Type": "text/plain"},
        )
        assert answer.status == 202, answer.body
    else:
        done = relay.sendmail(ALICE, *to, text=str(letter))
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["text", "html"])
def test_a_subject_and_a_content_id_are_no_programs_by_graph(relay, kind):
    inline = {"contentType": "image/png", "contentBytes": PNG, "isInline": True}
    inline |= dict.fromkeys(("name", "contentId"), "logo@shop.com")
    item = {"@odata.type": "#microsoft.graph.itemAttachment", "item": {"subject": "x"}}
    files = {
        "item": {**item, "name": "shop.com"},
        "inline": inline,
        "attached": {**inline, "isInline": False},
        "no id": {**inline, "contentId": None},
        "no picture": {**inline, "contentBytes": "aGk="},
    }
    for name, file in files.items():
        parts = [{"@odata.type": "#microsoft.graph.fileAttachment", **file}]
        message = {"subject": f"{kind} {name}", "body": {"contentType": kind, "content": "a"}}
        message |= {"toRecipients": [{"emailAddress": {"address": TO[0]}}], "attachments": parts}
        assert (
            relay.graph("POST", "/me/sendMail", {"message": message}, token="alice").status == 202
        )
    programs = {name for name in files if "program" in matched(relay, f"{kind} {name}")}
    assert programs == files.keys() - {"item", "inline"}


def matched(relay: RelayProcess, subject: str) -> set[str]:
    """The rules that have left their mark on bob's copy."""

    def copy() -> Message | None:
        return next((one for one in relay.maildir("bob") if subject in str(one["Subject"])), None)

    names = until("bob has it", copy).keys()
    return {name.removeprefix("X-Rule-") for name in names if name.startswith("X-Rule-")}


@pytest.mark.parametrize("way", EXPECTED)
def test_each_condition_matches_what_it_should_and_nothing_else(relay, way):
    send(relay, way, full(f"full by {way}"))
    send(relay, way, plain(f"plain by {way}"))
    assert matched(relay, f"full by {way}") == {*ALWAYS, *OF_THE_CONTENT, *EXPECTED[way]}
    assert matched(relay, f"plain by {way}") == {*ALWAYS, *EXPECTED[way]}
