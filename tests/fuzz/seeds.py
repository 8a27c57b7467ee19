"""Inputs from which others are made, and the tokens of each grammar. Knows no target."""

import hashlib
import lzma
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

import trio

from ploopfs.bounds import PAGE_BYTES
from ploopfs.device.messages import MESSAGES
from ploopfs.errors import PloopError
from ploopfs.image.extension import DIRTY_BITMAP_MAGIC, EXTENSION_MAGIC
from ploopfs.image.header import CLOSED_V21, HEADER_BYTES, IN_USE, V1, V2, Header
from ploopfs.testing.images import ImageBuilder
from tests.fuzz.clients import BLOCK, HEALTHY, MAPPED
from tests.fuzz.tree import COPY, MADE, MOST_RECORDS, RECORD, STACKS, Fuzzed, populated, record, script

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
FOUND = DATA / "fuzz"
"""A directory for each target, with inputs that once broke it: they are played first, for ever."""
LARGEST_FILE = 1 << 63
SMALL_IMAGE_BYTES = 1 << 17

LARGE = (b"4294967295", b"4294967296", b"18446744073709551615", b"18446744073709551616", b"9" * 5000, b"1e400")
ODD = (b"0x" + b"f" * 40, b"1:" * 200 + b"1", b"nan", "\u0663".encode(), "\u00b2".encode(), b"0b1", b"1_0")
NUMBERS = (b"0", b"-1", *LARGE, *ODD)
NO_TEXT = (b"\0", b"\xff\xfe", b"\xed\xa0\x80", "\u202e\u2028\x85".encode(), b"\x1b[31m")
TEXTS = (*NO_TEXT, b"\n", b"\r", b"\x0b", b"\t", b" ", b"a" * 300)
PATHS = (b"../../../etc/passwd", b"/dev/zero", b"/", b".", b"..", b"/proc/self/fd/0", b"raw@", b"/store/top.hds")
COMMON = (*NUMBERS, *TEXTS, *PATHS)

