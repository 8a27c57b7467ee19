"""The messages that a mapped device takes: rows of a word, its arguments, and what it does (kernel-ploop.md 2.5).

Knows nothing of images: engine/ has the operations, and the shell of the device puts what they make in force.
Invariant: a message that fails leaves the table in force as it was.
"""

import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from ploopfs.bounds import MESSAGE_TIMEOUT_S
from ploopfs.device.handover import bounded, lock_handed_over, marked, settled
from ploopfs.device.mapper import Mapper
from ploopfs.device.stats import Op
from ploopfs.engine.flip import check_flip, flipped
from ploopfs.engine.grow import grown
from ploopfs.engine.levels import merged_backward, merged_forward, updated_index
from ploopfs.engine.loading import load_delta
from ploopfs.engine.merge import Work, copied_up, without_level
from ploopfs.engine.stack import Stack
from ploopfs.engine.tracking import next_tracked, start_tracking, stop_tracking
from ploopfs.errors import BadValue, Busy, InStandby, MessageNotSupported, NotSupported

_NUMBER = re.compile(r"[0-9]{1,20}")
_ENTRIES = re.compile(r"[0-9]{1,10}:[0-9]{1,10}(;[0-9]{1,10}:[0-9]{1,10})*;?")

Run = Callable[[Mapper, list[str]], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Message:
    """`arguments` is how many words follow. One that `changes` puts another stack in force: it needs a sound one, and
    is refused while tracking goes on (the kernel's maintenance). One that only `asks` may come beside any other."""

    run: Run
    arguments: int = 0
    changes: bool = False
    asks: bool = False


async def answer(mapper: Mapper, text: str) -> str:
    """What a message says, empty if nothing; kept in `mapper.answer`, too. Raises PloopError."""
    mapper.answer = ""
    try:
        mapper.answer = await _answer(mapper, text.split())
    except NotSupported as error:
        raise MessageNotSupported(str(error)) from error
    return mapper.answer


async def _answer(mapper: Mapper, words: list[str]) -> str:
    if mapper.active.is_error or not words:
        raise BadValue("an error target takes no messages" if words else "no message was supplied")
    word, *arguments = words
    message = MESSAGES.get(word)
    if message is None:
        raise MessageNotSupported(f"{word!r} is no message of a ploop target, expected one of {', '.join(MESSAGES)}")
    if len(arguments) != message.arguments:
        raise BadValue(f"{word} has {len(arguments)} arguments, expected {message.arguments}")
    if message.asks:
        return await message.run(mapper, arguments) or ""
    with mapper.alone(word, beside_waiting=not message.changes):
        if message.changes and mapper.is_lost:
            raise InStandby(f"{word}: the storage of the device is lost")
        if message.changes and mapper.active.is_tracking:
            raise Busy(f"{word}: tracking is on")
        return await message.run(mapper, arguments) or ""


# --- asking -------------------------------------------------------------------------------------------------------


async def _get_img_name(mapper: Mapper, words: list[str]) -> str:
    """A level that is too high is a success without a name."""
    level, deltas = _number("level", words[0]), mapper.queue.stack.deltas
    return f"{deltas[level].path}\n" if level < len(deltas) else ""


async def _get_event(mapper: Mapper, _words: list[str]) -> str:
    return "event_ENOSPC\n" if mapper.active.take_event() else ""


async def _set_falloc_new_clu(mapper: Mapper, words: list[str]) -> None:
    mapper.active.set_falloc_new_clu(_flag(words[0]))


async def _set_noresume(mapper: Mapper, words: list[str]) -> None:
    noresume = _flag(words[0])
    if noresume == mapper.active.noresume:
        raise Busy(f"noresume is {int(noresume)} already")
    mapper.active.set_noresume(noresume)


async def _tracking_start(mapper: Mapper, _words: list[str]) -> None:
    """A write that is in flight would end unseen."""
    async with mapper.queue.quiesced():
        start_tracking(mapper.queue.stack)
    mapper.changed.fire()


async def _tracking_stop(mapper: Mapper, _words: list[str]) -> None:
    stop_tracking(mapper.queue.stack)
    mapper.changed.fire()


async def _tracking_get_next(mapper: Mapper, _words: list[str]) -> str:
    return f"{next_tracked(mapper.queue.stack)}\n"


# --- changing the stack -------------------------------------------------------------------------------------------


async def _resize(mapper: Mapper, words: list[str]) -> None:
    """The images grow; the device follows when a longer table is loaded."""
    size_sectors = _number("size", words[0])
    await mapper.exchange(partial(grown, size_sectors=size_sectors), limit_s=MESSAGE_TIMEOUT_S)


async def _merge(mapper: Mapper, _words: list[str]) -> None:
    if mapper.suspended:
        raise Busy("merge: the device is suspended, and copies are requests")
    queue = mapper.queue

    async def through(work: Work) -> None:
        await queue.run(Op.WRITE, 0, work, may_be_held=False)

    copied = await copied_up(queue.stack, through, limit_s=MESSAGE_TIMEOUT_S)

    async def dropped(stack: Stack) -> Stack:
        return without_level(stack, copied)

    await mapper.exchange(dropped, limit_s=MESSAGE_TIMEOUT_S)


async def _notify_merged_forward(mapper: Mapper, words: list[str]) -> None:
    level = _number("level", words[0])
    await mapper.exchange(partial(merged_forward, level=level), limit_s=MESSAGE_TIMEOUT_S)


async def _notify_merged_backward(mapper: Mapper, words: list[str]) -> None:
    level = _number("level", words[0])
    await mapper.exchange(partial(merged_backward, level=level), limit_s=MESSAGE_TIMEOUT_S)


async def _update_delta_index(mapper: Mapper, words: list[str]) -> None:
    """`LEVEL CLUSTER:DESTINATION;CLUSTER:DESTINATION;...`"""
    level, text = _number("level", words[0]), words[1]
    if _ENTRIES.fullmatch(text) is None:
        raise BadValue(f"the entries are {text[:60]!r}, expected CLUSTER:DESTINATION;...")
    pairs = (entry.split(":") for entry in text.removesuffix(";").split(";"))
    entries = {int(cluster): int(destination) for cluster, destination in pairs}
    await mapper.exchange(partial(updated_index, level=level, entries=entries), limit_s=MESSAGE_TIMEOUT_S)


async def _flip_upper_deltas(mapper: Mapper, _words: list[str]) -> None:
    """The top is opened again for reading, and what was below it for writing: user space has changed its map."""
    if not (mapper.suspended and mapper.active.noresume):
        raise Busy("flip_upper_deltas: expected a suspended device with noresume set")
    stack = mapper.queue.stack
    check_flip(stack)
    limit_s = mapper.queue.bounds.quiesce_timeout_s
    async with AsyncExitStack() as undo:
        await undo.enter_async_context(settled(stack.top, mapper.queue, mapper.unflushed))
        await undo.enter_async_context(bounded(stack.deltas[-2].path, limit_s))
        file = await mapper.files.open(stack.deltas[-2].path, writable=True)
        await undo.enter_async_context(lock_handed_over(mapper.queue, [stack.deltas[-2]], file))
        upper = await load_delta(file, raw=False)
        file = await mapper.files.open(stack.top.path, writable=False)
        await undo.enter_async_context(lock_handed_over(mapper.queue, [stack.top], file))
        await file.lock()
        new = await flipped(stack, upper=upper, lower=stack.top.through(file))
        await undo.enter_async_context(marked(upper, limit_s))
        mapper.queue.swap(new)
    for delta in stack.dropped_by(new):
        await delta.file.aclose()


def _number(name: str, word: str) -> int:
    if _NUMBER.fullmatch(word) is None:
        raise BadValue(f"{name} is {word!r}, expected a number")
    return int(word)


def _flag(word: str) -> bool:
    if word not in ("0", "1"):
        raise BadValue(f"the value is {word!r}, expected 0 or 1")
    return word == "1"


MESSAGES: dict[str, Message] = {
    "resize": Message(_resize, 1, changes=True),
    "merge": Message(_merge, changes=True),
    "notify_merged_forward": Message(_notify_merged_forward, 1, changes=True),
    "notify_merged_backward": Message(_notify_merged_backward, 1, changes=True),
    "get_img_name": Message(_get_img_name, 1, asks=True),
    "update_delta_index": Message(_update_delta_index, 2, changes=True),
    "set_falloc_new_clu": Message(_set_falloc_new_clu, 1),
    "tracking_start": Message(_tracking_start),
    "tracking_stop": Message(_tracking_stop),
    "tracking_get_next": Message(_tracking_get_next),
    "set_noresume": Message(_set_noresume, 1),
    "flip_upper_deltas": Message(_flip_upper_deltas, changes=True),
    "get_event": Message(_get_event, asks=True),
}
