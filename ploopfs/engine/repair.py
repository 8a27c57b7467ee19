"""Carries out the plan of a repair (image/repair.py) on one image that nobody else uses.

Invariants. Nothing is written without the exclusive lock. Each part of the plan is on stable storage before the next
begins, so a repair that is cut off anywhere leaves an image that is no worse, and can be begun again. The mark is
cleared only when a second check of the whole image has found nothing else. Knows nothing of stacks."""

import errno

import numpy as np

from ploopfs.engine.checking import Examined, Progress, examine, no_progress
from ploopfs.engine.file import File
from ploopfs.errors import BackendError, RepairFailed
from ploopfs.image.bat import Entries
from ploopfs.image.check import Verdict, judge
from ploopfs.image.header import BAT_ENTRY_BYTES, HEADER_BYTES, IN_USE, MUTABLE_START, Header
from ploopfs.image.repair import HasData, Plan, all_data, plan_repair
from ploopfs.image.survey import NEVER_ON_DISK

_PAGE_WORDS = 16 << 10
_CANNOT_PUNCH = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})


def plan_for(examined: Examined, *, punches: bool = True, has_data: HasData = all_data) -> Plan | None:
    """None where nothing can be repaired: no map, or a conversion that was interrupted. May raise ImageFull.

    The examined image's survey is given away with it."""
    if examined.survey is None or examined.report.verdict is Verdict.CONVERTING:
        return None
    return plan_repair(
        examined.survey,
        extension_problem=examined.extension_problem,
        extension_clusters=examined.extension_clusters,
        punches=punches,
        has_data=has_data,
    )


async def carry_out(file: File, plan: Plan, progress: Progress = no_progress) -> None:
    """`file` is open for writing and locked, and as it was when the plan was made.

    Raises BackendError, the mark still set; RepairFailed if the second check finds anything."""
    size = plan.survey.file_size_bytes
    if plan.is_marking:
        marked = plan.header.changed(in_use=IN_USE, flags=plan.header.flags, extension_sectors=0)
        await _write_header(file, marked)
    lost = plan.cleared_slots[: plan.losses]
    await _put(file, plan, lost, NEVER_ON_DISK)
    if plan.end_bytes > size:
        await file.truncate(plan.end_bytes)
    await _copy(file, plan, progress)
    await _put(file, plan, plan.cleared_slots[plan.losses :], 0)
    await _give_back(file, plan, progress)
    await file.sync()
    await _verify(file, plan, lost, progress)
    await _put(file, plan, lost, 0)
    if plan.is_marking:
        await _write_header(file, plan.closed_header)


async def _put(file: File, plan: Plan, slots: Entries, value: int) -> None:
    if len(slots):
        await _write_entries(file, plan.header, slots, np.full(len(slots), value, np.uint32))
        await file.sync()


async def _copy(file: File, plan: Plan, progress: Progress) -> None:
    """Entries name their copies when those are on stable storage."""
    cluster = plan.header.cluster_bytes
    for at in range(len(plan.copies)):
        source, target = int(plan.originals[at]), int(plan.copies[at])
        await file.write(target * cluster, await file.read(source * cluster, cluster))
        progress("copying shared clusters", at + 1, len(plan.copies))
    if len(plan.copies):
        await file.sync()
        values = plan.copies * np.uint32(plan.header.entry_unit)
        await _write_entries(file, plan.header, plan.copied_slots, values)
        await file.sync()


async def _give_back(file: File, plan: Plan, progress: Progress) -> None:
    cluster = plan.header.cluster_bytes
    try:
        for hole in plan.punched:
            await file.punch(hole.first * cluster, (hole.end - hole.first) * cluster)
            progress("giving leaks back", hole.end * cluster, plan.end_bytes)
    except BackendError as error:
        # A leak is no fault: where the storage cannot make holes it stays.
        if error.errno not in _CANNOT_PUNCH:
            raise
    if plan.end_bytes < plan.survey.file_size_bytes:
        await file.truncate(plan.end_bytes)


async def _verify(file: File, plan: Plan, lost: Entries, progress: Progress) -> None:
    """The image as it is going to be, with the mark and the lost entries cleared, must be clean."""
    again = await examine(file, progress)
    verdict = again.report
    if again.survey is not None and len(lost):
        again.survey.absolve(lost)
    if plan.is_marking and again.survey is not None:
        again.survey.header = plan.closed_header
        verdict = judge(again.survey, file.path, b"")
    if verdict.verdict is not Verdict.CLEAN:
        found = next(iter(verdict.problems), "it is marked in use")
        raise RepairFailed(f"{file.path}: the second check finds: {found}; the image stays as it is")


async def _write_entries(file: File, header: Header, slots: Entries, values: Entries) -> None:
    """In pages; every other entry of a page stays as the file has it. `slots` is ascending."""
    words = slots + np.uint32(HEADER_BYTES // BAT_ENTRY_BYTES)
    first = 0
    while first < len(words):
        page = int(words[first]) // _PAGE_WORDS
        end = int(np.searchsorted(words, (page + 1) * _PAGE_WORDS))
        start = page * _PAGE_WORDS * BAT_ENTRY_BYTES
        data = await file.read(start, min(_PAGE_WORDS * BAT_ENTRY_BYTES, header.bat_area_bytes - start))
        np.frombuffer(data, dtype="<u4")[words[first:end] - page * _PAGE_WORDS] = values[first:end]
        skipped = HEADER_BYTES if page == 0 else 0
        await file.write(start + skipped, memoryview(data)[skipped:])
        first = end


async def _write_header(file: File, header: Header) -> None:
    await file.write(MUTABLE_START, header.raw[MUTABLE_START:])
    await file.sync()
