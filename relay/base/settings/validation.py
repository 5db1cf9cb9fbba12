"""Validate values against each other, and the files that they name.

Faults of one key (unknown, wrong type, beyond a limit) are found by `reader` before. This runs
after everything was read, on the values that are valid alone, so its faults are reported together
with the reader's. It yields what was expected and where; what was found is shown as it is in the
file. See RFC 3207 and RFC 8314 on where TLS is required.
"""

import ipaddress
import re
import ssl
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from os import R_OK, access
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

from relay.base.certificates import CertificateError, load_pair, names_in
from relay.base.message.address import own_mailbox, untagged
from relay.base.message.nexthop import ROUTE_PREFIX
from relay.base.settings import tree
from relay.base.settings.document import KeyPath, dotted
from relay.base.settings.values import is_ip, parse_address, parse_mailbox
from relay.base.socket_address import BOTH_FAMILIES, Address

Found = Iterator[tuple[KeyPath, str]]
_SOCKET_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103  # sun_path
_HOSTS = ("smtp://", "smtps://", "lmtp://", "graph://")  # next hops with a host and a port
_FALLBACKS = _HOSTS[:-1]
_GRAPH = "graph://"
_A_HOST = "smtp://, smtps://, lmtp:// or graph:// next hop"
_NAME_LENGTH_MAX = 253  # RFC 1035 2.3.4, as text
_KEYS_MAX = 10  # of a domain: each adds a field of up to 1 KB, and the time for a signature
_LONGEST_SOCKET = "run/control.sock"
_NO_NEXT_HOPS = ("local", "reject:")  # rules have other actions for these
_TENANTS_MAX = 1000
_WEBHOOKS_MAX = 20
# limit: the milters of a relay
_MILTERS_MAX = 20
_OAUTH_MAX = 100
_TENANT = re.compile(r"[A-Za-z0-9.-]+")  # a part of a URL
# the actions that name addresses
ADDRESS_ACTIONS = ("cc", "bcc", "redirect", "journal", "notify", "quarantine", "set_sender")
_CHECKS = {"dkim": "dkimpy", "nacl": "pynacl", "spf": "pyspf"}  # of the extra [checks]
_OR_DOMAIN = "or of a [[domain]] with"


def check_together(
    read: Sequence[tuple[KeyPath, object]],
    top: Mapping[str, Any],
    *,
    value_in_file: Callable[[KeyPath], object],
) -> Found:
    """Yield the key path of every fault and what was expected; `read` is DocumentReader.read, `top`
    has the keys that are in no table, `value_in_file` returns that of a key, None if there is none.
    """
    yield from _duplicate_listeners(read)
    if top.get("smtp_gate") == "on" and (top.get("milter") or sys.platform != "linux"):
        yield ("smtp_gate",), '"auto" or "off": it needs Linux, and no [[milter]]'
    if (state_dir := top.get("state_dir")) is not None:
        yield from _socket_paths_too_long(state_dir)
    passed_on = {
        made.name
        for _, made in read
        if isinstance(made, tree.OwnDomain) and made.recipients != "accounts"
    }
    dns = next((made for _, made in read if isinstance(made, tree.DnsSettings)), tree.DnsSettings())
    clients = {made.name: made for _, made in read if isinstance(made, tree.OAuthClient)}
    for path, made in read:
        match made:
            case tree.SendmailSettings() if len(bytes(made.socket)) > _SOCKET_PATH_BYTES_MAX:
                yield (*path, "socket"), f"a path of at most {_SOCKET_PATH_BYTES_MAX} bytes"
            case tree.SmtpListener():
                yield from _listener(path, made)
            case tree.CertificateFiles():
                yield from _certificate(path, made)
            case tree.HttpSettings():
                yield from _anonymous(path, made)
            case tree.DnsSettings(protocols=()):
                yield (*path, "protocols"), "at least one of ipv4, ipv6"
            case tree.DeliverySettings(retry=()):
                yield (*path, "retry"), "a list of at least one duration"
            case tree.DeliverySettings(mta_sts_ca=Path() as file):
                yield from _authorities((*path, "mta_sts_ca"), file)
            case tree.PolicySettings(shipped=Path() as folder) if not isdir(folder):  # noqa: PTH112 - of any name
                yield (*path, "shipped"), "the path of an existing directory"
            case tree.ReportsSettings(templates=Path() as folder) if not isdir(folder):  # noqa: PTH112 - of any name
                yield (*path, "templates"), "the path of an existing directory"
            case tree.Route(sender="<>", next_hop="") if (
                value_in_file((*path, "next_hop")) is not None
            ):
                pass  # it is left out
            case tree.Route():
                yield from _ways_of(path, made, dns)
                yield from _credentials((*path, "auth"), made, clients)
                yield from _fallback_login((*path, "fallback_auth"), made, clients)
                yield from _graph(path, made)
                ways = (made, as_fallback(made))[: 1 + bool(made.fallback)]
                yield from dict.fromkeys(
                    fault for way in ways for fault in _route_tls(path, way, dns=dns)
                )
                yield from _limits(path, made)
                if made.next_hop == "local" and made.domain in passed_on:
                    yield (*path, "next_hop"), "another one: no account has an address there"
    yield from _domains(
        [
            (path, made)
            for path, made in read
            if isinstance(made, tree.MailboxSettings | tree.OwnDomain)
        ]
    )
    routes = [(path, made) for path, made in read if isinstance(made, tree.Route)]
    yield from _too_many_or_alike(routes, "name", most=len(routes))
    yield from _signing_keys(
        [(path, made) for path, made in read if isinstance(made, tree.DkimKey)]
    )
    yield from _tenants(read)
    yield from _webhooks([(path, made) for path, made in read if isinstance(made, tree.Webhook)])
    yield from _clients([(path, made) for path, made in read if isinstance(made, tree.OAuthClient)])
    yield from _milters([(path, made) for path, made in read if isinstance(made, tree.Milter)])


