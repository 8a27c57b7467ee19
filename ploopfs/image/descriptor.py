"""DiskDescriptor.xml: which files make a disk, and in which order (image-format.md 6).

Knows nothing of files and directories: the bytes and the path of the descriptor come in, a value or bytes go out.
Invariant: any bytes whatever give a `Descriptor` or a `BadDescriptor`, and what is written here is read back here.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from ploopfs.bounds import MAX_DELTAS
from ploopfs.errors import BadDescriptor
from ploopfs.image import descriptor_values as values
from ploopfs.image.xml_tree import (
    Element,
    TreeBuilder,
    append,
    branch,
    document_bytes,
    leaf,
    line_break,
)

TOP_GUID = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
NONE_GUID = "{00000000-0000-0000-0000-000000000000}"
"""The parent of a base. It holds no letters, so the original's case-sensitive test for it cannot be told from ours."""

TemporaryKind = Literal["Temporary", "TemporaryZero", "TemporaryZeroSwap"]
_TEMPORARY_KINDS: tuple[TemporaryKind, ...] = ("TemporaryZeroSwap", "TemporaryZero", "Temporary")


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One delta: `file` as it is written, `path` where that is, `plain` if its own Type says so."""

    guid: str
    file: str
    path: str
    plain: bool
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Shot:
    """The place of a delta in the tree of snapshots."""

    guid: str
    parent_guid: str
    temporary_kind: TemporaryKind | None = None
    line: int = field(default=0, compare=False)

    @property
    def temporary(self) -> bool:
        return self.temporary_kind is not None


@dataclass(frozen=True, slots=True)
class Volume:
    """The disk grows out of a snapshot of another descriptor, in the directory `parent`."""

    parent: str | None
    snapshot_guid: str | None
    read_only: bool


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor that the original reader accepts; whether its chain is whole, `chain` tells."""

    path: str
    disk_size_sectors: int | None
    cylinders: int | None
    heads: int | None
    cluster_sectors: int
    preallocated: bool
    raw_base: bool
    images: tuple[ImageEntry, ...]
    shots: tuple[Shot, ...]
    top_guid: str
    max_delta_size: int = 0
    encryption_key_id: str | None = None
    volume: Volume | None = None

    def chain(self, guid: str | None = None) -> tuple[ImageEntry, ...]:
        """The images from the base up to `guid` (the top if not given).

        Raises BadDescriptor on a GUID without Shot or without Image, and on a loop.
        """
        # Of two equal GUIDs the first is meant, as in the original, which searches from the front.
        shots = {shot.guid.lower(): shot for shot in reversed(self.shots)}
        images = {image.guid.lower(): image for image in reversed(self.images)}
        downwards: list[ImageEntry] = []
        visited: set[str] = set()
        wanted, line = self.top_guid if guid is None else guid, 0
        while not downwards or wanted != NONE_GUID:
            key = wanted.lower()
            if key in visited:
                raise BadDescriptor(self.path, f"ParentGUID {wanted} closes a loop of snapshots", line=line)
            visited.add(key)
            if key not in shots:
                raise BadDescriptor(self.path, f"no Shot has the GUID {wanted}{self._elsewhere(line)}", line=line)
            if key not in images:
                raise BadDescriptor(self.path, f"no Image has the GUID {wanted} of this Shot", line=shots[key].line)
            downwards.append(images[key])
            wanted, line = shots[key].parent_guid, shots[key].line
        return tuple(reversed(downwards))

    def _elsewhere(self, line: int) -> str:
        if line and self.volume is not None and self.volume.parent is not None:
            return f" (the disk is a volume; its lower images are described in {self.volume.parent})"
        return ", which a ParentGUID names" if line else ""


def parse(data: bytes, path: str) -> Descriptor:
    """Read a descriptor by the rules of the original reader (6.3), and refuse what it refuses.

    `path` names the descriptor with symbolic links resolved: as in the original, a leading "../" of a File
    is taken off the directory's name. DOCTYPE is refused although the original takes it: only there can entities
    be declared, and no descriptor needs them.
    """
    return _Reader(path).read(TreeBuilder(path).build(data))


