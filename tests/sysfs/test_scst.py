"""The tree of the subsystem: its golden listing, its links, its nodes that come and go, and what is kept of results."""

import difflib
import errno
import os
import posixpath
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.errors import NoSuchDevice, PermissionDenied, PloopError
from ploopfs.sysfs.nodes import Attribute, Directory, Link
from ploopfs.sysfs.openfile import OpenAttribute, opening
from tests.scst.rig import Subsystem, loaded
from tests.sysfs.fakes import node_at, opened, text_of, tree_of, walk, write
from tests.sysfs.test_golden import GOLDEN, listed

ROOT = "sys/kernel/scst_tgt"
BLOCKIO = f"{ROOT}/handlers/vdisk_blockio/mgmt"
ISCSI = f"{ROOT}/targets/iscsi"
IQN = "iqn.2024-01.e2e:scst"
SECRET = "12charsecret"
OURS = (ROOT, "sys/module")
GOLDEN_FILE: Path = GOLDEN / "scst.txt"

EVERYTHING = (
    (BLOCKIO, "add_device ploop0 filename=/dev/ploop0; blocksize=512; nv_cache=0"),
    (f"{ROOT}/handlers/vdisk_fileio/mgmt", "add_device f filename=/mnt/ploop/dev/ploop1; read_only=1"),
    (f"{ROOT}/handlers/vdisk_nullio/mgmt", "add_device n"),
    (f"{ROOT}/handlers/vcdrom/mgmt", "add_device c"),
    (f"{ISCSI}/mgmt", f"add_target {IQN}"),
    (f"{ISCSI}/mgmt", f"add_attribute IncomingUser joe {SECRET}"),
    (f"{ISCSI}/mgmt", f"add_target_attribute {IQN} allowed_portal 10.0.0.1"),
    (f"{ISCSI}/{IQN}/luns/mgmt", "add ploop0 0"),
    (f"{ISCSI}/{IQN}/ini_groups/mgmt", "create g1"),
    (f"{ISCSI}/{IQN}/ini_groups/g1/luns/mgmt", "add ploop0 5 read_only=1"),
    (f"{ISCSI}/{IQN}/ini_groups/g1/initiators/mgmt", "add iqn.initiator:1"),
    (f"{ROOT}/device_groups/mgmt", "create dg"),
    (f"{ROOT}/device_groups/dg/devices/mgmt", "add ploop0"),
    (f"{ROOT}/device_groups/dg/target_groups/mgmt", "create tg"),
    (f"{ROOT}/device_groups/dg/target_groups/tg/mgmt", f"add {IQN}"),
    (f"{ROOT}/device_groups/dg/target_groups/tg/mgmt", "add iqn.elsewhere"),
)


async def everything() -> tuple[Subsystem, Directory]:
    """One of each thing that can be made by a command."""
    subsystem = loaded("ploop0", "ploop1")
    root = tree_of(subsystem.registry)
    for path, text in EVERYTHING:
        await write(root, path, f"{text}\n")
    return subsystem, root


async def errno_of(root: Directory, path: str, text: str) -> str:
    try:
        await write(root, path, text)
    except PloopError as error:
        return errno.errorcode[error.errno]
    return ""


def assert_gone(files: list[OpenAttribute]) -> None:
    for file in files:
        with pytest.raises(NoSuchDevice):
            file.read(0, 4096)


async def test_the_subsystem_is_its_golden_listing() -> None:
    _, root = await everything()
    listing = [listed(path, node) for path, node in walk(root) if path.startswith(OURS)]
    if os.environ.get("PLOOPFS_WRITE_GOLDEN"):
        GOLDEN_FILE.write_text("\n".join([*listing, ""]))
    golden = GOLDEN_FILE.read_text().splitlines()
    difference = "\n".join(difflib.unified_diff(golden, listing, GOLDEN_FILE.name, "tree", lineterm=""))
    assert not difference, f"the tree is not its golden listing:\n{difference}"


async def test_every_link_leads_to_a_directory_of_the_tree() -> None:
    _, root = await everything()
    links = [(path, node) for path, node in walk(root) if path.startswith(OURS) and isinstance(node, Link)]
    assert len(links) == 20
    for path, link in links:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link.target))
        assert isinstance(node_at(root, target), Directory), path