def is_trusted(listeners: Sequence[tree.SmtpListener], ip: str) -> bool:
    """Return whether one of these SMTP listeners trusts an IP address."""
    return any(listener.trusts(ip) for listener in listeners)


def _duplicate_listeners(read: Sequence[tuple[KeyPath, object]]) -> Found:
    places: list[tuple[KeyPath, Address]] = []
    for path, made in read:
        match made:
            case tree.SmtpListener():
                places.append(((*path, "listen"), made.listen))
            case tree.HttpSettings():
                places += [((*path, "listen"), address) for address in made.listen]
            case tree.ObserveSettings(metrics=Address() as address):
                places.append(((*path, "metrics"), address))
            case tree.SendmailSettings():
                places.append(((*path, "socket"), Address(path=str(made.socket))))
    for number, (path, address) in enumerate(places):
        if any(_overlap(address, earlier) for _, earlier in places[:number]):
            yield path, "an address that no other listener has"


def _overlap(first: Address, other: Address) -> bool:
    if first.systemd or other.systemd:
        return first.systemd == other.systemd
    if first.path or other.path:
        return first.path == other.path
    if first.port != other.port or not first.port:  # port 0 is a free port each time
        return False
    return first.host == other.host or _covers_host(first, other) or _covers_host(other, first)


def _covers_host(address: Address, other: Address) -> bool:
    wildcard = "::" if ":" in other.host else "0.0.0.0"  # noqa: S104 -- compared, not bound
    return address.host in (wildcard, BOTH_FAMILIES)


def _socket_paths_too_long(state_dir: Path) -> Found:
    longest = len(str(state_dir / _LONGEST_SOCKET).encode())
    if longest > _SOCKET_PATH_BYTES_MAX:
        spare = _SOCKET_PATH_BYTES_MAX - len(f"/{_LONGEST_SOCKET}")
        yield ("state_dir",), f"an absolute path of at most {spare} bytes: it contains sockets"


