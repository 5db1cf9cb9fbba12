"""[[reply]] entries: which replies they decide, what they make of them, and faulty files."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Evidence,
    Failed,
    Outcome,
    Peer,
    Reply,
    SmtpStage,
    classify,
)
from relay.base.settings.document import SettingsError
from relay.base.settings.environment import shipped
from relay.delivery.provider_replies import ProviderReplies, load_provider_replies
from tests.support.tables import each_row, rows_of

SHIPPED = shipped("conf") / "providers.toml"
# Of each shipped entry a reply that it is for: its name, the host, the command, the reply.
SAMPLES = {
    name: tuple(sample)
    for name, *sample in rows_of(
        """
        outlook-block-list | outlook-com.olc.protection.outlook.com | MAIL | \
550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your provider since part of their network is on our block list (S3150).
        exchange-online-banned-address | a-test.mail.protection.outlook.com | RCPT | 550 5.7.606 Access denied, banned sending IP [192.0.2.1]. To request removal visit (AS16012609)
        exchange-online-busy | a-test.mail.protection.outlook.com | RCPT | 451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (AS77712344)
        outlook-reputation | outlook-com.olc.protection.outlook.com | MAIL | 451 4.7.651 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. (S3114)
        outlook-connections | outlook-com.olc.protection.outlook.com | banner | 421 4.3.2 The mail server [192.0.2.1] has exceeded the maximum number of connections.
        exchange-online-send-as | smtp.office365.com | final dot | \
554 5.2.252 SendAsDenied; printer@contoso.example not allowed to send as ann@contoso.example; STOREDRV.Submission.Exception:SendAsDeniedException
        exchange-online-submission-throttled | smtp.office365.com | final dot | 550 5.2.253 Client throttled for abuse of SendAsDenial; SubmissionQuotaExceededException
        exchange-online-submission-quota | smtp.office365.com | final dot | 554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException
        exchange-online-submission-connections | smtp.office365.com | final dot | 432 4.3.2 Concurrent connections limit exceeded.
        exchange-online-basic-authentication | smtp.office365.com | AUTH | 550 5.7.30 Basic authentication is not supported for Client Submission.
        exchange-online-smtp-auth-disabled | smtp.office365.com | AUTH | \
