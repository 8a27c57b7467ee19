"""Every bound is in one module, says what happens to who reaches it, and is reached by a test.

Knows the sources as text where it looks for numbers that should be in that module.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ploopfs.bounds import MAX_SHOWN, Bound, all_bounds
from ploopfs.config import load
from ploopfs.config.rules import ListOf, MapOf, Rule, Scalar
from ploopfs.config.scenario_file import load_scenario
from ploopfs.config.schema import FILE, DeviceConfig, Limits
from ploopfs.device.bounds import Bounds
from ploopfs.device.waiting import HoldPolicy
from ploopfs.errors import ConfigError, LimitReached

ROOT = Path(__file__).parent.parent
BOUNDS = all_bounds()

OF_FORMATS = {
    "engine/inject/grammar.py": {"U32_MAX", "U64_MAX"},
    "fuse/operations.py": {"NAME_MAX"},
    "device/limits.py": {"MAX_HW_SECTORS_KB"},
    "device/table.py": {"MAX_SECTORS"},
    "blockfuse/replies.py": {"MAX_PAGES", "_NAME_MAX"},
    "image/allocator.py": {"MAX_ENTRY"},
    "image/growth.py": {"_CLUSTERS_LIMIT"},
    "image/header.py": {"MAX_CLUSTER_SECTORS"},
    "image/descriptor_values.py": {"_ULONG_MAX"},
    "scst/access.py": {"MAX_LUN"},
    "scst/alua.py": {"U16_MAX"},
    "scst/handlers.py": {"S32_MAX"},
    "scst/iscsi.py": {"U16_MAX", "U32_MAX"},
    "scst/targets.py": {"REL_TGT_ID_MAX"},
    "scst/text.py": {"U64_MAX", "NAME_MAX_BYTES"},
    "scst/vdisk.py": {"NAME_MAX_BYTES"},
    "sysfs/parse.py": {"U32_MAX"},
    "config/schema.py": {"MAX_NAME"},
}
"""Names that look like a bound's and are numbers of a format, a protocol or a library."""

A_BOUND = re.compile(r"_?MAX_|.*_(MAX|LIMIT|CAPACITY|TIMEOUT_S|DEADLINE_S|GRACE_S|TIMEOUT_MS|MAX_BYTES)$")
"""How constants are called that bound something."""


def constants(source: str) -> Iterator[str]:
    """Names at the top level that are given a value there."""
    for node in ast.parse(source).body:
        plain = node.targets if isinstance(node, ast.Assign) else []
        for target in [*plain, *([node.target] if isinstance(node, ast.AnnAssign) else [])]:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from (name.id for name in names if isinstance(name, ast.Name))


def bounds_of(path: str, source: str) -> set[str]:
    return {name for name in constants(source) if A_BOUND.match(name)} - OF_FORMATS.get(path, set())


def sources() -> dict[str, str]:
    package = ROOT / "ploopfs"
    return {file.relative_to(package).as_posix(): file.read_text(encoding="utf-8") for file in package.rglob("*.py")}


def test_no_other_module_has_a_bound_of_its_own() -> None:
    found = {path: names for path, source in sources().items() if (names := bounds_of(path, source))}
    found.pop("bounds.py")
    assert found == {}


@pytest.mark.parametrize(
    "source", ["MAX_RULES = 64", "_SHUTDOWN_TIMEOUT_S: int = 3", "A, QUEUE_MAX = 1, 2", "LOCK_GRACE_S = 1.5"]
)
def test_a_bound_in_another_module_would_be_found(source: str) -> None:
    assert bounds_of("device/queue.py", source)


def test_the_exceptions_are_there() -> None:
    found = sources()
    assert [path for path, names in OF_FORMATS.items() if not names <= set(constants(found[path]))] == []


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_says_what_it_counts_and_what_happens_to_who_reaches_it(name: str) -> None:
    bound = BOUNDS[name]
    assert bound > 0
    assert bound.of
    assert bound.reached
    assert bool(bound.setting) == bool(bound.highest)
    assert not bound.setting or bound <= bound.highest


def rule_at(setting: str) -> Scalar:
    """The rule of the configuration at a key such as `devices[].hold_timeout_ms`."""
    rule: Rule = FILE
    for key in setting.split("."):
        assert isinstance(rule, MapOf)
        rule = rule.keys[key.removesuffix("[]")]
        if isinstance(rule, ListOf):
            rule = rule.entry
    assert isinstance(rule, Scalar)
    return rule


