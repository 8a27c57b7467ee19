"""The whole tree as another user sees it with allow_other: what the modes say, and not a thing more."""

import errno
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from ploopfs.cli.main import main
from tests.mounted.daemon import Daemon, device, errno_of, opened, serving, until
from tests.mounted.disks import make_disk
from tests.mounted.other_user import NOBODY, as_user

pytestmark = pytest.mark.real

SECRET = "42-is-secret"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A device of each flavour. The agent of the first has run a command that said something to nobody but the log."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)
        talks = {"command": ["sh", "-c", 'echo "$((6*7))-is-secret"; exit 1'], "attempts": 1, "probe": False}
        devices = (
            device(make_disk(place / "first", depth=2).directory, recovery=talks),
            device(make_disk(place / "second").directory, "dm-0", flavour="vz9", dm_name="vm1"),
            device(make_disk(place / "third").directory, "ploop1", read_only=True),
        )
        with serving(place, *devices, options=["-o", "allow_other"]) as running:
            rules = running.mountpoint / "sys/kernel/debug/ploopfs/ploop0/error_injection"
            with opened(rules, os.O_WRONLY) as inject, opened(running.disk()) as disk:
                os.write(inject, b"add,op=WRITE,errno=EBUSY")
                assert errno_of(os.pwrite, disk, b"x", 0) == "EBUSY"
            until(lambda: any(one["event"] == "agent_gave_up" for one in running.events()), "the agent gave up")
            yield running


def walked(top: str) -> list[tuple[str, int, int, str, str, str]]:
    """Path, mode, owner, errno of opening for reading, of opening for writing, and the text, of every file."""
    found = []
    for directory, below, files in os.walk(top, onerror=_fail):
        below[:] = [name for name in below if not os.path.islink(os.path.join(directory, name))]
        for path in (os.path.join(directory, name) for name in files):
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                continue
            reading, writing = _opens(path, os.O_RDONLY), _opens(path, os.O_WRONLY)
            text = _text(path) if reading == "success" and directory != f"{top}/dev" else ""
            found.append((path.removeprefix(top), status.st_mode, status.st_uid, reading, writing, text))
    return found


def _fail(error: OSError) -> None:
    raise error


def _opens(path: str, flags: int) -> str:
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "success"


def _text(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(1 << 20).decode("utf-8", "replace")
    except OSError as error:  # of a value that an aborted device, say, does not have
        return f"<{error.strerror}>"


def test_each_file_of_the_tree_gives_another_user_what_its_mode_says(daemon: Daemon) -> None:
    found = as_user(NOBODY, walked, str(daemon.mountpoint))
    assert len(found) > 300
    for path, mode, owner, reading, writing, _ in found:
        assert owner == os.geteuid(), path
        assert reading == ("success" if mode & stat.S_IROTH else "EACCES"), path
        assert (mode & stat.S_IWOTH, writing) == (0, "EACCES"), f"{path}: another user may write to it"
    modes = {path: stat.S_IMODE(mode) for path, mode, *_ in found}
    assert {modes[f"/dev/{name}"] & 0o007 for name in ("ploop0", "ploop1", "dm-0")} == {0}
    assert modes["/sys/kernel/debug/ploopfs/ploop0/error_injection"] & 0o077 == 0
    assert modes["/sys/fs/ploopfs/events"] & 0o004


def test_what_a_recovery_command_says_is_in_no_file_that_another_user_reads(daemon: Daemon) -> None:
    daemon.wait_for_line(SECRET)
    found = as_user(NOBODY, walked, str(daemon.mountpoint))
    assert [path for path, *_, text in found if SECRET in text] == []
    assert any("agent_gave_up" in text for *_, text in found), "what happened may be read"


def run_verb(*arguments: str) -> tuple[int, str]:
    """Exit code, and what it said."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(arguments)
    return int(code), said.getvalue()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("status", "--json"), 0, '"standby": "on"'),
        (("why", "ploop0"), 0, "EBUSY"),
        (("watch", "--no-follow"), 0, "standby_on"),
        (("metrics",), 0, "ploopfs_"),
        (("wait", "ploop0", "--for", "on"), 0, ""),
        (("reopen", "ploop0"), 1, "ploopfs: {mnt}/sys/block/ploop0/ploopfs/reopen: Permission denied\n"),
        (("replace", "ploop0", "/x.hds"), 1, "/ploopfs/replace_delta: Permission denied\n"),
        (("inject", "ploop0", "--errno", "EIO"), 1, "error_injection: Permission denied\n"),
        (("inject", "ploop0", "--list"), 1, "error_injection: Permission denied\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_the_verbs_show_another_user_what_he_may_see_and_refuse_the_rest_in_one_line(
    daemon: Daemon, arguments: tuple[str, ...], code: int, says: str
) -> None:
    mount = str(daemon.mountpoint)
    found, said = as_user(NOBODY, run_verb, arguments[0], "-m", mount, *arguments[1:])
    assert (found, says.format(mnt=mount) in said) == (code, True), said
    assert "Traceback" not in said
    assert code == 0 or len(said.splitlines()) == 1


def test_another_user_cannot_unmount_and_says_so(daemon: Daemon) -> None:
    found, said = as_user(NOBODY, run_verb, "umount", str(daemon.mountpoint))
    assert (found, "Traceback" in said) == (4, False), said
    assert daemon.value("queue/standby") == "on"
