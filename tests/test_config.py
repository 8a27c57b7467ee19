"""The configuration file: what it may say, and that every mistake is told with its line and key."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ploopfs.bounds import MAX_ERRORS
from ploopfs.config import Config, DeviceConfig, Limits, ScstConfig, rules, schema
from ploopfs.device import flavour
from ploopfs.errors import ConfigError

SHIPPED = Path(__file__).parent.parent / "config"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ploopfs.yaml"


KEYS = "scst, devices, limits, allowed_dirs, data_plane"
"""Of a whole file."""


def load_text(file: Path, text: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return schema.load(file)


def mistakes(file: Path, text: str) -> list[str]:
    """The lines of the error, without the name of the file that each of them starts with."""
    with pytest.raises(ConfigError) as caught:
        load_text(file, text)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(f"{file}:") for line in lines)
    return [line.removeprefix(f"{file}:") for line in lines]


def device(file: Path, rest: str) -> DeviceConfig:
    return load_text(file, f"devices: [{{name: ploop0, {rest}}}]").devices[0]


def device_mistakes(file: Path, rest: str) -> list[str]:
    return mistakes(file, f"devices: [{{name: ploop0, {rest}}}]")


def test_the_shipped_vz7_configuration_is_the_documented_example() -> None:
    assert schema.load(SHIPPED / "vz7.yaml") == Config(
        path=str(SHIPPED / "vz7.yaml"),
        scst=ScstConfig(loaded=True),
        devices=(
            DeviceConfig("ploop0", str(SHIPPED / "disk/DiskDescriptor.xml"), "vz7", standby=True),
            DeviceConfig("ploop1", (str(SHIPPED / "base.hds"), str(SHIPPED / "top.hds")), "vz7", read_only=True),
        ),
        limits=Limits(),
    )


def test_the_shipped_demo_configuration_counts_its_image_from_where_it_is_copied_to(file: Path) -> None:
    loaded = load_text(file, (SHIPPED / "demo.yaml").read_text(encoding="utf-8"))
    image = str(file.parent / "store/disk/DiskDescriptor.xml")
    assert loaded.scst.loaded
    assert loaded.devices == (DeviceConfig("ploop0", image, standby=True),)


def test_the_shipped_vz9_configuration_names_its_devices() -> None:
    first, second = schema.load(SHIPPED / "vz9.yaml").devices
    assert (first.flavour, first.dm_name, first.dm_uuid, first.on_standby) == ("vz9", "vm1", "PLOOP-7f6c", "hold")
    assert (second.name, second.dm_name, second.dm_uuid) == ("dm-1", None, "")


def test_the_shipped_mixed_configuration_has_a_device_of_every_flavour() -> None:
    devices = schema.load(SHIPPED / "mixed.yaml").devices
    assert [(device.flavour, device.standby) for device in devices] == [
        ("vz7", True),
        ("vz7", False),
        ("vz9", True),
        ("block", False),
    ]


def test_the_optional_lines_of_the_shipped_configuration_are_valid_and_show_the_defaults(file: Path) -> None:
    text = (SHIPPED / "vz7.yaml").read_text(encoding="utf-8")
    loaded = load_text(
        file, text.replace("# - name", "  - name").replace("\n#   ", "\n    ").replace("# limits", "limits")
    )
    assert loaded.devices[2] == DeviceConfig("ploop2", (f"raw@{file.parent}/plain.img",), cluster_sectors=2048)
    assert loaded.limits == Limits()
    assert "requests_per_device: 1024" in text


def test_every_line_of_the_shipped_files_is_commented() -> None:
    for path in SHIPPED.glob("*.yaml"):
        bare = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and "# " not in line]
        assert bare == []


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}", "devices: []", "scst: {}\nlimits: {}"])
def test_a_file_that_says_nothing_is_no_devices_and_every_default(file: Path, text: str) -> None:
    loaded = load_text(file, text)
    assert (loaded.devices, loaded.scst.loaded) == ((), False)
    assert loaded.limits == Limits()


def test_the_flavours_known_here_are_those_that_the_devices_have() -> None:
    assert set(schema.FLAVOURS) == set(flavour.FLAVOURS)


def test_what_a_device_does_in_standby_is_configured_with_it(file: Path) -> None:
    loaded = device(file, "image: a, on_standby: hold, hold_timeout_ms: 1500")
    assert (loaded.on_standby, loaded.hold_timeout_ms) == ("hold", 1500)
    assert device_mistakes(file, "image: a, on_standby: wait") == [
        "1: devices[0].on_standby: is 'wait', expected fail or hold"
    ]
    assert device_mistakes(file, "image: a, hold_timeout_ms: 0") == [
        "1: devices[0].hold_timeout_ms: is 0, expected a whole number from 1 to 86400000"
    ]


def test_the_directories_in_which_images_may_lie_are_counted_from_that_of_the_file(file: Path) -> None:
    assert load_text(file, "devices: []").allowed_dirs is None
    assert load_text(file, "allowed_dirs: [store, /vz/../a]").allowed_dirs == (str(file.parent / "store"), "/vz/../a")
    assert mistakes(file, "allowed_dirs: []") == [
        "1: allowed_dirs: is a list of 0, expected a list of 1 to 64 directories"
    ]
    assert mistakes(file, "allowed_dirs: [1, '']") == [
        "1: allowed_dirs[0]: is 1, expected a directory",
        "1: allowed_dirs[1]: is empty, expected a directory",
    ]
    assert len(mistakes(file, f"allowed_dirs: [{', '.join(['/a'] * 65)}]")) == 1


def test_a_vz9_device_has_a_number_and_a_name_of_device_mapper(file: Path) -> None:
    loaded = load_text(file, "devices: [{name: dm-3, flavour: vz9, image: a, dm_name: disk, dm_uuid: U-1}]").devices[0]
    assert (loaded.name, loaded.dm_name, loaded.dm_uuid) == ("dm-3", "disk", "U-1")
    assert device_mistakes(file, "image: a, flavour: vz9") == [
        "1: devices[0].name: is 'ploop0', expected a name from dm-0 to dm-1048575"
    ]
    assert device_mistakes(file, "image: a, dm_name: disk") == [
        "1: devices[0].dm_name: is given, expected only where flavour is vz9"
    ]


@pytest.mark.parametrize("name", ["a/b", ".", "..", "n" * 128])
def test_a_device_mapper_name_is_a_file_name(file: Path, name: str) -> None:
    [mistake] = mistakes(file, f"devices: [{{name: dm-0, flavour: vz9, image: a, dm_name: {name}}}]")
    assert "devices[0].dm_name: is" in mistake


def test_a_disk_that_is_no_ploop_is_raw_and_has_no_standby(file: Path) -> None:
    assert load_text(file, "devices: [{name: xvda, flavour: block, image: [raw@a]}]").devices[0].flavour == "block"
    assert mistakes(file, "devices: [{name: xvda, flavour: block, image: a, standby: true}]") == [
        "1: devices[0].image: is not raw, expected [raw@PATH]: the flavour block knows no deltas",
        "1: devices[0].standby: is true, expected false: a device that is no ploop has no standby mode",
    ]


def test_a_device_needs_a_name_and_an_image_only(file: Path) -> None:
    assert device(file, "image: a.hds") == DeviceConfig("ploop0", str(file.parent / "a.hds"), "vz7", False, False, None)


def test_a_relative_path_starts_at_the_directory_of_the_file_not_of_the_process(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "elsewhere").mkdir()
    file.write_text("devices: [{name: ploop0, image: ./a/../b.hds}]")
    monkeypatch.chdir(file.parent / "elsewhere")
    loaded = schema.load(os.path.join("..", file.name))
    assert os.path.isabs(loaded.path)
    assert loaded.devices[0].image == f"{file.parent}/elsewhere/../a/../b.hds"


def test_the_raw_prefix_stays_in_front_of_the_resolved_path(file: Path) -> None:
    assert device(file, "image: [raw@base.img, /abs/top.hds]").image == (f"raw@{file.parent}/base.img", "/abs/top.hds")
    assert device(file, "image: [raw@/abs/base.img]").image == ("raw@/abs/base.img",)
    assert device(file, "image: ./raw@odd-name").image == f"{file.parent}/raw@odd-name"


def test_yaml_1_1_booleans_are_booleans_and_quoted_ones_are_text(file: Path) -> None:
    given = device(file, "image: a, standby: on, read_only: no")
    assert (given.standby, given.read_only) == (True, False)
    assert device_mistakes(file, "image: a, standby: 'yes'") == [
        "1: devices[0].standby: is 'yes', expected true or false"
    ]


@pytest.mark.parametrize("sectors", [64, 2048, 131072])
def test_a_lone_raw_image_takes_a_cluster_size(file: Path, sectors: int) -> None:
    assert device(file, f"image: [raw@a], cluster_sectors: {sectors}").cluster_sectors == sectors


@pytest.mark.parametrize("sectors", ["32", "96", "262144", "-64", "0", "64.0", "true", "'64'", "0b_", "~"])
def test_another_cluster_size_is_refused(file: Path, sectors: str) -> None:
    (mistake,) = device_mistakes(file, f"image: [raw@a], cluster_sectors: {sectors}")
    assert mistake.startswith("1: devices[0].cluster_sectors: is ")
    assert mistake.endswith(", expected a power of two from 64 to 131072")


@pytest.mark.parametrize("image", ["a.hds", "[a.hds]", "[raw@a, b]"])
def test_a_cluster_size_without_effect_is_refused(file: Path, image: str) -> None:
    assert device_mistakes(file, f"image: {image}, cluster_sectors: 64") == [
        "1: devices[0].cluster_sectors: is given, expected only where image is [raw@PATH]"
    ]


@pytest.mark.parametrize(
    ("image", "where", "found"),
    [
        ("[]", "", "a list of 0"),
        (f"[{'a,' * 128}]", "", "a list of 128"),
        ("{a: b}", "", "a mapping"),
        ("5", "", "5"),
        ("''", "", "empty"),
        ("", "", "empty"),
        ("raw@a", "", "'raw@a'"),
        (r'"a\0b"', "", r"'a\x00b'"),
        (r'"\ud800"', "", r"'\ud800'"),
        ("[raw@]", "[0]", "'raw@'"),
        ("[a, raw@b]", "[1]", "'raw@b'"),
        ("[a, [b]]", "[1]", "a list of 1"),
    ],
)
def test_an_image_that_is_no_path_and_no_stack_is_refused(file: Path, image: str, where: str, found: str) -> None:
    (mistake,) = device_mistakes(file, f"image: {image}")
    assert mistake.startswith(f"1: devices[0].image{where}: is {found}, expected ")


def test_a_stack_of_127_files_is_accepted(file: Path) -> None:
    assert len(device(file, f"image: [{'a,' * 127}]").image) == 127


def test_what_serves_the_disks_is_one_of_two(file: Path) -> None:
    planes = [load_text(file, text).data_plane for text in ("", "data_plane: own", "data_plane: pyfuse3")]
    assert planes == ["own", "own", "pyfuse3"]
    assert mistakes(file, "data_plane: tree") == ["1: data_plane: is 'tree', expected own or pyfuse3"]


@pytest.mark.parametrize("name", ["ploop0", "ploop7", "ploop10", "ploop65535"])
def test_a_name_of_the_flavour_is_accepted(file: Path, name: str) -> None:
    assert load_text(file, f"devices: [{{name: {name}, image: a}}]").devices[0].name == name


@pytest.mark.parametrize(
    "name", ["ploop", "ploop01", "ploop65536", "ploop-1", "ploop1p1", "dm-0", "ploop٣", '"ploop1\\n"']
)
def test_a_name_that_the_flavour_does_not_have_is_refused(file: Path, name: str) -> None:
    (mistake,) = mistakes(file, f"devices: [{{name: {name}, image: a}}]")
    assert mistake.startswith("1: devices[0].name: is '")
    assert mistake.endswith(", expected a name from ploop0 to ploop65535")


def test_a_name_is_given_to_one_device_only(file: Path) -> None:
    text = "devices:\n- {name: ploop1, image: a}\n- {name: ploop0, image: a}\n- {name: ploop1, image: a}"
    assert mistakes(file, text) == ["4: devices[2].name: is 'ploop1' as in line 2, expected a name of its own"]


def test_an_unknown_flavour_is_answered_with_the_known_ones(file: Path) -> None:
    assert device_mistakes(file, "image: a, flavour: vz8") == [
        "1: devices[0].flavour: is 'vz8', expected one of vz7, vz9, block"
    ]


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("requests_per_device", ["1", "65536"], ["0", "65537", "1.0", "true", "0x" + "f" * 5000]),
        ("threads_per_device", ["1", "512"], ["0", "513", "!!int ''", "many"]),
        ("park_timeout_s", ["0.001", "3600"], ["0", "-1", "3600.5", ".inf", ".nan", "!!float x", "1:" * 300 + "1.0"]),
        ("quiesce_timeout_s", ["0.001", "3600"], ["0", "3601", "no", "[30]"]),
    ],
)
def test_limits_are_accepted_within_their_bounds_only(file: Path, key: str, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert getattr(load_text(file, f"limits: {{{key}: {text}}}").limits, key) == float(text)
    for text in bad:
        (mistake,) = mistakes(file, f"limits: {{{key}: {text}}}")
        assert mistake.startswith(f"1: limits.{key}: is ")
        assert len(mistake) < 200


def test_1024_devices_are_accepted_and_one_more_is_not(file: Path) -> None:
    text = "devices:\n" + "".join(f"- {{name: ploop{i}, image: a}}\n" for i in range(1024))
    assert len(load_text(file, text).devices) == 1024
    assert mistakes(file, text + "- {name: ploop1024, image: a}") == [
        "2: devices: is a list of 1025, expected a list of at most 1024 devices"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "device: []",
            f"1: device: is no known key, expected one of {KEYS} (did you mean devices?)",
        ),
        ("scst: {\nlaoded: on}", "2: scst.laoded: is no known key, expected one of loaded (did you mean loaded?)"),
        ("zebra: 1", f"1: zebra: is no known key, expected one of {KEYS}"),
        ('"a\\nb": 1', rf"1: 'a\nb': is no known key, expected one of {KEYS}"),
        ("1: 2", f"1: the file: a key is 1, expected one of {KEYS}"),
        ("<<: {a: 1}", f"1: the file: a key is <<, expected one of {KEYS}"),
        ("? [a]\n: 1", f"1: the file: a key is a list of 1, expected one of {KEYS}"),
        ("scst: {}\nscst: {}", "2: scst: is given twice, first in line 1"),
    ],
)
def test_a_key_that_is_unknown_or_given_twice_is_refused(file: Path, text: str, expected: str) -> None:
    assert mistakes(file, text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "1: the file: is a list of 0, expected a mapping of scst, devices, limits, allowed_dirs, data_plane"),
        ("scst: on", "1: scst: is on, expected a mapping with loaded"),
        ("scst: !!set {loaded}", "1: scst: is a mapping, expected a mapping with loaded"),
        ("devices:", "1: devices: is empty, expected a list of at most 1024 devices"),
        ("devices: [ploop0]", "1: devices[0]: is 'ploop0', expected a mapping with name and image"),
        ("devices: [{image: a}]", "1: devices[0].name: is missing, expected a name such as ploop0"),
        ("devices: [{name: ploop0}]", "1: devices[0].image: is missing, expected 1 to 127 paths, base first"),
    ],
)
def test_a_value_of_another_shape_is_refused(file: Path, text: str, expected: str) -> None:
    assert mistakes(file, text) == [expected]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(file: Path) -> None:
    text = """\
