"""Recognise a file by its first octets, whatever its name and its declared type say.

Mail-flow rules use it. A file may be valid as several types; all of them are returned. Nothing
raises. Types have the names that the IANA registers, or else those of the `file` program.
Microsoft PE format (e_lfanew); System V ABI (ELF); Mach-O loader.h, fat.h; PKWARE APPNOTE 4.3;
RFC 1952 (gzip); POSIX.1 pax (ustar); MS-CFB 2.2 (OLE); ISO 32000-1 annex H (where a PDF may begin);
RFC 2083 (PNG); RFC 9649 (WebP).
"""

import re
import struct
from collections.abc import Iterator

PE = "application/vnd.microsoft.portable-executable"
ELF = "application/x-elf"
MACH_O = "application/x-mach-binary"
EXECUTABLES = frozenset((PE, ELF, MACH_O))
ZIP = "application/zip"
OLE = "application/x-ole-storage"
TAR = "application/x-tar"
# Archives and compressed files that are not looked into.
_PACKED = frozenset(("application/gzip", "application/x-bzip2", "application/x-xz"))
CLOSED_ARCHIVES = _PACKED | {"application/vnd.rar", "application/x-7z-compressed", TAR}
ARCHIVES = CLOSED_ARCHIVES | {ZIP}
# Other names that programs declare for the same types.
OTHER_NAMES = {
    **dict.fromkeys(("application/x-msdownload", "application/x-dosexec"), PE),
    **dict.fromkeys(("application/x-msdos-program", "application/x-exe"), PE),
    **dict.fromkeys(("application/x-executable", "application/x-pie-executable"), ELF),
    **dict.fromkeys(("application/x-zip-compressed", "application/x-zip"), ZIP),
    **dict.fromkeys(("application/x-rar-compressed", "application/x-rar"), "application/vnd.rar"),
    "application/x-gzip": "application/gzip",
}
_HEAD_OCTETS = 1024  # as far as a PDF may begin; enough for all types but PE
_TAR_MAGIC_OFFSET = 257
_PE_OFFSET = 0x3C  # of the field e_lfanew, the place of the PE header
_DOS_HEADER_OCTETS = 0x40
_PE_SIGNATURE = b"PE\0\0"
_FAT_BINARIES_MAX = 30  # a Java class has the same magic number, and there its version is over 44
_SIGNATURES = {
    b"\x7fELF": ELF,
    **dict.fromkeys((b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf"), MACH_O),
    **dict.fromkeys((b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe"), MACH_O),
    **dict.fromkeys((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"), ZIP),
    b"Rar!\x1a\x07": "application/vnd.rar",
    b"7z\xbc\xaf\x27\x1c": "application/x-7z-compressed",
    b"\x1f\x8b\x08": "application/gzip",
    b"\xfd7zXZ\0": "application/x-xz",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": OLE,
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "image/gif"),
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "image/tiff"),
}
_STARTS = re.compile(b"|".join(map(re.escape, _SIGNATURES)))
_BITMAP = re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")  # a block, or the end of an empty file
_WEBP = re.compile(rb"RIFF.{4}WEBP", re.DOTALL)


def file_types(blocks: Iterator[bytes]) -> tuple[str, ...]:
    """Return the types of a file, () if none is known. Blocks are read only as needed."""
    head = b""
    for block in blocks:
        head += block
        if len(head) >= _HEAD_OCTETS:
            break
    return (*_types(head[:_HEAD_OCTETS]), *([PE] if _is_pe(head, blocks) else []))


def _types(head: bytes) -> Iterator[str]:
    if match := _STARTS.match(head):
        yield _SIGNATURES[match[0]]
    elif _is_fat(head):
        yield MACH_O
    elif head.startswith(b"ustar", _TAR_MAGIC_OFFSET):
        yield TAR
    elif _BZIP2.match(head):
        yield "application/x-bzip2"
    elif _BITMAP.match(head):
        yield "image/bmp"
    elif _WEBP.match(head):
        yield "image/webp"
    if b"%PDF-" in head:
        yield "application/pdf"


def _is_fat(head: bytes) -> bool:
    if head[:4] not in (b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf"):
        return False
    return 0 < int.from_bytes(head[4:8]) <= _FAT_BINARIES_MAX


def _is_pe(head: bytes, blocks: Iterator[bytes]) -> bool:
    """Return whether a file has both headers; the second may be anywhere in it."""
    if not head.startswith(b"MZ") or len(head) < _DOS_HEADER_OCTETS:
        return False
    [place] = struct.unpack_from("<I", head, _PE_OFFSET)
    held = head
    while len(held) < place + len(_PE_SIGNATURE) and (block := next(blocks, None)) is not None:
        dropped = min(place, len(held))
        held = held[dropped:] + block
        place -= dropped
    return held.startswith(_PE_SIGNATURE, place)
