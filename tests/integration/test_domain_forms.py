"""Domains beyond ASCII, from end to end: a client's form of them makes no difference."""

from urllib.parse import quote

from tests.support.relay_process import OPERATOR, RelayProcess, until
from tests.support.remotes import Remotes, received

SHOWN, WRITTEN = "straße.test", "xn--strae-oqa.test"
FAR, FAR_WRITTEN = "bücher.test", "xn--bcher-kva.test"
MAIL = "From: x <ann@bücher.test>\r\nTo: Carl@straße.test\r\nSubject: hello\r\n\r\nHello.\r\n"
RULES = {
    "10.toml": "[[rule]]\nname = 'no spam'\nwhen = { sender = '*@xn--tda.test', recipient = '*@*.bücher.test' }\n"
    "then = [ { reject = '5.7.1 no' } ]\n"
}


def refused(relay: RelayProcess, sender: str, recipient: str) -> str:
    """The reply that refuses mail from a session without SMTPUTF8, "" if none does."""
    with relay.smtp() as session:
        session.command_encoding = "utf-8"
        session.ehlo("client.test")
        replies = [
            session.docmd("MAIL", f"FROM:<{sender}>"),
            session.docmd("RCPT", f"TO:<{recipient}>"),
        ]
        if replies[-1][0] == 250:
            replies.append(session.data(MAIL.encode()))
    return next((text.decode() for code, text in replies if code >= 400), "")


def test_each_form_reaches_the_same_people(remotes: Remotes, serve) -> None:
    far = remotes.start(FAR_WRITTEN, extensions=("PIPELINING", "8BITMIME"))  # no SMTPUTF8
    stranger = remotes.start("strasse.test")  # IDNA 2003 sends it mail for straße.test
    carl = {
        "address": f"carl@{SHOWN}",
        "password": "plain:carl",
        "token": "plain:carl-two",
        "aliases": [f"c@{WRITTEN}"],
    }
    relay = serve(
        remotes,
        config={"mailboxes": {"domains": ["example.test", SHOWN]}},
        accounts=[carl],
        policies=RULES,
        aliases={f"far@{WRITTEN}": [f"bob@{FAR}"]},
    )
    for form in (SHOWN, WRITTEN):
        assert refused(relay, f"ann@{FAR}", f"Carl+x@{form}") == ""
        assert refused(relay, f"ann@{FAR_WRITTEN}", f"c@{form}") == ""
        assert refused(relay, f"ann@{FAR}", f"nobody@{form}").startswith(
            "5.1.1 <nobody@xn--strae-oqa.test>"
        )
    assert refused(relay, "a@ü.test", f"x@sub.{FAR}") == "5.7.1 no"
    assert refused(relay, "a@xn--tda.test", f"x@sub.{FAR_WRITTEN}") == "5.7.1 no"
    assert refused(relay, "a@b.test", "x@i♥.ws").startswith("5.1.3 ")
    assert refused(relay, "a@b.test", "ä@b.test").startswith("5.6.7 ")

    for form in (SHOWN, WRITTEN):
        for query in (
            f"$filter=from/emailAddress/address eq 'Ann@{FAR_WRITTEN}'",
            f'$search="from:ann@{FAR}"',
            f'$search="to:carl@{WRITTEN}"',
            "$filter=contains(from/emailAddress/address,'bücher')",
        ):
            path = quote(f"/users/carl@{form}/mailFolders/inbox/messages?{query}", safe="/?=&$")
            found = until(
                "the mail",
                lambda path=path: relay.graph("GET", path, token="carl-two").json()["value"],
            )
            until(
                "all mail",
                lambda path=path: (
                    len(relay.graph("GET", path, token="carl-two").json()["value"]) == 4
                ),
            )
            assert (
                found[0]["from"]["emailAddress"]["address"] == f"ann@{FAR}"
            )  # as its field has it
    for wanted in (f"c@{SHOWN}", f"C@{WRITTEN}"):
        listed = relay.graph("GET", "/relay/v1/messages?to=" + quote(wanted), token=OPERATOR)
        assert len(listed.json()["messages"]) == 2
    explained = [
        relay.cli_json("explain", f"far@{form}", "--from", f"carl@{SHOWN}")
        for form in (SHOWN, WRITTEN)
    ]
    assert [one.pop("address") for one in explained] == [f"far@{WRITTEN}"] * 2
    assert explained[0] == explained[1]

    # out: by a submission of Graph, with a From of either form, and by the alias
    for number, form in enumerate((SHOWN, WRITTEN)):
        author = {"emailAddress": {"address": f"c@{form}"}}
        key = relay.send_mail(token="carl-two", to=[f"bob{number}@{FAR}"], **{"from": author})
        relay.until_final(key)
        mail = received(far, f"bob{number}@{FAR_WRITTEN}")
        assert mail.reverse_path == f"c@{WRITTEN}"
        assert "SMTPUTF8" not in " ".join(map(str, far.commands))
    assert refused(relay, f"ann@{FAR}", f"far@{SHOWN}") == ""
    assert received(far, f"bob@{FAR_WRITTEN}").mail.addresses == [f"bob@{FAR_WRITTEN}"]
    assert stranger.envelopes == []
