import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ploopfs.bounds import MAX_DELTAS, MAX_DESCRIPTOR_BYTES
from ploopfs.errors import BadDescriptor
from ploopfs.image import descriptor
from ploopfs.image.descriptor import (
    NONE_GUID,
    TOP_GUID,
    Descriptor,
    new_descriptor,
    parse,
    serialise,
    with_snapshot,
)

DATA = Path(__file__).parent.parent / "data" / "descriptors"
PATH = "/vz/disk/DiskDescriptor.xml"
ORIG = (DATA / "orig.xml").read_bytes()
VERDICTS = [json.loads(line) for line in (DATA / "verdicts.jsonl").read_text().splitlines()]


def numbered_guid(number: int) -> str:
    return f"{{a{number:07x}-1111-4222-8333-000000000000}}"


A, B, C = (numbered_guid(number) for number in (1, 2, 3))


def edited(old: str, new: str, data: bytes = ORIG) -> bytes:
    assert old in data.decode()
    return data.decode().replace(old, new).encode()


def disk(*parents: tuple[str, str], top: str = TOP_GUID, raw_base: bool = False) -> bytes:
    """A descriptor of the original's layout with an Image and a Shot for each (GUID, parent)."""
    kind = "Plain" if raw_base else "Compressed"
    images = [
        f"      <Image>\n        <GUID>{guid}</GUID>\n        <Type>{kind}</Type>\n"
        f"        <File>{number}.hds</File>\n      </Image>\n"
        for number, (guid, _) in enumerate(parents)
    ]
    shots = [
        f"    <Shot>\n      <GUID>{guid}</GUID>\n      <ParentGUID>{parent}</ParentGUID>\n    </Shot>\n"
        for guid, parent in parents
    ]
    text = re.sub(r" {6}<Image>.*</Image>\n", "".join(images), ORIG.decode(), flags=re.DOTALL)
    text = re.sub(r" {4}<Shot>.*</Shot>\n", "".join(shots), text, flags=re.DOTALL)
    return text.replace(f"<TopGUID>{TOP_GUID}", f"<TopGUID>{top}").encode()


CHAIN = disk((A, NONE_GUID), (B, A), (TOP_GUID, B))


def reason(data: bytes) -> str:
    with pytest.raises(BadDescriptor) as caught:
        parse(data, PATH)
    return caught.value.reason


def files(descriptor: Descriptor, guid: str | None = None) -> list[str]:
    return [entry.file for entry in descriptor.chain(guid)]


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda verdict: verdict["name"])
def test_the_original_readers_verdict_holds(verdict: dict[str, object]) -> None:
    assert verdict["vz7"] == verdict["vz9"]
    data = (DATA / str(verdict["xml"])).read_bytes()
    if verdict["vz7"] == 0:
        assert parse(data, PATH).images
    else:
        assert reason(data)


def test_every_value_of_a_plain_descriptor_is_read() -> None:
    descriptor = parse(ORIG, PATH)
    assert (descriptor.disk_size_sectors, descriptor.cylinders, descriptor.heads) == (131072, 256, 16)
    assert (descriptor.cluster_sectors, descriptor.preallocated, descriptor.raw_base) == (2048, False, False)
    assert descriptor.top_guid == TOP_GUID
    (image,), (shot,) = descriptor.images, descriptor.shots
    assert (image.guid, image.file, image.path, image.plain) == (TOP_GUID, "root.hds", "/vz/disk/root.hds", False)
    assert (image.line, shot.line, shot.parent_guid, shot.temporary) == (15, 24, NONE_GUID, False)


