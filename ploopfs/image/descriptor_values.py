"""The single values of a DiskDescriptor.xml: numbers, GUIDs, cluster sizes and file names (image-format.md 6.3).

Knows nothing of XML. A check either returns or raises `BadDescriptor`.
"""

import posixpath
import re

from ploopfs.errors import BadDescriptor
from ploopfs.image.header import MAX_CLUSTER_SECTORS, MIN_CLUSTER_SECTORS

GUID = re.compile(r"\{[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\}")
GUID_FORM = "{8-4-4-4-12 hex digits}"
_C_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")
_ULONG_MAX = (1 << 64) - 1
UINT_MASK = (1 << 32) - 1


def c_number(text: str) -> int | None:
    """What strtoul of base 0 makes of the whole text on a 64-bit machine; None if it stops before the end."""
    match = _C_NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, hexadecimal, octal, decimal = match.groups()
    if decimal is not None:
        # Python refuses to convert very long decimals, and all of them saturate anyway.
        value = int(decimal) if len(decimal) <= 20 else _ULONG_MAX
    else:
        value = int(hexadecimal, 16) if hexadecimal is not None else int(octal, 8)
    if value >= _ULONG_MAX:
        return _ULONG_MAX
    return -value & _ULONG_MAX if sign == "-" else value


def check_cluster_sectors(path: str, value: int, *, line: int = 0) -> None:
    if value & (value - 1) or not MIN_CLUSTER_SECTORS <= value <= MAX_CLUSTER_SECTORS:
        expected = f"a power of two from {MIN_CLUSTER_SECTORS} to {MAX_CLUSTER_SECTORS}"
        raise BadDescriptor(path, f"Blocksize is {value}, expected {expected}", line=line)


def check_file(path: str, file: str) -> None:
    """A name that XML can carry; the undecodable bytes of a file name, for one, it cannot."""
    if not re.fullmatch(r"[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+", file):
        raise BadDescriptor(path, f"File is {shown(file)}, expected characters that XML can hold")


def shown(text: str) -> str:
    """A value for a message: quoted, so that blanks are seen, and not at any length."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def resolved(descriptor_path: str, file: str) -> str:
    """Where a File is (6.3): slashes collapsed, leading "../" taken off the directory, the rest left to the kernel."""
    name = re.sub("/+", "/", file)
    name = name.rstrip("/") or name
    directory = posixpath.dirname(descriptor_path)
    while name.startswith("../") and posixpath.basename(directory) not in ("", ".", ".."):
        name, directory = name[len("../") :], posixpath.dirname(directory)
    return posixpath.join(directory, name)
