"""Programs that others wrote, and the relay between them; what is not installed skips its tests."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from tests.support.commands import run_command
from tests.support.dns_server import DnsThread
from tests.support.postfix import NoPostfixError, Postfix
from tests.support.relay_process import RelayProcess
from tests.support.tls import certificate

__all__ = ["certificate"]

_PATH = os.environ.get("PATH", "") + ":/usr/sbin"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "interop" in item.path.parts:
            item.add_marker(pytest.mark.interop)


def program(name: str) -> str:
    """Where a program is; skips the test if nowhere."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def missing(why: Exception) -> NoReturn:
    """Skip a test whose program is not there; where CI is set, it fails."""
    if os.environ.get("CI"):
        pytest.fail(str(why))
    pytest.skip(str(why))


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run() -> Run:
    """Run a program that must be installed, to its end."""

    def run_program(name: str, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return run_command([program(name), *words], input=text)

    return run_program


@pytest.fixture
def postfix(certificate) -> Iterator[Postfix]:
    """A remote MX for post.test, where carol lives; it offers STARTTLS."""
    tls = {
        "smtpd_tls_security_level": "may",
        "smtpd_tls_cert_file": str(certificate.certificate),
        "smtpd_tls_key_file": str(certificate.key),
    }
    try:
        with Postfix(domain="post.test", people=["carol"], settings=tls) as started:
            yield started
    except NoPostfixError as why:
        pytest.skip(str(why))


@pytest.fixture
def dns() -> Iterator[DnsThread]:
    """A zone in which mx.post.test at 127.0.0.1 takes the mail of post.test."""
    with DnsThread() as server:
        server.zone["post.test"] = {"MX": ["10 mx.post.test."]}
        server.zone["mx.post.test"] = {"A": ["127.0.0.1"]}
        yield server


@pytest.fixture
def relay(serve) -> RelayProcess:
    """A relay for local mail."""
    return serve()
