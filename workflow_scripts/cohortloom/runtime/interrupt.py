"""Signals: SIGTERM and SIGINT set a flag, so that a step can save its work before it ends."""

import signal
from collections.abc import Callable

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Inside the `with` block, notes whether one of SIGNALS has arrived; a second SIGINT interrupts at once.

    Only the main thread may enter the block. Outside it signals have their previous effect. `then`, if set,
    is called with each signal.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.then: Callable[[int], None] | None = None

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        if self.then is not None:
            self.then(number)

    @property
    def requested(self) -> bool:
        """Whether the step must stop at the next point where it can save its work."""
        return self.signal is not None
