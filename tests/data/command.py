"""Runs `python -m data.prepare` in this process: starting Python and its imports costs more than a small set."""

import contextlib
import io

from data import prepare
from tests.helpers import Done


def run_prepare(*arguments: str) -> Done:
    """Writes shards in this process too; an exception that is no clear sentence is raised here."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = prepare.main([*arguments, "--num_workers=1"])
    return Done(status, out.getvalue(), err.getvalue())
