"""Mail settings of web frameworks for a relay of the kit, and Django's outbox.

A framework is imported only by its fixtures.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_DJANGO_BACKEND = "django.core.mail.backends.smtp.EmailBackend"


@contextmanager
def django_sends_to(smtp: tuple[str, int]) -> Iterator[None]:
    """Make Django send to a relay: set MAILERS if Django has them (6.1), else EMAIL_*."""
    mailers = getattr(import_module("django.conf").settings, "MAILERS", None)
    settings: dict[str, Any] = {
        "EMAIL_BACKEND": _DJANGO_BACKEND,
        "EMAIL_HOST": smtp[0],
        "EMAIL_PORT": smtp[1],
        "EMAIL_HOST_USER": "",
        "EMAIL_HOST_PASSWORD": "",
        "EMAIL_USE_TLS": False,
        "EMAIL_USE_SSL": False,
    }
    if mailers is not None:
        mailer = {"BACKEND": _DJANGO_BACKEND, "OPTIONS": {"host": smtp[0], "port": smtp[1]}}
        settings = {"MAILERS": dict.fromkeys(("default", *mailers), mailer)}
    changed = import_module("django.test").override_settings(**settings)
    with warnings.catch_warnings(action="ignore"):  # EMAIL_* is deprecated where MAILERS are known
        changed.enable()
    try:
        yield
    finally:
        with warnings.catch_warnings(action="ignore"):
            changed.disable()


def configure_flask(app: Any, smtp: tuple[str, int], patch: "pytest.MonkeyPatch") -> None:
    """Make Flask-Mail and Flask-Mailman of `app` send to a relay until `patch` is undone.

    Both copy their configuration when they are initialized, before or after this call.
    """
    values = {
        "server": smtp[0],
        "port": smtp[1],
        "username": None,
        "password": None,
        "use_tls": False,
        "use_ssl": False,
        "backend": "smtp",
    }
    for name, value in values.items():
        patch.setitem(app.config, f"MAIL_{name.upper()}", value)
    patch.setitem(app.config, "MAIL_SUPPRESS_SEND", False)
    for extension in ("mail", "mailman"):
        if extension in app.extensions:
            state = app.extensions[extension]
            for name, value in {**values, "suppress": False}.items():
                patch.setattr(state, name, value, raising=False)


def django_outbox() -> Sequence[tuple[str, Sequence[str]]]:
    """Return subject and recipients of the messages in Django's locmem backend.

    Test runs of Django and pytest-django send to this backend.
    """
    outbox = getattr(sys.modules.get("django.core.mail"), "outbox", ())
    return [(str(message.subject), message.recipients()) for message in outbox]
