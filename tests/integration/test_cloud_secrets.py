"""No secret of a login by token is where people look: log, traces, answers of commands, a backup's list.

The token server and the host repeat what they got in the words of their refusals.
"""

import asyncio
from pathlib import Path
from typing import Any

from starlette.responses import Response

from relay.front_door.http.gateway import json_response
from relay.front_door.http.http_request import HttpRequest
from tests.support.client_keys import certificate
from tests.support.http_server import serving
from tests.support.relay_process import RelayProcess, until

NAMES = ("secret", "assertion", "refresh", "access", "granted", "proxy")
SECRETS = {name: f"{name}-4f1c9a7be0d2" for name in NAMES}
CLIENTS: dict[str, dict[str, Any]] = {
    "secret": {"client_secret": SECRETS["secret"]},
    "certificate": {"certificate": "client.pem"},
    "assertion": {"assertion_file": "assertion"},
    "refresh": {},  # from `relay oauth login`
    "granted": {"client_secret": SECRETS["granted"]},
    "proxied": {"client_secret": SECRETS["granted"]},
}


async def answer(call: HttpRequest) -> Response:
    """Grant a token, or refuse it; refuse all that comes with a token."""
    body = (await call.body()).decode()
    if call.segments[0] == "v1.0":
        text = f"{call.headers.get('authorization')} {body}"
        return json_response({"error": {"code": "ErrorAccessDenied", "message": text}}, status=403)
    if SECRETS["granted"] in body:
        return json_response({"access_token": SECRETS["access"], "expires_in": 3600})
    return json_response({"error": "invalid_grant", "error_description": body}, status=400)


async def test_no_secret_is_where_people_look(tmp_path: Path) -> None:
    async with serving(answer) as server:
        await asyncio.to_thread(look, str(server.bound[0]), tmp_path)


def look(place: str, tmp_path: Path) -> None:
    token_url = f"http://{place}/tenant/oauth2/v2.0/token"
    common = {"client_id": "relay", "token_url": token_url, "scope": "mail"}
    oauth = [{"name": name, **common, **keys} for name, keys in CLIENTS.items()]
    routes = [
        {
            "domain": f"{name}.test",
            "next_hop": "graph://localhost:9" if name == "proxied" else f"graph://{place}",
            "auth": {"user": f"{name}@example.test", "oauth": name},
        }
        for name in CLIENTS
    ]
    proxy = f"http://relay:{SECRETS['proxy']}@127.0.0.1:9"
    config = {"oauth": oauth, "route": routes, "delivery": {"proxy": proxy}}
    relay, made = RelayProcess(config=config), certificate()
    (relay.folder / "client.pem").write_text(made.pem + made.key_pem)
    (relay.folder / "assertion").write_text(SECRETS["assertion"])
    (relay.folder / "state/oauth").mkdir(mode=0o700)
    (relay.folder / "state/oauth/refresh").write_text(SECRETS["refresh"])
    with relay:
        to = [f"bob@{name}.test" for name in CLIENTS]
        queue_id = relay.submit("alice@example.test", to)
        until("all are refused", lambda: {*relay.states(queue_id).values()} == {"deferred"})
        probes = [("explain", one, "--from", "alice@example.test", "--probe") for one in to]
        tests = [("oauth", "test", name) for name in CLIENTS]
        words = (("trace", queue_id), ("show", queue_id), ("queue", "list"), ("check", "--online"))
        seen = relay.exposition() + str(relay.request("GET", "/readyz").body)
        for command in (*words, *probes, *tests, ("backup", str(tmp_path / "backup"))):
            for form in ((), ("--json",)):
                done = relay.cli(*command, *form)
                seen += done.stdout + done.stderr
        seen += relay.log
    refusals = (
        "client_secret=...",
        "client_assertion=...",
        "refresh_token=...",
        "ErrorAccessDenied",
    )
    assert [one for one in refusals if one not in seen] == []
    hidden = {**SECRETS, "key": made.key_pem.splitlines()[2], "JWT": "eyJ"}
    assert {name for name, text in hidden.items() if text in seen} == set()
    assert "Traceback" not in seen
