"""What must be true of every disk whenever nobody can go on by himself, and what must be left when all is over.

Knows nothing of who did what. Each check raises Violation.
"""

from itertools import pairwise

import trio

from ploopfs.device.stats import Op
from ploopfs.device.unflushed import CHANGE_BYTES
from ploopfs.device.waiting import Kind
from tests.storm.trace import Violation
from tests.storm.world import BOUNDS, HOLD_TIMEOUT_MS, Disk, World
from tests.sysfs.fakes import text_of


def check(world: World) -> None:
    for disk in world.disks.values():
        _check_standby(world, disk)
        _check_waiting(disk)
        _check_counts(world, disk)


def _check_standby(world: World, disk: Disk) -> None:
    standby = disk.device.queue.standby
    disk.rules.check(standby.state)
    shown = text_of(world.tree, f"{disk.directory}/queue/standby")
    if shown != f"{standby.state.value}\n":
        raise Violation(f"{disk.name}: queue/standby reads {shown!r} in the state {standby.state.name}")
    lines = world.log.lines.get((disk.name, "on"), 0), world.log.lines.get((disk.name, "off"), 0)
    expected = disk.rules.times_on, disk.rules.times_left - disk.rules.times_detached
    if lines != expected:
        raise Violation(f"{disk.name}: {lines} log lines of transitions into and out of standby, expected {expected}")


def _check_waiting(disk: Disk) -> None:
    queue, room, now_s = disk.device.queue, disk.device.queue.room, trio.current_time()
    tickets = room._tickets
    held = [ticket for ticket in tickets if ticket.held_since_s is not None]
    if (room.held, room.held_bytes) != (len(held), sum(ticket.data_bytes for ticket in held)):
        raise Violation(f"{disk.name}: held and held_bytes do not add up")
    if room.held > BOUNDS.held_requests or room.held_bytes > BOUNDS.held_bytes:
        raise Violation(f"{disk.name}: {room.held} requests and {room.held_bytes} bytes are held")
    if any(later.order < earlier.order for earlier, later in pairwise(tickets)):
        raise Violation(f"{disk.name}: requests wait in another order than they came")
    for ticket in tickets:
        latest_s = now_s + BOUNDS.park_timeout_s
        if ticket.kind is Kind.HELD:
            assert ticket.held_since_s is not None
            latest_s = ticket.held_since_s + HOLD_TIMEOUT_MS / 1000
        if not now_s <= ticket._deadline_s <= latest_s:
            raise Violation(f"{disk.name}: a request waits {ticket.kind.value} beyond its bound")
    is_shut = queue.suspended or queue.is_stopped or queue.standby.refuses
    if tickets and not is_shut and not queue.stats.in_flight:
        raise Violation(f"{disk.name}: {len(tickets)} requests wait for nothing")


def _check_counts(world: World, disk: Disk) -> None:
    device = disk.device
    stats, unflushed = device.stats, device.unflushed
    in_flight = sum(stats.by_op[op].in_flight for op in Op)
    if stats.in_flight != in_flight or in_flight < 0:
        raise Violation(f"{disk.name}: {stats.in_flight} requests in flight, by kind {in_flight}")
    data_bytes = sum(len(change.data) for change in unflushed if change.data is not None)
    if unflushed.data_bytes != data_bytes or unflushed.data_bytes < 0:
        raise Violation(f"{disk.name}: unflushed_bytes is {unflushed.data_bytes}, and {data_bytes} are kept")
    memory_bytes = data_bytes + len(unflushed) * CHANGE_BYTES
    if unflushed.memory_bytes != memory_bytes:
        raise Violation(f"{disk.name}: {unflushed.memory_bytes} bytes are said to be kept, and {memory_bytes} are")
    reads = world.answers[disk.name, "read"]
    if stats.by_op[Op.READ].ios != reads:
        raise Violation(f"{disk.name}: {stats.by_op[Op.READ].ios} reads were counted, {reads} were answered")
    difference = disk.counted.differs(text_of(world.tree, f"{disk.directory}/stat"))
    if difference:
        raise Violation(f"{disk.name}: {difference}")


def check_nobody_left(disk: Disk) -> None:
    queue = disk.device.queue
    in_flight = queue.stats.in_flight - disk.device.flusher.in_flight
    left = (in_flight, len(queue.room), queue.room.held, queue.room.held_bytes, disk.requests)
    if any(left):
        raise Violation(f"{disk.name}: in flight, waiting, held, held bytes, asked: {left} at the end")


def check_nothing_open(world: World) -> None:
    """After everything was closed; what was given up is never closed."""
    for file in world.stores.open_files:
        if not file.abandoned:
            raise Violation(f"{file.path}: is open at the end")
    given_up = {file.path for file in world.stores.open_files}
    for path in world.platter.images:
        if world.platter.locks(path) and path not in given_up:
            raise Violation(f"{path}: is locked at the end")
