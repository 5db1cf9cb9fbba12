"""Reset of the development relay: everything is gone, and the relay goes on."""

from urllib.parse import urlencode

import pytest

from tests.support.dev_process import DevProcess
from tests.support.graph_client import message
from tests.support.relay_process import OPERATOR, until

USAGE, UNAVAILABLE = 64, 69
BOB = "bob@example.test"
EVERYWHERE = [BOB, "someone@elsewhere.test"]


@pytest.fixture
def relay(plain_dev: DevProcess) -> DevProcess:
    reset(plain_dev)
    return plain_dev


def reset(relay: DevProcess, *, token: str = OPERATOR) -> int:
    answer = relay.graph("DELETE", "/relay/v1/messages", token=token)
    assert answer.status == 200, answer.body
    return int(answer.json()["messages"])


def listed(relay: DevProcess, **query: str) -> list[str]:
    answer = relay.graph("GET", "/relay/v1/messages?" + urlencode(query), token=OPERATOR)
    assert answer.status == 200, answer.body
    return [one["subject"] for one in answer.json()["messages"]]


def test_everything_is_deleted_and_the_relay_goes_on(relay: DevProcess) -> None:
    assert reset(relay) == 0
    cursor = relay.graph("GET", "/relay/v1/messages", token=OPERATOR).json()["cursor"]
    sent = relay.send_mail(to=EVERYWHERE, subject="sent", token="carol")
    relay.until_state(sent, "captured")
    relay.submit("app@example.test", ["nobody@elsewhere.test"])
    draft = relay.graph("POST", "/me/messages", message(subject="draft"))
    assert draft.status == 201
    later = {"id": "SystemTime 0x3FEF", "value": "2099-01-01T00:00:00Z"}
    scheduled = message(to=EVERYWHERE, subject="later", singleValueExtendedProperties=[later])
    assert relay.graph("POST", "/me/sendMail", {"message": scheduled}).status == 202
    folder = relay.graph("POST", "/me/mailFolders", {"displayName": "Mine"})
    assert folder.status == 201
    upload = relay.graph(
        "POST",
        f"/me/messages/{draft.json()['id']}/attachments/createUploadSession",
        {"AttachmentItem": {"attachmentType": "file", "name": "x", "size": 4_000_000}},
    )
    assert upload.status == 201

    assert reset(relay, token="bob") == 3
    assert listed(relay) == listed(relay, after=cursor) == relay.queue() == []
    assert relay.metric("relay_queue_unaccounted") == 0
    assert relay.graph("GET", f"/relay/v1/messages/{sent}", token=OPERATOR).status == 404
    for token in ("alice", "bob", "carol", "someone@elsewhere.test"):
        assert relay.graph("GET", "/me/messages", token=token).json()["value"] == []
    names = [one["displayName"] for one in relay.graph("GET", "/me/mailFolders").json()["value"]]
    assert "Mine" not in names
    answer = relay.request("GET", upload.json()["uploadUrl"].partition("//")[2].partition("/")[2])
    assert answer.status >= 400
    assert not list((relay.folder / "mail" / ".submissions" / "deferred").iterdir())

    again = relay.send_mail(to=EVERYWHERE, subject="again")
    relay.until_state(again, "captured")
    assert listed(relay, after=cursor) == ["again"]
    assert [one["subject"] for one in relay.messages("inbox", token="bob")] == ["again"]


def test_mail_on_its_way_does_not_appear_later(relay: DevProcess) -> None:
    for number in range(15):
        relay.send_mail(to=EVERYWHERE, subject=f"old {number}")
        relay.submit("app@example.test", EVERYWHERE, b"Subject: old\r\n\r\nx\r\n")
    reset(relay)
    marker = relay.send_mail(to=EVERYWHERE, subject="new")
    relay.until_state(marker, "captured")
    until("step 4", lambda: relay.messages("sentitems"))
    assert listed(relay) == ["new"]
    for folder, token in (("inbox", "bob"), ("sentitems", "alice")):
        assert [one["subject"] for one in relay.messages(folder, token=token)] == ["new"]
    assert len([*relay.mailbox_of("someone@elsewhere.test").glob("new/*")]) == 1
    assert relay.messages("drafts") == []
    assert relay.metric("relay_queue_unaccounted") == 0
    assert not [one for one in relay.faults() if "error" in one]


def test_an_attempt_at_a_slow_host_is_cut_off(relay: DevProcess) -> None:
    relay.submit("app@example.test", ["x+slow20@elsewhere.test"])
    dropped = relay.submit("app@example.test", ["y+drop@other.test"])
    until("tried", lambda: "deferred" in relay.states(dropped).values())
    assert reset(relay) == 2
    relay.until_state(relay.submit("app@example.test", ["x@elsewhere.test"]), "captured")
    assert not relay.mailbox_of("x+slow20@elsewhere.test").exists()
    assert [one["recipients"][0]["address"] for one in relay.queue()] == ["x@elsewhere.test"]


def test_an_idempotency_key_can_be_used_again(relay: DevProcess) -> None:
    headers, body = {"Idempotency-Key": "order-1"}, {"message": message(to=[BOB], subject="order")}
    for _ in range(2):
        assert relay.graph("POST", "/me/sendMail", body, headers=headers).status == 202
        assert relay.graph("POST", "/me/sendMail", body, headers=headers).status == 202
        until("delivered", lambda: relay.messages("inbox", token="bob"))
        assert listed(relay) == ["order"]
        assert reset(relay) == 1


def test_a_service_is_never_emptied(serve) -> None:
    service = serve()
    service.submit("app@example.test", [BOB])
    assert service.graph("DELETE", "/relay/v1/messages", token=OPERATOR).status == 405
    done = service.cli("reset")
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert "is a service" in done.stderr
    assert len(service.graph("GET", "/relay/v1/messages", token=OPERATOR).json()["messages"]) == 1
    assert service.stop() == 0
    assert service.cli("reset").returncode == UNAVAILABLE
