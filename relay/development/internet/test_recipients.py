"""Test recipients: addresses that name what their host does, as bob+550@example.org.

They hold for every domain that is not local. Without I/O and without counters. An address
that a person could have does not match: a code counts only after "+", or where the product's own
words precede it.
RFC 5321 4.2.1 (codes), RFC 3463 and RFC 7504 (enhanced status), RFC 5233 (subaddresses).
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote_to_bytes

from relay.base.message.address import own_mailbox

# Addresses, what their host does, and the product that has them too: the beginning of EXAMPLES,
# which docs/internet.md and the pages show, and tests send to.
_TABLE = """\
bob+550@example.org replies 550 5.1.1 No such user; any code, first digit 4 or 5, second 0 to 5
bob+550-5.7.26@example.org replies 550 with this enhanced status, of the class of the code
bob+451x2@example.org refuses twice, then accepts
bob+grey@example.org replies 451 4.7.1 until 10 seconds after the first attempt
bob+slow10@example.org replies after 10 seconds (1 to 300), then accepts
bob+drop@example.org closes the connection at RCPT
bob+timeout@example.org never replies to RCPT
bob+full@example.org replies 452 4.2.2 Mailbox full
bob+tls@example.org replies 530 5.7.0 without STARTTLS
bob+later550@example.org accepts, and reports a failure 5 seconds later
bounce+550+no+such+user@example.org replies 550 no such user, URL-encoded (Mailtrap)
temperror@example.org replies 451 after the content, permerror@ 550, timeout@ never (mox)
451@example.org replies 451 after the content, as queue451@; any code (mox)
rcpttotemperror@example.org replies 451 to RCPT, mailfrom550@ 550 (mox)"""

MARK = "test recipient of relay dev"
GREYLISTED_S = 10.0
DELAY_S_MAX = 300

_TEXT_MAX = 200
_CODE = "[45][0-5][0-9]"  # RFC 5321 4.2.1

_own_code = re.compile(
    rf"(?P<code>{_CODE})"
    r"(?:-(?P<status>[45]\.[0-9]{1,3}\.[0-9]{1,3}))?"
    r"(?:x(?P<times>[1-9][0-9]?))?"
).fullmatch
_own_slow = re.compile(r"slow(?P<seconds>[0-9]{1,3})").fullmatch
_own_later = re.compile(rf"later(?P<code>{_CODE})").fullmatch
_mailtrap = re.compile(rf"bounce\+(?P<code>{_CODE})(?:\+(?P<text>.+))?", re.IGNORECASE).fullmatch
# mox takes any local part with these ends; a code alone at the end is also an ordinary address.
_mox = re.compile(
    rf"(?P<stage>mailfrom|rcptto|queue)?.*?(?P<end>temperror|permerror|timeout|{_CODE})"
).fullmatch
_mox_plain = re.compile(rf"{_CODE}|timeout|.*(?:temperror|permerror)").fullmatch

# The enhanced status of a code, and its text; "" for the general one.
_USUAL = {
    "421": ("4.3.2", "Service not available, closing the connection"),
    "450": ("4.2.1", "Mailbox busy"),
    "451": ("4.3.0", "Local error, try again later"),
    "452": ("4.2.2", "Mailbox full"),
    "454": ("4.7.0", "Temporary authentication failure"),
    "500": ("5.5.2", ""),
    "501": ("5.5.4", ""),
    "502": ("5.5.1", ""),
    "503": ("5.5.1", ""),
    "504": ("5.5.4", ""),
    "521": ("5.3.2", ""),
    "530": ("5.7.0", ""),
    "535": ("5.7.8", ""),
    "550": ("5.1.1", "No such user"),
    "551": ("5.1.6", "User not local"),
    "552": ("5.2.2", "Mailbox full, message too large"),
    "553": ("5.1.3", "Mailbox name not allowed"),
    "554": ("5.7.1", "Transaction failed"),
    "556": ("5.1.10", "Domain accepts no mail"),
}


class Manner(StrEnum):
    """What a test recipient's host does."""

    ACCEPT = "accept"
    REPLY = "reply"  # the first `times` times; always, if `times` is 0
    GREYLIST = "greylist"  # replies until GREYLISTED_S have passed since the first time
    DROP = "drop"
    STALL = "stall"
    DELAY = "delay"  # accepts after `delay_s`
    NEEDS_TLS = "needs TLS"  # replies to a client without TLS
    LATER = "later"  # accepts, then bounces with the reply


@dataclass(frozen=True, slots=True)
class TestRecipient:
    """What a test recipient asks for. `stage` is where the host replies, drops or stalls."""

    __test__ = False  # its name looks like a class of tests to pytest
    manner: Manner
    reply: str = ""
    stage: str = "RCPT"
    times: int = 0
    delay_s: float = 0.0