def _listener(path: KeyPath, listener: tree.SmtpListener) -> Found:
    if listener.sender_checks != "off":
        missing = [name for module, name in _CHECKS.items() if find_spec(module) is None]
        if missing:
            install = "in a checkout: pip install '.[checks]'; the Debian package has it"
            yield (*path, "sender_checks"), f"{' and '.join(missing)} with this value: {install}"
    if listener.proxy_networks and listener.listen.path:
        yield (*path, "proxy_networks"), "HOST:PORT in listen: a Unix socket has no proxies"
    if listener.auth is False and listener.role != "relay" and not listener.trusted_networks:
        yield (*path, "auth"), "true, or trusted_networks: nobody could send there"
    if listener.tls is not None:
        return
    if listener.role == "submissions":
        yield (*path, "role"), "tls with a certificate and a key"
    elif listener.role == "submission" and not listener.serves_this_machine:
        expected = "tls, or a loopback address"
        expected += " without proxy_networks: passwords are not accepted in the clear"
        yield (*path, "role"), expected


def _anonymous(path: KeyPath, http: tree.HttpSettings) -> Found:
    """Yield a fault if others than users of this machine could be anonymous, such as by a proxy."""
    if not http.anonymous:
        return
    if not all(address.is_loopback and not address.path for address in http.listen):
        yield (*path, "anonymous"), "only loopback addresses in http.listen with anonymous"
    elif http.proxy_networks or http.public_url:
        yield (*path, "anonymous"), "no proxy_networks and no public_url with anonymous"


def _certificate(path: KeyPath, tls: tree.CertificateFiles) -> Found:
    try:
        context = load_pair(tls.certificate, tls.key)
    except CertificateError as error:
        expected = f"a PEM certificate chain and its key, without a password ({error})"
        yield (*path, "certificate"), expected
        return
    is_further = isinstance(path[-1], int) and path[-1] > 0
    if is_further and not names_in(context, tls.certificate):
        expected = "one with a DNS name (subjectAltName): only the first serves clients without one"
        yield (*path, "certificate"), expected


def _unreadable(path: KeyPath, file: Path) -> Found:
    if not isfile(file):  # noqa: PTH113 - of any name
        yield path, "the path of an existing file"
    elif not access(file, R_OK, effective_ids=True):
        yield path, "a file that the service can read (chgrp relay; chmod 0640)"


def _domains(read: Sequence[tuple[KeyPath, tree.MailboxSettings | tree.OwnDomain]]) -> Found:
    """Yield the faults of all own domains: of [mailboxes], and of each [[domain]]."""
    domains = [(path, made) for path, made in read if isinstance(made, tree.OwnDomain)]
    short = {
        name for _, made in read if isinstance(made, tree.MailboxSettings) for name in made.domains
    }
    places: dict[str, str] = dict.fromkeys(short, "mailboxes.domains")
    for path, domain in domains:
        if place := places.get(domain.name):
            yield (*path, "name"), f"a name that is not in {place}"
        places.setdefault(domain.name, dotted(path))
    accounts = short | {domain.name for _, domain in domains if domain.has_accounts}
    aliases = {domain.name for _, domain in domains if domain.alias_of}
    for path, made in read:
        if made.postmaster.rpartition("@")[2] not in {"", *accounts}:
            expected = f"a mailbox in one of mailboxes.domains, {_OR_DOMAIN} accounts"
            yield (*path, "postmaster"), expected
        is_unused = isinstance(made, tree.MailboxSettings) and not made.domains
        if made.catch_all and (is_unused or made.catch_all.rpartition("@")[2] in aliases):
            yield (*path, "catch_all"), "a mailbox in one of mailboxes.domains, or elsewhere"
        if isinstance(made, tree.MailboxSettings):
            if made.srs_domain and made.srs_domain not in places:
                yield (*path, "srs_domain"), f"one of mailboxes.domains, {_OR_DOMAIN} this name"
        elif made.alias_of:
            if made.recipients != "accounts" or made.catch_all or made.postmaster:
                yield path, "no recipients, catch_all or postmaster with alias_of"
            if made.alias_of in aliases or made.alias_of not in places:
                yield (*path, "alias_of"), "another own domain, without alias_of"
        elif made.catch_all and not made.has_accounts:
            yield (*path, "catch_all"), 'catch_all only with recipients = "accounts"'


