"""The options of a development relay, where it listens, and the configuration that it writes.

Other commands find the relay by this configuration. The development relay itself loads it too.

A ReleaseTarget is the host to which captured mail may be sent that a person releases; the release
itself is release_message() of relay/front_door/api/handlers.py. The delivery code treats it as the
next hop of a route: a login is sent only with TLS and a verified certificate, unless the host is on
loopback.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeGuard, get_args
from urllib.parse import unquote, urlsplit

import click
import tomlkit
from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.nexthop import HopKind, NextHop
from relay.base.phrases import words_in
from relay.base.settings.environment import shipped
from relay.base.settings.tree import MilterRole, Route, RouteAuth
from relay.base.settings.values import is_ip, parse_address, parse_domain, parse_webhook_url
from relay.base.socket_address import Address
from relay.base.sockets import has_ipv6, reserve_port
from relay.development.accounts import DOMAIN, NAMES
from relay.development.internet.simulator import SimulatedInternet
from relay.development.option_fields import MAIL, PORTS, Separated, flag, items, listener, option
from relay.development.removal import KeepLimits
from relay.front_door.notifications.https_client import LOOPBACK, PRIVATE
from relay.operation.app.development_folder import ACCOUNTS, DevelopmentFolder, OwnEntry
from relay.operation.cli.option_types import Parsed
from relay.transport.policy.globs import Globs

ANY = "0.0.0.0"  # noqa: S104 - only with listen_all
# The hosts of programs that are not set up for Relay: CONNECT to them ends at the relay.
PROXY_HOSTS = words_in(
    "login.microsoftonline.com login.windows.net login.microsoft.com graph.microsoft.com "
    "outlook.office.com outlook.office365.com"
)
# known to everybody: a receiver can try its verification
WEBHOOK_KEY = "whsec_cmVsYXktZGV2ZWxvcG1lbnQtc2VjcmV0"
CA_OF_INTERNET = f"{OwnEntry.TLS}/internet-ca.pem"  # the authority of the simulated hosts
EXPECTED = "smtp://HOST:PORT or smtps://HOST:PORT, with USER:PASSWORD@ before HOST for a login"
_PORTS = {HopKind.SMTP: 25, HopKind.SMTPS: 465}
_NO_DOMAIN = ""  # of no recipient: the route is there for its TLS policy and its login

_TLS = {"certificate": f"{OwnEntry.TLS}/relay.pem", "key": f"{OwnEntry.TLS}/relay.key"}
# mail arrives, and its page says that the milter is down
_UNFILTERED = {"when_down": "accept"}
_NAME_CHARACTERS_MAX = 63
_KEEP_S_MIN = 0.001  # of the configuration
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\]").fullmatch
# The listeners of SMTP, by the names of their options, and the roles of the configuration.
SMTP_ROLES = {"smtp": "relay", "submission": "submission", "submissions": "submissions"}


@dataclass(frozen=True, slots=True)
class ReleaseTarget:
    """A next hop, and the login for it, "" without one."""

    next_hop: NextHop
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URL. Raises ValueError with what was expected."""
        try:
            url = urlsplit(text)
            kind = HopKind(url.scheme)
            port = _PORTS[kind] if url.port is None else url.port
            host = url.hostname or ""
            hop = NextHop(kind, host if is_ip(host) else parse_domain(host), port)
        except (ValueError, KeyError):
            raise ValueError(EXPECTED) from None
        user, password = unquote(url.username or ""), unquote(url.password or "")
        has_more = url.path.strip("/") or url.query or url.fragment
        is_line = (user + password).isprintable()
        if not port or has_more or bool(user) != bool(password) or not is_line:
            raise ValueError(EXPECTED)
        return cls(hop, user, password)

    def route(self, folder: Path) -> Route:
        """Return a route that no recipient matches. Writes the password into `folder`."""
        auth = None
        if self.user:
            file = folder / OwnEntry.RELEASE_LOGIN
            file.touch(mode=0o600)
            file.write_text(f"{self.password}\n", encoding="utf-8")
            auth = RouteAuth(self.user, file)
        return Route(domain=_NO_DOMAIN, next_hop=str(self.next_hop), auth=auth)


def _host_name(text: str) -> str:
    if not _HOST_NAME(text):
        raise ValueError("a host name without a port")
    return text.lower().removesuffix(".")


def _proxy_host(text: str) -> str:
    name = _host_name(text)
    if is_ip(name.strip("[]")):
        raise ValueError("a host name without a port")
    return name


