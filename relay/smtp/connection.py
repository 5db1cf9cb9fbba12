"""A connection to one host on which transactions follow each other.

On the path: connect makes it; pickup (step 3) and delivery (step 6) hold it.
Holds: one transaction at a time; no final dot before `before_dot` is through.
Fails: never: trouble becomes outcomes. What `before_dot` raises passes, connection closed.
Standards: RFC 5321 3.3, 4.1.1.4, 4.5.3.2; RFC 2920 (PIPELINING).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from relay.message.classify import Peer, Reply
from relay.message.content import Content, LargeContent, UnreadableError, blocks
from relay.smtp.client_protocol import Wire, WireError
from relay.smtp.transaction import (
    BLOCK_BYTES,
    DATA,
    FINAL_DOT,
    QUIT,
    RSET,
    Extensions,
    Progress,
    Transaction,
    TransactionResult,
    mail_command,
    rcpt_command,
    refusal,
    stuffed,
)

BeforeDot = Callable[[], Awaitable[None]]
AfterDot = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a peer may take, in seconds (RFC 5321 4.5.3.2).

    For connecting, a reply to a command and to DATA, each block of content, the reply to the
    final dot, and for leaving.
    """

    connect_s: float = 30.0
    command_s: float = 300.0
    data_s: float = 120.0
    block_s: float = 180.0
    dot_s: float = 600.0
    quit_s: float = 2.0


class Connection:
    """An open SMTP session. `transactions` counts those that ended on it."""

    def __init__(
        self, wire: Wire, *, peer: Peer, extensions: Extensions, timeouts: Timeouts
    ) -> None:
        self.peer = peer
        self.extensions = extensions
        self.transactions = 0
        self._wire = wire
        self._timeouts = timeouts
        self._busy = False
        self._needs_reset = False

    @property
    def is_open(self) -> bool:
        """Whether it can take a transaction; a peer that closed or said 421 meanwhile shows."""
        return self._wire.is_open and not self._busy

    async def transact(
        self,
        transaction: Transaction,
        *,
        before_dot: BeforeDot | None = None,
        after_dot: AfterDot | None = None,
    ) -> TransactionResult:
        """Offer one message to its recipients.

        `before_dot` is awaited before the final dot is written; for a small message before its
        content, so that both leave in one write. `after_dot` is called when the dot has been
        handed to the system and its reply not been read. Unless the result is `reusable`, and when
        cancelled, the connection is closed.
        """
        assert not self._busy, "one transaction at a time"
        progress = Progress(len(transaction.recipients), self.peer, whole=transaction.whole)
        refused = refusal(transaction, self.extensions)
        if refused is not None:
            progress.refuse(refused.status, refused.text)
            return progress.result()
        self._busy = True
        try:
            if await self._envelope(transaction, progress):
                await self._content(transaction.content, progress, before_dot)
                if after_dot is not None:
                    await asyncio.sleep(0)  # uvloop writes at the end of its turn
                    after_dot()
                progress.dot(await self._wire.reply(self._timeouts.dot_s))
        except WireError as error:
            progress.broken(error.trouble, error.words, unasked=error.unasked)
        except UnreadableError as error:
            progress.unreadable(str(error))
        except BaseException:
            self._wire.close()
            raise
        finally:
            self._busy = False
        if progress.closing:
            self._wire.close()
            if self.transactions and progress.never_begun:
                return TransactionResult({}, stale=True)
        self.transactions += 1
        return progress.result()

    async def quit(self) -> None:
        """Say goodbye and close, within `quit_s`; what the peer answers does not matter."""
        try:
            self._wire.send(QUIT, replies=1)
            await self._wire.reply(self._timeouts.quit_s)
        except WireError:
            pass  # it is closed then
        finally:
            self._wire.close()
        await self._wire.closed(self._timeouts.quit_s)

    def close(self) -> None:
        """Close at once, without a word."""
        self._wire.close()

    async def _envelope(self, transaction: Transaction, progress: Progress) -> bool:
        """MAIL, RCPT and DATA; return whether the peer waits for content that goes to somebody."""
        if self.extensions.pipelining:
            go_ahead = await self._envelope_at_once(transaction, progress)
        else:
            go_ahead = await self._envelope_by_steps(transaction, progress)
        if go_ahead and not progress.accepted:  # 354 for nobody: RFC 2920 3.1
            await self._exchange(FINAL_DOT, self._timeouts.dot_s)
            return False
        return go_ahead

    async def _envelope_at_once(self, transaction: Transaction, progress: Progress) -> bool:
        """MAIL, every RCPT and DATA in one write; return whether the peer waits for content."""
        reset = self._needs_reset
        commands = [RSET] if reset else []
        commands.append(mail_command(transaction, self.extensions))
        commands.extend(rcpt_command(one, self.extensions) for one in transaction.recipients)
        commands.append(DATA)
        self._wire.send(b"".join(commands), replies=len(commands))
        self._needs_reset = True
        command_s = self._timeouts.command_s
        if reset:
            await self._wire.reply(command_s)
        progress.mail(await self._wire.reply(command_s))
        for index in range(len(transaction.recipients)):
            if progress.closing:
                return False
            progress.rcpt(index, await self._wire.reply(command_s))
        if progress.closing:
            return False
        return progress.data(await self._wire.reply(self._timeouts.data_s))

    async def _envelope_by_steps(self, transaction: Transaction, progress: Progress) -> bool:
        """Do the same for a peer without PIPELINING: each command waits for the reply before it."""
        command_s = self._timeouts.command_s
        if self._needs_reset:
            await self._exchange(RSET, command_s)
        self._needs_reset = True
        mail = mail_command(transaction, self.extensions)
        if not progress.mail(await self._exchange(mail, command_s)):
            return False
        for index, recipient in enumerate(transaction.recipients):
            command = rcpt_command(recipient, self.extensions)
            progress.rcpt(index, await self._exchange(command, command_s))
            if progress.closing:
                return False
        if not progress.accepted:
            return False
        return progress.data(await self._exchange(DATA, self._timeouts.data_s))

    async def _content(
        self, content: Content, progress: Progress, before_dot: BeforeDot | None
    ) -> None:
        """Write content and final dot, big content in blocks that the peer must keep taking."""
        if isinstance(content, bytes) and len(content) <= BLOCK_BYTES:
            if before_dot is not None:
                await before_dot()
            last = b"".join((*stuffed((content,)), FINAL_DOT))
        else:
            if isinstance(content, bytes):
                await self._send_slices(content)
            else:
                await self._send_file(content)
            if before_dot is not None:
                await before_dot()
            last = FINAL_DOT
        self._wire.send(last, replies=1)
        progress.dot_written()
        self._needs_reset = False

    async def _send_slices(self, content: bytes) -> None:
        slices = (
            content[start : start + BLOCK_BYTES] for start in range(0, len(content), BLOCK_BYTES)
        )
        for block in stuffed(slices):
            self._wire.send(block, replies=0)
            await self._wire.drained(self._timeouts.block_s)

    async def _send_file(self, content: LargeContent) -> None:
        """Send what lies in files; the next block is read while the peer takes the last one."""
        coming = stuffed(blocks(content, BLOCK_BYTES))
        block = await asyncio.to_thread(next, coming, None)
        while block is not None:
            self._wire.send(block, replies=0)
            block, _ = await asyncio.gather(
                asyncio.to_thread(next, coming, None), self._wire.drained(self._timeouts.block_s)
            )

    async def _exchange(self, command: bytes, timeout_s: float) -> Reply:
        self._wire.send(command, replies=1)
        return await self._wire.reply(timeout_s)
