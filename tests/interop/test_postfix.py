"""Relay and Postfix: as the remote host that we deliver to, and as the client that submits to us."""

import pytest

from tests.support.postfix import NoPostfixError, Postfix
from tests.support.relay_process import until

DOTS = b"Subject: dots\r\n\r\n.\r\n..\r\n.one\r\nend" + b"\r\n.x" * 3000 + b"\r\n"


def states(journey):
    return {one["address"]: (one["state"], one["status"]) for one in journey["recipients"]}


def test_postfix_takes_all_and_its_refusal_comes_back_as_a_report(dns, postfix, serve):
    config = {"delivery": {"tls": "opportunistic"}}
    relay = serve(dns=dns.address, mx_port=postfix.port, config=config)
    sent = relay.send_mail(to=["carol@post.test", "nobody@post.test"], subject="Grüße")
    journey = relay.until_final(sent)
    reported = states(journey)
    assert reported["carol@post.test"][0] == "relayed"
    assert reported["nobody@post.test"] == ("failed", "5.1.1")
    [arrived] = until("Postfix delivers", lambda: postfix.mail("carol"))
    assert "with ESMTPS " in str(arrived["Received"])
    assert all(one["attempts"][0]["tls"] for one in journey["recipients"])
    report = until("a report", lambda: relay.maildir("alice"))[0]
    assert report.get_content_type() == "multipart/report"
    assert "nobody@post.test" in report.as_string()
    # over kept connections all arrive once, and every octet of a body full of dots
    relay.submit("alice@example.test", ["carol@post.test"], DOTS)
    numbers = [str(number) for number in range(60)]
    for number in numbers:
        content = f"Subject: {number}\r\n\r\nHello.\r\n".encode()
        relay.submit("alice@example.test", ["carol@post.test"], content)
    until("all messages", lambda: len(postfix.mail("carol")) >= len(numbers) + 2)
    every = {str(one["Subject"]): one for one in postfix.mail("carol")}
    assert len(postfix.mail("carol")) == len(every)
    assert {*numbers, "dots"} < set(every)
    body = every["dots"].as_bytes().partition(b"\n\n")[2]
    assert body == DOTS.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n")


def test_postfix_submits_and_hears_of_an_unknown_user_at_rcpt(relay):
    port = relay.ready["smtp"][0].rpartition(":")[2]
    try:
        client = Postfix(domain="post.test", people=["carol"], relayhost=f"[127.0.0.1]:{port}")
    except NoPostfixError as why:
        pytest.skip(str(why))
    with client as postfix, postfix.session() as session:
        recipients = ["alice@example.test", "stranger@example.test"]
        session.sendmail("carol@post.test", recipients, b"Subject: through Postfix\r\n\r\nHi\r\n")

        until("alice has it", lambda: relay.subjects("alice") == ["through Postfix"])
        bounce = until("Postfix bounces the other", lambda: postfix.mail("carol"))[0]
        assert "550 5.1.1 <stranger@example.test>" in bounce.as_string().replace("\n    ", " ")


def test_a_gateway_takes_from_strangers_what_the_postfix_behind_it_takes(dns, postfix, serve):
    own = {"name": "post.test", "recipients": "verify"}
    route = {"domain": "post.test", "next_hop": f"smtp://127.0.0.1:{postfix.port}"}
    config = {"domain": [own, {"name": "twin.test", "alias_of": "post.test"}], "route": [route]}
    relay = serve(dns=dns.address, mx_port=postfix.port, config=config)
    with relay.smtp(source="127.0.0.2") as session:
        session.ehlo("stranger.test")
        session.mail("ann@stranger.test")
        assert session.rcpt("carol@post.test")[0] == 250
        assert session.rcpt("Carol@twin.test")[0] == 250
        for address in ("nobody@post.test", "nobody@twin.test"):
            code, text = session.rcpt(address)
            assert (code, text.decode()) == (
                550,
                f"5.1.1 <{address}>: the next hop does not take this address (550)",
            )
        assert session.data(b"Subject: verified\r\n\r\ntext\r\n")[0] == 250
    arrived = until("Postfix delivers", lambda: postfix.mail("carol"))
    assert [one["Subject"] for one in arrived] == ["verified"]
    probed = postfix.log.count("RCPT from")
    # a client that may relay is not asked for: it gets a report
    identity = relay.submit("alice@example.test", ["gone@post.test"], DOTS)
    assert states(relay.until_final(identity)) == {"gone@post.test": ("failed", "5.1.1")}
    assert postfix.log.count("RCPT from") == probed + 1
