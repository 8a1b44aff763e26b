"""Fixtures: small prepared sets, made once a session, and shapes checked everywhere."""

import os
import tempfile
from pathlib import Path

# Tests compile far more than they compute: unoptimized programs start in half the time. Read when jax is imported,
# here and in every process that a test starts.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The same programs are compiled in many tests and processes: once is enough.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="fusionx-jax-cache-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jaxtyping
import pytest

# Shapes in signatures are checked here and nowhere else: users pay nothing for them.
jaxtyping.install_import_hook("fusionx_jax", "beartype.beartype")

from tests.helpers import ROOT, TINY  # noqa: E402 (after the hook above)

SAMPLES = ROOT.parent / "shared" / "samples"


@pytest.fixture(scope="session")
def samples() -> Path:
    """Real Sentinel extracts; tests that use them skip where they are absent."""
    if not SAMPLES.is_dir():
        pytest.skip(f"the real samples are not at {SAMPLES}")
    return SAMPLES


@pytest.fixture(scope="session")
def real() -> Path:
    """Two real data sets; tests that use them skip where they are absent."""
    folder = SAMPLES.parent / "real"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> str:
    """200 simulated pairs of 32 x 32 pixels: 140 train, 20 val, 40 test."""
    from data import writer
    from data.simulated.builder import Simulated

    return writer.prepare(Simulated(200, 32, 0), str(tmp_path_factory.mktemp("prepared")), num_workers=2)


@pytest.fixture(scope="session")
def two_dates(tmp_path_factory) -> str:
    """72 made-up tiles of six places at two dates, with labels of change."""
    from data import writer
    from tests.two_dates import TwoDates

    return writer.prepare(TwoDates(), str(tmp_path_factory.mktemp("two_dates")), num_workers=1)


@pytest.fixture
def tiny_config(simulated):
    """The demo's config, cut down to seconds."""
    from fusionx_jax import config

    return config.override(config.load_file(str(ROOT / "configs/demo.py")), [*TINY, f"--config.dataset={simulated}"])


@pytest.fixture(scope="session")
def trained(simulated, tmp_path_factory) -> str:
    """A workdir with a finished tiny run."""
    from fusionx_jax import config, pretrain

    workdir = str(tmp_path_factory.mktemp("trained"))
    c = config.override(config.load_file(str(ROOT / "configs/demo.py")), [*TINY, f"--config.dataset={simulated}"])
    assert pretrain.run(c, workdir) == 0
    return workdir


@pytest.fixture(scope="session")
def evaluated(trained, simulated, tmp_path_factory) -> Path:
    """A copy of `trained` with measured cells and their tables. Tests that write copy it again."""
    import shutil

    from fusionx_jax.evaluate import evaluation, measure

    workdir = tmp_path_factory.mktemp("evaluated") / "w"
    shutil.copytree(trained, workdir)
    measure.evaluate(evaluation.open_evaluation(str(workdir), simulated, []))
    return workdir
