"""Compare what Relay reads in reports from outside with what Sisimai reads.

The folder is a copy of https://github.com/sisimai/set-of-emails; Sisimai is Debian's
libsisimai-perl. No file may raise. Of RFC 3464 reports, recipient, action and status must be those
of Sisimai in 98 %; each file that differs is printed. A file counts as an RFC 3464 report if it is
one multipart/report with recipients, each of which has an address in Final-Recipient, an Action and
a Status. What Sisimai does not decode, or gives no action, cannot be compared.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from relay.base.message.address import AddressError, parse_mailbox
from relay.base.message.content import MemoryOctets
from relay.base.message.header import with_crlf
from relay.formats.encoded_words import decode_words
from relay.formats.read_report import (
    RemoteClaim,
    read_remote_report,
    read_report,
    returned_message,
)
from relay.formats.structure import read_structure

SHARE_MIN = 0.98
NO_MAIL = {".json", ".md"}
# Sisimai's names of actions, where they are not those of RFC 3464
ACTIONS = {"deliverable": "delivered"}
SISIMAI = """
use Sisimai;
my $make = Sisimai->can('rise') || Sisimai->can('make');  # from version 5, and before it use JSON::PP;
while( my $file = <STDIN> ) {
    chomp $file;
    my $found = ($make->('Sisimai', $file, 'delivered' => 1)) || [];
    my @read = map { { 'recipient' => $_->recipient->address, 'action' => $_->action,
                       'status' => $_->deliverystatus } } @$found;
    print JSON::PP->new->encode(\\@read), "\\n";
}
"""
Found = set[tuple[str, str, str]]  # recipient, action, status


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a copy of sisimai/set-of-emails")
    folder: Path = parser.parse_args(arguments).folder
    files = sorted(one for one in folder.rglob("*") if one.is_file() and one.suffix not in NO_MAIL)
    if not files:
        parser.error(f"{folder} has no files")
    theirs = read_by_sisimai(files)
    compared = same = 0
    for file in files:
        content = file.read_bytes()
        found = read_by_relay(content)  # of each file, so that none raises
        expected = expected_of(theirs[file])
        if not found or not expected or not is_rfc3464_report(content, found):
            continue
        compared += 1
        if is_same(found, expected):
            same += 1
        else:
            ours = [next(readings(one)) for one in found]
            print(f"{file.relative_to(folder)}\n   Relay   {ours}\n   Sisimai {sorted(expected)}")
    share = same / compared if compared else 0.0
    print(f"{len(files)} files read; {compared} RFC 3464 reports, {same} as Sisimai: {share:.1%}")
    return 0 if share >= SHARE_MIN else 1


def read_by_relay(content: bytes) -> tuple[RemoteClaim, ...]:
    octets = MemoryOctets(content)
    read_report(octets)
    returned_message(octets)
    report = read_remote_report(octets)
    claims = report.claims if report else ()
    return tuple(one for one in claims if one.kind not in ("read", "notread"))


def read_by_sisimai(files: Sequence[Path]) -> Mapping[Path, Sequence[Mapping[str, str]]]:
    """Return what Sisimai reads of copies with its line ends: it reads no bare CR."""
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / f"{number}.eml" for number in range(len(files))]
        for file, copy in zip(files, copies, strict=True):
            copy.write_bytes(with_crlf(file.read_bytes()).replace(b"\r\n", b"\n"))
        done = subprocess.run(
            ["perl", "-e", SISIMAI],
            input="".join(f"{one}\n" for one in copies),
            text=True,
            capture_output=True,
            check=True,
        )
    return dict(zip(files, map(json.loads, done.stdout.splitlines()), strict=True))


def expected_of(read: Sequence[Mapping[str, str]]) -> Found:
    if not all(one["action"] for one in read):
        return set()
    return {
        (
            decode_words(one["recipient"].encode()).lower(),
            ACTIONS.get(one["action"], one["action"]),
            one["status"],
        )
        for one in read
    }


def is_rfc3464_report(content: bytes, claims: Sequence[RemoteClaim]) -> bool:
    """RFC 3464 2.1 and 2.3; a file with several messages, as of an mbox, is no report."""
    structure = read_structure(content)
    status = [one for one in structure.entities if one.content_type.endswith("delivery-status")]
    is_report = structure.message.content_type == "multipart/report"
    if not is_report or len(status) != 1 or b"\nFrom MAILER-DAEMON " in content:
        return False
    lines = content[status[0].body_start : status[0].end].splitlines()
    names = [line.partition(b":")[0].strip().lower() for line in lines]
    count = names.count(b"final-recipient")
    return (
        count > 0
        and names.count(b"action") == names.count(b"status") == count
        and all(is_address(one.final) for one in claims)
    )


def is_address(text: str) -> bool:
    try:
        parse_mailbox(text, smtputf8=True)
    except AddressError:
        return False
    return True


def is_same(claims: Sequence[RemoteClaim], expected: Found) -> bool:
    return len(claims) == len(expected) and all(
        any(one in expected for one in readings(claim)) for claim in claims
    )


def readings(claim: RemoteClaim) -> Iterator[tuple[str, str, str]]:
    """Yield a claim with either address: Sisimai chooses between them."""
    action = "failed" if claim.kind == "failure" else claim.kind
    for address in (claim.final, claim.original):
        yield address.lower(), action, claim.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
