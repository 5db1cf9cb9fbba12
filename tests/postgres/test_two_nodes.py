"""A second node on the same spool, which is not supported yet."""

from tests.support.postgres import PostgresServer
from tests.support.relay_process import RelayProcess, until


def test_a_second_node_ends_and_changes_nothing(server: PostgresServer) -> None:
    url = server.create()
    first = RelayProcess(config={"spool": {"url": url, "node": "one.test"}})
    second = RelayProcess(config={"spool": {"url": url, "node": "two.test"}})
    for one in (first, second):
        one.config = one.config | {"spool": one.config["spool"] | {"url": url}}
        one.write_config(one.config)
    try:
        first.start()
        second.start(wait=False)
        assert second.wait_end() == 69
        assert "the spool is in use by node one.test since 20" in second.log
        assert "several nodes on one spool are not supported yet" in second.log
        identity = first.send_mail(to=["bob@example.test"], subject="still here")
        first.until_final(identity)
    finally:
        second.close()
        first.close()


def test_a_killed_node_takes_its_spool_again_at_once(server: PostgresServer) -> None:
    """The server may not know yet that the client of the old session is gone."""
    with RelayProcess() as relay:
        identity = relay.send_mail(to=["x@nowhere.test"], subject="waits")
        until("it is in the queue", lambda: len(relay.queue()) == 1)
        relay.restart()
        (entry,) = relay.queue()
        assert entry["recipients"][0]["address"] == "x@nowhere.test"
        assert relay.journey(identity)["state"] in ("queued", "deferred")
