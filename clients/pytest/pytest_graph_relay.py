pytest_plugins = ["relay.testing.plugin"]
