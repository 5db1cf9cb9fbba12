"""Tokens of [[oauth]]: how they are asked for, how long they are kept, what a faulty server does."""

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jwt
from joserfc.jwk import RSAKey

from relay.base.files import replace_file
from relay.base.message.nexthop import HopKind
from relay.base.message.outcome import Relayed
from relay.base.settings.tree import Settings
from relay.delivery.oauth import tokens
from relay.delivery.oauth.tokens import TokenHolder
from relay.delivery.smtp.connect import TokenError
from relay.transport.routing.routes import Credentials
from tests.support.client_keys import base64url, certificate
from tests.support.fake_graph import FakeGraph, error
from tests.support.manual_clock import ManualClock
from tests.support.relay_config import written_settings
from tests.support.token_endpoint import TokenEndpoint, refused, token
from tests.unit.delivery.test_graph import Spooled, opened

LOGIN = Credentials("printer@contoso.example", oauth="m365")
SECRET = "s3cret+value"
AGAIN_S = 1000.0  # longer than the pause after failures


class Holder(TokenHolder):
    """A holder for one client, with its clock and what it counts."""

    def __init__(self, folder: Path, endpoint: TokenEndpoint, **client: Any) -> None:
        given = {"name": "m365", "client_id": "app", "token_url": endpoint.url, "scope": "mail"}
        given |= client or {"client_secret": SECRET}
        self.settings: Settings = written_settings(folder, {"oauth": [given]})
        self.folder = self.settings.state_dir / "oauth"
        self.clock, self.counted, self.refresh = ManualClock(), Counter[str](), self.folder / "m365"
        self.folder.mkdir(parents=True, exist_ok=True)
        super().__init__(
            lambda: self.settings, self.clock, lambda _, result: self.counted.update([result])
        )

    async def get(self, refused: str = "", user: str = LOGIN.user) -> str:
        return await self.token(Credentials(user, oauth="m365"), HopKind.SMTP, refused)

    async def fails(self, refused: str = "") -> str:
        with pytest.raises(TokenError) as caught:
            await self.get(refused)
        return str(caught.value)


async def test_all_that_wait_share_a_request_and_a_token_outlives_a_server_that_is_away(tmp_path):
    with TokenEndpoint(token("one"), token("two")) as endpoint:
        holder = Holder(tmp_path, endpoint)
        assert set(await asyncio.gather(*(holder.get() for _ in range(20)))) == {"one"}
        assert len(endpoint.forms) == 1
        assert endpoint.forms[0]["client_secret"] == SECRET
        holder.clock.jumped_us = -600_000_000  # a wall clock that is wrong changes nothing
        holder.clock.advance(3290)
        assert await holder.get() == "one"
        assert len(endpoint.forms) == 1
    holder.clock.advance(20)  # shortly before its end
    assert await holder.get() == "one"
    await asyncio.gather(*holder.tasks)
    assert holder.impaired().startswith(
        '[[oauth]] "m365" gives no token: the token server does not'
    )
    assert await holder.get() == "one"
    holder.clock.advance(300)
    assert "connection refused" in await holder.fails()
    assert holder.counted == {"ok": 1, "away": 2}
    assert "connection refused" in await holder.fails()  # without another request
    assert holder.counted == {"ok": 1, "away": 2}
    for _ in range(8):  # who has repaired it waits a minute at most
        holder.clock.advance(60)
        await holder.fails()
    assert holder.counted == {"ok": 1, "away": 10}


async def test_a_token_is_renewed_in_the_background_and_by_a_reload(tmp_path):
    with TokenEndpoint(token("one"), token("two"), token("three")) as endpoint:
        holder = Holder(tmp_path, endpoint)
        assert await holder.get() == "one"
        holder.clock.advance(3310)
        assert await holder.get() == "one"
        await asyncio.gather(*holder.tasks)
        assert await holder.get() == "two"
        assert not holder.impaired()
        holder.settings = Holder(tmp_path, endpoint, client_secret="another").settings
        assert await holder.get() == "three"
        assert endpoint.forms[2]["client_secret"] == "another"
        assert SECRET not in repr(holder.settings)


