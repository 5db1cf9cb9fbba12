"""Parse and canonicalise addresses: mailboxes, and the paths of MAIL and RCPT.

A parsed address has no CR, LF, NUL or other control character, a domain in lower case with
A-labels, and quotes around the local part only where they are needed. A local part that a forwarder
wrote (SRS) has no limit except that of the path. AddressError says what is wrong and has the RFC
3463 status for the reply.

lower_case() decides which letters are one in a comparison of names, own_mailbox() which addresses.

A label has two forms: "bücher" is the U-label of the A-label "xn--bcher-kva" (IDNA 2008, RFC 5890
2.3.2). Relay stores, sends and compares A-labels; shown_address() is for people.
RFC 5321 4.1.2, 4.1.3, 4.5.3.1 and appendix C; RFC 6531 3.3; RFC 5891; UTS 46 (non-transitional).
"""

import contextlib
import ipaddress
import re

import idna

LOCAL_PART_OCTETS_MAX = 64
DOMAIN_OCTETS_MAX = 255
PATH_OCTETS_MAX = 256  # with its angle brackets
_ADDRESS_OCTETS_MAX = PATH_OCTETS_MAX - 2
_LABEL_OCTETS_MAX = 63
_SHOWN_MAX = 40

BAD_SYNTAX = "5.1.3"
NEEDS_SMTPUTF8 = "5.6.7"

# The characters that RFC 6532 adds to atext and qtext, except those that end a line in a terminal.
_BEYOND_ASCII = r"[^\x00-\x9f\u2028\u2029\ud800-\udfff]"
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_ATOM = rf"(?:{_ATEXT}|{_BEYOND_ASCII})+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"

_ordinary_mailbox = re.compile(
    rf"(?=[^@]{{1,64}}@){_ATEXT}+(?:\.{_ATEXT}+)*@{_LABEL}(?:\.{_LABEL})*"
).fullmatch
_dot_string = re.compile(rf"{_ATOM}(?:\.{_ATOM})*").fullmatch
_label = re.compile(_LABEL).fullmatch
_quoted = re.compile(
    rf'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|{_BEYOND_ASCII}|\\[\x20-\x7e])*)"'
).fullmatch
_in_brackets = re.compile(r'<((?:[^<>"\\]|"(?:[^"\\]|\\.)*")*)>(?: +(.*)|$)', re.DOTALL).fullmatch
_source_route = re.compile(r"@[^@:,]+(?:,@[^@:,]+)*:").match
_pair = re.compile(r"\\(.)")
# RFC 5321 4.5.3.1 asks for no limit, and SRS needs more than 64 octets (relay/base/message/srs.py).
_forwarded = re.compile(r'"?SRS[01][=+-]', re.IGNORECASE | re.ASCII).match
_not_plain = re.compile(r'(["\\])')
_behind_at = re.compile(r"(?<=@)[^\s@<>()\[\],;:\"\\]+")
_dots = re.compile(r"[.\u3002\uff0e\uff61]")  # RFC 3490 3.1
# All letters but the Kelvin sign and the dotted I: they alone become "k" and "i" in lower case.
_with_own_lower_case = re.compile("[^\u0130\u212a]+")


class AddressError(ValueError):
    """The address cannot be used. `status` is the RFC 3463 code for the reply."""

    def __init__(self, text: str, status: str = BAD_SYNTAX) -> None:
        super().__init__(text)
        self.status = status


def excerpt(text: str, characters_max: int = _SHOWN_MAX) -> str:
    """Return the client's text quoted for a reply: ASCII, no controls, cut after it is escaped."""
    quoted = ascii(text)
    is_short = len(quoted) <= characters_max + len("''")
    return quoted if is_short else f"{quoted[: characters_max + 1]}...{quoted[0]}"


def parse_mailbox(text: str, *, smtputf8: bool = False) -> str:
    """Return the canonical form of `local-part@domain`.

    The domain becomes lower case with A-labels; quotes that the local part does not need are
    removed. `smtputf8` allows a local part beyond ASCII. Raises AddressError with status 5.1.3, or
    5.6.7 for an address that needs SMTPUTF8.
    """
    if len(text) <= _ADDRESS_OCTETS_MAX and _ordinary_mailbox(text):
        at = text.rindex("@")
        return text[:at] + text[at:].lower()
    return _parse_general(text, smtputf8=smtputf8)


def parse_path(text: str, *, smtputf8: bool = False, odd_domain: str = "") -> tuple[str, str]:
    """Return the address in `<...>` and the text after it: the argument of MAIL FROM or RCPT TO.

    "<>" gives "", the null path; `<Postmaster>` gives "postmaster" without an `odd_domain`; a
    source route is dropped. `odd_domain` is added to an address without a domain, and allows
    underscores in labels. The caller decides which of these a command allows. Raises AddressError
    like parse_mailbox().
    """
    text = text.strip(" ")
    match = _in_brackets(text)
    if not match:
        raise AddressError(f"expected an address in angle brackets, found {excerpt(text)}")
    inner, rest = match.group(1), (match.group(2) or "").lstrip(" ")
    if not inner:
        return "", rest
    if inner.lower() == "postmaster" and not odd_domain:
        return "postmaster", rest
    if len(inner) > _ADDRESS_OCTETS_MAX:  # its octets are counted with A-labels
        raise AddressError(f"the path is longer than {PATH_OCTETS_MAX} octets")
    mailbox = _without_source_route(inner)
    if odd_domain:
        return parse_odd_mailbox(mailbox, odd_domain, smtputf8=smtputf8), rest
    return parse_mailbox(mailbox, smtputf8=smtputf8), rest


