"""The texts of reports: Relay's texts in each language, and the operator's templates.

load_texts() compiles the operator's templates and tries them with sample data; it raises
SettingsError with file and line. They run in Jinja's sandbox. If a template fails later, Relay's
text is used, and the failure is logged. The HTML loads nothing, and no value becomes markup in it.
The fields of templates are in docs/reports.md. Jinja takes 2 MB: the first report or the operator's
first template imports it, in 30 ms.
"""

import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from msgspec import Struct, structs
from msgspec.structs import replace

from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, Source
from relay.base.message.header import Header
from relay.base.message.outcome import Evidence
from relay.base.message.receipt import ReceiptKind, ReceiptRequest
from relay.base.observe.logs import get_logger
from relay.base.phrases import shown, words_in
from relay.base.settings.document import Fault, SettingsError
from relay.base.settings.tree import Language, ReportsSettings
from relay.delivery.reports import wording
from relay.formats.dsn import HumanPart, Report, ReportedRecipient, ReportKind
from relay.formats.headers import decoded
from relay.formats.mdn import Receipt

if TYPE_CHECKING:
    import jinja2

LANGUAGES: Sequence[str] = get_args(Language)
_KINDS: Sequence[str] = (*ReportKind, *ReceiptKind)
_RENDERED_CHARACTERS_MAX = 256 * 1024  # of an operator's template
_RENDERING_S_MAX = 0.2  # of processor time; a template with 100 recipients takes milliseconds
_FILE_OCTETS_MAX = 64 * 1024
_FILES_MAX = 1000
_KIND_FIELDS = frozenset(
    words_in(
        "kind language sender subject message_id arrived until hostname queue_id recipients "
        "reasons count more"
    )
)
_RECEIPT_FIELDS = frozenset(
    words_in("kind language sender address subject message_id time hostname queue_id")
)
_COUNTED = "_counted"  # what each loop of a template goes through
_MEGABYTE = 2**20  # as in the limits of Exchange
_COLOURS = {True: "#2e7d32", False: "#c62828"}  # of the bar next to good and bad news
_status_file = re.compile(r"([45]\.[0-9]{1,3}(?:\.[0-9]{1,3})?)\.txt").fullmatch
_log = get_logger("reports")


class _TooLongError(Exception):
    """A template wrote more than a report may have, or took too long."""


