"""tools/dmsetup over a tree of plain files: its syntax, its output to the byte, and what it writes where."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DMSETUP = Path(__file__).parent.parent / "tools" / "dmsetup"

MANY_COLUMNS = """\
Name             Maj Min Stat Open Targ Event  UUID                            
vm1              253   0 L--w    0    1      0 U-1                             
ploop7           253   7 LIsr   12    1      3                                 
"""  # noqa: W291 -- the last column is filled up, too
INFO = """\
Name:              vm1
State:             ACTIVE
Read Ahead:        256
Tables present:    LIVE
Open count:        0
Event number:      0
Major, minor:      253, 0
Number of targets: 1
UUID: U-1

"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A mapped device, another one that is suspended with a table loaded, and a disk that device-mapper has not."""
    mount = tmp_path / "mnt"
    (mount / "sys/fs/ploopfs").mkdir(parents=True)
    (mount / "sys/block/ploop0").mkdir(parents=True)
    make_device(mount, "dm-0", "vm1", "U-1", minor=0)
    make_device(mount, "dm-7", "ploop7", "", minor=7)
    for name, value in {
        "dm/suspended": "1",
        "ro": "1",
        "ploopfs/status": "0 2097152 error",
        "ploopfs/status_inactive": "0 131072 ploop 1 v2 2048 f",
        "ploopfs/open_count": "12",
        "ploopfs/event_nr": "3",
    }.items():
        (mount / "sys/block/dm-7" / name).write_text(f"{value}\n")
    return mount


def make_device(mount: Path, block: str, name: str, uuid: str, *, minor: int) -> None:
    values = {
        "dm/name": name,
        "dm/uuid": uuid,
        "dm/suspended": "0",
        "dev": f"253:{minor}",
        "ro": "0",
        "size": "131072",
        "queue/read_ahead_kb": "128",
        "ploopfs/status": "0 131072 ploop 2 v2 2048 o",
        "ploopfs/open_count": "0",
        "ploopfs/event_nr": "0",
    }
    for attribute, value in values.items():
        file = mount / "sys/block" / block / attribute
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    for control in ("load", "clear", "suspend", "resume", "message", "status_inactive"):
        (mount / "sys/block" / block / "ploopfs" / control).touch()


def dmsetup(
    tree: Path, *words: str | Path, stdin: str = "", pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DMSETUP, *words],
        env=os.environ | {"PLOOPFS_MOUNT": str(tree)},
        input=stdin,
        pass_fds=pass_fds,
        capture_output=True,
        text=True,
        check=False,
    )


def said(tree: Path, *words: str, stdin: str = "", pass_fds: tuple[int, ...] = ()) -> str:
    """The output of a command that succeeds in silence otherwise."""
    done = dmsetup(tree, *words, stdin=stdin, pass_fds=pass_fds)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def failure(tree: Path, *words: str, stdin: str = "", pass_fds: tuple[int, ...] = ()) -> str:
    done = dmsetup(tree, *words, stdin=stdin, pass_fds=pass_fds)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def written(tree: Path, control: str, block: str = "dm-0") -> str:
    return (tree / "sys/block" / block / "ploopfs" / control).read_text()


