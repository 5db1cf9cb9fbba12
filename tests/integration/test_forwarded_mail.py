"""Mail that an alias forwards, between real hosts: its sender and author, reports of it, loops."""

from tests.support.milter import ScriptedMilter, added, in_thread, packet
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

ANN = "ann@sender.test"
OUTSIDE = "127.0.0.2"  # may not relay
HELLO = b"From: ann@sender.test\r\nSubject: hello\r\n\r\nHello.\r\n"
BOUNCE = b"From: MAILER-DAEMON@away.test\r\nSubject: Undeliverable: hello\r\n\r\nNobody here.\r\n"


def refusal(relay: RelayProcess, sender: str, recipient: str, content: bytes = HELLO) -> str:
    """The reply that refuses the recipient, or the content."""
    with relay.smtp(source=OUTSIDE) as session:
        session.ehlo("client.test")
        session.mail(sender)
        code, text = session.rcpt(recipient)
        if code == 250:
            code, text = session.data(content)
    assert code >= 500, text
    return f"{code} {text.decode()}"


def test_strangers_borrow_no_name(remotes: Remotes, serve) -> None:
    remotes.start("away.test")
    relay = serve(remotes, aliases={"office@example.test": ["office@away.test"]})
    in_our_name = HELLO.replace(b"ann@sender.test", b"Alice <alice@example.test>")
    mail = relay.folder / "mail.eml"
    mail.write_bytes(in_our_name)
    for sender in (ANN, "alice@example.test", ""):
        reply = refusal(relay, sender, "office@example.test", in_our_name)
        words = ("explain", "office@example.test", "--from", sender, "--message", str(mail))
        explained = relay.cli(*words, "--ip", OUTSIDE)
        assert explained.returncode == 65, explained.stdout
        assert reply.startswith("550 5.7.1 ")
        assert reply in explained.stdout
        assert relay.cli_json(*words)["state"] == "remote"  # of one who has logged in


def test_a_catch_all_leads_outside_as_an_alias_does(remotes: Remotes, serve) -> None:
    away = remotes.start("away.test")
    config = {
        "mailboxes": {"domains": ["example.test"], "catch_all": "all@away.test"},
        "domain": [
            {"name": "acme.test", "catch_all": "acme@away.test"},
            {"name": "short.test", "alias_of": "acme.test"},
        ],
    }
    relay = serve(remotes, config=config, aliases={"office@example.test": ["nobody@example.test"]})
    for number, (to, found, by) in enumerate(
        [
            ("No.One+x@Example.test", "all@away.test", "no.one+x@example.test"),
            ("office@example.test", "all@away.test", "nobody@example.test"),
            ("any@short.test", "acme@away.test", "any@acme.test"),
        ],
        1,
    ):
        relay.submit(ANN, [to], HELLO, source=OUTSIDE)
        until("the copy", lambda count=number: len(away.envelopes) == count)
        came = away.envelopes[-1]
        assert came.addresses == [found]
        assert came.reverse_path.endswith(f"=sender.test=ann@{by.partition('@')[2]}")
        assert f"Delivered-To: {by}\r\n".encode() in came.content
        assert refusal(relay, ANN, to, came.content).startswith("55")  # a loop
    in_our_name = HELLO.replace(b"ann@sender.test", b"alice@acme.test")
    assert refusal(relay, ANN, "no@acme.test", in_our_name).startswith("550 5.7.1 ")
    relay.until_final(relay.submit(ANN, ["alice@example.test", "postmaster@acme.test"], HELLO))
    assert len(away.envelopes) == 3
    assert relay.cli_json("explain", "no@acme.test")["aliases"] == ["acme@away.test"]


def test_mail_of_strangers_that_fails_later_is_reported_where_that_is_safe(
    remotes: Remotes, serve
) -> None:
    remotes.start("away.test", replies={"RCPT": "550 5.1.1 nobody here"})
    home = remotes.start("sender.test")
    passed = "mx.test; spf=pass smtp.mailfrom=sender.test"
    milter = ScriptedMilter({b"E": added("Authentication-Results", passed) + packet(b"c")})
    with in_thread(milter) as address:
        aliases = {f"{name}@example.test": [f"{name}@away.test"] for name in ("one", "two")}
        config = {"milter": [{"name": "spf", "address": address}]}
        relay = serve(remotes, config=config, aliases=aliases)

        def fails(sender: str, to: str) -> str:
            queue_id = relay.submit(sender, [f"{to}@example.test"], HELLO, source=OUTSIDE)
            return str(relay.until_final(queue_id)["id"])

        def letters() -> list[bytes]:
            folder = relay.folder / "state" / "dead-letter" / "new"
            return [one.read_bytes() for one in folder.glob("*")]

        failed = [fails(ANN, "one")]
        report = received(home, ANN)
        assert (report.reverse_path, b"one@away.test" in report.content) == ("", True)
        failed += [fails("eve@elsewhere.test", "one") for _ in range(2)]
        (letter,) = until("the notice", letters)
        assert b"eve@elsewhere.test" in letter
        assert relay.metric("relay_reports_total", kind="postmaster") == 1
        assert relay.metric("relay_reports_left_out_total", reason="noticed") == 1
        listed = relay.cli("log", "--state", "failed").stdout
        assert all(one in listed for one in failed)

        relay.write_config(relay.config | {"reports": {"strangers": "postmaster"}})
        assert relay.cli("reload").returncode == 0
        fails(ANN, "two")
        until("the next notice", lambda: len(letters()) == 2)
        assert len(home.received(ANN)) == 1


