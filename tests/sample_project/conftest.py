"""Django without pytest-django."""

from django.conf import settings

settings.configure(DEFAULT_CHARSET="utf-8")
