"""The fixtures for pytest-django, Flask-Mail and Flask-Mailman, as docs/testing.md shows them."""

import re
import sys
from pathlib import Path

import pytest

from tests.support.inner_pytest import inner_pytest

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CONFTEST = """
import os
from django.conf import settings

def pytest_configure():
    settings.configure(EMAIL_BACKEND="django.core.mail.backends.dummy.EmailBackend")
"""
FLASK = """
import pytest
from flask import Flask
from flask_mail import Mail, Message
from flask_mailman import EmailMessage, Mail as Mailman
from relay.testing import WaitTimeout

mail, mailman = Mail(), Mailman()

@pytest.fixture(scope="session")
def app():
    app = Flask("shop")
    app.config.update(TESTING=True, MAIL_PORT=2525, MAIL_USERNAME="shop", MAIL_USE_TLS=True)
    mail.init_app(app)
    mailman.init_app(app)
    return app

def send(app):
    with app.app_context():
        mail.send(Message("By Flask-Mail", ["joe@gmail.com"], "x", sender="app@example.test"))
        EmailMessage("By Flask-Mailman", "x", "app@example.test", ["joe@gmail.com"]).send()

@pytest.mark.parametrize("number", [1, 2])
def test_both_send_to_the_relay(app, relay_flask, number):
    send(app)
    found = relay_flask.mailbox("joe@gmail.com").messages()
    assert [one.subject for one in found] == ["By Flask-Mail", "By Flask-Mailman"]

def test_afterwards_the_application_is_as_before(app, relay):
    send(app)
    relay.assert_no_more_mail()
    assert app.config["MAIL_PORT"] == app.extensions["mailman"].port == 2525
    assert app.config["MAIL_USE_TLS"] and app.extensions["mail"].use_tls
    assert "MAIL_SUPPRESS_SEND" not in app.config and app.extensions["mail"].suppress

def test_extensions_that_come_later(relay_flask, app):
    new = Flask("new")
    new.config.update(TESTING=True, **{k: v for k, v in app.config.items() if k.startswith("MAIL_")})
    mail.init_app(new)
    mailman.init_app(new)
    send(new)
    assert len(relay_flask.mailbox("joe@gmail.com").messages()) == 2
"""


def example(name):
    (found,) = [one for one in PROGRAMS if f"({name})" in one or f", {name})" in one]
    return found


def test_pytest_django(tmp_path):
    pytest.importorskip("pytest_django")
    other = "def test_locmem(relay, mailoutbox):\n    assert mailoutbox == []\n"
    code, output = inner_pytest(
        tmp_path,
        python=Path(sys.executable),
        conftest=CONFTEST,
        test_a=example("relay_django"),
        test_b=other,
    )
    assert code == 0, output
    assert "2 passed" in output


def test_flask(tmp_path):
    pytest.importorskip("flask_mailman")
    code, output = inner_pytest(
        tmp_path, python=Path(sys.executable), test_a=example("relay_flask"), test_b=FLASK
    )
    assert code == 0, output
    assert "5 passed" in output
