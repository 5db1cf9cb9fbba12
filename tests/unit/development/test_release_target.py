"""The URL of --release-to, and the next hops that a development relay may use."""

import pytest

from relay.base.message.nexthop import CAPTURE, NextHop
from relay.base.settings.tree import Route
from relay.development.accounts import DevelopmentAccounts
from relay.development.options import ReleaseTarget
from relay.transport.routing.resolver import LoopbackResolver
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routing_result import RemoteRecipient
from tests.support.tables import each_row


@each_row(
    "url, hop, login",
    [
        ("smtp://mail.test", "smtp://mail.test:25", ("", "")),
        ("smtp://Mail.Test:1025/", "smtp://mail.test:1025", ("", "")),
        ("smtps://mail.test", "smtps://mail.test:465", ("", "")),
        ("smtp://[::1]:9", "smtp://[::1]:9", ("", "")),
        ("smtp://me%40a.test:p%3Aw@mail.test", "smtp://mail.test:25", ("me@a.test", "p:w")),
    ],
)
def test_urls(url, hop, login):
    target = ReleaseTarget.parse(url)
    assert (str(target.next_hop), (target.user, target.password)) == (hop, login)
    assert login[1] == "" or login[1] not in repr(target)


@each_row(
    "url",
    [
        *("", "mail.test", "lmtp://mail.test", "smtp://", "smtp://a b", "smtp://mail.test:x"),
        *("smtp://mail.test/x", "smtp://mail.test?x", "smtp://me@mail.test"),
        *("smtp://mail.test:70000", "smtp://me:a%0Ab@mail.test", "mx", "smtp://mail.test:0"),
    ],
)
def test_other_texts_are_refused(url):
    with pytest.raises(ValueError, match="smtp://HOST:PORT or smtps://HOST:PORT"):
        ReleaseTarget.parse(url)


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("smtp://me:secret@mail.test", "verify"),
        ("smtp://me:secret@127.0.0.1", "opportunistic"),
        ("smtp://mail.test", "opportunistic"),
    ],
)
def test_no_mail_takes_the_route_by_itself(tmp_path, url, level):
    target = ReleaseTarget.parse(url)
    routes = (Route("*", "capture"), target.route(tmp_path))
    table = RouteTable(routes, ["example.test"], DevelopmentAccounts())
    assert table.examine("a@mail.test") == RemoteRecipient(CAPTURE, "* capture")
    options = table.options_for(target.next_hop)
    assert options.tls.level == level
    login = options.login
    assert (login and (login.user, login.password)) == (
        ("me", "secret") if "secret" in url else None
    )
    assert [one.stat().st_mode & 0o777 for one in tmp_path.iterdir()] == [0o600] * bool(login)


def test_only_loopback_and_the_one_host_are_allowed():
    target = NextHop.parse("smtp://mail.test:25")
    guarded = LoopbackResolver(None, release_to=target)
    for allowed in (
        "smtp://mail.test:25",
        "smtp://127.9.9.9:2",
        "smtps://[::1]:3",
        "mx:a.test",
        "smtp://localhost:25",
        "local",
        "capture",
    ):
        guarded.check(NextHop.parse(allowed))
    for refused in (
        "smtp://mail.test:26",
        "smtps://mail.test:25",
        "smtp://192.0.2.1:25",
        "smtp://localhost.test:25",
        "smtp://0.0.0.0:25",
        "smtp://[2001:db8::1]:25",
    ):
        with pytest.raises(ValueError, match="not on this machine"):
            guarded.check(NextHop.parse(refused))
