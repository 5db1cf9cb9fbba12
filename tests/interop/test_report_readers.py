"""Programs that read bounces find the failed recipients of Relay's reports, and none in good news."""

import email
import json
import subprocess
from pathlib import Path

import pytest
from flufl.bounce import all_failures

from relay.base.message.receipt import ReceiptKind
from relay.delivery.reports.texts import LANGUAGES
from relay.formats.dsn import ReportKind
from tests.interop.conftest import program
from tests.support.sample_reports import CASES, RECIPIENTS, golden_reports

FAILURES = {
    **{f"report-{name}.eml": case[2] for name, case in CASES.items()},
    **{f"report-failure-{language}.eml": RECIPIENTS[ReportKind.FAILED] for language in LANGUAGES},
}
GOOD_NEWS = (ReportKind.DELIVERED, ReportKind.RELAYED, ReportKind.EXPANDED)
OTHERS = {
    f"report-{kind}-{language}.eml": RECIPIENTS[kind]
    for kind in (*GOOD_NEWS, ReportKind.DELAYED)
    for language in LANGUAGES
}
RECEIPTS = [f"report-{kind}-{language}.eml" for kind in ReceiptKind for language in LANGUAGES]
# Neither reads addresses that are not ASCII.
ASCII_FAILURES = [name for name in FAILURES if name != "report-international.eml"]
SISIMAI = """
use Sisimai; use JSON::PP;
my $make = Sisimai->can("rise") || Sisimai->can("make");  # from version 5, and before it
my %found;
for my $file (@ARGV) {
    my $read = $make->("Sisimai", $file, delivered => 1) || [];
    $found{$file} = [map {[$_->recipient->address, $_->action, $_->deliverystatus]} @$read];
}
print encode_json(\\%found);
"""
BOUNCE_PARSER = """
use Mail::DeliveryStatus::BounceParser; use JSON::PP;
my %found;
for my $file (@ARGV) {
    open(my $opened, "<", $file) or die;
    my $content = join "", <$opened>;
    $content =~ s/\\r\\n/\\n/g;  # it reads what a mbox has
    my $read = Mail::DeliveryStatus::BounceParser->new($content);
    my @addresses = $read->is_bounce ? $read->addresses : ();
    $found{$file} = [$read->is_bounce ? 1 : 0, @addresses];
}
print encode_json(\\%found);
"""


@pytest.fixture
def read_by(tmp_path: Path):
    """What a Perl program says of each report: run once for all."""

    def read_by(module: str, script: str) -> dict[str, list]:
        perl = program("perl")
        has_it = subprocess.run([perl, f"-M{module}", "-e", "1"], check=False, capture_output=True)
        if has_it.returncode:
            pytest.skip(f"Perl has no {module}")
        for name, written in golden_reports().items():
            (tmp_path / name).write_bytes(written)
        files = [str(tmp_path / name) for name in golden_reports()]
        ran = subprocess.run(
            [perl, "-e", script, *files], capture_output=True, timeout=60, check=True
        )
        return {Path(file).name: found for file, found in json.loads(ran.stdout).items()}

    return read_by


def addresses(recipients) -> set[str]:
    return {one.path.address for one in recipients}


def lower(found) -> set[str]:
    """Original-Recipient has an address as the client wrote it."""
    return {one.lower() for one in found}


def test_sisimai(read_by):
    found = read_by("Sisimai", SISIMAI)
    for name in ASCII_FAILURES:
        assert lower(one[0] for one in found[name]) == addresses(FAILURES[name]), name
        assert {one[1] for one in found[name]} == {"failed"}, name
    statuses = {address.lower(): status for address, _, status in found["report-mixed.eml"]}
    assert statuses == {"bob@example.net": "5.1.1", "carol@example.net": "5.2.2"}
    for name, recipients in OTHERS.items():
        assert lower(one[0] for one in found[name]) <= addresses(recipients), name
        assert "failed" not in {one[1] for one in found[name]}, name
    for name in (
        RECEIPTS
    ):  # as it takes any read receipt: an automatic reply, from version 5 of unknown reason
        assert [one[1:] for one in found[name]] in ([["", ""]], [["failed", "5.0.901"]]), name


def test_bounce_parser(read_by):
    found = read_by("Mail::DeliveryStatus::BounceParser", BOUNCE_PARSER)
    for name in ASCII_FAILURES:
        is_bounce, *failed = found[name]
        assert is_bounce, name
        assert lower(failed) == addresses(FAILURES[name]), name
    for name in OTHERS:
        assert found[name][0] == 0, name
    for name in RECEIPTS:  # a bounce of nobody, as it takes any read receipt
        assert found[name][1:] == [], name


def test_flufl_bounce():
    reports = golden_reports()
    for name in ASCII_FAILURES:
        temporary, permanent = all_failures(email.message_from_bytes(reports[name]))
        assert lower(one.decode() for one in permanent) == addresses(FAILURES[name]), name
        assert not temporary, name
    for name, recipients in OTHERS.items():
        temporary, permanent = all_failures(email.message_from_bytes(reports[name]))
        assert not permanent, name
        assert lower(one.decode() for one in temporary) <= addresses(recipients), name
        assert bool(temporary) == name.startswith("report-delayed"), name
    for name in RECEIPTS:
        assert not any(all_failures(email.message_from_bytes(reports[name]))), name
