r"""Read SMTP dialogues from text files.

Empty lines and lines that begin with # are ignored. The other lines are:

    listener: max_recipients=3 trusted=no   settings of the listener, at the start; also proxy=yes, listen=0.0.0.0,
                                            limits.junk_commands=3, tls=yes, spool=broken
    CONNECT: \r\n                          open a further connection, with octets that are there
                                            before the greeting; the others stay open
    ADVANCE: 60                             let so many seconds pass
    S: 250 2.1.0 Ok                         the next line that the server must send; * matches anything
    C: MAIL FROM:<a@b.test>                 a line to send; CRLF is added
    R: .\r\n                                octets to send unchanged
    TLS                                     do the TLS handshake
    END                                     the server must close the connection
    ACCEPTED: 1                             the number of messages in the spool
    CONTENT: *Subject: x\r\n*               a part of the last message

Adjacent C and R lines are sent in one segment (pipelining). \r \n \0 \t \\
and \xHH are escapes in C, R and CONTENT; {64*x} is x repeated.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

KINDS = ("S", "C", "R", "CONNECT", "TLS", "END", "ADVANCE", "ACCEPTED", "CONTENT")
_REPEAT = re.compile(r"\{(\d+)\*([^{}]+)\}")


@dataclass(frozen=True)
class Action:
    number: int
    kind: str
    text: str


@dataclass
class Script:
    name: str
    listener: dict[str, str] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)


def read_script(path: Path) -> Script:
    """Raises ValueError that names file and line."""
    script = Script(path.stem)
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        kind, _, text = line.partition(":")
        text = text.removeprefix(" ")
        if not line.strip() or line.startswith("#"):
            continue
        if kind == "listener":
            script.listener |= dict(word.split("=", 1) for word in text.split())
        elif kind in KINDS:
            script.actions.append(Action(number, kind, text))
        else:
            raise ValueError(f"{path}:{number}: found {line!r}, expected S:, C:, R:, TLS, END …")
    return script


def octets(text: str) -> bytes:
    """Return the octets of a C or R line, without an added CRLF."""
    text = _REPEAT.sub(lambda found: found.group(2) * int(found.group(1)), text)
    pieces = re.split(r"(\\x[0-9a-f]{2}|\\[rn0t\\])", text)
    escapes = {"\\r": b"\r", "\\n": b"\n", "\\0": b"\0", "\\t": b"\t", "\\\\": b"\\"}
    return b"".join(
        bytes.fromhex(piece[2:])
        if re.fullmatch(r"\\x[0-9a-f]{2}", piece)
        else escapes.get(piece) or piece.encode("utf-8")
        for piece in pieces
    )


def over_bdat(script: Script) -> None:
    """Make BDAT of each DATA: the same replies follow, without the 354."""
    script.actions = list(_chunked(script.actions))


def _chunked(actions: list[Action]) -> Iterator[Action]:
    rest = list(actions)
    while rest:
        action = rest.pop(0)
        if (action.kind, action.text.upper()) != ("C", "DATA"):
            yield action
            continue
        sent = list(takewhile(lambda one: one.kind in "CR", rest))
        said = list(takewhile(lambda one: one.kind == "S", rest[len(sent) :]))
        invitation = next((one for one in said if one.text.startswith("354")), None)
        if invitation is None:
            yield Action(action.number, "R", r"BDAT 5 LAST\r\nhello")
            continue
        rest.remove(invitation)
        content = b"\r\n"
        while not content.endswith(b"\r\n.\r\n"):
            at = next(i for i, one in enumerate(rest) if one.kind in "CR")
            yield from rest[:at]
            content += octets(rest[at].text) + (b"\r\n" if rest[at].kind == "C" else b"")
            del rest[: at + 1]
        content = content[: -len(b".\r\n")].replace(b"\r\n.", b"\r\n")[len(b"\r\n") :]
        text = "".join(f"\\x{octet:02x}" for octet in content)
        yield Action(action.number, "R", rf"BDAT {len(content)} LAST\r\n{text}")