class ReportTexts(Struct, frozen=True):
    """The texts in force. `templates` are the operator's, by language and file name."""

    language: str = "en"  # of those for whom no other is known
    templates: "Mapping[tuple[str, str], jinja2.Template]" = {}

    def write(
        self, report: Report, header: Header, *, language: str = "", is_notice: bool = False
    ) -> HumanPart:
        """Return the human part of a report. `header` comes from the original message. `language`
        is the reader's, "" if it is not known. A notice tells the postmaster.
        """
        accepted = decoded(header, "accept-language")
        language = language or wording.accepted_language(accepted, LANGUAGES) or self.language
        fields = self.fields(report, header, language)
        own = _own_texts(language)
        opening = own.openings[str(report.kind)][len(report.recipients) > 1]
        for_layout = {"opening": opening, "colour": _COLOURS[wording.is_success(report.kind)]}
        if is_notice:
            for_layout["opening"] = own.notice % fields["sender"]
            fields["reasons"] = [replace(reason, advice="") for reason in fields["reasons"]]
        elif len(fields["reasons"]) == 1 and _is_refused_here(report):
            [reason] = fields["reasons"]  # the first sentence says it
            megabytes = round(report.message.size / _MEGABYTE)
            for_layout["opening"] = own.unsent(fields["subject"], megabytes, reason).strip()
            for_layout["reasons"] = [replace(reason, why="", advice="")]
        return self._written(fields, for_layout)

    def receipt(self, receipt: Receipt, language: str = "") -> HumanPart:
        """Return the human part of a read receipt; `language` as in write()."""
        accepted = receipt.request.accept_language
        language = language or wording.accepted_language(accepted, LANGUAGES) or self.language
        about = wording.receipt_fields(receipt)
        opening, why = _own_texts(language).receipts[str(receipt.kind)]
        who = [{"address": about["address"]}]
        for_layout = {
            "opening": opening,
            "colour": _COLOURS[receipt.kind is ReceiptKind.READ],
            "reasons": [{"why": why % about["time"], "advice": "", "recipients": who}],
            "recipients": (),
            "arrived": "",
            "more": 0,
        }
        return self._written(about | {"language": language}, for_layout)

    def _written(self, fields: Mapping[str, Any], for_layout: Mapping[str, Any]) -> HumanPart:
        """Return both forms, by the operator's templates or by the layouts of this relay, which get
        more.
        """
        language = fields["language"]
        context = {**fields, **for_layout, "words": _own_texts(language).words}
        text, html = (
            self._rendered(language, f"{fields['kind']}.{form}", fields) or layout.render(context)
            for form, layout in _layouts().items()
        )
        return HumanPart(language, text, html)

    def fields(self, report: Report, header: Header, language: str) -> dict[str, Any]:
        """Return what the template of a kind is given."""
        reported = tuple(
            self._recipient(report, recipient, language)
            for recipient in report.recipients[: wording.SHOWN_RECIPIENTS_MAX]
        )
        return wording.message_fields(report, header) | {
            "language": language,
            "recipients": reported,
            "reasons": _reasons(reported),
            "count": len(report.recipients),
            "more": len(report.recipients) - len(reported),
        }

    def _recipient(
        self, report: Report, recipient: ReportedRecipient, language: str
    ) -> wording.RecipientFields:
        kind, hostname = report.kind, report.hostname
        if wording.is_success(kind):
            return wording.recipient_fields(recipient, detail="", hostname=hostname)
        if kind is ReportKind.HELD:  # the administrator's text says why
            bare = wording.recipient_fields(recipient, detail="", hostname=hostname)
            return replace(bare, why=" ".join(recipient.evidence.reply.split()), reply="")
        failure = wording.failure_of(kind, recipient)
        bare = wording.recipient_fields(recipient, detail=failure.detail, hostname=hostname)
        fields = {"recipient": bare, "hostname": hostname, "language": language}
        first, _, detail = bare.status.partition(".")
        names = (bare.status, f"{first}.{detail.partition('.')[0]}") if self.templates else ()
        for name in names:
            if text := self._rendered(language, f"{name}.txt", fields):
                paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
                advice = "" if kind is ReportKind.DELAYED else " ".join(paragraphs[1:])
                return replace(bare, why=paragraphs[0], advice=advice)
        explained = _explained(bare, failure, _own_texts(language), hostname=hostname)
        # while attempts go on, there is nothing to do
        return replace(explained, advice="") if kind is ReportKind.DELAYED else explained

    def _rendered(self, language: str, name: str, fields: Mapping[str, Any]) -> str:
        """Return what the operator's template writes, "" if there is none or it fails."""
        template = self.templates.get((language, name))
        if template is None:
            return ""
        try:
            return _bounded(template, fields)
        except Exception as error:  # noqa: BLE001 - no template may prevent a report
            _log.error(
                "a template failed: the report has the text of this relay",
                file=template.filename,
                error=f"{type(error).__name__}: {error}",
            )
            return ""


def _explained(
    bare: wording.RecipientFields, failure: wording.Failure, own: Any, *, hostname: str
) -> wording.RecipientFields:
    text = getattr(own, failure.kind)(bare, bare.domain or own.somewhere, hostname)
    why, _, advice = text.strip().partition("\n")
    why = f"{why} {own.given_up}" if failure.gave_up else why
    return replace(bare, why=why, advice=advice)


def _is_refused_here(report: Report) -> bool:
    """Return whether a rule of this relay, or Microsoft Graph, refused the first recipient."""
    failure = wording.failure_of(report.kind, report.recipients[0])
    own = (wording.FailureClass.OWN_WAY, wording.FailureClass.RULE)
    return report.kind is ReportKind.FAILED and failure.kind in own


def _reasons(recipients: Sequence[wording.RecipientFields]) -> Sequence[wording.Reason]:
    """Group recipients that have the same text, in the order of the first ones."""
    groups: dict[tuple[str, str], list[wording.RecipientFields]] = {}
    for recipient in recipients:
        groups.setdefault((recipient.why, recipient.advice), []).append(recipient)
    return tuple(wording.Reason(*text, tuple(group)) for text, group in groups.items())


def _bounded(template: "jinja2.Template", fields: Mapping[str, Any]) -> str:
    """Return the text of a template. Raises what the template raises, and _TooLongError."""
    end_s = time.thread_time() + _RENDERING_S_MAX

    def counted(items: Iterable[Any]) -> Iterator[Any]:
        for member in items:
            if time.thread_time() > end_s:
                raise _TooLongError(f"loops for more than {_RENDERING_S_MAX} s")
            yield member

    pieces, size = [], 0
    for piece in template.generate({**fields, _COUNTED: counted}):
        pieces.append(piece)
        size += len(piece)
        if size > _RENDERED_CHARACTERS_MAX:
            raise _TooLongError(f"more than {_RENDERED_CHARACTERS_MAX} characters")
    return "".join(pieces)


