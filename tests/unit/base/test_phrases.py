"""How values are written in messages to people: no text has the login of a URL."""

import json
import re
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote

import pytest

from relay.base.phrases import hiding, shown, without_login
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


SECRET = "Vx9?Q~7Secret/of-48+Letters_%that.Opens=uploadsZ"
REPEATED = [
    SECRET,
    SECRET[:20],  # the end is cut off
    SECRET.upper(),
    quote(SECRET, safe=""),
    quote(SECRET, safe="").lower(),
    "".join(f"%{ord(letter):02X}" for letter in SECRET),
    json.dumps(SECRET),
    *(b64encode(f"{before}{SECRET}&more".encode()).decode() for before in ("", "=", "u=", "url")),
    urlsafe_b64encode(f'{{"token": "{SECRET}"}}'.encode()).decode(),
    f"{SECRET} and {SECRET.lower()}",
]


@each_row("text", REPEATED)
def test_a_secret_is_hidden_however_a_host_repeats_it(text):
    hidden = hiding(SECRET, "another secret")(f"I got <{text}>.")
    assert re.fullmatch(r"I got <.{0,16}\.\.\.(.{0,12}| and \.\.\.)>\.", hidden), hidden


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
