"""What a host's reply means where its provider does not mean what the code says: [[reply]] entries.

They come from the operator's file, `[delivery] providers`, and then from conf/providers.toml. The
first that matches a 4yz or 5yz reply decides its outcome in place of relay/base/message/outcome.py.
They do not apply to success, to a reply that was not understood, or to an attempt whose end is
unknown. `site` applies a pause and a number of connections. The format is in conf/providers.toml.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Failed
from relay.base.phrases import words_in
from relay.base.settings.document import Fault, SettingsError, read_document, unknown_key
from relay.base.settings.environment import shipped
from relay.base.settings.tree import Between, OAuthClient
from relay.base.settings.values import is_ip, parse_duration
from relay.transport.policy.globs import Globs, read_globs
from relay.transport.policy.patterns import Pattern, PatternError, PatternSet
from relay.transport.policy.table_reader import FAULTS_MAX, TableReader, some_text, tables, typed
from relay.transport.routing.routes import Credentials

FILE_BYTES_MAX = 256 * 1024
_PAUSE_S_MAX = 86400.0
_CONNECTIONS = Annotated[int, Between(1, 1000)]
_KEYS = words_in("name source date mx login code status text class pause connections provider")
_SECOND_LEVEL = ("ac", "co", "com", "edu", "gov", "ne", "net", "or", "org")  # as in co.uk
_FAILED = "failed"
# Mail whose class is "content" is held the second time: its file cannot be read.
_CLASSES = (_FAILED, *(str(kind) for kind in DeferralClass if kind is not DeferralClass.CONTENT))
_REPLY = re.compile(r"([45][0-9]{2})(?: ([45]\.[0-9]{1,3}\.[0-9]{1,3})(?=\s|\Z))?")


class ReplyEntry(Struct, frozen=True):
    """An entry: which replies it is for, and what follows from them."""

    name: str  # for the trace
    provider: str  # whose hosts `mx` has, in statistics; "": not named
    mx: Globs | None  # for the name of the host; None: any, as in the next three
    codes: frozenset[int] | None  # of the reply
    status: Globs | None  # the enhanced status that the host sent, "" if it sent none
    text: Pattern | None  # found anywhere in the reply
    kind: DeferralClass | None  # None: failed
    at_microsoft: bool = False  # for other hosts too, if the route's [[oauth]] is Microsoft's
    pause_s: float = 0.0  # how long the site is not contacted
    connections: int = 0  # the site's limit for a while; 0: none


class ProviderReplies:
    """Entries in the order in which they are asked. Of those with one name the first counts."""

    def __init__(
        self, entries: Iterable[ReplyEntry] = (), clients: Iterable[OAuthClient] = ()
    ) -> None:
        """Compile the entries; `clients` are the [[oauth]] of the configuration."""
        self.of_microsoft = {client.name for client in clients if client.is_microsoft}
        self.entries: dict[str, ReplyEntry] = {}
        for rule in entries:
            self.entries.setdefault(rule.name, rule)
        self._texts = {
            rule.name: PatternSet([rule.text]) for rule in self.entries.values() if rule.text
        }

    def judged(
        self, outcome: Deferred | Failed, login: Credentials | None = None
    ) -> Deferred | Failed:
        """Return the outcome by the first entry that matches; the outcome itself if none does.
        `login` is that of the route.
        """
        evidence = outcome.evidence
        rule = self._entry_for(evidence, login is not None and login.oauth in self.of_microsoft)
        if rule is None:
            return outcome
        severity = "5" if rule.kind is None else "4"
        evidence = replace(evidence, provider=rule.name, status=severity + evidence.status[1:])
        return Failed(evidence) if rule.kind is None else Deferred(evidence, rule.kind)

    def provider_of(self, host: str) -> str:
        """Return whose a host is: `provider` of the first entry for it, else its domain."""
        for rule in self.entries.values():
            if rule.provider and rule.mx and rule.mx.match(host):
                return rule.provider
        labels = host.split(".")
        number = 3 if len(labels[-1]) == 2 and labels[-2:][0] in _SECOND_LEVEL else 2
        return host if is_ip(host) else ".".join(labels[-number:])

    def _entry_for(self, evidence: Evidence, at_microsoft: bool) -> ReplyEntry | None:
        reply = evidence.reply
        match = _REPLY.match(reply)
        if not evidence.remote or evidence.provider or match is None:
            return None
        code, status = int(match[1]), match[2] or ""
        for rule in self.entries.values():
            if (
                (rule.codes is None or code in rule.codes)
                and (
                    rule.mx is None
                    or rule.mx.match(evidence.host)
                    or (at_microsoft and rule.at_microsoft)
                )
                and (rule.status is None or rule.status.match(status))
                and (rule.text is None or self._has_text(rule, reply))
            ):
                return rule
        return None

    def _has_text(self, rule: ReplyEntry, reply: str) -> bool:
        with suppress(PatternError):  # out of memory: the outcome table decides
            return bool(self._texts[rule.name].matching(reply))
        return False


def load_provider_replies(
    own: Path | None, config: Path, clients: Iterable[OAuthClient] = ()
) -> ProviderReplies:
    """Return the entries of the operator's file, which `config` names, and of the one that is
    shipped; `clients` are the [[oauth]] there. Raises SettingsError.
    """
    if own is not None and not own.is_file():
        text = f'found "{own}", expected a file of [[reply]] tables: there is none'
        raise SettingsError([read_document(config).fault(("delivery", "providers"), text)])
    faults: list[Fault] = []
    entries = [*_read(own, faults)] if own is not None else []
    if faults:
        raise SettingsError(faults)
    return ProviderReplies([*entries, *_shipped_entries()], clients)


@cache
def _shipped_entries() -> Sequence[ReplyEntry]:
    """Return the entries of this version: another one may replace the file while Relay runs."""
    return tuple(_read(shipped("conf") / "providers.toml", []))


def _read(file: Path, faults: list[Fault]) -> Iterator[ReplyEntry]:
    """Yield the entries of a file that have no faults; add the faults of the others to `faults`."""
    document = read_document(file, bytes_max=FILE_BYTES_MAX)
    unknown = [key for key in document.table if key != "reply"]
    faults += [document.fault((key,), unknown_key(key, ("reply",))) for key in unknown[:FAULTS_MAX]]
    lines: dict[object, int] = {}
    for reader in tables(document, "reply", faults):
        rule = _entry(reader)
        if (line := lines.setdefault(rule.name, reader.line)) != reader.line and rule.name:
            reader.add_fault(
                ("name",), f"found the name of the entry in line {line}, expected another"
            )
        if not reader.has_faults:
            yield rule


def _entry(reader: TableReader) -> ReplyEntry:
    reader.check_keys(_KEYS)
    if not reader.table.keys() & {"code", "status", "text"}:
        reader.add_fault((), "found no code, status or text, expected one: it is for all failures")
    for key in ("source", "date"):
        reader.key(key, some_text, default="")
    kind = reader.required("class", _class, default=_FAILED)
    return ReplyEntry(
        name=reader.required("name", some_text, default=""),
        provider=reader.key("provider", some_text, default=""),
        mx=reader.key("mx", read_globs, default=None),
        codes=reader.key("code", _codes, default=None),
        status=reader.key("status", read_globs, default=None),
        text=reader.key("text", Pattern.parse, default=None),
        kind=None if kind == _FAILED else DeferralClass(kind),
        pause_s=reader.key("pause", _pause, default=0.0),
        connections=reader.key("connections", typed(_CONNECTIONS), default=0),
        at_microsoft=reader.key("login", _login, default=False),
    )


def _class(value: Any) -> str:
    if value not in _CLASSES:
        raise ValueError(f"one of {', '.join(_CLASSES)}")
    return str(value)


def _login(value: Any) -> bool:
    if value != "microsoft":
        raise ValueError('"microsoft"')
    return True


def _codes(value: Any) -> frozenset[int] | None:
    values = value if isinstance(value, list) else [value]
    if not values or not all(type(code) is int and 400 <= code <= 599 for code in values):
        raise ValueError("a code from 400 to 599, or a list of codes")
    return frozenset(values)


def _pause(value: Any) -> float:
    seconds = parse_duration(value if isinstance(value, str) else "")
    if not 0 < seconds <= _PAUSE_S_MAX:
        raise ValueError("a duration of at most 1 day")
    return seconds
