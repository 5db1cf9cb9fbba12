"""The commands to one milter in one session, and the meaning of its answers: no I/O.

A command is sent if the milter negotiated it and has not yet decided. A decision is about the
session (at connect and HELO), about one recipient, or about the message. After a fault, each result
is what `when_down` says. Changes are collected until the decision at the end of the message.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import chain, islice
from typing import Final

from msgspec import Struct

from relay.transport.milter import codec
from relay.transport.milter.codec import (
    FieldChange,
    MilterFaultError,
    MilterPacket,
    Negotiated,
    PathChange,
)

ADDED_OCTETS_MAX: Final = 10 * 1024 * 1024  # of all header fields that a milter adds or changes
CHANGES_MAX: Final = 20_000  # of fields, and of recipients; a message has up to 10,000 fields
_DESCRIBED_MAX: Final = 50
_DESCRIBED_CHARACTERS_MAX: Final = 300  # of a change: the name of a field may have a MiB


class FilterStage(StrEnum):
    """Where in the dialogue a milter answered, in the words of a journey."""

    CONNECT = "connect"
    HELO = "helo"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    HEADER = "header"
    END_OF_HEADER = "end of header"
    BODY = "body"
    END_OF_MESSAGE = "end of message"


CONTENT: Final = tuple(FilterStage)[5:]


class _Command(Struct, frozen=True):
    octet: bytes
    unwanted: int = 0  # the step "do not send"
    silent: int = 0  # the step "gives no answer"
    macros: int | None = None  # the number of the stage
    since: int = 2  # the version of the protocol


_COMMANDS: Final[Mapping[FilterStage, _Command]] = {
    FilterStage.CONNECT: _Command(b"C", 0x1, 0x1000, 0),
    FilterStage.HELO: _Command(b"H", 0x2, 0x2000, 1),
    FilterStage.MAIL: _Command(b"M", 0x4, 0x4000, 2),
    FilterStage.RCPT: _Command(b"R", 0x8, 0x8000, 3),
    FilterStage.DATA: _Command(b"T", 0x200, 0x10000, 4, since=4),
    FilterStage.HEADER: _Command(b"L", 0x20, 0x80),
    FilterStage.END_OF_HEADER: _Command(b"N", 0x40, 0x40000, 6),
    FilterStage.BODY: _Command(b"B", 0x10, 0x80000),
    FilterStage.END_OF_MESSAGE: _Command(b"E", macros=5),
}
# Postfix's lists, for a milter that asks for no others
_MACROS: Final[Mapping[int, Sequence[str]]] = {
    0: ("j", "{daemon_name}", "{daemon_addr}", "v", "_"),
    1: ("{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}", "{cert_issuer}"),
    2: (
        "i",
        "{auth_type}",
        "{auth_authen}",
        "{auth_author}",
        "{mail_addr}",
        "{mail_host}",
        "{mail_mailer}",
    ),
    3: ("i", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"),
    4: ("i",),
    5: ("i",),
    6: ("i",),
}

_VERBS: Final[Mapping[bytes, str]] = {
    codec.ADD_FIELD: "add",
    codec.INSERT_FIELD: "insert",
    codec.CHANGE_FIELD: "change",
    codec.ADD_RECIPIENT: "add recipient",
    codec.ADD_WITH_PARAMETERS: "add recipient",
    codec.REMOVE_RECIPIENT: "remove recipient",
    codec.CHANGE_SENDER: "change sender to",
}
_LATER: Final = "451 4.7.1 Service unavailable - try again later"
_MEANINGS: Final[Mapping[bytes, tuple[str, str]]] = {
    codec.CONTINUE: ("continue", ""),
    codec.SKIP_REST: ("continue", ""),
    codec.ACCEPT: ("accept", ""),
    codec.DISCARD: ("discard", ""),
    codec.REJECT: ("reject", "550 5.7.1 Command rejected"),
    codec.DEFER: ("tempfail", _LATER),
    codec.SHUTDOWN: ("shutdown", "421 4.7.0 Server closing connection"),
}
_WHEN_DOWN: Final = {"accept": "", "defer": _LATER, "reject": "550 5.5.0 Service unavailable"}


class FilterAnswer(Struct, frozen=True):
    """What a milter says to a command."""

    answer: str = "continue"  # also accept, reject, tempfail, reply, discard, shutdown, down
    reply: str = ""  # for the client: lines with CRLF between them; "": go on
    milter: str = ""  # the name of the one that says it

    @property
    def closes(self) -> bool:
        """Whether the session ends with this reply."""
        return self.reply.startswith("421")


GO_ON: Final = FilterAnswer()
NO_PLACE: Final = FilterAnswer(  # of no milter: Relay lacks a connection
    "tempfail", "451 4.3.2 Too many connections to a filter - try again later"
)


class MilterChanges(Struct):
    """The changes of a milter to a message, until it decides. NewBody has a new body."""

    fields: list[FieldChange] = []
    paths: list[PathChange] = []
    quarantine: str | None = None  # the reason, which may be ""
    replaces_body: bool = False
    octets: int = 0  # of the fields

    def described(self) -> tuple[str, ...]:
        """Return the changes as short texts, such as "add X-Spam"; at most _DESCRIBED_MAX."""
        fields = (
            f"{_VERBS[change.command] if change.value else 'remove'} {change.name.decode()}"
            for change in self.fields
        )
        paths = (f"{_VERBS[change.command]} <{change.address}>" for change in self.paths)
        body = ("replace body",) if self.replaces_body else ()
        held = () if self.quarantine is None else ("quarantine",)
        texts = islice(chain(fields, paths, body, held), _DESCRIBED_MAX)
        return tuple([text[:_DESCRIBED_CHARACTERS_MAX] for text in texts])


class MilterDialogue:
    """The state of one milter in one session."""

    def __init__(self, name: str, when_down: str) -> None:
        self.name = name
        self._when_down = when_down
        self._wants = Negotiated(codec.VERSION, 0, 0, {})
        self._skips: FilterStage | None = None  # the milter skips further commands of this stage
        self._accepts_message = False
        self._in_message = False  # MAIL was sent
        self._body_ended = False
        self.session: FilterAnswer | None = None  # the same answer to each further command
        self.changes = MilterChanges()

    def negotiate(self, packet: MilterPacket) -> None:
        """Take the answer to codec.offer(). Raises MilterFaultError."""
        self._wants = codec.negotiated(packet)

    @property
    def leading_blank(self) -> bool:
        """Whether values of fields have the blank after the colon, in both directions."""
        return bool(self._wants.steps & codec.LEADING_BLANK)

    @property
    def is_done(self) -> bool:
        """Whether the milter gets no more commands about this message."""
        return self.session is not None or self._accepts_message

    @property
    def is_down(self) -> bool:
        """Whether it has had a fault."""
        return self.session is not None and self.session.answer == "down"

    def wants(self, stage: FilterStage) -> bool:
        """Return whether the milter gets this command now."""
        command = _COMMANDS[stage]
        if self.is_done or stage is self._skips:
            return False
        return not self._wants.steps & command.unwanted and self._wants.version >= command.since

    def command(
        self, stage: FilterStage, data: bytes, macros: Mapping[str, str]
    ) -> tuple[bytes, bool]:
        """Return the packets of a command, with its macros, and whether an answer follows.

        `macros` are by name, without braces. As in Postfix, they are sent even to a milter that
        does not want the command.
        """
        if stage is not self._skips:
            self._skips = None
        command = _COMMANDS[stage]
        if self.is_done or self._skips or self._wants.version < command.since:
            return b"", False
        if stage is FilterStage.MAIL:
            self._in_message = True
        octets = b""
        if command.macros is not None:
            names = self._wants.macros.get(command.macros, _MACROS[command.macros])
            pairs = ((name, macros.get(name.strip("{}"), "")) for name in names)
            texts = codec.text_of(*(text for pair in pairs if pair[1] for text in pair))
            octets = codec.encode(b"D", command.octet, texts)
        if self._wants.steps & command.unwanted:
            return octets, False
        octets += codec.encode(command.octet, data)
        return octets, not self._wants.steps & command.silent

    def answer(self, stage: FilterStage, packet: MilterPacket) -> FilterAnswer | bytes | None:
        """Take a packet: return the answer, a piece of a new body, or None if more follows.
        Raises MilterFaultError.
        """
        command = packet.command
        if command == codec.PROGRESS:
            codec.check_bare(packet)
            return None
        if command in codec.NEEDS:
            return self._change(stage, packet)
        if command == codec.REPLY:
            word, reply = "reply", codec.reply_of(packet)
        else:
            codec.check_bare(packet)
            word, reply = _MEANINGS[command]
        if command == codec.SKIP_REST:
            self._skips = stage
        is_session = stage in (FilterStage.CONNECT, FilterStage.HELO)
        answer = FilterAnswer(word, reply, self.name)
        if command == codec.DISCARD and is_session:  # not allowed: ignored, as by Postfix
            return GO_ON
        if command == codec.SHUTDOWN or (is_session and (reply or command == codec.ACCEPT)):
            self.session = answer
        elif command in (codec.ACCEPT, codec.DISCARD):
            self._accepts_message = True
        return answer

    def fault(self) -> None:
        """Record that the milter is down or faulty: the result is by `when_down`."""
        self.session = FilterAnswer("down", _WHEN_DOWN[self._when_down], self.name)
        self.changes = MilterChanges()

    def abort(self) -> bytes:
        """Return the packet that ends a message, b"" outside of one."""
        octets = codec.encode(b"A") if self._in_message and self.session is None else b""
        self.end_message()
        return octets

    def end_message(self) -> None:
        """Forget the message, about which the milter has decided."""
        self._in_message = self._accepts_message = self._body_ended = False
        self._skips = None
        self.changes = MilterChanges()

    def _change(self, stage: FilterStage, packet: MilterPacket) -> bytes | None:
        if stage is not FilterStage.END_OF_MESSAGE:
            raise MilterFaultError(f"a change {packet.command!r} at {stage}")
        if not self._wants.actions & codec.NEEDS[packet.command]:
            raise MilterFaultError(f"a change {packet.command!r} that was not negotiated")
        changes, change = self.changes, codec.change_of(packet)
        if isinstance(change, bytes):
            if self._body_ended:
                raise MilterFaultError("a part of a body after another change")
            changes.replaces_body = True
            return change
        self._body_ended = changes.replaces_body
        if isinstance(change, str):
            changes.quarantine = change
        elif isinstance(change, PathChange):
            if change.address or change.command == codec.CHANGE_SENDER:  # as in Postfix
                changes.paths.append(change)
        else:
            changes.fields.append(change)
            changes.octets += len(change.name) + len(change.value)
        if changes.octets > ADDED_OCTETS_MAX:
            raise MilterFaultError(f"more than {ADDED_OCTETS_MAX} octets of header fields")
        if max(len(changes.fields), len(changes.paths)) > CHANGES_MAX:
            raise MilterFaultError(f"more than {CHANGES_MAX} changes")
        return None
