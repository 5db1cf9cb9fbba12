from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import pytest

from relay.base.message.content import MemoryOctets
from relay.base.message.header import ParsedContent
from relay.base.settings.tree import Milter
from relay.base.settings.values import parse_address
from relay.transport.milter.filtered_message import NewBodies
from relay.transport.milter.filters import FilterClient, MilterSet

CLIENT = FilterClient("client.test", "192.0.2.7", 40000, {"daemon_name": "mx.relay.test"})
MAIL = b"From: a@x.test\r\nTo: b@y.test,\r\n\tc@y.test\r\nSubject:  two\r\n\r\nHello\r\n"


class MemoryFile:
    """An IncomingBody."""

    def __init__(self):
        self.written, self.is_discarded = [], False

    async def write(self, blocks):
        self.written += blocks

    def octets(self):
        return MemoryOctets(b"".join(self.written))

    def discard(self):
        self.is_discarded = True


class Session:
    """A session with scripted milters."""

    def __init__(self, milters, addresses, **settings):
        settings = {"timeout": 5.0} | settings
        self.milters, self.observed, self.files, self.opened = milters, [], [], []
        self.set = MilterSet(
            [
                Milter(f"m{number}", parse_address(address, Path()), **settings)
                for number, address in enumerate(addresses, 1)
            ],
            hostname="relay.test",
            observe=lambda *told: self.observed.append(told[:2]),
        )
        self.reopen()
        self.store = NewBodies(150 * 1024 * 1024, self._new_file)

    def reopen(self, role="relay"):
        """Begin another session."""
        self.session, self.is_open = self.another(role), False

    def another(self, role="relay"):
        self.opened.append(self.set.session(role))
        return self.opened[-1]

    def _greet(self):
        if not self.is_open:
            self.is_open = True
            self.session.connect(CLIENT)
            self.session.helo("client.test")

    def _new_file(self):
        self.files.append(MemoryFile())
        return self.files[-1]

    async def begin(self, *recipients):
        """Everything up to the answer to DATA; returns the replies."""
        session = self.session
        self._greet()
        answers = [await session.mail("a@x.test", ["SIZE=10"], {"i": "QID", "auth_authen": "ann"})]
        answers += [await session.rcpt(one) for one in recipients or ("b@y.test",)]
        answers.append(await session.data())
        return [one.reply for one in answers]

    async def refused(self):
        """The first answer with a reply to a command or a message."""
        session = self.session
        self._greet()
        for asked in (
            lambda: session.mail("a@x.test"),
            lambda: session.rcpt("b@y.test"),
            session.data,
        ):
            if (answer := await asked()).reply:
                return answer
        return (await self.message()).answer

    async def message(self, content=MAIL):
        return await self.session.message(ParsedContent.of(content), self.store)

    async def verdict(self, content=MAIL):
        """What is decided about a message whose envelope nobody refuses."""
        assert set(await self.begin()) == {""}
        return await self.message(content)


@pytest.fixture
async def filtered(tmp_path):
    """`await filtered(milter, ..., when_down="defer")` gives a Session."""
    numbers = count()
    async with AsyncExitStack() as stack:

        async def start(*milters, **settings):
            tcp = settings.pop("tcp", False)
            paths = [None if tcp else tmp_path / f"m{next(numbers)}" for _ in milters]
            addresses = [
                await stack.enter_async_context(one.at(path))
                for one, path in zip(milters, paths, strict=True)
            ]
            made = Session(milters, addresses, **settings)
            stack.callback(lambda: [each.close() for each in made.opened])
            return made

        yield start