@pytest.mark.parametrize("name", [name for name, bound in BOUNDS.items() if bound.setting])
def test_a_bound_that_can_be_set_is_the_default_of_its_key_and_its_highest_the_last_value_taken(name: str) -> None:
    bound = BOUNDS[name]
    rule, key = rule_at(bound.setting), bound.setting.rpartition(".")[2]
    defaults = DeviceConfig("ploop0", "image") if bound.setting.startswith("devices") else Limits()
    assert getattr(defaults, key) == bound
    assert rule.accepts(int(bound))
    assert rule.accepts(bound.highest)
    assert not rule.accepts(bound.highest + 1)
    assert not rule.accepts(0)


def test_the_limits_of_the_configuration_are_bounds() -> None:
    assert isinstance(FILE.keys["limits"], MapOf)
    settings = {f"limits.{key}" for key in FILE.keys["limits"].keys}
    assert settings == {bound.setting for bound in BOUNDS.values() if bound.setting.startswith("limits.")}


def test_a_device_without_a_configuration_has_the_same_bounds() -> None:
    limits, bounds, policy = Limits(), Bounds(), HoldPolicy()
    assert (bounds.requests, bounds.held_requests) == (limits.requests_per_device, limits.held_requests)
    assert (bounds.held_bytes, bounds.unflushed_bytes) == (limits.held_mib << 20, limits.unflushed_mib << 20)
    assert (bounds.park_timeout_s, bounds.quiesce_timeout_s) == (limits.park_timeout_s, limits.quiesce_timeout_s)
    assert (policy.requests, policy.data_bytes) == (limits.held_requests, limits.held_mib << 20)
    assert policy.timeout_ms == DeviceConfig("ploop0", "image").hold_timeout_ms


def test_there_is_room_for_as_many_as_a_bound_says_and_not_for_one_more() -> None:
    three = Bound(3, "things", "ENOSPC")
    three.check_room(2, "things")
    for count in (3, 4):
        with pytest.raises(LimitReached, match=r"^3 things exist, which is the most: remove one first$"):
            three.check_room(count, "things")