535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. [AM0PR01CA0001.eurprd01.prod.exchangelabs.com]
        gmail-unsolicited-rate | gmail-smtp-in.l.google.com | final dot | 421 4.7.28 [192.0.2.1] Our system has detected an unusual rate of 4.7.28 unsolicited mail
        gmail-daily-limit | smtp.gmail.com | DATA | 550 5.4.5 Daily user sending limit exceeded. For more information on Gmail 5.4.5 sending limits go to
        yahoo-complaints | mta5.am0.yahoodns.net | MAIL | 421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1
        yahoo-permanently-deferred | mta5.am0.yahoodns.net | banner | 421 4.7.1 [TS03] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed.
        icloud-try-later | mx01.mail.icloud.com | MAIL | 451 4.7.1 Service unavailable - try again later
        t-online-reputation | mx03.t-online.de | banner | 554 IP=192.0.2.1 - None/bad reputation. Ask your postmaster for help. (NOWL)
        orange-connections | smtp-in.orange.fr | banner | 421 mwinf5c04 ME Trop de connexions, veuillez verifier votre configuration. Too many connections, slow down. OFR004_104 [104]
        qq-frequency | mx3.qq.com | final dot | 550 Ip frequency limited.
        """
    )
}


def outcome_of(host: str, stage: str, text: str) -> Outcome | None:
    """What the outcome table says."""
    code, _, rest = text.partition(" ")
    return classify(SmtpStage(stage), Reply(int(code), rest), Peer(host))


def entries_of(folder: Path, *entries: str) -> ProviderReplies:
    file = folder / "own.toml"
    file.write_text("".join(f"[[reply]]\n{one}\n" for one in entries))
    return load_provider_replies(file, folder / "relay.toml")


def shipped_entries() -> Iterable[dict[str, Any]]:
    return tomllib.loads(SHIPPED.read_text())["reply"]


def test_each_shipped_entry_has_a_source_a_date_and_a_sample() -> None:
    entries = list(shipped_entries())
    assert 5 <= len(entries) <= 20
    assert [one["name"] for one in entries] == [*SAMPLES]
    for one in entries:
        assert one["source"].startswith(("https://", "http://"))
        assert one["date"] >= "2026-11-25"
        assert one["mx"] != "*"
    assert any("pause" in one for one in entries)


@each_row("name", SAMPLES)
def test_a_shipped_entry_decides_its_sample(name: str) -> None:
    host, stage, text = SAMPLES[name]
    before = outcome_of(host, stage, text)
    assert isinstance(before, Deferred | Failed)
    replies = load_provider_replies(None, Path("relay.toml"))
    judged = replies.judged(before)
    assert judged.evidence.provider == name
    (entry,) = (one for one in shipped_entries() if one["name"] == name)
    assert judged.evidence.status.startswith("5" if entry["class"] == "failed" else "4")
    assert isinstance(judged, Failed) == (entry["class"] == "failed")
    assert judged.evidence.reply == before.evidence.reply
    elsewhere = replace(before, evidence=replace(before.evidence, host="mx.other.test"))
    assert replies.judged(elsewhere) is elsewhere


@each_row(
    "host, text, name",
    rows_of(
        """
        smtp.office365.com | 554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.Mapi | exchange-online-submission-quota
        a-test.mail.protection.outlook.com | 554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException | none
        smtp-relay.gmail.com | 550 5.4.5 Daily SMTP relay limit exceeded for user. | gmail-daily-limit
        """
    ),
)
def test_the_limits_of_a_login_are_not_those_of_a_recipient(host, text, name) -> None:
    outcome = outcome_of(host, "final dot", text)
    assert isinstance(outcome, Failed)
    judged = load_provider_replies(None, Path("relay.toml")).judged(outcome)
    provider = judged.evidence.provider or "none"
    assert (provider, isinstance(judged, Failed)) == (name, name == "none")


HOST = "mx1.a.test"
MATCHES = [
    # the keys of an entry, the reply, whether they match
    ("code = 550", "550 5.1.1 no", True),
    ("code = 550", "551 5.1.1 no", False),
    ("code = [450, 550]", "450 4.2.1 later", True),
    ('status = "5.7.*"', "550 5.7.26 no", True),
    ('status = "5.7.*"', "550 5.1.1 see 5.7.26", False),
    ('status = "5.7.*"', "550 no", False),  # the host sent none
    ('status = ["4.2.1", "4.2.2"]', "452 4.2.2 full", True),
    ('text = "blocked for [0-9]+ min"', "550 5.7.1 You are BLOCKED FOR 15 minutes", True),
    ('text = "^no"', "550 5.7.1 it says no", False),
    ('mx = "*.a.test"\ncode = 550', "550 no", True),
    ('mx = ["MX1.A.TEST", "other"]\ncode = 550', "550 no", True),
    ('mx = "*.b.test"\ncode = 550', "550 no", False),
    ('code = 550\nstatus = "5.7.1"\ntext = "spam"', "550 5.7.1 no", False),
]


@each_row("keys, reply, matches", MATCHES)
def test_all_keys_must_match(tmp_path: Path, keys: str, reply: str, matches: bool) -> None:
    replies = entries_of(tmp_path, f'name = "x"\nclass = "site"\n{keys}')
    outcome = outcome_of(HOST, "RCPT", reply)
    assert isinstance(outcome, Deferred | Failed)
    assert replies.judged(outcome).evidence.provider == ("x" if matches else "")


def test_the_first_entry_decides_and_the_own_file_goes_first(tmp_path: Path) -> None:
    replies = entries_of(
        tmp_path,
        'name = "first"\ncode = 550\nclass = "mailbox"',
        'name = "second"\ncode = 550\nclass = "failed"',
    )
    host, stage, text = SAMPLES["outlook-block-list"]
    outcome = outcome_of(host, stage, text)
    assert isinstance(outcome, Failed)
    judged = replies.judged(outcome)
    assert isinstance(judged, Deferred)
    assert (judged.evidence.provider, judged.kind) == ("first", DeferralClass.MAILBOX)
    assert replies.judged(judged) is judged  # once


def test_an_entry_with_the_name_of_a_shipped_one_replaces_it(tmp_path: Path) -> None:
    replies = entries_of(tmp_path, 'name = "outlook-block-list"\ncode = 599\nclass = "site"')
    host, stage, text = SAMPLES["outlook-block-list"]
    outcome = outcome_of(host, stage, text)
    assert isinstance(outcome, Failed)
    assert replies.judged(outcome) is outcome


def test_what_no_host_has_said_is_not_decided(tmp_path: Path) -> None:
    replies = entries_of(tmp_path, 'name = "x"\ncode = 451\nclass = "failed"')
    ours = Deferred(Evidence("4.3.0", "451 4.3.0 internal error"), DeferralClass.INTERNAL)
    assert replies.judged(ours) is ours
    nonsense = outcome_of(HOST, "RCPT", "102 451")
    assert isinstance(nonsense, Deferred)
    assert replies.judged(nonsense) is nonsense


ENTRY = 'name = "x"\ncode = 550\nclass = "site"'
FAULTS = [
    # the lines of an entry after [[reply]], the fault
    *rows_of(
        """
        name = "x" / code = 550 | 1: reply "x": class: found nothing, expected a value: this key is required
        code = 550 / class = "site" | 1: reply 1: name: found nothing, expected a value: this key is required
        name = "x" / class = "site" | 1: reply "x": found no code, status or text, expected one
        name = "x" / code = 250 / class = "site" | 3: reply "x": code: found 250, expected a code from 400 to 599, or a list of codes
        name = "x" / code = "5xx" / class = "site" | 3: reply "x": code: found "5xx", expected a code from 400 to 599, or a list of codes
        name = "x" / code = 550 / class = "site" / pause = "2d" | 5: reply "x": pause: found "2d", expected a duration of at most 1 day
        name = "x" / code = 550 / class = "site" / login = "google" | 5: reply "x": login: found "google", expected "microsoft"
        name = "x" / code = 550 / class = "site" / connections = 0 | 5: reply "x": connections: found 0, expected a whole number from 1 to 1000
        name = "x" / code = 550 / class = "site" / [[reply]] / name = "x" / code = 550 / class = "site" | 6: reply "x": name: found the name of the entry in line 1, expected another
        name = "x" / code = 550 / class = "site" / [[rule]] / a = 1 | 5: rule: found an unknown key, expected one of reply
        """
    ),
    (
        'name = "x"\ncode = 550\nclass = "greylisted"',
        '4: reply "x": class: found "greylisted", expected one of failed, dns, ',
    ),
    (
        'name = "x"\ntext = "a(b"\nclass = "site"',
        '3: reply "x": text: found "a(b", expected a regular expression that RE2 accepts: ',
    ),
    (f"{ENTRY}\n#{'x' * 300_000}", " found more than 262144 bytes, expected a file of settings"),
]


@each_row("lines, fault", FAULTS)
def test_a_faulty_file_says_where_what_and_what_was_expected(tmp_path, lines, fault):
    with pytest.raises(SettingsError) as caught:
        entries_of(tmp_path, lines.replace(" / ", "\n"))
    (found,) = caught.value.faults
    assert str(found).startswith(f"{tmp_path}/own.toml:{fault}")
