"""Certificates of the simulated hosts, by a certificate authority that only one internet has.

A route with `tls = "verify"` and its `ca` trusts them, and so does mail under an MTA-STS policy.
The bad certificate is for another name and has expired.
"""

import hashlib
import ssl
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.base.bounded_dict import BoundedDict
from relay.base.certificates import load_pair
from relay.development.internet.scenario import HostCertificate
from relay.development.issuer import ANY_ADDRESS, Issuer, pem_of, self_signed

_KEPT = 256
_CA_NAME = "Simulated internet of relay dev"
_OTHER_NAME = "wrong-name.invalid"
# whatever time the clock has been advanced to
_FIRST, _LAST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2099, 12, 31, tzinfo=UTC)
_EXPIRED = datetime(2001, 1, 1, tzinfo=UTC)


class HostCertificates:
    """The authority and what it has issued. `authority` is its certificate, in PEM."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        no_address = x509.NameConstraints(None, ANY_ADDRESS)
        issued = self_signed(key, _CA_NAME, no_address, now=_FIRST, end=_LAST)
        self._issuer = Issuer(issued, key)
        self._host_key = ec.generate_private_key(ec.SECP256R1())
        self.authority = issued.public_bytes(Encoding.PEM).decode()
        public = self._host_key.public_key()
        octets = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.tlsa = f"3 1 1 {hashlib.sha256(octets).hexdigest()}"  # of all hosts
        self.bad = self._issue(_OTHER_NAME, end=_EXPIRED)
        self._contexts = BoundedDict[tuple[str, HostCertificate], ssl.SSLContext](_KEPT)

    def for_host(self, name: str, which: HostCertificate = "good") -> ssl.SSLContext:
        """Return the context of a server with this name."""
        if (name, which) not in self._contexts:
            subject = _OTHER_NAME if which == "other-name" else name
            end = _EXPIRED if which == "expired" else _LAST
            self._contexts[name, which] = self._issue(subject, end=end)
        return self._contexts[name, which]

    def for_names(self, prefix: str) -> ssl.SSLContext:
        """Return the context of a server with all names that begin with `prefix`."""

        def choose(session: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
            if name is not None and name.startswith(prefix):
                session.context = self.for_host(name)

        context = self._issue(_OTHER_NAME, end=_LAST)
        context.sni_callback = choose
        return context

    def _issue(self, name: str, *, end: datetime) -> ssl.SSLContext:
        certificate = self._issuer.sign(self._host_key.public_key(), [name], now=_FIRST, end=end)
        with NamedTemporaryFile() as file:  # OpenSSL reads a pair from files only
            file.write(certificate + pem_of(self._host_key))
            file.flush()
            return load_pair(Path(file.name), Path(file.name))