REACHED = {
    "HELPER_TIMEOUT_S": "fuse/test_bounds.py::test_a_program_that_hangs_does_not_keep_the_tree_from_being_ready",
    "INTERRUPT_GRACE_MS": (
        "mounted/test_interrupted.py::test_it_ends_at_once_and_the_disk_is_what_it_was"
    ),
    "SHOWN_CHANGES": "test_cli_check.py::test_many_changes_are_counted_and_the_first_are_shown",
    "REQUESTS": "device/test_queue.py::test_a_full_queue_refuses_with_eio_whoever_waits_or_is_in_flight",
    "RING_WRITES": (
        "engine/test_ring.py::test_no_more_are_begun_than_the_bound_and_further_ones_take_a_thread"
    ),
    "LEFT_BEHIND": "engine/test_stand_in.py::test_while_so_many_hang_nobody_stands_in_any_more",
    "STAND_IN_US": (
        "blockfuse/test_busy.py::test_a_storage_that_hangs_keeps_nobody_waiting_but_who_writes_to_it"
    ),
    "LENT_US": (
        "engine/test_stand_in.py::test_the_loop_goes_on_without_who_hangs_and_hears_of_the_write_when_it_has_ended"
    ),
    "POLL_US": "blockfuse/test_soon.py::test_who_takes_longer_is_not_polled_for",
    "POLL_DEEP_US": "blockfuse/test_busy.py::test_who_has_several_requests_under_way_is_looked_for_longer",
    "POLL_MIB_US": "blockfuse/test_soon.py::test_who_has_much_moved_is_looked_for_longer",
    "POLL_TURN_US": (
        "blockfuse/test_soon.py::"
        "test_he_is_served_without_the_event_loop_in_between_and_others_have_their_turn_now_and_then"
    ),
    "NAME_LENT_MS": "device/test_lent.py::test_a_device_is_not_removed_before_its_name_is_forgotten",
    "NAME_GRACE_MS": "device/test_lent.py::test_a_device_is_not_removed_before_its_name_is_forgotten",
    "TREE_POLL_US": "fuse/test_loop.py::test_a_look_is_no_longer_than_the_bound",
    "TREE_TURN_US": (
        "fuse/test_loop.py::"
        "test_a_quick_caller_is_served_without_the_event_loop_and_others_have_their_turn_now_and_then"
    ),
    "GROW_AHEAD_MIB": "engine/test_end_of_file.py::test_the_file_is_ahead_by_no_more_than_the_bound",
    "HELD_REQUESTS": "device/test_hold.py::test_with_the_bound_on_their_number_reached_further_requests_are_refused",
    "HELD_MIB": "device/test_hold.py::test_the_bound_on_bytes_counts_the_data_of_writes_only",
    "UNFLUSHED_MIB": "device/test_unflushed.py::test_at_the_bound_the_write_that_reaches_it_is_flushed",
    "HOLD_TIMEOUT_MS": "device/test_hold.py::test_a_request_held_for_too_long_fails_with_eio_at_the_timeout",
    "PARK_TIMEOUT_S": "device/test_queue.py::test_a_request_parked_for_too_long_fails_with_eio",
    "QUIESCE_TIMEOUT_S": "device/test_replace.py::test_while_a_request_hangs_a_replacement_gives_up_and_requests_go_on",
    "THREADS": "engine/test_bounds.py::test_with_every_thread_in_the_storage_the_next_operation_waits_for_one",
    "PACE": "device/test_hold.py::test_no_more_than_the_pace_are_in_flight_while_others_wait",
    "MAX_TRANSFER_BYTES": "blockfuse/test_protocol.py::test_both_sides_do_what_both_can",
    "DISK_BACKGROUND": "blockfuse/test_protocol.py::test_both_sides_do_what_both_can",
    "BURST_BYTES": "blockfuse/test_connection.py::test_a_busy_disk_leaves_others_their_turn",
    "BURST_REQUESTS": "blockfuse/test_connection.py::test_a_busy_disk_leaves_others_their_turn",
    "ZEROES_MAX_BYTES": "device/test_sparse.py::test_a_long_range_is_several_requests_and_a_replace_comes_in_between",
    "MAX_DEVICES": "test_config.py::test_1024_devices_are_accepted_and_one_more_is_not",
    "OPENING": "test_start.py::test_no_more_images_than_the_bound_are_opened_at_the_same_time",
    "SPARE_DEVICES": "test_configured.py::test_more_devices_than_the_mount_has_room_for_are_refused",
    "MAX_DELTAS": "engine/test_opening.py::test_a_stack_of_too_many_images_or_of_none_is_refused",
    "MAX_MAP_BYTES": "engine/test_create.py::test_a_disk_whose_map_nobody_would_open_is_not_made",
    "MAX_DESCRIPTOR_BYTES": "image/test_descriptor.py::test_size_and_nesting_are_bounded",
    "MAX_DESCRIPTOR_DEPTH": "image/test_descriptor.py::test_size_and_nesting_are_bounded",
    "MAX_DISK_CLUSTERS": (
        "engine/test_opening.py::test_a_disk_that_no_map_in_memory_can_hold_is_refused_by_name"
    ),
    "PAGE_BYTES": "fuse/test_mounted.py::test_5000_bytes_are_taken_as_4096",
    "MAX_TABLE_BYTES": "sysfs/test_vz9.py::test_a_table_may_be_longer_than_a_page",
    "MAX_OPEN_FILES": (
        "fuse/test_bounds.py::"
        "test_more_files_and_directories_than_the_bound_are_not_opened_until_some_are_closed"
    ),
    "MAX_OTHERS_FILES": (
        "fuse/test_bounds.py::test_other_users_leave_half_of_the_files_to_the_owner_whatever_they_open"
    ),
    "MAX_STORES": (
        "fuse/test_bounds.py::"
        "test_more_stores_than_the_bound_are_busy_and_neither_reads_nor_disks_are_kept_from_anything"
    ),
    "STATUS_TASKS": (
        "mounted/test_hold.py::"
        "test_500_held_readers_delay_neither_the_status_nor_the_neighbour_and_all_are_served_after_recovery"
    ),
    "MAX_EVENTS": "device/test_events.py::test_the_ring_holds_the_last_records_without_a_gap",
    "MAX_FACT_CHARACTERS": "device/test_events.py::test_a_text_that_somebody_wrote_does_not_fill_the_ring",
    "MAX_SCST_OBJECTS": "scst/test_bounds.py::test_one_more_than_the_bound_is_refused_and_fits_when_one_has_gone",
    "SYNC_TIMEOUT_S": "scst/test_devices.py::test_sync_gives_up_on_a_store_that_does_not_answer",
    "MAX_RULES": "engine/test_inject_grammar.py::test_64_rules_are_accepted_and_one_more_is_not",
    "MAX_RULE_CHARACTERS": "engine/test_bounds.py::test_a_command_of_faults_has_as_many_characters_as_the_bound_says",
    "MAX_DELAY_MS": (
        "engine/test_inject_grammar.py::"
        "test_a_mistake_is_told_with_the_word_the_value_and_what_was_expected"
    ),
    "MAX_ATTEMPTS": "test_bounds.py::test_a_file_may_say_the_bound_and_not_more",
    "MAX_RECOVERY_S": "test_bounds.py::test_a_file_may_say_the_bound_and_not_more",
    "MAX_HEALTHY_PROBES": "test_bounds.py::test_a_file_may_say_the_bound_and_not_more",
    "MAX_COMMAND_ARGUMENTS": "test_bounds.py::test_a_file_may_say_the_bound_and_not_more",
    "OUTPUT_BYTES": "engine/test_command.py::test_of_much_output_the_end_is_kept",
    "LOGGED_LINES": "device/test_bounds.py::test_of_what_a_recovery_command_says_the_last_lines_are_logged",
    "GRACE_S": "engine/test_command.py::test_a_program_that_does_not_end_when_asked_is_killed",
    "OUTPUT_GRACE_S": (
        "engine/test_command.py::"
        "test_a_server_that_it_leaves_behind_neither_delays_the_result_nor_is_ended"
    ),
    "MAX_REREAD_BYTES": "engine/test_bounds.py::test_of_a_large_read_that_failed_a_probe_tries_the_beginning",
    "MESSAGE_TIMEOUT_S": "device/test_bounds.py::test_a_message_that_moves_clusters_is_given_up_at_its_bound",
    "VERIFY_TIMEOUT_S": (
        "device/test_bounds.py::test_a_comparison_of_all_data_is_given_up_at_its_bound_and_nothing_has_changed"
    ),
    "GIVEN_UP_MS": "engine/test_given_up.py::test_what_does_not_end_in_a_moment_is_not_waited_for_any_longer",
    "GONE_LOCK_MS": (
        "engine/test_holders.py::test_who_cannot_be_found_is_waited_for_in_bounds_and_then_another_process"
    ),
    "SEARCH_S": "engine/test_holders.py::test_the_search_ends_at_its_deadline",
    "CLOSE_TIMEOUT_S": "engine/test_bounds.py::test_a_close_that_hangs_is_waited_for_in_bounds",
    "CLOSE_GRACE_MS": "engine/test_bounds.py::test_a_close_that_hangs_is_waited_for_in_bounds",
    "MAX_CONFIG_BYTES": "test_config.py::test_a_file_beyond_one_mebibyte_is_refused_before_it_is_parsed",
    "MAX_CONFIG_DEPTH": "test_config.py::test_what_cannot_be_composed_is_refused_with_its_line",
    "MAX_ERRORS": "test_config.py::test_a_file_with_nothing_but_mistakes_is_not_read_to_its_end",
    "MAX_NUMBER": "test_config.py::test_a_number_that_takes_long_to_read_is_not_read",
    "MAX_SHOWN": "test_bounds.py::test_a_wrong_value_is_shown_as_far_as_the_bound_says",
    "MAX_ALLOWED_DIRS": (
        "test_config.py::"
        "test_the_directories_in_which_images_may_lie_are_counted_from_that_of_the_file"
    ),
    "RELOAD_TIMEOUT_S": "test_configured.py::test_a_storage_that_does_not_answer_an_open_is_waited_for_in_bounds",
    "SHUTDOWN_DEADLINE_S": "mounted/test_lifetime.py::test_a_store_that_hangs_is_given_up_at_the_deadline",
    "CONNECTION_TIMEOUT_S": (
        "blockfuse/test_planes.py::test_what_an_aborted_connection_still_writes_is_waited_for_in_bounds"
    ),
    "MAX_BACKGROUND": (
        "fuse/test_bounds.py::test_the_kernel_is_asked_for_no_more_background_requests_than_it_knows"
    ),
    "KEPT_MEMORY_MIB": "engine/test_memory.py::test_what_large_requests_have_used_is_used_again_up_to_the_bound",
    "MAX_TIMEOUT_S": "test_cli.py::test_a_time_that_nobody_can_wait_for_is_refused",
    "MAX_LAST_EVENTS": "test_cli_text.py::test_more_events_than_there_can_be_are_all_of_them",
    "MAX_RECORD_BYTES": "test_cli_text.py::test_events_without_an_end_are_not_read_for_ever",
    "MAX_FILE_BYTES": "test_cli_text.py::test_a_file_without_an_end_is_not_read_for_ever",
    "SCENARIO_DEVICES": "test_bounds.py::test_a_file_may_say_the_bound_and_not_more",
    "SCENARIO_STEPS": "test_bounds.py::test_a_file_may_say_the_bound_and_not_more",
    "SCENARIO_REPEATS": "test_bounds.py::test_a_file_may_say_the_bound_and_not_more",
    "SCENARIO_DEPTH": "test_bounds.py::test_a_file_may_say_the_bound_and_not_more",
    "SCENARIO_SIZE_MIB": "test_bounds.py::test_a_file_may_say_the_bound_and_not_more",
    "SCENARIO_TIMEOUT_S": "test_bounds.py::test_a_file_may_say_the_bound_and_not_more",
}
"""The test that reaches a bound, and sees what happens to who does."""

