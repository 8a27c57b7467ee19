"""The two ways that the data of a disk may take: a FUSE connection of its own, and the one of the tree.

A test that takes a `plane` holds for both.
"""

from collections.abc import Sequence

OWN, TREE = "own", "pyfuse3"
PLANES = (OWN, TREE)


def carried_by(plane: str) -> Sequence[str]:
    """Options of `ploopfs mount`."""
    return ("--data-plane", plane)
