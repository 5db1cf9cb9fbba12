"""What `relay check` warns of in keys that sign mail."""

from collections.abc import Iterator

from relay.settings.document import Document, Fault
from relay.signing.keys import KeyRing

_RSA_BITS_ADVISED = 2048  # RFC 8301 3.2


def key_warnings(ring: KeyRing, place: Document, *, now_us: int) -> Iterator[Fault]:
    """Yield what is not as it should be; `ring` has the keys of `place` in their order."""
    ending = ring.ending(now_us)
    for number, key in enumerate(ring.keys):
        if key.private.kind == "rsa" and key.private.bits < _RSA_BITS_ADVISED:
            found = f"{key.file}: found an RSA key of {key.private.bits} bits"
            text = f"{found}, expected {_RSA_BITS_ADVISED} or more: receivers may not accept it"
            yield place.fault(("dkim", number, "key"), text)
        if key in ending:
            does = "goes out unsigned" if not key.is_usable(now_us) else "then goes out unsigned"
            text = (
                f"found {key.last_day}, after which no key of {key.domain} signs: its mail {does}"
            )
            yield place.fault(("dkim", number, "until"), text)
