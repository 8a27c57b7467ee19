"""The transcript of a real SCST 3.11 (iscsi-scst, one disk of 256 MiB), command by command: what was written, what it
answered, and what its attributes then read, to the byte.

The disk was /dev/vda there, and is a disk of the tree here. Nothing else was changed.
"""

import errno
from dataclasses import dataclass, field

import pytest

from ploopfs.errors import PloopError
from ploopfs.sysfs.nodes import Attribute, Directory, Link, Node
from tests.scst.rig import loaded
from tests.sysfs.fakes import node_at, text_of, tree_of, write

ROOT = "sys/kernel/scst_tgt"
DISK = "/dev/ploop0"
IQN = "iqn.2024-01.e2e:scst"
BLOCKIO, ISCSI = "handlers/vdisk_blockio/mgmt", "targets/iscsi/mgmt"
TARGET = f"targets/iscsi/{IQN}"


@dataclass
class Machine:
    root: Directory = field(init=False)

    def __post_init__(self) -> None:
        subsystem = loaded()
        subsystem.disk("ploop0", mib=256)
        self.root = tree_of(subsystem.registry)

    async def echo(self, path: str, text: str) -> str:
        """The errno, and the same number in last_sysfs_mgmt_res."""
        number = 0
        try:
            await write(self.root, f"{ROOT}/{path}", f"{text}\n")
        except PloopError as error:
            number = error.errno
        assert self.read("last_sysfs_mgmt_res") == f"{-number}\n"
        return errno.errorcode.get(number, "")

    def read(self, path: str) -> str:
        return text_of(self.root, f"{ROOT}/{path}")

    def names(self, path: str) -> list[str]:
        node = node_at(self.root, f"{ROOT}/{path}")
        assert isinstance(node, Directory)
        return sorted(node.children())

    def listing(self, path: str) -> dict[str, str]:
        """Names with modes, or with targets of links."""
        node = node_at(self.root, f"{ROOT}/{path}".rstrip("/"))
        assert isinstance(node, Directory)
        return {name: _shape(child) for name, child in node.children().items()}


def _shape(node: Node) -> str:
    match node:
        case Link(target):
            return f"-> {target}"
        case Directory():
            return f"d{node.mode:o}"
        case _:
            return f"{node.mode:o}"


@pytest.fixture
def machine() -> Machine:
    return Machine()


def listed(modes: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1)[::-1] for line in modes.strip().splitlines())


