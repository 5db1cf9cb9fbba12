"""The stores of the tests of mailboxes: an outbox has a store."""

from tests.unit.store.mailbox.conftest import draft, place, store  # noqa: F401 - fixtures
