"""`pretrain`, `plan` and `evaluate`: config values of any kind, one or several at once."""

from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from fusionx_jax import config as config_lib
from fusionx_jax.evaluate import evaluation, settings
from fusionx_jax.prepared import sets
from fusionx_jax.training.experiment import check_trace, make_experiment
from tests.fuzz.doors import handled, inputs, numbers, only_writes, texts
from tests.helpers import ROOT, TINY


def leaves(config, prefix=""):
    """Every key of a config, with dots."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        yield f"{prefix}{key}"


written = st.one_of(
    numbers.map(str),
    texts,
    st.sampled_from(
        ["True", "False", "None", "()", "(1,)", "('s1',)", "('s1','s1')", "('s2','s1','s3')", "((1,0.5),)", "((5,2.0),(1,0.5))",
         "[]", "{}", "{'a': 1}", "1e-3", "0.75", "8", "16", "mini", "fusionx", "multimae", "('multi',)", "(0.01,1.0)", "(2.0,)",
         "inf", "nan", "-inf", "('linear_probe','knn')", "('s1+s2','s1')", "('s1+',)", "('+',)", "dots", "float32"]
    ),
)  # fmt: skip


@st.composite
def overrides(draw, keys):
    chosen = draw(st.lists(st.one_of(st.sampled_from(keys), texts), min_size=1, max_size=3))
    return [f"--config.{key}={draw(written)}" for key in chosen]


BASE = [*TINY, "--config.model.size=mini"]


def changed(simulated, more):
    """The tests' config for a set, with overrides."""
    config = config_lib.load_file(str(ROOT / "configs/demo.py"))
    return config_lib.override(config, [*BASE, f"--config.dataset={simulated}", *more])


KEYS = sorted(leaves(config_lib.load_file(str(ROOT / "configs/demo.py"))))
EVALUATION = [k for k in KEYS if k.startswith(("evaluate", "label", "model", "modalities", "masking"))]


@inputs(60)
@given(more=overrides(KEYS), traced=st.integers(0, 9))
def test_a_run(simulated, more, traced, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()

    def build():
        experiment = make_experiment(changed(simulated, more))
        if not traced and experiment.config.batch_size <= 64:
            check_trace(experiment, experiment.objectives[0])

    with only_writes(folder, folder / "nothing"):
        handled(build)


@inputs(80)
@given(more=overrides(EVALUATION))
def test_an_evaluation(simulated, more):
    prepared = sets.open_sets(simulated)
    handled(lambda: settings.check(changed(simulated, more), prepared))


@inputs(4)
@given(more=overrides(EVALUATION))
def test_an_evaluation_of_a_checkpoint(trained, simulated, more):
    handled(lambda: evaluation.open_evaluation(trained, simulated, more))