devices:
  - flavour: vz8
    name: ploop0
    image:
      - a
      - raw@b
  - name: ploop0
    standbye: true
limits: {threads_per_device: 0}
scst: {loaded: 1}
"""
    assert [mistake.split(": ")[:2] for mistake in mistakes(file, text)] == [
        ["2", "devices[0].flavour"],
        ["6", "devices[0].image[1]"],
        ["7", "devices[1].image"],
        ["7", "devices[1].name"],
        ["8", "devices[1].standbye"],
        ["9", "limits.threads_per_device"],
        ["10", "scst.loaded"],
    ]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("scst: {}\nlimits: [", 2, "expected the node content"),
        ("\nscst: &a {}", 2, "anchors and aliases are not accepted"),
        ("\n\nscst: *a", 3, "anchors and aliases are not accepted"),
        ("{}\n---\n{}", 2, "expected a single document"),
        ("\nscst: " + "[" * 100_000, 2, "nested deeper than 16 levels"),
        ('\nscst: "\\UFFFFFFFF"', 2, "int"),
        ('\n\nscst: "\\U00110000"', 3, "0x110000"),
        ("%YAML 1." + "9" * 5000 + "\n--- {}", 1, "digits"),
        ("scst: {}\n\0", 2, r"a character that YAML does not allow: '\x00'"),
    ],
)
def test_what_cannot_be_composed_is_refused_with_its_line(file: Path, text: str, line: int, reason: str) -> None:
    (mistake,) = mistakes(file, text)
    assert mistake.startswith(f"{line}: ")
    assert reason in mistake


def test_bytes_that_are_not_utf_8_are_refused_with_their_line(file: Path) -> None:
    file.write_bytes(b"scst: {}\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r":2: byte 0xe9 is not UTF-8$"):
        schema.load(file)


def test_a_byte_order_mark_is_no_mistake(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfscst: {loaded: true}")
    assert schema.load(file).scst.loaded


def test_a_file_beyond_one_mebibyte_is_refused_before_it_is_parsed(file: Path) -> None:
    file.write_bytes(b"#" * (1 << 20))
    assert schema.load(file).devices == ()
    file.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="is larger than 1048576 bytes"):
        schema.load(file)


@pytest.mark.parametrize("name", ["absent.yaml", ".", "nul\0.yaml", "lone\ud800.yaml"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    path = os.path.join(tmp_path, name)
    with pytest.raises(ConfigError) as caught:
        schema.load(path)
    assert str(caught.value).startswith(f"{path}: cannot be read: ")


def refused_or_whole(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    refusal = f"{file}:"
    try:
        schema.load(file)
    except ConfigError as error:
        refusal = str(error)
    assert all(line.startswith(f"{file}:") for line in refusal.split("\n"))


FILE_REUSED = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FILE_REUSED
@given(text=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))))
def test_arbitrary_bytes_end_in_a_configuration_or_its_error(file: Path, text: bytes) -> None:
    refused_or_whole(file, text)


# Pieces that often get past the scanner, so that the rules see every kind of node in every place.
WORDS = """
scst: loaded: devices: name: image: limits: cluster_sectors: park_timeout_s: ploop0 raw@a vz7 [ ] { } , - ? : on ~ 0x
0b_ 1e9 .nan 1:1 '' !!bool !!int !!map !x &a *a <<: "\\U00110000" 2001-99-99 ---
"""
PIECES = st.sampled_from([*WORDS.split(), "\n", "\n  ", "\n- ", "\n%YAML 1.1\n"])


@FILE_REUSED
@given(pieces=st.lists(PIECES, max_size=30))
def test_arbitrary_yaml_ends_in_a_configuration_or_its_error(file: Path, pieces: list[str]) -> None:
    refused_or_whole(file, " ".join(pieces).encode())
    refused_or_whole(file, ("devices: [{name: ploop0, image: " + " ".join(pieces) + "}]").encode())


def test_a_file_with_nothing_but_mistakes_is_not_read_to_its_end(file: Path) -> None:
    """A megabyte of unknown keys took minutes, and as many lines of complaints."""
    found = mistakes(file, "".join(f"key{number}: 1\n" for number in range(1000)))
    assert len(found) == MAX_ERRORS + 1
    assert found[0].startswith("1: key0: is no known key")
    assert found[-1] == " after 100 mistakes no further ones are looked for"


@pytest.mark.parametrize("number", ["1" + ":59" * 2000, "0x" + "f" * 5000, "9" * 5000, "1." + "0" * 5000])
def test_a_number_that_takes_long_to_read_is_not_read(file: Path, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In base 60, which YAML 1.1 has, the time grows with the square of the length."""
    monkeypatch.setattr(rules, "_SCALARS", dict.fromkeys(rules._SCALARS, lambda _: pytest.fail("was read")))
    with pytest.raises(ConfigError, match=r"requests_per_device: is .*expected a whole number"):
        load_text(file, f"limits: {{requests_per_device: !!int {number}}}")
