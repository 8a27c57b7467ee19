"""DiskDescriptor.xml: which files make a disk, and in which order (image-format.md 6).

Knows nothing of files and directories: the bytes and the path of the descriptor come in, a value or bytes go out.
Invariant: any bytes whatever give a `Descriptor` or a `BadDescriptor`, and what is written here is read back here.
"""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn
from xml.parsers import expat

from ploopfs.errors import BadDescriptor
from ploopfs.image.header import MAX_CLUSTER_SECTORS, MIN_CLUSTER_SECTORS

MAX_DESCRIPTOR_BYTES = 1 << 20
"""A descriptor of 127 images is some 60 KiB; the bound keeps the wrong file from being read into memory."""
MAX_NESTING = 64
MAX_IMAGES = 127
"""Files of one chain: a base and 126 snapshots (5)."""

TOP_GUID = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
NONE_GUID = "{00000000-0000-0000-0000-000000000000}"
"""The parent of a base. It holds no letters, so the original's case-sensitive test for it cannot be told from ours."""

TemporaryKind = Literal["Temporary", "TemporaryZero", "TemporaryZeroSwap"]
_TEMPORARY_KINDS: tuple[TemporaryKind, ...] = ("TemporaryZeroSwap", "TemporaryZero", "Temporary")

_GUID = re.compile(r"\{[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\}")
_GUID_FORM = "{8-4-4-4-12 hex digits}"
_C_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")
_ULONG_MAX = (1 << 64) - 1
_UINT_MASK = (1 << 32) - 1


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
    return _Reader(path).read(_TreeBuilder(path).build(data))


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
    _check_cluster_sectors(path, cluster_sectors)
    _check_file(path, file)
    return Descriptor(
        path=path,
        disk_size_sectors=disk_size_sectors,
        cylinders=cylinders,
        heads=heads,
        cluster_sectors=cluster_sectors,
        preallocated=False,
        raw_base=raw_base,
        images=(ImageEntry(TOP_GUID, file, _resolved(path, file), raw_base),),
        shots=(Shot(TOP_GUID, NONE_GUID),),
        top_guid=TOP_GUID,
    )


def serialise(descriptor: Descriptor) -> bytes:
    """The bytes that the original writes for this descriptor (6.1): an absent number becomes 0, unknown elements go."""
    root = _branch(
        0,
        "Virtuozzo_disk_image",
        _branch(1, "Disk_Parameters", *_parameter_elements(descriptor)),
        _branch(1, "StorageData", *_storage_elements(descriptor)),
        _branch(1, "Snapshots", _leaf("TopGUID", descriptor.top_guid), *map(_shot_element, descriptor.shots)),
    )
    return _document_bytes(_Element("", children=[root]))


def with_snapshot(data: bytes, path: str, *, snapshot_guid: str, new_file: str) -> bytes:
    """The descriptor after a snapshot (6.2): the old top is frozen under `snapshot_guid`, `new_file` is the new top.

    Everything that is not known here (elements, attributes, comments) stays as it is. What may differ in bytes:
    the XML declaration, the encoding (UTF-8), the spelling of character references, space outside the root.
    """
    document = _TreeBuilder(path).build(data)
    descriptor = _Reader(path).read(document)
    _check_snapshot(descriptor, snapshot_guid, new_file)
    storage, snapshots = document.get("", "StorageData", "Storage"), document.get("", "Snapshots")
    # The Shot of a legacy single image is understood, not written (6.3); from now on it must stand there.
    for understood in descriptor.shots[len(snapshots.from_first("Shot")) :]:
        _append(snapshots, _shot_element(understood), depth=2)
    renamed = [image.find("GUID") for image in storage.from_first("Image")]
    renamed += [shot.find(name) for shot in snapshots.from_first("Shot") for name in ("GUID", "ParentGUID")]
    for element in renamed:
        if element is not None and (element.text or "").lower() == descriptor.top_guid.lower():
            element.children = [snapshot_guid]
    _append(storage, _image_element(TOP_GUID, new_file, plain=descriptor.raw_base), depth=3)
    _append(snapshots, _shot_element(Shot(TOP_GUID, snapshot_guid)), depth=2)
    _set_top(snapshots)
    written = _document_bytes(document)
    parse(written, path)  # What has outgrown a bound of the reader must not reach the disk.
    return written


