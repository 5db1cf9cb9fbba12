"""Check the secrets of [[oauth]] clients before a token is asked for: their faults and their ends.

A fault (a certificate without its key, a service account that is no JSON) keeps the mail of the
client's routes waiting, in class auth: it refuses a reload, not a start. An end only warns: the
token server decides.
"""

from collections.abc import Iterable
from functools import lru_cache

from msgspec import Struct

from relay.base.clock import rfc3339
from relay.base.files import read_key_file
from relay.base.message.nexthop import HopKind
from relay.base.settings.tree import OAuthClient
from relay.delivery.oauth.grants import grant_form
from relay.transport.signing.key_files import ends_us
from relay.transport.signing.keys import DAY_US

_SOON_US = 30 * DAY_US


class SecretState(Struct, frozen=True):
    """The state of the secret of a client."""

    fault: str = ""  # why no token can be asked for
    ends_us: int | None = None  # wall time; None: not known
    kind: str = "secret"  # or "certificate"

    def warning(self, now_us: int) -> str:
        """Return that it ends within 30 days, or has ended, else ""."""
        if self.ends_us is None or self.ends_us > now_us + _SOON_US:
            return ""
        verb = "ends" if self.ends_us > now_us else "has ended"
        return f"its {self.kind} {verb}, the last day is {rfc3339(self.ends_us - 1)[:10]}"


def secret_states(clients: Iterable[OAuthClient]) -> dict[str, SecretState]:
    """Return the state of each client's secret, by the client's name. A file is read again when it
    has changed. Blocks.
    """
    return {client.name: _state(client, _stamp_ns(client)) for client in clients}


def _stamp_ns(client: OAuthClient) -> int:
    file = client.certificate or client.service_account
    return file.stat().st_mtime_ns if file and file.exists() else 0


@lru_cache(maxsize=1000)
def _state(client: OAuthClient, _stamp_ns: int) -> SecretState:
    fault, ends = "", [ends_us(client.secret_ends)]
    if file := client.certificate or client.service_account:
        from cryptography import x509  # noqa: PLC0415 - it takes memory

        try:
            secret = read_key_file(file, expected="a key", is_secret=False)
            text = secret.decode()
            grant_form(client, HopKind.SMTP, "", secret=text, now_s=0, jti="")
            if client.certificate:
                end = x509.load_pem_x509_certificate(secret).not_valid_after_utc
                ends.append(int(end.timestamp()) * 1_000_000)
        except ValueError as error:
            fault = f"{file}: {error}"
    first_us = min((end for end in ends if end is not None), default=None)
    return SecretState(fault, first_us, "certificate" if client.certificate else "secret")