async def test_a_server_that_repeats_a_token_is_not_repeated(tmp_path, capfd):
    with TokenEndpoint(token("earlier-token"), refused("x", "had earlier-token")) as endpoint:
        holder = Holder(tmp_path, endpoint)
        await holder.get()
        assert "x had ... (trace" in await holder.fails("earlier-token")
        assert "earlier-token" not in holder.impaired() + capfd.readouterr().err


async def test_a_refused_token_is_replaced_once_a_minute(tmp_path):
    with TokenEndpoint(*map(token, ("one", "two", "three"))) as endpoint:
        holder = Holder(tmp_path, endpoint)
        assert await holder.get() == "one"
        assert await asyncio.gather(*(holder.get("one") for _ in range(4))) == ["two"] * 4
        assert "refuses new tokens" in await holder.fails("two")
        holder.clock.advance(61)
        assert await holder.get("two") == "three"
        assert len(endpoint.forms) == 3


LIES = [
    ((200, b"<html>"), "the answer (200) is not one of a token server"),
    ((200, b"{" * 100_000), "longer than 65536 octets"),
    ((200, b"x" * 1_048_576), "longer than 65536 octets"),
    ((302, b""), "the answer (302) is not one"),
    (token("two words"), "the answer (200) is not one"),
    (token("line\r\nfeed"), "the answer (200) is not one"),
    ({"access_token": ["x"]}, "the answer (200) is not one"),
    (token("x", expires_in={}), "the answer (200) is not one"),
    (refused("server_error", "x" * 50_000), "server_error xxx"),
    (
        refused("invalid_client", f"AADSTS7000215: {SECRET}\x1b[1m"),
        "AADSTS7000215: ...\\x1b[1m (trace",
    ),
    (refused("invalid_client", f"in {urlencode({'x': SECRET})}&y"), "in x=...&y (trace"),
    (refused("invalid_client"), '(trace_id trace-1); check [[oauth]] "m365"'),
    (refused("temporarily_unavailable", status=503), "temporarily_unavailable"),
]


@pytest.mark.parametrize(("answer", "words"), LIES)
async def test_a_server_that_lies_gives_no_token(tmp_path, capfd, answer, words):
    with TokenEndpoint(answer) as endpoint:
        holder = Holder(tmp_path, endpoint)
        text = await holder.fails()
        assert words in text
        assert len(text) < 1000
        assert SECRET not in text + capfd.readouterr().err
        assert await holder.fails() == text
        assert len(endpoint.forms) == 1
        endpoint.answers = [token("good")]
        holder.clock.advance(AGAIN_S)
        assert await holder.get() == "good"


@pytest.mark.parametrize(
    ("expires_in", "lives_s"),
    [(-5, 60), ("nan", 60), (0.9, 60), (25, 25), (1e300, 86400), ("3599", 3599), (None, 300)],
)
async def test_the_life_of_a_token_is_bounded(tmp_path, expires_in, lives_s):
    first = {"access_token": "one"} | ({} if expires_in is None else {"expires_in": expires_in})
    with TokenEndpoint(first, token("two")) as endpoint:
        holder = Holder(tmp_path, endpoint)
        assert await holder.get() == "one"
        holder.clock.advance(lives_s * 0.75)
        assert await holder.get() == "one"
        assert len(endpoint.forms) == 1
        holder.clock.advance(lives_s)
        assert await holder.get() == "two"


async def test_a_token_that_has_ended_or_is_due_is_not_a_refused_one(tmp_path):
    answers = [token(str(number), expires_in=25) for number in range(9)]
    with TokenEndpoint(*answers) as endpoint:
        holder = Holder(tmp_path, endpoint)
        for number, after_s in enumerate((24, 26, 21)):  # a host may count from before us
            assert await holder.get() == str(2 * number)
            holder.clock.advance(after_s)
            assert await holder.get(str(2 * number)) == str(2 * number + 1)
            holder.clock.advance(25)
        assert await holder.get() == "6"
        assert await holder.get("6") == "7"
        assert "refuses new tokens" in await holder.fails("7")