@dataclass(frozen=True, slots=True)
class _Markup:
    """A comment, a processing instruction or a CDATA section, as it is written."""

    xml: str


@dataclass(slots=True, eq=False)
class _Element:
    """An element of a tree that keeps lines, comments, and where one run of text ends and the next begins.

    The document itself is one too, without a name, holding the root.
    """

    name: str
    line: int = 0
    attributes: dict[str, str] = field(default_factory=dict)
    children: list["_Node"] = field(default_factory=list)

    def elements(self) -> Iterator["_Element"]:
        return (child for child in self.children if isinstance(child, _Element))

    def find(self, name: str) -> "_Element | None":
        """The first child of that name; an empty name finds the first of any, since nothing depends on the root's."""
        return next((child for child in self.elements() if name in ("", child.name)), None)

    def get(self, *names: str) -> "_Element":
        """The element at the end of a way that is known to exist."""
        element = self
        for name in names:
            found = element.find(name)
            assert found is not None, name
            element = found
        return element

    def from_first(self, name: str) -> list["_Element"]:
        """The first child of that name with every element after it, of whatever name.

        That is how the original finds the Images and the Shots, so a stray element behind the first is not skipped.
        """
        elements = list(self.elements())
        return next((elements[index:] for index, child in enumerate(elements) if child.name == name), [])

    @property
    def text(self) -> str | None:
        """The first run of text: a comment ends it, a CDATA section is none (6.3: nothing is trimmed)."""
        return next((child for child in self.children if isinstance(child, str)), None)


_Node = _Element | _Markup | str


class _TreeBuilder:
    """Turns bytes into elements, within bounds and without entities."""

    # What expat decodes by itself; any other name would be looked up among Python's codecs, which raise what they like.
    _ENCODINGS = ("UTF-8", "UTF-16", "UTF-16LE", "UTF-16BE", "ISO-8859-1", "US-ASCII")

    def __init__(self, path: str) -> None:
        self._path = path
        self._open = [_Element("")]
        self._cdata: list[str] | None = None
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.CommentHandler = lambda data: self._add(_Markup(f"<!--{data}-->"))
        parser.ProcessingInstructionHandler = lambda target, data: self._add(_Markup(f"<?{target} {data}?>"))
        parser.StartCdataSectionHandler = self._start_cdata
        parser.EndCdataSectionHandler = self._end_cdata

    def build(self, data: bytes) -> _Element:
        if len(data) > MAX_DESCRIPTOR_BYTES:
            raise BadDescriptor(self._path, f"it has {len(data)} bytes, expected at most {MAX_DESCRIPTOR_BYTES}")
        try:
            self._parser.Parse(data, True)
        except expat.ExpatError as error:
            reason = f"not well-formed XML: {expat.ErrorString(error.code)}"
            raise BadDescriptor(self._path, reason, line=error.lineno) from None
        return self._open[0]

    def _refuse(self, reason: str) -> NoReturn:
        raise BadDescriptor(self._path, reason, line=self._parser.CurrentLineNumber)

    def _declaration(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.upper() not in self._ENCODINGS:
            expected = ", ".join(self._ENCODINGS)
            self._refuse(f"encoding of the XML declaration is {_shown(encoding)}, expected one of {expected}")

    def _doctype(self, name: str, _system_id: str | None, _public_id: str | None, _has_internal_subset: bool) -> None:
        self._refuse(f"DOCTYPE {name} is refused: a descriptor has no use for entities")

    def _add(self, node: _Node) -> None:
        self._open[-1].children.append(node)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) > MAX_NESTING:
            self._refuse(f"{name} is nested deeper than {MAX_NESTING} elements")
        element = _Element(name, self._parser.CurrentLineNumber, attributes)
        self._add(element)
        self._open.append(element)

    def _end(self, _name: str) -> None:
        self._open.pop()

    def _characters(self, data: str) -> None:
        children = self._open[-1].children
        if self._cdata is not None:
            self._cdata.append(data)
        elif children and isinstance(last := children[-1], str):
            children[-1] = last + data
        else:
            children.append(data)

    def _start_cdata(self) -> None:
        self._cdata = []

    def _end_cdata(self) -> None:
        self._add(_Markup(f"<![CDATA[{''.join(self._cdata or ())}]]>"))
        self._cdata = None


