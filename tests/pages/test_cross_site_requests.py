"""What a cross-site image can do to a development relay: nothing, with every path that it may GET.

A message that a person reads with its remote images, a host that redirects, and any web page can
make the browser send a GET without a token to the relay.
"""

import ast
import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.front_door.api import app as api_app
from relay.front_door.pages import app as pages_app
from tests.support.browser import Browser
from tests.support.dev_process import DevProcess
from tests.support.endpoint_rows import rows
from tests.support.page_routes import routes
from tests.support.relay_process import until

CAPTURED, LOCAL, LATE = "ann@customer.example", "bob@example.test", "joe+451@customer.example"
IMAGE = {
    "accept": "image/avif,image/webp,*/*;q=0.8",
    "sec-fetch-dest": "image",
    "sec-fetch-mode": "no-cors",
}
REQUESTS = {
    "of another site": IMAGE | {"sec-fetch-site": "cross-site"},
    "of another port": IMAGE | {"sec-fetch-site": "same-site"},
    "of a browser without fetch metadata": {"accept": "image/*"},
    "that a person typed": {
        "sec-fetch-site": "none",
        "sec-fetch-dest": "document",
        "sec-fetch-mode": "navigate",
    },
    "by a link": {
        "sec-fetch-site": "cross-site",
        "sec-fetch-dest": "document",
        "sec-fetch-mode": "navigate",
    },
}
QUERIES = (
    "",
    "?done=delete&action=delete&id={key}&confirmed=true&csrf=",
    "?to=x@evil.test&confirmed=true",
    "?advance_s=99&by=86400&own=1d",
    "?show=html&images=1",
    "?all=true&reason=x",
    "?download=1&show=1",
    "?response_type=code&client_id=new&login_hint=new&redirect_uri=http://localhost:9/",
)


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    dev = dev_module("--no-demo", "--release-to", "smtp://127.0.0.1:9", "--release-allow", "*")
    for recipient in (CAPTURED, LOCAL, LATE):
        with dev.smtp() as session:
            text = "Content-Type: text/html\r\n\r\n<img src=http://a.evil.test/>"
            session.sendmail("alice@example.test", recipient, f"Subject: {recipient}\r\n{text}")
    until(
        "all have ended or wait",
        lambda: sorted(states(dev)) == ["captured", "deferred", "delivered"],
    )
    assert dev.cli("queue", "hold", "--state", "deferred").returncode == 0
    return dev


def states(dev: DevProcess) -> list[str]:
    return [one["state"] for one in asked(dev, "/relay/v1/messages")["messages"]]


def asked(dev: DevProcess, path: str) -> Any:
    return dev.get(path, dev.ready["token"]).json()


def state_of(dev: DevProcess) -> dict[str, Any]:
    """Return everything that a person or a program could see of a change."""
    paths = (
        "/relay/v1/messages",
        "/relay/v1/queue",
        "/relay/v1/refused",
        "/v1.0/users",
        *(
            f"/v1.0/users/{one}/messages?$select=isRead,subject,parentFolderId"
            for one in (CAPTURED, LOCAL)
        ),
    )
    mail = Path(dev.ready["dir"]) / "mail"
    found: dict[str, Any] = {path: asked(dev, path) for path in paths}
    found["/relay/v1/messages"].pop("cursor")  # the time of the answer
    users = {one["id"] for one in found["/v1.0/users"]["value"]}
    found["/v1.0/users"] = users - {"operator@example.test"}  # who asks here
    found["scenario"] = dev.get("/relay/v1/dev/internet", dev.ready["token"]).text
    found["mail"] = sorted(
        str(file.relative_to(mail))
        for file in mail.rglob("*")
        if ".submissions" not in file.parts and "index" not in file.name
    )
    found["advanced_s"] = asked(dev, "/relay/v1/dev/clock")["advanced_s"]
    return found