def parse_odd_mailbox(text: str, odd_domain: str = "", *, smtputf8: bool = False) -> str:
    """Return the canonical form of an address like parse_mailbox(). Raises AddressError.

    An address without a domain gets `odd_domain`. Labels may have underscores, because names of
    containers have them.
    """
    local_part, at, domain = text.rpartition("@")
    if odd_domain and not at:
        return parse_mailbox(f"{text}@{odd_domain}", smtputf8=smtputf8)
    if "_" in domain and domain.isascii():
        with contextlib.suppress(AddressError):  # the error below names the domain
            plain = f"{local_part}@{domain.replace('_', 'x')}"
            local_part, _, _ = parse_mailbox(plain, smtputf8=smtputf8).rpartition("@")
            return f"{local_part}@{domain.lower()}"
    return parse_mailbox(text, smtputf8=smtputf8)


def to_ascii_domain(domain: str) -> str:
    """Return `domain` in lower case with A-labels, as in the DNS. Raises AddressError."""
    if domain.isascii():
        return domain.lower()
    try:
        if len(domain.encode()) > DOMAIN_OCTETS_MAX:  # idna takes quadratic time
            raise UnicodeError  # noqa: TRY301 - one text for every bad name
        ascii_domain = idna.encode(domain, uts46=True).decode()
    except UnicodeError as error:
        raise AddressError(
            f"the domain {excerpt(domain)} is not a valid internationalised name"
        ) from error
    _check_ascii_domain(ascii_domain, written=domain)
    return ascii_domain


def ascii_address(address: str) -> str:
    """Return an address with A-labels; its local part stays. Never fails."""
    local_part, at, domain = address.rpartition("@")
    if not at or domain.isascii():
        return address
    try:
        return f"{local_part}{at}{to_ascii_domain(domain)}"
    except AddressError:
        return f"{local_part}{at}{lower_case(domain)}"


def lower_case(text: str) -> str:
    """Return a text as names are compared: in lower case, but no letter beyond ASCII becomes ASCII.

    Hosts and other programs know such letters as two.
    """
    if text.isascii():
        return text.lower()
    return _with_own_lower_case.sub(lambda match: match[0].lower(), text)


def with_capitals(text: str) -> str:
    """Return a text in lower case with its letters beyond ASCII in capitals, which a database may
    leave as they are.
    """
    capitals = ((letter, letter if letter.isascii() else letter.upper()) for letter in text)
    return "".join(
        capital if lower_case(capital) == letter else letter for letter, capital in capitals
    )


def literal_address(domain: str) -> str | None:
    """Return the IP address in "[192.0.2.1]" or "[IPv6:2001:db8::1]", None for other text."""
    if not (domain.startswith("[") and domain.endswith("]")):
        return None
    inside = domain[1:-1]
    try:
        if inside[:5].lower() == "ipv6:":
            return str(ipaddress.IPv6Address(inside[5:]))
        return str(ipaddress.IPv4Address(inside))
    except ipaddress.AddressValueError:
        return None


def own_mailbox(address: str) -> str:
    """Return an address in lower case with A-labels: the form that is compared and names a mailbox.

    A tag stays; a name without a domain is a local part. See lower_case(). Never fails.
    """
    if address.isascii():
        return address.lower()
    local_part, at, domain = ascii_address(address).rpartition("@")
    lowered = lower_case(local_part)
    if len(lowered.encode("utf-8", "replace")) <= LOCAL_PART_OCTETS_MAX:  # it may have grown
        local_part = lowered
    return f"{local_part}{at}{lower_case(domain)}"


def untagged(address: str) -> str:
    """Return `local+tag@domain` as `local@domain`, another address as it is (RFC 5233)."""
    local_part, at, domain = address.rpartition("@")
    return f"{local_part.partition('+')[0]}{at}{domain}"


def shown_address(address: str) -> str:
    """Return an address, or a pattern of addresses, with U-labels, for people. Never fails."""
    if "xn--" not in address:
        return address
    local_part, at, domain = address.rpartition("@")
    return f"{local_part}{at}{'.'.join(map(_u_label, domain.split('.')))}"


def with_a_labels(text: str) -> str:
    """Return a text or pattern with A-labels after each @. A label with a wildcard stays."""
    if text.isascii() or "@" not in text:
        return text
    return _behind_at.sub(lambda match: ".".join(map(_a_label, _dots.split(match[0]))), text)


def with_u_labels(text: str) -> str:
    """Return a text with U-labels after each @."""
    if "xn--" not in text:
        return text
    return _behind_at.sub(lambda match: ".".join(map(_u_label, match[0].split("."))), text)


