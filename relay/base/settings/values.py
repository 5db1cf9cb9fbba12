"""Parse values written as text: durations, sizes, addresses, domains, next hops, references.

Each function returns the normalized value, or raises ValueError with a text that says only what
was expected, never what was found. ${env:NAME} and ${file:PATH} are replaced before a value is
parsed; the result is not expanded again. ${env:NAME} is the content of the file that NAME_FILE
names where NAME is unset, and ${env:NAME:-DEFAULT} is DEFAULT where neither is set. See RFC 1035
2.3.1 and RFC 5890 (domains), RFC 5321 4.1.2 (mailboxes), RFC 3986 3.2.2.
"""

import contextlib
import dataclasses
import ipaddress
import re
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from pathlib import Path
from urllib.parse import quote, urlsplit

from relay.base.message.address import AddressError, lower_case, to_ascii_domain, with_a_labels
from relay.base.message.nexthop import HTTPS_PORT
from relay.base.message.web_url import UrlError, read_url
from relay.base.settings.postgres_url import POSTGRES_EXPECTED, SCHEME, parse_postgres_url
from relay.base.socket_address import BOTH_FAMILIES, Address, inherited_address, is_loopback

_SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_YEAR_10000_S = 253_402_300_800
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([smhd])", re.ASCII)
# time.fromisoformat() of Python 3.14 reads 24:00 as 0:00 of the same day, a day too early.
_TIME = re.compile(
    r"(today|yesterday|[0-9]{4}-[0-9]{2}-[0-9]{2})?[T ]?((?!24)[0-9]{1,2}:[0-9:.]*+)? ?"
    r"(Z|UTC|[+-][0-9]{2}:?[0-9]{2})?",
    re.IGNORECASE,
)
_BYTES_PER_UNIT = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([kmgt]?i?b|)", re.IGNORECASE | re.ASCII)
_RATE = re.compile(r"(\d{1,7}) ?/ ?(.+)", re.ASCII)
_NODE_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9_])?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SOCKET_NAME = re.compile(r"[!-9;-~]{1,255}")  # sd_is_fdname
_DOMAIN_LENGTH_MAX = 253
_LOCAL_PART_BYTES_MAX = 64
_ATOM_SPECIALS = frozenset("!#$%&'*+-=?^_`{|}~")  # RFC 5322 atext less "/": mailboxes are folders
_UNIX_PATH_BYTES_MAX = 107  # sun_path
_REJECT_TEXT_LENGTH_MAX = 400  # a reply line has at most 512 octets (RFC 5321 4.5.3.1.5)
_ROUTE_NAME_LENGTH_MAX = 100
_NO_ROUTE_NAME = "rule"  # BY_RULE in relay/base/message/nexthop.py
_TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
GROUPS_DIRECTORY = "groups"  # of a directory of rules
_WIDEST_NETWORK_BITS = {4: 8, 6: 7}  # 10.0.0.0/8 and fc00::/7 are the widest private networks

FILE = "file:"  # begins `recipients` that are in a file
WRITTEN_DURATION_EXPECTED = 'a duration such as "8s", "5m", "4h", "2d"'
_TIME_EXPECTED = (
    f'{WRITTEN_DURATION_EXPECTED}, a time such as "14:03", "yesterday 14:03",'
    ' "2027-01-31 09:00:00Z", or a day such as "today", "2027-01-31"'
)
DURATION_EXPECTED = f"{WRITTEN_DURATION_EXPECTED}, or a number of seconds"
SIZE_EXPECTED = 'a size such as "150 MiB", "64 kB", or a number of bytes'
_RATE_EXPECTED = 'a number of messages and a duration of at most a day, such as "100/1m"'
ADDRESS_EXPECTED = '"HOST:PORT", "[IPV6]:PORT" or "unix:PATH"'
SRS_KEY_EXPECTED = "a secret of 16 to 1,024 characters"
_SRS_KEY_LENGTH = range(16, 1025)
_PLAIN_HTTP = "http://"
_RECIPIENTS = ("accounts", "any", "verify")
NEXT_HOP_EXPECTED = (
    "mx, local, hold, capture, smtp://HOST:PORT, smtps://HOST:PORT, lmtp://HOST:PORT,"
    " lmtp:unix:PATH, graph://HOST[:PORT] or reject:TEXT"
)
_HAS_PORT = re.compile(r":[0-9]+\Z")
KEY_PREFIX = "whsec_"  # of Standard Webhooks
_KEY_OCTETS = range(24, 65)
_GLOB_CHARACTERS_MAX = 320
_LMTP_SOCKET = "lmtp:unix:"
_SMTP_PORT = 25
_DNS_PORT = 53


