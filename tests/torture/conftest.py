"""What every torture needs of the machine."""

import pytest

from tests.realparts import need


@pytest.fixture(scope="session", autouse=True)
def _parts() -> None:
    need(commands=("qemu-img",), fuse=True, root=True)