async def test_links_lead_back_to_where_they_are_listed() -> None:
    _, root = await everything()

    def end_of(path: str) -> str:
        node = node_at(root, path)
        assert isinstance(node, Link)
        return posixpath.normpath(posixpath.join(posixpath.dirname(path), node.target))

    exports = [end_of(f"{ROOT}/devices/ploop0/exported/export{number}") for number in range(3)]
    assert exports == [
        f"{ROOT}/targets/copy_manager/copy_manager_tgt/luns/0",
        f"{ISCSI}/{IQN}/luns/0",
        f"{ISCSI}/{IQN}/ini_groups/g1/luns/5",
    ]
    assert {end_of(f"{export}/device") for export in exports} == {f"{ROOT}/devices/ploop0"}
    handler = end_of(f"{ROOT}/devices/ploop0/handler")
    assert end_of(f"{handler}/ploop0") == f"{ROOT}/devices/ploop0"


async def test_nodes_are_the_same_objects_each_time_and_no_two_names_share_one() -> None:
    _, root = await everything()
    assert dict(walk(root)) == dict(walk(root))
    nodes = [node for _, node in walk(root)]
    assert len({id(node) for node in nodes}) == len(nodes)


async def test_a_secret_is_for_its_owner_only() -> None:
    _, root = await everything()
    modes = {node.mode for path, node in walk(root) if path.endswith("IncomingUser")}
    assert modes == {0o600}


LEAKY = (
    ("mgmt", f"add_attribute IncomingUser joe {SECRET}", "add_attribute IncomingUser ***"),
    ("mgmt", f"add_attribute IncomingUser={SECRET}", "add_attribute IncomingUser ***"),
    ("mgmt", f"add_target_attribute IncomingUser jim {SECRET}", "add_target_attribute IncomingUser ***"),
    ("mgmt", f"add_target_attribute {IQN} IncomingUsr jim {SECRET}", f"add_target_attribute {IQN} ***"),
    ("mgmt", f"add_target_attribute {IQN} allowed_portal jim {SECRET}", f"add_target_attribute {IQN} ***"),
    ("mgmt", f"add_target iqn.b IncomingUser=jim {SECRET}", "add_target iqn.b ***"),
    ("mgmt", f"del_target {IQN} IncomingUser jim {SECRET}", f"del_target {IQN} ***"),
    ("mgmt", f"IncomingUser {SECRET} {SECRET}", "***"),
    ("IncomingUser", f"jim {SECRET}", "IncomingUser ***"),
)


@pytest.mark.parametrize(("file", "text", "shown"), LEAKY)
async def test_a_command_that_fails_is_logged_without_a_secret(
    caplog: pytest.LogCaptureFixture, file: str, text: str, shown: str
) -> None:
    _, root = await everything()
    await write(root, f"{ISCSI}/mgmt", "add_attribute IncomingUser jim another-secret")
    caplog.set_level("DEBUG")
    assert await errno_of(root, f"{ISCSI}/{file}", text)
    (record,) = [message for message in caplog.messages if " failed: " in message]
    assert record.startswith(f"{shown!r} failed: ")
    assert SECRET not in caplog.text


async def test_everything_goes_with_the_module_and_open_files_answer_enodev() -> None:
    subsystem, root = await everything()
    before = dict(walk(root))
    ours = [node for path, node in before.items() if path.startswith(OURS)]
    files = [opening(node, 0) for node in ours if isinstance(node, Attribute) and node.show]
    assert len(files) > 250
    assert await errno_of(root, "sys/fs/ploopfs/rmmod", "scst\n") == "EBUSY"
    for handler, name in (("vdisk_blockio", "ploop0"), ("vdisk_fileio", "f"), ("vdisk_nullio", "n"), ("vcdrom", "c")):
        await write(root, f"{ROOT}/handlers/{handler}/mgmt", f"del_device {name}")
    await write(root, "sys/fs/ploopfs/rmmod", "scst\n")
    assert subsystem.states() == ["not supported", "not supported"]
    assert not [path for path, _ in walk(root) if path.startswith((f"{ROOT}", "sys/module/"))]
    assert_gone(files)
    await write(root, "sys/fs/ploopfs/modprobe", "scst\n")
    assert_gone(files)
    after = dict(walk(root))
    still = {path for path in after if path.startswith(OURS) and before.get(path) is after[path]}
    assert still == {"sys/module"}


