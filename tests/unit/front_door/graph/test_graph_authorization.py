"""What the scopes of an account allow, and which mailboxes acts_for opens."""

from collections.abc import Iterator

import httpx
import pytest

from relay.base.accounts.account import Account, Scope
from relay.front_door.graph import routes
from relay.front_door.graph.send_mail import send_draft, send_mail
from relay.front_door.graph.users import get_user
from tests.support.accounts import TokenAccounts
from tests.support.graph_client import message
from tests.support.graph_fakes import WatchedStore, graph_app, refused
from tests.support.tables import each_row

APP = Account("app@example.test", acts_for=("bob@example.test", "*@shared.test"))
ACCOUNTS = TokenAccounts(
    {
        **{
            scope.value: Account("alice@example.test", scopes=frozenset([scope])) for scope in Scope
        },
        "nothing": Account("alice@example.test", scopes=frozenset()),
        "bob": Account("bob@example.test", aliases=("bob@elsewhere.test", "al@shared.test")),
        "office": Account("office@shared.test"),
        "app": APP,
    }
)
CREATING = {("POST", "me/messages"), ("POST", "me/sendMail")}
DENIED = "Access is denied. Check credentials and try again. This token opens no mailbox of this address."


@pytest.fixture
def http(store: WatchedStore) -> httpx.AsyncClient:
    app = graph_app(store, store.clock, accounts=ACCOUNTS)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://relay.test/v1.0")


def bearing(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def mail(**more: object) -> dict[str, object]:
    return {"message": message(to=["bob@example.test"], **more)}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "me", {"User.Read"}),
        ("GET", "me/messages", {"Mail.Read", "Mail.ReadWrite"}),
        ("GET", "me/messages/x", {"Mail.Read", "Mail.ReadWrite"}),
        ("GET", "me/messages/x/$value", {"Mail.Read", "Mail.ReadWrite"}),
        ("GET", "me/mailFolders", {"Mail.Read", "Mail.ReadWrite"}),
        ("POST", "me/messages", {"Mail.ReadWrite"}),
        ("PATCH", "me/messages/x", {"Mail.ReadWrite"}),
        ("DELETE", "me/messages/x", {"Mail.ReadWrite"}),
        ("POST", "me/messages/x/send", {"Mail.Send"}),
        ("POST", "me/sendMail", {"Mail.Send"}),
        ("PATCH", "me/mailboxSettings", {"MailboxSettings.ReadWrite"}),
    ],
)
async def test_each_request_needs_its_permission(http, store, method, path, allowed):
    content = mail() if path.endswith("sendMail") else {}
    for token in (*(scope.value for scope in Scope), "nothing"):
        answer = await http.request(method, path, json=content, headers=bearing(token))
        assert (answer.status_code != 403) == (token in allowed), (token, answer.text)
        if token not in allowed:
            text = refused(answer, 403, "ErrorAccessDenied")
            assert all(one in text for one in allowed)
            assert ("no scopes" if token == "nothing" else token) in text
    created = len(allowed) if (method, path) in CREATING else 0
    assert store.written == created


def every_operation() -> Iterator[routes.GraphOperation]:
    for _, by_method in routes._ROUTES:
        if not isinstance(by_method, str):
            yield from by_method.values()


def handlers(scopes: tuple[Scope, ...]) -> Iterator[object]:
    return (one.handler for one in every_operation() if one.scopes == scopes)


def test_what_sends_needs_mail_send_and_nothing_else_does():
    for one in every_operation():
        assert (one.scopes == routes.MAY_SEND) == (one.intake is routes.Intake.MESSAGE)
        assert one.intake is not routes.Intake.CONTENT or one.scopes == routes.MAY_CHANGE
    assert {send_mail, send_draft} <= set(handlers(routes.MAY_SEND))
    assert get_user not in set(handlers(routes.MAY_READ))


async def test_the_settings_of_a_user_need_their_own_permission(http):
    answer = await http.get("me?$select=mailboxSettings", headers=bearing("User.Read"))
    assert "MailboxSettings.Read" in refused(answer, 403, "ErrorAccessDenied")
    assert (await http.get("me?$select=mail", headers=bearing("User.Read"))).status_code == 200


@each_row(
    "address, status",
    [
        ("bob@example.test", 200),
        ("BOB+tag@example.test", 200),
        ("bob@elsewhere.test", 200),
        ("office@shared.test", 200),
        ("al@shared.test", 200),
        ("app@example.test", 200),
        ("alice@example.test", 403),
        ("nobody@example.test", 403),
        ("nobody@shared.test", 404),
        ("x", 403),
    ],
)
async def test_acts_for_opens_mailboxes_that_exist(http, address, status):
    answer = await http.get(f"users/{address}/messages", headers=bearing("app"))
    assert answer.status_code == status
    if status == 404:
        assert repr(address) in refused(answer, 404, "ErrorInvalidUser")
    if status == 403:
        assert refused(answer, 403, "ErrorAccessDenied") == DENIED


async def test_without_acts_for_a_mailbox_that_exists_and_one_that_does_not_are_the_same(http):
    texts = [
        refused(
            await http.get(f"users/{one}@example.test", headers=bearing("bob")),
            403,
            "ErrorAccessDenied",
        )
        for one in ("alice", "nobody")
    ]
    assert texts == [DENIED, DENIED]


async def test_an_application_sends_from_the_mailbox_and_is_recorded_as_the_client(http, store):
    answer = await http.post("users/bob@example.test/sendMail", json=mail(), headers=bearing("app"))
    assert answer.status_code == 202
    ((submission, _),) = store.submitted
    assert submission.account == "bob@example.test"
    assert submission.options.client.account == "app@example.test"


async def test_the_addresses_in_from_are_those_of_the_mailbox(http):
    for sender, status in {"bob@elsewhere.test": 202, "app@example.test": 403}.items():
        content = mail(**{"from": {"emailAddress": {"address": sender}}})
        answer = await http.post(
            "users/bob@example.test/sendMail", json=content, headers=bearing("app")
        )
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("token", "statuses"),
    [
        ("Mail.Send", [403, 403, 202, 403, 403]),
        ("Mail.Read", [403, 200, 403, 403, 200]),
        ("User.Read", [200, 403, 403, 403, 403]),
        ("app", [200, 200, 202, 200, 403]),
    ],
)
async def test_each_request_of_a_batch_needs_its_permission(http, store, token, statuses):
    requests = [
        {"id": "1", "method": "GET", "url": "/me"},
        {"id": "2", "method": "GET", "url": "/me/messages"},
        {"id": "3", "method": "POST", "url": "/me/sendMail", "body": mail()},
        {"id": "4", "method": "GET", "url": "/users/bob@example.test/messages"},
        {"id": "5", "method": "GET", "url": "/users/alice@example.test/messages"},
    ]
    for one in requests:
        one["headers"] = {"Content-Type": "application/json", "Authorization": "Bearer bob"}
    answer = await http.post("$batch", json={"requests": requests}, headers=bearing(token))
    found = {one["id"]: one["status"] for one in answer.json()["responses"]}
    assert [found[one] for one in "12345"] == statuses
    assert len(store.submitted) == (202 in statuses)
