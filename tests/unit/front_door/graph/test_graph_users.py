"""The user resource: /me, /users/{address} and /users."""

from pathlib import Path

from relay.base.accounts.account import Account
from relay.front_door.graph.odata.resources import select_users
from relay.front_door.graph.query_options import QueryOptions
from tests.support.accounts import TokenAccounts
from tests.support.graph_fakes import AS_ALICE, WatchedGraph, graph_on_disk, refused
from tests.support.tables import each_row

ALICE = {
    "id": "alice@example.test",
    "displayName": "alice",
    "mail": "alice@example.test",
    "userPrincipalName": "alice@example.test",
    "businessPhones": [],
    **dict.fromkeys(("givenName", "surname", "jobTitle", "mobilePhone", "officeLocation")),
    "preferredLanguage": None,
}


@each_row(
    "path",
    [
        "/v1.0/me",
        "/v1.0/users/Alias@example.test",
        "/beta//me/",
        "/v1.0/users('alice@example.test')",
    ],
)
async def test_the_user(graph: WatchedGraph, path: str) -> None:
    user = (await graph.http.get(path)).json()
    assert user.pop("@odata.context").endswith("/$metadata#users/$entity")
    assert user == ALICE


@each_row(
    "select, expected",
    [
        ("displayName", {"displayName": "alice"}),
        ("accountEnabled,userType", {"accountEnabled": True, "userType": "Member"}),
        (
            "proxyAddresses,otherMails",
            {
                "proxyAddresses": ["SMTP:alice@example.test", "smtp:alias@example.test"],
                "otherMails": [],
            },
        ),
        (
            "department,onPremisesSamAccountName,imAddresses",
            {"department": None, "imAddresses": []},
        ),
    ],
)
async def test_selected_properties_of_the_user(
    graph: WatchedGraph, select: str, expected: dict[str, object]
) -> None:
    user = (await graph.http.get("/v1.0/me", params={"$select": select})).json()
    assert user | expected == user
    assert set(user) == {"@odata.context", "id", *select.split(",")}


@each_row(
    "query, found",
    [
        ({}, 1),
        ({"$filter": "userPrincipalName eq 'Alice@example.test'"}, 1),
        ({"$filter": "mail eq 'bob@example.test'"}, 0),
        ({"$filter": "startswith(displayName,'al') and accountEnabled eq true"}, 1),
        ({"$filter": "not (userType eq 'member')"}, 0),
        ({"$orderby": "displayName desc", "$top": "5", "$count": "true"}, 1),
        ({"$skip": "1"}, 0),
        ({"$filter": "proxyAddresses/any(x:x eq 'smtp:Alias@example.test')"}, 1),
        ({"$filter": "proxyAddresses/any(x:startswith(x,'smtp:ali'))"}, 1),
        ({"$filter": "proxyAddresses/any(x:x eq 'smtp:bob@example.test')"}, 0),
        ({"$filter": "proxyAddresses/all(x:endswith(x,'@example.test'))"}, 1),
        ({"$filter": "otherMails/any(x:x eq 'alice@example.test')"}, 0),
        ({"$filter": "otherMails/any()"}, 0),
        ({"$filter": "proxyAddresses/any()"}, 1),
        ({"$filter": "mail in ('bob@example.test', 'alice@example.test')"}, 1),
        ({"$filter": "mail in ('bob@example.test')"}, 0),
        ({"$filter": "not(mail in ('bob@example.test', 'carol@example.test'))"}, 1),
    ],
)
async def test_the_list_has_only_the_users_of_the_token(
    graph: WatchedGraph, query: dict[str, str], found: int
) -> None:
    answer = await graph.http.get(
        "/v1.0/Users", params=query, headers={"consistencylevel": "eventual"}
    )
    page = answer.json()
    assert page["@odata.context"].endswith("/$metadata#users")
    assert page["value"] == [ALICE] * found
    assert page.get("@odata.count", found) == found
    assert "@odata.nextLink" not in page


def test_a_letter_outside_ascii_never_becomes_one_of_ascii() -> None:
    users, joss = [Account("joß@a.test"), Account("mi\u212ae@a.test")], "eq 'smtp:joss@a.test'"
    others = f"startswith(mail,'joss') or mail eq 'mike@a.test' or proxyAddresses/any(x:x {joss})"
    found = [select_users(users, QueryOptions(filter=x)) for x in ("mail eq 'JOß@a.test'", others)]
    assert found == [users[:1], []]


async def test_the_list_needs_a_token_and_cannot_be_changed(graph: WatchedGraph) -> None:
    answer = await graph.http.get("/v1.0/users", headers={"authorization": "Bearer unknown"})
    refused(answer, 401, "InvalidAuthenticationToken")
    answer = await graph.http.post("/v1.0/users", json={}, headers=AS_ALICE)
    refused(answer, 501, "NotImplemented")
    answer = await graph.http.delete("/v1.0/users", headers=AS_ALICE)
    refused(answer, 405, "Request_BadRequest")
    assert answer.headers["allow"] == "GET"


async def test_an_application_lists_the_users_that_it_acts_for(tmp_path: Path) -> None:
    accounts = {
        "alice": Account("app@b.test", acts_for=("*@a.test", "dan@b.test", "gone@b.test")),
        **{
            name: Account(name) for name in ("eva@a.test", "ann@a.test", "dan@b.test", "bob@b.test")
        },
    }
    async with graph_on_disk(tmp_path, accounts=TokenAccounts(accounts)) as graph:
        query = {"$orderby": "mail", "$select": "mail", "$top": "3", "$count": "true"}
        page = (await graph.http.get("http://h/v1.0/users", params=query)).json()
        rest = (await graph.http.get(page["@odata.nextLink"])).json()
    found = [user["mail"] for user in page["value"] + rest["value"]]
    assert found == ["ann@a.test", "app@b.test", "dan@b.test", "eva@a.test"]
    assert page["@odata.count"] == 4