def new_descriptor(
    path: str,
    *,
    disk_size_sectors: int,
    cylinders: int,
    heads: int,
    cluster_sectors: int,
    file: str,
    raw_base: bool = False,
) -> Descriptor:
    """The descriptor of a fresh disk: one image, which has the constant top GUID."""
    values.check_cluster_sectors(path, cluster_sectors)
    values.check_file(path, file)
    return Descriptor(
        path=path,
        disk_size_sectors=disk_size_sectors,
        cylinders=cylinders,
        heads=heads,
        cluster_sectors=cluster_sectors,
        preallocated=False,
        raw_base=raw_base,
        images=(ImageEntry(TOP_GUID, file, values.resolved(path, file), raw_base),),
        shots=(Shot(TOP_GUID, NONE_GUID),),
        top_guid=TOP_GUID,
    )


def serialise(descriptor: Descriptor) -> bytes:
    """The bytes that the original writes for this descriptor (6.1): an absent number becomes 0, unknown elements go."""
    root = branch(
        0,
        "Virtuozzo_disk_image",
        branch(1, "Disk_Parameters", *_parameter_elements(descriptor)),
        branch(1, "StorageData", *_storage_elements(descriptor)),
        branch(1, "Snapshots", leaf("TopGUID", descriptor.top_guid), *map(_shot_element, descriptor.shots)),
    )
    return document_bytes(Element("", children=[root]))


def with_snapshot(data: bytes, path: str, *, snapshot_guid: str, new_file: str) -> bytes:
    """The descriptor after a snapshot (6.2): the old top is frozen under `snapshot_guid`, `new_file` is the new top.

    Everything that is not known here (elements, attributes, comments) stays as it is. What may differ in bytes:
    the XML declaration, the encoding (UTF-8), the spelling of character references, space outside the root.
    """
    document = TreeBuilder(path).build(data)
    descriptor = _Reader(path).read(document)
    _check_snapshot(descriptor, snapshot_guid, new_file)
    storage, snapshots = document.get("", "StorageData", "Storage"), document.get("", "Snapshots")
    # The Shot of a legacy single image is understood, not written (6.3); from now on it must stand there.
    for understood in descriptor.shots[len(snapshots.from_first("Shot")) :]:
        append(snapshots, _shot_element(understood), depth=2)
    renamed = [image.find("GUID") for image in storage.from_first("Image")]
    renamed += [shot.find(name) for shot in snapshots.from_first("Shot") for name in ("GUID", "ParentGUID")]
    for element in renamed:
        if element is not None and (element.text or "").lower() == descriptor.top_guid.lower():
            element.children = [snapshot_guid]
    append(storage, _image_element(TOP_GUID, new_file, plain=descriptor.raw_base), depth=3)
    append(snapshots, _shot_element(Shot(TOP_GUID, snapshot_guid)), depth=2)
    _set_top(snapshots)
    written = document_bytes(document)
    parse(written, path)  # What has outgrown a bound of the reader must not reach the disk.
    return written


