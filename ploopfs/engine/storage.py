"""What kind of storage a file lies on: what the mount table tells of its device number.

Blocking: runs in a worker thread. Knows nothing of images. Invariant: it asks the kernel's memory alone.
"""

import os
from dataclasses import dataclass

_LOCAL_LOCKS = frozenset({"nolock", "local_lock=all", "local_lock=posix"})
"""Of a mount of NFS: what is locked here is locked on this machine."""

_ANSWERS_FROM_MEMORY = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "tmpfs", "xfs", "zfs"})
"""Of a file that is open: no disk is asked how long it is or who has locked it, and no other host."""

_FENCED = frozenset({"fuse.vstorage"})
"""Their server keeps two writers of one file apart itself: who loses the lease of an image is answered EBUSY."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file this is, as `pdelta/<n>/image_info` shows it. `filesystem` is the type's name, e.g. `fuse.bindfs`.
    `has_locks`: a lock on it keeps off everybody who could use it, as far as can be told; an image without such locks
    is not known to be one's own."""

    device_number: int
    inode: int
    filesystem: str
    has_locks: bool = True

    @property
    def is_remote(self) -> bool:
        return _is_remote(self.filesystem)


@dataclass(frozen=True, slots=True)
class Storage:
    """`filesystem` is the type's name, e.g. `fuse.bindfs`; empty if it is not listed. `options` are of the superblock.
    """

    filesystem: str
    options: frozenset[str]

    @property
    def is_remote(self) -> bool:
        """A store behind a client (FUSE, NFS): its pages here may be read long after the mount is gone or the lease is
        somebody else's, and the kernel's engines for it (kaio, nfs) go past the page cache for that reason."""
        return _is_remote(self.filesystem)

    @property
    def answers_from_memory(self) -> bool:
        """Nobody waits who asks for the size of an open file, or for a lock that is free."""
        return self.filesystem in _ANSWERS_FROM_MEMORY

    @property
    def is_behind_client(self) -> bool:
        """Only its server knows who else uses it."""
        return self.filesystem.startswith("fuse") and self.filesystem not in _FENCED

    @property
    def shares_locks(self) -> bool:
        """False where it is known that other hosts do not see a lock."""
        return not (self.filesystem.startswith("nfs") and self.options & _LOCAL_LOCKS)


def _is_remote(filesystem: str) -> bool:
    return filesystem.startswith(("fuse", "nfs"))


def storage_of(device_number: int) -> Storage:
    """Of the mount that a device number belongs to."""
    wanted = f"{os.major(device_number)}:{os.minor(device_number)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split(" ")
            if fields[2] == wanted:
                kind = fields[fields.index("-") + 1 :]
                return Storage(kind[0], frozenset(kind[2].strip().split(",")))
    return Storage("", frozenset())
