"""The values of the flavours."""

import errno

import pytest

from ploopfs.device.flavour import BLOCK, FLAVOURS, VZ7, VZ9, Flavour
from ploopfs.device.stats import Op


@pytest.mark.parametrize("name", ["ploop0", "ploop1", "ploop10", "ploop65535"])
def test_a_device_name_is_ploop_and_a_number(name: str) -> None:
    assert VZ7.device_name.fullmatch(name)


@pytest.mark.parametrize("name", ["", "ploop", "ploop01", "ploop-1", "ploop1p1", "xploop1", "ploop1\n", "dm-0"])
def test_other_names_are_none_of_vz7(name: str) -> None:
    assert not VZ7.device_name.fullmatch(name)


def test_each_disk_has_sixteen_minors() -> None:
    assert (VZ7.major, VZ7.minor("ploop0"), VZ7.minor("ploop3")) == (182, 0, 48)


@pytest.mark.parametrize("storage_errno", [errno.EBUSY, errno.ENOTCONN, errno.EIO, errno.ENOSPC])
def test_the_failing_request_gets_the_storages_errno_and_a_failed_flush_eio(storage_errno: int) -> None:
    assert {op: VZ7.request_errno(op, storage_errno) for op in Op} == {
        Op.READ: storage_errno,
        Op.WRITE: storage_errno,
        Op.DISCARD: storage_errno,
        Op.FLUSH: errno.EIO,
    }


@pytest.mark.parametrize("flavour", [VZ9, BLOCK], ids=["vz9", "block"])
@pytest.mark.parametrize(
    ("storage_errno", "answer"),
    [
        (errno.EBUSY, errno.EBUSY),
        (errno.ENOTCONN, errno.EIO),
        (errno.EIO, errno.EIO),
        (errno.ENOSPC, errno.ENOSPC),
        (errno.ETIMEDOUT, errno.ETIMEDOUT),
        (errno.EROFS, errno.EIO),
    ],
)
def test_through_the_block_layer_only_what_has_a_status_of_its_own_stays(
    flavour: Flavour, storage_errno: int, answer: int
) -> None:
    assert {flavour.request_errno(op, storage_errno) for op in Op} == {answer}


def test_a_flavour_is_found_by_its_name() -> None:
    assert FLAVOURS["vz7"] is VZ7
    assert all(name == flavour.name for name, flavour in FLAVOURS.items())