def paths(key: str) -> list[str]:
    """Return the path of every route that there is, with a message that is there."""
    found = {f"/{one}" for one in routes()}
    tree = ast.parse(Path(api_app.__file__).read_text())
    for case in (
        case for node in ast.walk(tree) if isinstance(node, ast.Match) for case in node.cases
    ):
        if isinstance(case.pattern, ast.MatchSequence):
            parts = [ast.unparse(one).strip("'") for one in case.pattern.patterns]
            found.add("/relay/v1/" + "/".join(parts))
        elif isinstance(case.pattern, ast.MatchValue):
            found.add(ast.literal_eval(case.pattern.value).decode())
    found |= {f"/relay/v1/dev/{one}" for one in ("clock", "internet", "internet/replies")}
    found |= {path for _, path in rows("yes")}
    found |= {
        "/oauth2/v2.0/authorize",
        "/common/oauth2/v2.0/token",
        "/common/oauth2/v2.0/authorize",
        "/common/oauth2/deviceauth",
        "/common/userrealm/new@example.test",
        "/favicon.ico",
        "/.well-known/openid-configuration",
    }
    operations = [f"/queue/{one}" for one in ("retry", "hold", "release", "cancel", "reroute")]
    found |= {*operations, *(f"/relay/v1{one}" for one in operations)}
    filled = itertools.chain.from_iterable(
        (
            one.replace("{key}", name).replace("/key/", f"/{name}/").replace("{id}", name)
            for name in (key, "last")
        )
        for one in found
    )
    return sorted({one.replace("...", "1").replace("{operation}", "hold") for one in filled})


def test_every_route_is_known() -> None:
    assert pages_app.PREFIXES
    assert {
        "/messages/K/release",
        "/relay/v1/messages/K/release",
        "/relay/v1/queue/cancel",
        "/logout",
        "/help/example",
        "/metrics",
        "/messages/last",
    } <= set(paths("K"))
    assert len(paths("K")) > 80


@pytest.mark.parametrize("kind", REQUESTS)
def test_no_get_changes_anything(dev: DevProcess, kind: str) -> None:
    key = asked(dev, f"/relay/v1/messages?to={CAPTURED}")["messages"][0]["id"]
    before = state_of(dev)
    assert [
        one["isRead"]
        for one in before[f"/v1.0/users/{LOCAL}/messages?$select=isRead,subject,parentFolderId"][
            "value"
        ]
    ] == [False]
    answered = set()
    with httpx.Client(base_url=dev.url, trust_env=False, timeout=20) as http:
        queries = QUERIES if "without" in kind else QUERIES[:1]  # the others are the same requests
        for path, query in itertools.product(paths(key), queries):
            wait = "" if query or not path.endswith("/wait") else "?timeout=0"
            url = path + wait + query.replace("{key}", key)
            with http.stream(
                "GET", url, headers=REQUESTS[kind]
            ) as answer:  # some streams do not end
                answered.add(answer.status_code)
                assert answer.status_code < 500, url
                assert "set-cookie" not in answer.headers
    after = state_of(dev)
    assert after == before
    refused = {403, 401}
    assert answered & refused if "another site" in kind else 200 in answered


def test_an_image_of_another_site_marks_nothing_as_read(
    browser: Browser, dev: DevProcess, tmp_path: Path
) -> None:
    before = state_of(dev)
    key = asked(dev, f"/relay/v1/messages?to={CAPTURED}")["messages"][0]["id"]
    page = tmp_path / "page.html"
    page.write_text(
        "".join(
            f'<img src="{dev.url}{path}">'
            for path in (f"/messages/{key}", "/messages/last", "/queue")
        )
        + f'<iframe src="{dev.url}/messages/{key}"></iframe><p id=end>end</p>'
    )
    browser.open(page.as_uri())
    browser.wait_for("#end")
    browser.requests_elsewhere(dev.url)
    assert state_of(dev) == before
    # a person who opens it marks it
    browser.open(f"{dev.url}/messages/{key}")
    until("it is read", lambda: state_of(dev) != before)
