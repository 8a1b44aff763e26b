"""Progress of long loops: done/total, rate and time left, as a bar on a terminal and as plain lines in a log."""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

logger = logging.getLogger("fusionx")
LOG_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s")


class Progress:
    """A counted loop. On a terminal a tqdm bar; elsewhere, and always in the log, a line every `every_s` seconds."""

    def __init__(self, total: int, what: str, unit: str, start: int = 0, every_s: float = 10.0):
        self._what, self._unit, self._total, self._start = what, unit, total, start
        self._began = self._spoke = time.monotonic()
        self._every_s = every_s
        self._done = start
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=start, desc=what, unit=unit, mininterval=0.3)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *unused: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._say()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more; `note` (a loss, say) is shown beside the bar."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        if time.monotonic() - self._spoke >= self._every_s:
            self._say(note)

    def _say(self, note: str = "") -> None:
        now = time.monotonic()
        self._spoke = now
        rate = (self._done - self._start) / max(now - self._began, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else float("inf")
        eta = "done" if self._done >= self._total else f"ETA {left:.0f} s" if left != float("inf") else "ETA unknown"
        # A terminal shows the bar; the log file gets the line in any case.
        level = logging.DEBUG if self._bar is not None else logging.INFO
        logger.log(
            level,
            "%s: %d/%d (%.1f %s/s, %s)%s",
            self._what,
            self._done,
            self._total,
            rate,
            self._unit,
            eta,
            f" {note}" if note else "",
        )


@contextlib.contextmanager
def logging_to(path: str) -> Iterator[None]:
    """Writes every line of the log, progress included, to a file as well."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(LOG_FORMAT)
    handler.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def setup_logging() -> None:
    """Plain lines on standard error; called by the command line, never on import.

    Characters that the terminal's encoding lacks are written as escapes, as in class names on an ASCII terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    # Libraries log through absl what they also raise, with the traceback of another thread.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if not any(isinstance(h, _Console) for h in logger.handlers):
        console = _Console(sys.stderr)
        console.setLevel(logging.INFO)
        console.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(console)


class _Console(logging.StreamHandler):
    """Standard error, without breaking a bar that is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr.isatty():
            tqdm.write(self.format(record), file=sys.stderr)
        else:
            self.stream = sys.stderr
            super().emit(record)