def test_size_and_geometry_may_be_absent_or_no_numbers() -> None:
    text = re.sub(r"<(Disk_size|Cylinders)>.*\n", "", ORIG.decode()).replace("<Heads>16", "<Heads>many")
    descriptor = parse(text.encode(), PATH)
    assert (descriptor.disk_size_sectors, descriptor.cylinders, descriptor.heads) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "sectors"),
    [
        ("64", 64),
        ("131072", 131072),
        ("0X800", 2048),
        ("04000", 2048),
        (" \n\t2048", 2048),
        ("+2048", 2048),
        ("&#50;048", 2048),
        ("2048<!-- ends the text -->9", 2048),
        ("<!-- starts it -->2048", 2048),
        ("-18446744073709549568", 2048),
        ("4294969344", 2048),
    ],
)
def test_blocksize_is_read_as_strtoul_reads_it(text: str, sectors: int) -> None:
    assert parse(edited("<Blocksize>2048", f"<Blocksize>{text}"), PATH).cluster_sectors == sectors


@pytest.mark.parametrize(
    "text",
    ["0", "32", "63", "262144", "08", "0x", "2048 ", " ", "-", "2048s", "-2048", "", "<![CDATA[2048]]>", "9" * 5000],
)
def test_a_blocksize_that_is_no_valid_cluster_size_is_refused_by_name(text: str) -> None:
    assert "Blocksize" in reason(edited("<Blocksize>2048", f"<Blocksize>{text}"))


def test_an_error_names_the_element_the_value_and_the_line() -> None:
    with pytest.raises(BadDescriptor, match=rf"^{PATH}:14: Blocksize is 100, expected a power of two") as caught:
        parse(edited("<Blocksize>2048", "<Blocksize>100"), PATH)
    assert caught.value.line == 14


@pytest.mark.parametrize(
    "guid",
    [
        TOP_GUID[1:-1],
        TOP_GUID + "\n",
        "\n" + TOP_GUID,
        TOP_GUID.replace("-", "0"),
        TOP_GUID.replace("5", "g"),
        TOP_GUID.replace("5", "\N{FULLWIDTH DIGIT FIVE}"),
        TOP_GUID[:9] + "<!-- -->" + TOP_GUID[9:],
        "<!-- -->",
        "",
    ],
)
@pytest.mark.parametrize("element", ["TopGUID", "GUID", "ParentGUID"])
def test_a_guid_is_taken_only_in_its_full_form(element: str, guid: str) -> None:
    assert element in reason(re.sub(rf"<{element}>.*</", f"<{element}>{guid}</", ORIG.decode()).encode())


@pytest.mark.parametrize(
    "element",
    ["Disk_Parameters", "StorageData", "Storage", "Snapshots", "Image", "GUID", "File", "ParentGUID", "Blocksize"],
)
def test_a_required_element_that_is_missing_is_named(element: str) -> None:
    assert element in reason(re.sub(rf"<(/?){element}>", r"<\1Other>", ORIG.decode()).encode())


def test_guids_compare_without_regard_to_case() -> None:
    data = disk((A, NONE_GUID), (B.upper(), A.upper()), (TOP_GUID, B), top=TOP_GUID.upper())
    assert files(parse(data, PATH)) == ["0.hds", "1.hds", "2.hds"]


def test_the_roots_name_and_attributes_do_not_matter() -> None:
    data = edited("Virtuozzo_disk_image", "Parallels_disk_image").replace(b"image>", b'image Version="1.0">', 1)
    assert parse(data, PATH) == parse(ORIG, PATH)


def test_plain_on_any_image_makes_the_whole_disk_raw_based() -> None:
    descriptor = parse(CHAIN.replace(b"Compressed", b"Plain", 2).replace(b"Plain", b"Compressed", 1), PATH)
    assert descriptor.raw_base
    assert [image.plain for image in descriptor.images] == [False, True, False]
    assert not parse(edited("Compressed", " Plain"), PATH).raw_base