def pattern_forms(pattern: str) -> tuple[str, ...]:
    """Return the forms of a pattern to compare with addresses, which have A-labels.

    A pattern without an @ may be a domain, or a part of a domain.
    """
    forms = (with_a_labels(pattern), with_a_labels(f"@{pattern}")[1:])
    return forms[:1] if "@" in pattern or pattern.isascii() else forms


def _a_label(label: str) -> str:
    try:
        return to_ascii_domain(label)
    except AddressError:
        return lower_case(label)


def _u_label(label: str) -> str:
    try:
        decoded = idna.decode(label) if label.startswith("xn--") else label
        return decoded if to_ascii_domain(decoded) == label else label  # a text names one domain
    except (UnicodeError, AddressError):
        return label


def plain_local_part(local_part: str) -> str:
    """Return a canonical local part without the quotes that it may need."""
    return _pair.sub(r"\1", local_part[1:-1]) if local_part.startswith('"') else local_part


def written_local_part(plain: str) -> str:
    """Return a local part in its canonical form: with quotes, if it needs them."""
    return plain if _dot_string(plain) else '"' + _not_plain.sub(r"\\\1", plain) + '"'


def _parse_general(text: str, *, smtputf8: bool) -> str:
    local_part, at, domain = text.rpartition("@")
    if not text.isascii():
        _check_international(text, "" if smtputf8 else local_part)
    if len(local_part.encode("utf-8")) > _ADDRESS_OCTETS_MAX:
        raise _too_long()
    if not at:
        raise AddressError(f"expected local-part@domain, found {excerpt(text)}")
    address = f"{_canonical_local_part(local_part)}@{_canonical_domain(domain)}"
    if len(address.encode("utf-8")) > _ADDRESS_OCTETS_MAX:
        raise _too_long()
    return address


def _too_long() -> AddressError:
    return AddressError(f"the address is longer than {_ADDRESS_OCTETS_MAX} octets")


def _check_international(text: str, ascii_part: str) -> None:
    """Check an address that is not ASCII; `ascii_part` must be."""
    if not ascii_part.isascii():
        raise AddressError(
            f"the address {excerpt(text)} is not ASCII and needs SMTPUTF8", NEEDS_SMTPUTF8
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise AddressError(f"the address {excerpt(text)} is not valid UTF-8") from error


def _canonical_local_part(local_part: str) -> str:
    if not local_part:
        raise AddressError("the local part before the @ is missing")
    octets = len(local_part.encode("utf-8"))
    if octets > LOCAL_PART_OCTETS_MAX and not _forwarded(local_part):
        raise AddressError(f"the local part is longer than {LOCAL_PART_OCTETS_MAX} octets")
    if _dot_string(local_part):
        return local_part
    quoted = _quoted(local_part)
    if not quoted:
        hint = "; the address alone, without a name and <>" if "<" in local_part else ""
        raise AddressError(
            f"the local part {excerpt(local_part)} is neither atoms with single dots between them"
            f" nor one quoted string{hint}"
        )
    return written_local_part(_pair.sub(r"\1", quoted.group(1)))


def _canonical_domain(domain: str) -> str:
    if domain.startswith("["):
        return _canonical_literal(domain)
    if domain.isascii():
        _check_ascii_domain(domain, written=domain)
        return domain.lower()
    return to_ascii_domain(domain)


def _check_ascii_domain(domain: str, *, written: str) -> None:
    if not domain:
        raise AddressError("the domain after the @ is missing")
    if len(domain) > DOMAIN_OCTETS_MAX:
        raise AddressError(f"the domain is longer than {DOMAIN_OCTETS_MAX} octets")
    for label in domain.split("."):
        if not _label(label):
            raise AddressError(f"the domain {excerpt(written)} has {_label_error(label)}")


def _label_error(label: str) -> str:
    if not label:
        return "an empty label (one dot too many)"
    if len(label) > _LABEL_OCTETS_MAX:
        return f"a label longer than {_LABEL_OCTETS_MAX} octets"
    return f"the label {excerpt(label)}; expected letters, digits and inner hyphens"


def _canonical_literal(domain: str) -> str:
    """Check `[192.0.2.1]` or `[IPv6:2001:db8::1]`; no other kind of literal is registered."""
    inner = domain[1:-1]
    try:
        if not domain.endswith("]") or "%" in inner:
            raise ValueError  # noqa: TRY301 - one text for every bad literal
        if inner[:5].lower() == "ipv6:":
            return f"[IPv6:{ipaddress.IPv6Address(inner[5:])}]"
        return f"[{ipaddress.IPv4Address(inner)}]"
    except ValueError as error:
        raise AddressError(
            f"expected [192.0.2.1] or [IPv6:2001:db8::1] after the @, found {excerpt(domain)}"
        ) from error


def _without_source_route(path: str) -> str:
    if not path.startswith("@"):
        return path
    route = _source_route(path)
    if not route:
        raise AddressError(f"the source route of {excerpt(path)} has no end")
    return path[route.end() :]
