"""Scenario files: what they may say, and that every mistake is told with its line and key."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ploopfs.config.scenario import (
    AnyStep,
    Command,
    ExpectEvent,
    ExpectLoad,
    ExpectValue,
    Inject,
    Load,
    Remove,
    Request,
    Scenario,
    StageDevice,
    Store,
    Verify,
)
from ploopfs.config.scenario_file import load_scenario
from ploopfs.errors import ConfigError

SHIPPED = Path(__file__).parent.parent / "config/scenarios"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "scenario.yaml"


def loaded(file: Path, text: str) -> Scenario:
    file.write_text(text, encoding="utf-8")
    return load_scenario(file)


def steps(file: Path, *texts: str, devices: str = "") -> tuple[AnyStep, ...]:
    """The steps start in line 3."""
    listed = "".join(f"  - {text}\n" for text in texts)
    return loaded(file, f"name: test {devices}\nsteps:\n{listed}").steps


def mistakes(file: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(file, text)
    return [line.removeprefix(f"{file}:") for line in str(caught.value).split("\n")]


def step_mistakes(file: Path, text: str, *, devices: str = "") -> list[str]:
    return mistakes(file, f"name: test{devices}\nsteps:\n  - {text}\n")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_scenario_is_valid_and_says_what_it_is_about(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.name.replace(" ", "-").replace(",", "") == path.stem
    assert scenario.about
    assert path.read_text().startswith("# ")
    kinds = {type(step) for step in scenario.steps}
    assert {Inject, ExpectValue, Verify} <= kinds
    recoveries = [step for step in scenario.steps if isinstance(step, Store | Command) and step.is_recovery]
    assert recoveries or path.stem in ("hang", "transient-eio-agent"), "nothing that --command could stand in for"
    assert scenario.steps[-1] == Verify(line=scenario.steps[-1].line, device="ploop0", what="images")


def test_every_scenario_that_the_issue_asks_for_is_shipped() -> None:
    assert {path.stem for path in SHIPPED.glob("*.yaml")} >= {
        "lease-stolen",
        "mount-gone",
        "transient-eio-agent",
        "flapping-store",
        "wrong-replacement",
        "failed-fsync",
        "hang",
        "two-devices-one-fails",
    }


def test_a_name_and_a_step_are_enough(file: Path) -> None:
    assert loaded(file, "name: x\nsteps: [verify: disk]") == Scenario(
        str(file), "x", "", (StageDevice(),), (Verify(line=2, device="ploop0", what="disk"),)
    )


def test_devices_have_defaults_and_their_images_count_from_the_file(file: Path) -> None:
    text = "name: x\ndevices: [{image: a.hds}, {name: ploop1, image: [b, /c], depth: 1, on_standby: hold}]\nsteps: []"
    made = loaded(file, text.replace("steps: []", "steps: [verify: disk]"))
    first, second = made.devices
    assert first == StageDevice(image=(f"{file.parent}/a.hds",))
    assert second == StageDevice("ploop1", image=(f"{file.parent}/b", "/c"), depth=1, on_standby="hold")


def test_a_recovery_is_that_of_a_configuration(file: Path) -> None:
    text = "name: x\ndevices: [{recovery: {reopen: true, backoff_s: 2}}, {name: ploop1, recovery: reopen}]\n"
    made = loaded(file, text + "steps: [verify: disk]")
    assert [device.recovery for device in made.devices] == [{"reopen": True, "backoff_s": 2}, "reopen"]


# --- each kind of step --------------------------------------------------------------------------------------------


def test_an_injection_has_the_words_of_the_tree_s_grammar(file: Path) -> None:
    [step] = steps(file, "inject: {op: READ, errno: EBUSY, level: 2, count: 3, hang: true, after: false, name: x}")
    assert step == Inject(
        line=3, device="ploop0", words=("op=READ", "errno=EBUSY", "level=2", "count=3", "hang"), name="x"
    )


def test_rules_are_removed_by_name_or_all(file: Path) -> None:
    _, one, every = steps(file, "inject: {errno: EIO, name: x}", "remove: {name: x}", "remove: all")
    assert (one, every) == (Remove(line=4, device="ploop0", name="x"), Remove(line=5, device="ploop0"))


def test_a_rule_is_removed_after_it_was_made(file: Path) -> None:
    text = "name: test\nsteps:\n  - remove: {name: y}\n  - inject: {errno: EIO, name: y}\n"
    assert mistakes(file, text) == ["3: remove: is 'y', expected the name of a rule made before (there: none)"]


def test_images_are_verified_last(file: Path) -> None:
    text = "name: test\nsteps:\n  - verify: images\n  - write: 1\n"
    assert mistakes(file, text) == ["3: verify: images unmounts the disks, expected as the last step"]


def test_an_errno_and_a_flavour_are_known_before_anything_is_mounted(file: Path) -> None:
    assert step_mistakes(file, "inject: {errno: ENOPE}") == [
        "3: steps[0].inject.errno: is 'ENOPE', expected the name of an errno such as EBUSY"
    ]
    assert mistakes(file, "name: test\ndevices: [{flavour: block}]\nsteps: [write: 1]\n") == [
        "2: devices[0].flavour: is 'block', expected one of vz7, vz9"
    ]


@pytest.mark.parametrize("kind", ["write", "read", "flush"])
def test_requests_are_a_number_or_a_mapping(file: Path, kind: str) -> None:
    five, failing = steps(file, f"{kind}: 5", f"{kind}: {{errno: EIO, timeout_s: 2}}")
    assert five == Request(line=3, device="ploop0", kind=kind, count=5)
    assert failing == Request(line=4, device="ploop0", kind=kind, errno="EIO", timeout_s=2)


def test_a_load_is_started_and_stopped(file: Path) -> None:
    start, stop = steps(file, "load: {do: start, threads: 4}", "load: stop")
    assert start == Load(line=3, device="ploop0", start=True, threads=4)
    assert stop == Load(line=4, device="ploop0", start=False)


@pytest.mark.parametrize(
    ("text", "attribute", "compare", "value"),
    [
        ("{standby: on}", "queue/standby", "is", "on"),
        ("{standby: off}", "queue/standby", "is", "off"),
        ("{standby: not supported}", "queue/standby", "is", "not supported"),
        ("{attribute: ploopfs/held, is: 3}", "ploopfs/held", "is", "3"),
        ("{attribute: ploopfs/on_standby, is: hold}", "ploopfs/on_standby", "is", "hold"),
        ("{attribute: a, matches: 'x.*'}", "a", "matches", "x.*"),
        ("{attribute: a, at_least: 0}", "a", "at_least", "0"),
    ],
)
def test_an_expectation_of_an_attribute(file: Path, text: str, attribute: str, compare: str, value: str) -> None:
    [step] = steps(file, f"expect: {text}")
    assert step == ExpectValue(line=3, device="ploop0", attribute=attribute, compare=compare, text=value)


def test_expectations_of_events_and_of_the_load(file: Path) -> None:
    event, load = steps(
        file, "expect: {event: standby_on, facts: [errno=EIO, file=/a=b], within_s: 2}", "expect: {load_errors: some}"
    )
    assert event == ExpectEvent(
        line=3, device="ploop0", event="standby_on", facts=(("errno", "EIO"), ("file", "/a=b")), within_s=2
    )
    assert load == ExpectLoad(line=4, device="ploop0", errors=True)


def test_acts_and_recoveries_write_a_file_or_run_a_command(file: Path) -> None:
    store, in_mount, command, recovery = steps(
        file,
        "act: {store: ploopfs/reopen, value: 1, errno: EBUSY}",
        "act: {file: sys/fs/ploopfs/modprobe, value: scst}",
        "act: {command: 'exit 3', exit: 3, timeout_s: 5}",
        "recover: {store: ploopfs/on_standby, value: on}",
    )
    assert store == Store(line=3, device="ploop0", path="ploopfs/reopen", value="1", errno="EBUSY")
    assert in_mount == Store(line=4, device="ploop0", path="sys/fs/ploopfs/modprobe", value="scst", in_mount=True)
    assert command == Command(line=5, device="ploop0", command="exit 3", exit=3, timeout_s=5)
    assert recovery == Store(line=6, device="ploop0", path="ploopfs/on_standby", value="on", is_recovery=True)


def test_repeated_steps_stand_as_often_as_they_are_played(file: Path) -> None:
    found = steps(file, "repeat: {times: 2, steps: [write: 1, flush: 1]}", "verify: disk")
    assert [type(step) for step in found] == [Request] * 4 + [Verify]


def test_with_several_devices_each_step_about_one_says_which(file: Path) -> None:
    devices = "\ndevices: [{}, {name: ploop1}]"
    found = steps(file, "write: {device: ploop1}", "remove: all", "verify: disk", devices=devices)
    assert found[0].device == "ploop1"
    assert step_mistakes(file, "write: 1", devices=devices) == [
        "4: steps[0].write: names no device, expected device: one of ploop0, ploop1"
    ]
    assert step_mistakes(file, "inject: {device: ploop2, hang: true}", devices=devices) == [
        "4: steps[0].inject.device: is 'ploop2', expected a device of the scenario: ploop0, ploop1"
    ]


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", " is empty, expected a mapping with name, about, devices and steps"),
        ("[]", "1: the file: is a list of 0, expected a mapping with name, about, devices and steps"),
        ("name: x", "1: steps: is missing, expected a list of 1 to 1000 steps"),
        ("steps: [verify: disk]", "1: name: is missing, expected a name without a newline"),
        ("name: x\nsteps: []", "2: steps: is a list of 0, expected a list of 1 to 1000 steps"),
        ("name: x\nstep: []\nsteps: [verify: disk]", "2: step: is no known key, expected one of name, about"),
        ("name: x\ndevices: [{name: sda}]\nsteps: [flush: 1]", "2: devices[0].name: is 'sda', expected a name from"),
        ("name: x\ndevices: [{flavour: vz8}]\nsteps: [flush: 1]", "2: devices[0].flavour: is 'vz8', expected one of"),
        ("name: x\ndevices: [{flavour: vz9}]\nsteps: [flush: 1]", "2: devices[0]: is 'ploop0', expected a name from"),
        ("name: x\ndevices: [{}, {}]\nsteps: [remove: all]", "2: devices[1]: is 'ploop0' again, expected a name"),
        ("name: x\ndevices: [{recovery: auto}]\nsteps: [flush: 1]", "2: devices[0].recovery: is 'auto', expected man"),
        ("name: x\ndevices: [{recovery: {}}]\nsteps: [flush: 1]", "2: devices[0].recovery: has no policy, expected"),
        ("name: x\ndevices: [{depth: 0}]\nsteps: [flush: 1]", "2: devices[0].depth: is 0, expected a whole number"),
    ],
)
def test_a_mistake_of_the_file_is_told_with_its_line(file: Path, text: str, says: str) -> None:
    assert mistakes(file, text)[0].startswith(says)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("{}", "3: steps[0]: has none, expected one of inject, remove, write, read, flush, load, expect, act, recover"),
        ("{write: 1, read: 1}", "3: steps[0]: has write, read, expected one of inject"),
        ("wriet: 1", "3: steps[0].wriet: is no known key, expected one of inject, remove, write"),
        ("write: 0", "3: steps[0].write: is 0, expected a whole number from 1 to 1000000"),
        ("write: {errno: eio}", "3: steps[0].write.errno: is 'eio', expected the name of an errno such as EBUSY"),
        ("write: {timeout_s: 0}", "3: steps[0].write.timeout_s: is 0, expected a number of seconds above 0"),
        ("inject: {levle: 1}", "3: steps[0].inject.levle: is no known key, expected one of device, name, op"),
        ("remove: some", "3: steps[0].remove: is 'some', expected all"),
        ("remove: {}", "3: steps[0].remove.name: is missing, expected a word"),
        ("load: go", "3: steps[0].load: is 'go', expected start or stop"),
        ("expect: {}", "3: steps[0].expect: has none, expected one of standby, attribute, event, load_errors"),
        ("expect: {standby: on, event: held}", "3: steps[0].expect: has standby and event, expected one of standby,"),
        ("expect: {standby: maybe}", "3: steps[0].expect.standby: is 'maybe', expected on, off or 'not supported'"),
        ("expect: {standby: 1}", "3: steps[0].expect.standby: is 1, expected on, off or 'not supported'"),
        ("expect: {standby: on, is: x}", "3: steps[0].expect.is: is given, expected none with standby"),
        ("expect: {attribute: a}", "3: steps[0].expect: has none, expected one of is, matches, at_least"),
        ("expect: {attribute: a, is: 1, at_least: 1}", "3: steps[0].expect: has is and at_least, expected one of"),
        ("expect: {attribute: a, matches: '('}", "3: steps[0].expect.matches: is '(', expected a pattern: missing"),
        ("expect: {attribute: ../a, is: 1}", "3: steps[0].expect.attribute: is '../a', expected a path without .."),
        ("expect: {event: x, facts: [y]}", "3: steps[0].expect.facts[0]: is 'y', expected key=value"),
        ("act: {value: 1}", "3: steps[0].act: has none, expected one of store, file, command"),
        ("act: {store: a}", "3: steps[0].act: has no value, expected what is written"),
        ("act: {store: a, value: 1, exit: 1}", "3: steps[0].act.exit: is given, expected none with store"),
        ("recover: {command: a, errno: EIO}", "3: steps[0].recover.errno: is given, expected none with command"),
        ("verify: all", "3: steps[0].verify: is 'all', expected disk or images"),
        ("repeat: {times: 101, steps: [write: 1]}", "3: steps[0].repeat.times: is 101, expected a whole number"),
        ("repeat: {times: 2, steps: [write: 0]}", "3: steps[0].repeat.steps[0].write: is 0, expected a whole"),
        ("repeat: {times: 2, steps: [repeat: {}]}", "3: steps[0].repeat.steps[0].repeat: is no known key"),
    ],
)
def test_a_mistake_of_a_step_is_told_with_its_line(file: Path, step: str, says: str) -> None:
    assert step_mistakes(file, step)[0].startswith(says)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(file: Path) -> None:
    text = "name: x\nsteps:\n  - write: 0\n  - expect: {}\n  - verify: all\n"
    assert [mistake.split(":")[0] for mistake in mistakes(file, text)] == ["3", "4", "5"]


scalars = st.one_of(st.sampled_from(["on", "all", "start", "{}", "[]", "ploop0", "'('", "EIO"]), st.integers().map(str))
KINDS = ["inject", "remove", "write", "read", "flush", "load", "expect", "act", "recover", "verify", "repeat"]
OTHERS = ["device", "name", "op", "errno", "do", "is", "event", "facts", "standby", "attribute", "matches", "store"]
keys = st.sampled_from([*KINDS, *OTHERS, "file", "value", "command", "exit", "times", "steps", "count", "load_errors"])
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(keys, inner), max_size=3).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items) + "}"
        ),
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(keys, values), max_size=4))
def test_whatever_a_step_says_ends_in_a_scenario_or_in_mistakes(file: Path, entries: list[tuple[str, str]]) -> None:
    listed = "".join(f"  - {{{key}: {value}}}\n" for key, value in entries)
    with suppress(ConfigError):
        assert len(loaded(file, f"name: x\nsteps:\n{listed}").steps) >= len(entries)


def test_a_pattern_that_a_later_python_may_read_otherwise_is_taken_without_a_warning(file: Path) -> None:
    [step] = loaded(file, "name: a\nsteps: [expect: {attribute: a, matches: '[[a]'}]").steps
    assert isinstance(step, ExpectValue)
