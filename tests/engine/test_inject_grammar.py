"""Commands of the injector: the kernel's grammar and what was added to it, each mistake told, and the list of rules."""

import errno
import re
from contextlib import suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.bounds import MAX_RULE_CHARACTERS, MAX_RULES
from ploopfs.engine.inject.filter import OPERATIONS, Operation
from ploopfs.engine.inject.grammar import ADD, ERRNOS, FLAGS, OPS, STATUSES, execute, listing
from ploopfs.engine.inject.injector import Injector
from ploopfs.engine.inject.rule import Rule, Sectors
from ploopfs.errors import BadValue, LimitReached, NoSuchEntry, PloopError

U64_MAX = 2**64 - 1
READ = Operation("read", "/a", offset=4096, length=512)


def added(command: str) -> Rule:
    injector = Injector()
    execute(injector, command)
    [rule] = injector.rules
    return rule


def refusal(command: str) -> str:
    injector = Injector()
    with pytest.raises(BadValue) as caught:
        execute(injector, command)
    assert injector.rules == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("command", "operations", "number", "sectors", "chance"),
    [
        # The examples of the kernel's documentation.
        ("add,op=READ,start=0,status=IOERR,chance=10\n", {"read"}, errno.EIO, Sectors(0, U64_MAX), 10),
        ("add,op=WRITE,start=0,status=MEDIUM", {"write"}, errno.ENODATA, Sectors(0, U64_MAX), 1),
        ("add,op=READ,start=0,nr_sectors=8,status=IOERR,chance=10", {"read"}, errno.EIO, Sectors(0, 7), 10),
        # What its parser takes besides: any order, empty words, newlines as commas, numbers in three bases.
        ("status=IOERR\nop=DISCARD,,add\n\n", {"punch hole"}, errno.EIO, None, 1),
        ("add,op=FLUSH,status=IOERR,start=0x10,nr_sectors=010", {"fsync"}, errno.EIO, Sectors(16, 23), 1),
        ("add,op=READ,status=IOERR,nr_sectors=0", {"read"}, errno.EIO, Sectors(0, U64_MAX), 1),
        (f"add,op=READ,status=IOERR,start={U64_MAX}", {"read"}, errno.EIO, Sectors(U64_MAX, U64_MAX), 1),
        ("add,errno=EBUSY", OPERATIONS, errno.EBUSY, None, 1),
    ],
)
def test_a_command_of_the_kernel_s_grammar_makes_its_rule(
    command: str, operations: set[str], number: int, sectors: Sectors | None, chance: int
) -> None:
    rule = added(command)
    found = (set(rule.operations), rule.errno, rule.sectors, rule.chance)
    assert found == (operations, number, sectors, chance)
    assert (rule.level, rule.count, rule.delay_s, rule.released, rule.after) == (None, None, 0, None, False)


def test_every_status_of_the_block_layer_is_known_with_its_errno() -> None:
    assert {name: added(f"add,status={name}").errno for name in STATUSES} == STATUSES
    assert len(STATUSES) == 18


@pytest.mark.parametrize("name", ["EBUSY", "ENOTCONN", "EIO", "ENOSPC", "EOPNOTSUPP", "ENOTSUP", "EWOULDBLOCK"])
def test_an_errno_is_given_by_any_of_its_names(name: str) -> None:
    assert added(f"add,errno={name}").errno == getattr(errno, name) == ERRNOS[name]


@pytest.mark.parametrize("op", OPS)
def test_each_operation_takes_what_it_says_of_a_file(op: str) -> None:
    assert added(f"add,op={op},errno=EIO").operations == OPS[op]


def test_the_words_that_the_kernel_lacks_say_what_becomes_of_an_operation() -> None:
    rule = added("add,op=ALL,errno=ENOTCONN,level=2,skip=4,count=3,delay_ms=1500,hang,late,after,seed=7")
    assert (rule.errno, rule.level, rule.skip, rule.count, rule.delay_s) == (errno.ENOTCONN, 2, 4, 3, 1.5)
    assert (rule.late, rule.after, rule.seed, isinstance(rule.released, trio.Event)) == (True, True, 7, True)


