"""What of a lost top is not in the image that is to take its place."""

import pytest

from ploopfs.device.ownership import vanished_slots
from ploopfs.image.bat import Bat
from ploopfs.image.header import Header
from ploopfs.testing.images import ImageBuilder
from tests.device.rig import cluster_of


def bat(disk_clusters: int, *slots: int) -> Bat:
    data = ImageBuilder(disk_clusters, clusters={slot: cluster_of(b"x") for slot in slots}).build()
    header = Header.parse(data, "/image")
    return Bat(header, data[: header.bat_area_bytes])


@pytest.mark.parametrize(
    ("old", "new", "replayed", "vanished"),
    [
        (bat(8, 1, 6), bat(4, 1), (), 1),
        (bat(8, 1, 6), bat(4, 1), (6,), 0),
        (bat(8, 1, 6), bat(4, 1), (2,), 1),
        (bat(8, 4), bat(4), (0,), 1),
        (bat(8, 4), bat(4), (4,), 0),
        (bat(4, 1), bat(8, 1, 6), (), 0),
        (bat(4, 1, 2), bat(4, 2), (), 2),
        (bat(4, 1, 2), bat(4, 2), (1, 2), 0),
        (bat(4), bat(4, 3), (), 0),
    ],
)
def test_every_entry_counts_that_is_gone_or_elsewhere_and_is_not_written_again_also_beyond_the_new_map(
    old: Bat, new: Bat, replayed: tuple[int, ...], vanished: int
) -> None:
    assert vanished_slots(old, new, replayed) == vanished


def test_a_raw_image_has_no_entries_that_could_vanish() -> None:
    assert vanished_slots(None, bat(4), ()) == vanished_slots(bat(4, 1), None, ()) == 0
