"""Django sends to the relay of each test."""

import pytest
from django.conf import settings
from django.test import override_settings

settings.configure(DEFAULT_CHARSET="utf-8")


@pytest.fixture
def mail(relay):
    host, port = relay.smtp
    backend = "django.core.mail.backends.smtp.EmailBackend"
    with override_settings(EMAIL_BACKEND=backend, EMAIL_HOST=host, EMAIL_PORT=port):
        yield relay
