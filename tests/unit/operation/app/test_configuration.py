"""Loading a configuration: what is logged about it."""

from relay.base.clock import SystemClock
from relay.operation.app.configuration import ActiveConfiguration
from tests.support.logs import capture_logs

SETTINGS = 'hostname = "relay.example.test"\nstate_dir = "state"\n'
SLOW = '[[rule]]\nname = "slow"\nwhen = { header = { name = "X", pattern = "a.{60}b" } }\nstop = true\n'


def test_slow_patterns_are_logged_at_a_start_and_a_reload(tmp_path):
    file = tmp_path / "relay.toml"
    file.write_text(SETTINGS)
    (tmp_path / "accounts.toml").touch(mode=0o600)
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/10.toml").write_text(SLOW)
    with capture_logs() as logs:
        configuration = ActiveConfiguration(file, {}, clock=SystemClock())
        (tmp_path / "policies/10.toml").write_text(SLOW.replace("a.{60}b", "invoice"))
        configuration.use(configuration.read(lambda _: None))
        (tmp_path / "policies/10.toml").write_text(SLOW)
        configuration.use(configuration.read(lambda _: None))
    configuration.close()
    found = [one["detail"] for one in logs if one["event"] == "patterns are slow"]
    assert len(found) == 2
    assert '10.toml:1: rule "slow": the patterns for header x take more than 2 ms' in found[0]
