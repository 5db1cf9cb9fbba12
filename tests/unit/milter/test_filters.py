"""Sessions with scripted milters on real sockets."""

import pytest

from tests.support.milter import ScriptedMilter


@pytest.mark.parametrize("tcp", [False, True])
async def test_what_a_milter_hears(filtered, tcp):
    milter = ScriptedMilter()
    session = await filtered(milter, tcp=tcp)
    verdict = await session.verdict()
    assert verdict.content.joined() == (
        b"From: a@x.test\r\nTo: b@y.test,\r\n\tc@y.test\r\nSubject:  two\r\n\r\nHello\r\n"
    )
    session.session.close()
    await milter.ended.wait()
    assert milter.heard == [
        (b"O", b"\0\0\0\x06\0\0\x01\xff\0\x1f\xf7\xff"),
        (
            b"D",
            b"Cj\0relay.test\0{daemon_name}\0mx.relay.test\0v\0Relay\0_\0client.test [192.0.2.7]\0",
        ),
        (b"C", b"client.test\x004\x9c\x40192.0.2.7\0"),
        (b"D", b"H"),
        (b"H", b"client.test\0"),
        (b"D", b"Mi\0QID\0{auth_authen}\0ann\0{mail_addr}\0a@x.test\0"),
        (b"M", b"<a@x.test>\0SIZE=10\0"),
        (b"D", b"Ri\0QID\0{rcpt_addr}\0b@y.test\0"),
        (b"R", b"<b@y.test>\0"),
        (b"D", b"Ti\0QID\0"),
        (b"T", b""),
        (b"L", b"From\0a@x.test\0"),
        (b"L", b"To\0b@y.test,\n\tc@y.test\0"),
        (b"L", b"Subject\0 two\0"),
        (b"D", b"Ni\0QID\0"),
        (b"N", b""),
        (b"B", b"Hello\r\n"),
        (b"D", b"Ei\0QID\0"),
        (b"E", b""),
        (b"Q", b""),
    ]
