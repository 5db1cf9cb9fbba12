"""getMailTips: what a colleague, another tenant and strangers are told of a recipient."""

from typing import Any

import pytest

from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess

ALL = (
    "automaticReplies, mailboxFullStatus,totalMemberCount, ExternalMemberCount, recipientScope, "
    "customMailTip"
)
REPLIES = {
    "status": "scheduled",
    "externalAudience": "all",
    "internalReplyMessage": "<p>Ask Bob.</p>",
    "externalReplyMessage": "Away.",
    "scheduledStartDateTime": {"dateTime": "2020-01-01T00:00:00", "timeZone": "UTC"},
    "scheduledEndDateTime": {"dateTime": "2090-01-01T00:00:00", "timeZone": "UTC"},
}


@pytest.fixture(scope="module")
def relay(serve_module) -> RelayProcess:
    aliases = {"team@example.test": ["bob@example.test", "x@away.test"]}
    relay: RelayProcess = serve_module(
        start=False,
        accounts=[account("full", quota_messages=1), account("u") | {"address": "u@acme.test"}],
        aliases=aliases | {"list@acme.test": ["u@acme.test"]},
        config={
            "domain": [{"name": "acme.test"}],
            "tenant": [{"name": "acme", "domains": ["acme.test"]}],
            "route": [{"name": "no", "domain": "no.test", "next_hop": "reject:not there"}],
        },
    )
    (relay.folder / "policies/acme").mkdir()
    relay.start()
    for token, replies in (("alice", REPLIES), ("full", REPLIES | {"status": "disabled"})):
        change = {"automaticRepliesSetting": replies}
        assert relay.graph("PATCH", "/me/mailboxSettings", change, token=token).status == 200
    draft = {"subject": "s"}
    assert relay.graph("POST", "/me/messages", draft, token="full").status == 201
    return relay


def tips(relay: RelayProcess, address: str, token: str = "bob", options: str = ALL) -> Any:
    body = {"EmailAddresses": [address], "MailTipsOptions": options}
    answer = relay.graph("POST", "/me/getMailTips", body, token=token)
    assert answer.status == 200, answer.body
    [found] = answer.json()["value"]
    assert found.pop("emailAddress") == {"name": "", "address": address}
    return found


MEMBERS = {"recipientScope": "internal", "totalMemberCount": 1, "externalMemberCount": 0}


def test_a_colleague_sees_replies_full_mailboxes_and_members(relay: RelayProcess) -> None:
    reply = {
        "message": "<p>Ask Bob.</p>",
        "messageLanguage": {"locale": "en-US", "displayName": "English (United States)"},
        "scheduledStartTime": {"dateTime": "2020-01-01T00:00:00.0000000", "timeZone": "UTC"},
        "scheduledEndTime": {"dateTime": "2090-01-01T00:00:00.0000000", "timeZone": "UTC"},
    }
    found = tips(relay, "Alice+x@example.test")
    assert found == MEMBERS | {"mailboxFull": False, "automaticReplies": reply}
    assert tips(relay, "full@example.test", options="MailboxFullStatus") == {"mailboxFull": True}
    found = tips(relay, "full@example.test", options="automaticReplies")
    assert found == {"automaticReplies": {"message": ""}}
    members = {"totalMemberCount": 2, "externalMemberCount": 1}
    assert tips(relay, "team@example.test") == MEMBERS | members


def test_others_see_the_reply_to_strangers(relay: RelayProcess) -> None:
    found = tips(relay, "alice@example.test", "u")
    assert found.pop("automaticReplies")["message"] == "Away."
    assert found == {"recipientScope": "external"}
    outside = {"recipientScope": "external"}
    accounts = (("full@example.test", "u"), ("u@acme.test", "bob"))
    for address, token in (*accounts, ("team@example.test", "u"), ("list@acme.test", "bob")):
        assert tips(relay, address, token) == outside | {"automaticReplies": {"message": ""}}
    assert tips(relay, "x@away.test") == outside


def test_an_invalid_recipient_is_an_error_in_its_entry(relay: RelayProcess) -> None:
    for address, words in {
        "nobody@example.test": "no such user here",
        "x@no.test": "not there",
        "no address": "no address",
        "": "",
    }.items():
        error = tips(relay, address)
        assert [*error] == ["error"]
        assert error["error"]["code"] == "ErrorInvalidRecipients"
        assert words in error["error"]["message"]
