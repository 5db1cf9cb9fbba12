"""The child process that converts submissions to MIME: it can be killed, and its limits are low.

It only reads submissions and answers. If a message cannot be converted, a file cannot be read or an
internal error occurs, the answer says so. A large body is not in the answer, which says where it is
in the submission's file, and how it is encoded while it is read.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from relay.base.child_process import ChildRequest, ChildTask
from relay.base.files import FileOctets
from relay.base.message.content import MemoryOctets, SpanOfOctets
from relay.formats.convert import ConversionError, ConvertedMessage
from relay.formats.transfer_encoding import (
    Base64Coding,
    Coding,
    CrlfCoding,
    QuotedPrintableCoding,
    RecodedOctets,
    RewrappedBase64,
    RewrappedQuotedPrintable,
)

MEMORY_BYTES_MAX = 1 << 30
_FAULT_CHARACTERS_MAX = 500
_SOURCES = FileOctets | MemoryOctets | RecodedOctets | SpanOfOctets
_CODINGS = (
    Base64Coding | CrlfCoding | QuotedPrintableCoding | RewrappedBase64 | RewrappedQuotedPrintable
)


class ConversionRequest(ChildRequest, frozen=True):
    """Which submission is converted, and when."""

    path: bytes
    now_us: int


class ConversionAnswer(Struct, frozen=True):
    """The converted message; or what is wrong with the submission, the file or the conversion."""

    made: ConvertedMessage | None = None
    refused: str = ""  # of a ConversionError
    unread: str = ""  # of an OSError
    fault: str = ""  # the internal error


def _decoded(kind: type, sent: Any) -> Any:
    if kind is Path:
        return Path(os.fsdecode(sent))
    return msgspec.convert(sent, _CODINGS if kind is Coding else _SOURCES, dec_hook=_decoded)


read_answer = msgspec.msgpack.Decoder(ConversionAnswer, dec_hook=_decoded).decode


def task(words: Sequence[str]) -> ChildTask:
    """Return what the process does. `words`: the function as "module:name", this host's name."""
    function, hostname = words
    module, _, name = function.partition(":")
    answer = partial(_answer, getattr(import_module(module), name), hostname)
    return ChildTask(ConversionRequest, answer, MEMORY_BYTES_MAX, opens_files=True)


def _answer(
    convert: Callable[..., ConvertedMessage], hostname: str, request: ConversionRequest
) -> ConversionAnswer:
    path = Path(os.fsdecode(request.path))
    try:
        pending = FileOctets(path, 0, path.stat().st_size)
        return ConversionAnswer(convert(pending, now_us=request.now_us, hostname=hostname))
    except ConversionError as error:
        return ConversionAnswer(refused=str(error))
    except OSError as error:
        return ConversionAnswer(unread=str(error))
    except Exception as error:  # noqa: BLE001 - any error is an answer
        return ConversionAnswer(fault=f"{type(error).__name__}: {error}"[:_FAULT_CHARACTERS_MAX])
