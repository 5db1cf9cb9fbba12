"""[[milter]]: what is accepted, and the text for what is not."""

import pytest

from relay.base.settings.document import SettingsError
from relay.base.settings.reader import load
from relay.base.settings.tree import Milter
from relay.base.socket_address import Address
from tests.support.tables import each_row

GOOD = 'name = "rspamd"\naddress = "127.0.0.1:11332"\n'


def read(tmp_path, *tables):
    file = tmp_path / "relay.toml"
    head = 'hostname = "relay.test"\nstate_dir = "s"\n'
    file.write_text(head + "".join(f"[[milter]]\n{table}" for table in tables))
    return load(file, {}).milter


def test_defaults(tmp_path):
    assert read(tmp_path) == ()
    expected = Milter("rspamd", Address("127.0.0.1", 11332), ("relay",), "defer", 30.0)
    assert read(tmp_path, GOOD) == (expected,)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("[::1]:11332", Address("::1", 11332)),
        ("Filter.test:11332", Address("filter.test", 11332)),
        ("unix:/run/clamav/milter.ctl", Address(path="/run/clamav/milter.ctl")),
    ],
)
def test_addresses(tmp_path, text, address):
    (milter,) = read(tmp_path, GOOD.replace("127.0.0.1:11332", text))
    assert milter.address == address


def at(address):
    return [GOOD.replace("127.0.0.1:11332", address)]


@each_row(
    "tables, said",
    [
        (['name = "a"\n'], "milter[0].address: found nothing, expected a value"),
        (
            [GOOD.replace("rspamd", "a b")],
            '4: milter[0].name: found "a b", expected a name of at most 63',
        ),
        (at("127.0.0.1:0"), '5: milter[0].address: found "127.0.0.1:0", expected a port of 1'),
        (at("inet:11332@x"), 'expected "HOST:PORT", "[IPV6]:PORT" or "unix:PATH"'),
        (at("unix:/" + "x" * 107), "expected a socket path of at most 107 bytes"),
        ([GOOD + "role = []\n"], "6: milter[0].role: found a list, expected at least one of relay"),
        (
            [GOOD + 'role = ["smtp"]\n'],
            'milter[0].role[0]: found "smtp", expected one of relay, submission',
        ),
        (
            [GOOD + 'when_down = "tempfail"\n'],
            'found "tempfail", expected one of accept, defer, reject',
        ),
        ([GOOD + "timeout = 0\n"], "milter[0].timeout: found 0, expected a duration of 0.001 s"),
        (
            [GOOD, GOOD],
            '7: milter[1].name: found "rspamd", expected a name of its own: milter[0] has it too',
        ),
        (
            [GOOD.replace("rspamd", f"m{n}") for n in range(21)],
            "3: milter: found a list, expected at most 20",
        ),
    ],
)
def test_faults(tmp_path, tables, said):
    with pytest.raises(SettingsError) as error:
        read(tmp_path, *tables)
    assert said in str(error.value)
