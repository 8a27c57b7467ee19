"""What a user of a file system may believe, shown without any disk of ours."""

import errno
import os
from pathlib import Path

import pytest

from tests.mounted.blocks import EXT4, looped, mounted, run
from tests.mounted.daemon import opened
from tests.mounted.storage import store
from tests.realparts import need
from tests.torture.files import sync

pytestmark = pytest.mark.real


def test_a_directory_is_not_synced_by_an_ext4_that_has_given_up(tmp_path: Path) -> None:
    """Its fsync(2) alone says that it is (Linux 6.18), and the removed file is there again."""
    need(commands=("bindfs", EXT4.make[0]), fuse=True, loop=True, file_systems=("ext4",))
    place = tmp_path / "fs"
    with store(tmp_path) as bindfs:
        image = bindfs.bricks / "disk"
        with image.open("wb") as file:
            file.truncate(EXT4.disk_bytes)
        run(*EXT4.make, image)
        with looped(bindfs.path / "disk", direct_io=False) as block, mounted(block, place):
            for name in ("mine", "other"):
                (place / name).mkdir()
                (place / name / "file").touch()
            os.sync()
            with opened(place / "mine", os.O_RDONLY) as mine, opened(place / "other", os.O_RDONLY) as other:
                bindfs.kill()
                for name in ("mine", "other"):
                    (place / name / "file").unlink()
                with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                    os.fsync(other)
                with pytest.raises(OSError, match=f"{os.strerror(errno.EIO)}|{os.strerror(errno.EROFS)}"):
                    sync(mine)
        with looped(image, direct_io=False) as block, mounted(block, place):
            assert (place / "mine/file").exists()