def _ways_of(path: KeyPath, route: tree.Route, dns: tree.DnsSettings) -> Found:
    """Yield the faults of a route's next hops: a missing value, a recipient of another domain, an
    address of a protocol that is not used.
    """
    hosts = {"next_hop": host_of(route), "fallback": host_of(as_fallback(route))}
    ips = {key: host.host for key, host in hosts.items() if host}
    for key, ip in (*ips.items(), ("source_address", route.source_address)):
        version = f"ipv{ipaddress.ip_address(ip).version}" if is_ip(ip) else ""
        if version and version not in (dns.protocols or version):
            yield (*path, key), f"an {' or '.join(dns.protocols)} address, as dns.protocols says"
    for name in ("domain", "next_hop"):
        if not getattr(route, name):
            yield (*path, name), "a value: this key is required"
    if "*" in route.recipient:
        yield (*path, "recipient"), "one address: domain takes all of a domain"
    elif route.recipient and route.domain != route.recipient.rpartition("@")[2]:
        yield (*path, "recipient"), f"an address at {route.domain}, the domain of the route"
    if route.fallback and not route.next_hop.startswith(("mx", *_HOSTS)):
        yield (*path, "fallback"), f"fallback only with an mx, {_A_HOST}"
    elif route.fallback and (
        not route.fallback.startswith(_FALLBACKS) or route.fallback == route.next_hop
    ):
        yield (*path, "fallback"), "another smtp://, smtps:// or lmtp:// next hop"


def as_fallback(route: tree.Route) -> tree.Route:
    """Return the route to the fallback. It has the same TLS, unless it has a login: then its own
    host decides. The login of the first host does not go there.
    """
    auth = route.fallback_auth
    tls = "verify" if verifies(route) and (route.ca or not auth) else route.tls
    other = replace(route, next_hop=route.fallback, fallback="", auth=auth, tls=tls)
    other = replace(other, fallback_auth=None, confirm=None, mime_max=None)
    return replace(other, convert="", upload_hosts=(), reports=False)


def _fallback_login(
    path: KeyPath, route: tree.Route, clients: Mapping[str, tree.OAuthClient]
) -> Found:
    """Yield the faults of the login for a fallback."""
    auth = route.fallback_auth
    if auth is None or not route.next_hop.startswith(_GRAPH):  # _graph() refuses the latter
        return
    if not route.fallback.startswith(_FALLBACKS):
        yield path, "fallback_auth only with a fallback, where it logs in"
        return
    yield from _credentials(path, as_fallback(route), clients)
    if auth.oauth in clients and clients[auth.oauth].scope:
        yield (
            (*path, "oauth"),
            "an [[oauth]] without scope: a token for SMTP has another than Graph",
        )
    if auth.oauth and tree.SENDER == auth.user != (route.auth and route.auth.user):
        yield (*path, "user"), f'"{tree.SENDER}" only where it is the user of auth too'


def _credentials(
    path: KeyPath, route: tree.Route, clients: Mapping[str, tree.OAuthClient]
) -> Found:
    """Yield the faults of a route's login, at `path`; `clients` are the [[oauth]] by name."""
    auth, is_graph = route.auth, route.next_hop.startswith(_GRAPH)
    if auth is None:
        if is_graph:
            yield path, "{ user, oauth }: Graph needs a token"
        return
    if not route.next_hop.startswith(_HOSTS):
        yield path, f"auth only with an {_A_HOST}"
    if bool(auth.oauth) == (auth.password_file is not None):
        yield path, "either password_file or oauth"
        return
    if auth.password_file is not None:
        if is_graph:
            yield (*path, "password_file"), "oauth: Graph takes no password"
        yield from _unreadable((*path, "password_file"), auth.password_file)
        return
    if auth.oauth not in clients:
        expected = f"the name of an [[oauth]]: {', '.join(clients) or 'there is none'}"
        yield (*path, "oauth"), expected
    elif is_graph and clients[auth.oauth].provider == "google":
        yield (*path, "oauth"), "an [[oauth]] that is not Google's: it has no graph://"
    if route.next_hop.startswith("lmtp://"):
        yield (*path, "oauth"), "a password: a token is for smtp://, smtps:// or graph://"
    if auth.user == tree.SENDER:
        if not route.sender or route.sender == "<>":
            yield (*path, "user"), f'"{tree.SENDER}" only on a route with sender'
    elif not _is_mailbox(auth.user):
        yield (*path, "user"), f'the address of a mailbox, or "{tree.SENDER}"'