_U32 = tuple(struct.pack("<I", value) for value in (0, 1, 2, 63, 64, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
_U64 = tuple(struct.pack("<Q", value) for value in (1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1))
IMAGE_TOKENS = (
    *(version.signature for version in (V1, V2)),
    *(struct.pack("<I", value) for value in (IN_USE, CLOSED_V21)),
    *(struct.pack("<Q", value) for value in (EXTENSION_MAGIC, DIRTY_BITMAP_MAGIC)),
    *_U32,
    *_U64,
)
XML_TOKENS = (
    *COMMON,
    b'<!DOCTYPE a [<!ENTITY b "b"><!ENTITY c "&b;&b;&b;&b;">]>',
    b'<?xml version="1.0" encoding="UTF-16"?>',
    b'<?xml version="1.0" encoding="idna"?>',
    b"&b;",
    b"&#0;",
    b"&#xD800;",
    b"&#10;",
    b"<![CDATA[x]]>",
    b"<!---->",
    b"<a>",
    b"</a>",
    b"<a/>",
    b"<Shot/>",
    b"<Image/>",
    b"<Volume/>",
    b"{5fbaabe3-6958-40ff-92a7-860e329aab41}",
    b"{00000000-0000-0000-0000-000000000000}",
)
YAML_TOKENS = (
    *COMMON,
    *(b"&a ", b"*a", b"<<: ", b"!!int ", b"!!float ", b"!!binary ", b"!!python/object:os.system ", b"!a!b"),
    *(b"%YAML 9.9\n", b"%TAG ! x\n", b"---\n", b"...\n", b"- ", b"? ", b": ", b"[", b"]", b"{", b"}", b"|\n", b">\n"),
    *(b'"\\U11111111"', b'"\\x', b"'", b"~", b"null", b"yes", b".inf", b".nan", b"2001-01-01", b"#", b"\t", b"    "),
    *(b"reopen", b"command", b"recovery: ", b"backoff_s: ", b"repeat: ", b"matches: '[['", b"at_least: "),
)
INJECT_TOKENS = (*COMMON, b",", b"=", b"add", b"removeall", b"remove,id=", b"hang", b"after", b"seed=", RECORD)
TABLE_TOKENS = (*COMMON, b"\\", b"\\ ", b"\\\n", b"ro ", b"#", b"off=", b"falloc_new_clu", b"error", b"ploop", b"\0")
STORE_TOKENS = (
    *COMMON,
    RECORD,
    b"level=0 verify=full ",
    COPY.encode(),
    b"recovery\0replace /x",
    *(f"dm-0/ploopfs/message\0{name} 1 1".encode() for name in MESSAGES),
    *(b"add ", b"del ", b"create ", b"move ", b"clear", b"add_device ", b"filename=/dev/dm-0", b"=", b";", b"size_mb="),
    *(b"add_attribute IncomingUser0 a 123456789012", b"add_target ", b"scst", b"iscsi_scst", b"mgmt", b"max", b"now"),
)
MOUNTINFO_TOKENS = (*COMMON, b" - ", b"\\040", b"\\011", b"\\777", b"\\", b" fuse.ploopfs ", b"7:0", b"/dev/loop0")
FUSE_TOKENS = (*_U32, *_U64, *(struct.pack("<I", opcode) for opcode in range(60)), bytes(40))
ARGUMENT_TOKENS = (*COMMON, b"\0", b"--", b"-", b"--json", b"-m", b"--last", b"--timeout", b"=", b"1T", b"0x")
TREE_TOKENS = (
    *COMMON,
    *(b"{", b"[" * 2000, b'{"seq": 1}\n', b"null\n", b"1e999", b"not supported", b",", b"=", b":", b" file="),
    b'{"seq":1,"time":1e300,"device":null,"event":7}\n',
    b'{"seq":1,"event":"gap"}\n',
    *(RECORD + f"{name}\0".encode() for name in HEALTHY),
)


def found(target: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted((FOUND / target).glob("*")))


@cache
def images() -> tuple[bytes, ...]:
    made = [
        ImageBuilder(clusters={0: b"a", 2: b"c"}, version=version, in_use=in_use).build()
        for version in (V1, V2)
        for in_use in (0, IN_USE, CLOSED_V21)
    ]
    return (*made, ImageBuilder(disk_clusters=4).build(), *_repairable(), *_fixtures(), b"")


def _repairable() -> list[bytes]:
    """Two entries for one cluster, and one beyond the end of the file."""
    images = []
    for entry in (1, 1000):
        image = bytearray(ImageBuilder(clusters={0: b"a", 2: b"c"}).build())
        struct.pack_into("<I", image, HEADER_BYTES + 4, entry)
        images.append(bytes(image))
    return images


def _fixtures() -> list[bytes]:
    """Small ones whole, of large ones the header."""
    contents = [lzma.decompress(path.read_bytes()) for path in sorted((DATA / "broken").glob("*.xz"))]
    return [content if len(content) <= SMALL_IMAGE_BYTES else content[:HEADER_BYTES] for content in contents]


@cache
def sized_images() -> tuple[bytes, ...]:
    large = bytearray(ImageBuilder().build()[:HEADER_BYTES])
    struct.pack_into("<I", large, 48, 0xFFFFFFC0)  # m_FirstBlockOffset: a map of 2 TiB
    extended = Header.parse(images()[2], "image").changed(in_use=CLOSED_V21, flags=0, extension_sectors=(1 << 64) - 64)
    whole = [struct.pack("<Q", 0) + image for image in images()]
    return (*whole, struct.pack("<Q", 1 << 41) + large, struct.pack("<Q", 1 << 20) + extended.raw)


@cache
def extensions() -> tuple[bytes, ...]:
    def section(magic: int, content: bytes) -> bytes:
        return struct.pack("<QQII", magic, 0, len(content), 0) + content

    bitmap = struct.pack("<Q16sII", 256, bytes(16), 128, 1) + struct.pack("<Q", 1)
    return (section(DIRTY_BITMAP_MAGIC, bitmap), section(7, b"x" * 24) + section(DIRTY_BITMAP_MAGIC, bitmap), b"")


def extension(body: bytes, cluster_bytes: int) -> bytes:
    """A cluster with a magic and a digest in front of `body`."""
    rest = body[: cluster_bytes - 24].ljust(cluster_bytes - 24, b"\0")
    return struct.pack("<Q16s", EXTENSION_MAGIC, hashlib.md5(rest, usedforsecurity=False).digest()) + rest


@cache
def descriptors() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted((DATA / "descriptors").glob("*.xml")))


@cache
def configurations() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted((ROOT / "config").glob("*.yaml")))


