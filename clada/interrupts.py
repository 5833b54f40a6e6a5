"""Interrupts put off while modules are imported."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_IMPORTING = "<frozen importlib._bootstrap>"
_SECONDS = 0.05


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or look again soon where it would meet C++ that aborts the process on it."""
    if not _is_importing(frame):
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)


def _interrupt_again(_number: int, _frame: FrameType | None) -> None:
    """Leave an interrupt that was put off to whoever handles them by now."""
    signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def interrupted_between_imports() -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt as ever, but not before an import that is under way has ended.

    Where somebody handles it already, in another thread and without timers nothing changes.
    """
    ours = (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    )
    if not ours:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt_again)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
