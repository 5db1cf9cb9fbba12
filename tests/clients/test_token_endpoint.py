"""azure-identity and MSAL, as they are published, get tokens from a relay. Numbers are those of the checks."""

from typing import Any

import msal
import pytest
import requests

from tests.clients.conftest import SECRET, ServedRelay, User

SCOPES = ["https://graph.microsoft.com/.default"]
THE_SECRET = SECRET.removeprefix("plain:")


class RecordedSession(requests.Session):
    """Remembers the URLs that MSAL asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def request(self, method: str, url: str, *rest: Any, **options: Any) -> Any:
        self.urls.append(url)
        return super().request(method, url, *rest, **options)


def application(served: ServedRelay, user: User, **options: Any) -> Any:
    credential = {"client_credential": THE_SECRET, "verify": str(served.ca), **options}
    return msal.ConfidentialClientApplication(user.client_id, **credential)


def test_04_msal_with_an_oidc_authority_calls_the_relay_alone(
    served: ServedRelay, user: User
) -> None:
    session = RecordedSession()
    authority = f"{served.url}/contoso/v2.0"
    app = application(served, user, oidc_authority=authority, http_client=session)
    found = app.acquire_token_for_client(SCOPES)
    assert found["token_type"] == "Bearer", found
    assert session.urls == [
        f"{served.url}/contoso/v2.0/.well-known/openid-configuration",
        f"{served.url}/contoso/oauth2/v2.0/token",
    ]
    answer = served.relay.graph("GET", f"/users/{user.address}", token=found["access_token"])
    assert answer.json()["mail"] == user.address


@pytest.mark.filterwarnings("ignore:Using /common:DeprecationWarning")  # unreliable at Microsoft
@pytest.mark.parametrize("tenant", ["contoso", "common", "3f2504e0-4f89-11d3-9a0c-0305e82c3301"])
def test_msal_without_instance_discovery(served: ServedRelay, user: User, tenant: str) -> None:
    app = application(served, user, authority=f"{served.url}/{tenant}", instance_discovery=False)
    assert "access_token" in app.acquire_token_for_client(["http://localhost/.default"])
    cached = app.acquire_token_for_client(["http://localhost/.default"])
    assert cached["token_source"] == "cache"
    discovery = f"{served.url}/common/discovery/instance"  # the relay's own
    app = application(
        served, user, authority=f"{served.url}/{tenant}", instance_discovery=discovery
    )
    assert "access_token" in app.acquire_token_for_client(SCOPES)


def test_msal_shows_the_error(served: ServedRelay, user: User) -> None:
    app = application(
        served,
        user,
        authority=f"{served.url}/contoso",
        instance_discovery=False,
        client_credential="wrong",
    )
    found = app.acquire_token_for_client(SCOPES)
    assert found["error"] == "invalid_client"
    assert found["error_codes"] == [7000215]
    assert found["error_description"].startswith("AADSTS7000215: ")


@pytest.fixture
def options(served: ServedRelay) -> dict[str, Any]:
    return {"authority": served.url, "disable_instance_discovery": True}


def test_03_azure_identity(served: ServedRelay, user: User, options: dict[str, Any]) -> None:
    identity = pytest.importorskip("azure.identity")
    with identity.ClientSecretCredential("contoso", user.client_id, THE_SECRET, **options) as one:
        token = one.get_token(*SCOPES)
        assert one.get_token("http://localhost/.default").token
    answer = served.relay.graph("GET", f"/users/{user.address}", token=token.token)
    assert answer.json()["mail"] == user.address
    wrong = identity.ClientSecretCredential("contoso", user.client_id, "wrong", **options)
    core = pytest.importorskip("azure.core.exceptions")
    with wrong, pytest.raises(core.ClientAuthenticationError, match="invalid_client"):
        wrong.get_token(*SCOPES)


async def test_03_azure_identity_aio(
    served: ServedRelay, user: User, options: dict[str, Any]
) -> None:
    pytest.importorskip("aiohttp")
    identity = pytest.importorskip("azure.identity.aio")
    options["connection_verify"] = str(served.ca)
    credential = identity.ClientSecretCredential("contoso", user.client_id, THE_SECRET, **options)
    async with credential:
        token = await credential.get_token(*SCOPES, enable_cae=True)
    answer = served.relay.graph("GET", f"/users/{user.address}", token=token.token)
    assert answer.json()["mail"] == user.address


async def test_03_msgraph_sdk_with_azure_identity(
    served: ServedRelay, user: User, options: dict[str, Any]
) -> None:
    msgraph = pytest.importorskip("msgraph")
    identity = pytest.importorskip("azure.identity")
    graph_sdk = pytest.importorskip("tests.clients.graph_sdk")
    with identity.ClientSecretCredential("contoso", user.client_id, THE_SECRET, **options) as one:
        client = msgraph.GraphServiceClient(one, scopes=SCOPES)
        client.request_adapter.base_url = f"{served.url}/v1.0"
        sent = graph_sdk.message("from an application", to=user.sink)
        body = graph_sdk.SendMailPostRequestBody(message=sent)
        assert await client.users.by_user_id(user.address).send_mail.post(body) is None
    assert b"Subject: from an application" in user.arrived().content


@pytest.mark.parametrize("client_id", ["", "app-id"])
def test_o365_signs_in(served: ServedRelay, user: User, client_id: str) -> None:
    o365 = pytest.importorskip("O365")
    backends = pytest.importorskip("O365.utils.token")
    protocol = o365.MSGraphProtocol()
    protocol.protocol_url, protocol.service_url = f"{served.url}/", f"{served.url}/v1.0/"
    account = o365.Account(
        (client_id or user.client_id, THE_SECRET),
        protocol=protocol,
        auth_flow_type="credentials",
        tenant_id="contoso",
        main_resource=user.address,
        verify_ssl=str(served.ca),
        token_backend=backends.MemoryTokenBackend(),
    )
    account.con._msal_client = msal.ConfidentialClientApplication(
        client_id or user.client_id,
        client_credential=THE_SECRET,
        instance_discovery=False,
        authority=f"{served.url}/contoso",
        token_cache=account.con.token_backend,
        verify=str(served.ca),
    )
    assert account.authenticate(requested_scopes=SCOPES)
    message = account.new_message()
    message.to.add(user.sink)
    message.subject, message.body = "from O365", "<b>Hello</b>"
    assert message.send()
    assert b"Subject: from O365" in user.arrived().content
    assert [one["subject"] for one in user.messages("sentitems")] == ["from O365"]