def parse_duration(text: str) -> float:
    """Return the seconds of "8s", "1.5h", "2d"."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise ValueError(WRITTEN_DURATION_EXPECTED)
    return float(match[1]) * _SECONDS_PER_UNIT[match[2]]


def parse_time(text: str, now_us: int, *, is_ahead: bool = False, zone: tzinfo | None = UTC) -> int:
    """Return a time in microseconds: of "2h" (ago, or `is_ahead`), "14:03" (the last or, if
    `is_ahead`, the next), "yesterday 14:03", "2026-11-30 12:08:46.123Z"; of a day its begin.

    A text without a zone is in `zone`. None is that of this machine, for a time of day only.
    """
    text = " ".join(text.split())
    with contextlib.suppress(ValueError, OverflowError):
        if _DURATION.fullmatch(text):
            span_us = int(parse_duration(text) * 1e6)
            return now_us + span_us if is_ahead else now_us - span_us
        match = _TIME.fullmatch(text)
        day, clock, offset = match.groups("") if match else ("", "", "")
        if (day or clock) and (zone or offset or not day):
            offset = offset.upper().replace("UTC", "Z")
            of_day = time.fromisoformat((clock or "00:00").zfill(5) + offset)
            now = datetime.fromtimestamp(now_us / 1e6, of_day.tzinfo or zone)
            days = {"": now, "today": now, "yesterday": now - timedelta(days=1)}
            of_date = days.get(day.lower()) or date.fromisoformat(day)
            at = datetime.combine(of_date, of_day.replace(tzinfo=None), now.tzinfo)
            if not day:
                at += timedelta(days=at <= now if is_ahead else -(at > now))
            return round(at.timestamp() * 1e6)
    hint = "UTC without a zone" if zone else "a day with its zone"
    raise ValueError(f"{_TIME_EXPECTED} ({hint})")


def seconds_ahead(text: str, now_us: int, *, zone: tzinfo | None = UTC) -> float:
    """Return how far ahead the time of parse_time() is. Raises ValueError."""
    ahead_s = (parse_time(text, now_us, is_ahead=True, zone=zone) - now_us) / 1e6
    if ahead_s <= 0:
        raise ValueError("a time in the future")
    if now_us / 1e6 + ahead_s >= _YEAR_10000_S:
        raise ValueError("a time before the year 10000")
    return ahead_s


def parse_rate(text: str) -> str:
    """Return "100/1m" as COUNT/SECONDS: "100/60.0"."""
    match = _RATE.fullmatch(text.strip())
    with contextlib.suppress(ValueError):
        count, seconds = (int(match[1]), parse_duration(match[2])) if match else (0, 0.0)
        if count and 0 < seconds <= _SECONDS_PER_UNIT["d"]:
            return f"{count}/{seconds}"
    raise ValueError(_RATE_EXPECTED)


def parse_size(text: str) -> int:
    """Return the bytes of "150 MiB" (1024s), "64 kB" (1000s), "10 B", "10"."""
    match = _SIZE.fullmatch(text.strip())
    if not match or match[2].lower() not in _BYTES_PER_UNIT:
        raise ValueError(SIZE_EXPECTED)
    return int(float(match[1]) * _BYTES_PER_UNIT[match[2].lower()])


def parse_address(text: str, base: Path) -> Address:
    """Return an address to listen on or connect to; a socket's path is relative to `base`."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ValueError(ADDRESS_EXPECTED)
        place = str(base / path)
        if len(place.encode()) > _UNIX_PATH_BYTES_MAX:
            raise ValueError(f"a socket path of at most {_UNIX_PATH_BYTES_MAX} bytes")
        return Address(path=place)
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise ValueError(f"{ADDRESS_EXPECTED} with a port of 0 to 65535")
    if host.startswith("[") and host.endswith("]") and is_ip(host[1:-1]):
        return Address(str(ipaddress.ip_address(host[1:-1])), int(port))
    if is_ip(host) and ":" in host:
        raise ValueError("an IPv6 address in brackets, as [::1]:25")
    with contextlib.suppress(ValueError):
        return Address(host if is_ip(host) else parse_domain(host), int(port))
    raise ValueError(ADDRESS_EXPECTED)