FRESH_ROOT = """
644 async_lun_replace
644 cluster_name
d755 device_groups
d755 devices
644 force_global_sgv_pool
d755 handlers
444 last_sysfs_mgmt_res
644 max_tasklet_cmd
644 measure_latency
644 poll_us
644 setup_id
d755 sgv
644 suspend
d755 targets
644 threads
444 trace_cmds
644 trace_level
444 trace_mcmds
444 version
"""
DEVICE = """
644 active
644 bind_alua_state
644 block
444 blocksize
644 cluster_mode
200 dump_prs
644 eui64_id
644 expl_alua
d755 exported
644 filename
200 gen_tp_soft_threshold_reached_UA
644 inq_vend_specific
644 lb_per_pb_exp
644 max_tgt_dev_commands
644 naa_id
644 numa_node_id
444 nv_cache
644 opt_trans_len
644 pr_file_name
644 pr_state
644 prod_id
644 prod_rev_lvl
444 read_only
444 removable
200 resync_size
444 rotational
644 scsi_device_name
644 size
644 size_mb
200 sync
644 t10_dev_id
644 t10_vend_id
444 thin_provisioned
644 threads_num
644 threads_pool_type
444 tst
444 type
644 usn
644 vend_specific_id
444 write_through
"""
VALUES = {
    "active": "1\n",
    "bind_alua_state": "1\n",
    "block": "0 0\n",
    "blocksize": "512\n",
    "cluster_mode": "0\n",
    "eui64_id": "\n",
    "expl_alua": "0\n",
    "filename": f"{DISK}\n[key]\n\n",
    "inq_vend_specific": "\n",
    "lb_per_pb_exp": "1\n",
    "max_tgt_dev_commands": "64\n",
    "naa_id": "\n",
    "numa_node_id": "-1\n",
    "nv_cache": "0\n",
    "opt_trans_len": "524288\n",
    "pr_file_name": "/var/lib/scst/pr/ploop0\n",
    "pr_state": "version 1\ngeneration 0\n",
    "prod_id": "ploop0\n",
    "prod_rev_lvl": "3110\n",
    "read_only": "0\n",
    "removable": "0\n",
    "rotational": "1\n",
    "scsi_device_name": "\n",
    "size": "268435456\n[key]\n",
    "size_mb": "256\n",
    "t10_dev_id": "465642c7-ploop0\n",
    "t10_vend_id": "SCST_BIO\n",
    "thin_provisioned": "1\n",
    "threads_num": "1\n",
    "threads_pool_type": "per_initiator\n",
    "tst": "1\n",
    "type": "0 - Direct-access device (e.g., magnetic disk)\n",
    "usn": "465642c7\n",
    "vend_specific_id": "465642c7-ploop0\n",
    "write_through": "0\n",
}
ISCSI_TARGET = """
644 DataDigest
644 FirstBurstLength
644 HeaderDigest
644 ImmediateData
644 InitialR2T
644 MaxBurstLength
644 MaxOutstandingR2T
644 MaxRecvDataSegmentLength
644 MaxSessions
644 MaxXmitDataSegmentLength
644 NopInInterval
644 NopInTimeout
644 QueuedCommands
644 RDMAExtensions
644 RspTimeout
644 addr_method
644 aen_disabled
644 alias
444 bidi_cmd_count
444 bidi_io_count_kb
444 bidi_unaligned_cmd_count
644 black_hole
644 comment
644 cpu_mask
644 enabled
644 forward_dst
644 forward_src
644 forwarding
d755 ini_groups
644 io_grouping_type
d755 luns
444 none_cmd_count
644 per_portal_acl
444 read_cmd_count
444 read_io_count_kb
444 read_unaligned_cmd_count
644 redirect
644 rel_tgt_id
d755 sessions
444 sg_tablesize
444 tid
444 unknown_cmd_count
444 write_cmd_count
444 write_io_count_kb
444 write_unaligned_cmd_count
"""
PARAMETERS = (
    "active, bind_alua_state, blocksize, cluster_mode, dif_filename, dif_mode, dif_static_app_tag, dif_type, filename, "
    "numa_node_id, nv_cache, read_only, removable, rotational, thin_provisioned, tst, t10_dev_id, write_through"
)
BLOCKIO_HELP = f"""Usage: echo "add_device device_name [parameters]" >mgmt
       echo "del_device device_name" >mgmt

where parameters are one or more param_name=value pairs separated by ';'

The following parameters available: {PARAMETERS}

"""
ISCSI_HELP = """Usage: echo "add_target target_name [parameters]" >mgmt
       echo "del_target target_name" >mgmt
       echo "add_attribute <attribute> <value>" >mgmt
       echo "del_attribute <attribute> <value>" >mgmt
       echo "add_target_attribute target_name <attribute> <value>" >mgmt
       echo "del_target_attribute target_name <attribute> <value>" >mgmt

where parameters are one or more param_name=value pairs separated by ';'

The following target driver attributes available: IncomingUser, OutgoingUser
The following target attributes available: IncomingUser, OutgoingUser, allowed_portal

"""
LUNS_HELP = """Usage: echo "add H:C:I:L lun [parameters]" >mgmt
       echo "add VNAME lun [parameters]" >mgmt
       echo "del lun" >mgmt
       echo "replace H:C:I:L lun [parameters]" >mgmt
       echo "replace VNAME lun [parameters]" >mgmt
       echo "replace_no_ua H:C:I:L lun [parameters]" >mgmt
       echo "replace_no_ua VNAME lun [parameters]" >mgmt
       echo "clear" >mgmt

where parameters are one or more param_name=value pairs separated by ';'

The following parameters available: read_only
"""


def test_a_fresh_subsystem(machine: Machine) -> None:
    assert machine.listing("") == listed(FRESH_ROOT)
    assert machine.names("handlers") == ["vcdrom", "vdisk_blockio", "vdisk_fileio", "vdisk_nullio"]
    assert machine.listing("handlers/vdisk_blockio") == listed("644 mgmt\n644 trace_level\n444 type")
    assert machine.names("targets") == ["copy_manager", "iscsi"]
    assert machine.listing("targets/iscsi") == listed(
        "644 enabled\n644 iSNSServer\n644 internal_portal\n644 isns_entity_name\n644 link_local\n644 mgmt\n"
        "444 open_state\n644 trace_level\n444 version"
    )
    values = {
        "version": "SCST version: 3.11.0-pre\nSCST build date: \nSCST build number: \nSCST git commit sha1: \n"
        "SCST kver: \nSCST arch type: \nSCST config: EXTRACHECKS, TRACING, DEBUG\n",
        "last_sysfs_mgmt_res": "0\n",
        "setup_id": "0x0\n",
        "suspend": "0\n",
        "threads": "1\n",
        BLOCKIO: BLOCKIO_HELP,
        "handlers/vdisk_blockio/type": "0 - Direct-access device (e.g., magnetic disk)\n",
        ISCSI: ISCSI_HELP,
        "targets/iscsi/enabled": "0\n\n",
        "targets/iscsi/version": "3.11.0-pre\nEXTRACHECKS\nTRACING\nDEBUG\n",
    }
    assert {path: machine.read(path) for path in values} == values


