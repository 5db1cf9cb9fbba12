"""Parse the arguments of MAIL FROM and RCPT TO: the path and its ESMTP parameters.

MAIL takes SIZE, BODY, SMTPUTF8, RET, ENVID, AUTH and REQUIRETLS, RCPT takes NOTIFY and ORCPT. From
a program of this machine MAIL also takes KEY_PARAMETER. An unknown or malformed parameter is
rejected, never ignored. The case of addresses is preserved.

RFC 5321 4.1.1.2, 4.1.1.3, 4.1.1.11; RFC 1870, 3461 4, 4954 5, 6152, 6531 3.4, 8689 2.
"""

import re

from msgspec import Struct

from relay.base.message import envelope as envelopes
from relay.base.message.address import NEEDS_SMTPUTF8, AddressError, excerpt, parse_path
from relay.base.message.tls_policy import IF_OFFERED, REQUIRETLS, TlsDemand

_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*").fullmatch
_SIZE = re.compile(r"[0-9]{1,20}").fullmatch
_MAIL_KEYWORDS = frozenset({"SIZE", "BODY", "SMTPUTF8", "RET", "ENVID", "AUTH", "REQUIRETLS"})
_OF_PROGRAM = _MAIL_KEYWORDS | {envelopes.KEY_PARAMETER}
_FLAGS = ("SMTPUTF8", "REQUIRETLS")  # without a value
_RCPT_KEYWORDS = frozenset({"NOTIFY", "ORCPT"})


_CLIENT_NAME = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}").fullmatch


class SmtpRejection(Exception):  # noqa: N818 -- a reply, not an internal error
    """A command is rejected; str() is the reply."""


class FilterRefusedError(SmtpRejection):
    """A milter refuses a command: str() is the reply."""

    def __init__(self, reply: str, milter: str) -> None:
        super().__init__(reply)
        self.milter = milter


def is_client_name(name: str, *, odd: bool) -> bool:
    """Return whether EHLO accepts the name; with `odd` any printable text is accepted."""
    return (odd and 0 < len(name) <= 255 and name.isprintable()) or _CLIENT_NAME(name) is not None


