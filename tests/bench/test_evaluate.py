import json

import pytest

from tests.helpers import assert_clear, run_cli, run_here

SMALL = ("--train=2000", "--test=500", "--features=32", "--classes=4", "--resamples=20")


def test_the_extrapolated_total_follows_from_the_parts():
    # A process of its own: the peak memory is that of the process.
    done = run_cli("fusionx_jax", "bench", "evaluate", "--json", *SMALL, "--seeds=3")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    parts, seeds = found["parts_s"], found["sizes"]["seeds"]
    assert found["cells"] == 5 * seeds + 1  # with all labels there is one subset
    assert found["bootstrap_s_per_cell"] == pytest.approx(parts["bootstrap"] + parts["cell_and_rows"])
    fits = sum(parts[f"fit_{f:g}"] * (seeds if f < 1 else 1) for f in found["fractions"])
    total = fits + seeds * parts["label_subsets"] + found["cells"] * found["bootstrap_s_per_cell"]
    assert found["sweep_s"] == pytest.approx(total)
    assert 1e8 < found["peak_memory_bytes"] < 3e9


def test_sizes_without_labels_at_one_percent_are_refused():
    assert_clear(run_here("bench", "evaluate", "--train=500"), 2, "at least two classes", "1000 training")