PATIENCE = {
    *("READ_TIMEOUT_S", "SCENARIO_WITHIN_S", "SCENARIO_COMMAND_S"),
    *("CLEANUP_TIMEOUT_S", "START_TIMEOUT_S", "END_TIMEOUT_S", "LOG_LINES"),
}
"""How long a command waits that a user can interrupt, and what it prints: nobody waits for these in a test."""


def test_every_bound_is_reached_by_a_test_that_exists() -> None:
    assert set(REACHED) | PATIENCE == set(BOUNDS)
    assert not set(REACHED) & PATIENCE
    there: dict[str, str] = {}
    for path, _, name in (test.partition("::") for test in REACHED.values()):
        there.setdefault(path, (ROOT / "tests" / path).read_text(encoding="utf-8"))
        assert f"def {name}(" in there[path], f"{path}::{name}"


def configured(recovery: str) -> str:
    return f"devices: [{{name: ploop0, image: a, recovery: {recovery}}}]"


def staged(device: str) -> str:
    return f"name: n\nsteps: [write: 1]\ndevices: [{device}]"


def repeated(times: int) -> str:
    return f"name: n\nsteps:\n- repeat: {{times: {times}, steps: [write: 1]}}"


FILES: dict[str, Callable[[int], str]] = {
    "MAX_ATTEMPTS": lambda count: configured(f"{{reopen: true, attempts: {count}}}"),
    "MAX_RECOVERY_S": lambda count: configured(f"{{reopen: true, settle_s: {count}}}"),
    "MAX_HEALTHY_PROBES": lambda count: configured(f"{{reopen: true, healthy_probes: {count}}}"),
    "MAX_COMMAND_ARGUMENTS": lambda count: configured(f"{{command: [{', '.join(['a'] * count)}]}}"),
    "SCENARIO_DEVICES": lambda count: staged(", ".join(f"{{name: ploop{number}}}" for number in range(count))).replace(
        "write: 1", "write: {device: ploop0, count: 1}"
    ),
    "SCENARIO_STEPS": lambda count: f"name: n\nsteps: [{', '.join(['write: 1'] * count)}]",
    "SCENARIO_REPEATS": repeated,
    "SCENARIO_DEPTH": lambda count: staged(f"{{name: ploop0, depth: {count}}}"),
    "SCENARIO_SIZE_MIB": lambda count: staged(f"{{name: ploop0, size_mib: {count}}}"),
    "SCENARIO_TIMEOUT_S": lambda count: f"name: n\nsteps:\n- expect: {{standby: on, within_s: {count}}}",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_may_say_the_bound_and_not_more(tmp_path: Path, name: str) -> None:
    read = load_scenario if name.startswith("SCENARIO") else load
    path, bound = tmp_path / "file.yaml", BOUNDS[name]
    path.write_text(FILES[name](bound))
    read(path)
    path.write_text(FILES[name](bound + 1))
    with pytest.raises(ConfigError, match=rf"^{path}:\d+: .* is .*, expected .*\b{bound}\b") as raised:
        read(path)
    assert "\n" not in str(raised.value)


def test_a_wrong_value_is_shown_as_far_as_the_bound_says(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(f"scst: {{loaded: {'x' * 100_000}}}")
    with pytest.raises(ConfigError, match=rf"is '{'x' * (MAX_SHOWN - 1)}\.\.\., expected true or false$"):
        load(path)
