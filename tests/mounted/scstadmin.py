"""How SCST's own tool drives the tree: its operations as the writes and reads that it makes, and the tool itself.

Both are called alike. `Raw` repeats, byte for byte, what the tool (3.11) was seen to write: without a final newline for
most, in one write(2) to a file that was opened for writing only. What it reads it reads as the tool does: names of
directories, ends of links, and of each attribute that can be read the first line, and whether the next is the key mark.
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.mounted.daemon import HANG_S, opened

TOOL = "scstadmin"
ROOT = "sys/kernel/scst_tgt"


class Failed(Exception):
    """An operation failed; its text is the errno's name, or what the tool said."""


class Driver(Protocol):
    """`attributes` are pairs; a saved configuration is the tool's, as the set of its lines without braces."""

    def open_device(self, name: str, handler: str, attributes: Mapping[str, str]) -> None: ...
    def close_device(self, name: str, handler: str) -> None: ...
    def set_device_attribute(self, name: str, attribute: str, value: str) -> None: ...
    def add_target(self, target: str) -> None: ...
    def enable_target(self, target: str) -> None: ...
    def add_lun(self, target: str, lun: int, device: str, attributes: Mapping[str, str]) -> None: ...
    def remove_lun(self, target: str, lun: int) -> None: ...
    def add_group(self, target: str, group: str) -> None: ...
    def add_initiator(self, target: str, group: str, initiator: str) -> None: ...
    def devices(self) -> list[str]: ...
    def device_attributes(self, name: str) -> dict[str, str]: ...
    def targets(self) -> list[str]: ...
    def groups(self, target: str) -> list[str]: ...
    def saved(self, file: Path) -> list[str]: ...
    def apply(self, file: Path) -> None: ...
    def clear(self) -> None: ...


def _pairs(attributes: Mapping[str, str]) -> str:
    return "".join(f"{name}={value};" for name, value in sorted(attributes.items()))


