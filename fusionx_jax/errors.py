"""The two kinds of failure that a command reports in one sentence instead of a traceback."""


class InputError(ValueError):
    """The user's input or usage is wrong; the message is one clear sentence. Exit status 2."""


class RunError(RuntimeError):
    """The run failed for a reason outside the input (a full disk, diverged training). Exit status 1."""