async def test_a_short_token_serves_one_message_and_requests_follow_each_other(tmp_path):
    asked, now, is_second = [], threading.Lock(), threading.Event()

    def one_at_a_time(form: dict[str, str]) -> dict[str, Any]:
        if not now.acquire(blocking=False):
            is_second.set()
        is_second.wait(0.02)  # for what may be asked meanwhile
        now.release()
        asked.append(form["scope"])
        return token(f"t{len(asked)}", expires_in=9)

    with TokenEndpoint(one_at_a_time) as endpoint:
        holder = Holder(tmp_path, endpoint)
        assert {await holder.get(), await holder.get()} == {"t1", "t2"}
        assert len(set(await asyncio.gather(*(holder.get() for _ in range(5))))) == 5
        first = asyncio.create_task(holder.get())
        await asyncio.sleep(0)
        holder.settings = Holder(tmp_path, endpoint, client_secret="x", scope="y").settings
        assert await holder.get() != await first
        assert (len(asked), asked[-1], is_second.is_set()) == (9, "y", False)


async def test_a_token_that_had_ended_before_it_came_is_a_failure(tmp_path):
    def slow(_form: dict[str, str]) -> dict[str, Any]:
        holder.clock.advance(2)
        return token("late", expires_in=2)

    with TokenEndpoint(slow) as endpoint:
        holder = Holder(tmp_path, endpoint)
        assert "had ended before it came" in await holder.fails()
        assert await holder.fails()
        assert len(endpoint.forms) == 1


async def test_a_slow_server_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_ANSWER_S", 0.1)
    over = threading.Event()
    with TokenEndpoint(lambda _: over.wait(10) and token("late")) as endpoint:
        assert "no answer within 0.1 s" in await Holder(tmp_path, endpoint).fails()
        over.set()


async def test_a_refresh_token_is_replaced_before_the_token_is_used(tmp_path, monkeypatch):
    one, two = token("one", refresh_token="second"), token("two")
    with TokenEndpoint(one, refused("invalid_grant", "AADSTS70008: ended"), two) as endpoint:
        holder = Holder(tmp_path, endpoint, client_id="app")
        assert "found no such file, expected that of relay oauth login m365" in await holder.fails()
        holder.refresh.write_text("first\n")  # a person has signed in: no pause
        with monkeypatch.context() as patch:
            patch.setattr(tokens, "replace_file", lambda *_, **__: Path("/nothing").stat())
            assert "cannot be written" in await holder.fails()
        endpoint.answers.insert(0, one)
        holder.clock.advance(AGAIN_S)
        assert await holder.get() == "one"
        assert holder.refresh.read_text() == "second"
        assert holder.refresh.stat().st_mode & 0o777 == 0o600
        assert await holder.get() == "one"
        assert endpoint.forms[1]["refresh_token"] == "first"
        holder.clock.advance(4000)
        assert "AADSTS70008: ended" in (text := await holder.fails())
        assert "; sign in: relay oauth login m365" in text
        replace_file(holder.refresh, b"third", mode=0o600)
        assert await holder.get() == "two"
        assert endpoint.forms[-1]["refresh_token"] == "third"


async def test_what_a_person_stores_meanwhile_stays(tmp_path):
    def while_asked(_form: dict[str, str]) -> dict[str, Any]:
        replace_file(holder.refresh, b"of a person", mode=0o600)
        return token("one", refresh_token="second")

    with TokenEndpoint(while_asked) as endpoint:
        holder = Holder(tmp_path, endpoint, client_id="app")
        holder.refresh.write_text("first")
        assert await holder.get() == "one"
        assert holder.refresh.read_text() == "of a person"