def _is_mailbox(text: str) -> bool:
    try:
        return bool(parse_mailbox(text))
    except ValueError:
        return False


def _graph(path: KeyPath, route: tree.Route) -> Found:
    """Yield keys that a graph:// next hop does not have, and keys that only it has."""
    if route.next_hop.startswith(_GRAPH):
        for key in ("tls", "source_address"):
            if getattr(route, key):
                yield (*path, key), f"no {key}: graph:// is HTTPS, and HTTP at a loopback address"
        if route.sender == "<>":
            yield (*path, "sender"), "addresses, or no sender, with reports = true for reports"
        return
    if route.reports:
        yield (*path, "reports"), "reports only with a graph:// next hop"
    for key in ("confirm", "mime_max", "convert", "upload_hosts", "fallback_auth"):
        if getattr(route, key) not in (None, "", ()):
            yield (*path, key), f"{key} only with a graph:// next hop"


def _clients(clients: Sequence[tuple[KeyPath, tree.OAuthClient]]) -> Found:
    """Yield the keys that an [[oauth]] lacks, or must not have."""
    yield from _too_many_or_alike(clients, "name", most=_OAUTH_MAX)
    for path, client in clients:
        if client.provider and client.token_url:
            yield (*path, "token_url"), "no token_url with provider"
        elif not client.provider and not (client.token_url and client.scope):
            yield (*path, "provider"), '"microsoft" or "google", or token_url and scope'
        if (client.provider == "microsoft") != bool(_TENANT.fullmatch(client.tenant)):
            yield (*path, "tenant"), 'the tenant\'s domain or id with provider = "microsoft"'
        if not client.client_id and client.service_account is None:
            yield (*path, "client_id"), "the id of the application"
        names = ("certificate", "service_account", "assertion_file")
        files = [(key, file) for key in names if (file := getattr(client, key)) is not None]
        if len(files) + bool(client.client_secret and client.provider != "google") > 1:
            expected = "one of client_secret, certificate, service_account, assertion_file"
            yield path, expected
        for key, file in files:
            yield from _unreadable((*path, key), file)


def host_of(route: tree.Route) -> Address | None:
    """Return the host and port of an smtp://, smtps://, lmtp:// or graph:// next hop, None for any
    other.
    """
    _, _, place = route.next_hop.partition("://")
    return parse_address(place, Path()) if route.next_hop.startswith(_HOSTS) else None


def verifies(route: tree.Route) -> bool:
    """Return whether the certificate of the route's host is verified: the default with `auth`."""
    host = host_of(route)
    if route.tls is not None or route.auth is None or host is None:
        return route.tls == "verify"
    return not host.is_loopback or (route.next_hop.startswith(_GRAPH) and route.ca is not None)


def _route_tls(path: KeyPath, route: tree.Route, *, dns: tree.DnsSettings) -> Found:
    host = host_of(route)
    if route.tls is not None and host is None and route.next_hop != "mx":
        yield (*path, "tls"), "tls only with an mx, smtp://, smtps:// or lmtp:// next hop"
    elif route.tls == "dane" and not dns.validating:
        yield (*path, "tls"), "another level: dane needs validating = true in [dns]"
    elif route.tls == "dane" and host is not None and (is_ip(host.host) or "." not in host.host):
        yield (*path, "tls"), "another level: dane needs a host that the DNS has"
    elif route.tls == "none" and route.next_hop.startswith("smtps://"):
        yield (*path, "tls"), "required or verify: smtps:// is TLS from the first byte"
    elif route.tls == "none" and route.auth and host and not host.is_loopback:
        expected = "verify or required: a password is sent in the clear only to a loopback address"
        yield (*path, "tls"), f"{expected} or localhost"
    if route.requiretls and not (host and verifies(route)):
        expected = f'requiretls only with tls = "verify" and an {_A_HOST}'
        yield (*path, "requiretls"), expected
    if route.ca is None:
        return
    if not verifies(route):
        yield (*path, "ca"), 'tls = "verify" with ca'
    yield from _authorities((*path, "ca"), route.ca)


def _authorities(path: KeyPath, file: Path) -> Found:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except OSError:
        yield path, "a PEM file of CA certificates"