def parse_listener(text: str, base: Path) -> Address:
    """Return an address to listen on; systemd:NAME has sockets of the service manager."""
    name = text.removeprefix("systemd:")
    if name == text:
        return parse_address(text, base)
    if not _SOCKET_NAME.fullmatch(name):
        raise ValueError('"systemd:NAME" with the FileDescriptorName= of a socket unit')
    return inherited_address(name)


def parse_metrics(text: str, base: Path) -> Address:
    """Return an address to listen on; *:PORT is all addresses of the families that are there."""
    host, _, port = text.rpartition(":")
    address = parse_address(f"0.0.0.0:{port}" if host == BOTH_FAMILIES else text, base)
    return dataclasses.replace(address, host=host) if host == BOTH_FAMILIES else address


def parse_http_listener(text: str, base: Path) -> Address:
    """Return an address to listen on; http://HOST:PORT is one without TLS."""
    if not text.startswith(_PLAIN_HTTP):
        return parse_listener(text, base)
    address = parse_address(text.removeprefix(_PLAIN_HTTP), base)
    if address.path:
        raise ValueError(f'"{_PLAIN_HTTP}HOST:PORT", or "unix:PATH"')
    return dataclasses.replace(address, plain=True)


def parse_recipients(text: str, base: Path) -> str:
    """Return which recipients an own domain has; a path is relative to `base`."""
    if text.startswith(FILE) and text != FILE:
        return f"{FILE}{base / text.removeprefix(FILE)}"
    if text not in _RECIPIENTS:
        raise ValueError(f'{", ".join(_RECIPIENTS)} or "{FILE}PATH"')
    return text


# what may contain a path
RELATIVE = (parse_listener, parse_http_listener, parse_metrics, parse_recipients)


def parse_name_server(text: str) -> Address:
    """Return the address of a name server."""
    with contextlib.suppress(ValueError):
        address = Address(parse_ip(text), _DNS_PORT) if is_ip(text) else parse_address(text, Path())
        if is_ip(address.host) and address.port:
            return address
    raise ValueError("the IP address of a name server, with its port unless that is 53")


def is_ip(text: str) -> bool:
    """Return whether `text` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def parse_domain(text: str) -> str:
    """Return a domain in lower case with A-labels."""
    try:
        domain = to_ascii_domain(text)
    except AddressError as error:
        raise ValueError(f'a domain such as "example.org": {error}') from None
    labels = domain.split(".")
    is_name = all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal()
    if not is_name or len(domain) > _DOMAIN_LENGTH_MAX:
        raise ValueError('a domain such as "example.org"')
    return domain


def parse_domain_pattern(text: str) -> str:
    """Return "*", "*.suffix" or a domain, in lower case with A-labels."""
    with contextlib.suppress(ValueError):
        if text == "*":
            return text
        return f"*.{parse_domain(text[2:])}" if text.startswith("*.") else parse_domain(text)
    raise ValueError('a domain, "*.suffix" or "*"')


def parse_mailbox(text: str) -> str:
    """Return local-part@domain in lower case with A-labels; the local part is a dot-atom without
    "/".
    """
    local_part, _, domain = text.rpartition("@")
    local_part = lower_case(local_part)
    is_fit = len(local_part.encode()) <= _LOCAL_PART_BYTES_MAX and all(
        atom and all(map(is_atom_character, atom)) for atom in local_part.split(".")
    )
    with contextlib.suppress(ValueError):
        if is_fit:
            return f"{local_part}@{parse_domain(domain)}"
    raise ValueError('an address such as "alice@example.org"')


def is_atom_character(character: str) -> bool:
    """Return whether a local part of a mailbox here may contain the character; dots are allowed
    too.
    """
    return character.isalnum() or character in _ATOM_SPECIALS


def parse_network(text: str) -> str:
    """Return ADDRESS/BITS; reject a network so wide that it would make an open relay."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        expected = 'a network such as "192.0.2.0/24" (with no bit set after the prefix)'
        raise ValueError(expected) from None
    widest = _WIDEST_NETWORK_BITS[network.version]
    if network.prefixlen < widest:
        raise ValueError(f"a network of your own, /{widest} or narrower: all its hosts are trusted")
    return str(network)