class _Reader:
    """The rules of 6.3 over a tree; its one state is the path that errors name."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, document: Element) -> Descriptor:
        root = document.get("")
        parameters = self._required(root, "Disk_Parameters")
        cylinders, heads = (_optional_number(parameters, name) for name in ("Cylinders", "Heads"))
        storage_data = self._required(root, "StorageData")
        storage = self._storage(storage_data)
        images = self._images(storage)
        raw_base = any(image.plain for image in images)
        snapshots = self._required(root, "Snapshots")
        shots = self._shots(snapshots, len(images))
        return Descriptor(
            path=self._path,
            disk_size_sectors=_optional_number(parameters, "Disk_size"),
            cylinders=None if cylinders is None else cylinders & values.UINT_MASK,
            heads=None if heads is None else heads & values.UINT_MASK,
            cluster_sectors=self._cluster_sectors(storage),
            preallocated=self._preallocated(storage, raw_base=raw_base),
            raw_base=raw_base,
            images=images,
            shots=shots,
            top_guid=self._top_guid(snapshots, shots),
            max_delta_size=_optional_number(parameters, "Max_delta_size") or 0,
            encryption_key_id=_encryption_key_id(parameters),
            volume=self._volume(storage_data),
        )

    def _refuse(self, element: Element, reason: str) -> NoReturn:
        raise BadDescriptor(self._path, reason, line=element.line)

    def _required(self, parent: Element, name: str) -> Element:
        element = parent.find(name)
        return self._refuse(parent, f"{parent.name} has no {name}") if element is None else element

    def _required_text(self, parent: Element, name: str) -> str:
        element = self._required(parent, name)
        text = element.text
        return self._refuse(element, f"{name} of {parent.name} is empty") if text is None else text

    def _guid(self, parent: Element, name: str) -> str:
        guid = self._required_text(parent, name)
        if not values.GUID.fullmatch(guid):
            self._refuse(
                parent.get(name), f"{name} of {parent.name} is {values.shown(guid)}, expected {values.GUID_FORM}"
            )
        return guid

    def _storage(self, storage_data: Element) -> Element:
        storage = self._required(storage_data, "Storage")
        # Whatever follows a Storage counts as a further one to the original, by any name.
        for further in storage_data.from_first("Storage")[1:]:
            self._refuse(further, f"{further.name} follows Storage in StorageData: splitted disks are not supported")
        return storage

    def _cluster_sectors(self, storage: Element) -> int:
        text = self._required_text(storage, "Blocksize")
        number = values.c_number(text)
        element = storage.get("Blocksize")
        if number is None:
            self._refuse(element, f"Blocksize is {values.shown(text)}, expected a number")
        values.check_cluster_sectors(self._path, number & values.UINT_MASK, line=element.line)
        return number & values.UINT_MASK

    def _preallocated(self, storage: Element, *, raw_base: bool) -> bool:
        element = storage.find("Preallocated")
        if element is None:
            return False
        number = None if element.text is None else values.c_number(element.text)
        if number not in (0, 1):
            self._refuse(element, f"Preallocated is {values.shown(element.text or '')}, expected 0 or 1")
        if number and raw_base:
            self._refuse(element, "Preallocated is 1, which does not go with an Image of Type Plain")
        return number == 1

    def _images(self, storage: Element) -> tuple[ImageEntry, ...]:
        elements = storage.from_first("Image")
        if not elements:
            self._refuse(storage, "Storage has no Image")
        return tuple(self._image(element) for element in elements)

    def _image(self, element: Element) -> ImageEntry:
        guid, file = self._guid(element, "GUID"), self._required_text(element, "File")
        kind = element.find("Type")
        plain = kind is not None and kind.text == "Plain"
        return ImageEntry(guid, file, values.resolved(self._path, file), plain, element.line)

    def _shots(self, snapshots: Element, image_count: int) -> tuple[Shot, ...]:
        shots = [self._shot(element) for element in snapshots.from_first("Shot")]
        if len(shots) != image_count:
            shots.append(Shot(TOP_GUID, NONE_GUID, line=snapshots.line))
        if len(shots) != image_count:
            count = len(shots) - 1
            self._refuse(snapshots, f"Snapshots has {count} Shot, expected one for each Image ({image_count})")
        return tuple(shots)

    def _shot(self, element: Element) -> Shot:
        kind = next((kind for kind in _TEMPORARY_KINDS if element.find(kind) is not None), None)
        return Shot(self._guid(element, "GUID"), self._guid(element, "ParentGUID"), kind, element.line)

    def _top_guid(self, snapshots: Element, shots: Sequence[Shot]) -> str:
        element = snapshots.find("TopGUID")
        guid = TOP_GUID if element is None else self._guid(snapshots, "TopGUID")
        blamed = snapshots if element is None else element
        top = next((shot for shot in shots if shot.guid.lower() == guid.lower()), None)
        if top is None:
            self._refuse(blamed, f"TopGUID is {guid}, which no Shot has")
        if top.temporary:
            self._refuse(blamed, f"TopGUID is {guid}, whose Shot is marked {top.temporary_kind}")
        return guid

    def _volume(self, storage_data: Element) -> Volume | None:
        element = storage_data.find("Volume")
        if element is None:
            return None
        parent = self._required_text(element, "Parent") if element.find("Parent") else None
        guid = self._required_text(element, "SnapshotGUID") if element.find("SnapshotGUID") else None
        return Volume(parent, guid, read_only=element.find("ReadOnly") is not None)


def _encryption_key_id(parameters: Element) -> str | None:
    encryption = parameters.find("Encryption")
    key_id = None if encryption is None else encryption.find("KeyId")
    return None if key_id is None else key_id.text


def _optional_number(parent: Element, name: str) -> int | None:
    """A number that is not one counts as absent: the original does not look at it any more closely."""
    element = parent.find(name)
    return None if element is None or element.text is None else values.c_number(element.text)


def _check_snapshot(descriptor: Descriptor, snapshot_guid: str, new_file: str) -> None:
    path, top = descriptor.path, descriptor.top_guid.lower()
    if descriptor.volume is not None:
        raise BadDescriptor(path, "Volume: snapshots of a disk that grows out of another one are not supported")
    if not values.GUID.fullmatch(snapshot_guid):
        raise BadDescriptor(path, f"the snapshot's GUID is {values.shown(snapshot_guid)}, expected {values.GUID_FORM}")
    taken = {TOP_GUID, NONE_GUID}
    for entries in (descriptor.images, descriptor.shots):
        guids = Counter(entry.guid.lower() for entry in entries)
        for guid, count in guids.items():
            # Renaming the top would rename both of a pair, and leave no telling which of them was frozen.
            if count > 1:
                raise BadDescriptor(path, f"GUID {guid} stands for more than one Image or Shot")
        taken.update(guids)
        if top != TOP_GUID and TOP_GUID in guids:
            raise BadDescriptor(path, f"TopGUID is {top}, and {TOP_GUID} is taken: it cannot become the top")
    if snapshot_guid.lower() in taken:
        raise BadDescriptor(path, f"the snapshot's GUID {snapshot_guid} is taken")
    # The limit is on a chain (5): snapshots aside of it do not count, as in the original.
    if len(descriptor.chain()) >= MAX_DELTAS:
        raise BadDescriptor(path, f"the chain of TopGUID has {MAX_DELTAS} Image already, which is the limit")
    values.check_file(path, new_file)
    if values.resolved(path, new_file) in {image.path for image in descriptor.images}:
        raise BadDescriptor(path, f"File is {new_file}, which is an Image of this disk already")


def _parameter_elements(descriptor: Descriptor) -> Iterator[Element]:
    size, cylinders, heads = (descriptor.disk_size_sectors or 0, descriptor.cylinders or 0, descriptor.heads or 0)
    yield leaf("Disk_size", size)
    if descriptor.max_delta_size:
        yield leaf("Max_delta_size", descriptor.max_delta_size)
    yield leaf("Cylinders", cylinders)
    yield leaf("Heads", heads)
    yield leaf("Sectors", size // (cylinders * heads) if cylinders and heads else 0)
    yield leaf("Padding", 0)
    if descriptor.encryption_key_id is not None:
        yield branch(2, "Encryption", leaf("KeyId", descriptor.encryption_key_id))


def _storage_elements(descriptor: Descriptor) -> Iterator[Element]:
    volume = descriptor.volume
    if volume is not None:
        named = {"Parent": volume.parent, "SnapshotGUID": volume.snapshot_guid, "ReadOnly": volume.read_only and 1}
        yield branch(2, "Volume", *(leaf(name, value) for name, value in named.items() if value))
    size = descriptor.disk_size_sectors or 0
    head = [leaf("Start", 0), leaf("End", size), leaf("Blocksize", descriptor.cluster_sectors)]
    if descriptor.preallocated:
        head.append(leaf("Preallocated", 1))
    # Type tells the format of the whole disk, not of its image: the original writes the same one everywhere (6.1).
    images = [_image_element(image.guid, image.file, plain=descriptor.raw_base) for image in descriptor.images]
    yield branch(2, "Storage", *head, *images)


def _image_element(guid: str, file: str, *, plain: bool) -> Element:
    kind = "Plain" if plain else "Compressed"
    return branch(3, "Image", leaf("GUID", guid), leaf("Type", kind), leaf("File", file))


def _shot_element(shot: Shot) -> Element:
    marks = [leaf(shot.temporary_kind, "")] if shot.temporary_kind else []
    return branch(2, "Shot", leaf("GUID", shot.guid), leaf("ParentGUID", shot.parent_guid), *marks)


def _set_top(snapshots: Element) -> None:
    top = snapshots.find("TopGUID")
    if top is not None:
        top.children = [TOP_GUID]
    else:
        # In front, because every element behind the first Shot is read as a Shot.
        snapshots.children[:0] = [line_break(2), leaf("TopGUID", TOP_GUID)]
