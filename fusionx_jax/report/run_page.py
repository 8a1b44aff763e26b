"""The page of a run: curves, tables, comparisons with the baselines, pictures, protocol, data."""

import json
import shlex
from typing import NamedTuple

from ml_collections import ConfigDict

from fusionx_jax import checkpoint, files
from fusionx_jax import config as config_lib
from fusionx_jax.contract import Contract
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import rows
from fusionx_jax.evaluate.compare import Difference
from fusionx_jax.evaluate.measure import DIFFERENCES_FILE, SETTINGS_FILE
from fusionx_jax.evaluate.records import Method, parse_method
from fusionx_jax.evaluate.rows import Row
from fusionx_jax.prepared import sets
from fusionx_jax.report import figures, look, pictures, sections, sentences, survey_page
from fusionx_jax.report.look import Picture
from fusionx_jax.report.sections import Section
from fusionx_jax.types import JsonObject

_SPLITS = ("train", "val", "test")


class _Run(NamedTuple):
    """What the page is made from."""

    workdir: str
    saved: checkpoint.Saved
    config: ConfigDict
    dataset: str
    contract: Contract
    rows: list[Row]
    differences: list[Difference]

    @property
    def method(self) -> Method:
        return parse_method(self.config.get("method", "fusionx"))

    @property
    def figures(self) -> str:
        return files.join(self.workdir, sections.FIGURES)


def make(workdir: str) -> str:
    """Writes `report.html`, `tables.md` and `figures/` in the workdir and returns the page's path.

    Raises:
      InputError: the workdir has no checkpoint, its data set is missing, or a row's evaluator or metric is not
        registered.
    """
    run = _read(workdir)
    contract = run.contract
    command = f"fusionx evaluate --workdir={workdir} --dataset={run.dataset}"
    missing = "" if run.rows else f"No evaluation yet: run {command}."
    values = {
        "title": f"{look.method_label(run.method)} on {contract.name}",
        "subtitle": _subtitle(run),
        "notices": sentences.notices(contract, sections.score_split(run.rows), missing),
        "findings": sentences.findings(run.differences, run.method),
        "findings_note": sentences.comparison_note(run.differences),
        "sections": [
            *sections.task_sections(run.rows, run.differences, run.method, run.figures),
            *sections.class_section(run.rows),
            *_reconstructions(run),
            *_training(run),
        ],
        "data_text": sections.data_text(contract),
        "distribution": _distribution(run),
        "protocol": [_checkpoint_line(run), *sentences.protocol(run.rows)],
        "commands": _commands(run),
        "config": json.dumps(config_lib.to_json(run.config), indent=1, sort_keys=True),
        "contract": contract.to_json(),
    }
    look.write(files.join(workdir, sections.TABLES), "tables.md", **values)
    return look.write(files.join(workdir, sections.PAGE), "run.html", **values)


def _read(workdir: str) -> _Run:
    saved = checkpoint.find(workdir)
    settings = _evaluation_settings(workdir)
    config = config_lib.from_json(settings.get("config", saved.config))
    dataset = str(settings.get("dataset") or saved.config["dataset"])
    contract = sets.open_for(config, dataset).contract
    results = rows.read(files.join(workdir, rows.FILE_NAME))
    differences = rows.read_table(files.join(workdir, DIFFERENCES_FILE), Difference)
    return _Run(
        workdir, saved, config, dataset, contract, rows.select(results, dataset=contract.name),
        [d for d in differences if d.dataset == contract.name],
    )  # fmt: skip


def _evaluation_settings(workdir: str) -> JsonObject:
    """Config and data set of the last evaluation; empty without one."""
    path = files.join(workdir, SETTINGS_FILE)
    if not files.exists(path):
        return {}
    try:
        return json.loads(files.read_text(path))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); run fusionx evaluate again.") from error


def _subtitle(run: _Run) -> str:
    contract = run.contract
    tiles = ", ".join(f"{contract.splits[s]} {s}" for s in _SPLITS if s in contract.splits)
    bands = ", ".join(f"{n} ({m.level}, {len(m.bands)} bands)" for n, m in contract.modalities.items())
    network = f"{run.config.model.size} network, {run.config.masking} masking, step {run.saved.step}"
    return f"{network}; {tiles} tiles of {bands}"


def _reconstructions(run: _Run) -> list[Section]:
    network = pictures.load_network(run.workdir, run.dataset)
    if network is None:
        return []
    level = (
        "each masked patch takes its mean and contrast from the true one, since the target is normalized"
        if run.config.target == "normalized"
        else "masked patches are predicted with their level"
    )
    path = pictures.reconstructions(network, run.figures)
    caption = f"Left to right: true, masked, reconstructed; {level}. Gray: no data."
    alt = "True, masked and reconstructed tiles of each modality"
    return [Section("Reconstructions", [Picture(look.embed(path), alt, caption)], [])]


def _training(run: _Run) -> list[Section]:
    path = files.join(run.workdir, "metrics.csv")
    figure = figures.loss_curves(path, run.figures, run.contract.simulated) if files.exists(path) else None
    if figure is None:
        return []
    return [Section("Pretraining", [Picture(look.embed(figure), "Loss and speed by training step")], [])]


def _distribution(run: _Run) -> str | None:
    path = survey_page.class_distribution([run.contract], run.figures)
    return look.embed(path) if path else None


def _checkpoint_line(run: _Run) -> str:
    return f"Checkpoint: step {run.saved.step}, {run.config.batch_size} pairs per step, seed {run.config.seed}."


def _commands(run: _Run) -> str:
    workdir, dataset = (shlex.quote(sections.short_path(p)) for p in (run.workdir, run.dataset))
    return "\n".join(
        [
            f"fusionx pretrain --config=CONFIG --workdir={workdir}   # values below under Configuration",
            f"fusionx evaluate --workdir={workdir} --dataset={dataset}",
            f"fusionx report --workdir={workdir}",
        ]
    )
