"""A whole run in a workdir at gs://, against a local emulator of Google Cloud Storage."""

import os
import socket
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT, TINY, run_script

# TensorFlow has no setting for the emulator's address: it is hidden, and Orbax's paths go through gcsfs.
FUSIONX = """
import sys
sys.modules["tensorflow"] = None
from fusionx_jax.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
LAST_STEP = """
import sys
from fusionx_jax import checkpoint, files
saved = checkpoint.find(sys.argv[1])
if len(sys.argv) > 2:
    files.remove_folder(saved.path)
print(saved.step)
"""
FEW_CELLS = (
    "--config.evaluate.modalities=('s1',)",
    "--config.evaluate.tasks=('multi',)",
    "--config.evaluate.baselines=()",
    "--config.label_fractions=(0.5,)",
)
PARAMETERS = """
import hashlib, sys
import jax, numpy as np
import fusionx_jax
params = fusionx_jax.load(sys.argv[1]).params
print(hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(params))).hexdigest())
"""


@pytest.fixture
def bucket(monkeypatch):
    """The name of an empty bucket; every process that the test starts uses the emulator."""
    pytest.importorskip("gcp_storage_emulator", reason="gcp-storage-emulator is not installed (the extra [dev])")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    emulator = os.path.join(os.path.dirname(sys.executable), "gcp-storage-emulator")
    arguments = [emulator, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory", "--default-bucket=runs"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for name, value in {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore
        "EPATH_USE_TF": "0",
        "NO_GCE_CHECK": "true",  # google-auth would wait for a metadata server
    }.items():
        monkeypatch.setenv(name, value)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, "the emulator ended"
            assert time.monotonic() < deadline, "the emulator does not answer"
            time.sleep(0.2)
        yield "gs://runs"
    finally:
        process.kill()
        process.wait()


def succeed(script, *arguments):
    done = run_script(script, *arguments, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


@pytest.mark.slow
def test_a_run_at_an_address_resumes_and_is_evaluated_as_a_local_one(bucket, simulated, trained):
    workdir = f"{bucket}/a/run"
    pretrain = (
        "pretrain",
        f"--config={ROOT / 'configs/demo.py'}",
        f"--workdir={workdir}",
        f"--config.dataset={simulated}",
    )
    succeed(FUSIONX, *pretrain, *TINY)
    assert succeed(LAST_STEP, workdir, "remove") == "6"
    assert succeed(LAST_STEP, workdir) == "4"
    succeed(FUSIONX, *pretrain, *TINY)  # resumes
    assert succeed(PARAMETERS, workdir) == succeed(PARAMETERS, trained)
    succeed(FUSIONX, "evaluate", f"--workdir={workdir}", f"--dataset={simulated}", *FEW_CELLS)
    succeed(FUSIONX, "report", f"--workdir={workdir}")
    names = ("metrics.csv", "results.csv", "differences.csv", "report.html")
    read = "import sys; from fusionx_jax import files; print(*(len(files.read_text(p)) for p in sys.argv[1:]))"
    assert min(map(int, succeed(read, *(f"{workdir}/{name}" for name in names)).split())) > 100
