"""Python functions as another user: a fork of the test, since that user may not be allowed to start its interpreter.

The result comes back through a pipe. Invariant: the child never returns into the test.
"""

import json
import os
import traceback
from collections.abc import Callable
from typing import Any

NOBODY = 65534


def as_user(uid: int, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - whatever `function` takes
    """Its result, which must be JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reading)
            become(uid)
            with os.fdopen(writing, "w") as answer:
                json.dump(function(*arguments), answer)
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, "it failed, see above"
    return json.loads(text)


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.chdir("/")