class _Reader:
    """The rules of 6.3 over a tree; its one state is the path that errors name."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, document: _Element) -> Descriptor:
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
            cylinders=None if cylinders is None else cylinders & _UINT_MASK,
            heads=None if heads is None else heads & _UINT_MASK,
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

    def _refuse(self, element: _Element, reason: str) -> NoReturn:
        raise BadDescriptor(self._path, reason, line=element.line)

    def _required(self, parent: _Element, name: str) -> _Element:
        element = parent.find(name)
        return self._refuse(parent, f"{parent.name} has no {name}") if element is None else element

    def _required_text(self, parent: _Element, name: str) -> str:
        element = self._required(parent, name)
        text = element.text
        return self._refuse(element, f"{name} of {parent.name} is empty") if text is None else text

    def _guid(self, parent: _Element, name: str) -> str:
        guid = self._required_text(parent, name)
        if not _GUID.fullmatch(guid):
            self._refuse(parent.get(name), f"{name} of {parent.name} is {_shown(guid)}, expected {_GUID_FORM}")
        return guid

    def _storage(self, storage_data: _Element) -> _Element:
        storage = self._required(storage_data, "Storage")
        # Whatever follows a Storage counts as a further one to the original, by any name.
        for further in storage_data.from_first("Storage")[1:]:
            self._refuse(further, f"{further.name} follows Storage in StorageData: splitted disks are not supported")
        return storage

    def _cluster_sectors(self, storage: _Element) -> int:
        text = self._required_text(storage, "Blocksize")
        number = _c_number(text)
        element = storage.get("Blocksize")
        if number is None:
            self._refuse(element, f"Blocksize is {_shown(text)}, expected a number")
        _check_cluster_sectors(self._path, number & _UINT_MASK, line=element.line)
        return number & _UINT_MASK

    def _preallocated(self, storage: _Element, *, raw_base: bool) -> bool:
        element = storage.find("Preallocated")
        if element is None:
            return False
        number = None if element.text is None else _c_number(element.text)
        if number not in (0, 1):
            self._refuse(element, f"Preallocated is {_shown(element.text or '')}, expected 0 or 1")
        if number and raw_base:
            self._refuse(element, "Preallocated is 1, which does not go with an Image of Type Plain")
        return number == 1

    def _images(self, storage: _Element) -> tuple[ImageEntry, ...]:
        elements = storage.from_first("Image")
        if not elements:
            self._refuse(storage, "Storage has no Image")
        return tuple(self._image(element) for element in elements)

    def _image(self, element: _Element) -> ImageEntry:
        guid, file = self._guid(element, "GUID"), self._required_text(element, "File")
        kind = element.find("Type")
        plain = kind is not None and kind.text == "Plain"
        return ImageEntry(guid, file, _resolved(self._path, file), plain, element.line)

    def _shots(self, snapshots: _Element, image_count: int) -> tuple[Shot, ...]:
        shots = [self._shot(element) for element in snapshots.from_first("Shot")]
        if len(shots) != image_count:
            shots.append(Shot(TOP_GUID, NONE_GUID, line=snapshots.line))
        if len(shots) != image_count:
            count = len(shots) - 1
            self._refuse(snapshots, f"Snapshots has {count} Shot, expected one for each Image ({image_count})")
        return tuple(shots)

    def _shot(self, element: _Element) -> Shot:
        kind = next((kind for kind in _TEMPORARY_KINDS if element.find(kind) is not None), None)
        return Shot(self._guid(element, "GUID"), self._guid(element, "ParentGUID"), kind, element.line)

    def _top_guid(self, snapshots: _Element, shots: Sequence[Shot]) -> str:
        element = snapshots.find("TopGUID")
        guid = TOP_GUID if element is None else self._guid(snapshots, "TopGUID")
        blamed = snapshots if element is None else element
        top = next((shot for shot in shots if shot.guid.lower() == guid.lower()), None)
        if top is None:
            self._refuse(blamed, f"TopGUID is {guid}, which no Shot has")
        if top.temporary:
            self._refuse(blamed, f"TopGUID is {guid}, whose Shot is marked {top.temporary_kind}")
        return guid

    def _volume(self, storage_data: _Element) -> Volume | None:
        element = storage_data.find("Volume")
        if element is None:
            return None
        parent = self._required_text(element, "Parent") if element.find("Parent") else None
        guid = self._required_text(element, "SnapshotGUID") if element.find("SnapshotGUID") else None
        return Volume(parent, guid, read_only=element.find("ReadOnly") is not None)


def _encryption_key_id(parameters: _Element) -> str | None:
    encryption = parameters.find("Encryption")
    key_id = None if encryption is None else encryption.find("KeyId")
    return None if key_id is None else key_id.text


def _optional_number(parent: _Element, name: str) -> int | None:
    """A number that is not one counts as absent: the original does not look at it any more closely."""
    element = parent.find(name)
    return None if element is None or element.text is None else _c_number(element.text)


def _c_number(text: str) -> int | None:
    """What strtoul of base 0 makes of the whole text on a 64-bit machine; None if it stops before the end."""
    match = _C_NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, hexadecimal, octal, decimal = match.groups()
    if decimal is not None:
        # Python refuses to convert very long decimals, and all of them saturate anyway.
        value = int(decimal) if len(decimal) <= 20 else _ULONG_MAX
    else:
        value = int(hexadecimal, 16) if hexadecimal is not None else int(octal, 8)
    if value >= _ULONG_MAX:
        return _ULONG_MAX
    return -value & _ULONG_MAX if sign == "-" else value


def _check_cluster_sectors(path: str, value: int, *, line: int = 0) -> None:
    if value & (value - 1) or not MIN_CLUSTER_SECTORS <= value <= MAX_CLUSTER_SECTORS:
        expected = f"a power of two from {MIN_CLUSTER_SECTORS} to {MAX_CLUSTER_SECTORS}"
        raise BadDescriptor(path, f"Blocksize is {value}, expected {expected}", line=line)


def _check_file(path: str, file: str) -> None:
    """A name that XML can carry; the undecodable bytes of a file name, for one, it cannot."""
    if not re.fullmatch(r"[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+", file):
        raise BadDescriptor(path, f"File is {_shown(file)}, expected characters that XML can hold")


def _check_snapshot(descriptor: Descriptor, snapshot_guid: str, new_file: str) -> None:
    path, top = descriptor.path, descriptor.top_guid.lower()
    if descriptor.volume is not None:
        raise BadDescriptor(path, "Volume: snapshots of a disk that grows out of another one are not supported")
    if not _GUID.fullmatch(snapshot_guid):
        raise BadDescriptor(path, f"the snapshot's GUID is {_shown(snapshot_guid)}, expected {_GUID_FORM}")
    taken = {TOP_GUID, NONE_GUID}
    for entries in (descriptor.images, descriptor.shots):
        guids = [entry.guid.lower() for entry in entries]
        for guid in guids:
            # Renaming the top would rename both of a pair, and leave no telling which of them was frozen.
            if guids.count(guid) > 1:
                raise BadDescriptor(path, f"GUID {guid} stands for more than one Image or Shot")
        taken.update(guids)
        if top != TOP_GUID and TOP_GUID in guids:
            raise BadDescriptor(path, f"TopGUID is {top}, and {TOP_GUID} is taken: it cannot become the top")
    if snapshot_guid.lower() in taken:
        raise BadDescriptor(path, f"the snapshot's GUID {snapshot_guid} is taken")
    # The limit is on a chain (5): snapshots aside of it do not count, as in the original.
    if len(descriptor.chain()) >= MAX_IMAGES:
        raise BadDescriptor(path, f"the chain of TopGUID has {MAX_IMAGES} Image already, which is the limit")
    _check_file(path, new_file)
    if _resolved(path, new_file) in {image.path for image in descriptor.images}:
        raise BadDescriptor(path, f"File is {new_file}, which is an Image of this disk already")


def _shown(text: str) -> str:
    """A value for a message: quoted, so that blanks are seen, and not at any length."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _resolved(descriptor_path: str, file: str) -> str:
    """Where a File is (6.3): slashes collapsed, leading "../" taken off the directory, the rest left to the kernel."""
    name = re.sub("/+", "/", file)
    name = name.rstrip("/") or name
    directory = posixpath.dirname(descriptor_path)
    while name.startswith("../") and posixpath.basename(directory) not in ("", ".", ".."):
        name, directory = name[len("../") :], posixpath.dirname(directory)
    return posixpath.join(directory, name)


