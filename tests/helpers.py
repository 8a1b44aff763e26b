"""What several test files use."""

import contextlib
import io
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

TINY = (
    "--config.num_steps=6",
    "--config.checkpoint_every=2",
    "--config.log_every=1",
    "--config.batch_size=16",
    "--config.evaluate.seeds=2",
    "--config.evaluate.bootstrap=20",
    "--config.evaluate.modalities=('s1+s2','s1')",
    "--config.evaluate.baselines=('untrained','band_statistics','supervised')",
    "--config.evaluate.supervised.tasks=('multi',)",
    "--config.evaluate.supervised.seeds=1",
    "--config.evaluate.supervised.batch_size=16",
    "--config.evaluate.supervised.learning_rates=(1e-3,)",
    "--config.evaluate.supervised.num_steps=3",
    "--config.evaluate.supervised.min_steps=2",
    "--config.evaluate.supervised.eval_every=2",
    "--config.label_fractions=(0.05,0.5,1.0)",
)

# A network with half as much to compile, for tests that are about something else.
EARLY = ("--config.model.own_share=0.0", "--config.model.contrastive=False")


def run_cli(*arguments: str, env: dict[str, str] | None = None, timeout: float = 300, **kwargs):
    """Runs `python -m …` in a process of its own, from the checkout."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **kwargs,
    )


class Done(NamedTuple):
    """As `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*arguments: str) -> Done:
    """Runs `fusionx …` in this process: a process of its own takes seconds to import what it needs.

    An exception that is not reported as one sentence is raised here.
    """
    from fusionx_jax import __main__, progress

    loggers = (progress.logger, logging.getLogger("absl"))
    before = [(x.level, x.propagate, list(x.handlers)) for x in loggers]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = __main__.main(list(arguments))
    except SystemExit as stop:  # argparse
        status = int(stop.code or 0)
    finally:
        for x, (level, propagate, handlers) in zip(loggers, before):
            x.level, x.propagate, x.handlers = level, propagate, handlers
    return Done(status, out.getvalue(), err.getvalue())


def assert_clear(done, status: int, *words: str) -> None:
    """One clear sentence on standard error, the right exit status, no traceback."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    for word in words:
        assert word in errors[0], errors[0]


def run_script(script: str, *arguments: str, env: dict[str, str] | None = None, timeout: float = 300):
    """Runs Python source in a process of its own, from the checkout."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def small_disk(path, size):
    """A file system of `size` (mount's notation) at `path`; the test is skipped where none can be mounted."""
    if not shutil.which("mount"):
        pytest.skip("there is no mount command")
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)
