"""`ploopfs`: the verbs, their arguments, and how their failures become messages and exit codes."""

import argparse
import io
import sys
from collections.abc import Callable, Sequence

from ploopfs import __version__
from ploopfs.bounds import MAX_LAST_EVENTS, MAX_TIMEOUT_S
from ploopfs.cli import check, client, events, exec, images, inject, reload, serve, why
from ploopfs.cli.exits import EPILOG, Exit, drop_output, failed, interrupted, open_standard_streams
from ploopfs.cli.rehearse import verb as rehearse
from ploopfs.config.schema import DATA_PLANES
from ploopfs.device.events import EVENTS
from ploopfs.device.standby import State
from ploopfs.device.verify import Verify
from ploopfs.errors import PloopError
from ploopfs.image.header import DEFAULT_CLUSTER_SECTORS, VERSIONS, is_valid_cluster_size

MOUNT_OPTIONS = ("allow_other",)
LOG_LEVELS = ("debug", "info", "warning", "error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    open_standard_streams()
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The name of a file may be any bytes, and leaves as it came.
        sys.stdout.reconfigure(errors="surrogateescape")
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = run(arguments)
        sys.stdout.flush()
    except BaseExceptionGroup as group:
        _, unexpected = group.split((PloopError, OSError, KeyboardInterrupt))
        if unexpected is not None:
            raise
        code = _ended(_first(group))
    except (PloopError, OSError, KeyboardInterrupt) as error:
        code = _ended(error)
    return code


def _ended(error: BaseException) -> int:
    """What did not end well, said and as an exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
    match error:
        case KeyboardInterrupt():
            return interrupted(error)
        case BrokenPipeError():  # who read us has seen enough
            return Exit.FAILED
        case _:
            return failed(error)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ploopfs",
        description="Serve ploop images as block devices with a sysfs-like tree and the kernel's standby mode.",
        epilog=f"example:\n  ploopfs mount config/vz7.yaml /mnt/ploop\n\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ploopfs {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_mount(verbs)
    _add_verbs_that_show(verbs)
    _add_verbs_that_act(verbs)
    _add_image_verbs(verbs)
    inject.add_arguments(
        _verb(
            verbs,
            "inject",
            inject.run,
            "make the storage below a device fail, delay or hang, and list and remove such rules",
            "ploopfs inject ploop0 --op READ --errno EBUSY --count 3",
            json=True,
        )
    )
    rehearse.add_arguments(
        _verb(
            verbs,
            "rehearse",
            rehearse.run,
            "play a scenario of faults and recovery, and say whether everything went as expected",
            "ploopfs rehearse config/scenarios/lease-stolen.yaml --command ./my-recovery.sh",
            json=True,
        )
    )
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    example: str,
    *,
    json: bool = False,
    codes: str = EPILOG,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}\n\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_mount(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    mount = _verb(
        verbs,
        "mount",
        serve.mount,
        "serve a configuration's devices at a mountpoint",
        "ploopfs mount config/vz7.yaml /mnt/ploop",
    )
    mount.add_argument("config", metavar="CONFIG", help="the YAML configuration")
    mount.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    mount.add_argument(
        "-d", "--daemon", action="store_true", help="return when the tree is there; serve in the background"
    )
    mount.add_argument(
        "--replace-stale", action="store_true", help="clear the mount of a daemon that died at MOUNTPOINT"
    )
    mount.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        choices=MOUNT_OPTIONS,
        help="mount option: allow_other lets other users in, as far as the modes allow",
    )
    mount.add_argument(
        "--data-plane",
        choices=DATA_PLANES,
        help="what serves the disks: a FUSE connection for each disk, or the tree's; default: as CONFIG says (own)",
    )
    mount.add_argument("--log-level", choices=LOG_LEVELS, default="info", help="default: info")
    mount.add_argument("--log-file", metavar="FILE", help="default: standard error; with -d the system log")
    umount = _verb(
        verbs,
        "umount",
        client.umount,
        "unmount a tree and wait for its images to be closed",
        "ploopfs umount /mnt/ploop",
    )
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    umount.add_argument("--timeout", type=_seconds, default=60, metavar="S", help="seconds to wait, default 60")


def _add_verbs_that_show(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    _verb(verbs, "list", client.list_devices, "list the devices of all mounted trees", "ploopfs list --json", json=True)
    status = _verb(
        verbs, "status", client.status, "what each device is in, since when, and why", "ploopfs status", json=True
    )
    status.add_argument("device", metavar="DEV", nargs="?", help="default: every device")
    reason = _verb(
        verbs,
        "why",
        why.why,
        "one device on one screen: what it is in, what failed first, what to type next",
        "ploopfs why ploop0",
        json=True,
    )
    reason.add_argument("device", metavar="DEV")
    watch = _verb(verbs, "watch", events.watch, "follow what happens", "ploopfs watch ploop0 --last 20", json=True)
    watch.add_argument("device", metavar="DEV", nargs="?", help="default: every device")
    watch.add_argument("--last", type=_count, default=10, metavar="N", help="begin with the last N or all; default 10")
    watch.add_argument("--no-follow", action="store_true", help="end after those")
    wait = _verb(
        verbs,
        "wait",
        client.wait,
        "wait until queue/standby reads a state, a request is held, or something happens",
        "ploopfs wait ploop0 --for off --timeout 60",
        json=True,
    )
    wait.add_argument("device", metavar="DEV")
    until = wait.add_mutually_exclusive_group(required=True)
    states = [*(state.value for state in State), client.HELD]
    until.add_argument(
        "--for", dest="state", choices=states, metavar="STATE", help=f"one of {', '.join(map(repr, states))}"
    )
    until.add_argument("--event", choices=sorted(EVENTS), metavar="NAME", help=f"the next {', '.join(sorted(EVENTS))}")
    wait.add_argument("--timeout", type=_seconds, metavar="S", help="seconds; default: for ever")
    metrics = _verb(
        verbs,
        "metrics",
        client.metrics,
        "what all devices count, in the text format of Prometheus",
        "ploopfs metrics -m /mnt/ploop > /var/lib/node_exporter/ploopfs.prom",
        json=True,
    )
    for parser in (status, reason, watch, wait, metrics):
        _add_mount_option(parser)


def _add_verbs_that_act(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    replace = _verb(
        verbs,
        "replace",
        client.replace,
        "put another image in the place of the top delta, or of another one",
        "ploopfs replace ploop0 /copy/top.hds",
    )
    replace.add_argument("device", metavar="DEV")
    replace.add_argument("path", metavar="PATH", help="the new image")
    replace.add_argument("--level", type=int, metavar="N", help="the delta that it replaces; default: the top")
    replace.add_argument(
        "--verify",
        choices=[how.value for how in Verify],
        default=Verify.NONE.value,
        help="what to compare with the old delta first, where that can be read; default: none",
    )
    reopen = _verb(verbs, "reopen", client.reopen, "open the top delta's own path again", "ploopfs reopen ploop0")
    reopen.add_argument("device", metavar="DEV")
    for parser in (replace, reopen):
        _add_mount_option(parser)
    again = _verb(
        verbs,
        "reload",
        reload.reload,
        "have the daemon read its configuration again, and say what came of it",
        "ploopfs reload -m /mnt/ploop",
        json=True,
    )
    again.add_argument("--timeout", type=_seconds, default=120, metavar="S", help="seconds to wait, default 120")
    _add_mount_option(again)
    execute = _verb(
        verbs,
        "exec",
        exec.execute,
        "run a command where /sys, /dev and /proc show a tree's disks beside the real ones",
        "ploopfs exec /mnt/ploop -- sh -c 'cat /sys/block/*/queue/standby'",
    )
    execute.add_argument("mountpoint", metavar="MOUNTPOINT")
    execute.add_argument("command", metavar="-- CMD", nargs=argparse.PARSER, help="the command and its arguments")


def _add_mount_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--mount", metavar="MOUNTPOINT", help="needed if several trees are mounted")


def _add_image_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    create = _verb(
        verbs,
        "create",
        images.create,
        "make an empty disk (a directory) or, if PATH has a suffix, one image file",
        "ploopfs create 10G /vz/disk",
        json=True,
    )
    create.add_argument("size", metavar="SIZE", type=images.sectors, help="NUMBER[KMGT]; a bare number counts sectors")
    create.add_argument(
        "path", metavar="PATH", help="a directory, its DiskDescriptor.xml, or an image file such as top.hds"
    )
    create.add_argument(
        "--cluster-size",
        type=_cluster_sectors,
        default=DEFAULT_CLUSTER_SECTORS,
        metavar="SIZE",
        help="32K to 64M, a power of two; default 1M",
    )
    create.add_argument("--format-version", type=int, choices=sorted(VERSIONS), default=2, help="default 2")
    snapshot = _verb(
        verbs,
        "snapshot",
        images.snapshot,
        "freeze the top of a disk and put an empty delta on it",
        "ploopfs snapshot /vz/disk",
        json=True,
    )
    snapshot.add_argument("path", metavar="PATH", help="the disk's directory or its DiskDescriptor.xml")
    resize = _verb(
        verbs, "resize", images.resize, "let an image that nobody uses grow", "ploopfs resize 20G top.hds", json=True
    )
    resize.add_argument("size", metavar="SIZE", type=images.sectors, help="NUMBER[KMGT], a bare number in sectors")
    resize.add_argument("path", metavar="IMAGE", help="an image file, or raw@IMAGE; no descriptor is changed")
    info = _verb(
        verbs, "info", images.info, "what the images of a stack say of themselves", "ploopfs info /vz/disk", json=True
    )
    check.add_arguments(
        _verb(
            verbs,
            "check",
            check.check,
            "whether an image or a stack is sound, and on demand repair it",
            "ploopfs check --repair /vz/disk",
            json=True,
            codes=check.EPILOG,
        )
    )
    info.add_argument(
        "paths", metavar="PATH", nargs="+", help="a disk's directory or DiskDescriptor.xml, or image files, base first"
    )


def _count(text: str) -> int | None:
    if text != "all" and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return None if text == "all" else min(int(text), MAX_LAST_EVENTS)


def _seconds(text: str) -> float:
    """What poll(2) can wait for: NaN, which compares with nothing, is refused as well."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= MAX_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {MAX_TIMEOUT_S}")
    return seconds


def _cluster_sectors(text: str) -> int:
    count = images.sectors(text)
    if not is_valid_cluster_size(count):
        raise argparse.ArgumentTypeError(f"{text!r} is not a power of two from 32K to 64M")
    return count


if __name__ == "__main__":
    sys.exit(main())
