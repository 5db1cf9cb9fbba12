"""Where a relay of the test kit listens, for tests and for the programs that they run."""

from typing import NamedTuple

from relay.settings.tree import Address
from relay.testing.internet import InternetScenario
from relay.testing.running import RunningRelay


class SmtpAddress(NamedTuple):
    """Where SMTP listens: `smtplib.SMTP(*relay.smtp)`."""

    host: str
    port: int


class RelayPlaces:
    """Where a relay listens, and what programs under test need to reach it."""

    def __init__(self, started: InternetScenario | None) -> None:
        self._started = started

    @property
    def scenario(self) -> InternetScenario:
        """What the simulated internet of the relay does, for the other classes of the kit."""
        if self._started is None:
            raise RuntimeError("the relay does not run: use it within `with Relay() as relay`")
        return self._started

    @property
    def running(self) -> RunningRelay:
        """The relay, for the other classes of the kit."""
        return self.scenario.running

    @property
    def http_url(self) -> str:
        """Its URL, as "http://127.0.0.1:40001"; the Graph API is under /v1.0."""
        at = self.running.relay.addresses.http
        return f"http://{at.host}:{at.port}"

    @property
    def https_url(self) -> str:
        """The same with TLS; clients have to trust `ca`."""
        return f"https://localhost:{self.running.relay.addresses.https.port}"

    @property
    def ca(self) -> str:
        """The file of the certificate authority (PEM)."""
        return str(self.running.relay.addresses.ca)

    @property
    def smtp(self) -> SmtpAddress:
        """Host and port of SMTP without TLS. A client needs no login; any login is accepted, and
        may send from any address.
        """
        at = self.running.relay.addresses.smtp
        return SmtpAddress(at.host, at.port)

    @property
    def submission(self) -> SmtpAddress:
        """The same with STARTTLS; clients have to trust `ca`, for "localhost" or "127.0.0.1"."""
        return _tls_address(self.running.relay.addresses.submission)

    @property
    def submissions(self) -> SmtpAddress:
        """The same with TLS from the first octet."""
        return _tls_address(self.running.relay.addresses.submissions)

    @property
    def operator_token(self) -> str:
        """A token that sees all messages and may change the queue."""
        return self.running.relay.token

    @property
    def env(self) -> dict[str, str]:
        """Environment variables for programs under test; docs/testing.md lists them."""
        host, port = self.smtp.host, str(self.smtp.port)
        url = f"smtp://{host}:{port}"
        return {
            "SMTP_HOST": host, "SMTP_PORT": port, "SMTP_URL": url,
            "EMAIL_HOST": host, "EMAIL_PORT": port, "EMAIL_URL": url,
            "MAIL_SERVER": host, "MAIL_PORT": port,
            "RELAY_URL": self.http_url, "RELAY_HTTPS_URL": self.https_url,
            "RELAY_TOKEN": self.operator_token, "RELAY_CA": self.ca,
            "RELAY_CONFIG": str(self.running.thread.folder.config),
            "SSL_CERT_FILE": self.ca, "REQUESTS_CA_BUNDLE": self.ca, "NODE_EXTRA_CA_CERTS": self.ca,
        }  # fmt: skip

    def token(self, address: str) -> str:
        """Return a bearer token of an account, which is made when it is first used."""
        return address


def _tls_address(at: Address | None) -> SmtpAddress:
    assert at is not None  # no port of the kit is left out
    return SmtpAddress(at.host, at.port)
