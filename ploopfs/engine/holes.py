"""Which parts of a file are holes already, for a command line that would make some. Blocking.

A storage that does not know says that all is data.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ploopfs.engine.confined import ANYWHERE, close_image, open_image
from ploopfs.errors import BackendError
from ploopfs.image.repair import HasData


@contextmanager
def known_holes(path: str) -> Iterator[HasData]:
    """Raises BackendError if the file cannot be opened, and BadImage if it is none."""
    try:
        fd = open_image(path, os.O_RDONLY | os.O_NONBLOCK, ANYWHERE)
    except OSError as error:
        raise BackendError.of(error, "open", path) from error

    def has_data(start: int, end: int) -> bool:
        try:
            return os.lseek(fd, start, os.SEEK_DATA) < end
        except OSError as error:
            # Nothing but a hole up to the end of the file; or a storage that cannot say.
            return error.errno != errno.ENXIO

    try:
        yield has_data
    finally:
        close_image(fd)
