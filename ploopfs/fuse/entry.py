"""What stat(2) says of a node, and what chmod, chown and utimes change of it.

Knows nothing of requests. Invariant: the kernel may keep only what changes by nothing but a request of its own: names
in a directory that is fixed, and what is said of a node but a disk; of a directory that tells of its changes what it
will be told to forget, and names for as long as they are lent. Whether the daemon lives is an exception, for ms.
"""

import logging
import os
import stat
import time

import pyfuse3

from ploopfs.fuse.inodes import Inode
from ploopfs.sysfs.nodes import Attribute, Changes, Directory, Disk, Link, Names, Node, Report, Stream

log = logging.getLogger(__name__)

ATTRIBUTE_SIZE_BYTES = 4096
BLOCK_SIZE_BYTES = 4096
KEPT_S = 24 * 3600
"""How long the kernel keeps what does not change. Of the 13 requests that reading a value by its path takes, 5 ask for
names that were there before."""
ROOT_KEPT_S = 0.005
"""Of the root: whoever looks at a mountpoint, or passes it, is to see that its daemon is dead. To ask each time is one
request of five where an attribute is opened, read and closed."""


def kept_s(parent: Directory, name: str) -> float:
    """How long the kernel may keep a name that was found there."""
    if parent.is_fixed:
        return KEPT_S
    return parent.lend(name) if parent.lend is not None else 0


def describe(inode: Inode, mounted_ns: int, name_kept_s: float = 0) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode.number
    entry.entry_timeout = name_kept_s
    attributes_kept_s = ROOT_KEPT_S if inode.number == pyfuse3.ROOT_INODE else KEPT_S
    entry.attr_timeout = attributes_kept_s if _is_fixed(inode.node) else 0
    entry.st_blksize = BLOCK_SIZE_BYTES
    kind, entry.st_size, entry.st_nlink = _shape(inode)
    entry.st_blocks = inode.node.device.allocated_bytes // 512 if isinstance(inode.node, Disk) else 0
    shown = inode.changes.shown(inode.node.mode, (os.geteuid(), os.getegid()), mounted_ns)
    entry.st_mode, entry.st_uid, entry.st_gid = kind | shown.mode, shown.uid, shown.gid
    entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = shown.atime_ns, shown.mtime_ns, shown.ctime_ns
    return entry


def missing() -> pyfuse3.EntryAttributes:
    """That a directory which is fixed has no such name, which the kernel keeps like any other answer: when lsblk(8) is
    run again, an eighth of its requests."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino, entry.entry_timeout = 0, KEPT_S
    return entry


def forget_attributes(number: int) -> None:
    """Have the kernel ask again what a directory is, which may have other links now. It waits for nobody, unlike taking
    back a name, which needs a lock that somebody may hold who waits for us."""
    try:
        pyfuse3.invalidate_inode(number, attr_only=True)
    except OSError as error:  # ENOENT: it has it no more
        log.debug("inode %d: %s", number, error)


def _is_fixed(node: Node) -> bool:
    match node:
        case Directory(is_fixed=is_fixed, changed=changed):
            return is_fixed or changed is not None
        case Disk():
            return False  # its size changes
        case _:
            return True


def _shape(inode: Inode) -> tuple[int, int, int]:
    """File type, size in bytes, links. A directory has its name, its own dot and a dot-dot in each directory below."""
    match inode.node:
        case Directory(children):
            names = children()
            counted = names if isinstance(names, Names) else Names(names)
            return stat.S_IFDIR, 0, 2 + counted.subdirectories
        case Link():
            return stat.S_IFLNK, 0, 1
        case Attribute(bounded=bounded):
            # Of a text without a bound no size would be true, and cp(1) stops at one: 0 makes it read to the end.
            return stat.S_IFREG, ATTRIBUTE_SIZE_BYTES if bounded else 0, 1
        case Stream() | Report():
            return stat.S_IFREG, 0, 1
        case Disk(device):
            return stat.S_IFREG, device.size_bytes, 1


def remember(changes: Changes, entry: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> None:
    """Keep what the caller changed; the size is not among it, see `check_truncation`."""
    if fields.update_mode:
        changes.mode = stat.S_IMODE(entry.st_mode)
    if fields.update_uid:
        changes.uid = entry.st_uid
    if fields.update_gid:
        changes.gid = entry.st_gid
    if fields.update_atime:
        changes.atime_ns = entry.st_atime_ns
    if fields.update_mtime:
        changes.mtime_ns = entry.st_mtime_ns
    changes.ctime_ns = time.time_ns()
