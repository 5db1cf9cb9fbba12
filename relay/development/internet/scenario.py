"""The values of a scenario: remote domains and their hosts, what they reply, faults of the API.

The names of the fields are the keys of the file (`scenario_file`). Nothing here changes; what has
been counted is in ScenarioState. Globs have "*", "?" and "[...]", and ignore case.
RFC 5321 4.2.1 and 4.5.3.1.5 (replies), 5.1 (hosts of a domain), RFC 7505 (null MX).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from relay.base.message.address import lower_case, with_a_labels
from relay.base.settings.tree import Between, Domain, Duration, Rate

Verb = Literal[
    "CONNECT",
    "BANNER",
    "EHLO",
    "STARTTLS",
    "AUTH",
    "MAIL",
    "RCPT",
    "DATA",
    "DOT",
    "QUIT",
    "DNS",
]
HostTls = Literal["offered", "required", "none", "bad-certificate"]
HostCertificate = Literal["good", "expired", "other-name"]
StsMode = Literal["enforce", "testing", "none"]
Dane = Literal[True, False, "wrong", "servfail"]
Count = Annotated[int, Between(1, 1_000_000)]
Delay = Annotated[float, Duration()]

WITH_RECIPIENTS = frozenset({"RCPT", "DATA", "DOT"})  # the verbs at which recipients are known

_LINES_MAX = 20
_LINE_OCTETS_MAX = 500
_reply_line = re.compile(r"([2-5][0-5][0-9])[ -](.*)").fullmatch
_placeholder = re.compile(r"\{(recipient|sender|sender_domain|host)\}")


@dataclass(frozen=True, slots=True)
class MxHost:
    """In `mx`: a mail host of a domain. Its `latency` is added to that of the domain."""

    host: Domain
    preference: Annotated[int, Between(0, 65_535)] = 10  # default 10
    addresses: Literal["loopback", "none"] = "loopback"
    latency: Delay = 0.0


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """`[[domain.reply]]`: what a host does at a verb, for some recipients, hosts or senders."""

    # `CONNECT`, `BANNER`, `EHLO`, `STARTTLS`, `AUTH`, `MAIL`, `RCPT`, `DATA`, `DOT` (the end of the
    # content), `QUIT`, or `DNS` (queries for the domain; with `host`, for that host); required
    verb: Verb
    name: str = ""  # of the reply, to refer to it
    recipient: str = ""  # a glob on the local part, with `RCPT`, `DATA` and `DOT`
    sender: str = ""  # a glob on the reverse-path, with these and `MAIL`
    host: str = ""  # a glob on the name of the host
    # in triple quotes for several lines. 2yz exempts from the replies below. `{recipient}`,
    # `{sender}`, `{sender_domain}`, `{host}` are replaced
    reply: str = ""
    # in place of a reply: `drop`, `stall` (never replies), `bad-certificate` (with `STARTTLS`),
    # `servfail`, `nxdomain` (with `DNS`)
    action: Literal["", "drop", "stall", "servfail", "nxdomain", "bad-certificate"] = ""
    delay: Delay = 0.0  # before the reply, or without one before the usual reply
    times: Count | None = None  # the number of its uses; then the next match is used
    chance: Annotated[int, Between(1, 100)] = 100  # in percent, from the seed
    source: str = ""  # where the reply was published
    date: str = ""  # when it was read there

    def fits(self, *, recipient: str, sender: str, host: str) -> bool:
        """Return whether the globs match; `recipient` and `sender` are addresses."""
        return (
            matches(self.recipient, recipient.rpartition("@")[0])
            and matches(with_a_labels(self.sender), sender or "<>")
            and matches(self.host, host)
        )


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`[[domain.limit]]`: more per time gets the reply, until enough time has passed.

    Connections are counted at the banner, messages at MAIL, recipients at RCPT. One of the three is
    given, such as "10/1m".
    """

    reply: str
    connections: Rate = ""
    messages: Rate = ""
    recipients: Rate = ""

    @property
    def verb(self) -> str:
        """Where it is counted and where it replies."""
        return "BANNER" if self.connections else "MAIL" if self.messages else "RCPT"

    @property
    def rate(self) -> tuple[int, float]:
        """How many are allowed in how many seconds."""
        count, _, seconds = (self.connections or self.messages or self.recipients).partition("/")
        return int(count), float(seconds)


