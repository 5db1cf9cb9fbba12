"""Certificate credentials of msal and azure-identity, as they are published, get tokens from a relay."""

from pathlib import Path
from typing import Any

import msal
import pytest

from tests.clients.conftest import JavaScript, ServedRelay
from tests.support.client_keys import ClientCertificate, certificate

SCOPES = ["https://graph.microsoft.com/.default"]
CLIENT_ID = "certified-id"
SHA_1, SHA_256 = "thumbprint", "public_certificate"


def is_certified(served: ServedRelay, token: str) -> bool:
    """Whether a token is one of the account with the certificate."""
    answer = served.relay.graph("GET", "/users/certified@example.test", token=token)
    return bool(answer.json()["mail"] == "certified@example.test")


def application(served: ServedRelay, given: ClientCertificate, *, named_by: str) -> Any:
    """An application that names its certificate by SHA-1 (and signs with RS256), or by SHA-256 (PS256)."""
    of_rsa = certificate()
    names = {SHA_1: of_rsa.hexadecimal_thumbprint, SHA_256: of_rsa.pem}
    return msal.ConfidentialClientApplication(
        CLIENT_ID,
        authority=f"{served.url}/contoso",
        instance_discovery=False,
        client_credential={"private_key": given.key_pem, named_by: names[named_by]},
        verify=str(served.ca),
    )


@pytest.mark.parametrize("named_by", [SHA_1, SHA_256])
def test_msal_with_a_certificate_and_with_another_key(served: ServedRelay, named_by: str) -> None:
    app = application(served, certificate(), named_by=named_by)
    found = app.acquire_token_for_client(SCOPES)
    assert is_certified(served, found["access_token"]), found
    app = application(served, certificate(number=1), named_by=named_by)
    found = app.acquire_token_for_client(SCOPES)
    assert (found["error"], found["error_codes"]) == ("invalid_client", [700027])


def test_msal_gets_no_second_token_for_one_assertion(served: ServedRelay) -> None:
    """It keeps an assertion for nine minutes; another object makes another one."""
    app = application(served, certificate(), named_by=SHA_256)
    assert "access_token" in app.acquire_token_for_client(SCOPES)
    assert app.acquire_token_for_client(SCOPES)["token_source"] == "cache"
    found = app.acquire_token_for_client(["http://localhost/.default"])
    assert found["error_codes"] == [50027]
    assert "Each request needs a new one" in found["error_description"]
    app = application(served, certificate(), named_by=SHA_256)
    assert "access_token" in app.acquire_token_for_client(["http://localhost/.default"])


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    """Certificate and private key in one file, as azure-identity reads them."""
    file = tmp_path / "client.pem"
    file.write_text(certificate().key_pem + certificate().pem)
    return file


def test_azure_identity_with_a_certificate(served: ServedRelay, pem: Path) -> None:
    identity = pytest.importorskip("azure.identity")
    core = pytest.importorskip("azure.core.exceptions")

    def credential(**options: bool) -> Any:
        return identity.CertificateCredential(
            "contoso",
            CLIENT_ID,
            str(pem),
            authority=served.url,
            disable_instance_discovery=True,
            **options,
        )

    for with_chain in (False, True):
        with credential(send_certificate_chain=with_chain) as one:
            assert is_certified(served, one.get_token(*SCOPES).token)
    pem.write_text(certificate(number=1).key_pem + certificate(number=1).pem)
    with credential() as one, pytest.raises(core.ClientAuthenticationError, match="AADSTS700027"):
        one.get_token(*SCOPES)


async def test_azure_identity_aio_with_a_certificate(served: ServedRelay, pem: Path) -> None:
    """Its assertions are for thirty minutes."""
    core = pytest.importorskip("azure.core.exceptions")
    pytest.importorskip("aiohttp")
    identity = pytest.importorskip("azure.identity.aio")
    credential = identity.CertificateCredential(
        "contoso",
        CLIENT_ID,
        str(pem),
        authority=served.url,
        disable_instance_discovery=True,
        connection_verify=str(served.ca),
    )
    async with credential:
        with pytest.raises(core.ClientAuthenticationError, match="AADSTS700024"):
            await credential.get_token(*SCOPES, enable_cae=True)


def test_javascript_with_a_certificate(javascript: JavaScript, pem: Path) -> None:
    program = """
        const { ClientCertificateCredential } = require('@azure/identity');
        const { TokenCredentialAuthenticationProvider } = require(
          '@microsoft/microsoft-graph-client/authProviders/azureTokenCredentials');
        const credential = new ClientCertificateCredential('contoso', '%s', { certificatePath: '%s' },
          { authorityHost: process.env.RELAY_URL, disableInstanceDiscovery: true });
        const authProvider = new TokenCredentialAuthenticationProvider(credential,
          { scopes: ['https://graph.microsoft.com/.default'] });
        const signedIn = graph.Client.initWithMiddleware({ baseUrl: process.env.RELAY_URL + '/',
          customHosts: new Set(['localhost']), authProvider });
        return (await signedIn.api('/users/certified@example.test').get()).mail;
    """
    found = javascript.run(program % (CLIENT_ID, pem))
    assert found == "certified@example.test"