def _limits(path: KeyPath, route: tree.Route) -> Found:
    names = ["max_connections", "max_rate"]
    if route.next_hop.startswith(("mx", *_HOSTS)):
        return
    if route.next_hop.startswith("lmtp:unix:"):
        names = ["source_address"]
    for name in names:
        if getattr(route, name):
            yield (*path, name), f"{name} only with an mx, {_A_HOST}"


def _tenants(read: Sequence[tuple[KeyPath, object]]) -> Found:
    """Yield the faults of tenants: a name or a domain that another tenant has, a domain that is not
    an own domain with mail, an unknown word in `may`.
    """
    own = {
        name for _, made in read if isinstance(made, tree.MailboxSettings) for name in made.domains
    }
    own |= {made.name for _, made in read if isinstance(made, tree.OwnDomain) and not made.alias_of}
    hops = next_hops_by_name(made for _, made in read if isinstance(made, tree.Route))
    words = (*ADDRESS_ACTIONS, *(f"{ROUTE_PREFIX}{name}" for name in usable_routes(hops)))
    taken: dict[str, str] = {}
    tenants = [(path, made) for path, made in read if isinstance(made, tree.Tenant)]
    yield from _too_many_or_alike(tenants, "name", most=_TENANTS_MAX)
    for path, tenant in tenants:
        if not tenant.domains:
            yield (*path, "domains"), f"at least one own domain of the tenant {tenant.name}"
        for number, domain in enumerate(tenant.domains):
            place = taken.setdefault(domain, dotted(path))
            if domain not in own:
                expected = f"one of mailboxes.domains, {_OR_DOMAIN} this name and no alias_of"
                yield (*path, "domains", number), expected
            elif place != dotted(path):
                yield (*path, "domains", number), f"a domain that {place} does not have"
        for number, word in enumerate(tenant.may):
            if word not in words:
                yield (*path, "may", number), f"one of {', '.join(words)}"


def _too_many_or_alike(tables: Sequence[tuple[KeyPath, Any]], key: str, *, most: int) -> Found:
    """Yield the array of tables if it has more than `most`, and each `key` of an earlier table."""
    places: dict[str, KeyPath] = {}
    for path, _ in tables[most : most + 1]:
        yield path[:1], f"at most {most} {path[0]}s"
    for path, table in tables:
        text = name_of(table) if isinstance(table, tree.Route) else getattr(table, key)
        if (other := places.setdefault(text, path)) != path:
            what = f"a {key}" if key != "url" else "a URL"
            yield (*path, key), f"{what} of its own: {dotted(other)} has it too"


def _webhooks(webhooks: Sequence[tuple[KeyPath, tree.Webhook]]) -> Found:
    """Yield the webhooks that are sent nothing, or have the URL of an earlier one."""
    yield from _too_many_or_alike(webhooks, "url", most=_WEBHOOKS_MAX)
    for path, hook in webhooks:
        if not hook.events:
            yield (*path, "events"), 'at least one event, or "*" for all'
        if not hook.accounts:
            yield (*path, "accounts"), 'at least one glob, such as "*"'


def _milters(milters: Sequence[tuple[KeyPath, tree.Milter]]) -> Found:
    """Yield the milters that see no mail, cannot be reached, or have the name of an earlier one."""
    yield from _too_many_or_alike(milters, "name", most=_MILTERS_MAX)
    for path, milter in milters:
        if not milter.role:
            yield (*path, "role"), "at least one of relay, submission, submissions, local"
        if not milter.address.path and not milter.address.port:
            yield (*path, "address"), "a port of 1 to 65535"


def usable_routes(next_hops: Mapping[str, str]) -> list[str]:
    """Return the names of the routes by which rules can send mail; `next_hops` are by name."""
    return sorted(name for name, hop in next_hops.items() if not hop.startswith(_NO_NEXT_HOPS))