class Raw:
    def __init__(self, mountpoint: Path) -> None:
        self._root = mountpoint / ROOT

    def open_device(self, name: str, handler: str, attributes: Mapping[str, str]) -> None:
        self._write(f"handlers/{handler}/mgmt", f"add_device {name} {_pairs(attributes)}")

    def close_device(self, name: str, handler: str) -> None:
        self._write(f"handlers/{handler}/mgmt", f"del_device {name}")

    def set_device_attribute(self, name: str, attribute: str, value: str) -> None:
        self._write(f"devices/{name}/{attribute}", value)

    def add_target(self, target: str) -> None:
        self._write("targets/iscsi/mgmt", f"add_target {target} ")

    def enable_target(self, target: str) -> None:
        self._write(f"targets/iscsi/{target}/enabled", "1")

    def add_lun(self, target: str, lun: int, device: str, attributes: Mapping[str, str]) -> None:
        self._write(f"targets/iscsi/{target}/luns/mgmt", f"add {device} {lun} {_pairs(attributes)}")

    def remove_lun(self, target: str, lun: int) -> None:
        self._write(f"targets/iscsi/{target}/luns/mgmt", f"del {lun}")

    def add_group(self, target: str, group: str) -> None:
        self._write(f"targets/iscsi/{target}/ini_groups/mgmt", f"create {group}")

    def add_initiator(self, target: str, group: str, initiator: str) -> None:
        self._write(f"targets/iscsi/{target}/ini_groups/{group}/initiators/mgmt", f"add {initiator}")

    def devices(self) -> list[str]:
        return self._directories("devices")

    def device_attributes(self, name: str) -> dict[str, str]:
        """Those with the mark."""
        found = (attribute for attribute in (self._root / "devices" / name).iterdir() if attribute.is_file())
        read = {attribute.name: self._value(attribute) for attribute in found}
        return {attribute: value[0] for attribute, value in read.items() if value is not None and value[1]}

    def targets(self) -> list[str]:
        return self._directories("targets/iscsi")

    def groups(self, target: str) -> list[str]:
        return self._directories(f"targets/iscsi/{target}/ini_groups")

    def saved(self, file: Path) -> list[str]:
        del file
        return sorted([*self._saved_devices(), *self._saved_targets()])

    def apply(self, file: Path) -> None:
        """The writes with which the tool applied CONFIGURATION."""
        disk = next(line.split()[1] for line in file.read_text().splitlines() if "filename" in line)
        self._write("handlers/vdisk_blockio/mgmt", f"add_device p1 filename={disk};blocksize=4096;")
        self._write("devices/p1/usn", "abc")
        self._write("targets/iscsi/mgmt", "add_target iqn.2024-01.e2e:scst ")
        target = "targets/iscsi/iqn.2024-01.e2e:scst"
        self._write("targets/iscsi/mgmt", "add_target_attribute iqn.2024-01.e2e:scst IncomingUser joe 12charsecret")
        self._write(f"{target}/InitialR2T", "Yes")
        self._write(f"{target}/rel_tgt_id", "1")
        self._write(f"{target}/ini_groups/mgmt", "create g1")
        self._write(f"{target}/ini_groups/g1/luns/mgmt", "add p1 5 ")
        self._write(f"{target}/ini_groups/g1/initiators/mgmt", "add iqn.ini:1")
        self._write(f"{target}/luns/mgmt", "add p1 0 read_only=1;")
        self._write("device_groups/mgmt", "create dg1")
        self._write("device_groups/dg1/devices/mgmt", "add p1")
        self._write("device_groups/dg1/target_groups/mgmt", "add tg1")
        self._write("device_groups/dg1/target_groups/tg1/mgmt", "add iqn.2024-01.e2e:scst")
        self._write("device_groups/dg1/target_groups/tg1/group_id", "5\n")
        self._write(f"{target}/enabled", "1")
        self._write("targets/iscsi/enabled", "1\n")

    def clear(self) -> None:
        for group in self._directories("device_groups"):
            for inner in self._directories(f"device_groups/{group}/target_groups"):
                self._write(f"device_groups/{group}/target_groups/mgmt", f"del {inner}")
            for device in self._directories(f"device_groups/{group}/devices"):
                self._write(f"device_groups/{group}/devices/mgmt", f"del {device}")
            self._write("device_groups/mgmt", f"del {group}")
        self._write("targets/copy_manager/copy_manager_tgt/luns/mgmt", "clear")
        for target in self.targets():
            for group in self.groups(target):
                self._write(f"targets/iscsi/{target}/ini_groups/{group}/initiators/mgmt", "clear")
                self._write(f"targets/iscsi/{target}/ini_groups/{group}/luns/mgmt", "clear")
                self._write(f"targets/iscsi/{target}/ini_groups/mgmt", f"del {group}")
            self._write(f"targets/iscsi/{target}/luns/mgmt", "clear")
            self._write(f"targets/iscsi/{target}/enabled", "0")
            self._write("targets/iscsi/mgmt", f"del_target {target}")
        for handler in self._directories("handlers"):
            for device in self._directories(f"handlers/{handler}"):
                self.close_device(device, handler)
        self._write("targets/iscsi/enabled", "0\n")

    def _saved_devices(self) -> Iterator[str]:
        for handler in self._directories("handlers"):
            names = self._directories(f"handlers/{handler}")
            if names:
                yield f"HANDLER {handler}"
            for name in names:
                yield f"DEVICE {name}"
                yield from (f"{attribute} {value}" for attribute, value in self.device_attributes(name).items())

    def _saved_targets(self) -> Iterator[str]:
        for target in self.targets():
            place = self._root / "targets/iscsi" / target
            yield f"TARGET {target}"
            yield f"enabled {(place / 'enabled').read_text().strip()}"
            for attribute in place.iterdir():
                value = self._value(attribute) if attribute.is_file() else None
                if value is not None and value[1] and attribute.stat().st_mode & stat.S_IWUSR:
                    yield f"{attribute.name} {value[0]}"
            for lun in self._directories(f"targets/iscsi/{target}/luns"):
                yield f"LUN {lun} {os.path.basename(os.readlink(place / 'luns' / lun / 'device'))}"
                read_only = self._value(place / "luns" / lun / "read_only")
                if read_only is not None and read_only[1]:
                    yield f"read_only {read_only[0]}"

    def _directories(self, path: str) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self._root / path) if entry.is_dir())

    @staticmethod
    def _value(attribute: Path) -> tuple[str, bool] | None:
        """The first line, and whether the mark follows; None where nothing can be read."""
        if not attribute.stat().st_mode & stat.S_IRUSR:
            return None
        lines = attribute.read_text().split("\n")
        return lines[0], "[key]" in lines[1:2]

    def _write(self, path: str, text: str) -> None:
        try:
            with opened(self._root / path, os.O_WRONLY) as fd:
                os.write(fd, text.encode())
        except OSError as error:
            raise Failed(os.strerror(error.errno or 0)) from error


