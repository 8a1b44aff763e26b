"""A prepared set in memory whose labels are simple functions of its pixels, and small untrained encoders for it."""

import jax
import numpy as np

from fusionx_jax import config, modalities, preprocess, progress
from fusionx_jax import contract as contract_lib
from fusionx_jax import encoder as encoder_lib
from fusionx_jax.models import build
from fusionx_jax.prepared import store
from tests.helpers import ROOT

SENSORS = {"s1": modalities.SENTINEL1_RTC, "s2": modalities.SENTINEL2_L2A}
SIDE, PATCH = 16, 4
SPLITS = {"train": 64, "val": 24, "test": 48}
MULTI = ("bright", "rough")
PIXEL = ("smooth", "rough")
UNLABELED = (3, 5)  # a pixel of every tile without a label


class ToySet(store.PreparedSet):
    """Optical tiles are bright or dark; in radar tiles one half, both or none is rough (a strong echo).

    "multi": bright; rough anywhere. "single": bright or not. "pixel": smooth or rough.
    """

    def __init__(self):
        self.directory = "toy"
        self._columns = {
            split: _columns(np.random.default_rng([7, i]), n) for i, (split, n) in enumerate(SPLITS.items())
        }
        described = {
            name: contract_lib.ModalityContract(
                bands=s.band_names, unit=s.unit, level=s.level, scale=s.scale, offset=s.offset,
                nodata=modalities.NODATA, gsd_m=10.0, height=SIDE, width=SIDE,
                **_statistics(s.decode(self._columns["train"][name])),
            )
            for name, s in SENSORS.items()
        }  # fmt: skip
        tasks = {
            "multi": contract_lib.Task("label_multi", "multi", MULTI),
            "single": contract_lib.Task("label_single", "single", ("dark", "bright")),
            "pixel": contract_lib.Task("label_pixel", "pixel", PIXEL),
        }
        self.contract = contract_lib.Contract("toy", True, described, tasks, SPLITS, "", "", "", "")

    def read(self, split, indices, features):
        return {f: self._columns[split][f][np.asarray(indices)] for f in features}

    def targets(self, kind: str) -> dict[str, np.ndarray]:
        """0/1 matrices by split."""
        if kind == "single":
            return {s: np.eye(2)[c["label_single"]] for s, c in self._columns.items()}
        return {s: c[f"label_{kind}"].astype(np.float64) for s, c in self._columns.items()}


def _columns(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    bright = rng.permutation(np.arange(count) % 2).astype(bool)
    rough = np.zeros((count, SIDE, SIDE), bool)
    rough[:, : SIDE // 2] = (rng.random(count) < 0.4)[:, None, None]
    rough[:, SIDE // 2 :] = (rng.random(count) < 0.4)[:, None, None]
    optical = np.where(bright[:, None, None, None], 3000, 1500) + rng.normal(0, 300, (count, SIDE, SIDE, 12))
    radar = np.where(rough[..., None], -8, -16) + rng.normal(0, 1.5, (count, SIDE, SIDE, 2))
    pixels = rough.astype(np.uint8)
    pixels[:, UNLABELED[0], UNLABELED[1]] = contract_lib.IGNORE_LABEL
    return {
        "s1": SENSORS["s1"].encode(radar),
        "s2": SENSORS["s2"].encode(optical),
        "label_multi": np.stack([bright, rough.any((1, 2))], axis=1).astype(np.uint8),
        "label_single": bright.astype(np.int64),
        "label_pixel": pixels,
    }


def _statistics(physical: np.ndarray) -> dict[str, tuple[float, ...]]:
    flat = physical.reshape(-1, physical.shape[-1])
    return {"mean": tuple(flat.mean(0).tolist()), "std": tuple(flat.std(0).tolist())}


def encoder(prepared: store.PreparedSet, family: str = "fusionx", patch_size: int = PATCH) -> encoder_lib.Encoder:
    """An untrained network: two blocks of each sensor's, the fusion block, one joint block; or a ResNet of three."""
    c = config.load_file(str(ROOT / "configs/demo.py"))
    with c.unlocked():
        c.model.update(
            family=family, patch_size=patch_size, contrastive=False, own_share=0.67, width=32, depth=3, heads=2,
            decoder_width=16, decoder_depth=1, decoder_heads=2,
        )  # fmt: skip
    contracts = prepared.contract.modalities
    model = build.make_model(c, contracts)
    normalizer = preprocess.make_normalizer(contracts, contracts, patch_size=patch_size)
    params = build.init_params(model, jax.random.key(0))
    return encoder_lib.Encoder(model, {"encoder": params["encoder"]}, normalizer)


class Count(progress.Progress):
    """Counts steps without printing."""

    def __init__(self):
        self.steps = 0

    def advance(self, count: int = 1, note: str = "") -> None:
        self.steps += count
