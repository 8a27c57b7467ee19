"""What a disk should hold: its bytes, and who owns each cluster. Says nothing about how the engine gets there."""

from enum import Enum

CLUSTER_BYTES = 32768


class Owner(Enum):
    NOBODY = "nobody"
    LOWER = "lower"
    TOP = "top"


class Model:
    """`alone`: the top is the only image, so a discard gives a cluster back. A `raw` image alone owns everything.
    `lower` says which clusters each level below the top has, base first, and `merged` which one had that went since the
    images were opened: they are not given back."""

    def __init__(self, content: bytes, owners: list[Owner], *, alone: bool, raw: bool) -> None:
        self.content = bytearray(content)
        self.owners = owners
        self.alone = alone
        self.raw = raw
        self.lower: list[set[int]] = []
        self.merged: set[int] = set()

    def __len__(self) -> int:
        return len(self.content)

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data
        for slot in range(offset // CLUSTER_BYTES, -(-(offset + len(data)) // CLUSTER_BYTES)):
            start = max(0, slot * CLUSTER_BYTES - offset)
            part = data[start : (slot + 1) * CLUSTER_BYTES - offset]
            # Zeroes to a cluster that nobody has change nothing.
            if self.owners[slot] is not Owner.NOBODY or any(part):
                self.owners[slot] = Owner.TOP

    def discard(self, offset: int, length: int) -> None:
        for slot in range(-(-offset // CLUSTER_BYTES), (offset + length) // CLUSTER_BYTES):
            if self.owners[slot] is Owner.TOP:
                self.content[slot * CLUSTER_BYTES : (slot + 1) * CLUSTER_BYTES] = bytes(CLUSTER_BYTES)
                if self.alone and not self.raw and slot not in self.merged:
                    self.owners[slot] = Owner.NOBODY

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        end = offset + length
        first, last = -(-offset // CLUSTER_BYTES), end // CLUSTER_BYTES
        if not unmap or self.raw or first >= last:
            self.write(offset, bytes(length))
            return
        self.write(offset, bytes(first * CLUSTER_BYTES - offset))
        self.write(last * CLUSTER_BYTES, bytes(end - last * CLUSTER_BYTES))
        for slot in range(first, last):
            self.content[slot * CLUSTER_BYTES : (slot + 1) * CLUSTER_BYTES] = bytes(CLUSTER_BYTES)
            shows_through = any(slot in level for level in (*self.lower, self.merged))
            self.owners[slot] = Owner.TOP if shows_through else Owner.NOBODY

    def grow(self, clusters: int) -> None:
        new = clusters - len(self.owners)
        self.content.extend(bytes(new * CLUSTER_BYTES))
        self.owners.extend([Owner.TOP if self.raw else Owner.NOBODY] * new)

    def snapshot(self) -> None:
        self.lower.append({slot for slot, owner in enumerate(self.owners) if owner is Owner.TOP})
        self.owners = [Owner.NOBODY if owner is Owner.NOBODY else Owner.LOWER for owner in self.owners]
        self.alone = self.raw = False