async def test_a_service_account_has_a_token_for_each_mailbox(tmp_path, monkeypatch):
    made, mailboxes = certificate(), ("a@x.test", "b@x.test")
    pem = made.key_pem.replace("\n", "\\n")
    file = tmp_path / "google.json"
    file.write_text(
        f'{{"client_email": "relay@p.test", "private_key_id": "k1", "private_key": "{pem}"}}'
    )
    with TokenEndpoint(*map(token, mailboxes)) as endpoint:
        holder = Holder(tmp_path, endpoint, service_account=file.name)
        assert [await holder.get(user=one) for one in (*mailboxes, *mailboxes)] == [*mailboxes] * 2
        key = RSAKey.import_key(made.pem)
        for form, mailbox in zip(endpoint.forms, mailboxes, strict=True):
            assertion = jwt.decode(form["assertion"], key, algorithms=["RS256"])
            assert assertion.header["kid"] == "k1"
            claims = assertion.claims
            assert (claims["iss"], claims["sub"]) == ("relay@p.test", mailbox)
            assert (claims["aud"], claims["scope"]) == (endpoint.url, "mail")
            assert claims["exp"] - claims["iat"] <= 3600


async def test_a_certificate_signs_an_assertion_for_each_request(tmp_path):
    made = certificate()
    file = tmp_path / "app.pem"
    file.write_text(made.pem + made.key_pem)
    with TokenEndpoint(token("one"), token("two")) as endpoint:
        holder = Holder(tmp_path, endpoint, certificate=file.name)
        assert [await holder.get(), await holder.get("one")] == ["one", "two"]
        key, used = RSAKey.import_key(made.pem), set[str]()
        for form in endpoint.forms:
            assert form["client_assertion_type"].endswith(":jwt-bearer")
            assertion = jwt.decode(form["client_assertion"], key, algorithms=["PS256"])
            named = base64url(made.certificate.fingerprint(SHA256()))
            assert assertion.header["x5t#S256"] == named
            claims = assertion.claims
            assert (claims["iss"], claims["sub"], claims["aud"]) == ("app", "app", endpoint.url)
            assert 0 < claims["exp"] - claims["iat"] <= 3600
            used.add(claims["jti"])
        assert len(used) == 2


async def test_an_assertion_is_read_at_each_request(tmp_path):
    file = tmp_path / "assertion"
    file.write_text("eyJ1.e30.x\n")
    with TokenEndpoint(token("one"), token("two")) as endpoint:
        holder = Holder(tmp_path, endpoint, assertion_file=str(file))
        assert await holder.get() == "one"
        file.write_text("eyJ2.e30.x\n")
        assert await holder.get("one") == "two"
        assert [form["client_assertion"] for form in endpoint.forms] == ["eyJ1.e30.x", "eyJ2.e30.x"]


@pytest.mark.parametrize(("life_s", "requests"), [(25, 3), (9, 60)])
async def test_a_session_has_a_new_token_before_the_old_one_ends(tmp_path, life_s, requests):
    """A message each second, to a Graph that refuses a token which has ended."""
    asked, ended = list[float](), list[str]()

    def issued(_form: dict[str, str]) -> dict[str, Any]:
        asked.append(holder.clock.monotonic())
        graph.token = f"t{len(asked)}"
        return token(graph.token, expires_in=life_s)

    def fault(_method: str, path: str) -> Any:
        if holder.clock.monotonic() < asked[-1] + life_s:
            return ""
        ended.append(path)
        return error(401, "InvalidAuthenticationToken")

    with TokenEndpoint(issued) as endpoint:
        holder = Holder(tmp_path, endpoint)
        async with FakeGraph(holder.clock.queue_us) as graph:
            graph.fault = fault
            session = await opened(graph, token=holder.token)
            for _ in range(60):
                [outcome] = await Spooled(holder.clock, 1).attempt(session)
                assert isinstance(outcome, Relayed), outcome
                holder.clock.advance(1)
            assert (ended, len(asked)) == ([], requests)
            holder.clock.advance(100)  # it has ended while nothing was to be sent
            [outcome] = await Spooled(holder.clock, 1).attempt(session)
            assert (isinstance(outcome, Relayed), ended) == (True, [])
            session.close()
