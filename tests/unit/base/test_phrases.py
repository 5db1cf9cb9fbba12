"""How values are written in messages to people: no text has the login of a URL."""

import re

import pytest

from relay.base.phrases import shown, without_login
from relay.front_door.http.errors import quoted
from relay.transport.routing.routes import parse_action
from tests.support.tables import each_row

WRITTEN = [
    "smtp://user:sesame@mx.test:25",
    "smtp://sesame@mx.test:25",
    "smtp://user:sesame@mx.test",  # without a port
    "smtps://user:ses@me@mx.test:465",
    "smtp://user:ses/ame@mx.test:25",
    "smtp://user:sesame\n@mx.test:25",
    "smtp:/user:sesame@mx.test:25",
    "smtp:user:sesame@mx.test:25",
    "user:sesame@mx.test:25",
    "x" * 75 + "://user:sesame@mx.test",  # cut behind it
    "a https://user:sesame@mx.test/path b",
]


@each_row("text", WRITTEN)
def test_no_text_has_the_login_of_a_url(text):
    texts = [shown(text), without_login(text)]
    if "://" in text:
        texts.append(quoted(text))
    with pytest.raises(ValueError) as refused:
        parse_action(f"{text}:x")  # which is no next hop
    texts.append(str(refused.value))
    assert [one for one in texts if re.search("ses|ame", one)] == []


@each_row(
    "text",
    [
        "bob@example.test",
        "smtp://mx.test:25",
        "From: bob@example.test",
        "unix:/run/a",
        "a: b@c",
        "@",
        ":@",
    ],
)
def test_what_is_no_login_is_shown(text):
    assert without_login(text) == text
