"""What stat(2) says of a node, and what chmod, chown and utimes change of it.

Knows nothing of requests. Invariant: nothing in here is cacheable, since values and names change without a request.
"""

import os
import stat
import time

import pyfuse3

from ploopfs.fuse.inodes import Inode
from ploopfs.sysfs.nodes import Attribute, Directory, Disk, Link, Report, Stream

ATTRIBUTE_SIZE_BYTES = 4096
BLOCK_SIZE_BYTES = 4096


def describe(inode: Inode, mounted_ns: int) -> pyfuse3.EntryAttributes:
    """Owner is who serves the tree, as in sysfs: root, or the one user who could mount it without being root."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode.number
    entry.entry_timeout = entry.attr_timeout = 0
    entry.st_blksize = BLOCK_SIZE_BYTES
    kind, entry.st_size, entry.st_nlink = _shape(inode)
    entry.st_blocks = entry.st_size // 512 if isinstance(inode.node, Disk) else 0
    entry.st_mode = kind | (inode.node.mode if inode.mode is None else inode.mode)
    entry.st_uid = os.geteuid() if inode.uid is None else inode.uid
    entry.st_gid = os.getegid() if inode.gid is None else inode.gid
    entry.st_atime_ns = mounted_ns if inode.atime_ns is None else inode.atime_ns
    entry.st_mtime_ns = mounted_ns if inode.mtime_ns is None else inode.mtime_ns
    entry.st_ctime_ns = mounted_ns if inode.ctime_ns is None else inode.ctime_ns
    return entry


def _shape(inode: Inode) -> tuple[int, int, int]:
    """File type, size in bytes, links. A directory has its name, its own dot and a dot-dot in each directory below."""
    match inode.node:
        case Directory(children):
            return stat.S_IFDIR, 0, 2 + sum(isinstance(child, Directory) for child in children().values())
        case Link():
            return stat.S_IFLNK, 0, 1
        case Attribute(bounded=bounded):
            # Of a text without a bound no size would be true, and cp(1) stops at one: 0 makes it read to the end.
            return stat.S_IFREG, ATTRIBUTE_SIZE_BYTES if bounded else 0, 1
        case Stream() | Report():
            return stat.S_IFREG, 0, 1
        case Disk(device):
            return stat.S_IFREG, device.size_bytes, 1


def remember(inode: Inode, entry: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> None:
    """Keep what the caller changed; the size is not among it, see `truncate`."""
    if fields.update_mode:
        inode.mode = stat.S_IMODE(entry.st_mode)
    if fields.update_uid:
        inode.uid = entry.st_uid
    if fields.update_gid:
        inode.gid = entry.st_gid
    if fields.update_atime:
        inode.atime_ns = entry.st_atime_ns
    if fields.update_mtime:
        inode.mtime_ns = entry.st_mtime_ns
    inode.ctime_ns = time.time_ns()
