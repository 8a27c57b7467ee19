"""What is measured together: the peers on one kind of image, the depths of a stack, and standby's check in and out.

Knows how peers and images are put together, and no output. Invariant: every server of a group serves while another one
is measured, idle, so that none has the machine more for itself than the others.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from ploopfs.bounds import MIB, UNFLUSHED_MIB
from tests.bench.cases import CHECKED, DEEP, FULL, STACK_DEPTHS, USING_UP, Case, Image, Plan
from tests.bench.fio import deep_engine
from tests.bench.images import Tell, copy, empty_image, full_file, full_image, stack, warm
from tests.bench.measure import Cost, Results, by_fio, cost, joined, measure
from tests.bench.peers import DEVICE, FILE, QEMU, Peer, Start, all_peers, ours
from tests.mounted.daemon import Daemon

VDISKS = "sys/kernel/scst_tgt/handlers/vdisk_blockio/mgmt"


def compare(image: Image, place: Path, plan: Plan, tell: Tell) -> Results:
    """The cases of this kind of image, on every peer that can have it."""
    cases = [case for case in (*FULL, *USING_UP) if case.image is image]
    starts = all_peers()
    if image is Image.OVER:
        # Neither has a lower delta.
        starts = {name: start for name, start in starts.items() if name not in (QEMU, FILE)}
    place.mkdir()
    size_bytes = plan.disk_bytes(image)
    tell(f"making the images: {image.value}")
    lower = [full_image(place / "lower.hds", size_bytes)] if image is Image.OVER else []
    make = full_image if image is Image.FULL else empty_image
    made = make(place / "made.hds", size_bytes)
    with ExitStack() as servers:
        peers = []
        for number, (name, start) in enumerate(starts.items()):
            tell(f"starting {name}")
            own = place / f"{number}.hds"
            top = _file(own, image, size_bytes) if name == FILE else copy(made, own)
            peers.append(servers.enter_context(start(place / str(number), [*lower, top], size_bytes)))
        _warm(peers)
        return measure(cases, peers, range(plan.runs), by_fio(plan, _deep_engine(peers)), _of_all(plan, tell))


def _of_all(plan: Plan, tell: Tell) -> Tell:
    """Behind which run it is: of how many."""
    return lambda text: tell(f"{text} of {plan.runs}")


def _file(path: Path, image: Image, size_bytes: int) -> Path:
    if image is Image.FULL:
        return full_file(path, size_bytes)
    path.touch()
    os.truncate(path, size_bytes)
    return path


def _warm(peers: Sequence[Peer]) -> None:
    warm(list(dict.fromkeys(image for peer in peers for image in peer.images)))


def _deep_engine(peers: Sequence[Peer]) -> dict[str, str]:
    """That of the peer which has the fewest: all are asked in the same way."""
    return min((deep_engine(peer.disk) for peer in peers), key=lambda engine: engine["ioengine"] != "psync")


def compare_depths(place: Path, plan: Plan, tell: Tell) -> Results:
    """One ploopfs each for stacks of these depths, anew for each round, as two of the same depth differ by up to 16 %
    for as long as they run, by what pages of memory they have; and another depth has the first choice of them in each.
    The peers are called as deep as they are."""
    place.mkdir()
    stacks = {}
    for depth in STACK_DEPTHS:
        tell(f"making a stack of {depth}")
        stacks[depth] = stack(place / f"stack{depth}", plan.size_bytes, depth)
    parts = []
    for run in range(plan.runs):
        with ExitStack() as servers:
            peers = []
            first = run % len(stacks)
            for depth in (*STACK_DEPTHS[first:], *STACK_DEPTHS[:first]):
                deltas = stacks[depth]
                peer = servers.enter_context(ours()(place / f"depth{depth}-{run}", deltas, plan.size_bytes))
                peers.append(Peer(str(depth), peer.disk, peer.images, peer.pids))
            _warm(peers)
            once = by_fio(plan, _deep_engine(peers))
            parts.append(measure(DEEP, peers, range(run, run + 1), once, _of_all(plan, tell)))
    return joined(parts)


def cost_of_check(place: Path, plan: Plan, tell: Tell) -> dict[str, Cost]:
    """Both fuses in against both out, on one device of one daemon. What is written with them in is kept, and a run is
    too short for the flush that this leads to: that is the storage's time, and stands in `compare`. It writes what is
    kept by default, for which a daemon that has run for a while has the memory."""
    place.mkdir()
    image = full_image(place / "image.hds", plan.size_bytes)
    limits: dict[str, object] = {"unflushed_mib": UNFLUSHED_MIB.highest}
    with ours(standby=False, limits=limits)(place / "daemon", [image], plan.size_bytes) as peer:
        assert peer.daemon is not None
        _warm([peer])
        costs = {}
        for case in CHECKED:
            once = by_fio(_checked(case, plan), _deep_engine([peer]))
            tell(f"standby's check, {case.name}: {plan.pairs} pairs")
            costs[case.name] = cost(_fuses(peer.daemon), partial(once, case, peer, 0), plan.pairs)
        return costs


def _checked(case: Case, plan: Plan) -> Plan:
    return replace(plan, io_bytes=UNFLUSHED_MIB * MIB) if case.is_write else replace(plan, seconds=1)


def _fuses(daemon: Daemon) -> Callable[[bool], None]:
    root = daemon.mountpoint / "sys/fs/ploopfs"
    state = [False]

    def switch(on: bool) -> None:
        if state[0] == on:
            return
        state[0] = on
        if on:
            (root / "modprobe").write_text("scst")
            (daemon.mountpoint / VDISKS).write_text(f"add_device bench filename=/dev/{DEVICE}")
        else:
            (daemon.mountpoint / VDISKS).write_text("del_device bench")
            (root / "rmmod").write_text("scst")
        wanted = "off" if on else "not supported"
        assert daemon.value("queue/standby") == wanted, daemon.value("queue/standby")

    return switch


@contextmanager
def one_server(case: Case, plane: str, place: Path, plan: Plan) -> Iterator[tuple[Peer, dict[str, str]]]:
    """For a profile: one of our planes with the image of a case, and how several requests are kept under way."""
    place.mkdir()
    size_bytes = plan.disk_bytes(case.image)
    lower = [full_image(place / "lower.hds", size_bytes)] if case.image is Image.OVER else []
    make = full_image if case.image is Image.FULL else empty_image
    start: Start = all_peers()[plane]
    with start(place / "daemon", [*lower, make(place / "top.hds", size_bytes)], size_bytes) as peer:
        _warm([peer])
        yield peer, _deep_engine([peer])
