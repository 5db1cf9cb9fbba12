"""From a message's JSON to the sent MIME and back without loss; golden octets."""

import base64
import email
import email.policy
import json
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.base.accounts.account import Account
from relay.base.message.content import read_all
from relay.formats.convert import convert, render
from relay.front_door.graph.message_parser import parse_message
from relay.store.mailbox.draft_files import DraftIdentity, compose

GOLDEN = Path(__file__).parents[3] / "golden"
ALICE = Account("alice@example.test", send_as=("office@example.test",))
IDENTITY = DraftIdentity(
    "alice@example.test",
    "0123456789abcdef",
    "relay.example.test",
    created_us=1_795_000_000_000_000,
    modified_us=1_795_000_000_000_000,
)


def drafted(message: dict) -> bytes:
    return read_all(compose(parse_message(message, ALICE).properties, IDENTITY).content)


def sent(raw: bytes) -> bytes:
    return read_all(convert(raw, now_us=0, hostname="h").content)


@pytest.mark.parametrize("name", ["newsletter", "reply", "item"])
def test_golden(name: str, tmp_path: Path) -> None:
    raw = drafted(json.loads((GOLDEN / f"draft-{name}.json").read_bytes()))
    written = sent(raw)
    assert b"hidden@example.test" not in written
    assert b"hidden@example.test" in read_all(render(raw)) or name != "newsletter"
    golden = GOLDEN / f"message-{name}.eml"
    if not golden.exists() or golden.read_bytes() != written:
        other = tmp_path / golden.name
        other.write_bytes(written)
        pytest.fail(f"{golden} is not what was written: {other}")
    message = email.message_from_bytes(written, policy=email.policy.default)
    assert not [part.defects for part in message.walk() if part.defects]


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=60)
NAME = TEXT.map(lambda text: " ".join(text.split()))
BODY = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff"), max_size=300
)
LOCAL_PART = st.from_regex(r"[a-z0-9]{1,12}(\.[a-z0-9]{1,9})?", fullmatch=True)
DOMAIN = st.sampled_from(["example.test", "a.test", "sub.b.test"])
ADDRESS = st.builds("{}@{}".format, LOCAL_PART, DOMAIN)
PERSON = st.builds(lambda a, n: {"emailAddress": {"address": a, "name": n}}, ADDRESS, NAME)
PEOPLE = st.lists(PERSON, max_size=3)
FILE = st.fixed_dictionaries(
    {
        "@odata.type": st.just("#microsoft.graph.fileAttachment"),
        "name": NAME.filter(bool),
        "contentType": st.sampled_from(["application/pdf", "image/png", "text/plain", "x/y"]),
        "contentBytes": st.binary(max_size=200).map(lambda b: base64.b64encode(b).decode()),
    }
)
MESSAGE = st.fixed_dictionaries(
    {
        "subject": NAME,
        "toRecipients": st.lists(PERSON, min_size=1, max_size=3),
        "body": st.builds(
            lambda kind, content: {"contentType": kind, "content": content},
            st.sampled_from(["text", "html"]),
            BODY,
        ),
    },
    optional={
        "ccRecipients": PEOPLE,
        "bccRecipients": PEOPLE,
        "replyTo": PEOPLE,
        "importance": st.sampled_from(["low", "normal", "high"]),
        "sensitivity": st.sampled_from(["normal", "personal", "private", "confidential"]),
        "categories": st.lists(NAME.filter(bool), max_size=3, unique=True),
        "isReadReceiptRequested": st.booleans(),
        "attachments": st.lists(FILE, max_size=3),
        "internetMessageHeaders": st.lists(
            st.fixed_dictionaries(
                {"name": st.from_regex(r"x-[a-z]{1,20}", fullmatch=True), "value": NAME}
            ),
            max_size=3,
            unique_by=lambda one: one["name"],
        ),
    },
)


def lines(text: str) -> list[str]:
    """Return the lines of a body; a missing final line end is added."""
    return text.removesuffix("\n").split("\n")


@settings(deadline=None)
@given(MESSAGE)
def test_the_standard_library_reads_the_mime_of_the_json(message: dict) -> None:
    asked = parse_message(message, ALICE).properties
    written = sent(drafted(message))
    read = email.message_from_bytes(written, policy=email.policy.default)
    assert isinstance(read, EmailMessage)
    assert not [part.defects for part in read.walk() if part.defects]
    assert max(map(len, written.split(b"\r\n"))) <= 998
    assert written.isascii()
    assert (read["subject"] or "").split() == asked.subject.split()
    for field, people in (("to", asked.to), ("cc", asked.cc), ("reply-to", asked.reply_to)):
        found = [one.addr_spec for one in read[field].addresses] if read[field] else []
        assert found == [one.address for one in people]
    assert read["bcc"] is None
    body = read.get_body((asked.body_type.replace("text", "plain"),))
    assert body is not None
    assert lines(body.get_content().replace("\r\n", "\n")) == lines(asked.body)
    files = [part.get_payload(decode=True) for part in read.iter_attachments()]
    assert files == [base64.b64decode(one.content) for one in asked.attachments]
