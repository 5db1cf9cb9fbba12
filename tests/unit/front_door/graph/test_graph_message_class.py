"""The message class of reports: shown by $expand, and found by a $filter."""

from relay.formats.dsn import ReportKind
from tests.support.graph_fakes import OnDisk, refused
from tests.support.sample_reports import LATIN1, ORIGINAL, RECIPIENTS, report_of
from tests.support.tables import each_row

MDN = b"""Subject: Read: x
Content-Type: multipart/report; report-type=disposition-notification; boundary=b

--b

Read.
--b
Content-Type: message/disposition-notification

Final-Recipient: rfc822; bob@example.net
Disposition: manual-action/MDN-sent-manually; %s
--b--
"""
MIXED = b"""Subject: mixed
Content-Type: Multipart/Report (a comment); report-type=delivery-status; boundary=b

--b

Some.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; other.example

Final-Recipient: rfc822; a@x.test
Action: delivered
Status: 2.0.0

Final-Recipient: rfc822; b@x.test
Action: delayed
Status: 4.0.0
--b--
"""
EMPTY = b"Subject: empty\nContent-Type: multipart/report; boundary=b\n\n--b\n\nNothing\n--b--\n"
CLASSES = {
    "failure": (report_of(ReportKind.FAILED, "de"), "REPORT.IPM.Note.NDR"),
    "delayed": (report_of(ReportKind.DELAYED, "en"), "REPORT.IPM.Note.Delayed.DR"),
    "delivered": (report_of(ReportKind.DELIVERED, "en"), "REPORT.IPM.Note.DR"),
    "relayed": (report_of(ReportKind.RELAYED, "en"), "REPORT.IPM.Note.Relayed.DR"),
    "expanded": (report_of(ReportKind.EXPANDED, "en"), "REPORT.IPM.Note.Expanded.DR"),
    "worst": (MIXED, "REPORT.IPM.Note.Delayed.DR"),
    "read": (MDN % b"displayed", "REPORT.IPM.Note.IPNRN"),
    "not read": (MDN % b"deleted", "REPORT.IPM.Note.IPNNRN"),
    "nothing said": (EMPTY, "IPM.Note"),
    "named only": (b"Subject: multipart/report\n\nAction: failed\n", "IPM.Note"),
    "original": (ORIGINAL, "IPM.Note"),
    "latin": (LATIN1, "IPM.Note"),
}
EXPAND = "singleValueExtendedProperties($filter=id eq 'string 0x1a')"


def with_class(text: str, *, operator: str = "eq") -> str:
    condition = f"ep/id eq 'String 0x001A' and ep/value {operator} '{text}'"
    return f"singleValueExtendedProperties/any(ep: {condition})"


async def received(on_disk: OnDisk) -> dict[str, dict]:
    """Put all into the Inbox as another program does; return them by name, as a list shows them."""
    await on_disk.http.get("/mailFolders")
    for number, (content, _) in enumerate(CLASSES.values()):
        (on_disk.root / f"example.test/alice/new/160000000{number:02}.M1.h").write_bytes(content)
    query = {"$expand": EXPAND, "$top": "50", "$orderby": "receivedDateTime"}
    page = (await on_disk.http.get("/mailFolders/inbox/messages", params=query)).json()["value"]
    return dict(zip(CLASSES, page, strict=True))


async def test_each_message_has_its_class_and_is_found_by_it(on_disk: OnDisk) -> None:
    shown = await received(on_disk)
    for name, (_, expected) in CLASSES.items():
        [one] = shown[name]["singleValueExtendedProperties"]
        assert one == {"id": "String 0x1a", "value": expected}, name
    for wanted in {expected for _, expected in CLASSES.values()}:
        query = {"$filter": with_class(wanted), "$top": "50"}
        page = (await on_disk.http.get("/messages", params=query)).json()["value"]
        names = {name for name, (_, expected) in CLASSES.items() if expected == wanted}
        assert {one["id"] for one in page} == {shown[name]["id"] for name in names}, wanted


async def test_a_class_that_a_client_sets_is_kept(on_disk: OnDisk) -> None:
    own = [{"id": "String 0x1a", "value": "IPM.Note.Own"}]
    await on_disk.http.post(
        "/messages", json={"subject": "x", "singleValueExtendedProperties": own}
    )
    query = {"$filter": with_class("IPM.Note.Own"), "$expand": EXPAND}
    [found] = (await on_disk.http.get("/messages", params=query)).json()["value"]
    assert found["singleValueExtendedProperties"] == own


async def test_a_report_shows_its_html_in_the_conversation_of_the_original(on_disk: OnDisk) -> None:
    shown = await received(on_disk)
    failure = shown["failure"]
    assert failure["body"]["contentType"] == "html"
    assert RECIPIENTS[ReportKind.FAILED][0].path.address in failure["body"]["content"]
    assert failure["conversationId"] == shown["original"]["conversationId"]
    assert failure["subject"] == "Undeliverable: Quarterly report"


@each_row(
    "condition",
    [
        "singleValueExtendedProperties/any(ep:ep/id eq 'String 0x007D' and ep/value eq 'x')",
        "singleValueExtendedProperties/any(ep:ep/id eq 'Boolean 0x4000' and ep/value gt 'true')",
        "singleValueExtendedProperties/any(ep:ep/id eq 'StringArray 0x4000' and ep/value eq 'x')",
        "singleValueExtendedProperties/any(ep:ep/id ne 'String 0x001A' and ep/value eq 'x')",
        "singleValueExtendedProperties/any(ep:ep/id eq 'String 0x001A')",
        "singleValueExtendedProperties/any(ep:ep/id eq 'String 0x001A' or ep/value eq 'x')",
        "singleValueExtendedProperties/all(ep:ep/id eq 'String 0x001A' and ep/value eq 'x')",
        "multiValueExtendedProperties/any(ep:ep/id eq 'String 0x001A' and ep/value eq 'x')",
    ],
)
async def test_other_conditions_of_extended_properties_are_refused(
    on_disk: OnDisk, condition
) -> None:
    answer = await on_disk.http.get("/messages", params={"$filter": condition})
    refused(answer, 400, "ErrorInvalidUrlQueryFilter")