def test_preallocated_does_not_go_with_a_plain_image() -> None:
    for text, expected in (("0", False), ("1", True), ("0x1", True)):
        data = edited("</Blocksize>", f"</Blocksize><Preallocated>{text}</Preallocated>")
        assert parse(data, PATH).preallocated is expected
    assert "Plain" in reason(edited("Compressed", "Plain", data))
    assert not parse(edited("Compressed", "Plain", data.replace(b"0x1", b"0")), PATH).preallocated
    assert "Preallocated is ''" in reason(edited("</Blocksize>", "</Blocksize><Preallocated/>"))


@pytest.mark.parametrize(
    ("after", "stray"),
    [
        ("</Storage>", "<Other/>"),
        ("</Image>", "<Other/>"),
        ("</Image>", "<Preallocated>1</Preallocated>"),
        ("</Shot>", "<Other/>"),
    ],
)
def test_a_stray_element_behind_storage_image_or_shot_is_refused_as_the_original_does(after: str, stray: str) -> None:
    assert re.match("Other|Preallocated", reason(edited(after, after + stray)))
    before = after.replace("/", "")
    parse(edited(before, "<Other/>" + before), PATH)


@pytest.mark.parametrize("kind", ["Temporary", "TemporaryZero", "TemporaryZeroSwap"])
def test_a_shot_keeps_which_temporary_it_is(kind: str) -> None:
    shot = parse(CHAIN.replace(b"</ParentGUID>", f"</ParentGUID><{kind}/>".encode(), 1), PATH).shots[0]
    assert shot.temporary
    assert shot.temporary_kind == kind
    assert kind in reason(CHAIN.replace(b"</ParentGUID>", f"</ParentGUID><{kind}/>".encode()))


def test_a_missing_shot_is_understood_once_and_only_for_the_constant_top() -> None:
    assert files(parse((DATA / "no-shots-no-topguid.xml").read_bytes(), PATH)) == ["root.hds"]
    two_without = re.sub(rb" {4}<Shot>.*</Shot>\n", b"", CHAIN, flags=re.DOTALL)
    assert "Snapshots has 0 Shot" in reason(two_without)
    one_too_many = edited("</Shot>", f"</Shot><Shot><GUID>{A}</GUID><ParentGUID>{B}</ParentGUID></Shot>")
    assert "Snapshots has 2 Shot" in reason(one_too_many)
    assert "which no Shot has" in reason(disk((A, NONE_GUID)).replace(b"TopGUID", b"Other"))


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("root.hds", "/vz/disk/root.hds"),
        ("./root.hds", "/vz/disk/./root.hds"),
        ("../x//root.hds", "/vz/x/root.hds"),
        ("../../../root.hds", "/../root.hds"),
        ("a/../root.hds", "/vz/disk/a/../root.hds"),
        ("//mnt///root.hds/", "/mnt/root.hds"),
        ("r&#xE9;&amp;.hds", "/vz/disk/r\N{LATIN SMALL LETTER E WITH ACUTE}&.hds"),
    ],
)
def test_a_file_is_resolved_against_the_descriptors_directory(file: str, path: str) -> None:
    assert parse(edited("root.hds", file), PATH).images[0].path == path


def test_a_relative_descriptor_path_gives_relative_files() -> None:
    data = edited("root.hds", "../root.hds")
    paths = [parse(data, path).images[0].path for path in ("DiskDescriptor.xml", "disk/DiskDescriptor.xml", "../d.xml")]
    assert paths == ["../root.hds", "root.hds", "../../root.hds"]


def test_encryption_and_volume_are_read_and_written_back() -> None:
    data = edited("</Padding>\n", "</Padding>\n    <Encryption>\n      <KeyId>k</KeyId>\n    </Encryption>\n")
    data = edited("    <Cylinders>", "    <Max_delta_size>7</Max_delta_size>\n    <Cylinders>", data)
    values = {"Parent": "../base", "SnapshotGUID": A, "ReadOnly": "1"}
    volume = "".join(f"      <{name}>{value}</{name}>\n" for name, value in values.items())
    data = edited("    <Storage>", f"    <Volume>\n{volume}    </Volume>\n    <Storage>", data)
    descriptor = parse(data.replace(NONE_GUID.encode(), A.encode()), PATH)
    assert descriptor.encryption_key_id == "k"
    assert descriptor.volume is not None
    assert descriptor.volume.parent == "../base"
    assert serialise(descriptor) == data.replace(NONE_GUID.encode(), A.encode())
    with pytest.raises(BadDescriptor, match=r"described in \.\./base"):
        descriptor.chain()
    with pytest.raises(BadDescriptor, match="Volume"):
        with_snapshot(data, PATH, snapshot_guid=B, new_file="new.hds")