def _signing_keys(keys: Sequence[tuple[KeyPath, tree.DkimKey]]) -> Found:
    """Yield the faults of DKIM keys: a selector that an earlier key has, too many keys for a
    domain, a record with too long a name.
    """
    paths: dict[str, dict[str, KeyPath]] = {}
    for path, key in keys:
        earlier = paths.setdefault(key.domain, {})
        if len(f"{key.selector}._domainkey.{key.domain}") > _NAME_LENGTH_MAX:
            limit = f"at most {_NAME_LENGTH_MAX} characters of SELECTOR._domainkey.DOMAIN"
            yield (*path, "selector"), limit
        if key.selector in earlier:
            other = dotted(earlier[key.selector])
            yield (*path, "selector"), f"a selector of its own for {key.domain}: {other} has it too"
        elif len(earlier) == _KEYS_MAX:
            yield (*path, "domain"), f"at most {_KEYS_MAX} keys for {key.domain}: each signs"
        else:
            earlier[key.selector] = path


def name_of(route: tree.Route) -> str:
    """Return `name`; for a route without a name, a text of what mail it takes and its next hop."""
    words = (route.recipient or route.domain, route.sender, route.next_hop)
    return route.name or " ".join(filter(None, words))


def next_hops_by_name(routes: Iterable[tree.Route]) -> dict[str, str]:
    """Return the next hop of each route by its name, for rules that send mail by a route."""
    return {name_of(route): route.next_hop for route in routes if route.next_hop}


def senders_of(routes: Iterable[tree.Route]) -> set[str]:
    """Return the patterns of senders that routes name: each login that is an address, and each
    `sender` with a whole domain. sender_matches() compares them.
    """
    routes = [route for route in routes if route.next_hop]
    logins = [auth.user for route in routes for auth in (route.auth, route.fallback_auth) if auth]
    named = [route.sender for route in routes if not route.sender.startswith("*@*")]
    return {own_mailbox(pattern) for pattern in (*logins, *named) if "@" in pattern}


def hidden_routes(routes: Sequence[tree.Route], own: Collection[str]) -> Iterator[tuple[int, int]]:
    """Yield the number of each route that gets no mail, with the number of the earlier route that
    gets it. Mail that a route holds goes on to the routes that follow. "*" takes no mail of the
    `own` domains. A "reject:" of the null sender may be there for when the other is left out.
    """
    for number, route in enumerate(routes):
        if route.sender == "<>" and route.next_hop.startswith("reject:"):
            continue
        for earlier, other in enumerate(routes[:number]):
            if other.next_hop == "hold" != route.next_hop:
                continue
            if "" in (other.next_hop, route.next_hop):  # it is left out
                continue
            if other.domain == "*" != route.domain and any(
                domain_matches(route.domain, domain) for domain in own
            ):
                continue
            takes_no_reports = other.next_hop.startswith(_GRAPH) and not other.sender
            if takes_no_reports and route.sender in ("", "<>"):
                continue
            covers = _covers_sender(other.sender, route.sender) and (
                not other.recipient or recipient_matches(other.recipient, route.recipient)
            )
            if covers and domain_matches(other.domain, route.domain):
                yield number, earlier
                break


def domain_matches(pattern: str, domain: str) -> bool:
    """Return whether a domain matches `pattern`; if `domain` is a pattern, whether all its domains
    do. Both are in lower case.
    """
    return pattern in ("*", domain) or (pattern.startswith("*.") and domain.endswith(pattern[1:]))


def recipient_matches(recipient: str, address: str) -> bool:
    """Return whether an address is `recipient`, with or without a tag. Postfix's transport(5) looks
    up user+extension@domain and user@domain in the same way.
    """
    mailbox = own_mailbox(address)
    return recipient in (mailbox, untagged(mailbox))


def sender_matches(pattern: str, reverse_path: str) -> bool:
    """Return whether a reverse-path matches a pattern, with or without its tag. The null
    reverse-path matches "<>" only.
    """
    if pattern == "<>" or not reverse_path:
        return pattern == "<>" and not reverse_path
    local_part, _, domain = own_mailbox(reverse_path).rpartition("@")
    expected, _, domains = pattern.rpartition("@")
    is_sender = expected in ("*", local_part, local_part.partition("+")[0])
    return is_sender and domain_matches(domains, domain)


def _covers_sender(pattern: str, other: str) -> bool:
    """Return whether each reverse-path that matches `other` matches `pattern` too."""
    if pattern in ("", other):
        return True
    _, _, domains = pattern.partition("*@")
    return bool(domains) and "@" in other and domain_matches(domains, other.rpartition("@")[2])
