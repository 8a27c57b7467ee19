"""Which inode number is which node, and how often the kernel holds it.

Knows nothing of requests or of what a node contains. Invariants: a number is never given twice; a node that the kernel
holds stays, in the tree or not; a node in the tree keeps its number and what was changed on it (mode, owner, times).

The last one needs a table of nodes that the kernel does not hold: it forgets what nobody uses whenever memory is
short, and a number that changed with that would look like another file. Nodes that left the tree are swept out of
that table when it has doubled.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyfuse3

from ploopfs.sysfs.nodes import Changes, Directory, Disk, Node

_SWEEP_LEAST = 256


@dataclass(eq=False, slots=True)
class Inode:
    """`lookups` counts the kernel's references."""

    number: int
    node: Node
    lookups: int = 0
    changes: Changes = field(init=False)

    def __post_init__(self) -> None:
        self.changes = self.node.changes if isinstance(self.node, Disk) else Changes()


class Inodes:
    def __init__(self, root: Directory) -> None:
        self._root = root
        self._last_number = pyfuse3.ROOT_INODE
        # The root is held by the mount itself: no lookup ever counts it, so no forget may release it.
        held = Inode(pyfuse3.ROOT_INODE, root, lookups=1)
        self._by_node: dict[Node, Inode] = {root: held}
        self._by_number: dict[int, Inode] = {held.number: held}
        self._sweep_at = _SWEEP_LEAST

    def __len__(self) -> int:
        return len(self._by_number)

    def __getitem__(self, number: int) -> Inode:
        return self._by_number[number]

    def of(self, node: Node) -> Inode:
        """The inode of a node that was just found in the tree; the caller counts the lookup if there was one."""
        inode = self._by_node.get(node)
        if inode is None:
            self._last_number += 1
            inode = Inode(self._last_number, node)
            self._by_node[node] = inode
            self._by_number[inode.number] = inode
        return inode

    def forget(self, number: int, lookups: int) -> None:
        if number == pyfuse3.ROOT_INODE:
            return
        inode = self._by_number[number]
        inode.lookups -= lookups
        if not inode.lookups and len(self) >= self._sweep_at:
            self._sweep()

    def _sweep(self) -> None:
        """Here and not in a lookup, so that a directory that fails to list itself costs no request."""
        self._sweep_at = 2 * len(self)
        listed = set(_walk(self._root))
        gone = [inode for inode in self._by_number.values() if not inode.lookups and inode.node not in listed]
        for inode in gone:
            del self._by_number[inode.number], self._by_node[inode.node]
        self._sweep_at = max(_SWEEP_LEAST, 2 * len(self))


def _walk(directory: Directory) -> Iterator[Node]:
    yield directory
    for child in directory.children().values():
        if isinstance(child, Directory):
            yield from _walk(child)
        else:
            yield child