def test_a_chain_follows_the_parents_whatever_the_order_of_images() -> None:
    tree = parse(disk((TOP_GUID, B), (C, A), (B, A), (A, NONE_GUID)), PATH)
    assert files(tree) == ["3.hds", "2.hds", "0.hds"]
    assert files(tree, C.upper()) == ["3.hds", "1.hds"]
    assert files(tree, A) == ["3.hds"]


def test_an_unknown_parent_is_refused_by_the_chain_and_not_by_the_reader() -> None:
    descriptor = parse((DATA / "parent-unknown.xml").read_bytes(), PATH)
    with pytest.raises(BadDescriptor, match=r":24: no Shot has the GUID \{aaaaaaaa-.*which a ParentGUID names"):
        descriptor.chain()


@pytest.mark.parametrize("guid", [C, NONE_GUID, "", "nonsense"])
def test_a_chain_to_an_unknown_guid_is_refused(guid: str) -> None:
    with pytest.raises(BadDescriptor, match="no Shot has the GUID"):
        parse(CHAIN, PATH).chain(guid)


@pytest.mark.parametrize("data", [disk((TOP_GUID, TOP_GUID)), disk((A, TOP_GUID), (B, A.upper()), (TOP_GUID, B))])
def test_a_loop_of_parents_is_refused(data: bytes) -> None:
    with pytest.raises(BadDescriptor, match="loop"):
        parse(data, PATH).chain()


def test_of_two_equal_guids_the_first_is_meant() -> None:
    assert files(parse(disk((A, NONE_GUID), (A, A), (TOP_GUID, A)), PATH)) == ["0.hds", "2.hds"]


def test_a_shot_without_image_is_refused_by_the_chain() -> None:
    data = CHAIN.replace(f"<GUID>{B}</GUID>\n        <Type>".encode(), f"<GUID>{C}</GUID>\n        <Type>".encode())
    with pytest.raises(BadDescriptor, match="no Image has the GUID"):
        parse(data, PATH).chain()


@pytest.mark.parametrize("data", [ORIG, CHAIN, disk((A, NONE_GUID), (TOP_GUID, A), raw_base=True)])
def test_what_the_original_wrote_is_written_byte_for_byte(data: bytes) -> None:
    assert serialise(parse(data, PATH)) == data


@pytest.mark.parametrize("xml", [str(verdict["xml"]) for verdict in VERDICTS if verdict["vz7"] == 0])
def test_what_is_written_says_the_same_as_what_was_read(xml: str) -> None:
    descriptor = parse((DATA / xml).read_bytes(), PATH)
    assert parse(serialise(descriptor), PATH) == descriptor


def test_marks_and_preallocation_are_written_in_the_originals_places() -> None:
    data = CHAIN.replace(b"</ParentGUID>\n", b"</ParentGUID>\n      <TemporaryZero/>\n", 1)
    data = edited("</Blocksize>\n", "</Blocksize>\n      <Preallocated>1</Preallocated>\n", data)
    assert serialise(parse(data, PATH)) == data