def test_a_tenants_redirect_lends_neither_the_sender_nor_a_name_of_others(
    remotes: Remotes, serve
) -> None:
    away = remotes.start("away.test")
    home = remotes.start("sender.test")
    config = {
        "mailboxes": {"domains": ["example.test", "acme.test"]},
        "tenant": [{"name": "acme", "domains": ["acme.test"], "may": ["redirect"]}],
    }
    relay = serve(remotes, config=config, accounts=[{"address": "amy@acme.test"}], start=False)
    rules = relay.folder / "policies" / "acme"
    rules.mkdir(0o700)
    then = 'when = { recipient = "amy@acme.test" }\nthen = [{ redirect = ["office@away.test"] }]'
    (rules / "10.toml").write_text(f'[[rule]]\nname = "r"\n{then}\n')
    mail = relay.folder / "mail.eml"
    mail.write_bytes(HELLO.replace(b"ann@sender.test", b"Alice <alice@example.test>"))
    relay.start()
    relay.submit(ANN, ["amy@acme.test"], HELLO, source=OUTSIDE)
    copy = received(away, "office@away.test")
    assert copy.reverse_path.endswith("=sender.test=ann@acme.test")
    assert copy.content.startswith(b"Received: ")
    relay.submit("", [copy.reverse_path], BOUNCE, source=OUTSIDE)
    assert received(home, ANN).content.endswith(BOUNCE)

    reply = refusal(relay, ANN, "amy@acme.test", mail.read_bytes())
    assert reply.startswith("550 5.7.1 ")
    words = ("explain", "amy@acme.test", "--from", ANN, "--message", str(mail))
    explained = relay.cli(*words, "--ip", OUTSIDE)
    assert explained.returncode == 65, explained.stdout
    assert reply in explained.stdout
    assert relay.cli_json(*words)["state"] == "remote"  # of one who has logged in


def test_reports_about_forwarded_mail_come_back(remotes: Remotes, serve) -> None:
    away = remotes.start("away.test", rcpt={"gone@away.test": "550 5.1.1 nobody here"})
    home = remotes.start("sender.test")
    aliases = {f"{name}@example.test": [f"{name}@away.test"] for name in ("office", "gone")}
    mailboxes = {"domains": ["example.test", "srs.test"], "srs_domain": "srs.test"}
    relay = serve(remotes, config={"mailboxes": mailboxes}, aliases=aliases)
    # a stranger's message leaves with a sender of srs_domain
    queue_id = relay.submit(ANN, ["office@example.test"], HELLO, source=OUTSIDE)
    forwarded = received(away, "office@away.test")
    srs = forwarded.reverse_path
    assert srs.startswith("SRS0=")
    assert srs.endswith("=sender.test=ann@srs.test")
    assert forwarded.content.startswith(b"Delivered-To: office@example.test\r\n")
    journey = relay.until_final(queue_id)
    (routing,) = (one for one in journey["steps"] if one["step"] == 5)
    assert routing["detail"]["senders"] == {"office@example.test": srs}
    assert journey["sender"] == ANN
    assert srs in relay.cli("trace", queue_id).stdout

    # after a kill and a start, its report reaches the sender, although a host changed the case
    relay.kill()
    relay.start()
    report = relay.submit("", [srs.lower()], BOUNCE, source=OUTSIDE)
    came_back = received(home, ANN)
    assert came_back.reverse_path == ""
    assert came_back.content.endswith(BOUNCE)
    (named, original) = relay.until_final(report)["recipients"]
    assert (named["state"], named["successors"]) == ("redirected", [ANN])
    assert (original["address"], original["state"]) == (ANN, "relayed")

    # Relay's own report goes to the sender of the message, not through the address
    relay.until_final(relay.submit("bob@sender.test", ["gone@example.test"]))
    own = received(home, "bob@sender.test")
    assert own.reverse_path == ""
    assert b"gone@example.test" in own.content
