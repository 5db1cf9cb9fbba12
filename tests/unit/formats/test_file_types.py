"""Types of files by their content."""

import struct
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from relay.formats.file_types import file_types
from tests.support.tables import each_row

PE_TYPE = "application/vnd.microsoft.portable-executable"


def pe(place=0x80, signature=b"PE\0\0", stub=b""):
    """Return the headers of a Windows program, the second at `place`."""
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", place) + stub
    return head.ljust(place, b"\0") + signature + b"\x64\x86"


FILES = {
    "PE": (pe(), (PE_TYPE,)),
    "PE with a long stub": (pe(70_000), (PE_TYPE,)),
    "PE at the end": (pe(300)[:304], (PE_TYPE,)),
    "PE with a PDF in its stub": (pe(stub=b"%PDF-1.7"), ("application/pdf", PE_TYPE)),
    "MZ alone": (b"MZ is a text" * 20, ()),
    "MZ, cut before its second header": (pe()[:0x82], ()),
    "ELF": (b"\x7fELF\2\1\1", ("application/x-elf",)),
    "Mach-O of 64 bits": (b"\xcf\xfa\xed\xfe\7\0\0\1", ("application/x-mach-binary",)),
    "Mach-O, fat": (b"\xca\xfe\xba\xbe\0\0\0\2", ("application/x-mach-binary",)),
    "a Java class": (b"\xca\xfe\xba\xbe\0\0\0\x34", ()),
    "ZIP": (b"PK\3\4\x14\0", ("application/zip",)),
    "an empty ZIP": (b"PK\5\6" + b"\0" * 18, ("application/zip",)),
    "RAR 4": (b"Rar!\x1a\7\0", ("application/vnd.rar",)),
    "7z": (b"7z\xbc\xaf'\x1c\0\4", ("application/x-7z-compressed",)),
    "gzip": (b"\x1f\x8b\x08\0", ("application/gzip",)),
    "tar": (b"a.exe".ljust(257, b"\0") + b"ustar\0", ("application/x-tar",)),
    "bzip2": (b"BZh91AY&SY", ("application/x-bzip2",)),
    "an empty bzip2": (b"BZh9\x17rE8P\x90", ("application/x-bzip2",)),
    "a text that begins as bzip2": (b"BZh9 is no file", ()),
    "xz": (b"\xfd7zXZ\0\0", ("application/x-xz",)),
    "PDF": (b"%PDF-1.7\n", ("application/pdf",)),
    "PDF after other lines": (b"\xef\xbb\xbf\n" * 200 + b"%PDF-1.4", ("application/pdf",)),
    "PDF too late": (b"\n" * 1020 + b"%PDF-1.4", ()),
    "ZIP and PDF": (b"PK\3\4 %PDF-1.4", ("application/zip", "application/pdf")),
    "OLE": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 16, ("application/x-ole-storage",)),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ("image/png",)),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF", ("image/jpeg",)),
    "BMP": (b"BM" + b"\0" * 12 + b"\x28\0\0\0", ("image/bmp",)),
    "a text that begins as BMP": (b"BMW drives on, and on, and on", ()),
    "TIFF": (b"II*\0\x08\0", ("image/tiff",)),
    "WebP": (b"RIFF\1\2\3\4WEBPVP8 ", ("image/webp",)),
    "WAV": (b"RIFF\1\2\3\4WAVEfmt ", ()),
    "text": (b"hello", ()),
}


@each_row("octets, types", FILES.values())
def test_a_file_is_known_by_its_content(octets, types):
    assert file_types(iter([octets])) == types


@given(
    st.sampled_from([octets for octets, _ in FILES.values()]),
    st.lists(st.integers(0, 400), max_size=6),
)
def test_blocks_of_any_sizes_give_the_same_types(octets, cuts):
    places = [0, *sorted(cuts), len(octets)]
    blocks = [octets[start:end] for start, end in pairwise(places)]
    assert file_types(iter(blocks)) == file_types(iter([octets]))


def test_only_the_first_blocks_are_read():
    blocks = iter([b"\x7fELF" + b"\0" * 2000, b"next"])
    assert file_types(blocks) == ("application/x-elf",)
    assert next(blocks) == b"next"