def parse_networks(text: str) -> list[str]:
    """Return the networks of one item in a list: a reference may have several, blanks between."""
    networks = [parse_network(word) for word in text.replace(",", " ").split() or [""]]
    if "," in text:
        raise ValueError(f'blanks between networks, no comma: "{" ".join(networks)}"')
    return networks


def parse_network_or_domain(text: str) -> str:
    """Return a network as ADDRESS/BITS, of any width, or a domain."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_network(text))
    with contextlib.suppress(ValueError):
        return parse_domain(text)
    raise ValueError('a network such as "192.0.2.0/24", or a domain such as "example.org"')


def parse_next_hop(text: str) -> str:
    """Return a normalized next hop; RFC 5321 text for reject."""
    if text in ("mx", "local", "hold", "capture"):
        return text
    scheme, separator, place = text.partition("://")
    if separator and scheme in ("smtp", "smtps", "lmtp", "graph"):
        if scheme == "graph" and not _HAS_PORT.search(place):
            place = f"{place}:{HTTPS_PORT}"
        try:
            address = parse_address(place, Path())
        except ValueError:
            raise ValueError(NEXT_HOP_EXPECTED) from None
        if scheme == "lmtp" and address.port == _SMTP_PORT:
            raise ValueError("another port than 25, which is for SMTP only (RFC 2033), such as 24")
        if address.port and not address.path:
            return f"{scheme}://{address}"
    if text.startswith(_LMTP_SOCKET):
        return _LMTP_SOCKET + _parse_socket_path(text.removeprefix(_LMTP_SOCKET))
    kind, separator, reason = text.partition(":")
    if separator and kind == "reject":
        return f"reject:{parse_reply_text(reason)}"
    raise ValueError(NEXT_HOP_EXPECTED)


def parse_reply_text(text: str) -> str:
    """Return the text of a reply that rejects mail."""
    text = text.strip(" ")
    if not (text and text.isascii() and text.isprintable()):
        raise ValueError("a text of one line of printable ASCII")
    if len(text) > _REJECT_TEXT_LENGTH_MAX:
        raise ValueError(f"a text of at most {_REJECT_TEXT_LENGTH_MAX} characters")
    return text


def parse_blocklist_answers(text: str) -> str:
    """Return answers of a DNS blocklist: an address in 127.0.0.0/8, or a range of its last part."""
    first, dash, last = text.partition("-")
    with contextlib.suppress(ValueError):
        address = ipaddress.IPv4Address(first)
        if address.is_loopback and (not dash or address.packed[3] <= int(last) <= 255):
            return text
    raise ValueError('an address such as "127.0.0.2", or a range such as "127.0.0.2-11"')


def _parse_socket_path(text: str) -> str:
    """Return the path of a next hop's Unix socket; the queue writes a space after a next hop."""
    if not text.startswith("/") or " " in text or not text.isprintable():
        raise ValueError("lmtp:unix:PATH with an absolute path without spaces")
    return parse_address(f"unix:{text}", Path()).path


def parse_route_name(text: str) -> str:
    """Return the name of a route, as lists and commands show it."""
    if text != text.strip() or not text.isprintable() or len(text) > _ROUTE_NAME_LENGTH_MAX:
        raise ValueError(f"one line of at most {_ROUTE_NAME_LENGTH_MAX} characters")
    if text == _NO_ROUTE_NAME:
        raise ValueError(f'another name than "{text}", which stands for no route')
    return text


