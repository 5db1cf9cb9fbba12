"""[[webhook]]: what is accepted, and the text for what is not."""

from base64 import b64encode
from pathlib import Path
from typing import get_args

import pytest

from relay.base.message.lifecycle import RecipientState
from relay.base.settings.document import SettingsError
from relay.base.settings.reader import load
from relay.base.settings.tree import Settings, Webhook, WebhookEvent
from tests.support.tables import each_row


def key(octets: int) -> str:
    return "whsec_" + b64encode(bytes(octets)).decode()


GOOD = f'url = "https://h.test/x"\nevents = ["*"]\nsecret = "{key(24)}"\n'


def read(folder: Path, *tables: str) -> Settings:
    file = folder / "relay.toml"
    file.write_text(
        'hostname = "relay.test"\nstate_dir = "state"\n'
        + "".join(f"[[webhook]]\n{table}" for table in tables)
    )
    return load(file, {})


def test_every_state_has_a_name() -> None:
    steps = {"*", "accepted", "policy", "delivery", "reported", "complaint", "suppressed", "limit"}
    assert set(get_args(WebhookEvent)) == steps | {str(state) for state in RecipientState}


@each_row(
    "url",
    [
        *("https://h.test", "https://192.168.0.1:8443/a?b=c", "https://[2001:db8::1]/"),
        *("http://127.0.0.1:3000/", "http://127.9.9.9/", "http://[::1]:3000/", "http://localhost/"),
        "http://app.localhost:3000/x",
    ],
)
def test_urls(tmp_path: Path, url: str) -> None:
    [hook] = read(tmp_path, GOOD.replace("https://h.test/x", url)).webhook
    assert (hook.url, hook.accounts) == (url, ("*",))
    assert "whsec" not in repr(hook)


URL, SECRET = "https://h.test/x", "expected whsec_ and the base64 of 24 to 64 octets"
ACCOUNTS = "webhook[0].accounts"


@each_row(
    "old, new, told",
    [
        (
            URL,
            "http://h.test/x",
            ':4: webhook[0].url: found "http://h.test/x", expected https://, or http:// to 127.0.0.1, [::1] or localhost',
        ),
        (URL, "http://10.0.0.1/x", "expected https://, or http:// to 127.0.0.1"),
        (key(24), key(3), f":6: webhook[0].secret: found something else, {SECRET}"),
        (key(24), key(65), SECRET),
        (key(24), key(24)[6:], SECRET),
        (key(24), "whsec_not base64", SECRET),
        (
            '["*"]',
            "[]",
            ':5: webhook[0].events: found a list, expected at least one event, or "*" for all',
        ),
        ('["*"]', '["faild"]', '(did you mean "failed"?)'),
        (
            "events",
            'accounts = [""]\nevents',
            f'{ACCOUNTS}[0]: found "", expected a glob such as "*@example.org"',
        ),
        (
            "events",
            "accounts = []\nevents",
            f'{ACCOUNTS}: found a list, expected at least one glob, such as "*"',
        ),
        ('events = ["*"]\n', "", "webhook[0].events: found nothing, expected a value"),
    ],
)
def test_faults(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(SettingsError) as error:
        read(tmp_path, GOOD.replace(old, new))
    assert told in str(error.value)
    assert "whsec_n" not in str(error.value)


def test_urls_of_their_own_and_their_number(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"a URL of its own: webhook\[0\] has it too"):
        read(tmp_path, GOOD, GOOD)
    many = [GOOD.replace("/x", f"/{number}") for number in range(21)]
    assert all(isinstance(one, Webhook) for one in read(tmp_path, *many[:20]).webhook)
    with pytest.raises(SettingsError, match="expected at most 20 webhooks"):
        read(tmp_path, *many)