# -- the texts of this relay
class TextSource(Struct, frozen=True):
    """Gives the texts in force, and the language of an account: "" where it is not known."""

    current: Callable[[], ReportTexts] = ReportTexts  # Relay's
    language_of: Callable[[str], str] = lambda _address: ""


@cache
def _layouts() -> "Mapping[str, jinja2.Template]":
    """Return the layouts of text and html."""
    return {
        form: _environment(form).from_string(_package_texts()[f"layout.{form}"])
        for form in ("txt", "html")
    }


@cache
def _own_texts(language: str) -> Any:
    """Return what this relay says in one language: the names that texts/en.txt describes."""
    return _environment("txt").from_string(_package_texts()[f"{language}.txt"]).module


@cache
def _package_texts() -> Mapping[str, str]:
    """Return the files of this relay by name, all read at once: an upgrade may replace them."""
    folder = resources.files("relay.delivery.reports").joinpath("texts")
    names = ("layout.txt", "layout.html", *(f"{language}.txt" for language in LANGUAGES))
    return {name: folder.joinpath(name).read_text("utf-8") for name in names}


def _environment(form: str, *, is_operators: bool = False) -> "jinja2.Environment":
    import jinja2.sandbox  # noqa: PLC0415 - see above

    kind = jinja2.sandbox.ImmutableSandboxedEnvironment if is_operators else jinja2.Environment
    return kind(
        autoescape=form == "html",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# -- the operator's templates
def load_texts(settings: ReportsSettings) -> ReportTexts:
    """Return the texts that `settings` name, and read Relay's.

    Raises SettingsError with all faults; OSError if a file of the installation is missing.
    """
    _package_texts()
    folder = settings.templates
    if folder is None:
        return ReportTexts(settings.language)
    faults: list[Fault] = []
    templates: dict[tuple[str, str], jinja2.Template] = {}
    for language, file in _files(folder, faults):
        try:
            template = _compiled(file)
            for fields in _samples(file.name, language):
                _bounded(template, fields)
        except Exception as error:  # noqa: BLE001 - whatever the template does
            faults.append(_fault(file, error))
        else:
            templates[language, file.name] = template
    if faults:
        raise SettingsError(faults)
    return ReportTexts(settings.language, templates)


def _files(folder: Path, faults: list[Fault]) -> Iterator[tuple[str, Path]]:
    """Yield the language and the path of each template; add a fault for what is none."""
    try:
        entries = _visible(folder)
        inner = {
            path: _visible(path) for path in entries if path.is_dir() and path.name in LANGUAGES
        }
    except OSError as error:
        message = f"found {error.strerror}, expected a directory that can be read"
        faults.append(Fault(Path(error.filename or folder), 0, "", message))
        return
    for path in entries:
        if path not in inner:
            expected = f"a directory named after a language: {', '.join(LANGUAGES)}"
            faults.append(Fault(path, 0, "", f"found {shown(path.name)}, expected {expected}"))
    if sum(map(len, inner.values())) > _FILES_MAX:
        faults.append(Fault(folder, 0, "", f"found more than {_FILES_MAX} files, expected fewer"))
        return
    for language, files in inner.items():
        for file in files:
            if _known_name(file.name):
                yield language.name, file
                continue
            expected = (
                f"KIND.txt or KIND.html, where KIND is one of {', '.join(_KINDS)}; or"
                " STATUS.txt, such as 5.2.2.txt or 5.2.txt"
            )
            faults.append(Fault(file, 0, "", f"found {shown(file.name)}, expected {expected}"))


def _visible(folder: Path) -> list[Path]:
    """Return what is in a directory, without hidden files and the copies that editors keep."""
    paths = sorted(folder.iterdir())
    return [path for path in paths if not path.name.startswith(".") and not path.name.endswith("~")]


def _known_name(name: str) -> bool:
    kind, _, form = name.partition(".")
    if kind in _KINDS:
        return form in _layouts()
    return _status_file(name) is not None


def _fields_of(name: str) -> frozenset[str]:
    """Return the fields that the template `name` has."""
    if _status_file(name):
        return frozenset(("recipient", "hostname", "language"))
    return _RECEIPT_FIELDS if name.partition(".")[0] in tuple(ReceiptKind) else _KIND_FIELDS


def _compiled(file: Path) -> "jinja2.Template":
    """Compile a template. Raises OSError, UnicodeDecodeError, ValueError, TemplateError."""
    import jinja2.meta  # noqa: PLC0415 - see above

    with file.open("rb") as opened:
        octets = opened.read(_FILE_OCTETS_MAX + 1)
    if len(octets) > _FILE_OCTETS_MAX:
        raise ValueError(f"found more than {_FILE_OCTETS_MAX} octets, expected fewer")
    source = octets.decode("utf-8")
    environment = _environment(file.name.rpartition(".")[2], is_operators=True)
    known = _fields_of(file.name)
    tree = environment.parse(source, filename=str(file))
    unknown = jinja2.meta.find_undeclared_variables(tree) - known
    for name in tree.find_all(jinja2.nodes.Name):
        if name.name in unknown:
            expected = f"one of {', '.join(sorted(known))}"
            text = f"found an unknown field {shown(name.name)}, expected {expected}"
            raise jinja2.TemplateSyntaxError(text, name.lineno, filename=str(file))
    for loop in list(tree.find_all(jinja2.nodes.For)):
        counted = jinja2.nodes.Name(_COUNTED, "load", lineno=loop.lineno)
        call = jinja2.nodes.Call(counted, [loop.iter], [], None, None, lineno=loop.lineno)
        loop.iter = call.set_environment(environment)
    code = environment.compile(tree, filename=str(file))
    return environment.template_class.from_code(environment, code, environment.globals)


def _fault(file: Path, error: Exception) -> Fault:
    """Return what is wrong with a template, at its line."""
    import jinja2  # noqa: PLC0415 - see above

    match error:
        case OSError():
            return Fault(file, 0, "", f"found {error.strerror}, expected a file that can be read")
        case UnicodeDecodeError():
            return Fault(file, 0, "", "found octets that are not UTF-8, expected UTF-8")
        case jinja2.TemplateSyntaxError():
            return Fault(file, error.lineno, "", error.message or "found a fault of syntax")
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame.lineno for frame in frames if frame.filename == str(file)]
    text = " ".join(str(error).split()) or type(error).__name__
    return Fault(file, (places or [0])[-1] or 0, "", text)


