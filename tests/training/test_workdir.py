"""Metrics, record, lock and log of a run in a workdir at an address."""

import uuid

import pytest

from fusionx_jax import checkpoint, contract, files, pretrain, progress
from fusionx_jax.errors import InputError
from fusionx_jax.training import workdir as workdir_lib
from fusionx_jax.training.metric_log import MetricLog


@pytest.fixture
def address() -> str:
    return f"memory://{uuid.uuid4().hex}/runs/w"


def test_metrics_at_an_address_are_complete_up_to_the_last_checkpoint(address):
    path = files.join(address, "metrics.csv")
    log = MetricLog(address, 0)
    for step in (1, 2):
        log.write(step, {"loss": step / 2})
    assert not files.exists(path)
    log.flush()
    log.write(3, {"loss": 1.5})  # killed here
    assert files.read_text(path).splitlines() == ["step,loss", "1,0.5", "2,1.0"]
    with MetricLog(address, 1) as log:
        log.write(2, {"loss": 7.0})
    assert files.read_text(path).splitlines() == ["step,loss", "1,0.5", "2,7.0"]


def test_a_workdir_at_an_address_is_locked_and_bound_to_one_config(address, tiny_config, simulated):
    data = contract.load(simulated)
    with workdir_lib.lock(address):
        workdir_lib.claim(address, tiny_config, data)
        with pytest.raises(InputError, match="Another run trains in the workdir memory://"):
            workdir_lib.lock(address)
    with workdir_lib.lock(address):
        tiny_config.log_every += 1
        workdir_lib.claim(address, tiny_config, data)
        tiny_config.mask_ratio = 0.5
        with pytest.raises(InputError, match=r"mask_ratio: was 0.8, now 0.5"):
            workdir_lib.claim(address, tiny_config, data)


def test_the_log_reaches_an_address(address):
    progress.logger.setLevel("INFO")
    for line in ("first", "second"):
        with workdir_lib.logging_to(files.join(address, "pretrain.log")):
            progress.logger.info(line)
    assert [line.split()[-1] for line in files.read_text(files.join(address, "pretrain.log")).splitlines()] == [
        "first",
        "second",
    ]


def test_an_address_that_takes_no_checkpoint_is_refused_before_anything_is_written(address, tiny_config, monkeypatch):
    with pytest.raises(InputError, match=r"Checkpoints cannot be written to memory://.*to local paths and gs:// only"):
        pretrain.run(tiny_config, address)
    assert not files.exists(address)

    for name in ("run [1]", "run]", "a\\b"):
        with pytest.raises(InputError, match="which Orbax reads as a pattern"):
            checkpoint.check_address(f"/tmp/{name}/w")
    checkpoint.check_address("/tmp/50% {x} é*?$'\"#&;:~+|,/w")  # all of these are read back

    def refuse(*_, **__):
        raise ValueError("PERMISSION_DENIED: no access\nand a long trace")

    monkeypatch.setattr(checkpoint.ocp, "save_checkpointables", refuse)
    with pytest.raises(InputError, match=r"written to gs://bucket/w \(PERMISSION_DENIED: no access\); check"):
        checkpoint.check_writable("gs://bucket/w")