def find_test_recipient(address: str) -> TestRecipient | None:
    """Return what a test recipient asks for, None for any other address."""
    local, _, domain = own_mailbox(address).rpartition("@")
    if service := _SERVICES.get(domain):
        name, _, _ = local.partition("+")  # both products allow a label behind "+"
        return service.get(name)
    if match := _mailtrap(address.rpartition("@")[0]):  # its text in its own case
        return _bounced(match["code"], match["text"])
    _, plus, tag = local.rpartition("+")
    if plus and (own := _own(tag)):
        return own
    return _of_mox(local)


def _own(tag: str) -> TestRecipient | None:
    if fixed := _OWN.get(tag):
        return fixed
    if match := _own_code(tag):
        code, status = match["code"], match["status"]
        if status and status[0] != code[0]:
            return None  # RFC 2034 4: the class of the status is that of the code
        return TestRecipient(Manner.REPLY, _reply(code, status), times=int(match["times"] or 0))
    if match := _own_later(tag):
        return TestRecipient(Manner.LATER, _reply(match["code"]), "DOT")
    if (match := _own_slow(tag)) and 0 < int(match["seconds"]) <= DELAY_S_MAX:
        return TestRecipient(Manner.DELAY, delay_s=float(match["seconds"]))
    return None


def _of_mox(local: str) -> TestRecipient | None:
    """Return what mox localserve does for this recipient.

    mox replies to the content, or to the command that the beginning names. Before MAIL a host does
    not know the recipient, so that "mailfrom" is treated as "rcptto".
    """
    match = _mox(local)
    if not match or not (match["stage"] or _mox_plain(local)):
        return None
    stage = "RCPT" if match["stage"] in ("mailfrom", "rcptto") else "DOT"
    if match["end"] == "timeout":
        return TestRecipient(Manner.STALL, stage=stage)
    code = {"temperror": "451", "permerror": "550"}.get(match["end"], match["end"])
    return TestRecipient(Manner.REPLY, _reply(code), stage)


def _bounced(code: str, text: str | None) -> TestRecipient:
    """Return Mailtrap's reply: the text is URL-encoded, with "+" for a space."""
    if not text:
        return TestRecipient(Manner.REPLY, _reply(code))
    plain = unquote_to_bytes(text.replace("+", " ")).decode("ascii", "replace")
    printable = "".join(letter if " " <= letter <= "~" else "?" for letter in plain)
    return TestRecipient(Manner.REPLY, f"{code} {printable[:_TEXT_MAX].strip()} ({MARK})")


def _reply(code: str, status: str | None = None, text: str = "") -> str:
    usual_status, usual_text = _USUAL.get(code, (f"{code[0]}.0.0", ""))
    default = "Temporary failure" if code[0] == "4" else "Permanent failure"
    return f"{code} {status or usual_status} {text or usual_text or default} ({MARK})"


_OWN = {
    "grey": TestRecipient(
        Manner.GREYLIST, _reply("451", "4.7.1", "Greylisted, try again in 10 seconds")
    ),
    "drop": TestRecipient(Manner.DROP),
    "timeout": TestRecipient(Manner.STALL),
    "full": TestRecipient(Manner.REPLY, _reply("452", "4.2.2", "Mailbox full")),
    "tls": TestRecipient(
        Manner.NEEDS_TLS, _reply("530", "5.7.0", "Must issue a STARTTLS command first")
    ),
}
_ACCEPTED = TestRecipient(Manner.ACCEPT)
_UNKNOWN_USER = TestRecipient(Manner.REPLY, _reply("550", "5.1.1", "Unknown user"))
_SUPPRESSED = TestRecipient(
    Manner.REPLY, _reply("550", "5.1.1", "The address is on the suppression list")
)
_SERVICES = {
    "simulator.amazonses.com": {
        "success": _ACCEPTED,
        "ooto": _ACCEPTED,
        "complaint": _ACCEPTED,
        "bounce": _UNKNOWN_USER,
        "suppressionlist": _SUPPRESSED,
    },
    "resend.dev": {
        "delivered": _ACCEPTED,
        "complained": _ACCEPTED,
        "bounced": _UNKNOWN_USER,
        "suppressed": _SUPPRESSED,
    },
}
EXAMPLES = (
    *((row.partition(" ")[0], row.partition(" ")[2]) for row in _TABLE.splitlines()),
    *(
        (f"{name}@{domain}", "replies 550 5.1.1" if address.reply else "accepts the message")
        for domain, names in _SERVICES.items()
        for name, address in names.items()
    ),
)