def _token(text: str) -> str:
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("printable ASCII characters without spaces")
    return text


def _address_glob(text: str) -> str:
    if "@" not in text.strip("@") and text != "*":
        raise ValueError("a pattern of addresses such as *@example.org")
    Globs.of([text])
    return text


def _milter_address(text: str) -> str:
    address = parse_address(text, Path.cwd())
    if not (address.path or address.port):
        raise ValueError("HOST:PORT or unix:PATH")
    return str(address)


@dataclass(frozen=True, kw_only=True)
class DevelopmentOptions:
    """The options of a development relay, and what the test kit sets."""

    http: Address = listener(
        "http", "Where the Graph API listens; port 0 takes a free one.", "--port"
    )
    https: Address | None = listener("https", "The same with TLS, by Relay's own development CA.")
    smtp: Address = listener("smtp", "Where SMTP listens, without TLS; port 0 takes a free one.")
    submission: Address | None = listener("submission", "The same with STARTTLS.")
    submissions: Address | None = listener("submissions", "The same with TLS from the start.")
    imap: Address | None = listener(
        "imap",
        "Where mail programs log in by IMAP, if Debian's package dovecot-imapd is there, whose "
        "server for the whole network Relay does not need: systemctl disable --now "
        "dovecot.socket dovecot.service. TLS is on 1993, or with a named port on a free one.",
    )
    pop3: Address | None = listener("pop3", "The same by POP3 (1995), with dovecot-pop3d.")
    imaps: Address | None = None  # with TLS from the first octet
    pop3s: Address | None = None  # the same
    hosts: tuple[str, ...] = items(
        "--host",
        "NAME",
        _host_name,
        text="Answer HTTP requests for this host too, besides localhost, and have it in the "
        "certificate; repeatable.",
    )
    proxy_hosts: tuple[str, ...] = items(
        "--proxy-host",
        "NAME",
        _proxy_host,
        text="Be a proxy for port 443 of this host too, besides the hosts of Microsoft's sign-in, "
        "Graph and Outlook; repeatable. The requests end here.",
    )
    domains: tuple[str, ...] = items(
        "--domain",
        "DOMAIN",
        parse_domain,
        text="A local domain, whose mail goes into mailboxes; repeatable. alice and bob are in the "
        "first.",
        default=(DOMAIN,),
    )
    rules: Path | None = option(
        "The directory of the mail-flow rules; changes are loaded while it runs. "
        "[default: the rules that Relay ships]",
        type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    )
    scenarios: tuple[str, ...] = option(
        "What remote domains reply: gmail, outlook, tls, yahoo, or FILE.toml; repeatable. "
        "NAME:REPLY gives one of its replies to every recipient.",
        "--scenario",
        default=(),
        multiple=True,
        type=Separated("NAME|FILE", str),
    )
    strict_users: bool = flag(
        "Make no account by mail or a login by SMTP: local mail is rejected, and so is a "
        "login, except for alice, bob and those who used a token."
    )
    strict_senders: bool = flag(
        "A login by SMTP needs its password, and sends from the addresses of its account "
        "only. [default: any login may send from any address]"
    )
    listen_all: bool = flag(
        "Listen on all addresses of the machine, by IMAP and POP3 only with TLS; of --http, "
        "--https, --smtp, --submission and --submissions only the port counts. Needs --token."
    )
    token: str = option(
        "The only token that HTTP requests are accepted with, and the password of all users "
        "under TLS.",
        default="",
        type=Parsed("TOKEN", _token, is_secret=True),
    )
    private: bool = flag(
        "Relay's own API needs a token, and shows an account its own messages. [default: on "
        "loopback it needs none and shows all, as the pages do]"
    )
    like_graph: bool = flag(
        "Refuse what Graph refuses and Relay takes otherwise: the profile strict."
    )
    cloud: bool = flag(
        "Run a second relay that plays Microsoft 365, at the port after that of --http: mail from "
        "the local domains that would be captured goes there by Graph, with tokens."
    )
    release_to: ReleaseTarget | None = option(
        "The one host beyond loopback: captured mail goes to smtp://HOST:PORT or "
        "smtps://HOST:PORT when you release it.",
        type=Parsed("URL", ReleaseTarget.parse, is_secret=True),
    )
    release_allow: tuple[str, ...] = items(
        "--release-allow",
        "GLOB",
        _address_glob,
        text="A release sends captured mail to its own recipients only if they match, such as "
        "*@example.org; repeatable. [default: only a copy to addresses that you type]",
    )
    release_auto: bool = flag(
        "Release mail to recipients whom --release-allow matches as soon as it is captured."
    )
    webhooks: tuple[str, ...] = items(
        "--webhook",
        "URL",
        parse_webhook_url,
        text="Post each step of each message to this URL; repeatable. The requests are signed "
        f"with {WEBHOOK_KEY}",
    )
    milters: tuple[str, ...] = items(
        "--milter",
        "ADDRESS",
        _milter_address,
        text="Ask the milter at HOST:PORT or unix:PATH about all mail; repeatable, in this order. "
        "While it is down, mail is accepted unfiltered.",
    )
    # the oldest mail above these limits is removed
    keep: KeepLimits = field(default_factory=KeepLimits)
    # of the certificate authority; None, or not writable: one for this relay alone
    ca_dir: Path | None = None
    # keys of relay.toml with other values
    overrides: Mapping[str, Any] = field(default_factory=dict)
    converts_in_threads: bool = False  # see RelayDependencies
    indexes_ahead: bool = True  # texts are in the search index before something asks for them
    crash_at: str = ""  # for crash tests

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can reach it."""
        return self.listen_all or not all(
            address.is_loopback for address in self.listeners.values()
        )

    @property
    def asks_for_token(self) -> bool:
        """Whether Relay's own API, and Mailpit's, need a token."""
        return self.private or bool(self.token)

    @property
    def proxy_names(self) -> tuple[str, ...]:
        """The hosts that it stands for as a proxy; none if other machines can reach it."""
        return () if self.is_exposed else (*PROXY_HOSTS, *self.proxy_hosts)

    @property
    def listeners(self) -> dict[str, Address]:
        """Where it listens, by the name of the option."""
        return {name: at for name in PORTS | MAIL if (at := getattr(self, name)) is not None}

    def everywhere(self, address: Address) -> tuple[Address, ...]:
        """Return where to listen for `address`."""
        if not self.listen_all or address.is_loopback:
            return (address,)
        hosts = (ANY, "::") if has_ipv6() else (ANY,)
        return tuple(dataclasses.replace(address, host=host) for host in hosts)

    def with_ports(self) -> Self:
        """Return options that have the same port on all addresses of the machine."""
        if not self.listen_all:
            return self
        wide = {n: at for n, at in self.listeners.items() if n in PORTS or not at.is_loopback}
        with ExitStack() as held:
            free = [held.enter_context(reserve_port(ANY)).getsockname()[1] for _ in wide]
        ports = zip(wide.items(), free, strict=True)
        with_port: dict[str, Any] = {
            name: Address(ANY, at.port or port) for (name, at), port in ports
        }
        return dataclasses.replace(self, **with_port)


class DevelopmentAddresses(Struct, frozen=True):
    """Where a development relay listens, and the files of its certificate authorities."""

    http: Address  # of the Graph API and the pages
    https: Address | None  # None: left out, as of the others with TLS
    smtp: Address  # without TLS
    ca: Path  # for HTTPS and SMTP
    bundle: Path  # this authority and that of the proxy
    submission: Address | None = None  # SMTP with STARTTLS
    submissions: Address | None = None  # SMTP with TLS from the first octet
    imap: Address | None = None  # without TLS
    imaps: Address | None = None  # with TLS from the first octet
    pop3: Address | None = None  # without TLS
    pop3s: Address | None = None  # with TLS from the first octet
    cloud: str = ""  # the URL of the pages of its cloud, "" without one

    def for_this_machine(self) -> Self:
        """Return the addresses that clients on this machine connect to."""
        here: dict[str, Any] = {
            name: (at := getattr(self, name)) and _connectable(at) for name in PORTS | MAIL
        }
        return replace(self, **here)

    @property
    def mailboxes(self) -> tuple[str, ...]:
        """The URLs where mail programs log in."""
        places = {name: getattr(self, name) for name in MAIL}
        return tuple([f"{name}://{at}" for name, at in places.items() if at is not None])

    @property
    def pages(self) -> str:
        """The URL of the pages, for a browser on this machine."""
        return f"http://{_connectable(self.http)}/"


def _connectable(address: Address) -> Address:
    host = {ANY: "127.0.0.1", "::": "::1"}.get(address.host)
    return dataclasses.replace(address, host=host) if host else address


def write_config(
    folder: DevelopmentFolder, options: DevelopmentOptions, internet: SimulatedInternet
) -> None:
    """Write the configuration for these options. Raises ValueError for what TOML does not have."""
    domain = options.domains[0]
    accounts = [
        {"address": f"{name}@{domain}", "token": f"plain:{name}", "password": f"plain:{name}"}
        for name in NAMES
    ]
    text = ": the accounts that always exist; others are created when they log in.\n"
    folder.write(ACCOUNTS, text + tomlkit.dumps({"account": accounts}))
    authority = internet.certificates.authority
    folder.write(CA_OF_INTERNET, f": the authority of the simulated hosts.\n{authority}")
    config = overridden(_config(options, internet), options.overrides)
    text = ": its configuration, which the other commands find.\n"
    folder.write("relay.toml", text + tomlkit.dumps(config))


def _config(options: DevelopmentOptions, internet: SimulatedInternet) -> dict[str, Any]:
    """Return the keys of relay.toml."""
    http = [f"http://{address}" for address in options.everywhere(options.http)]
    https = [str(address) for address in options.everywhere(options.https)] if options.https else []
    return {
        "hostname": f"relay.{options.domains[0]}",
        "state_dir": OwnEntry.STATE.value,
        "http": {
            "listen": [*http, *https],
            "tls": _TLS,
            "profile": "strict" if options.like_graph else "relaxed",
            "notification_networks": LOOPBACK + PRIVATE if options.listen_all else LOOPBACK,
        },
        "smtp": list(_listeners(options)),
        "mailboxes": {
            "domains": list(options.domains),
            "root": OwnEntry.MAIL.value,
            "accounts": ACCOUNTS,
        },
        "dns": {"nameservers": [str(internet.nameserver)], "validating": True},
        "delivery": {
            "port": internet.port,
            "mta_sts_port": internet.policies.port,
            "mta_sts_ca": CA_OF_INTERNET,
            "mta_sts_allow": LOOPBACK,
            "retry": ["5s", "15s", "1m", "5m", "15m", "30m", "1h"],
            "command_timeout": "30s",
            "shutdown_grace": "2s",
        },
        "route": [{"domain": "*", "next_hop": "capture"}],
        "spool": {"keep": f"{max(options.keep.age_s, _KEEP_S_MIN)}s"},
        "webhook": [
            {"url": url, "events": ["*"], "secret": WEBHOOK_KEY} for url in options.webhooks
        ],
        "milter": [
            {
                "name": _name_of(address),
                "address": address,
                "role": get_args(MilterRole),
                **_UNFILTERED,
            }
            for address in options.milters
        ],
        "policy": {"directory": str(options.rules or shipped("policies"))},
    }


def _name_of(milter: str) -> str:
    """Return a name for the milter at an address, such as 127.0.0.1-11332."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", milter)[-_NAME_CHARACTERS_MAX:].strip("-.")


