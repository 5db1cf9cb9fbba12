"""A relay whose bound of memory is below what it uses when it is idle."""

from tests.support.relay_process import until

GATE = True


def test_a_relay_that_never_has_enough_memory_says_so_and_is_not_ready(serve) -> None:
    relay = serve(start=False, config={"pressure": {"memory": "24 MiB"}})
    checked = relay.cli("check")
    words = "warning: pressure.memory is 24 MiB, expected 96 MiB: an idle relay uses 76 MiB, "
    assert f"{words}and mail is refused from 24 MiB on" in checked.stderr
    relay.start()
    told = '"event":"too little memory: all mail is refused","error":"pressure.memory'
    until("the line of the log", lambda: told in relay.log)
    answer = relay.request("GET", "/readyz")
    assert answer.status == 503
    assert answer.body.startswith(b"pressure.memory is 24 MiB, expected ")
    assert relay.request("GET", "/healthz").status == 200
    until("the level", lambda: relay.metric("relay_pressure_reason", reason="memory") == 2)
    assert relay.request("GET", "/readyz").body == answer.body
    assert relay.stop() == 0


def test_a_relay_with_enough_memory_is_ready_at_once(serve) -> None:
    relay = serve(start=False, config={"pressure": {"memory": "4 GiB"}})
    assert "memory" not in relay.cli("check").stderr
    relay.start()
    assert relay.request("GET", "/readyz").body == b"ready\n"
    assert "too little memory" not in relay.log
