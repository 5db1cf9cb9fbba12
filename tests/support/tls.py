"""Certificates for the tests' servers, made with openssl: a self-signed one, and those of a CA.

The self-signed one is good for mx.remote.test and localhost, one day. A test that asks for one is
skipped where there is no openssl. See RFC 5280.
"""

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Certificate:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """A context that shows the certificate to clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True)
class Authority:
    """A CA; its files and those of what it issues are in `directory`."""

    directory: Path

    @property
    def certificate(self) -> Path:
        """The CA's own certificate, PEM: what a client trusts."""
        return self.directory / "ca.pem"

    def issue(self, *names: str, days: int = 1) -> Certificate:
        """Make a certificate for `names`, as "DNS:a.test" or "IP:127.0.0.2"; with -1 day it has expired."""
        stem = self.directory / "-".join([*names, str(days)]).replace(":", "_").replace("*", "any")
        made = Certificate(Path(f"{stem}.pem"), Path(f"{stem}.key"))
        request, extensions = Path(f"{stem}.csr"), Path(f"{stem}.ext")
        extensions.write_text(f"subjectAltName={','.join(names)}\n" if names else "")
        _openssl("req", "-new", *_NEW_KEY, "-subj", "/CN=x", "-keyout", made.key, "-out", request)
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey",
            self.directory / "ca.key", "-CAcreateserial", "-days", days, "-extfile", extensions,
            "-out", made.certificate,
        )  # fmt: skip
        return made


def _openssl(*arguments: object) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    subprocess.run([openssl, *map(str, arguments)], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A self-signed certificate."""
    directory = tmp_path_factory.mktemp("tls")
    made = Certificate(directory / "certificate.pem", directory / "key.pem")
    names = "subjectAltName=DNS:mx.remote.test,DNS:localhost"
    _openssl(
        "req", "-x509", *_NEW_KEY, "-days", 1, "-subj", "/CN=mx.remote.test", "-addext", names,
        "-keyout", made.key, "-out", made.certificate,
    )  # fmt: skip
    return made


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA of the tests' own."""
    return new_authority(tmp_path_factory.mktemp("ca"))


def new_authority(directory: Path) -> Authority:
    """Make a CA."""
    made = Authority(directory)
    _openssl(
        "req", "-x509", *_NEW_KEY, "-days", 2, "-subj", "/CN=the tests' CA",
        "-keyout", made.directory / "ca.key", "-out", made.certificate,
    )  # fmt: skip
    return made
