"""The system's directories with those of a tree in them: what `ploopfs exec` mounts in its name space.

Three means, none of which changes a file system of the system's. A bind mount puts a file or directory of the tree in a
place that exists. A skeleton - a tmpfs over a directory, in which everything that was there is bound back - makes new
places. An overlay of both directories shows also what comes and goes later; where it is read-only, the directories in
it are bound back over it. Knows the layout of a tree, and no daemon.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator

from ploopfs.cli.namespace import MS_NOSUID, attach, bind, copied, make_read_only, mount
from ploopfs.errors import NamespaceError
from ploopfs.fuse.mountpoint import mountpoints_below

OVERLAID = frozenset({"sys/block", "sys/class/block", "sys/dev/block", "sys/devices/virtual/block"})
"""Where disks come and go while the command runs."""

LATER = {"sys/kernel": ("scst_tgt",), "sys/module": ("scst",)}
"""What comes and goes in the tree with a module is a link, which leads somewhere for as long as it is there."""

BOUND = {"proc/ploopfs/diskstats": "proc/diskstats", "proc/ploopfs/partitions": "proc/partitions"}

TERMINALS = "ptmx"
"""The node that works only beside the directory pts of its own file system."""
ASIDE = ".system"

NAMES = ("sys/block", "dev", "dev/mapper")
NUMBERS = "sys/dev/block"


def check_free(mountpoint: str) -> Iterator[str]:
    """Raises NamespaceError if a disk of the system has the name of one of the tree's; warns if it has its number."""
    for directory in NAMES:
        both = (_children(f"{mountpoint}/{directory}").keys() & _children(f"/{directory}").keys()) - {"mapper"}
        if both:
            raise NamespaceError(f"/{directory}/{min(both)} exists on this system: the disk needs another name")
    for numbers in sorted(_children(f"{mountpoint}/{NUMBERS}").keys() & _children(f"/{NUMBERS}").keys()):
        ours, theirs = (os.path.basename(os.readlink(f"{root}/{NUMBERS}/{numbers}")) for root in (mountpoint, ""))
        yield f"{ours} has the number of {theirs}, {numbers}: who goes by numbers finds {theirs}"


class View:
    """`arrange` needs the right to mount; `in_user_namespace` says that we have it only there."""

    def __init__(self, mountpoint: str, *, in_user_namespace: bool) -> None:
        self._mountpoint = mountpoint
        self._in_user_namespace = in_user_namespace

    def arrange(self) -> None:
        self._merge("sys")
        if self._in_user_namespace:
            # In an overlay that a user has mounted, device nodes cannot be opened.
            self._merge("dev")
        else:
            self._overlay_dev()
        for source, target in BOUND.items():
            bind(f"{self._mountpoint}/{source}", f"/{target}")

    def _merge(self, directory: str) -> None:
        """Make `/directory` show what the tree has there, too: here if it has anything of its own here, or below."""
        ours, theirs = _children(f"{self._mountpoint}/{directory}"), _children(f"/{directory}")
        if directory in OVERLAID:
            self._overlay(directory)
            return
        if ours.keys() - theirs.keys() or directory in LATER:
            self._skeleton(directory)
        for name in sorted(name for name, mode in theirs.items() if stat.S_ISDIR(mode)):
            if name in ours or f"{directory}/{name}" in LATER:
                self._merge(f"{directory}/{name}")

    def _overlay(self, directory: str) -> None:
        place = f"/{directory}"
        ours, theirs = _held(f"{self._mountpoint}/{directory}"), _held(place)
        # The system's own first: where two have one number, its disk keeps it.
        mount("overlay", place, fstype="overlay", flags=MS_NOSUID, options=f"lowerdir={theirs}:{ours}")
        for root in (theirs, ours):
            for name, mode in _children(root).items():
                if stat.S_ISDIR(mode):
                    bind(f"{root}/{name}", f"{place}/{name}")

    def _skeleton(self, directory: str) -> None:
        place, tree = f"/{directory}", f"{self._mountpoint}/{directory}"
        theirs = _held(place)
        known = _children(theirs)
        mode = stat.S_IMODE(os.stat(theirs).st_mode)
        whole = copied(place) if directory == "dev" else None
        mount("tmpfs", place, fstype="tmpfs", flags=MS_NOSUID, options=f"mode={mode:o}")
        for name, mode in known.items():
            if whole is not None and name == TERMINALS:
                _put_in_its_directory(whole, name, place)
            else:
                _put(f"{theirs}/{name}", f"{place}/{name}", mode)
        links = [name for name in LATER.get(directory, ()) if name not in known]
        for name, mode in _children(tree).items():
            if name not in known and name not in links:
                _put(f"{tree}/{name}", f"{place}/{name}", mode)
        for name in links:
            os.symlink(f"{tree}/{name}", f"{place}/{name}")
        make_read_only(place)

    def _overlay_dev(self) -> None:
        """Nodes that the kernel makes later on are seen, and what the command makes goes with it."""
        tree, theirs = f"{self._mountpoint}/dev", _held("/dev")
        disks = [name for name, mode in _children(tree).items() if stat.S_ISREG(mode)]
        # A socket is known by its inode, and the overlay's is another one.
        sockets = [name for name, mode in _children("/dev").items() if stat.S_ISSOCK(mode)]
        back = [os.path.relpath(mounted, "/dev") for mounted in mountpoints_below("/dev")] + sockets
        # A /dev that was covered by this one may have had mounts, which the table still lists.
        back = [name for name in back if os.path.lexists(f"{theirs}/{name}")]
        mount("tmpfs", "/dev", fstype="tmpfs", flags=MS_NOSUID, options="mode=755")
        for name in ("upper", "work"):
            os.mkdir(f"/dev/{name}", 0o755)
        for name in disks:
            _touch(f"/dev/upper/{name}")
        for name in _children(f"{tree}/mapper"):
            os.makedirs("/dev/upper/mapper", 0o755, exist_ok=True)
            os.symlink(os.readlink(f"{tree}/mapper/{name}"), f"/dev/upper/mapper/{name}")
        options = f"lowerdir={theirs},upperdir=/dev/upper,workdir=/dev/work"
        mount("overlay", "/dev", fstype="overlay", flags=MS_NOSUID, options=options)
        for name in back:
            bind(f"{theirs}/{name}", f"/dev/{name}")
        for name in disks:
            bind(f"{tree}/{name}", f"/dev/{name}")


def _put(source: str, place: str, mode: int) -> None:
    """`source` in a new place, of a directory that was empty."""
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(source), place)
        return
    if stat.S_ISDIR(mode):
        os.mkdir(place)
    else:
        _touch(place)
    bind(source, place)


def _put_in_its_directory(directory: int, name: str, place: str) -> None:
    os.mkdir(f"{place}/{ASIDE}")
    attach(directory, f"{place}/{ASIDE}")
    os.symlink(f"{ASIDE}/{name}", f"{place}/{name}")


def _touch(place: str) -> None:
    os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))


def _held(directory: str) -> str:
    """A path that leads to a directory though something is mounted over it; for as long as this program runs."""
    return f"/proc/self/fd/{os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}"


def _children(directory: str) -> dict[str, int]:
    """Names and modes; nothing of a directory that is missing, or that this user may not list, and of a disk whose
    connection is cut off."""
    try:
        with os.scandir(directory) as entries:
            return dict(_modes(entries))
    except (FileNotFoundError, PermissionError):
        return {}


def _modes(entries: Iterable["os.DirEntry[str]"]) -> Iterator[tuple[str, int]]:
    for entry in entries:
        try:
            yield entry.name, entry.stat(follow_symlinks=False).st_mode
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
