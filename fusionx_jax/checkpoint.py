"""Checkpoints: Orbax directories that hold exactly what changes, plus the configuration and the data contract.

`WORKDIR/checkpoints/STEP/` contains the state; its Orbax metadata carry the configuration and the contract as JSON, so
that a checkpoint is understood without the run's code or config file. Saves are asynchronous and atomic.
"""

import concurrent.futures
import errno
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from fusionx_jax import contract as contract_lib
from fusionx_jax import distributed, files, pretrained, progress, readback
from fusionx_jax.contract import Contract
from fusionx_jax.errors import InputError, RunError, first_line, is_out_of_memory
from fusionx_jax.types import Json, JsonObject, Untyped

FOLDER = "checkpoints"
_PATTERN_CHARACTERS = "[]\\"  # orbax-checkpoint 0.12.8 saves without an error and leaves out the arrays
Result = TypeVar("Result")


class Saved(NamedTuple):
    """What a checkpoint says of itself: step, configuration, contract, and where it is."""

    step: int
    config: JsonObject
    contract: Contract
    path: str


class Manager:
    """Saves and restores the state of one run; a context manager that waits for pending saves at its end."""

    def __init__(self, workdir: str, config: Mapping[str, Json], contract: Contract, keep: int):
        if keep < 1:
            raise InputError(f"keep_checkpoints is {keep}; at least 1 is needed to resume.")
        self._metadata = {"config": dict(config), "contract": contract.to_dict()}
        self._keep = keep
        self.directory = files.join(files.absolute(workdir), FOLDER)
        if distributed.is_first():
            readback.set_aside_damaged(files.absolute(workdir), self.directory)
        distributed.wait_for_all("checkpoints checked")
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "reading checkpoints back")
        self._read_back: concurrent.futures.Future | None = None
        self._checkpointer = save_errors(
            lambda: ocp.training.Checkpointer(
                self.directory,
                # The loop decides when to save.
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,
            ),
            self.directory,
        )

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if kind is None:
            save_errors(self._finish_save, self.directory)
            self._reader.shutdown()
            save_errors(self._checkpointer.close, self.directory)
        else:
            try:  # the error under way matters more than one from closing
                self._checkpointer.close()
            except Exception:
                return

    def latest_step(self) -> int | None:
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: PyTree, wait: bool = False) -> None:
        """Starts saving; `wait` returns only when the checkpoint is there and was read back.

        Raises:
          RunError: the disk is full or the checkpoint cannot be read back (also of an earlier save); the checkpoints
            before it are intact.
        """

        def start() -> None:
            self._finish_save()
            response = self._checkpointer.save_checkpointables_async(
                step, {"state": state}, custom_metadata={**self._metadata, "step": step}, overwrite=True
            )
            if distributed.is_first():
                self._read_back = self._reader.submit(
                    _read_back, response.result, files.join(self.directory, str(step))
                )
            if wait:
                self._finish_save()

        save_errors(start, self.directory)

    def _finish_save(self) -> None:
        """Waits until the last save is done and read back."""
        self._checkpointer.wait()
        if self._read_back is not None:
            self._read_back.result()

    def restore(self, step: int, abstract_state: PyTree) -> PyTree:
        """The state of `step`, laid out as the shardings of `abstract_state` say, whatever it was saved on."""
        return self._checkpointer.load_checkpointables(step, {"state": abstract_state})["state"]


def _read_back(wait: Callable[[], object], path: str) -> None:
    wait()
    readback.confirm(path)


