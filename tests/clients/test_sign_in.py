"""An application with acts_for signs in and sends in the name of a user. Numbers are those of the checks."""

from typing import Any

import pytest

from tests.clients.conftest import SECRET, JavaScript, ServedRelay, User

SCOPES = ["https://graph.microsoft.com/.default"]
CREDENTIALS = ("app-id", SECRET.removeprefix("plain:"))


def test_09_javascript_with_azure_identity(javascript: JavaScript, user: User) -> None:
    program = """
        const { ClientSecretCredential } = require('@azure/identity');
        const { TokenCredentialAuthenticationProvider } = require(
          '@microsoft/microsoft-graph-client/authProviders/azureTokenCredentials');
        const credential = new ClientSecretCredential('contoso', '%s', '%s',
          { authorityHost: process.env.RELAY_URL, disableInstanceDiscovery: true });
        const authProvider = new TokenCredentialAuthenticationProvider(credential,
          { scopes: ['https://graph.microsoft.com/.default'] });
        const signedIn = graph.Client.initWithMiddleware({ baseUrl: process.env.RELAY_URL + '/',
          customHosts: new Set(['localhost']), authProvider });
        return (await signedIn.api('/users/%s').get()).mail;
    """
    assert javascript.run(program % (*CREDENTIALS, user.address)) == user.address


@pytest.mark.parametrize("options", [{"scopes": SCOPES}, {}], ids=["scopes", "no scopes"])
async def test_03_azure_identity_by_the_environment(
    served: ServedRelay, user: User, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Without scopes, the SDK asks for one of the base URL's host."""
    identity = pytest.importorskip("azure.identity", reason="make clients installs azure-identity")
    from msgraph import GraphServiceClient

    from tests.clients import graph_sdk as sdk

    monkeypatch.setenv("AZURE_AUTHORITY_HOST", served.url)
    monkeypatch.setenv("AZURE_TENANT_ID", "contoso")
    for name, value in zip(("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"), CREDENTIALS, strict=True):
        monkeypatch.setenv(name, value)
    credential = identity.EnvironmentCredential(disable_instance_discovery=True)
    client = GraphServiceClient(credential, **options)
    client.request_adapter.base_url = f"{served.url}/v1.0"
    by_address = client.users.by_user_id(user.address)
    await by_address.send_mail.post(sdk.mail("signed in", to=user.sink))
    user.arrived()