def parse_tenant_name(text: str) -> str:
    """Return the name of a tenant, which is also the name of its directory."""
    if not _TENANT_NAME.fullmatch(text) or text == GROUPS_DIRECTORY:
        raise ValueError(
            "1 to 32 of a-z, 0-9, - and _, a letter or digit first, and another name than"
            f' "{GROUPS_DIRECTORY}"'
        )
    return text


def parse_sender_pattern(text: str) -> str:
    """Return an address, "*@domain", "*@*.suffix" or "<>", in lower case with A-labels."""
    local_part, _, domain = text.rpartition("@")
    with contextlib.suppress(ValueError):
        if text == "<>":
            return text
        if local_part == "*" and domain != "*":
            return f"*@{parse_domain_pattern(domain)}"
        return parse_mailbox(text)
    raise ValueError('an address, "*@domain", "*@*.suffix", or "<>" for the null reverse-path')


def parse_ip(text: str) -> str:
    """Return an IPv4 or IPv6 address."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text))
    raise ValueError('an IP address such as "192.0.2.1" or "2001:db8::1"')


def parse_spool_url(text: str) -> str:
    """Return "sqlite:PATH" with a PATH in state_dir, whose lock protects it, or the URL of a
    PostgreSQL server.
    """
    if text.startswith(SCHEME):
        parse_postgres_url(text)
        return text
    kind, _, path = text.partition(":")
    is_inside = not Path(path).is_absolute() and ".." not in Path(path).parts
    if kind != "sqlite" or not path or "\0" in path or not is_inside:
        raise ValueError(f'"sqlite:PATH" with a PATH inside state_dir, or {POSTGRES_EXPECTED}')
    return text


def parse_node_name(text: str) -> str:
    """Return the name of a node: one word, as in names of hosts."""
    if not _NODE_NAME.fullmatch(text):
        raise ValueError("a name of at most 63 letters, digits, dots, hyphens and underscores")
    return text


def parse_web_url(text: str) -> str:
    """Return an http or https URL without a trailing slash."""
    is_plain = text.isascii() and text.isprintable() and " " not in text
    with contextlib.suppress(ValueError):
        url = urlsplit(text)
        is_fit = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        if is_fit and is_plain and not (url.query or url.fragment or url.username):
            return text.rstrip("/")
    raise ValueError('a URL such as "https://mail.example.org"')


def parse_token_url(text: str) -> str:
    """Return a URL of a token server: https, or http to this machine."""
    return parse_webhook_url(text)


def parse_proxy(text: str) -> str:
    """Return the URL of an HTTP proxy, which may have a user name and a password."""
    with contextlib.suppress(ValueError):
        url = urlsplit(text)
        is_fit = url.scheme == "http" and bool(url.hostname) and bool(url.port)
        if is_fit and text.isprintable() and not (url.path.strip("/") or url.query or url.fragment):
            return text.rstrip("/")
    raise ValueError("http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT")


def parse_selector(text: str) -> str:
    """Return a DKIM selector in lower case: labels with dots between them (RFC 6376 3.1)."""
    lowered = lower_case(text)
    if not all(map(_LABEL.fullmatch, lowered.split("."))) or len(lowered) > _DOMAIN_LENGTH_MAX:
        raise ValueError('a selector such as "s1": letters, digits and hyphens')
    return lowered


def parse_date(text: str) -> str:
    """Return a day as YYYY-MM-DD, "" as it is."""
    with contextlib.suppress(ValueError):
        return date.fromisoformat(text).isoformat() if text else ""
    raise ValueError('a date such as "2027-01-31"')


def parse_srs_key(text: str) -> str:
    """Return `text` if it can be the key of SRS addresses."""
    if len(text) not in _SRS_KEY_LENGTH or not text.isprintable():
        raise ValueError(SRS_KEY_EXPECTED)
    return text


def parse_unix_socket(text: str) -> str:
    """Return the path in `unix:PATH`, "" as it is."""
    if text and not text.startswith("unix:/"):
        raise ValueError('"unix:" and the absolute path of a socket')
    return parse_address(text, Path()).path if text else ""


def parse_webhook_url(text: str) -> str:
    """Return a URL: https, or http to this machine."""
    try:
        url = read_url(text, schemes=("https", "http"))
    except UrlError as error:
        problem, _, expected = str(error).rpartition("expected ")
        raise ValueError(f"{expected} ({problem.rstrip(' ,;')})") from None
    is_here = f".{url.host}".endswith(".localhost") or is_loopback(url.host)
    if url.scheme == "http" and not is_here:
        raise ValueError("https://, or http:// to 127.0.0.1, [::1] or localhost")
    return text


def parse_webhook_key(text: str) -> str:
    """Return a secret of Standard Webhooks."""
    with contextlib.suppress(ValueError):
        octets = b64decode(text.removeprefix(KEY_PREFIX), validate=True)
        if text.startswith(KEY_PREFIX) and len(octets) in _KEY_OCTETS:
            return text
    raise ValueError(f"{KEY_PREFIX} and the base64 of {_KEY_OCTETS[0]} to 64 octets")


def parse_glob(text: str) -> str:
    """Return a glob of addresses."""
    if not 0 < len(text) <= _GLOB_CHARACTERS_MAX:
        raise ValueError(f'a glob such as "*@example.org", of at most {_GLOB_CHARACTERS_MAX}')
    return with_a_labels(text)


_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_FILE_SIZE_MAX = 64 * 1024
_PAGE = "docs/cloud.md has those of the image"


def has_reference(text: str) -> bool:
    """Return whether `text` contains a reference."""
    return "${" in text


def without_references(text: str) -> str:
    """Return what is written in `text` itself, defaults too."""
    return _REFERENCE.sub(lambda match: match[1].partition(":-")[2], text)


def expand(text: str, *, base: Path, environ: Mapping[str, str]) -> str:
    """Return `text` with its references replaced; PATH is relative to `base`.

    The last line ending of a file is removed. In the URL of a server, the value of a reference is
    quoted: a password may have any characters. Raises ValueError.
    """
    is_url = text.startswith(SCHEME)

    def replacement(match: re.Match[str]) -> str:
        value = _resolve_reference(match[1], base, environ)
        return quote(value, safe="") if is_url else value

    return _REFERENCE.sub(replacement, text)


def referenced_files(text: str, *, base: Path) -> list[Path]:
    """Return the files that `text` names by ${file:PATH}."""
    parts = (reference.partition(":") for reference in _REFERENCE.findall(text))
    return [base / name for kind, _, name in parts if kind == "file" and name]


def _resolve_reference(reference: str, base: Path, environ: Mapping[str, str]) -> str:
    kind, _, name = reference.partition(":")
    if kind == "env" and name:
        return _variable(name, base, environ)
    if kind == "file" and name:
        return _read(base / name, name)
    raise ValueError("${env:NAME} or ${file:PATH}")


def _variable(text: str, base: Path, environ: Mapping[str, str]) -> str:
    """Return the value of NAME or NAME:-DEFAULT: the variable, else the content of the file that
    NAME_FILE names, else the default. The file goes before a variable that is as the default: an
    image has set it.
    """
    name, has_default, default = text.partition(":-")
    value, file = environ.get(name), environ.get(f"{name}_FILE")
    if file is not None and (value is None or (has_default and value == default)):
        return _read(base / file, file)
    if file is not None:
        raise ValueError(f"one of the environment variables {name} and {name}_FILE, not both")
    if not (value or has_default):
        state = "set" if value is None else "more than an empty text"
        raise ValueError(f"the environment variable {name} to be {state}, or {name}_FILE ({_PAGE})")
    return default if value is None else _as_utf_8(value, name)


def _as_utf_8(value: str, name: str) -> str:
    """Return an environment variable if it is valid UTF-8 (Python escapes other bytes)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the environment variable {name} to be UTF-8") from None
    return value


def _read(file: Path, name: str) -> str:
    try:
        if not file.is_file():  # do not wait for a pipe or a device
            raise FileNotFoundError(None, "no regular file" if file.exists() else "no such file")
        with file.open("rb") as stream:
            content = stream.read(_FILE_SIZE_MAX + 1)
    except OSError as error:
        raise ValueError(f"the file {name} to be readable ({error.strerror})") from None
    if len(content) > _FILE_SIZE_MAX:
        raise ValueError(f"the file {name} to have at most {_FILE_SIZE_MAX} bytes")
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(f"the file {name} to be UTF-8") from None