@pytest.mark.parametrize(("cylinders", "heads", "sectors"), [(256, 16, 32), (130, 16, 63), (0, 16, 0), (256, 0, 0)])
def test_a_new_descriptor_computes_sectors_from_the_geometry(cylinders: int, heads: int, sectors: int) -> None:
    descriptor = new_descriptor(
        PATH, disk_size_sectors=131072, cylinders=cylinders, heads=heads, cluster_sectors=2048, file="root.hds"
    )
    expected = edited("<Cylinders>256", f"<Cylinders>{cylinders}")
    expected = edited("<Heads>16", f"<Heads>{heads}", edited("<Sectors>32", f"<Sectors>{sectors}", expected))
    assert serialise(descriptor) == expected
    assert parse(expected, PATH) == descriptor


@pytest.mark.parametrize(
    ("cluster_sectors", "file"), [(2047, "root.hds"), (2048, ""), (2048, "a\x01"), (2048, "\udc80")]
)
def test_a_new_descriptor_that_could_not_be_read_back_is_refused(cluster_sectors: int, file: str) -> None:
    with pytest.raises(BadDescriptor):
        new_descriptor(PATH, disk_size_sectors=0, cylinders=0, heads=0, cluster_sectors=cluster_sectors, file=file)


def test_snapshots_give_the_layout_of_the_original() -> None:
    data = edited("root.hds", "0.hds")
    for number, guid in enumerate((A, B), start=1):
        data = with_snapshot(data, PATH, snapshot_guid=guid, new_file=f"{number}.hds")
    assert data == CHAIN


def test_a_snapshot_of_a_raw_based_disk_writes_plain_as_the_original_does() -> None:
    data = with_snapshot(disk((TOP_GUID, NONE_GUID), raw_base=True), PATH, snapshot_guid=A, new_file="1.hds")
    assert data == disk((A, NONE_GUID), (TOP_GUID, A), raw_base=True)


def test_a_snapshot_converts_another_top_guid_to_the_constant() -> None:
    data = with_snapshot(disk((A, NONE_GUID), (C, A), top=C.upper()), PATH, snapshot_guid=B, new_file="2.hds")
    assert data == CHAIN


def test_a_snapshot_moves_the_children_of_the_old_top_with_it() -> None:
    tree = disk((TOP_GUID, NONE_GUID), (C, TOP_GUID.upper()))
    descriptor = parse(with_snapshot(tree, PATH, snapshot_guid=A, new_file="2.hds"), PATH)
    assert (files(descriptor), files(descriptor, C)) == (["0.hds", "2.hds"], ["0.hds", "1.hds"])


@pytest.mark.parametrize("xml", ["no-shots-no-topguid.xml", "no-topguid.xml"])
@pytest.mark.parametrize("empty", ["<Snapshots></Snapshots>", "<Snapshots/>"])
def test_a_snapshot_writes_down_what_the_reader_only_understood(xml: str, empty: str) -> None:
    data = (DATA / xml).read_bytes().replace(b"<Snapshots></Snapshots>", empty.encode())
    written = with_snapshot(data.replace(b"root.hds", b"0.hds"), PATH, snapshot_guid=A, new_file="1.hds")
    assert written == disk((A, NONE_GUID), (TOP_GUID, A))


def test_a_snapshot_keeps_what_it_does_not_know() -> None:
    data = edited(
        "<Padding>", '<Vendor a="1 &lt; &quot;2&quot;&#10;">x &amp; y<![CDATA[ <z> ]]></Vendor><?pi data?><Padding>'
    )
    data = edited("<Storage>", "<Storage><!-- kept <&> -->", edited("<Shot>", "<Foreign/><Shot>", data))
    data = edited("<Virtuozzo_disk_image>", "<!-- head -->\n<Virtuozzo_disk_image Version='1.0'>", data)
    snapshot = {"snapshot_guid": A, "new_file": "new & <1>.hds"}
    written = with_snapshot(data, PATH, **snapshot).decode()
    for kept in (
        '<Vendor a="1 &lt; &quot;2&quot;&#10;">x &amp; y<![CDATA[ <z> ]]></Vendor><?pi data?>',
        "<Storage><!-- kept <&> -->",
        "<Foreign/><Shot>",
        '<!-- head -->\n<Virtuozzo_disk_image Version="1.0">',
        "<File>new &amp; &lt;1&gt;.hds</File>",
    ):
        assert kept in written
    assert parse(written.encode(), PATH) == parse(with_snapshot(ORIG, PATH, **snapshot), PATH)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "iso-8859-1"])
