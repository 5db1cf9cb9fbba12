"""Who has a share of the queue: an account, or the network of a client, whatever it calls itself."""

from tests.support.operator import HOUR_US


async def test_accounts_and_networks_have_their_shares(spool, defer, clock) -> None:
    spool.queue_shares.limit = 20
    for number in range(3):
        far = f"2a00:1:1:1::{number:x}"
        for facts in (
            {"account": "eve@a.test", "client": "x [11.0.0.9]"},
            {"account": "", "client": f"[{number}] [11.0.0.1]"},
            {"account": "", "client": f"helo{number} [{far}]"},
            {"account": "", "client": ""},
        ):
            facts["expires_us"] = clock.queue_us() + HOUR_US
            await defer({"mx:b.test": ["x@b.test"]}, **facts)
    await spool.queue_shares.update(9)
    assert not spool.queue_shares.refuses("eve@a.test")
    await spool.queue_shares.update(17)
    assert spool.queue_shares.refuses("Eve@a.test")
    assert spool.queue_shares.refuses("", "11.0.0.1")
    assert spool.queue_shares.refuses("", "2a00:1:1:1::77")
    for account, ip in (("bob@a.test", ""), ("", "11.0.0.9"), ("", ""), ("", "2a00:1:1:2::1")):
        assert not spool.queue_shares.refuses(account, ip)
