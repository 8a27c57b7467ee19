"""`recovery` of a device in the configuration file: the policies, the patience, and every mistake with its line."""

from dataclasses import asdict
from pathlib import Path

import pytest

from ploopfs.config import Config, schema
from ploopfs.device.recovery import Command, Manual, Patience, Recovery, Reopen, Replace
from ploopfs.errors import ConfigError

SHIPPED = Path(__file__).parent.parent / "config/agent.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ploopfs.yaml"


def load_text(file: Path, text: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return schema.load(file)


def recovery(file: Path, text: str) -> Recovery:
    return load_text(file, f"devices: [{{name: ploop0, image: a, recovery: {text}}}]").devices[0].recovery


def mistakes(file: Path, text: str, device: str = "name: ploop0, image: a") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(file, f"devices: [{{{device}, recovery: {text}}}]")
    return [line.removeprefix(f"{file}:") for line in str(caught.value).split("\n")]


def test_without_the_key_an_operator_recovers_the_device(file: Path) -> None:
    loaded = load_text(file, "devices: [{name: ploop0, image: a}]").devices[0]
    assert loaded.recovery == Recovery(Manual(), Patience())


def test_a_word_is_a_policy_with_every_default(file: Path) -> None:
    assert recovery(file, "manual") == Recovery(Manual())
    assert recovery(file, "reopen") == Recovery(Reopen())


def test_a_mapping_is_a_policy_and_how_patiently_it_is_followed(file: Path) -> None:
    assert recovery(file, "{reopen: true, attempts: 5, probe: false, backoff_s: 0.5}") == Recovery(
        Reopen(), Patience(attempts=5, probe=False, backoff_s=0.5)
    )
    assert recovery(file, "{replace: /other/top.hds, healthy_probes: 1, settle_s: 0}") == Recovery(
        Replace("/other/top.hds"), Patience(healthy_probes=1, settle_s=0)
    )
    assert recovery(file, "{command: [fix, -v, ''], command_timeout_s: 9}") == Recovery(
        Command(("fix", "-v", "")), Patience(command_timeout_s=9)
    )


def test_relative_paths_start_at_the_directory_of_the_file_and_a_bare_program_is_left_to_the_search_path(
    file: Path,
) -> None:
    assert recovery(file, "{replace: copy/top.hds}").policy == Replace(f"{file.parent}/copy/top.hds")
    assert recovery(file, "{command: [./fix, ./x]}").policy == Command((f"{file.parent}/fix", "./x"))
    assert recovery(file, "{command: [fix]}").policy == Command(("fix",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", ": is 'auto', expected manual, reopen, or a mapping with one of reopen, replace, command"),
        ("true", ": is true, expected manual, reopen, or a mapping with one of reopen, replace, command"),
        ("[reopen]", ": is a list of 1, expected manual, reopen, or a mapping with one of reopen, replace, command"),
        ("{}", ": has no policy, expected exactly one of reopen, replace, command"),
        ("{attempts: 3}", ": has no policy, expected exactly one of reopen, replace, command"),
        ("{reopen: true, replace: b}", ": has reopen and replace, expected exactly one of reopen, replace, command"),
        ("{reopen: false}", ".reopen: is false, expected true"),
        ("{replace: ''}", ".replace: is empty, expected the path of the image that takes the place of the top"),
        ("{command: fix}", ".command: is 'fix', expected a program and its arguments: 1 to 64 texts"),
        ("{command: []}", ".command: is a list of 0, expected a program and its arguments: 1 to 64 texts"),
        ("{command: ['']}", ".command[0]: is empty, expected the path or the name of a program"),
        ("{command: [a, 1]}", ".command[1]: is 1, expected an argument: text without a NUL (quote a number)"),
        ("{reopen: true, attempts: 0}", ".attempts: is 0, expected a whole number from 1 to 1000000"),
        ("{reopen: true, backoff_s: 0}", ".backoff_s: is 0, expected a number of seconds above 0 and at most 86400"),
        ("{reopen: true, settle_s: -1}", ".settle_s: is -1, expected a number of seconds from 0 to 86400"),
        ("{reopen: true, probe: maybe}", ".probe: is 'maybe', expected true or false"),
        ("{reopen: true, probe_timeout_s: .nan}", ".probe_timeout_s: is .nan, expected a number of seconds above 0"),
        ("{reopen: true, backoff_s: 61}", ".backoff_s: is 61, expected at most backoff_max_s, 60"),
        ("{reopen: true, backoff_max_s: 0.5}", ".backoff_max_s: is 0.5, expected at least backoff_s, 1"),
        ("{reopen: true, backoff_s: 5, backoff_max_s: 2}", ".backoff_max_s: is 2, expected at least backoff_s, 5"),
        ("{reopen: true, command_timeout_s: 5}", ".command_timeout_s: is given, expected only beside command"),
        ("{reopen: true, retries: 5}", ".retries: is no known key, expected one of reopen, replace, command, attempts"),
    ],
)
def test_a_mistake_is_told_with_its_key_its_value_and_what_was_expected(file: Path, text: str, expected: str) -> None:
    (mistake,) = mistakes(file, text)
    assert mistake.startswith(f"1: devices[0].recovery{expected}")


def test_every_mistake_has_its_own_line(file: Path) -> None:
    told = mistakes(file, "{\nreopen: true,\nreplace: b,\nattempts: x,\nprobe: 3}")
    assert [line.split(":")[0] for line in told] == ["1", "4", "5"]


def test_a_disk_that_is_no_ploop_needs_no_recovery(file: Path) -> None:
    block = "name: xvda, flavour: block, image: [raw@a]"
    assert mistakes(file, "reopen", block) == [
        "1: devices[0].recovery: is given, expected none: a device that is no ploop has no standby mode"
    ]
    assert load_text(file, f"devices: [{{{block}, recovery: manual}}]").devices[0].recovery == Recovery()


def test_the_shipped_file_shows_every_policy_and_every_default(file: Path) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    policies = [device.recovery.policy for device in schema.load(SHIPPED).devices]
    assert policies == [
        Reopen(),
        Replace(f"{SHIPPED.parent}/copy/root.hds"),
        Command((f"{SHIPPED.parent}/recover.sh", "ploop2")),
    ]
    _, replacing, commanding = load_text(file, text.replace("\n#     ", "\n      ")).devices
    shown = asdict(replacing.recovery.patience)
    assert shown | {"probe": None, "attempts": None} == asdict(Patience())
    assert shown["probe"] is Patience().probes_for(replacing.recovery.policy)
    assert commanding.recovery.patience.probe is Patience().probes_for(commanding.recovery.policy)
    assert commanding.recovery.patience.command_timeout_s == Patience().command_timeout_s
    assert all(f"{key}:" in text for key in shown)