def check_utf8(argument: str) -> None:
    """Raise SmtpRejection for an argument that is not UTF-8."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:  # a surrogate stands for an octet that is not UTF-8
        # RFC 5321 2.4; RFC 6531 3.3
        raise SmtpRejection("501 5.5.2 The argument is neither ASCII nor UTF-8") from None


class MailArgument(Struct, frozen=True):
    """The argument of MAIL; `size_bytes` is 0 if SIZE was not given, `key` is KEY_PARAMETER."""

    envelope: envelopes.Envelope
    size_bytes: int = 0
    key: str = ""


def parse_mail(
    argument: str, *, extended: bool, tls: str = "", odd_domain: str = "", of_program: bool = False
) -> MailArgument:
    """Parse `FROM:<reverse-path> [parameters]`. Raises SmtpRejection.

    `extended` is false after HELO. `odd_domain` as in parse_path(). REQUIRETLS needs a session with
    `tls`; with the null reverse-path, TLS is then used only if it is offered (RFC 8689 5).
    """
    text = _after("FROM:", argument, example="MAIL FROM:<you@example.com>")
    try:
        reverse_path, rest = parse_path(text, smtputf8=True, odd_domain=odd_domain)
    except AddressError as error:
        # RFC 5321 4.1.2; RFC 3463 3.2
        raise SmtpRejection(f"501 5.1.7 MAIL FROM: {error}") from error
    if reverse_path == "postmaster":
        raise SmtpRejection(
            # RFC 5321 2.3.5, 4.5.1
            "501 5.1.7 MAIL FROM: the address has no domain; write <postmaster@domain>"
        )
    if not rest:
        _check_ascii(reverse_path, smtputf8=False)
        return MailArgument(envelopes.Envelope(reverse_path))
    known = _OF_PROGRAM if of_program else _MAIL_KEYWORDS
    parameters = _parameters(rest, known=known if extended else frozenset())
    smtputf8 = "SMTPUTF8" in parameters
    _check_ascii(reverse_path, smtputf8=smtputf8)
    demand: TlsDemand = ""
    if "REQUIRETLS" in parameters:
        if not tls:
            raise SmtpRejection("530 5.7.10 REQUIRETLS is for sessions with TLS")  # RFC 8689 2
        demand = REQUIRETLS if reverse_path else IF_OFFERED
    body = parameters.get("BODY", "7BIT").upper()
    if body not in ("7BIT", "8BITMIME"):
        raise SmtpRejection("501 5.5.4 BODY: expected 7BIT or 8BITMIME")  # RFC 6152 2
    size = parameters.get("SIZE", "0")
    if not _SIZE(size):
        # RFC 1870 3
        raise SmtpRejection("501 5.5.4 SIZE: expected a number of octets, at most 20 digits")
    key = parameters.get(envelopes.KEY_PARAMETER, "")
    if key and not envelopes.is_key(key):
        # RFC 5321 4.1.1.11
        raise SmtpRejection(f"501 5.5.4 {envelopes.KEY_PARAMETER}: expected 32 hexadecimal digits")
    try:
        if parameters.get("AUTH", "<>") != "<>" and not envelopes.decode_xtext(parameters["AUTH"]):
            raise SmtpRejection("501 5.5.4 AUTH: expected a mailbox as xtext, or <>")  # RFC 4954 5
        envelope = envelopes.Envelope(
            reverse_path,
            ret=envelopes.parse_ret(parameters["RET"]) if "RET" in parameters else "",
            envid=envelopes.parse_envid(parameters["ENVID"]) if "ENVID" in parameters else "",
            smtputf8=smtputf8,
            eight_bit=body == "8BITMIME",
            tls=demand,
        )
        return MailArgument(envelope, size_bytes=int(size), key=key)
    except ValueError as error:
        raise SmtpRejection(f"501 5.5.4 {error}") from error  # RFC 3461 4.3, 4.4


def parse_rcpt(
    argument: str, *, extended: bool, smtputf8: bool, odd_domain: str = ""
) -> envelopes.ForwardPath:
    """Parse `TO:<forward-path> [parameters]`; `odd_domain` as in parse_path().

    Raises SmtpRejection.
    """
    text = _after("TO:", argument, example="RCPT TO:<someone@example.com>")
    try:
        address, rest = parse_path(text, smtputf8=smtputf8, odd_domain=odd_domain)
    except AddressError as error:
        code = "553" if error.status == NEEDS_SMTPUTF8 else "501"  # RFC 6531 3.5; RFC 5321 4.1.2
        raise SmtpRejection(f"{code} {error.status} RCPT TO: {error}") from error
    if not address:
        # RFC 5321 4.1.1.3; RFC 3463 3.2
        raise SmtpRejection("501 5.1.3 RCPT TO: a recipient needs an address, <> is none")
    if not rest:
        return envelopes.ForwardPath(address)
    parameters = _parameters(rest, known=_RCPT_KEYWORDS if extended else frozenset())
    try:
        return envelopes.ForwardPath(
            address,
            notify=envelopes.parse_notify(parameters["NOTIFY"])
            if "NOTIFY" in parameters
            else frozenset(),
            orcpt=envelopes.parse_orcpt(parameters["ORCPT"]) if "ORCPT" in parameters else "",
        )
    except ValueError as error:
        raise SmtpRejection(f"501 5.5.4 {error}") from error  # RFC 3461 4.1, 4.2


def _after(keyword: str, argument: str, *, example: str) -> str:
    if argument[: len(keyword)].upper() != keyword:
        raise SmtpRejection(f"501 5.5.4 Syntax: {example}")  # RFC 5321 4.1.1.2, 4.1.1.3
    return argument[len(keyword) :]


def _check_ascii(reverse_path: str, *, smtputf8: bool) -> None:
    if not smtputf8 and not reverse_path.isascii():
        # RFC 6531 3.5, which has 550 for MAIL and 553 for RCPT
        raise SmtpRejection(f"553 {NEEDS_SMTPUTF8} MAIL FROM: this address needs SMTPUTF8")


def _parameters(text: str, *, known: frozenset[str]) -> dict[str, str]:
    """Split `KEY=value KEY …`; keys are converted to upper case, values are unchanged."""
    parameters: dict[str, str] = {}
    for word in filter(None, text.split(" ")):
        keyword, equals, value = word.partition("=")
        name = keyword.upper()
        if not _KEYWORD(keyword):
            raise SmtpRejection(
                # RFC 5321 4.1.2
                f"501 5.5.4 {excerpt(word)} is no parameter: expected KEYWORD=value"
            )
        if name not in known:
            # RFC 5321 4.1.1.11
            raise SmtpRejection(f"555 5.5.4 The parameter {excerpt(name)} is not supported")
        if name in parameters:
            # no RFC says which one counts
            raise SmtpRejection(f"501 5.5.4 {name} is given twice")
        if bool(equals) is (name in _FLAGS) or (equals and not value) or "=" in value:
            raise SmtpRejection(f"501 5.5.4 {name}: malformed value")  # RFC 5321 4.1.2
        parameters[name] = value
    return parameters
