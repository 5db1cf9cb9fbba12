"""What the secrets of [[oauth]] clients show before a token is asked for: that they give none, and
when they end.

A fault (a certificate without its key, a service account that is no JSON) keeps the mail of the
client's routes waiting, in class auth: it refuses a reload, not a start. An end only warns: the
token server decides.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from relay.base.clock import rfc3339
from relay.base.settings.tree import OAuthClient, Settings
from relay.delivery.oauth.tokens import TokenServer
from relay.delivery.smtp.connect import TokenError
from relay.transport.signing.keys import DAY_US

_SOON_US = 30 * DAY_US


class SecretState(Struct, frozen=True):
    """What the secret of a client shows."""

    fault: str = ""  # why no token can be asked for
    ends_us: int | None = None  # wall time; None: not known

    def warning(self, now_us: int) -> str:
        """Return that it ends within 30 days, or has ended, else ""."""
        if self.ends_us is None or self.ends_us > now_us + _SOON_US:
            return ""
        verb = "ends" if self.ends_us > now_us else "has ended"
        return f"its secret {verb}, the last day is {rfc3339(self.ends_us - 1)[:10]}"


def secret_state(client: OAuthClient, settings: Settings) -> SecretState:
    """Read the file of a client's secret, if it has one."""
    fault, ends = "", list[datetime]()
    if client.secret_ends:  # the last day (UTC)
        day = datetime.fromisoformat(client.secret_ends)
        ends.append(day.replace(tzinfo=UTC) + timedelta(days=1))
    if client.certificate or client.service_account:
        server = TokenServer(client.name, settings)
        try:
            server.form(*server.uses[0], now_s=0)
        except TokenError as error:
            fault = str(error)
    if client.certificate:
        from cryptography import x509  # noqa: PLC0415 - it takes memory

        with suppress(OSError, ValueError):  # a fault
            certificate = x509.load_pem_x509_certificate(client.certificate.read_bytes())
            ends.append(certificate.not_valid_after_utc)
    return SecretState(fault, int(min(ends).timestamp() * 1_000_000) if ends else None)


class ClientSecrets:
    """The states of all clients' secrets; a file is read again when it has changed."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._read: dict[str, tuple[object, SecretState]] = {}

    def states(self) -> dict[str, SecretState]:
        """Return the state of each client of the settings in force, by its name."""
        settings, before = self._settings(), self._read
        self._read = {}
        for client in settings.oauth:
            made_of = client, TokenServer(client.name, settings).stamp_ns
            made, state = before.get(client.name, (None, SecretState()))
            is_same = made == made_of
            self._read[client.name] = made_of, state if is_same else secret_state(client, settings)
        return {name: state for name, (_, state) in self._read.items()}

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each client with whose secret no token can be asked for, and why."""
        return ((name, state.fault) for name, state in self.states().items() if state.fault)

    def warnings(self, now_us: int) -> Iterator[tuple[str, str]]:
        """Yield the name of each client whose secret ends soon or has ended, and what is said."""
        for name, state in self.states().items():
            if text := state.warning(now_us):
                yield name, text
