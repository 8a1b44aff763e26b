import numpy as np
import pytest

from data import quality, writer
from data.quality import Limits
from data.simulated.builder import Simulated
from fusionx_jax import contract, modalities
from fusionx_jax.errors import InputError
from tests.data.command import run_prepare
from tests.helpers import assert_clear


class Damaged(Simulated):
    """The first rows of every s1 tile have one value; tiles belong to two groups."""

    def describe(self):
        import dataclasses

        return dataclasses.replace(super().describe(), has_group=True)

    def example(self, split, index):
        example = dict(super().example(split, index))
        tile = example["s1"].copy()
        if index % 2:
            tile[: self.rows, :, 1] = self.value
        return {**example, "s1": tile, "group": "north" if index % 2 else "south"}


def damaged(value, rows):
    source = Damaged(40, 16, 0)
    object.__setattr__(source, "value", value)
    object.__setattr__(source, "rows", rows)
    return source


@pytest.mark.parametrize(
    ("value", "rows", "words"),
    [
        (np.nan, 16, "50 % of the s1 pixels have no data (band VH, most in north: 100 %); at most 20 % may"),
        (-9999.0, 1, "3.12 % of the s1 pixels lie outside the stored range and were clipped (band VH, most in north: 6.25 %)"),
        (0.0, 2, "6.25 % of the s1 pixels are exactly 0 dB (band VH, most in north: 12.5 %)"),
    ],
)  # fmt: skip
def test_a_share_above_its_limit_stops_the_preparation(tmp_path, monkeypatch, value, rows, words):
    monkeypatch.setattr(writer.checks, "examine", lambda *_: [])  # as if the sampled tiles were sound
    with pytest.raises(InputError) as caught:
        writer.prepare(damaged(value, rows), str(tmp_path), num_workers=1, limits=Limits(missing=0.2))
    assert words in str(caught.value)
    assert not list(tmp_path.rglob("contract.json"))


def test_shares_below_the_limits_are_printed_and_in_the_contract(tmp_path, capsys):
    directory = writer.prepare(damaged(0.0, 2), str(tmp_path), num_workers=1, limits=Limits(zero=0.07))
    assert "6.25 % of the s1 pixels are exactly 0 dB (band VH, most in north: 12.5 %)." in capsys.readouterr().err
    found = contract.load(directory).modalities
    assert found["s1"].quality == {"missing": (0.0, 0.0), "clipped": (0.0, 0.0), "zero": (0.0, 0.0625)}
    assert set(found["s2"].quality["clipped"]) == {0.0}


def test_what_is_counted_as_clipped_is_what_does_not_come_back():
    modality = modalities.SENTINEL1_GRD
    low, high = modality.offset, modality.offset + modality.scale * (modalities.NODATA - 1)
    values = np.array([low - 0.0011, low - 0.0009, low, -10.0, high, high + 0.0009, high + 0.0011, np.nan, np.inf])
    lost = np.abs(modality.decode(modality.encode(values)) - values) > modality.scale / 2 + 1e-6
    counted = quality._count(np.stack([values, values], -1)[None], modality)
    assert counted[:, 0].tolist() == [9, 2, lost[:7].sum(), 0]
    assert lost[:7].sum() == 2


def test_a_limit_that_is_no_share_is_refused(tmp_path):
    assert_clear(run_prepare("simulated", f"--out={tmp_path}", "--max_zero=2"), 2, "--max_zero is 2; it is a share")


def test_classes_that_cannot_be_scored_are_said(tmp_path, capsys):
    class Lacking(Simulated):
        def example(self, split, index):
            out = dict(super().example(split, index))
            multi = out["label_multi"].copy()
            multi[2] = split == "train"
            return {**out, "label_multi": multi, "remarks": ("s1: a tag is applied",) if index % 2 else ()}

    source = Lacking(40, 16, 0)
    directory = writer.prepare(source, str(tmp_path), num_workers=1)
    name = source.describe().tasks["multi"].classes[2]
    notes = contract.load(directory).notes
    err = capsys.readouterr().err
    tiles = sum(n // 2 for n in source.splits().values())
    assert f"s1: a tag is applied ({tiles} tiles)" in notes
    (everywhere,) = [n for n in notes if n.startswith("multi: every tile of train has the class")]
    absent = [n for n in notes if n.startswith("multi: ") and "test without any tile of" in n]
    assert name in everywhere
    assert name in absent[0]
    assert f"{absent[0]}." in err