@cache
def scenarios() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted((ROOT / "config/scenarios").glob("*.yaml")))


def injections() -> tuple[bytes, ...]:
    return (
        b"add,op=READ,start=0,nr_sectors=8,status=IOERR,chance=10,seed=7\x1eremove,id=1",
        b"add,errno=EBUSY,level=2,skip=1,count=3,after\nadd,delay_ms=5,hang",
        b"removeall",
    )


def tables() -> tuple[bytes, ...]:
    return (
        b"0 384 ploop 6 falloc_new_clu off=8 raw@/store/base.raw /store/top\\ of\\\\all.hds",
        b"ro 0 384 ploop 11 /a\n# comment\n",
        b"0 384 error",
    )


@cache
def stores() -> tuple[bytes, ...]:
    """A value that it takes or shows for each writable file, and what makes the directories."""
    return trio.run(_stores)


def token_everywhere(token: bytes) -> bytes:
    """A script that writes it to every file, as every argument of a message, and as every option."""
    device, mapped = (f"sys/devices/virtual/block/{name}/ploopfs" for name in ("ploop0", "dm-0"))
    messages = [b" ".join([name.encode(), *[token] * row.arguments]) for name, row in MESSAGES.items()]
    options = [b"%s=%s %s" % (name, token, COPY.encode()) for name in (b"level", b"verify")]
    tables = [b"0 %s ploop 6 /a" % token, b"0 8 ploop %s /a" % token, b"0 8 ploop 6 off=%s /a" % token]
    return RECORD.join(
        [
            *(record(path, token) for path in trio.run(_writable)),
            *(record(f"{mapped}/message", message) for message in messages),
            record(f"{mapped}/message", b"update_delta_index 0 0:" + token),
            *(record(f"{device}/replace_delta", option) for option in options),
            *(record(f"{mapped}/load", table) for table in tables),
        ]
    )


async def _writable() -> list[str]:
    async with populated() as fuzzed:
        return fuzzed.writable()


async def _stores() -> tuple[bytes, ...]:
    async with populated() as fuzzed:
        records = [record(path, _value(fuzzed, path)) for path in fuzzed.writable()]
    plain = [RECORD.join(records[at : at + MOST_RECORDS]) for at in range(0, len(records), MOST_RECORDS)]
    device, mapped = (f"sys/devices/virtual/block/{name}/ploopfs" for name in ("ploop0", "dm-0"))
    table = "0 192 ploop 6 " + " ".join(STACKS["dm-0"][1])
    return (
        *plain,
        *(script(one) for one in MADE),
        script((f"{device}/replace_delta", COPY), (f"{device}/reopen", "1")),
        script((f"{device}/replace_delta", f"level=2 verify=full {COPY}")),
        script((f"{mapped}/message", "resize 448"), (f"{mapped}/message", "resize 640000")),
        script((f"{mapped}/load", table), (f"{mapped}/suspend", "noflush"), (f"{mapped}/resume", "")),
        script((f"{mapped}/load", table), (f"{mapped}/clear", "1")),
        *(script((f"{mapped}/message", f"{name} {'1 ' * row.arguments}".strip())) for name, row in MESSAGES.items()),
        script((f"{mapped}/message", "update_delta_index 0 0:1;1:2;")),
        script((f"{mapped}/message", "tracking_start"), (f"{mapped}/message", "tracking_get_next")),
        script(("sys/fs/ploopfs/rmmod", "iscsi_scst"), ("sys/fs/ploopfs/modprobe", "iscsi_scst")),
    )


def _value(fuzzed: Fuzzed, path: str) -> bytes:
    from tests.sysfs.fakes import text_of  # noqa: PLC0415 - the fakes are for other tests, reading is the same

    attribute = fuzzed.attributes()[path]
    try:
        shown = text_of(fuzzed.root, path).encode() if attribute.show else b"1\n"
    except PloopError:
        shown = b"1\n"
    return shown[:PAGE_BYTES] or b"1\n"