def save_errors(action: Callable[[], Result], directory: str) -> Result:
    """Runs an action that writes to `directory`.

    Raises:
      RunError: the disk is full.
      InputError: the directory cannot be written.
    """
    try:
        return action()
    except Exception as error:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if (isinstance(error, OSError) and error.errno in full) or _is_full_disk(error):
            raise RunError(
                f"The disk filled while saving a checkpoint to {directory}; the checkpoints before it are intact: free "
                "some space and run the same command again."
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise InputError(f"Cannot write to {directory} ({error.strerror}); give another --workdir.") from error
        raise


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether an error or its cause is TensorStore's for a full disk, which has no type of its own."""
    while error is not None:
        if is_out_of_memory(error):  # XLA uses the same status code
            return False
        text = str(error)
        if "No space left" in text or "File too large" in text or "RESOURCE_EXHAUSTED" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def check_address(workdir: str) -> None:
    """Checks that Orbax can write arrays to the workdir: it passes gs:// to TensorStore, all else counts as local.

    Raises:
      InputError: the workdir is another address, or its path has characters with which Orbax loses arrays.
    """
    lost = [c for c in _PATTERN_CHARACTERS if c in files.absolute(workdir)]
    if lost:
        raise InputError(
            f"Checkpoints cannot be written to {workdir}: its path contains {lost[0]}, which Orbax reads as a pattern "
            "when it merges the files of a checkpoint, so that arrays are lost; rename the folder."
        )
    if files.is_address(workdir) and not workdir.startswith("gs://"):
        raise InputError(
            f"Checkpoints cannot be written to {workdir}: Orbax writes them to local paths and gs:// only; give such a "
            "--workdir, or mount the bucket and give the mounted path."
        )


def check_writable(workdir: str) -> None:
    """Saves and removes a small checkpoint where the workdir is an address, in all processes together.

    Access, packages and the object store's support by TensorStore show here and not at the first checkpoint.

    Raises:
      InputError: it could not be saved.
    """
    if not files.is_address(workdir):
        return
    check_address(workdir)
    probe = files.join(workdir, "probe")
    try:
        ocp.save_checkpointables(probe, {"state": {"probe": np.zeros(1, np.float32)}}, overwrite=True)
    except Exception as error:  # Orbax, TensorStore, fsspec and each object store's client have types of their own
        raise InputError(
            f"Checkpoints cannot be written to {workdir} ({first_line(error)}); check the address, access and packages,"
            " or give another --workdir."
        ) from error
    if jax.process_index() == 0:
        files.remove_folder(probe)


def find(path: str) -> Saved:
    """The newest whole checkpoint of a workdir, the checkpoint at `path` itself, or the weights of that name.

    Raises:
      InputError: there is none, or it is damaged or not one of ours.
    """
    path = files.absolute(pretrained.locate(path))
    if not files.is_folder(path):
        raise InputError(
            f"There is no folder {path}; give a workdir of `fusionx pretrain`, one checkpoint of it, or the name of "
            f"weights that come with the package ({', '.join(pretrained.names())})."
        )
    folder = files.join(path, FOLDER)
    if files.is_folder(folder):
        path, metadata, passed_over = readback.newest(folder, part="params")
        for newer, why in passed_over.items():
            progress.logger.warning("The checkpoint %s is passed over (%s); %s is used.", newer, why, path)
    else:
        try:
            metadata = readback.check(path, part="params")
        except readback.Damaged as error:
            raise InputError(
                f"{path} is not a FusionX-Net checkpoint, or not a whole one ({error}); give a workdir of `fusionx "
                "pretrain` or a checkpoint."
            ) from error
    step = int(metadata["step"] if "step" in metadata else os.path.basename(path))
    return Saved(step, metadata["config"], contract_lib.from_dict(metadata["contract"], path), path)


def load_params(saved: Saved, abstract_params: PyTree, part: bool = False) -> PyTree:
    """Only the parameters of a checkpoint, on the shardings of `abstract_params` (or one local device).

    With `part`, `abstract_params` are some of the network's ("encoder"), and the others are not read.

    Raises:
      InputError: the parameters have other names or shapes than the network needs.
    """
    metadata = check_params(saved, abstract_params, part)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device),
        abstract_params,
    )
    passed_over = jax.tree.map(lambda _: ocp.PLACEHOLDER, metadata)
    wanted = {**passed_over["params"], **wanted}
    found = ocp.load_checkpointables(saved.path, {"state": {**passed_over, "params": wanted}})["state"]["params"]
    return {k: found[k] for k in abstract_params}


def check_params(saved: Saved, abstract_params: PyTree, part: bool = False) -> PyTree:
    """Refuses a checkpoint whose parameters are not those of a network; returns the metadata of its state.

    With `part` it may hold more than `abstract_params`.

    Raises:
      InputError: they have other names or shapes.
    """
    metadata = ocp.checkpointables_metadata(saved.path).metadata["state"]
    stored = {k: v for k, v in metadata["params"].items() if k in abstract_params or not part}
    stored = jax.tree.map(lambda x: tuple(x.shape), stored)
    needed = jax.tree.map(lambda x: tuple(x.shape), abstract_params)
    if jax.tree.leaves_with_path(stored, is_leaf=_is_shape) != jax.tree.leaves_with_path(needed, is_leaf=_is_shape):
        raise InputError(
            f"The network described does not have the parameters of {saved.path}; model sizes, modalities, "
            "patch_size, target, model.contrastive and whether contrast.views is 0 must be those of the checkpoint."
        )
    return metadata


def _is_shape(x: Untyped) -> bool:
    return isinstance(x, tuple) and all(isinstance(i, int) for i in x)
