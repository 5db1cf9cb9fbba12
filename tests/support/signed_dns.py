"""DNSSEC for tests: one signed zone, the root, which has all names of a DnsThread, and unbound, which validates it.

    with Remotes() as remotes, Unbound(SignedRoot(remotes.dns), folder, insecure=["plain.test"]) as unbound:
        StubResolver([unbound.address], validating=True, ...)

`make test` unpacks Debian's unbound into .system, because an installed one starts a service. Raises
NoUnboundError, with the reason to skip, where it is missing. See RFC 4035 3.1 (what a signed zone answers).
"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import dns.dnssec
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataset
import dns.rdatatype
import dns.rrset
import dns.zone
from cryptography.hazmat.primitives.asymmetric import ec
from dns.rdtypes.ANY.DNSKEY import DNSKEY

from relay.base.socket_address import Address
from relay.development.internet.dns_server import DnsServer
from relay.transport.routing.dns_client import EDNS_PAYLOAD_BYTES
from tests.support.dns_server import DnsThread
from tests.support.relay_process import until
from tests.support.unpacked import UNPACKED, unpacked_libraries

_NSEC, _RRSIG, _SOA = dns.rdatatype.NSEC, dns.rdatatype.RRSIG, dns.rdatatype.SOA
_APEX = {"SOA": ["ns.test. root.test. 1 3600 600 86400 60"], "NS": ["ns.test."]}


class NoUnboundError(Exception):
    """unbound is not there; the text says what to do."""


class SignedRoot:
    """Answers in place of the server of a DnsThread, from what it has at each sign(). The signatures
    of names in `bogus` do not hold.
    """

    def __init__(self, dns_thread: DnsThread) -> None:
        self.bogus: set[str] = set()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._public: DNSKEY = dns.dnssec.make_dnskey(
            self._key.public_key(), dns.dnssec.Algorithm.ECDSAP256SHA256, flags=257
        )
        self.thread = dns_thread
        self.sign()
        dns_thread.answer = self.answer

    @property
    def anchor(self) -> str:
        """The trust anchor."""
        return f". IN DS {dns.dnssec.make_ds('.', self._public, 'SHA256')}"

    def sign(self) -> None:
        """Read the names and sign them."""
        zone = dns.zone.Zone(dns.name.root, relativize=False)
        for name, entry in {"": _APEX, **self.thread.zone}.items():
            for kind, texts in entry.items() if not isinstance(entry, str) else ():
                if not isinstance(texts, str):
                    records = dns.rdataset.from_text_list(
                        "IN",
                        kind,
                        self.thread.server.ttl_s,
                        texts,
                        origin=dns.name.root,
                        relativize=False,
                    )
                    zone.replace_rdataset(dns.name.from_text(f"{name}."), records)
        with zone.writer() as writer:
            dns.dnssec.sign_zone(zone, writer, [(self._key, self._public)], lifetime=86_400)
        self._zone, self._names = zone, sorted(zone.keys())

    def answer(self, data: bytes, *, tcp: bool) -> bytes:
        """See DnsServer."""
        query = dns.message.from_wire(data)
        [question] = query.question
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        word = self.thread.records(
            question.name.to_text(omit_final_dot=True).lower(),
            dns.rdatatype.to_text(question.rdtype),
        )
        if isinstance(word, str) and word != "NXDOMAIN":
            response.set_rcode(dns.rcode.from_text(word))
            return response.to_wire()
        self._fill(response, question.name, question.rdtype)
        try:
            return response.to_wire(max_size=65_535 if tcp else EDNS_PAYLOAD_BYTES)
        except dns.exception.TooBig:
            response = dns.message.make_response(query)
            response.flags |= dns.flags.TC
            return response.to_wire()

    def _fill(
        self, response: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> None:
        while node := self._zone.get_node(name):
            if self._add(response.answer, name, kind):
                return
            if not self._add(response.answer, name, dns.rdatatype.CNAME):
                break
            target = node.get_rdataset(self._zone.rdclass, dns.rdatatype.CNAME)
            assert target is not None
            name = target[0].target
        self._add(response.authority, dns.name.root, _SOA)
        proofs = {self._before(name)}
        if not node and not any(one.is_subdomain(name) for one in self._names):
            response.set_rcode(dns.rcode.NXDOMAIN)
            while name != dns.name.root:
                name = name.parent()
                proofs.add(self._before(dns.name.Name(("*", *name.labels))))
        for one in proofs:
            self._add(response.authority, one, _NSEC)

    def _before(self, name: dns.name.Name) -> dns.name.Name:
        """Return the name whose NSEC record is about this one."""
        return max(one for one in self._names if one <= name)

    def _add(
        self, section: list[dns.rrset.RRset], name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> bool:
        """Add records and their signature; return whether there are any."""
        for what, covers in ((kind, dns.rdatatype.NONE), (_RRSIG, kind)):
            found = self._zone.get_rdataset(name, what, covers)
            if found is None:
                return False
            records = list(found)
            if what == _RRSIG and name.to_text(omit_final_dot=True) in self.bogus:
                records = [one.replace(signature=bytes(64)) for one in records]
            section.append(dns.rrset.from_rdata_list(name, found.ttl, records))
        return True


class Unbound:
    """unbound on loopback; `insecure` are domains that it does not validate."""

    def __init__(self, root: SignedRoot, folder: Path, *, insecure: Iterable[str] = ()) -> None:
        program = shutil.which("unbound", path="/usr/sbin") or UNPACKED / "sbin/unbound"
        if not Path(program).exists():
            raise NoUnboundError("unbound is not installed: tests/system-packages.sh")
        self._program, self._root, self._folder = Path(program), root, folder
        self._insecure = insecure

    def __enter__(self) -> Self:
        server = DnsServer(self._root.thread.records)  # a port that is free for both
        server.close()
        self.address: Address = server.address
        self._file = self._folder / "unbound.conf"
        self._file.write_text(self._configuration())
        with (self._folder / "unbound.log").open("w") as log:
            self._process = subprocess.Popen(
                [self._program, "-d", "-c", self._file],
                env=os.environ | unpacked_libraries(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until("unbound answers", self._is_ready)
        return self

    def __exit__(self, *why: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def flush(self) -> None:
        """Sign again, and forget all answers."""
        self._root.sign()
        self._control("flush_zone", ".")

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "unbound.log").read_text()
        return self._control("status")

    def _control(self, *words: str) -> bool:
        done = subprocess.run(
            [self._program.with_name("unbound-control"), "-c", self._file, *words],
            env=os.environ | unpacked_libraries(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
        return done.returncode == 0

    def _configuration(self) -> str:
        stub = self._root.thread.address
        lines = [
            "server:",
            f"interface: 127.0.0.1@{self.address.port}",
            "do-ip6: no",
            "do-not-query-localhost: no",
            'chroot: ""',
            'username: ""',
            "use-syslog: no",
            f'directory: "{self._folder}"',
            f'pidfile: "{self._folder}/unbound.pid"',
            f'trust-anchor: "{self._root.anchor}"',
            'module-config: "validator iterator"',
            "qname-minimisation: no",
            "aggressive-nsec: no",
            'local-zone: "test." nodefault',
            *(f'domain-insecure: "{one}"' for one in self._insecure),
            "remote-control:",
            "control-enable: yes",
            "control-use-cert: no",
            f'control-interface: "{self._folder}/control.sock"',
            "stub-zone:",
            'name: "."',
            f"stub-addr: {stub.host}@{stub.port}",
        ]
        return "\n".join([*lines, ""])