@pytest.mark.parametrize("does", ["delay_ms=1", "hang"])
def test_a_rule_may_only_delay(does: str) -> None:
    assert added(f"add,{does}").errno is None


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "the action is none, expected one of add, remove, removeall"),
        ("\n", "the action is none, expected one of add, remove, removeall"),
        ("op=READ,status=IOERR", "the action is none, expected one of"),
        ("add,add,errno=EIO", "the action is add and add, expected one of"),
        ("add,removeall", "the action is add and removeall, expected one of"),
        ("removeall,op=READ", "op is given, expected none with removeall"),
        ("removeall,id=1", "id is given, expected none with removeall"),
        ("add,id=1,errno=EIO", "id is given, expected none with add"),
        ("remove", "id is missing, expected that of a rule"),
        ("remove,id=0", f"id is '0', expected a number from 1 to {U64_MAX}"),
        ("add,op=READ", "what the rule does is missing, expected one of status=, errno=, delay_ms=, hang"),
        ("add,op=read,errno=EIO", "op is 'read', expected one of READ, WRITE, DISCARD, FLUSH, TRUNCATE, OPEN, STAT,"),
        ("add,op=ZONE_RESET,errno=EIO", "op is 'ZONE_RESET', expected one of READ"),
        ("add,op=,errno=EIO", "op is '', expected one of READ"),
        ("add,status=OK", "status is 'OK', expected one of NOTSUPP"),
        ("add,status=EIO", "status is 'EIO', expected one of NOTSUPP"),
        ("add,errno=5", "errno is '5', expected a name such as E"),
        ("add,errno=ENONE", "errno is 'ENONE', expected a name such as E"),
        ("add,errno=EIO,status=IOERR", "errno is 'EIO' beside a status, expected one of the two"),
        ("add,errno=EIO,op=READ,op=WRITE", "op is given twice: 'READ' and 'WRITE'"),
        ("add,errno=EIO,hang,hang", "hang is given twice"),
        ("add,errno=EIO,chance=0", "chance is '0', expected a number from 1 to 4294967295"),
        ("add,errno=EIO,chance=4294967296", "chance is '4294967296', expected a number"),
        ("add,errno=EIO,start=-1", f"start is '-1', expected a number from 0 to {U64_MAX}"),
        ("add,errno=EIO,start=08", "start is '08', expected a number"),
        ("add,errno=EIO,start=0x", "start is '0x', expected a number"),
        ("add,errno=EIO,start= 1", "start is ' 1', expected a number"),
        ("add,errno=EIO,start=٣", "start is '٣', expected a number"),
        (f"add,errno=EIO,start={U64_MAX + 1}", f"start is '{U64_MAX + 1}', expected a number"),
        (f"add,errno=EIO,start={U64_MAX},nr_sectors=1", "nr_sectors is 1, expected at most 0 from start"),
        ("add,errno=EIO,count=0", "count is '0', expected a number from 1 to"),
        ("add,errno=EIO,count=", "count is '', expected a number from 1 to"),
        ("add,delay_ms=3600001", "delay_ms is '3600001', expected a number from 1 to 3600000"),
        ("add,hang,after", "after is given, expected only with status= or errno="),
        ("add,errno=EIO,late", "late is given, expected only with hang"),
        ("add,errno=EIO,hang=1", "'hang=1' is no word of a command, expected add, remove, removeall with op=, status="),
        ("add,errno=EIO,level", "'level' is no word of a command"),
        ("add, op=READ,errno=EIO", "' op=READ' is no word of a command"),
        ("add,errno=EIO,ch\0ance=1", r"'ch\x00ance=1' is no word of a command"),
        ("Add,errno=EIO", "'Add' is no word of a command"),
        ("add,errno=EIO,start=" + "9" * 5000, "the command has 5020 characters, expected at most 4096"),
        ("add,errno=EIO,start=" + "9" * 4000, "expected a number from 0 to"),
    ],
)
def test_a_mistake_is_told_with_the_word_the_value_and_what_was_expected(command: str, says: str) -> None:
    told = refusal(command)
    assert told.startswith(says) or (len(command) > 4000 and told.endswith(f"{says} {U64_MAX}"))
    assert len(told) < 400 or "errno is" in told


words = st.one_of(
    st.sampled_from(["add", "remove", "removeall", *FLAGS, *(f"{key}=" for key in (*ADD, "id")), "", "\n"]),
    st.builds(
        lambda key, value: f"{key}={value}",
        st.sampled_from([*ADD, *FLAGS, "id", "op "]),
        st.one_of(
            st.sampled_from([*OPS, *STATUSES, *ERRNOS, "0x1f", "017", "-1", "1", "0"]),
            st.integers(-(2**70), 2**70).map(str),
            st.text(max_size=8),
        ),
    ),
    st.text(max_size=12),
)


@given(st.lists(words, max_size=8))
def test_whatever_is_written_ends_in_a_rule_or_in_an_expected_error(command: list[str]) -> None:
    injector = Injector()
    with suppress(PloopError):
        execute(injector, ",".join(command))
    assert len(injector.rules) <= 1
    assert listing(injector).count("\n") == len(injector.rules)


