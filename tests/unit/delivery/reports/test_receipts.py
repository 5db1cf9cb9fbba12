"""Which read receipts are sent: the account's setting, who asks, and what the client says."""

import itertools

import pytest

from relay.base.accounts.account import ReceiptSetting
from relay.base.message.receipt import OwedReceipt
from relay.delivery.reports.receipts import is_due

NOT_WANTED = {  # setting -> by (asker is an account here, sent by a trusted client)
    "never": set(),
    "ask": set(),
    "always": set(itertools.product((False, True), (False, True))),
    "auto": {(True, True)},
}


@pytest.mark.parametrize("setting", ReceiptSetting)
@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize("is_trusted", [False, True])
def test_the_setting_decides(setting, is_own, is_trusted) -> None:
    owed = OwedReceipt(("q", 1), "bob@b.test", "l", "", 0, "a@a.test", is_trusted)
    due = is_due(setting, owed, is_wanted=False, is_own=is_own)
    assert due == ((is_own, is_trusted) in NOT_WANTED[setting])
    wanted = is_due(setting, owed, is_wanted=True, is_own=is_own)
    assert wanted == (setting is not ReceiptSetting.NEVER)
