"""What an answer means at each stage, and what is sent then: the tables of the protocol."""

import pytest

from relay.transport.milter import codec
from relay.transport.milter.codec import FieldChange, MilterFaultError, MilterPacket
from relay.transport.milter.dialogue import FilterStage, MilterChanges, MilterDialogue
from tests.support.milter import negotiation
from tests.support.tables import each_row

SESSION = (FilterStage.CONNECT, FilterStage.HELO)
GOES_ON, MESSAGE_DONE, SESSION_DONE = "goes on", "message done", "session done"
# the answer: its word and reply, what is over after it, and the same at connect and HELO
ANSWERS = {
    b"c": ("continue", "", GOES_ON, GOES_ON),
    b"a": ("accept", "", MESSAGE_DONE, SESSION_DONE),
    b"r": ("reject", "550 5.7.1 Command rejected", GOES_ON, SESSION_DONE),
    b"t": ("tempfail", "451 4.7.1 Service unavailable - try again later", GOES_ON, SESSION_DONE),
    b"y451 4.2.0 later\0": ("reply", "451 4.2.0 later", GOES_ON, SESSION_DONE),
    b"d": ("discard", "", MESSAGE_DONE, GOES_ON),
    b"4": ("shutdown", "421 4.7.0 Server closing connection", SESSION_DONE, SESSION_DONE),
    b"s": ("continue", "", GOES_ON, GOES_ON),
    b"p": (None, "", GOES_ON, GOES_ON),
}


def dialogue(when_down="defer", **wanted):
    made = MilterDialogue("m", when_down)
    made.negotiate(MilterPacket(b"O", negotiation(**wanted)[5:]))
    return made


def answered(made, stage, octets):
    return made.answer(stage, MilterPacket(octets[:1], octets[1:]))


@pytest.mark.parametrize("octets", list(ANSWERS))
@each_row("stage", list(FilterStage))
def test_each_answer_at_each_stage(stage, octets):
    made = dialogue()
    made.command(FilterStage.MAIL, b"<>\0", {})
    word, reply, over, over_in_session = ANSWERS[octets]
    answer = answered(made, stage, octets)
    if stage in SESSION:
        over, word = over_in_session, "continue" if word == "discard" else word
    assert (answer and answer.answer, answer.reply if answer else "") == (word, reply)
    assert made.session == (answer if over == SESSION_DONE else None)
    assert made.is_done is (over != GOES_ON)
    assert bool(made.command(FilterStage.RCPT, b"<b@y.test>\0", {})[0]) is (
        over == GOES_ON and (octets, stage) != (b"s", FilterStage.RCPT)
    )
    assert made.abort() == (b"" if over == SESSION_DONE else b"\0\0\0\1A")
    assert made.is_done is (over == SESSION_DONE)
    assert made.abort() == b""  # no message


@pytest.mark.parametrize(
    "change", ["hX\0y\0", "m\0\0\0\1X\0y\0", "b", "+<b@y.test>\0", "qwhy\0", "e<>\0"]
)
@each_row("stage", list(FilterStage))
def test_changes_are_for_the_end_of_the_message(stage, change):
    made = dialogue(actions=0x77)
    if stage is FilterStage.END_OF_MESSAGE:
        assert not answered(made, stage, change.encode())
        with pytest.raises(MilterFaultError, match="b'-' that was not negotiated"):
            answered(made, stage, b"-<b@y.test>\0")
    else:
        with pytest.raises(MilterFaultError, match=f"at {stage}"):
            answered(made, stage, change.encode())


def test_a_body_is_one_series_of_packets():
    made = dialogue()
    for octets, piece in ((b"bone", b"one"), (b"p", None), (b"btwo", b"two"), (b"hX\0y\0", None)):
        assert answered(made, FilterStage.END_OF_MESSAGE, octets) == piece
    with pytest.raises(MilterFaultError, match="a part of a body after another change"):
        answered(made, FilterStage.END_OF_MESSAGE, b"bthree")


@pytest.mark.parametrize(
    "change", [b"hX\0" + b"y" * 1_040_000 + b"\0", b"hX\0y\0", b"+<b@y.test>\0"]
)
def test_the_changes_of_a_message_are_limited(change):
    made = dialogue()
    most = 10 if len(change) > 99 else 20_000
    for _ in range(most):
        answered(made, FilterStage.END_OF_MESSAGE, change)
    with pytest.raises(MilterFaultError, match=r"more than (10485760 octets|20000 changes)"):
        answered(made, FilterStage.END_OF_MESSAGE, change)
    made.fault()
    assert made.changes.fields == made.changes.paths == []


@each_row(
    "stage, unwanted, silent",
    [
        (FilterStage.CONNECT, 0x1, 0x1000),
        (FilterStage.HELO, 0x2, 0x2000),
        (FilterStage.MAIL, 0x4, 0x4000),
        (FilterStage.RCPT, 0x8, 0x8000),
        (FilterStage.DATA, 0x200, 0x10000),
        (FilterStage.HEADER, 0x20, 0x80),
        (FilterStage.END_OF_HEADER, 0x40, 0x40000),
        (FilterStage.BODY, 0x10, 0x80000),
    ],
)
def test_a_milter_hears_what_it_negotiated(stage, unwanted, silent):
    sent, is_answered = dialogue(steps=0x1FF7FF & ~unwanted & ~silent).command(stage, b"x", {})
    assert sent.endswith(b"x")
    assert is_answered
    sent, is_answered = dialogue(steps=silent).command(stage, b"x", {})
    assert (sent.endswith(b"x"), is_answered) == (True, False)
    sent, is_answered = dialogue(steps=unwanted).command(stage, b"x", {})
    assert (sent.endswith(b"x"), is_answered) == (False, False)


def test_macros_of_the_milter_replace_those_of_a_stage():
    values = {"i": "QID", "client_addr": "192.0.2.7", "auth_authen": "", "mail_addr": "a@x.test"}
    made = dialogue(lists={2: "{client_addr} client_addr {auth_authen} {nothing}", 3: ""})
    expected = codec.encode(b"D", b"M", b"{client_addr}\x00192.0.2.7\0client_addr\x00192.0.2.7\0")
    assert made.command(FilterStage.MAIL, b"", values)[0] == expected + codec.encode(b"M")
    assert made.command(FilterStage.RCPT, b"", values)[0].startswith(b"\0\0\0\x08DRi\0QID\0")


def test_very_long_changes_are_cut_for_people():
    changes = MilterChanges(fields=[FieldChange(b"h", 0, b"X" * 100_000, b"1")])
    assert [len(one) for one in changes.described()] == [300]


def test_an_old_milter_hears_no_data_command():
    assert dialogue(version=3).command(FilterStage.DATA, b"", {"i": "Q"}) == (b"", False)
    assert dialogue(version=4).command(FilterStage.DATA, b"", {})[1]