@contextmanager
def descriptor(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


# --- what is shown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "output"),
    [
        ("ls", "vm1\t(253:0)\nploop7\t(253:7)\n"),
        ("ls -o blkdevname", "vm1\t(dm-0)\nploop7\t(dm-7)\n"),
        ("ls --target error", "ploop7\t(253:7)\n"),
        ("ls --tree", "vm1 (253:0)\nploop7 (253:7)\n"),
        ("table", "vm1: 0 131072 ploop 2 v2 2048 o\nploop7: 0 2097152 error \n"),
        ("status", "vm1: 0 131072 ploop 2 v2 2048 o\nploop7: 0 2097152 error \n"),
        ("table vm1", "0 131072 ploop 2 v2 2048 o\n"),
        ("status --noflush vm1 ploop7", "vm1: 0 131072 ploop 2 v2 2048 o\nploop7: 0 2097152 error \n"),
        ("status --target ploop", "vm1: 0 131072 ploop 2 v2 2048 o\n"),
        ("table --inactive ploop7", "0 131072 ploop 1 v2 2048 f\n"),
        ("table --inactive vm1", "\n"),
        ("info vm1", INFO),
        ("info -v dm-0", INFO),
        ("table -v vm1", f"{INFO}0 131072 ploop 2 v2 2048 o\n"),
        ("info -c", MANY_COLUMNS),
        ("info --columns -o name,uuid --noheadings", "vm1:U-1\nploop7:\n"),
        ("info -c -oname,attr vm1", "Name             Stat\nvm1              L--w\n"),
        ("info -c --noheadings -o name,suspended,tables_loaded,readonly,devno ploop7",
         "ploop7:Suspended:Both:Read-only:253:7\n"),
        ("info -c --noheadings -o +segments vm1", "vm1:253:0:L--w:0:1:0:U-1:1\n"),
        ("info -c --noheadings --separator / -o name,minor -O -minor", "ploop7/7\nvm1/0\n"),
        ("info -c --nameprefixes -o name,minor vm1", "DM_NAME='vm1' DM_MINOR='0'\n"),
        ("info -c --nameprefixes --unquoted -o name vm1", "DM_NAME=vm1\n"),
        ("info -C -o name --nohead -u U-1", "vm1\n"),
        ("info -c -o name --noheadings -j 253 -m 7", "ploop7\n"),
        ("info -c -o name --noheadings --major=253 --minor=7", "ploop7\n"),
        ("info -c --noheadings -o name dm-7", "ploop7\n"),
        ("info -c --noheadings -o name /dev/mapper/vm1", "vm1\n"),
        ("info -c --noheadings -o name /dev/dm-7", "ploop7\n"),
        ("deps vm1", "0 dependencies\t:\n"),
        ("targets", "ploop            v1.0.0\nerror            v1.5.0\n"),
        ("mknodes", ""),
    ],
)  # fmt: skip
def test_what_is_shown_is_dmsetups_to_the_byte(tree: Path, words: str, output: str) -> None:
    assert said(tree, *words.split(" ")) == output


def test_a_device_that_is_suspended_and_read_only_says_so(tree: Path) -> None:
    text = said(tree, "info", "ploop7")
    assert "State:             SUSPENDED (READ-ONLY)\n" in text
    assert "Tables present:    LIVE & INACTIVE\n" in text
    assert "UUID" not in text


def test_a_tree_without_mapped_devices_has_none(tree: Path) -> None:
    for block in ("dm-0", "dm-7"):
        (tree / "sys/block" / block / "dm").rename(tree / block)
    for command in ("ls", "table", "status", "info", "deps"):
        assert said(tree, command) == "No devices found\n"


# --- what is written ----------------------------------------------------------------------------------------------


def test_suspend_and_resume_pass_on_how(tree: Path) -> None:
    assert said(tree, "suspend", "--noflush", "--nolockfs", "vm1") == ""
    assert said(tree, "resume", "vm1", "ploop7") == ""
    assert said(tree, "clear", "-u", "U-1") == ""
    assert [written(tree, control) for control in ("suspend", "resume", "clear")] == ["noflush nolockfs\n", "\n", "1\n"]
    assert written(tree, "resume", "dm-7") == "\n"


@pytest.mark.parametrize("command", ["load", "reload"])
@pytest.mark.parametrize("way", ["--table", "file", "stdin"])
def test_a_table_is_an_option_a_file_or_the_input(tree: Path, tmp_path: Path, command: str, way: str) -> None:
    text = "# comment\n\n  0 8 ploop 7 /a /b  # trailing\n"
    (tmp_path / "table").write_text(text)
    words = {"--table": ["vm1", "--table", text], "file": ["vm1", str(tmp_path / "table")], "stdin": ["vm1"]}[way]
    assert said(tree, command, *words, stdin=text) == ""
    assert written(tree, "load") == "0 8 ploop 7 /a /b\n"


def test_a_read_only_table_says_so_to_the_tree(tree: Path) -> None:
    said(tree, "reload", "-r", "vm1", "--table", "0 8 error")
    assert written(tree, "load") == "ro 0 8 error \n"