async def test_what_was_removed_and_made_again_is_another_file() -> None:
    _, root = await everything()
    paths = {
        f"{ROOT}/devices/ploop0/active": (BLOCKIO, "del_device ploop0", "add_device ploop0 filename=/dev/ploop0"),
        f"{ISCSI}/{IQN}/enabled": (f"{ISCSI}/mgmt", f"del_target {IQN}", f"add_target {IQN}"),
        f"{ROOT}/device_groups/dg/devices/mgmt": (f"{ROOT}/device_groups/mgmt", "del dg", "create dg"),
    }
    for path, (mgmt, remove, make) in paths.items():
        file, node = opened(root, path), node_at(root, path)
        await write(root, mgmt, remove)
        await write(root, mgmt, make)
        assert node_at(root, path) is not node
        with pytest.raises(NoSuchDevice):
            file.read(0, 4096)


async def test_a_module_goes_on_its_own_and_its_part_of_the_tree_with_it() -> None:
    subsystem = loaded()
    root = tree_of(subsystem.registry)
    handlers, targets = f"{ROOT}/handlers/vdisk_blockio/type", f"{ISCSI}/version"
    files = [opened(root, path) for path in (handlers, targets)]
    await write(root, "sys/fs/ploopfs/rmmod", "iscsi-scst\n")
    await write(root, "sys/fs/ploopfs/rmmod", "scst_vdisk\n")
    found = {path for path, _ in walk(root)}
    assert not found & {handlers, targets, "sys/module/iscsi_scst", "sys/module/scst_vdisk"}
    assert {f"{ROOT}/targets/copy_manager", "sys/module/scst"} <= found
    assert_gone(files)
    await write(root, "sys/fs/ploopfs/modprobe", "scst_vdisk")
    await write(root, "sys/fs/ploopfs/modprobe", "iscsi_scst")
    assert text_of(root, targets).startswith("3.11")
    assert text_of(root, handlers).startswith("0 - ")


async def test_modules_are_loaded_and_unloaded_by_writing_their_names() -> None:
    subsystem = Subsystem()
    root = tree_of(subsystem.registry)
    modprobe, rmmod = "sys/fs/ploopfs/modprobe", "sys/fs/ploopfs/rmmod"
    for path in (modprobe, rmmod):
        with pytest.raises(PermissionDenied):
            opened(root, path)
    assert await errno_of(root, rmmod, "scst\n") == "ENOENT"
    assert await errno_of(root, modprobe, "scst\n") == ""
    assert await errno_of(root, modprobe, "scst\n") == ""
    assert text_of(root, "sys/fs/ploopfs/ploop_standby_check") == "1\n"
    assert text_of(root, "sys/module/scst/initstate") == "live\n"
    assert [await errno_of(root, modprobe, text) for text in ("nosuch\n", "\n")] == ["ENOENT", "EINVAL"]
    assert await errno_of(root, rmmod, " scst \n") == ""
    assert text_of(root, "sys/fs/ploopfs/ploop_standby_check") == "0\n"


async def test_references_say_what_keeps_a_module() -> None:
    subsystem = loaded("ploop0")
    root = tree_of(subsystem.registry)

    def references() -> list[str]:
        return [text_of(root, f"sys/module/{name}/refcnt") for name in ("scst", "scst_vdisk", "iscsi_scst")]

    assert references() == ["2\n", "0\n", "0\n"]
    await write(root, BLOCKIO, "add_device a filename=/dev/ploop0")
    assert references() == ["3\n", "1\n", "0\n"]


async def test_only_queued_commands_leave_a_result() -> None:
    _, root = await everything()
    result = f"{ROOT}/last_sysfs_mgmt_res"
    device = f"{ROOT}/devices/ploop0"
    for path, text, left in (
        (BLOCKIO, "del_device none", "-22\n"),
        (f"{ROOT}/setup_id", "5", "-22\n"),
        (f"{ROOT}/device_groups/mgmt", "create other", "-22\n"),
        (f"{device}/active", "0", "0\n"),
        (f"{ISCSI}/mgmt", "del_target none", "-2\n"),
        (f"{device}/usn", "abc", "-2\n"),
        (f"{device}/threads_num", "2", "0\n"),
        (f"{ISCSI}/{IQN}/luns/mgmt", "add ploop0 0", "-17\n"),
        (f"{ISCSI}/{IQN}/enabled", "1", "0\n"),
    ):
        await errno_of(root, path, text)
        assert text_of(root, result) == left, (path, text)