def _samples(name: str, language: str) -> Iterator[dict[str, Any]]:
    """Yield sample fields for the template `name`: of a report with all fields, and with few."""
    if name.partition(".")[0] in tuple(ReceiptKind):
        yield from _receipt_samples(ReceiptKind(name.partition(".")[0]), language)
        return
    header = Header.parse(b"Subject: Quarterly report\r\nMessage-ID: <sample@example.org>\r\n")
    status = (_status_file(name) or ("", "5.2.2"))[1]
    status = status if status.count(".") == 2 else f"{status}.0"
    reply = f"550 {status} a sample <reply> & more"
    full = MessageFacts(
        "06h0sample000000",
        Envelope("alice@example.org"),
        Source.SMTP,
        trusted=True,
        received_us=1_795_169_038_000_000,
        expires_us=1_795_341_838_000_000,
    )
    remote = ReportedRecipient(
        ForwardPath("bob@example.net"),
        Evidence(status, reply, "mx.example.net", remote=True),
        rule="sample rule",
        last_attempt_us=full.received_us,
    )
    local = ReportedRecipient(ForwardPath("carol@example.org"), Evidence(status, ""))
    few = structs.replace(full, id="", expires_us=0)
    shipped = ReportTexts()
    kind = next((kind for kind in ReportKind if name.startswith(f"{kind}.")), None)
    for about, recipients in (
        (full, [remote] * (wording.SHOWN_RECIPIENTS_MAX + 1)),
        (few, [local]),
    ):
        if kind is not None:
            report = Report(kind, about, recipients, "relay.example.org")
            yield shipped.fields(report, header, language)
            header = Header()
            continue
        shown_as = wording.recipient_fields(recipients[0], detail="", hostname="relay.example.org")
        yield {"recipient": shown_as, "hostname": "relay.example.org", "language": language}


def _receipt_samples(kind: ReceiptKind, language: str) -> Iterator[dict[str, str]]:
    few = ReceiptRequest("bob@example.net", "alice@example.org", "bob@example.net")
    for request in (replace(few, message_id="<sample@example.org>", subject="Report"), few):
        now_us, queue_id = 1_795_169_038_000_000, "06h0sample000000"
        receipt = Receipt(kind, request, "relay.example.org", now_us, queue_id)
        yield wording.receipt_fields(receipt) | {"language": language}
