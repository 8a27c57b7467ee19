"""Where a rehearsal is played: devices on scratch images behind a ploopfs of its own, or those of a mount that exists.

Invariants: an image of the user is never written, as the top is always a scratch delta; whatever happens, no process
and no mount of a stage of our own is left behind, unless it is to be kept.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

import ploopfs
from ploopfs.bounds import END_TIMEOUT_S, LOG_LINES, START_TIMEOUT_S
from ploopfs.cli.rehearse.ledger import BLOCK_BYTES, LANES, Ledger
from ploopfs.cli.tree import Tree
from ploopfs.config.scenario import Scenario, StageDevice
from ploopfs.engine.counters import Counters
from ploopfs.engine.create import create_image
from ploopfs.engine.inspect import ImageInfo, inspect_stack
from ploopfs.engine.opening import RAW_PREFIX, open_stack, resolve
from ploopfs.engine.os_file import OsFiles
from ploopfs.errors import BadImage, MountError, Unmet
from ploopfs.fuse.mountpoint import State, inspect_mountpoint
from ploopfs.image.header import SECTOR_BYTES, V2

CLUSTER_SECTORS = 128
FILLED_BLOCKS = 48
"""Of each scratch delta, so that there is something to read in all of them."""

_WRAPPER = "#!/bin/sh\nPYTHONPATH={path} exec {python} -m ploopfs \"$@\"\n"


@dataclass(slots=True)
class Actor:
    """One device of the stage. `images` is base first, and empty where the mount existed before; `lower` is what the
    files below the top were when it was made: nobody may write to them."""

    name: str
    ledger: Ledger
    images: list[str] = field(default_factory=list)
    lower: "list[tuple[int, int]]" = field(default_factory=list)


@dataclass(slots=True)
class Stage:
    """`scratch` is a directory for whatever a step makes; `process` is None where the mount existed before."""

    tree: Tree
    actors: dict[str, Actor]
    scratch: str
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def is_own(self) -> bool:
        return self.process is not None

    def environment(self, device: str) -> dict[str, str]:
        """What a command of the user finds; `ploopfs` is in its PATH."""
        mount = self.tree.mountpoint
        facts = {
            "PLOOPFS_MOUNT": mount,
            "PLOOPFS_DEVICE": device,
            "PLOOPFS_SYSFS": f"{mount}/sys/block/{device}",
            "PLOOPFS_DISK": f"{mount}/dev/{device}",
            "PLOOPFS_IMAGE": self.top(device),
            "PLOOPFS_SCRATCH": self.scratch,
        }
        return os.environ | facts | {"PATH": f"{self.scratch}/bin:{os.environ.get('PATH', os.defpath)}"}

    def top(self, device: str) -> str:
        """The path of the top image that is in force, or was at the start where the tree does not say."""
        levels = self.tree.levels(device)
        images = [level.path for level in levels] or self.actors[device].images
        return images[-1] if images else ""

    def log_end(self) -> str:
        """The last lines of what our own daemon has said."""
        try:
            lines = Path(f"{self.scratch}/log").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-LOG_LINES:])

    def end(self) -> None:
        """Unmount a mount of our own and look at its images. Raises Unmet for whatever is not as it should be."""
        if self.process is None:
            return
        stacks = {name: [*actor.images[:-1], self.top(name)] for name, actor in self.actors.items()}
        self.tree.unmount(END_TIMEOUT_S)
        try:
            code = self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Unmet(f"the daemon did not end within {END_TIMEOUT_S} s") from None
        if code:
            raise Unmet(f"the daemon exited with {code}: an image was not closed")
        for name, images in stacks.items():
            _check_closed(images[-1])
            if _lower_files(images) != self.actors[name].lower:
                raise Unmet(f"{name}: a file below its top was changed: {', '.join(images[:-1])}")
            trio.run(_check_content, images, self.actors[name].ledger, name)


def _lower_files(images: Sequence[str]) -> "list[tuple[int, int]]":
    """Size and time of change of each."""
    found = [os.stat(image.removeprefix(RAW_PREFIX)) for image in images[:-1]]
    return [(status.st_size, status.st_mtime_ns) for status in found]


def _check_closed(image: str) -> None:
    info = trio.run(_inspect, image)
    if info.exit_code or info.problems:
        raise Unmet(f"{image}: the check exits with {info.exit_code}: {'; '.join(info.problems)}")
    if info.header is not None and info.header.is_marked_in_use:
        raise Unmet(f"{image}: is still marked in use")
    if shutil.which("qemu-img") is not None:
        command = ["qemu-img", "check", "-f", "parallels", image]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        if checked.returncode:
            raise Unmet(f"{image}: qemu-img check exits with {checked.returncode}: {checked.stdout.strip()}")


async def _check_content(images: Sequence[str], ledger: Ledger, device: str) -> None:
    """Every acknowledged byte is in the images, whatever the daemon had in memory."""
    files = OsFiles()
    stack = await open_stack(files, await resolve(files, list(images)), read_only=True, counters=Counters())
    try:
        for block in ledger:
            if not ledger.fits(block, bytes(await stack.read(block * BLOCK_BYTES, BLOCK_BYTES))):
                raise Unmet(f"{device}: the {BLOCK_BYTES} bytes at {block * BLOCK_BYTES} are not in its images")
    finally:
        await stack.aclose(clean=False)


async def _inspect(image: str) -> ImageInfo:
    files = OsFiles()
    [info] = await inspect_stack(files, await resolve(files, [image]))
    return info


# --- a mount that exists ------------------------------------------------------------------------------------------


@contextmanager
def existing_stage(scenario: Scenario, mountpoint: str) -> Iterator[Stage]:
    """The devices of the scenario must be there; nothing is known of what they hold."""
    tree = Tree.find(mountpoint)
    actors = {}
    for device in scenario.devices:
        size_bytes = int(tree.attribute(device.name, "size")) * SECTOR_BYTES
        actors[device.name] = Actor(device.name, Ledger(size_bytes))
    with tempfile.TemporaryDirectory(prefix="ploopfs-rehearsal.") as scratch:
        _put_wrapper(scratch)
        yield Stage(tree, actors, scratch)


# --- one of our own -----------------------------------------------------------------------------------------------


@contextmanager
def own_stage(scenario: Scenario, *, keep: bool) -> Iterator[Stage]:
    """Makes the images, mounts them, and at the end takes everything away again, unless it is to be kept."""
    scratch = tempfile.mkdtemp(prefix="ploopfs-rehearsal.")
    process: subprocess.Popen[bytes] | None = None
    mountpoint = f"{scratch}/mnt"
    kept = False
    try:
        _put_wrapper(scratch)
        actors = {device.name: _make_images(device, f"{scratch}/{device.name}") for device in scenario.devices}
        config = Path(f"{scratch}/config.yaml")
        config.write_text(json.dumps(_config_of(scenario, actors), indent=2))
        os.mkdir(mountpoint)
        process = _start(config, mountpoint, f"{scratch}/log")
        yield Stage(Tree(mountpoint), actors, scratch, process)
        kept = keep
    finally:
        if not kept:
            if process is not None:
                _end(process, mountpoint)
            shutil.rmtree(scratch)


def _make_images(device: StageDevice, directory: str) -> Actor:
    os.mkdir(directory)
    images = trio.run(_given_images, device.image) if device.image else []
    size_sectors, cluster_sectors, version = device.size_mib << 11, CLUSTER_SECTORS, V2
    if images:
        last = images[-1]
        size_sectors = last.file_size_bytes // SECTOR_BYTES
        if last.header is not None:
            size_sectors, cluster_sectors = last.header.size_sectors, last.header.cluster_sectors
            version = last.header.version
    paths = [image.path for image in images]
    if paths and images[0].header is None:
        paths[0] = RAW_PREFIX + paths[0]
    actor = Actor(device.name, Ledger(size_sectors * SECTOR_BYTES), paths)
    for level in range(len(paths), len(paths) + device.depth):
        paths.append(f"{directory}/level{level}.hds")
        create_image(paths[-1], size_sectors=size_sectors, cluster_sectors=cluster_sectors, version=version)
        trio.run(_fill, list(paths), actor.ledger, level)
    actor.lower = _lower_files(paths)
    return actor


async def _given_images(given: Sequence[str]) -> list[ImageInfo]:
    files = OsFiles()
    return await inspect_stack(files, await resolve(files, given[0] if len(given) == 1 else list(given)))


async def _fill(images: list[str], ledger: Ledger, seed: int) -> None:
    files, random = OsFiles(), Random(seed)
    stack = await open_stack(files, await resolve(files, images), read_only=False, counters=Counters())
    if stack.read_only:
        await stack.aclose(clean=False)
        raise BadImage(images[0], "its stack", "in use or was not closed", "a stack that nobody uses")
    for lane in range(FILLED_BLOCKS):
        block, data = ledger.draw(random, lane % LANES), random.randbytes(BLOCK_BYTES)
        await stack.write(block * BLOCK_BYTES, data)
        ledger.acknowledged(block, data)
    await stack.aclose(clean=True)


def _config_of(scenario: Scenario, actors: dict[str, Actor]) -> dict[str, object]:
    """JSON is YAML."""
    devices = [
        {
            "name": device.name,
            "flavour": device.flavour,
            "image": actors[device.name].images,
            "standby": device.standby,
            "on_standby": device.on_standby,
            "hold_timeout_ms": device.hold_timeout_ms,
            "recovery": device.recovery or "manual",
        }
        for device in scenario.devices
    ]
    return {"scst": {"loaded": True}, "devices": devices}


def _put_wrapper(scratch: str) -> None:
    os.mkdir(f"{scratch}/bin")
    wrapper = Path(f"{scratch}/bin/ploopfs")
    wrapper.write_text(_WRAPPER.format(path=shlex.quote(_import_path()), python=shlex.quote(sys.executable)))
    wrapper.chmod(0o755)


def _import_path() -> str:
    assert ploopfs.__file__ is not None
    return os.path.dirname(os.path.dirname(os.path.abspath(ploopfs.__file__)))


def _start(config: Path, mountpoint: str, log: str) -> "subprocess.Popen[bytes]":
    """In a session of its own: an interrupt is for the rehearsal, which ends the daemon in order."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ploopfs", "mount", os.fspath(config), mountpoint],
            env=os.environ | {"PYTHONPATH": _import_path()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + START_TIMEOUT_S
    try:
        # Not as soon as the tree answers: its disks do not yet, and it could be unmounted before it was served.
        while f"{mountpoint} is ready\n" not in Path(log).read_text(errors="replace"):
            if process.poll() is not None:
                raise MountError(f"the daemon ended: {Path(log).read_text(errors='replace').strip()}")
            if time.monotonic() > deadline_s:
                raise MountError(f"{mountpoint}: nothing was mounted within {START_TIMEOUT_S} s")
            time.sleep(0.02)
    except BaseException:
        _end(process, mountpoint)
        raise
    return process


def _end(process: "subprocess.Popen[bytes]", mountpoint: str) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if inspect_mountpoint(mountpoint) is State.STALE:
        subprocess.run(["umount", "-l", mountpoint], check=False)