def test_a_table_that_the_tree_shows_as_read_only_is_loaded_so(tree: Path) -> None:
    said(tree, "load", "vm1", stdin="ro 0 8 error\n")
    assert written(tree, "load") == "ro 0 8 error \n"


def test_descriptors_become_the_paths_of_their_files(tree: Path, tmp_path: Path) -> None:
    base, top = tmp_path / "a base.hds", tmp_path / "top.hds"
    base.touch()
    top.touch()
    with descriptor(base, os.O_RDONLY) as lower, descriptor(top, os.O_RDWR) as upper:
        table = f"0 8 ploop 7 falloc_new_clu off=5 raw@{lower} {upper}"
        said(tree, "reload", "vm1", "--table", table, pass_fds=(lower, upper))
    escaped = str(base).replace(" ", "\\ ")
    assert written(tree, "load") == f"0 8 ploop 7 falloc_new_clu off=5 raw@{escaped} {top}\n"


@pytest.mark.parametrize(
    ("flags", "words", "reason"),
    [
        (os.O_RDONLY, (), "Permission denied"),
        (os.O_WRONLY, (), "Bad file descriptor"),
        (None, (), "No such file or directory"),
        (os.O_RDONLY, ("-r",), None),
    ],
)
def test_descriptors_that_dm_ploop_would_not_take(
    tree: Path, tmp_path: Path, flags: int | None, words: tuple[str, ...], reason: str | None
) -> None:
    with descriptor(DMSETUP if flags is None else tmp_path, os.O_RDONLY) as some:
        number = some
        if flags is not None:
            (tmp_path / "top.hds").touch()
            number = os.open(tmp_path / "top.hds", flags)
        passed = () if flags is None else (number,)
        done = dmsetup(tree, "reload", *words, "vm1", "--table", f"0 8 ploop 7 {number}", pass_fds=passed)
        if flags is not None:
            os.close(number)
    expected = f"device-mapper: reload ioctl on vm1  failed: {reason}\nCommand failed.\n" if reason else ""
    assert (done.returncode, done.stderr) == (int(reason is not None), expected)


def test_a_message_is_its_words_and_the_answer_is_printed(tree: Path) -> None:
    # A plain file answers with what was written to it.
    assert said(tree, "message", "vm1", "0", "get_img_name", "1") == "get_img_name 1\n"
    assert said(tree, "message", "-j", "253", "-m", "7", "0", "resize", "2048") == "resize 2048\n"
    assert failure(tree, "message", "-u", "U-1", "0") == "Incorrect number of arguments.\n" + failure(tree)


def test_wiping_a_table_puts_an_error_target_of_its_size_in_force(tree: Path) -> None:
    said(tree, "wipe_table", "--noflush", "vm1")
    assert (written(tree, "load"), written(tree, "resume")) == ("0 131072 error\n", "noflush\n")


def test_wait_returns_when_the_event_number_is_another_one(tree: Path) -> None:
    assert said(tree, "wait", "ploop7", "2") == ""


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("status nowhere", "Device does not exist."),
        ("info nowhere", "Device does not exist."),
        ("table nowhere", "device-mapper: table ioctl on nowhere  failed: No such device or address"),
        ("suspend nowhere", "device-mapper: suspend ioctl on nowhere  failed: No such device or address"),
        ("resume -u X", "device-mapper: resume ioctl on  X failed: No such device or address"),
        ("resume -j 1 -m 2", "device-mapper: resume ioctl on  (1:2) failed: No such device or address"),
        ("message nowhere 0 x", "device-mapper: message ioctl on nowhere  failed: No such device or address"),
        ("message vm1 131072 x", "device-mapper: message ioctl on vm1  failed: Invalid argument"),
        ("message vm1 x y", "Invalid sector."),
        ("suspend", "No device specified."),
        ("load", "Please specify device."),
        ("load vm1 /nowhere/table", "Couldn't open '/nowhere/table' for reading."),
        ("load -u U-1 a b", "Too many command line arguments."),
        ("info -c -o age", "Unrecognised field: age"),
        ("ls -o age", "Option not recognised: age."),
    ],
)
def test_failures_are_told_in_dmsetups_words(tree: Path, words: str, reason: str) -> None:
    assert failure(tree, *words.split(" ")) == f"{reason}\nCommand failed.\n"


