"""msal and azure-identity, as they are published, sign users in to `relay dev` over HTTPS.

MSAL is told the relay's URL, or reaches it by HTTPS_PROXY; azure-identity does so with no option.
MSAL asks for the realm of a user at port 443 whatever the port of its authority is.
"""

import sys
import textwrap
import webbrowser
from pathlib import Path
from typing import Any

import httpx
import msal
import pytest

from tests.support.client_keys import certificate
from tests.support.dev_process import DevProcess

SCOPES = ["https://graph.microsoft.com/Mail.Send"]
ALL = "https://graph.microsoft.com/.default"
MICROSOFT = "https://login.microsoftonline.com"
ALICE = "alice@example.test"
# What a browser does with the page of response_mode=form_post, whose script sends its form.
BROWSER = """\
    import sys
    from html.parser import HTMLParser
    import httpx

    class Form(HTMLParser):
        action, fields = "", {}

        def handle_starttag(self, tag, attributes):
            found = dict(attributes)
            if tag == "form":
                self.action = found.get("action", "")
            if tag == "input":
                self.fields[found["name"]] = found["value"]

    headers = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    answer = httpx.get(sys.argv[1], headers=headers, follow_redirects=True)
    form = Form()
    form.feed(answer.text)
    if form.action:
        httpx.post(form.action, data=form.fields)
"""


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    return dev_module("--no-demo")


@pytest.fixture(scope="module")
def url(dev: DevProcess) -> str:
    return f"https://localhost:{dev.ready['https'][0].rpartition(':')[2]}"


@pytest.fixture(autouse=True)
def trust_dev(dev: DevProcess, trust: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, dev.ready["ca"])


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser that the library webbrowser finds: a program."""
    program = tmp_path / "browser"
    program.write_text(f"#!{sys.executable}\n{textwrap.dedent(BROWSER)}")
    program.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{program} %s &")
    monkeypatch.setattr(webbrowser, "_tryorder", None)  # it reads BROWSER once
    monkeypatch.setattr(webbrowser, "_browsers", {})


@pytest.fixture
def by_proxy(dev: DevProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """login.microsoftonline.com leads to the relay, by the variables that it prints."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://{dev.ready['http'][0]}")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, dev.ready["bundle"])


def public(url: str) -> Any:
    return msal.PublicClientApplication(
        "desktop", authority=f"{url}/contoso", instance_discovery=False
    )


def mailbox(dev: DevProcess, found: dict[str, Any], at: str = "me") -> str:
    """The mailbox that the access token opens."""
    assert "access_token" in found, found
    return str(dev.get(f"/v1.0/{at}", found["access_token"]).json()["mail"])


@pytest.mark.usefixtures("by_proxy")
def test_msal_by_password_and_then_silently(dev: DevProcess) -> None:
    app = msal.PublicClientApplication("desktop", authority=f"{MICROSOFT}/contoso")
    found = app.acquire_token_by_username_password("carol@example.test", "any", SCOPES)
    assert mailbox(dev, found) == "carol@example.test"
    (account,) = app.get_accounts()
    assert account["username"] == "carol@example.test"
    cached = app.acquire_token_silent(SCOPES, account)
    assert cached["token_source"] == "cache"
    fresh = app.acquire_token_silent(SCOPES, account, force_refresh=True)
    assert fresh["token_source"] == "identity_provider"
    assert mailbox(dev, fresh) == "carol@example.test"


def test_msal_by_device_code(dev: DevProcess, url: str) -> None:
    app = public(url)
    flow = app.initiate_device_flow(SCOPES)
    assert flow["user_code"] in str(flow), flow
    assert mailbox(dev, app.acquire_token_by_device_flow(flow)) == ALICE


def test_msal_interactively(dev: DevProcess, url: str, browser: None) -> None:
    app = public(url)
    found = app.acquire_token_interactive(SCOPES, login_hint="bob@example.test", timeout=60)
    assert mailbox(dev, found) == "bob@example.test"
    assert found["id_token_claims"]["preferred_username"] == "bob@example.test"


@pytest.mark.filterwarnings("ignore:response_mode='form_post' is recommended")
def test_msal_by_a_code(dev: DevProcess, url: str) -> None:
    """A web application with a secret."""
    web = msal.ConfidentialClientApplication(
        "web", client_credential="any", authority=f"{url}/contoso", instance_discovery=False
    )
    flow = web.initiate_auth_code_flow(SCOPES, redirect_uri="http://localhost:9/back")
    answer = httpx.get(flow["auth_uri"])
    back = dict(httpx.URL(answer.headers["location"]).params)
    found = web.acquire_token_by_auth_code_flow(flow, back)  # checks state and nonce
    assert mailbox(dev, found) == ALICE


def test_msal_with_a_certificate(dev: DevProcess, url: str) -> None:
    made = certificate()
    credential = {"private_key": made.key_pem, "public_certificate": made.pem}
    app = msal.ConfidentialClientApplication(
        "app", client_credential=credential, authority=f"{url}/contoso", instance_discovery=False
    )
    found = app.acquire_token_for_client([ALL])
    assert mailbox(dev, found, "users/app@example.test") == "app@example.test"


@pytest.fixture
def identity(by_proxy: None) -> Any:
    return pytest.importorskip("azure.identity", reason="make clients installs azure-identity")


def opened(dev: DevProcess, credential: Any, scope: str = SCOPES[0]) -> str:
    """The mailbox that the credential opens: with the scope ALL that of the application `app`."""
    with credential:
        token = credential.get_token(scope).token
        assert credential.get_token(scope).token == token  # from the cache
        at = "users/app@example.test" if scope == ALL else "me"
        return mailbox(dev, {"access_token": token}, at)


def test_device_code_credential(dev: DevProcess, identity: Any) -> None:
    shown: list[tuple[Any, ...]] = []
    # with its own client id, in the tenant organizations
    credential = identity.DeviceCodeCredential(prompt_callback=lambda *words: shown.append(words))
    assert opened(dev, credential) == ALICE
    assert len(shown) == 1


def test_interactive_browser_credential(dev: DevProcess, identity: Any, browser: None) -> None:
    credential = identity.InteractiveBrowserCredential(
        client_id="desktop", tenant_id="contoso", login_hint="bob@example.test"
    )
    assert opened(dev, credential) == "bob@example.test"


def test_credentials_of_an_application(dev: DevProcess, identity: Any, tmp_path: Path) -> None:
    data = (certificate().key_pem + certificate().pem).encode()
    credential = identity.CertificateCredential("contoso", "app", certificate_data=data)
    assert opened(dev, credential, ALL) == "app@example.test"
    file = tmp_path / "token"
    file.write_text("what the cluster wrote")
    credential = identity.WorkloadIdentityCredential(
        tenant_id="contoso", client_id="app", token_file_path=str(file)
    )
    assert opened(dev, credential, ALL) == "app@example.test"


def test_credentials_of_a_user(dev: DevProcess, identity: Any) -> None:
    user = ("desktop", "carol@example.test", "any")
    credential = identity.UsernamePasswordCredential(*user, tenant_id="contoso")
    assert opened(dev, credential) == "carol@example.test"
