"""The message class by which Exchange's clients know a report: REPORT.IPM.Note and a kind.

It is computed from the content, of reports of others too. A report about several recipients has the
class of the worst Action.
MS-OXCMAIL 2.2.3.7.1.1 (the classes); RFC 3464 2.3.3 (Action); RFC 8098 3.2.6 (Disposition).
"""

from relay.message.content import Octets
from relay.mime.read_report import read_remote_report

ORDINARY = "IPM.Note"
_KINDS = {  # the worst first
    "failure": "NDR",
    "delayed": "Delayed.DR",
    "relayed": "Relayed.DR",
    "expanded": "Expanded.DR",
    "delivered": "DR",
    "notread": "IPNNRN",
    "read": "IPNRN",
}


def message_class(content: Octets, content_type: str) -> str:
    """Return the class of a message of this type. Reading is bounded; raises OSError."""
    report = read_remote_report(content) if content_type == "multipart/report" else None
    if report is None:
        return ORDINARY
    found = {one.kind for one in report.claims}
    worst = next((suffix for kind, suffix in _KINDS.items() if kind in found), "")
    return f"REPORT.{ORDINARY}.{worst}" if worst else ORDINARY