@dataclass(frozen=True, slots=True)
class RemoteDomain:
    """`[[domain]]`: a remote domain."""

    name: Domain  # required
    aliases: tuple[Domain, ...] = ()  # domains with the same hosts and replies
    mx: tuple[MxHost, ...] | None = None  # default mx1.NAME; []: no MX records (RFC 5321 5.1)
    null_mx: bool = False  # it accepts no mail (RFC 7505)
    # `loopback` (default), or `none`: its hosts have no address
    addresses: Literal["loopback", "none"] = "loopback"
    tls: HostTls = "offered"  # `offered` (default), `required`, `none`, `bad-certificate`
    certificate: HostCertificate = "good"  # `good` (default), `expired`, `other-name`
    # the mode of its MTA-STS policy (RFC 8461): `enforce`, `testing`, `none`
    mta_sts: StsMode | None = None
    # its TLSA records (RFC 7672): true, "wrong" (of another key), "servfail" (the question fails)
    dane: Dane = False
    latency: Delay = 0.0  # added to each reply
    # how long a sender and recipient are refused after their first attempt
    greylist: Delay = 0.0
    reply: tuple[ScriptedReply, ...] = ()  # what its hosts do
    limit: tuple[RateLimit, ...] = ()  # on the rate of mail

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its aliases."""
        return self.name, *self.aliases

    @property
    def has_mx(self) -> bool:
        """Whether there are MX records other than a null MX."""
        return not self.null_mx and self.mx != ()

    @property
    def hosts(self) -> tuple[MxHost, ...]:
        """Its mail hosts, the best first; without MX records its names are hosts."""
        if self.null_mx:
            return ()
        if self.mx is None:
            return (MxHost(f"mx1.{self.name}", addresses=self.addresses),)
        implicit = tuple(MxHost(name, 0, self.addresses) for name in self.names)
        return tuple(sorted(self.mx, key=lambda host: host.preference)) or implicit


@dataclass(frozen=True, slots=True)
class GraphFault:
    """`[[graph]]`: a response of the Graph API to requests of some method, path and account."""

    # 401 or "expired-token", 403 (ErrorSendAsDenied), 404 (ErrorInvalidUser), 413, 429, 503:
    # nothing is done. 504: the request is carried out; required
    status: Literal[401, 403, 404, 413, 429, 503, 504, "expired-token"]
    path: str = "*"  # a glob on the path after `/v1.0` or `/beta`; a `$batch` is `/$batch`
    method: Literal["", "GET", "POST", "PUT", "PATCH", "DELETE"] = ""  # such as POST
    account: str = ""  # a glob on the address
    retry_after: Annotated[int, Between(0, 86_400)] = (
        10  # seconds of `Retry-After` (10); 0: no field
    )
    times: Count | None = None  # how many requests get it

    def fits(self, *, method: str, path: str, account: str) -> bool:
        """Return whether a request is concerned; `path` is without the version of the API."""
        return (
            self.method in ("", method)
            and matches(self.path, path)
            and matches(self.account, account)
        )


@dataclass(frozen=True, slots=True)
class Scenario:
    """A simulated internet. No two domains share a name; hosts may belong to several."""

    seed: Annotated[int, Between(0, 2**53)] = 0
    domain: tuple[RemoteDomain, ...] = ()
    graph: tuple[GraphFault, ...] = ()

    def domain_of(self, name: str) -> RemoteDomain | None:
        """Return the domain with this name or alias, in lower case."""
        return next((domain for domain in self.domain if name in domain.names), None)

    def domains_at(self, host: str) -> Iterator[RemoteDomain]:
        """Yield the domains that `host` receives mail for."""
        for domain in self.domain:
            if any(host == mx_host.host for mx_host in domain.hosts):
                yield domain

    def latency_of(self, host: str) -> float:
        """Return the seconds by which each reply of `host` is late."""
        latencies = [
            domain.latency + mx_host.latency
            for domain in self.domains_at(host)
            for mx_host in domain.hosts
            if mx_host.host == host
        ]
        return max(latencies, default=0.0)

    def domain_at(self, host: str) -> RemoteDomain:
        """Return the domain that says what `host` does about TLS: the first it has mail for."""
        return next(self.domains_at(host), RemoteDomain(host))


def matches(glob: str, text: str) -> bool:
    """Return whether `text` matches; every text matches an empty glob."""
    return not glob or fnmatchcase(lower_case(text), lower_case(glob))


def wire_reply(text: str) -> str:
    r"""Return a reply with its lines separated by "\n", each beginning with the code.

    The code may be left out of all lines but the first. Raises ValueError with what was expected.
    """
    lines = text.strip("\n").split("\n")
    first = _reply_line(lines[0])
    if not first:
        raise ValueError('a reply such as "550 5.1.1 no such user"')
    code = first[1]
    texts = [first[2]]
    for line in lines[1:]:
        match = _reply_line(line)
        if match and match[1] != code:
            raise ValueError(f"the code {code} on every line of the reply")
        texts.append(match[2] if match else line)
    if len(texts) > _LINES_MAX:
        raise ValueError(f"a reply of at most {_LINES_MAX} lines")
    for line in texts:
        if not (line.isascii() and line.isprintable()) or len(line) > _LINE_OCTETS_MAX:
            raise ValueError(f"lines of at most {_LINE_OCTETS_MAX} characters, printable ASCII")
    *others, last = texts
    return "\n".join([*(f"{code}-{line}" for line in others), f"{code} {last}"])


def filled(reply: str, *, recipient: str, sender: str, host: str) -> str:
    """Return a reply with its {recipient}, {sender}, {sender_domain} and {host} replaced."""
    values = {
        "recipient": recipient,
        "sender": sender or "<>",
        "sender_domain": sender.rpartition("@")[2],
        "host": host,
    }
    return _placeholder.sub(lambda match: values[match[1]], reply)
