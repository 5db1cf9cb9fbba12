"""The main of child processes that answer requests: limits, the sandbox, one answer after another.

`python -m relay.base.child_main MODULE [WORD...]` does what task() of the module returns for the
words. The child of the gate has a main of its own, because it asks its owner on an event loop.
"""

import socket
import sys
from importlib import import_module

from msgspec import msgpack

from relay.base.child_process import LENGTH_BYTES, ChildTask, framed
from relay.base.process_limits import limit_cpu, limit_this_process
from relay.base.sandbox import enter_sandbox, ignore_signals, load_codecs

_CONTROL_BYTES = socket.CMSG_LEN(4)  # of one descriptor


def answer_requests(task: ChildTask) -> None:
    """Answer requests until the input ends."""
    ignore_signals()
    limit_this_process(task.memory_bytes)
    if not task.opens_files:
        load_codecs()
        enter_sandbox()
    decode, channel = msgpack.Decoder(task.kind).decode, socket.socket(fileno=0)
    channel.sendall(bytes(LENGTH_BYTES))
    while True:
        head, control, *_ = channel.recvmsg(LENGTH_BYTES, _CONTROL_BYTES)
        if not head:
            return
        descriptors = [int.from_bytes(number, sys.byteorder) for _, _, number in control]
        head += channel.recv(LENGTH_BYTES - len(head), socket.MSG_WAITALL)
        request = decode(channel.recv(int.from_bytes(head), socket.MSG_WAITALL))
        limit_cpu(request.cpu_s)
        channel.sendall(framed(task.answer(request, *descriptors)))


if __name__ == "__main__":
    answer_requests(import_module(sys.argv[1]).task(sys.argv[2:]))
