"""The one way into a handler and out of it: what it raised becomes an errno.

Knows no handler. Invariants: what the kernel has acknowledged by itself is known before anybody looks, or does what
comes after it; nothing but a `FUSEError` or a cancellation gets out, since pyfuse3 ends its main loop, and with that
the mount, at any other exception.
"""

import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pyfuse3

from ploopfs.engine.ring import hear
from ploopfs.errors import PloopError

log = logging.getLogger("ploopfs.fuse.operations")

P = ParamSpec("P")
T = TypeVar("T")


def answers(handler: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """An expected failure is its errno; any other is a bug, which costs this request an EIO and is logged."""

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> T:
        hear()
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except PloopError as error:
            raise pyfuse3.FUSEError(error.answer) from error
        except Exception:
            log.exception("%s failed", handler.__qualname__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return answer


def unanswered(handler: Callable[P, Awaitable[None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """For a request that has no reply: pyfuse3 would not even catch a `FUSEError` here."""

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await handler(*args, **kwargs)
        except Exception:
            log.exception("%s failed", handler.__qualname__)

    return answer