def test_a_snapshot_leaves_no_other_encoding_behind(encoding: str) -> None:
    name = {"utf-8-sig": "utf-8"}.get(encoding, encoding)
    text = ORIG.decode().replace('"1.0"?', f'"1.0" encoding="{name}"?').replace("root.hds", "r\N{POUND SIGN}.hds")
    data = with_snapshot(text.encode(encoding), PATH, snapshot_guid=A, new_file="\N{EURO SIGN}.hds")
    assert files(parse(data, PATH)) == ["r\N{POUND SIGN}.hds", "\N{EURO SIGN}.hds"]
    assert b"<File>&#x20AC;.hds</File>" in data


@pytest.mark.parametrize(
    ("guid", "file"),
    [
        (A, "new.hds"),
        (B.upper(), "new.hds"),
        (TOP_GUID, "new.hds"),
        (NONE_GUID, "new.hds"),
        (C[1:-1], "new.hds"),
        (C + "\n", "new.hds"),
        ("", "new.hds"),
        (C, ""),
        (C, "\x00"),
        (C, "\udc80"),
        (C, "2.hds"),
        (C, "/vz/disk/0.hds"),
    ],
)
def test_a_snapshot_by_a_taken_or_malformed_name_is_refused(guid: str, file: str) -> None:
    with pytest.raises(BadDescriptor):
        with_snapshot(CHAIN, PATH, snapshot_guid=guid, new_file=file)


@pytest.mark.parametrize(
    "data",
    [
        (DATA / "extra-image-w-o-shot.xml").read_bytes(),
        disk((B, NONE_GUID), (B, NONE_GUID), (TOP_GUID, B)),
        disk((TOP_GUID, NONE_GUID), (B, TOP_GUID), top=B),
        disk((TOP_GUID, B)),
        ORIG[:-5],
    ],
    ids=["image without shot", "two of one name", "constant taken", "unknown parent", "cut off"],
)
def test_a_snapshot_of_an_ambiguous_or_broken_disk_is_refused(data: bytes) -> None:
    with pytest.raises(BadDescriptor):
        with_snapshot(data, PATH, snapshot_guid=A, new_file="new.hds")


def test_a_chain_takes_127_files_and_no_more() -> None:
    data = ORIG
    for number in range(1, MAX_DELTAS):
        data = with_snapshot(data, PATH, snapshot_guid=numbered_guid(number), new_file=f"{number}.hds")
    assert len(parse(data, PATH).chain()) == MAX_DELTAS
    with pytest.raises(BadDescriptor, match="limit"):
        with_snapshot(data, PATH, snapshot_guid=numbered_guid(MAX_DELTAS), new_file="over.hds")


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize("doctype", [LAUGHS, '<!DOCTYPE x SYSTEM "/etc/passwd">', "<!DOCTYPE x>", "<!DOCTYPE x ["])
def test_a_doctype_is_refused_before_any_entity_is_looked_at(doctype: str) -> None:
    assert reason(edited("<Virtuozzo", doctype + "<Virtuozzo")).startswith("DOCTYPE x is refused")


def test_an_undeclared_entity_is_refused() -> None:
    assert "undefined entity" in reason(edited("root.hds", "&file;"))


def test_size_and_nesting_are_bounded() -> None:
    assert str(MAX_DESCRIPTOR_BYTES) in reason(ORIG + b" " * MAX_DESCRIPTOR_BYTES)
    assert "nested deeper" in reason(b"<a>" * 10000)
    assert parse(ORIG + b" " * (MAX_DESCRIPTOR_BYTES - len(ORIG)), PATH) == parse(ORIG, PATH)


