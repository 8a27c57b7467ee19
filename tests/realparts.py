"""What a test of the real thing needs of the machine: programs, /dev/fuse, loop devices, root.

A test says `need(commands=("qemu-img",), fuse=True)` before it starts; where the machine lacks a part the test is
skipped with the name of that part. With PLOOPFS_REQUIRE_REAL=1 (set by tools/test in CI) the same lack is a failure: a
green run must not be one that skipped what it is there to prove. tests/test_tidy.py forbids every other way to skip.
"""

import ctypes
import errno
import glob
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import NoReturn

import pytest

NO_SYS_ADMIN = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--")
"""Root who may not mount: as in a container, and as every other user but that he may read what root may."""

_IO_URING_SETUP, _PARAMETERS_BYTES = 425, 120

CAP_SYS_ADMIN = 21
"""The bit of mount(2) and of LOOP_SET_FD's callers, capabilities(7)."""


def real_or_skip(reason: str) -> NoReturn:
    """Ends the test (or the module, when called while it is imported): skipped, or failed where parts are required."""
    if os.environ.get("PLOOPFS_REQUIRE_REAL") == "1":
        pytest.fail(f"{reason}, and PLOOPFS_REQUIRE_REAL=1 forbids to skip", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def need(
    *,
    commands: tuple[str, ...] = (),
    files: tuple[str, ...] = (),
    fuse: bool = False,
    loop: bool = False,
    root: bool = False,
    user_namespaces: bool = False,
    file_systems: tuple[str, ...] = (),
    io_uring: bool = False,
) -> None:
    """Returns if the machine has every part asked for; names all that it lacks otherwise. `files` are patterns;
    `file_systems` are those on a block device that the kernel must be able to mount. Without io_uring it is skipped
    anywhere."""
    lacks = [f"the program {command}" for command in commands if shutil.which(command) is None]
    lacks.extend(f"a file {pattern}" for pattern in files if not glob.glob(pattern))
    if root and os.geteuid() != 0:
        lacks.append("root")
    if fuse:
        lacks.extend(_lacks_of_fuse())
    if user_namespaces:
        lacks.extend(_lacks_of_user_namespaces())
    if loop:
        lacks.extend(_lacks_of_loop())
    lacks.extend(f"{name} in its kernel" for name in file_systems if not _knows(name))
    if lacks:
        real_or_skip(f"this machine lacks {', '.join(lacks)}")
    if io_uring and not _gives_rings():
        # Also where parts are required: no package brings it, and on such a machine nothing is done by it.
        pytest.skip("the kernel gives no io_uring here, and threads write")


def _lacks_of_fuse() -> Iterator[str]:
    if not _opens("/dev/fuse"):
        yield "/dev/fuse"
    if not _may_mount() and shutil.which("fusermount3") is None:
        yield "the right to mount (CAP_SYS_ADMIN or fusermount3)"


def _lacks_of_user_namespaces() -> Iterator[str]:
    """For who may not mount: root alone may be allowed some."""
    if shutil.which("setpriv") is None or shutil.which("unshare") is None:
        yield "the programs setpriv and unshare"
    elif subprocess.run([*NO_SYS_ADMIN, "unshare", "--user", "--mount", "true"], stderr=PIPE, check=False).returncode:
        yield "the right of every user to a user name space"


def _lacks_of_loop() -> Iterator[str]:
    if not _opens("/dev/loop-control"):
        yield "/dev/loop-control"
    if not _may_mount():
        yield "the right to set up loop devices (CAP_SYS_ADMIN)"


def _gives_rings() -> bool:
    """A container's filter of system calls may refuse it, or the administrator: kernel.io_uring_disabled."""
    fd = int(ctypes.CDLL(None).syscall(_IO_URING_SETUP, 1, ctypes.create_string_buffer(_PARAMETERS_BYTES)))
    if fd < 0:
        return False
    os.close(fd)
    return True


def _knows(file_system: str) -> bool:
    """Only mounting tells: until then a module may be known that is not loaded, and not be listed. What has no block
    device cannot be mounted, and of a file system that is not known the kernel says so first."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount(b"/dev/null", b"/", file_system.encode(), 0, None)
    return ctypes.get_errno() != errno.ENODEV


def _opens(path: str) -> bool:
    """A container may show a device node that it is not allowed to open: only opening it tells."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _may_mount() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> CAP_SYS_ADMIN & 1)