class Tool:
    """The tool itself, in a mount namespace in which our directory stands where it looks for SCST."""

    def __init__(self, mountpoint: Path) -> None:
        place = "/sys/kernel"
        self._inside = (
            f"mount -t tmpfs -o mode=755 none {place} && mkdir {place}/scst_tgt && "
            f'mount --bind "{mountpoint / ROOT}" {place}/scst_tgt && exec {TOOL} -noprompt "$@"'
        )

    def open_device(self, name: str, handler: str, attributes: Mapping[str, str]) -> None:
        self._run("-open_dev", name, "-handler", handler, "-attributes", _commas(attributes))

    def close_device(self, name: str, handler: str) -> None:
        self._run("-close_dev", name, "-handler", handler)

    def set_device_attribute(self, name: str, attribute: str, value: str) -> None:
        self._run("-set_dev_attr", name, "-attributes", f"{attribute}={value}")

    def add_target(self, target: str) -> None:
        self._run("-add_target", target, "-driver", "iscsi")

    def enable_target(self, target: str) -> None:
        self._run("-enable_target", target, "-driver", "iscsi")

    def add_lun(self, target: str, lun: int, device: str, attributes: Mapping[str, str]) -> None:
        given = ["-attributes", _commas(attributes)] if attributes else []
        self._run("-add_lun", str(lun), "-driver", "iscsi", "-target", target, "-device", device, *given)

    def remove_lun(self, target: str, lun: int) -> None:
        self._run("-rem_lun", str(lun), "-driver", "iscsi", "-target", target)

    def add_group(self, target: str, group: str) -> None:
        self._run("-add_group", group, "-driver", "iscsi", "-target", target)

    def add_initiator(self, target: str, group: str, initiator: str) -> None:
        self._run("-add_init", initiator, "-driver", "iscsi", "-target", target, "-group", group)

    def devices(self) -> list[str]:
        rows = [line.split() for line in _table(self._run("-list_device"))]
        return sorted(row[-1] for row in rows if row[-1] != "-")

    def device_attributes(self, name: str) -> dict[str, str]:
        return {row[0]: row[1] for row in map(str.split, _table(self._run("-list_dev_attr", name)))}

    def targets(self) -> list[str]:
        return sorted(line.split()[-1] for line in _table(self._run("-list_target", "-driver", "iscsi")))

    def groups(self, target: str) -> list[str]:
        shown = self._run("-list_group", "-driver", "iscsi", "-target", target)
        return sorted(line.split()[1] for line in shown.splitlines() if line.startswith("Group: "))

    def saved(self, file: Path) -> list[str]:
        """Without the copy manager's part, which is numbered by itself."""
        self._run("-write_config", os.fspath(file))
        blocks = file.read_text().split("\n\n")
        ours = "\n".join(block for block in blocks if "copy_manager" not in block and "TARGET_DRIVER" not in block[:20])
        lines = (line.strip(" \t{}") for line in ours.splitlines())
        return sorted(line.replace('"', "") for line in lines if line and not line.startswith("#"))

    def apply(self, file: Path) -> None:
        self._run("-config", os.fspath(file))

    def clear(self) -> None:
        self._run("-force", "-clear_config")

    def _run(self, *arguments: str) -> str:
        command = ["unshare", "-m", "--propagation", "private", "sh", "-c", self._inside, "sh", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
        if done.returncode != 0:
            raise Failed(done.stdout + done.stderr)
        return done.stdout


def _commas(attributes: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in attributes.items())


def _table(shown: str) -> Sequence[str]:
    """The rows under the line of dashes."""
    lines = iter(shown.splitlines())
    for line in lines:
        if line.strip().startswith("---"):
            break
    return [line for line in lines if line.startswith("\t") and line.strip() and "(none)" not in line]


DRIVERS: dict[str, Callable[[Path], Driver]] = {"raw": Raw, **({TOOL: Tool} if shutil.which(TOOL) else {})}
"""The tool is not packaged everywhere; where it is installed it must agree with what was recorded."""
