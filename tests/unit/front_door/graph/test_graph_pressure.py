"""Under pressure new content is rejected before its body is read; other requests succeed."""

import pytest

from relay.base.pressure import PressureLevel, PressureReason, PressureState
from tests.support.graph_fakes import WatchedGraph, graph_app, refused, to
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

MESSAGE = {"subject": "s", "toRecipients": to("bob@y.test")}
SEND = ("POST", "/me/sendMail", {"message": MESSAGE})
CREATE = ("POST", "/me/messages", MESSAGE)
LIST = ("GET", "/me/messages", None)
UPLOAD = ("PUT", "/uploads/none", {})


def calls(draft: str) -> dict[str, tuple[str, str, object]]:
    return {
        "send": SEND,
        "send draft": ("POST", f"/me/messages/{draft}/send", None),
        "create": CREATE,
        "create in a folder": ("POST", "/me/mailFolders/drafts/messages", MESSAGE),
        "replace": ("PUT", f"/me/messages/{draft}/$value", {}),
        "copy": ("POST", f"/me/messages/{draft}/copy", {"destinationId": "archive"}),
        "attach": ("POST", f"/me/messages/{draft}/attachments", {}),
        "session": ("POST", f"/me/messages/{draft}/attachments/createUploadSession", {}),
        "upload": UPLOAD,
        "list": LIST,
        "get": ("GET", f"/me/messages/{draft}", None),
        "content": ("GET", f"/me/messages/{draft}/$value", None),
        "folders": ("GET", "/me/mailFolders", None),
        "change": ("PATCH", f"/me/messages/{draft}", {"subject": "t"}),
        "move": ("POST", f"/me/messages/{draft}/move", {"destinationId": "archive"}),
        "upload state": ("GET", "/uploads/none", None),
        "delete": ("DELETE", f"/me/messages/{draft}", None),
    }


SENDING = {"send", "send draft"}
KEEPING = {"create", "create in a folder", "replace", "copy", "attach", "session", "upload"}
QUEUE = ("ResourceUnhealthy", 503, SENDING)
MAILBOXES = ("ErrorInsufficientResources", 507, SENDING | KEEPING)


@pytest.mark.parametrize(
    ("reason", "code", "status", "stopped"),
    [
        (PressureReason.SPOOL_DISK, *QUEUE),
        (PressureReason.SPOOL_FILES, *QUEUE),
        (PressureReason.QUEUE, *QUEUE),
        (PressureReason.COMMITS, *QUEUE),
        (PressureReason.BACKLOG, *QUEUE),
        (PressureReason.MEMORY, "ResourceUnhealthy", 503, SENDING | KEEPING),
        (PressureReason.MAIL_DISK, *MAILBOXES),
        (PressureReason.MAIL_FILES, *MAILBOXES),
    ],
)
async def test_intake_is_rejected_under_pressure(
    graph: WatchedGraph, reason, code, status, stopped
) -> None:
    draft = (await graph.http.post("/v1.0/me/messages", json=MESSAGE)).json()["id"]
    graph.pressure.state = PressureState({reason: PressureLevel.REFUSE})
    found = set()
    for name, (method, path, body) in calls(draft).items():
        answer = await graph.http.request(method, f"/v1.0{path}", json=body)
        if answer.status_code in (503, 507):
            found.add(name)
            assert "Nothing new is taken now" in refused(answer, status, code)
            assert int(answer.headers["retry-after"]) > 0
    assert found == stopped
    assert graph.store.submitted == []


async def test_pressure_slow_does_not_reject_accounts(graph: WatchedGraph) -> None:
    graph.pressure.state = PressureState(dict.fromkeys(PressureReason, PressureLevel.SLOW))
    assert (await graph.send(MESSAGE)).status_code == 202


async def test_it_ends_with_its_reason(graph: WatchedGraph) -> None:
    graph.pressure.state = PressureState({PressureReason.QUEUE: PressureLevel.REFUSE})
    assert (await graph.send(MESSAGE)).status_code == 503
    graph.pressure.state = PressureState()
    assert (await graph.send(MESSAGE)).status_code == 202


async def test_without_a_token_pressure_is_not_disclosed(graph: WatchedGraph) -> None:
    graph.pressure.state = PressureState({PressureReason.QUEUE: PressureLevel.REFUSE})
    graph.http.headers["authorization"] = "Bearer wrong"
    assert (await graph.send(MESSAGE)).status_code == 401


@each_row("memory_bytes, bodies", [(1_000_000_000, 8), (150 * 1_000_000, 3), (20 * 1_000_000, 1)])
def test_little_memory_holds_fewer_bodies(memory_bytes: int, bodies: int) -> None:
    """A body takes five times its size: two of 30 MB at once ended a relay of 192 MiB."""
    app = graph_app(None, ManualClock(), max_body=10_000_000, memory_bytes=memory_bytes)
    assert app._bodies.places == bodies * 10_000_000