def mountinfos() -> tuple[bytes, ...]:
    return (
        b"22 1 0:21 / /mnt\\040a rw,nosuid shared:2 - fuse.ploopfs ploopfs rw,user_id=0\n"
        b"23 22 7:0 /a\\011b /x rw - ext4 /dev/loop0 rw\n",
        b"Filename Type Size Used Priority\n/dev/loop0 partition 1024 0 -2\n",
    )


def fuse_requests() -> tuple[bytes, ...]:
    """What the kernel has sent, and requests for the file that is open."""
    from tests.blockfuse.kernel import SENT_BY_LINUX  # noqa: PLC0415 - see _value

    return tuple(SENT_BY_LINUX.values())


def thread_states() -> tuple[bytes, ...]:
    return (
        b"Name:\tcat\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000002\nSigBlk:\t0000000000000000\n",
        b"7 (f (i) o) D 1 7 7 0 -1 4194564 0 0",
    )


def shown_in_proc(host: ModuleType, text: str) -> None:
    """The files of proc over a kernel that answers everything with `text`."""
    from tests.sysfs.fakes import FakeRegistry, opened, tree_of  # noqa: PLC0415 - see _value

    registry = FakeRegistry()
    registry.add(name="ploop0")
    root = tree_of(registry, host.LinuxHost("/mnt"))

    def read(path: str) -> str:
        return "/mnt/dev/ploop0\n" if path.endswith("backing_file") else text

    with mock.patch.object(host, "_read", read):
        for name in ("swaps", "self/mountinfo", "ploopfs/diskstats", "ploopfs/partitions"):
            opened(root, f"proc/{name}").read(0, PAGE_BYTES)


def _words(*words: str) -> bytes:
    return "\0".join(words).encode()


def command_lines() -> tuple[bytes, ...]:
    return (
        _words("mount", "-d", "--log-level", "debug", "-o", "allow_other", "c.yaml", "/mnt"),
        _words("create", "10G", "/vz/disk", "--cluster-size", "1M", "--format-version", "1"),
        _words("watch", "ploop0", "--last", "20"),
        _words("wait", "ploop0", "--for", "off", "--timeout", "1.5"),
        _words("replace", "ploop0", "/a", "--level", "2", "--verify", "full"),
        _words("inject", "ploop0", "--op", "READ", "--errno", "EIO", "--count", "3"),
        _words("rehearse", "s.yaml", "--command", "x"),
        _words("umount", "/mnt", "--timeout", "3"),
        _words("exec", "/mnt", "--", "sh"),
        _words("resize", "20G", "top.hds"),
        _words("info", "a", "b", "--json"),
    )


def dmsetup_lines() -> tuple[bytes, ...]:
    return (
        _words("0 384 ploop 6 0 1", "load", "-r", "vm1"),
        _words("0 384 error", "reload", "-u", "U-1"),
        _words("", "info", "-c", "-j", "253", "-m", "0", "-o", "name,uuid", "-O", "-minor"),
        _words("", "message", "vm1", "0", "get_img_name", "1"),
        _words("", "wait", "vm1", "0"),
        _words("", "table", "--target", "ploop", "vm1", "-v"),
        _words("", "ls", "--tree"),
        _words("", "load", "vm1", "--table", "0 384 ploop 6 /a"),
    )


@cache
def trees() -> tuple[bytes, ...]:
    """One input for each file that a client reads, with something else in it."""
    wrong = [script((name, "?")) for name in HEALTHY]
    large, none = script((f"{BLOCK}/size", "7" * 5000)), script((f"{MAPPED}/dev", ":"))
    return (b"", *wrong, large, none, *_bad_reasons(), _unprintable())


def _unprintable() -> bytes:
    return script((f"{BLOCK}/ploopfs/last_error", b"a\x1b[2J\xff\n"))


def _bad_reasons() -> Sequence[bytes]:
    long = f"errno=EIO operation=read offset={'9' * 5000} length=0 level=- file=/x"
    wrong = "errno= operation=r offset=x length=1 level=- file="
    reasons = ("errno=EIO file=/x", wrong, "a=b", " file=/x", long)
    return [script((f"{BLOCK}/ploopfs/standby_reason", reason)) for reason in reasons]
