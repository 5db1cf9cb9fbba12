"""An open SMTP session on which transactions follow each other.

One transaction runs at a time. Errors become outcomes; only an exception of `before_dot` is raised
again, after the connection is closed. See RFC 5321 3.3, 4.1.1.4 and 4.5.3.2, RFC 2920 (PIPELINING).
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from msgspec import Struct, structs

from relay.base.blocks import next_block
from relay.base.message.content import Content, LargeContent, UnreadableError, blocks, size_of
from relay.base.message.envelope import Envelope, ForwardPath
from relay.base.message.outcome import Outcome, Peer, Reply, SessionFailure
from relay.delivery.smtp.client_protocol import SmtpClientProtocol, SmtpProtocolError
from relay.delivery.smtp.transaction import (
    BLOCK_BYTES,
    DATA,
    FINAL_DOT,
    QUIT,
    RSET,
    Extensions,
    Transaction,
    TransactionProgress,
    TransactionResult,
    Unsupported,
    dot_stuffed,
    mail_command,
    plan,
    rcpt_command,
)

BeforeDot = Callable[[], Awaitable[None]]
AfterDot = Callable[[], None]
OnReplies = Callable[[Mapping[int, Outcome]], None]


SLOWEST_BYTES_S = 1024  # a host that takes fewer octets in a second is given up
RCPT_S = 10.0  # for each recipient: some hosts delay their replies


class Timeouts(Struct, frozen=True):
    """Time-outs in seconds (RFC 5321 4.5.3.2). Each wait has one. All waits of a session together
    have another, and so do all waits of a transaction before its final dot.
    """

    connect_s: float = 30.0  # to one address
    command_s: float = 300.0  # the reply to a command: RFC 5321 4.5.3.2.1 to 3
    data_s: float = 120.0  # the reply to DATA: RFC 5321 4.5.3.2.4
    block_s: float = 180.0  # a block of content: RFC 5321 4.5.3.2.5
    dot_s: float = 600.0  # the reply to the final dot: RFC 5321 4.5.3.2.6
    quit_s: float = 2.0  # the reply to QUIT
    # limit: an outbound session until AUTH
    session_s: float = 600.0
    # from MAIL to the last octet, and more by RCPT_S and SLOWEST_BYTES_S
    # limit: an outbound transaction, and 10 s more for each recipient, and its size at 1 KiB/s
    transaction_s: float = 600.0


@dataclass(eq=False, repr=False)
class Connection:
    """An open SMTP session. `transactions` counts those that ended on it."""

    protocol: SmtpClientProtocol
    peer: Peer
    extensions: Extensions
    timeouts: Timeouts

    def __post_init__(self) -> None:
        self.transactions = 0
        self._busy = False
        self._needs_reset = False

    @property
    def is_open(self) -> bool:
        """Whether it can take a transaction. False once the peer has closed it or sent 421."""
        return self.protocol.is_open and not self._busy

    @property
    def is_worn(self) -> bool:
        """Whether the peer may take no further transaction (RFC 9422: MAILMAX)."""
        return 0 < self.extensions.transactions_max <= self.transactions

    async def transact(
        self,
        transaction: Transaction,
        *,
        before_dot: BeforeDot | None = None,
        after_dot: AfterDot | None = None,
        on_replies: OnReplies | None = None,
    ) -> TransactionResult:
        """Send one message to its recipients.

        `before_dot` is awaited before the final dot is written; for a small message before its
        content, so that both are one write. `after_dot` is called when the dot has been passed to
        the operating system, before its reply is read. `on_replies` is called with the outcomes so
        far when some replies to the dot have come and others have not, as in LMTP. The connection
        is closed unless the result is `reusable`, and when cancelled.
        """
        assert not self._busy, "one transaction at a time"
        peer, count = self.peer, len(transaction.recipients)
        if transaction.encoded:
            peer = structs.replace(peer, encoded=transaction.encoded)
        asked = plan(transaction, self.extensions)
        if isinstance(asked, Unsupported):
            return asked.result(count, peer)
        progress = TransactionProgress(count, asked, peer, whole=transaction.whole)
        if len(asked) < count:
            paths = tuple(transaction.recipients[index] for index in asked)
            transaction = replace(transaction, recipients=paths)
        self._busy = True
        more_s = len(asked) * RCPT_S + size_of(transaction.content) / SLOWEST_BYTES_S
        self.protocol.limit(round(self.timeouts.transaction_s + more_s, 1))
        try:
            if await self._envelope(transaction, progress):
                await self._content(transaction.content, progress, before_dot)
                if after_dot is not None:
                    await asyncio.sleep(0)  # uvloop writes at the end of the loop iteration
                    after_dot()
                self.protocol.limit(math.inf)
                await self._replies_to_dot(progress, on_replies)
        except SmtpProtocolError as error:
            progress.broken(error.trouble, error.text, unsolicited=error.unsolicited)
        except UnreadableError as error:
            progress.unreadable(str(error))
        except BaseException:
            self.protocol.close()
            raise
        finally:
            self._busy = False
        if progress.closing:
            self.protocol.close()
        if self.transactions and progress.mail_deferred:
            await self.quit()
            return TransactionResult({}, stale=True)
        self.transactions += 1
        return progress.result()

    async def takes_probe(self, address: str) -> bool:
        """Begin a transaction with the null sender; return whether MAIL is accepted.

        Nothing but reply_to_probe() and quit() may follow. Raises SmtpProtocolError.
        """
        transaction = Transaction(Envelope(""), (ForwardPath(address),), b"")
        command = mail_command(transaction, self.extensions)
        return (await self._exchange(command, self.timeouts.command_s)).code // 100 == 2

    async def reply_to_probe(self, address: str) -> Reply:
        """Return the reply to RCPT after takes_probe(). Raises SmtpProtocolError."""
        command = rcpt_command(ForwardPath(address), self.extensions)
        return await self._exchange(command, self.timeouts.command_s)

    async def quit(self) -> None:
        """Send QUIT and close within `quit_s`, whatever the peer replies."""
        try:
            self.protocol.send(QUIT, replies=1)
            await self.protocol.reply(self.timeouts.quit_s)
        except SmtpProtocolError:
            pass  # it is closed already
        finally:
            self.protocol.close()
        await self.protocol.closed(self.timeouts.quit_s)

    def close(self) -> None:
        """Close without QUIT."""
        self.protocol.close()

    async def _envelope(self, transaction: Transaction, progress: TransactionProgress) -> bool:
        """MAIL, RCPT, DATA; return whether the peer waits for content and accepted a recipient."""
        if self.extensions.pipelining:
            go_ahead = await self._envelope_at_once(transaction, progress)
        else:
            go_ahead = await self._envelope_by_steps(transaction, progress)
        if go_ahead and not progress.accepted:  # 354 without a recipient: RFC 2920 3.1
            await self._exchange(FINAL_DOT, self.timeouts.dot_s)
            return False
        return go_ahead

    async def _envelope_at_once(
        self, transaction: Transaction, progress: TransactionProgress
    ) -> bool:
        """MAIL, every RCPT and DATA in one write; return whether the peer waits for content."""
        reset = self._needs_reset
        commands = [RSET] if reset else []
        commands.append(mail_command(transaction, self.extensions))
        commands += [rcpt_command(path, self.extensions) for path in transaction.recipients]
        commands.append(DATA)
        self.protocol.send(b"".join(commands), replies=len(commands))
        self._needs_reset = True
        command_s = self.timeouts.command_s
        if reset:
            await self.protocol.reply(command_s)
        progress.mail(await self.protocol.reply(command_s))
        for index in progress.asked:
            if progress.closing:
                return False
            replies = self.protocol.replies  # nearly always all of them have come
            reply = replies.popleft() if replies else await self.protocol.reply(command_s)
            progress.rcpt(index, reply)
        if progress.closing:
            return False
        return progress.data(await self.protocol.reply(self.timeouts.data_s))

    async def _envelope_by_steps(
        self, transaction: Transaction, progress: TransactionProgress
    ) -> bool:
        """The same without PIPELINING: each command is sent after the reply to the last one."""
        command_s = self.timeouts.command_s
        if self._needs_reset:
            await self._exchange(RSET, command_s)
        self._needs_reset = True
        mail = mail_command(transaction, self.extensions)
        if not progress.mail(await self._exchange(mail, command_s)):
            return False
        for index, recipient in zip(progress.asked, transaction.recipients, strict=True):
            command = rcpt_command(recipient, self.extensions)
            progress.rcpt(index, await self._exchange(command, command_s))
            if progress.closing:
                return False
        if not progress.accepted:
            return False
        return progress.data(await self._exchange(DATA, self.timeouts.data_s))

    async def _content(
        self, content: Content, progress: TransactionProgress, before_dot: BeforeDot | None
    ) -> None:
        """Write the content and the final dot; large content in blocks, each with a time-out. If
        the content is not sent in time, there is no final dot.
        """
        is_small = isinstance(content, bytes) and len(content) <= BLOCK_BYTES
        if isinstance(content, bytes) and is_small:
            if before_dot is not None:
                await before_dot()
            last = b"".join((*dot_stuffed((content,)), FINAL_DOT))
        else:
            if isinstance(content, bytes):
                await self._send_slices(content)
            else:
                await self._send_file(content)
            if before_dot is not None:
                await before_dot()
            last = FINAL_DOT
        self.protocol.send(last, replies=progress.replies_to_dot)
        self._needs_reset = False
        try:
            if not is_small:
                await self.protocol.flushed(self.timeouts.block_s)
        except SmtpProtocolError as error:
            if error.trouble not in (SessionFailure.TIMEOUT, SessionFailure.SLOW):
                progress.dot_written()
            raise
        progress.dot_written()

    async def _replies_to_dot(
        self, progress: TransactionProgress, on_replies: OnReplies | None
    ) -> None:
        while progress.dot(await self.protocol.reply(self.timeouts.dot_s)):
            if on_replies is not None and not self.protocol.replies:
                on_replies(progress.outcomes)

    async def _send_slices(self, content: bytes) -> None:
        starts = range(0, len(content), BLOCK_BYTES)
        slices = (content[start : start + BLOCK_BYTES] for start in starts)
        for block in dot_stuffed(slices):
            self.protocol.send(block, replies=0)
            await self.protocol.drained(self.timeouts.block_s)

    async def _send_file(self, content: LargeContent) -> None:
        """Send content from files; the next block is read while the last one is sent."""
        coming = dot_stuffed(blocks(content, on_loop=True))
        while block := await next_block(coming):
            for start in range(0, len(block), BLOCK_BYTES):
                self.protocol.send(block[start : start + BLOCK_BYTES], replies=0)
                await self.protocol.drained(self.timeouts.block_s)

    async def _exchange(self, command: bytes, timeout_s: float) -> Reply:
        self.protocol.send(command, replies=1)
        return await self.protocol.reply(timeout_s)