async def test_adding_devices(machine: Machine) -> None:
    assert await machine.echo(BLOCKIO, f"add_device ploop0 filename={DISK}; blocksize=512; nv_cache=0") == ""
    for text, answer in (
        (f"add_device ploop0 filename={DISK}", "EEXIST"),
        ("add_device p2 filename=vda", "EINVAL"),
        ("add_device p2 filename=/nonexistent", "ENOENT"),
        (f"add_device p3 filename={DISK}; bogus=1", "EINVAL"),
        ("add_device p3", "EINVAL"),
        ("add_device", "EINVAL"),
        ("frobnicate x", "EINVAL"),
        ("del_device nodev", "EINVAL"),
    ):
        assert await machine.echo(BLOCKIO, text) == answer, text
    assert machine.names("devices") == ["ploop0"]
    assert machine.listing("devices/ploop0") == listed(DEVICE) | {"handler": "-> ../../handlers/vdisk_blockio"}
    assert machine.listing("devices/ploop0/exported") == {
        "export0": "-> ../../../targets/copy_manager/copy_manager_tgt/luns/0"
    }
    assert machine.listing("handlers/vdisk_blockio") == listed("644 mgmt\n644 trace_level\n444 type") | {
        "ploop0": "-> ../../devices/ploop0"
    }
    readable = {
        name: machine.read(f"devices/ploop0/{name}")
        for name in VALUES
        if isinstance(node_at(machine.root, f"{ROOT}/devices/ploop0/{name}"), Attribute)
    }
    assert readable == VALUES


async def test_targets_and_luns(machine: Machine) -> None:
    await machine.echo(BLOCKIO, f"add_device ploop0 filename={DISK}")
    assert await machine.echo(ISCSI, f"add_target {IQN}") == ""
    assert await machine.echo(ISCSI, f"add_target {IQN}") == "EEXIST"
    assert await machine.echo(ISCSI, "del_target nope") == "ENOENT"
    assert machine.listing(TARGET) == listed(ISCSI_TARGET)
    assert machine.listing(f"{TARGET}/ini_groups") == machine.listing(f"{TARGET}/luns") == {"mgmt": "644"}
    assert machine.read(f"{TARGET}/luns/mgmt") == LUNS_HELP
    assert machine.read(f"{TARGET}/ini_groups/mgmt") == (
        'Usage: echo "create GROUP_NAME" >mgmt\n       echo "del GROUP_NAME" >mgmt\n'
    )
    assert (machine.read(f"{TARGET}/enabled"), machine.read(f"{TARGET}/rel_tgt_id")) == ("0\n", "0\n")
    assert await machine.echo(f"{TARGET}/luns/mgmt", "add ploop0 0") == ""
    for text, answer in (
        ("add ploop0 0", "EEXIST"),
        ("add nodev 1", "EINVAL"),
        ("del 7", "EINVAL"),
        ("add ploop0 99999", "EINVAL"),
        ("replace nodev 0", "EINVAL"),
        ("bogus", "EINVAL"),
    ):
        assert await machine.echo(f"{TARGET}/luns/mgmt", text) == answer, text
    assert machine.listing(f"{TARGET}/luns/0") == {"device": "-> ../../../../../devices/ploop0", "read_only": "444"}
    assert machine.read(f"{TARGET}/luns/0/read_only") == "0\n"
    assert machine.listing("devices/ploop0/exported") == {
        "export0": "-> ../../../targets/copy_manager/copy_manager_tgt/luns/0",
        "export1": f"-> ../../../{TARGET}/luns/0",
    }


async def test_changing_the_file_blocking_enabling_and_deleting(machine: Machine) -> None:
    await machine.echo(BLOCKIO, f"add_device ploop0 filename={DISK}")
    await machine.echo(ISCSI, f"add_target {IQN}")
    await machine.echo(f"{TARGET}/luns/mgmt", "add ploop0 0")
    device = "devices/ploop0"
    assert await machine.echo(f"{device}/filename", "/dev/null") == "EINVAL"
    assert await machine.echo(f"{device}/active", "0") == ""
    assert machine.read(f"{device}/active") == "0\n[key]\n"
    assert machine.read(f"{device}/filename") == f"{DISK}\n[key]\n\n"
    assert await machine.echo(f"{device}/filename", DISK) == ""
    assert await machine.echo(f"{device}/active", "1") == ""
    assert machine.read(f"{device}/active") == "1\n"
    assert await machine.echo(f"{device}/block", "1") == ""
    assert machine.read(f"{device}/block") == "1 0\n"
    assert await machine.echo(f"{device}/block", "0") == ""
    assert await machine.echo(f"{TARGET}/enabled", "1") == ""
    assert await machine.echo("targets/iscsi/enabled", "1") == ""
    assert machine.read(f"{TARGET}/enabled") == "1\n"
    assert machine.read(f"{TARGET}/rel_tgt_id") == "1\n[key]\n"
    assert machine.read("targets/iscsi/enabled") == "1\n\n"
    assert await machine.echo(BLOCKIO, "del_device ploop0") == ""
    assert machine.names("devices") == []
    assert machine.names("handlers/vdisk_blockio") == ["mgmt", "trace_level", "type"]
    assert machine.names(f"{TARGET}/luns") == ["mgmt"]
    assert await machine.echo(BLOCKIO, f"add_device ploop0 filename={DISK}") == ""
    assert machine.listing("devices/ploop0/exported") == {
        "export0": "-> ../../../targets/copy_manager/copy_manager_tgt/luns/1"
    }
    assert await machine.echo(f"{TARGET}/luns/mgmt", "add ploop0 0") == ""
