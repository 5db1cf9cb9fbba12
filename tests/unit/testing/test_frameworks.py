"""The fixture for Django, in a project without pytest-django; tests/clients has the other frameworks."""

import django
import pytest

from tests.support.inner_pytest import inner_pytest

CONFTEST = """
from django.conf import settings
from django.test.utils import setup_test_environment

settings.configure({settings})
setup_test_environment()
"""
SENT = """
import pytest
from django.conf import settings
from django.core import mail
from relay.testing import WaitTimeout

@pytest.mark.parametrize("number", [1, 2])
def test_django_sends_to_the_relay(relay_django, internet, number):
    internet.domain("gmail.com").rcpt("joe").reply("550 5.1.1 no such user")
    message = mail.EmailMessage("Hello", f"{number}", "app@example.test", ["joe@gmail.com"])
    message.send({using})
    report = relay_django.mailbox("app@example.test").wait_for()
    assert report.bounce.recipient == "joe@gmail.com"
    assert mail.outbox == []

def test_mail_without_the_fixture_is_named(relay):
    mail.send_mail("Welcome", "x", "app@example.test", ["joe@gmail.com"])
    with pytest.raises(WaitTimeout) as failed:
        relay.mailbox("joe@gmail.com").wait_for(timeout=0.05)
    assert str(failed.value).startswith(
        "no message for joe@gmail.com within 0.05 s: no program has connected to this relay\\n\\n"
        "Django's locmem outbox has 1 message: use the fixture relay_django\\n"
        '  "Welcome" to joe@gmail.com\\n'
    )
"""
EMAIL = 'EMAIL_HOST_USER="shop", EMAIL_HOST_PASSWORD="s3cret", EMAIL_USE_TLS=True, EMAIL_PORT=587'
MAILERS = """MAILERS={"default": {}, "news": {"OPTIONS": {"host": "news.test", "use_tls": True}}}"""
knows_mailers = pytest.mark.skipif(django.VERSION < (6, 1), reason="Django 6.1 has MAILERS")


@pytest.mark.parametrize(
    ("settings", "using"), [(EMAIL, ""), pytest.param(MAILERS, "using='news'", marks=knows_mailers)]
)
def test_django(tmp_path, settings, using):
    conftest, test = CONFTEST.format(settings=settings), SENT.replace("{using}", using)
    code, output = inner_pytest(tmp_path, conftest=conftest, test_a=test)
    assert code == 0, output
