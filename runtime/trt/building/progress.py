"""Progress of TensorRT's build, as bars on a terminal."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def progress_monitor(trt: Any) -> Any:
    """Create a monitor that receives a builder's phases; the build stops soon after `interrupted` is set.

    Args:
        trt: The module.
    """

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]  # known only once it is loaded
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            # TensorRT calls from several threads.
            self._lock = threading.Lock()
            self._bars: dict[str, Any] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self._lock:
                # disable=None: nothing is drawn where standard error is no terminal.
                self._bars[phase] = tqdm(desc=phase, total=steps, leave=False, disable=None, position=len(self._bars))

        def step_complete(self, phase: str, step: int) -> bool:
            with self._lock:
                if phase in self._bars:
                    self._bars[phase].update(step + 1 - self._bars[phase].n)
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            with self._lock:
                bar = self._bars.pop(phase, None)
                if bar is not None:
                    bar.close()

    return Progress()


@contextmanager
def stopped_by_interrupt(progress: Any) -> Iterator[None]:
    """Make Ctrl-C stop a build by its progress monitor: an exception within TensorRT would end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        progress.interrupted = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