def test_a_table_that_is_none_names_its_line(tree: Path) -> None:
    assert failure(tree, "load", "vm1", stdin="0 8 error\n0 x\n") == (
        "Invalid format on line 2 of table on stdin.\nCommand failed.\n"
    )


def test_the_errno_of_the_tree_is_the_errno_of_the_ioctl(tree: Path) -> None:
    control = tree / "sys/block/dm-0/ploopfs/resume"
    control.unlink()
    control.mkdir()
    assert failure(tree, "resume", "vm1") == (
        "device-mapper: resume ioctl on vm1  failed: Is a directory\nCommand failed.\n"
    )


def test_devices_before_the_one_that_is_missing_are_shown(tree: Path) -> None:
    done = dmsetup(tree, "status", "vm1", "nowhere", "ploop7")
    assert (done.returncode, done.stdout) == (1, "vm1: 0 131072 ploop 2 v2 2048 o\n")
    assert done.stderr == "Device does not exist.\nCommand failed.\n"


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("frobnicate", "Unknown command."),
        ("message vm1", "Incorrect number of arguments."),
        ("ls vm1", "Incorrect number of arguments."),
        ("load vm1 a b", "Incorrect number of arguments."),
        ("", "Usage:"),
        ("info --frob", "dmsetup: unrecognized option '--frob'"),
        ("info -Z", "dmsetup: invalid option -- 'Z'"),
        ("info -c -o", "dmsetup: option '--options' requires an argument"),
        ("info -j 253", "Please specify both major number and minor number."),
    ],
)
def test_a_command_line_that_is_none_is_told_first(tree: Path, words: str, first: str) -> None:
    assert failure(tree, *words.split()).splitlines()[0] == first


def test_without_a_tree_nothing_is_done(tmp_path: Path) -> None:
    assert failure(tmp_path / "nowhere", "ls") == (
        f"PLOOPFS_MOUNT is {tmp_path}/nowhere, and no ploopfs is mounted there.\nCommand failed.\n"
    )


def test_help_and_version_need_no_tree(tmp_path: Path) -> None:
    assert dmsetup(tmp_path, "--version").stdout == dmsetup(tmp_path, "version").stdout != ""
    done = dmsetup(tmp_path, "--help")
    assert (done.returncode, done.stdout, done.stderr.startswith("Usage:\n\ndmsetup\n")) == (0, "", True)


@pytest.mark.parametrize(
    "words", ["info -j x -m 0", "info -j 253 -m 999999999999999999999", "wait vm1 soon", "message vm1 \u0663 merge"]
)
def test_a_number_that_is_none_is_told(tree: Path, words: str) -> None:
    told = failure(tree, *words.split()).splitlines()
    assert (told[0].endswith("expected a number."), told[1:]) == (True, ["Command failed."])


@pytest.mark.parametrize(
    ("file", "words"),
    [("dev", "ls"), ("size", "message vm1 0 merge"), ("ploopfs/event_nr", "info -c -o events"), ("dm/name", "ls")],
)
def test_a_tree_that_says_anything_at_all_is_told(tree: Path, file: str, words: str) -> None:
    value = tree / "sys/block/dm-0" / file
    value.unlink()
    if file != "dm/name":
        value.write_bytes(b"7\xff" * 3000)
    assert failure(tree, *words.split()).splitlines()[1:] == ["Command failed."]


def test_a_name_that_is_no_text_leaves_as_it_came(tree: Path) -> None:
    (tree / "sys/block/dm-0/dm/name").write_bytes(b"vm\xff\n")
    environment = {"PATH": os.environ["PATH"], "PLOOPFS_MOUNT": str(tree), "LC_ALL": "C.UTF-8"}
    done = subprocess.run([DMSETUP, "ls"], capture_output=True, env=environment, check=True)
    assert done.stdout == b"vm\xff\t(253:0)\nploop7\t(253:7)\n"
