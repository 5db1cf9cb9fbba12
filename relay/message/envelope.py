"""The envelope: who a message is from and for, with the ESMTP parameters that travel with it.

On the path: ingress makes it from MAIL and RCPT, the spool keeps it, delivery speaks it again.
Holds: addresses are without angle brackets; "" is the null reverse-path; domains are lower case.
Fails: never; the parsers that make these values raise.
Standards: RFC 5321 2.3.1, RFC 3461 4 (NOTIFY, ORCPT, RET, ENVID).
"""

from dataclasses import dataclass
from enum import StrEnum


class Notify(StrEnum):
    """A NOTIFY keyword (RFC 3461 4.1)."""

    NEVER = "NEVER"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


@dataclass(frozen=True, slots=True)
class ForwardPath:
    """One RCPT TO: the address, and its DSN parameters as given.

    `notify` is empty when the client said nothing (then FAILURE is meant, RFC 3461 4.1).
    `orcpt` is decoded, with its address type: "rfc822;Bob@example.net", or "".
    """

    address: str
    notify: frozenset[Notify] = frozenset()
    orcpt: str = ""


@dataclass(frozen=True, slots=True)
class Envelope:
    """MAIL FROM with its parameters, and the forward-paths in the order they were given.

    `ret` is "FULL", "HDRS" or ""; `envid` is decoded; `eight_bit` is BODY=8BITMIME.
    """

    reverse_path: str
    forward_paths: tuple[ForwardPath, ...]
    ret: str = ""
    envid: str = ""
    smtputf8: bool = False
    eight_bit: bool = False


@dataclass(frozen=True, slots=True)
class Client:
    """The program that submitted a message by HTTP or SMTP.

    `address` is its IP address, "" on a Unix socket; `helo` the argument of EHLO, "" over HTTP;
    `account` the account that it authenticated as; `tls` the protocol version, such as "TLSv1.3".
    """

    address: str = ""
    helo: str = ""
    account: str = ""
    tls: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the `client` of a journey."""
        return {
            "address": self.address,
            "helo": self.helo,
            "account": self.account,
            "tls": self.tls,
        }


def wants_failure_report(notify: frozenset[Notify]) -> bool:
    """Whether NOTIFY asks for a report when delivery fails: absent,
    or with FAILURE (RFC 3461 4.1).
    """
    return not notify or Notify.FAILURE in notify


def domain_of(address: str) -> str:
    """Return the part behind the last @ in lower case; "" when there is none (the null path,
    bare Postmaster).
    """
    return address.rpartition("@")[2].lower() if "@" in address else ""
