"""Who hears of a failure."""

import itertools

import pytest

from relay.message.envelope import Notify
from relay.message.outcome import Evidence
from relay.message.reporting import ReportedRecipient
from relay.message.verdict import Source
from relay.reports.bounces import decide


def recipient(address="bob@example.net", **about):
    return ReportedRecipient(address, "", Evidence("5.1.1", "550 5.1.1 no"), **about)


BOB = recipient()
SILENT = recipient("silent@example.net", notify=frozenset({Notify.NEVER}))
SUCCESS_ONLY = recipient("happy@example.net", notify=frozenset({Notify.SUCCESS, Notify.DELAY}))
ASKED = recipient("asked@example.net", notify=frozenset({Notify.FAILURE}))
ADDED = recipient("copy@example.net", added_by="a rule", notify=frozenset({Notify.NEVER}))
POSTMASTER = recipient("postmaster")


def groups(recipients, *, reverse_path="alice@example.com", trusted=True, source=Source.SMTP):
    decision = decide(recipients, reverse_path=reverse_path, trusted=trusted, source=source)
    return decision.reported, decision.dead, decision.dropped


@pytest.mark.parametrize("source", [Source.GRAPH, Source.SMTP, Source.SENDMAIL])
def test_a_trusted_sender_hears_of_those_that_it_asked_about(source):
    everybody = [BOB, SILENT, SUCCESS_ONLY, ASKED, ADDED]
    assert groups(everybody, source=source) == ((BOB, ASKED), (ADDED,), ())


@pytest.mark.parametrize(
    "sender", [{"reverse_path": ""}, {"trusted": False}, {"reverse_path": "", "trusted": False}]
)
def test_nobody_hears_at_the_null_path_or_among_strangers(sender):
    assert groups([BOB, ASKED], **sender) == ((), (), ())


def test_what_a_rule_added_goes_to_the_postmaster_whoever_sent_the_message():
    assert groups([BOB, ADDED], trusted=False) == ((), (ADDED,), ())
    assert groups([BOB, ADDED], reverse_path="") == ((), (ADDED,), ())


def test_a_report_causes_no_report_and_ends_at_the_postmaster():
    assert groups([BOB, ASKED], source=Source.REPORT, reverse_path="") == ((), (BOB, ASKED), ())
    assert groups([POSTMASTER], source=Source.REPORT, reverse_path="") == ((), (), (POSTMASTER,))


@pytest.mark.parametrize(
    ("reverse_path", "trusted", "source"),
    list(itertools.product(["", "alice@example.com"], [True, False], Source)),
)
def test_nobody_is_in_two_groups_and_no_report_is_about_a_report(reverse_path, trusted, source):
    everybody = [BOB, SILENT, SUCCESS_ONLY, ASKED, ADDED, POSTMASTER]
    decided = groups(everybody, reverse_path=reverse_path, trusted=trusted, source=source)
    flat = [one.address for group in decided for one in group]
    assert len(flat) == len(set(flat))
    if source is Source.REPORT or not trusted or not reverse_path:
        assert decided[0] == ()