@given(st.binary(max_size=64))
def test_no_bytes_of_a_writer_are_a_bug(data: bytes) -> None:
    with suppress(PloopError):
        execute(Injector(), data.decode("utf-8", "surrogateescape"))


# --- rules come and go --------------------------------------------------------------------------------------------


def test_a_rule_is_removed_by_its_number_which_is_never_given_again() -> None:
    injector = Injector()
    for _ in range(3):
        execute(injector, "add,errno=EIO")
    execute(injector, "remove,id=3\n")
    execute(injector, "remove,id=1\n")
    execute(injector, "add,errno=EBUSY\n")
    assert [rule.number for rule in injector.rules] == [4, 2]
    with pytest.raises(NoSuchEntry, match=re.escape("id is 1, expected that of a rule (there: 4, 2)")):
        execute(injector, "remove,id=1")
    execute(injector, "removeall")
    assert (injector.rules, listing(injector)) == ([], "")
    execute(injector, "removeall")


def test_64_rules_are_accepted_and_one_more_is_not() -> None:
    injector = Injector()
    for _ in range(MAX_RULES):
        execute(injector, "add,errno=EIO")
    with pytest.raises(LimitReached, match="64 rules exist, which is the most"):
        execute(injector, "add,errno=EIO")
    execute(injector, "remove,id=5")
    execute(injector, "add,errno=EIO")
    assert len(injector.rules) == MAX_RULES


# --- what reading shows -------------------------------------------------------------------------------------------

KERNEL_LINE = re.compile(r"(\d+):(\d+) op=([A-Z_]+),status=([A-Z_]+),chance=(\d+)\b.*")
"""What a script that knows the kernel's file alone looks for."""


def test_a_line_begins_as_the_kernel_s_and_says_what_else_is_set() -> None:
    injector = Injector()
    execute(injector, "add,op=READ,start=8,nr_sectors=8,status=IOERR,chance=10")
    execute(injector, "add,errno=ENOTCONN,level=0,skip=1,count=2,delay_ms=5,hang,after,seed=0")
    assert listing(injector).splitlines() == [
        "0:18446744073709551615 op=ALL,status=IOERR,chance=1,id=2,where=everything,errno=ENOTCONN,"
        "level=0,skip=1,count=2,delay_ms=5,hang,after,seed=0,hits=0",
        "8:15 op=READ,status=IOERR,chance=10,id=1,where=sectors,errno=EIO,hits=0",
    ]


@pytest.mark.parametrize(
    ("does", "status"), [("errno=EBUSY", "DEV_RESOURCE"), ("errno=ESTALE", "IOERR"), ("delay_ms=1", "OK")]
)
def test_the_status_of_a_line_is_what_the_block_layer_makes_of_the_errno(does: str, status: str) -> None:
    injector = Injector()
    execute(injector, f"add,{does}")
    match = KERNEL_LINE.fullmatch(listing(injector).strip())
    assert match is not None
    assert match.groups() == ("0", str(U64_MAX), "ALL", status, "1")


def test_hits_and_the_last_of_them_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ploopfs.engine.inject.rule.time.time", lambda: 1700000000.25)
    injector = Injector()
    execute(injector, "add,errno=EIO")
    assert injector.match(READ) is injector.match(Operation("punch hole", "/a", offset=1, length=2))
    assert listing(injector).endswith(
        ",hits=2,last_time=1700000000.250000,last_op=punch_hole,last_offset=1,last_length=2\n"
    )


def test_what_is_shown_makes_the_same_rule_again() -> None:
    """All but what only a line has: id, where, hits, and one of status and errno."""
    injector = Injector()
    execute(injector, "add,op=WRITE,start=3,nr_sectors=4,errno=EBUSY,level=1,skip=2,count=9,delay_ms=10,hang,seed=5")
    first, rest = listing(injector).strip().split(" ")
    kept = [word for word in rest.split(",") if not re.match("id|where|hits|status", word)]
    start, end = map(int, first.split(":"))
    again = Injector()
    execute(again, f"add,start={start},nr_sectors={end - start + 1},{','.join(kept)}")
    assert listing(again) == listing(injector)


def test_the_longest_list_is_longer_than_a_page_of_sysfs() -> None:
    injector = Injector()
    for _ in range(MAX_RULES):
        execute(injector, "add,errno=ENOTCONN,level=0,skip=1,count=2,delay_ms=5,hang,after,seed=0")
    assert len(listing(injector)) > MAX_RULE_CHARACTERS
