"""Subscriptions to messages: a real relay, and real HTTPS receivers on loopback."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from relay.base.message.rest_id import rest_id
from tests.support.dns_server import DnsThread
from tests.support.receiver import Receiver
from tests.support.relay_process import RelayProcess, until
from tests.support.subscribers import (
    LOOPBACK,
    in_minutes,
    local_receiver,
    subscribe,
    subscribed,
    trusting,
    wanted,
)
from tests.support.tables import each_row
from tests.support.tls import Authority, new_authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return new_authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsThread]:
    with DnsThread({"hooks.example.net": {"A": ["127.0.0.1"]}}) as running:
        yield running


@pytest.fixture(scope="module")
def relay(authority: Authority, dns: DnsThread) -> Iterator[RelayProcess]:
    reader = {"address": "reader@example.test", "token": "plain:reader", "scopes": ["Mail.Read"]}
    sender = {"address": "sender@example.test", "token": "plain:sender", "scopes": ["Mail.Send"]}
    helper = {
        "address": "helper@example.test",
        "token": "plain:helper",
        "acts_for": ["carol@example.test"],
    }
    with RelayProcess(
        config=LOOPBACK,
        environment=trusting(authority),
        dns=dns.address,
        accounts=[reader, sender, helper],
    ) as running:
        yield running
        assert "a secret" not in running.log
        assert running.faults() == []


@pytest.fixture
def receiver(authority: Authority) -> Iterator[Receiver]:
    with local_receiver(authority) as running:
        yield running


@pytest.fixture(autouse=True)
def no_subscriptions_left(relay: RelayProcess) -> Iterator[None]:
    yield
    for token in ("alice", "bob", "carol", "helper", "reader"):
        for one in relay.graph("GET", "/subscriptions", token=token).json()["value"]:
            relay.graph("DELETE", f"/subscriptions/{one['id']}", token=token)


def kinds(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["changeType"], one["resourceData"]["id"]) for one in found]


def test_handshake_and_notification(relay: RelayProcess, receiver: Receiver) -> None:
    answer = subscribe(relay, receiver)
    assert answer.status == 201
    made = answer.json()
    [(path, header, body)] = receiver.requests
    assert path.startswith("/hook?validationToken=Validation%3A%20Testing%20")
    assert (header["content-type"], body) == ("text/plain; charset=utf-8", b"")
    assert made["resource"] == "me/mailFolders('inbox')/messages"
    assert made["clientState"] is None
    relay.send_mail(to=["alice@example.test"], subject="first")
    [found] = receiver.wait_for(lambda all_: len(all_) == 1)
    assert found["subscriptionId"] == made["id"]
    assert found["clientState"] == "a secret"
    assert found["subscriptionExpirationDateTime"] == made["expirationDateTime"]
    message = relay.graph("GET", "/" + found["resource"])
    assert message.json()["subject"] == "first"
    assert message.json()["id"] == found["resourceData"]["id"]
    assert message.json()["@odata.etag"] == found["resourceData"]["@odata.etag"]


@each_row(
    "resource",
    [
        "me/messages",
        "/me/messages",
        "/v1.0/me/messages",
        "v1.0/me/messages",
        "Me/Messages",
        "/users/alice@example.test/messages",
        "users('alice@example.test')/messages",
        "me/mailFolders('inbox')/messages",
        "/me/mailFolders/Inbox/messages",
        "users/alice@example.test/mailfolders('INBOX')/messages",
    ],
)
def test_resources(relay: RelayProcess, receiver: Receiver, resource: str) -> None:
    before = len(receiver.notifications)
    made = subscribed(relay, receiver, resource=resource)
    relay.send_mail(token="bob", to=["alice@example.test"], subject=resource)
    receiver.wait_for(lambda all_: len(all_) == before + 1)
    assert relay.graph("DELETE", f"/subscriptions/{made}").status == 204


def test_changes_of_a_mailbox_and_of_a_folder(
    relay: RelayProcess, receiver: Receiver, authority: Authority
) -> None:
    every = "created,updated,deleted"
    with local_receiver(authority) as of_folder, local_receiver(authority) as with_rest_ids:
        body = wanted(with_rest_ids, resource="me/messages", changeType=every)
        strict = {"prefer": "relay.strict"}
        made = relay.graph("POST", "/subscriptions", body, token="bob", headers=strict)
        assert made.status == 201, made.body
        subscribed(relay, receiver, token="bob", resource="me/messages", changeType=every)
        subscribed(
            relay,
            of_folder,
            token="bob",
            resource="me/mailFolders/archive/messages",
            changeType=every,
        )

        def change(method: str, path: str, body: Any = None) -> Any:
            answer = relay.graph(method, path, body, token="bob")
            assert answer.status < 300, answer.body
            return answer.json() if answer.body else None

        one = change("POST", "/me/messages", {"subject": "a draft"})["id"]
        receiver.wait_for(lambda all_: len(all_) == 1)
        change("PATCH", f"/me/messages/{one}", {"isRead": False})
        receiver.wait_for(lambda all_: len(all_) == 2)
        change("PATCH", f"/me/messages/{one}", {"categories": ["Red"]})
        receiver.wait_for(lambda all_: len(all_) == 3)
        change("POST", f"/me/messages/{one}/move", {"destinationId": "archive"})
        receiver.wait_for(lambda all_: len(all_) == 4)
        of_folder.wait_for(lambda all_: len(all_) == 1)
        change("POST", f"/me/messages/{one}/move", {"destinationId": "drafts"})
        of_folder.wait_for(lambda all_: len(all_) == 2)
        change("POST", f"/me/messages/{one}/permanentDelete")
        found = receiver.wait_for(lambda all_: len(all_) == 6)
        assert kinds(found) == [("created", one), *[("updated", one)] * 4, ("deleted", one)]
        assert "@odata.etag" not in found[-1]["resourceData"]
        assert kinds(of_folder.notifications) == [("created", one), ("deleted", one)]
        draft, filed = rest_id(one, "drafts"), rest_id(one, "archive")
        assert kinds(with_rest_ids.wait_for(lambda all_: len(all_) == 8)) == [
            *(("created", draft), ("updated", draft), ("updated", draft), ("deleted", draft)),
            *(("created", filed), ("deleted", filed), ("created", draft), ("deleted", draft)),
        ]
        to = [{"emailAddress": {"address": "carol@example.test"}}]
        one = change("POST", "/me/messages", {"subject": "to be sent", "toRecipients": to})["id"]
        draft, sent = rest_id(one, "drafts"), rest_id(one, "sentitems")
        change("POST", f"/me/messages/{draft}/send")
        found = with_rest_ids.wait_for(lambda all_: ("created", sent) in kinds(all_))
        assert kinds(found)[-2:] == [("deleted", draft), ("created", sent)]
        assert relay.graph("GET", f"/me/messages/{draft}", token="bob").status == 404
        assert change("GET", f"/me/messages/{sent}")["isDraft"] is False
        assert relay.journey(draft)["graph_id"] == one


@each_row(
    "changed, status, text",
    [
        ({"changeType": None}, 400, "changeType is a required property"),
        ({"changeType": "created,renamed"}, 400, "changeType: found 'renamed'"),
        ({"changeType": ["created"]}, 400, "changeType: found an array"),
        ({"notificationUrl": None}, 400, "notificationUrl is a required property"),
        ({"notificationUrl": "http://127.0.0.1/"}, 400, "notificationUrl: found the scheme 'http'"),
        ({"notificationUrl": "https://a:b@hooks.example.net/"}, 400, "user name or password"),
        ({"notificationUrl": "https://2130706433/"}, 400, "read as different addresses"),
        ({"notificationUrl": "https://[::1]/"}, 400, "::1 is no public address"),
        ({"notificationUrl": "https://[::ffff:10.0.0.1]/"}, 400, "no public address"),
        ({"notificationUrl": "https://10.0.0.1/"}, 400, "10.0.0.1 is no public address"),
        ({"notificationUrl": "https://nowhere.example.net/"}, 400, "the name has no address"),
        (
            {"lifecycleNotificationUrl": "ftp://x"},
            400,
            "lifecycleNotificationUrl: found the scheme",
        ),
        ({"expirationDateTime": None}, 400, "expirationDateTime is a required property"),
        ({"expirationDateTime": "tomorrow"}, 400, "expirationDateTime: found 'tomorrow'"),
        ({"expirationDateTime": in_minutes(-1)}, 400, "which is over"),
        (
            {"expirationDateTime": in_minutes(20_000)},
            400,
            "Subscription expiration can only be 10070 minutes in the future.",
        ),
        ({"clientState": "x" * 129}, 400, "clientState: found 129 characters"),
        ({"clientState": {"a": 1}}, 400, "clientState: found an object"),
        ({"latestSupportedTlsVersion": "v9"}, 400, "latestSupportedTlsVersion: found 'v9'"),
        ({"includeResourceData": True}, 501, "includeResourceData is not implemented"),
        ({"resource": "me/messages?$filter=isRead eq false"}, 501, "$filter in the resource"),
        ({"resource": "me/messages?$select=subject"}, 400, "without query options"),
        ({"resource": "me/events"}, 400, "resource: found 'me/events'"),
        ({"resource": "https://graph.microsoft.com/v1.0/me/messages"}, 400, "resource: found"),
        ({"resource": "me/messages/abc"}, 400, "resource: found"),
        ({"resource": ""}, 400, "resource is a required property"),
        ({"resource": "/"}, 400, "resource: found '/'"),
        ({"resource": "users/messages"}, 400, "resource: found"),
        ({"resource": "me/mailFolders('x')/messages"}, 404, "folder"),
        ({"resource": "users/bob@example.test/messages"}, 403, "Access is denied"),
    ],
)
def test_refusals(
    relay: RelayProcess, receiver: Receiver, changed: dict[str, Any], status: int, text: str
) -> None:
    answer = subscribe(relay, receiver, **changed)
    assert (answer.status, text in answer.message) == (status, True), answer.body
    assert relay.graph("GET", "/subscriptions").json()["value"] == []


@each_row(
    "mode, text",
    [
        ("wrong-token", "Expected the decoded validationToken"),
        ("html-token", "expected text/plain"),
        ("error", "must respond with 200 OK, found 500"),
        ("redirect", "found 307"),
        ("huge", "longer than"),
        ("hang-up", "Subscription validation request failed"),
    ],
)
def test_receivers_that_do_not_agree(
    relay: RelayProcess, receiver: Receiver, mode: str, text: str
) -> None:
    receiver.mode, before = mode, len(receiver.requests)
    answer = subscribe(relay, receiver)
    assert (answer.status, answer.code, text in answer.message) == (400, "ValidationError", True), (
        answer.body
    )
    assert len(receiver.requests) <= before + 1
    receiver.mode = "good"
    subscribed(relay, receiver, lifecycleNotificationUrl=receiver.url("/life"))
    assert [path.partition("?")[0] for path, *_ in receiver.requests[-2:]] == ["/hook", "/life"]


def test_own_subscriptions_only(relay: RelayProcess, receiver: Receiver) -> None:
    made = subscribed(relay, receiver)
    [listed] = relay.graph("GET", "/subscriptions").json()["value"]
    [one] = relay.graph("GET", "/subscriptions?$select=id,changeType").json()["value"]
    assert (listed["id"], one) == (made, {"id": made, "changeType": "created"})
    shown = relay.graph("GET", f"/subscriptions/{made}").json()
    assert {name: value for name, value in shown.items() if name != "@odata.context"} == listed
    assert relay.graph("GET", "/subscriptions", token="bob").json()["value"] == []
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/reauthorize")):
        answer = relay.graph(
            method, f"/subscriptions/{made}{path}", {} if method == "PATCH" else None, token="bob"
        )
        assert (answer.status, answer.code) == (404, "ResourceNotFound")
    assert relay.graph("DELETE", f"/subscriptions/{made}").status == 204
    assert relay.graph("DELETE", f"/subscriptions/{made}").status == 404


def test_renewal(relay: RelayProcess, receiver: Receiver, authority: Authority) -> None:
    made, later = subscribed(relay, receiver), in_minutes(10_000)
    path = f"/subscriptions/{made}"
    answer = relay.graph("PATCH", path, {"expirationDateTime": later})
    assert (answer.status, answer.json()["expirationDateTime"]) == (200, later[:-2] + "Z")
    assert len(receiver.requests) == 1  # the URL was validated already
    for body, text in (
        ({"expirationDateTime": in_minutes(10_090)}, "10070 minutes"),
        ({"changeType": "updated"}, "changeType: found 'updated'"),
        ({"notificationUrl": "https://127.0.0.1:1/"}, "connection refused"),
    ):
        answer = relay.graph("PATCH", path, body)
        assert (answer.status, text in answer.message) == (400, True), answer.body
    assert relay.graph("POST", f"{path}/reauthorize").status == 204
    with local_receiver(authority) as other:
        assert relay.graph("PATCH", path, {"notificationUrl": other.url()}).status == 200
        relay.send_mail(to=["alice@example.test"], subject="to the other one")
        other.wait_for(lambda all_: len(all_) == 1)
    assert receiver.notifications == []


def test_scopes_and_other_mailboxes(relay: RelayProcess, receiver: Receiver) -> None:
    assert subscribe(relay, receiver, token="sender").status == 403
    assert relay.graph("GET", "/subscriptions", token="sender").status == 403
    subscribed(relay, receiver, token="reader")
    subscribed(relay, receiver, token="helper", resource="users/carol@example.test/messages")
    relay.send_mail(to=["carol@example.test"], subject="for carol")
    [found] = receiver.wait_for(lambda all_: len(all_) == 1)
    assert found["resource"].startswith("Users/carol@example.test/Messages/")


def test_limit_of_a_mailbox(relay: RelayProcess, receiver: Receiver) -> None:
    for _ in range(50):
        subscribed(relay, receiver)
    answer = subscribe(relay, receiver)
    assert (answer.status, "50 subscriptions" in answer.message) == (400, True)
    resource = "users/carol@example.test/messages"
    for _ in range(50):  # of a helper, who takes no place from the owner
        subscribed(relay, receiver, token="helper", resource=resource)
    assert subscribe(relay, receiver, token="helper", resource=resource).status == 400
    subscribed(relay, receiver, token="carol")
    listed = relay.graph("GET", "/subscriptions?$top=20").json()
    assert len(listed["value"]) == 20
    assert "@odata.nextLink" in listed


def test_what_survives_a_restart(authority: Authority) -> None:
    """The position and the subscription; what comes while the receiver and the relay are down."""
    with contextlib.ExitStack() as stack:
        receiver = local_receiver(authority)
        relay = stack.enter_context(RelayProcess(config=LOOPBACK, environment=trusting(authority)))
        made = subscribed(relay, receiver)
        relay.kill()  # at once: it was durable before the 201
        relay.start()
        relay.send_mail(to=["alice@example.test"], subject="1")
        receiver.wait_for(lambda all_: len(all_) == 1)
        receiver.close()
        relay.send_mail(to=["alice@example.test"], subject="2")
        until("it was refused", lambda: "connection refused" in relay.log)
        relay.kill()
        relay.start()
        assert relay.graph("GET", f"/subscriptions/{made}").status == 200
        relay.send_mail(to=["alice@example.test"], subject="3")
        again = stack.enter_context(local_receiver(authority, port=receiver.port))
        again.wait_for(lambda all_: len(all_) == 2)
        ids = [one["resourceData"]["id"] for one in again.notifications]
        subjects = [relay.graph("GET", f"/me/messages/{one}").json()["subject"] for one in ids]
        assert subjects == ["2", "3"]


def test_a_lost_index_and_a_lost_file(authority: Authority) -> None:
    """Without the index nobody knows what has changed: missed. A damaged file is no fault of others."""
    with (
        local_receiver(authority) as receiver,
        RelayProcess(config=LOOPBACK, environment=trusting(authority)) as relay,
    ):
        made = subscribed(relay, receiver, lifecycleNotificationUrl=receiver.url("/life"))
        relay.stop()
        for file in relay.home("alice").glob("relay-index*"):
            file.unlink()
        relay.start()
        [event] = receiver.wait_for(lambda all_: len(all_) == 1)
        assert (event["lifecycleEvent"], event["subscriptionId"]) == ("missed", made)
        relay.send_mail(to=["alice@example.test"], subject="after that")
        receiver.wait_for(lambda all_: len(all_) == 2)
        relay.kill()
        stored = relay.folder / "mail/.submissions/subscriptions"
        stored.write_bytes(b"no database" * 1000)
        relay.start()
        assert relay.graph("GET", f"/subscriptions/{made}").status == 404
        subscribed(relay, receiver)
        [fault] = relay.faults()
        assert "subscriptions are lost" in fault
        relay.stop()
        assert relay.cli("storage", "verify").returncode == 0


def test_rights_that_end(authority: Authority) -> None:
    """What a reload takes away: acts_for, scopes, a token; and an account that it disables."""
    helper = {
        "address": "helper@example.test",
        "token": "plain:helper",
        "acts_for": ["bob@example.test"],
    }
    reader = {"address": "reader@example.test", "token": "plain:reader"}
    gone = {"address": "gone@example.test", "token": "plain:gone"}
    robbed = {"address": "robbed@example.test", "token": "plain:robbed"}
    with (
        local_receiver(authority) as receiver,
        RelayProcess(
            config=LOOPBACK,
            environment=trusting(authority),
            accounts=[helper, reader, gone, robbed],
        ) as relay,
    ):
        life = {"lifecycleNotificationUrl": receiver.url("/life")}
        made = {
            subscribed(
                relay, receiver, token="helper", resource="users/bob@example.test/messages", **life
            ),
            subscribed(relay, receiver, token="reader", **life),
            subscribed(relay, receiver, token="gone", **life),
            subscribed(relay, receiver, token="robbed", **life),
        }
        accounts = relay.folder / "accounts.toml"
        text = accounts.read_text()
        text = text.replace('acts_for = ["bob@example.test"]', "")
        text = text.replace(
            'token = "plain:reader"', 'token = "plain:reader"\nscopes = ["Mail.Send"]'
        )
        text = text.replace('token = "plain:gone"', "disabled = true")
        text = text.replace('"plain:robbed"', '"plain:new"')
        accounts.write_text(text)
        assert relay.cli("reload").returncode == 0
        for name in ("bob", "reader", "gone", "robbed"):
            relay.send_mail(to=[f"{name}@example.test"], subject="not for them")
        found = receiver.wait_for(lambda all_: len(all_) == 4)
        assert {one["subscriptionId"] for one in found} == made
        assert {one["lifecycleEvent"] for one in found} == {"subscriptionRemoved"}
        assert all("resourceData" not in one and one["clientState"] == "a secret" for one in found)
        assert relay.graph("GET", "/subscriptions", token="helper").json()["value"] == []
