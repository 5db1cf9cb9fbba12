"""The mailboxes that exist, by their directories."""

import pytest

from relay.store.mailbox.folders import Folders
from relay.store.mailbox.mailbox_list import MailboxList
from relay.store.mailbox.message_file import mailbox_directory
from tests.support.tables import each_row

ADDRESSES = ["ann+tag@gmail.com", '"a b/c"@x.test', "jörg@x.test", ".a@[ipv6:::1]"]


@pytest.fixture
def names(tmp_path):
    folders = Folders(lambda account: mailbox_directory(tmp_path, account))
    for address in ADDRESSES:
        folders.mailbox(address)
    (tmp_path / ".submissions" / "ready").mkdir(parents=True)
    (tmp_path / "x.test" / "empty").mkdir()
    (tmp_path / "a file").touch()
    return MailboxList(tmp_path)


def test_a_mailbox_is_found_by_its_address(names):
    assert all(map(names.has, ADDRESSES))


@each_row(
    "address",
    ["ann@gmail.com", "empty@x.test", "a@", "", "../x@gmail.com", "a\0@b.test", "x" * 999],
)
def test_no_other_mailbox_is_found(names, address):
    assert not names.has(address)


def test_some_addresses_are_listed(names):
    assert sorted(names.first(9)) == sorted(ADDRESSES)
    assert len(names.first(2)) == 2


def test_there_is_none_without_a_root(tmp_path):
    names = MailboxList(tmp_path / "none")
    assert (names.has("a@b.test"), names.first(9)) == (False, [])
