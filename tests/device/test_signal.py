"""A signal is a count that grows, and listeners that hear of it."""

from ploopfs.device.signal import Signal


def test_who_has_seen_nothing_always_finds_a_change() -> None:
    assert Signal().version > 0


def test_the_version_grows_before_a_listener_is_called() -> None:
    signal, seen = Signal(), list[int]()
    signal.subscribe(lambda: seen.append(signal.version))
    signal.fire()
    signal.fire()
    assert seen == [2, 3]


def test_who_has_unsubscribed_hears_nothing_and_may_say_so_twice() -> None:
    signal, heard = Signal(), list[str]()
    leave = signal.subscribe(lambda: heard.append("first"))
    signal.subscribe(lambda: heard.append("second"))
    leave()
    leave()
    signal.fire()
    assert heard == ["second"]


def test_one_function_subscribed_twice_is_two_listeners() -> None:
    signal, heard = Signal(), list[int]()

    def listener() -> None:
        heard.append(1)

    leave = signal.subscribe(listener)
    signal.subscribe(listener)
    signal.fire()
    leave()
    signal.fire()
    assert len(heard) == 3


def test_a_listener_may_leave_while_it_is_called() -> None:
    signal, heard = Signal(), list[str]()

    def once() -> None:
        heard.append("once")
        leave()

    leave = signal.subscribe(once)
    signal.subscribe(lambda: heard.append("always"))
    signal.fire()
    signal.fire()
    assert heard == ["once", "always", "always"]
