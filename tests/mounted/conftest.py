"""What every mounted test needs of the machine, and the store that some of them lose."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.storage import Bindfs, store
from tests.realparts import need


@pytest.fixture(scope="session", autouse=True)
def _parts() -> None:
    need(commands=("qemu-img",), fuse=True, root=True)


@pytest.fixture
def bindfs(tmp_path: Path) -> Iterator[Bindfs]:
    need(commands=("bindfs",))
    with store(tmp_path) as running:
        yield running