def _listeners(options: DevelopmentOptions) -> Iterator[dict[str, Any]]:
    """Yield the tables of SMTP, that of the listener without TLS first."""
    listeners = options.listeners
    for name, role in SMTP_ROLES.items():
        tls = {} if name == "smtp" else {"tls": _TLS}
        for address in options.everywhere(listeners[name]) if name in listeners else ():
            trusted = ["127.0.0.0/8", "::1/128"]
            yield {
                "listen": str(address),
                "role": role,
                "trusted_networks": trusted,
                "auth": True,
                "bare_newline": "normalize",
                **tls,
            }


def overridden(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of TOML with other values of some keys.

    A table is overridden key by key, an array of tables entry by entry; further entries are added.
    Routes are put before those that are there, because the first match wins.
    """
    changed = dict(table)
    for key, value in overrides.items():
        there = changed.get(key)
        if isinstance(value, Mapping):
            changed[key] = overridden(there if isinstance(there, Mapping) else {}, value)
        elif _is_tables(there) and _is_tables(value):
            if key == "route":
                changed[key] = [*value, *there]
            else:
                entries = zip(there, value, strict=False)
                common = [overridden(entry, other) for entry, other in entries]
                longer = there if len(there) > len(value) else value
                changed[key] = [*common, *longer[len(common) :]]
        else:
            changed[key] = value
    return changed


def _is_tables(value: object) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return isinstance(value, list | tuple) and all(isinstance(member, Mapping) for member in value)
