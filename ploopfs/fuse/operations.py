"""The requests of the kernel, each answered from the tree of nodes.

Knows FUSE and the kinds of node, and nothing of what they mean. Invariants: every handler is wrapped by `answers`; none
waits but reads, writes and flushes, whose waits are bounded by what they open.
"""
# ruff: noqa: ARG002 - pyfuse3 prescribes the arguments of handlers, and passes them by position.

import errno
import itertools
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Never, TypeVar, cast

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    PollHandle,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from ploopfs.bounds import MAX_STORES
from ploopfs.errors import BadValue, Busy, NoSuchEntry, NotPermitted, PermissionDenied, PloopError
from ploopfs.fuse.answers import answers, unanswered
from ploopfs.fuse.entry import BLOCK_SIZE_BYTES, describe, forget_attributes, kept_s, missing, remember
from ploopfs.fuse.handles import AttributeHandle, DirectoryHandle, OpenFile, open_file
from ploopfs.fuse.inodes import Inode, Inodes
from ploopfs.sysfs.nodes import Directory, Disk, Link
from ploopfs.sysfs.opendisk import check_room, check_truncation

NAME_MAX = 255

T = TypeVar("T")


def _refused(error: type[PloopError]) -> Callable[..., Coroutine[Any, Any, Never]]:
    @answers
    async def refuse(*_request: object) -> Never:
        raise error("the tree does not change on request")

    return refuse


class Operations(pyfuse3.Operations):
    """`waiting` counts the requests that wait in a task. Extended attributes are left to the default, ENOSYS: the
    kernel remembers it and answers EOPNOTSUPP by itself."""

    # An inode does not know its parent, so `..` could not be answered; only an NFS server asks.
    supports_dot_lookup = False

    def __init__(self, root: Directory) -> None:
        super().__init__()
        self._inodes = Inodes(root)
        self._mounted_ns = time.time_ns()
        self._handles = itertools.count(1)
        self._files: dict[int, OpenFile] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._stores = 0
        self.waiting = 0
        self._owner = os.geteuid()

    # Names and inodes

    @answers
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        parent = self._directory(parent_inode)
        node = parent.children().get(os.fsdecode(name))
        if node is None:
            if parent.is_fixed:
                return missing()
            raise NoSuchEntry(os.fsdecode(name))
        inode = self._inodes.of(node)
        entry = self._describe(inode, kept_s(parent, os.fsdecode(name)))
        inode.lookups += 1
        return entry

    @unanswered
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, lookups in inode_list:
            self._inodes.forget(number, lookups)

    @answers
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._describe(self._inodes[inode])

    @answers
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        changed = self._inodes[inode]
        if fields.update_size and isinstance(changed.node, Disk):  # on an attribute it has no effect, as in sysfs
            check_truncation(changed.node.device, attr.st_size)
        remember(changed.changes, attr, fields)
        return self._describe(changed)

    @answers
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        link = self._inodes[inode].node
        if not isinstance(link, Link):
            raise BadValue("not a link")
        return os.fsencode(link.target)

    @answers
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """All counts are 0, as in sysfs. That it answers at all makes a loop device believe in discard."""
        statistics = StatvfsData()
        statistics.f_bsize = statistics.f_frsize = BLOCK_SIZE_BYTES
        statistics.f_namemax = NAME_MAX
        return statistics

    # Directories

    @answers
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        self._check_room(ctx)
        handle = next(self._handles)
        self._directories[handle] = DirectoryHandle(self._directory(inode))
        return handle

    @answers
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        listing = self._directories[fh]
        for next_id, (name, node) in enumerate(listing.entries(start_id), start_id + 1):
            inode = self._inodes.of(node)
            entry = self._describe(inode, kept_s(listing.directory, name))
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, next_id):
                return
            inode.lookups += 1

    @answers
    async def releasedir(self, fh: int) -> None:
        del self._directories[fh]

    # Files

    @answers
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """direct_io: the page cache must neither answer for a device nor keep the value of an attribute."""
        self._check_room(ctx)
        file = open_file(self._inodes[inode].node, flags)
        handle = next(self._handles)
        self._files[handle] = file
        return FileInfo(fh=handle, direct_io=True, keep_cache=False, nonseekable=not file.is_seekable)

    @answers
    async def read(self, fh: int, off: int, size: int) -> bytes:
        file = self._files[fh]
        # pyfuse3 copies from whatever has a buffer; only its annotation says bytes.
        return cast(bytes, await (file.read(off, size) if file.reads_at_once else self._wait(file.read(off, size))))

    @answers
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._wait(self._write(self._files[fh], off, buf))

    async def _write(self, file: OpenFile, off: int, buf: bytes) -> int:
        if not isinstance(file, AttributeHandle):
            return await file.write(off, buf)
        # A store may wait for as long as it is bounded: what serves the status files must not all be in one.
        if self._stores >= MAX_STORES:
            raise Busy(f"{MAX_STORES} writes to control files are under way")
        self._stores += 1
        try:
            return await file.write(off, buf)
        finally:
            self._stores -= 1

    @answers
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._wait(self._files[fh].fsync())

    @answers
    async def flush(self, fh: int) -> None:
        """close(2) of a block device promises nothing. ENOSYS lets the kernel close without asking from now on."""
        raise FUSEError(errno.ENOSYS)

    @answers
    async def poll(self, inode: int, fh: int, poll_handle: PollHandle | None, ctx: RequestContext) -> int:
        return self._files[fh].poll(poll_handle)

    @answers
    async def release(self, fh: int) -> None:
        self._files.pop(fh).release()

    def release_all(self) -> None:
        """The session ended: no release comes any more, and no poll handle may outlive the session."""
        while self._files:
            self._files.popitem()[1].release()
        while self._watched:
            self._watched.popitem()[1]()

    async def _wait(self, request: Coroutine[Any, Any, T]) -> T:
        """For what may wait, and needs the event loop then."""
        self.waiting += 1
        try:
            return await request
        finally:
            self.waiting -= 1

    # Changes of the namespace: never, and with the errnos of sysfs

    create = _refused(PermissionDenied)
    mknod = mkdir = symlink = link = rename = unlink = rmdir = _refused(NotPermitted)

    def _check_room(self, ctx: RequestContext) -> None:
        check_room(len(self._files) + len(self._directories), uid=ctx.uid, owner=self._owner)

    def _directory(self, number: int) -> Directory:
        node = self._inodes[number].node
        if not isinstance(node, Directory):
            raise FUSEError(errno.ENOTDIR)
        return node

    def _describe(self, inode: Inode, name_kept_s: float = 0) -> EntryAttributes:
        if isinstance(inode.node, Directory) and inode.node.changed is not None and inode.number not in self._watched:
            self._watched[inode.number] = inode.node.changed.subscribe(partial(forget_attributes, inode.number))
        return describe(inode, self._mounted_ns, name_kept_s)