async def test_values_are_stored_where_they_are_shown() -> None:
    _, root = await everything()
    for path, text, shown in (
        (f"{ROOT}/trace_level", "none", "\n\n\nUsage:"),
        (f"{ROOT}/handlers/vdisk_blockio/trace_level", "add order", "out_of_mem"),
        (f"{ISCSI}/trace_level", "value 0", "\n\n\nUsage:"),
        (f"{ROOT}/suspend", "5", "1\n"),
        (f"{ROOT}/devices/ploop0/block", "1", "1 0\n"),
        (f"{ROOT}/devices/ploop0/size_mb", "5", "5\n"),
        (f"{ROOT}/devices/ploop0/pr_file_name", "/x", ""),
        (f"{ROOT}/devices/f/pr_file_name", "/x", "/x\n[key]\n"),
        (f"{ROOT}/devices/f/pr_state", "version 1\ngeneration 0\n", "version 1\ngeneration 0\n"),
        (f"{ROOT}/devices/c/filename", "/dev/ploop1", "/dev/ploop1\n[key]\n\n"),
        (f"{ISCSI}/{IQN}/forwarding", "1", "1\n[key]\n"),
        (f"{ISCSI}/{IQN}/forward_dst", "0", "0\n"),
        (f"{ISCSI}/{IQN}/rel_tgt_id", "9", "9\n[key]\n"),
        (f"{ISCSI}/{IQN}/allowed_portal", "10.0.0.2", "10.0.0.2\n[key]\n\n"),
        (f"{ISCSI}/IncomingUser", f"jim {SECRET}", f"jim {SECRET}\n[key]\n\n"),
        (f"{ISCSI}/{IQN}/ini_groups/g1/per_sess_dedicated_tgt_threads", "1", "1\n[key]\n"),
        (f"{ROOT}/device_groups/dg/target_groups/tg/state", "standby", "standby\n[key]\n"),
        (f"{ROOT}/device_groups/dg/target_groups/tg/iqn.elsewhere/rel_tgt_id", "7", "7\n[key]\n"),
        (f"{ROOT}/sgv/sgv/stats", "0", "Name "),
        (f"{ROOT}/sgv/global_stats", "0", "Inactive/active pages"),
    ):
        await errno_of(root, path, text)
        assert text_of(root, path).startswith(shown), path


@pytest.mark.parametrize("name", ["dump_prs", "gen_tp_soft_threshold_reached_UA", "resync_size"])
async def test_an_action_takes_anything(name: str) -> None:
    _, root = await everything()
    assert await errno_of(root, f"{ROOT}/devices/ploop0/{name}", "1\n") == ""
    with pytest.raises(PermissionDenied):
        opened(root, f"{ROOT}/devices/ploop0/{name}")


async def test_a_read_only_value_cannot_be_opened_for_writing() -> None:
    _, root = await everything()
    for path in ("version", "last_sysfs_mgmt_res", "devices/ploop0/blocksize", f"targets/iscsi/{IQN}/tid"):
        with pytest.raises(PermissionDenied):
            opened(root, f"{ROOT}/{path}", os.O_WRONLY)


VERBS = ("add_device", "del_device", "add", "del", "replace", "clear", "create", "move", "add_target", "value")
NOUNS = ("ploop0", "a", "0", "1", "-1", "0x10", "9" * 20, IQN, "g1", "IncomingUser", "filename=/dev/ploop0")
WORDS = (*VERBS, *NOUNS)
TEXTS = st.text(max_size=40) | st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)


@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
async def test_whatever_is_written_anywhere_is_taken_or_refused_and_everything_still_reads(texts: list[str]) -> None:
    _, root = await everything()
    stores = [path for path, node in walk(root) if path.startswith(OURS) and isinstance(node, Attribute) and node.store]
    for path in stores:
        for text in texts:
            with suppress(KeyError):  # an earlier command has removed it
                await errno_of(root, path, text)
    for path, node in walk(root):
        if path.startswith(OURS) and isinstance(node, Attribute) and node.show is not None:
            assert len(opening(node, 0).read(0, 4096)) < 4096, path
        elif path.startswith(ROOT) and isinstance(node, Link):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), node.target))
            assert isinstance(node_at(root, target), Directory), path