@pytest.mark.parametrize("encoding", ["no-such", "hex", "idna", "utf-7", "unicode_escape", "shift_jis", ""])
def test_an_encoding_that_is_not_understood_is_refused(encoding: str) -> None:
    assert reason(edited('"1.0"?', f'"1.0" encoding="{encoding}"?'))


def survives(data: bytes) -> None:
    """Whatever the bytes: a descriptor that can be written and read again, or BadDescriptor."""
    try:
        descriptor = parse(data, PATH)
    except BadDescriptor:
        return
    assert parse(serialise(descriptor), PATH).images == descriptor.images
    for attempt in (descriptor.chain, lambda: with_snapshot(data, PATH, snapshot_guid=A, new_file="new.hds")):
        with contextlib.suppress(BadDescriptor):
            attempt()


@given(st.binary(max_size=400))
@example(b"")
@example(b"\x00")
@example(b"<a>\xff</a>")
@example(b"\xff\xfe<")
def test_arbitrary_bytes_raise_nothing_but_bad_descriptor(data: bytes) -> None:
    survives(data)


SAMPLES = [(DATA / str(verdict["xml"])).read_bytes() for verdict in VERDICTS] + [CHAIN]
FRAGMENTS = b"< > / & - 0x \xc3 \xe2\x82\xac &amp; &#0; &x; <!--&--> <![CDATA[ ]]> <?p?> <!DOCTYPE".split()
FRAGMENTS += b"<Image/> <Shot/> <GUID/> <Volume/> <Temporary/> <Storage> </Storage>".split()


@given(
    st.sampled_from(SAMPLES),
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 60), st.sampled_from(FRAGMENTS) | st.binary(max_size=3)), max_size=4
    ),
)
def test_mutated_descriptors_raise_nothing_but_bad_descriptor(
    data: bytes, edits: list[tuple[float, int, bytes]]
) -> None:
    for place, removed, inserted in edits:
        start = int(place * len(data))
        data = data[:start] + inserted + data[start + removed :]
    survives(data)


@given(
    st.sampled_from(["Disk_size", "Cylinders", "Heads", "Blocksize", "GUID", "Type", "File", "TopGUID", "ParentGUID"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.integers().map(str)
    | st.sampled_from([A, TOP_GUID]),
)
def test_any_text_in_any_element_raises_nothing_but_bad_descriptor(element: str, text: str) -> None:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    pattern, content = rf"<{element}>.*</", f"<{element}>{escaped}</"
    survives(re.sub(pattern, lambda _: content, ORIG.decode(), count=1).encode())


def test_a_snapshot_looks_at_each_of_many_images_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte holds ten thousand, and each of them with each other is a hundred million."""
    compared = 0

    class Counted(str):
        __slots__ = ()

        def lower(self) -> str:
            return Counted(str.lower(self))

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    count = 500
    images = "".join(f"<Image><GUID>{numbered_guid(n)}</GUID><File>{n}</File></Image>" for n in range(count))
    shots = "".join(
        f"<Shot><GUID>{numbered_guid(n)}</GUID><ParentGUID>{NONE_GUID}</ParentGUID></Shot>" for n in range(count)
    )
    data = (
        "<d><Disk_Parameters/><StorageData><Storage><Blocksize>2048</Blocksize>"
        f"{images}</Storage></StorageData><Snapshots><TopGUID>{numbered_guid(0)}</TopGUID>{shots}</Snapshots></d>"
    ).encode()
    plain = descriptor._Reader._guid
    monkeypatch.setattr(descriptor._Reader, "_guid", lambda *arguments: Counted(plain(*arguments)))
    with_snapshot(data, PATH, snapshot_guid=numbered_guid(count), new_file="new.hds")
    assert 0 < compared < 20 * count