def _parameter_elements(descriptor: Descriptor) -> Iterator[_Element]:
    size, cylinders, heads = (descriptor.disk_size_sectors or 0, descriptor.cylinders or 0, descriptor.heads or 0)
    yield _leaf("Disk_size", size)
    if descriptor.max_delta_size:
        yield _leaf("Max_delta_size", descriptor.max_delta_size)
    yield _leaf("Cylinders", cylinders)
    yield _leaf("Heads", heads)
    yield _leaf("Sectors", size // (cylinders * heads) if cylinders and heads else 0)
    yield _leaf("Padding", 0)
    if descriptor.encryption_key_id is not None:
        yield _branch(2, "Encryption", _leaf("KeyId", descriptor.encryption_key_id))


def _storage_elements(descriptor: Descriptor) -> Iterator[_Element]:
    volume = descriptor.volume
    if volume is not None:
        named = {"Parent": volume.parent, "SnapshotGUID": volume.snapshot_guid, "ReadOnly": volume.read_only and 1}
        yield _branch(2, "Volume", *(_leaf(name, value) for name, value in named.items() if value))
    size = descriptor.disk_size_sectors or 0
    head = [_leaf("Start", 0), _leaf("End", size), _leaf("Blocksize", descriptor.cluster_sectors)]
    if descriptor.preallocated:
        head.append(_leaf("Preallocated", 1))
    # Type tells the format of the whole disk, not of its image: the original writes the same one everywhere (6.1).
    images = [_image_element(image.guid, image.file, plain=descriptor.raw_base) for image in descriptor.images]
    yield _branch(2, "Storage", *head, *images)


def _image_element(guid: str, file: str, *, plain: bool) -> _Element:
    kind = "Plain" if plain else "Compressed"
    return _branch(3, "Image", _leaf("GUID", guid), _leaf("Type", kind), _leaf("File", file))


def _shot_element(shot: Shot) -> _Element:
    marks = [_leaf(shot.temporary_kind, "")] if shot.temporary_kind else []
    return _branch(2, "Shot", _leaf("GUID", shot.guid), _leaf("ParentGUID", shot.parent_guid), *marks)


def _leaf(name: str, value: object) -> _Element:
    text = str(value)
    return _Element(name, children=[text] if text else [])


def _branch(depth: int, name: str, *children: _Element) -> _Element:
    element = _Element(name)
    for child in children:
        _append(element, child, depth=depth + 1)
    return element


def _append(parent: _Element, child: _Element, *, depth: int) -> None:
    """Put `child`, itself `depth` levels deep, behind the last element of `parent`, on a line of its own."""
    elements = [index for index, node in enumerate(parent.children) if isinstance(node, _Element)]
    if elements:
        parent.children[elements[-1] + 1 : elements[-1] + 1] = [_line_break(depth), child]
    else:
        parent.children = [_line_break(depth), child, _line_break(depth - 1)]


def _set_top(snapshots: _Element) -> None:
    top = snapshots.find("TopGUID")
    if top is not None:
        top.children = [TOP_GUID]
    else:
        # In front, because every element behind the first Shot is read as a Shot.
        snapshots.children[:0] = [_line_break(2), _leaf("TopGUID", TOP_GUID)]


def _line_break(depth: int) -> str:
    return "\n" + "  " * depth


def _document_bytes(document: _Element) -> bytes:
    lines = ['<?xml version="1.0"?>', *map(_xml, document.children), ""]
    return "\n".join(lines).encode()


_TEXT_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
_ATTRIBUTE_ESCAPES = _TEXT_ESCAPES | str.maketrans({'"': "&quot;", "\n": "&#10;", "\t": "&#9;"})


def _xml(node: _Node) -> str:
    if isinstance(node, _Markup):
        return node.xml
    if isinstance(node, str):
        return _ascii(node.translate(_TEXT_ESCAPES))
    attributes = [f' {name}="{_ascii(value.translate(_ATTRIBUTE_ESCAPES))}"' for name, value in node.attributes.items()]
    tag = node.name + "".join(attributes)
    return f"<{tag}>{''.join(map(_xml, node.children))}</{node.name}>" if node.children else f"<{tag}/>"


def _ascii(text: str) -> str:
    """Other characters as references, which is what a document that declares no encoding gets from libxml2."""
    return re.sub("[^\x00-\x7f]", lambda match: f"&#x{ord(match[0]):X};", text)
