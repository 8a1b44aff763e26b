"""The typed records of evaluation: what a score was measured on, with how many labels, by which protocol.

Tables, file names and CSV columns are made from these fields; nothing is parsed back from a printed name.
"""

from typing import NamedTuple

from fusionx_jax.errors import InputError

FOLDS = "folds"
"""`Protocol.score_split` where every tile is scored once, see `folds.divide`."""


class ModalitySet(NamedTuple):
    """The modalities given to an encoder, and those filled with zeros instead of left out of the token sequence."""

    available: tuple[str, ...]
    zero_filled: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The available modalities as configs and tables write them, e.g. "s1+s2"."""
        return "+".join(self.available)

    @property
    def title(self) -> str:
        """Name for people; a zero-filled modality is stated."""
        zeros = f" (zeros for {' + '.join(self.zero_filled).upper()})" if self.zero_filled else ""
        return " + ".join(self.available).upper() + zeros


def parse_modalities(name: str) -> tuple[str, ...]:
    """The modalities that a config's "s1+s2" lists."""
    return tuple(name.split("+"))


class Method(NamedTuple):
    """A registered method, and the config changes that make a variant of it ("" for the method itself).

    `changes` are `key=value` pairs separated by slashes, as `experiments.label_sweep --methods` takes them.
    """

    name: str
    changes: str = ""

    @property
    def spec(self) -> str:
        """As typed on the command line, e.g. "fusionx/mask_ratio=0.9"."""
        return f"{self.name}/{self.changes}" if self.changes else self.name


def parse_method(spec: str) -> Method:
    """The method that `spec` names on the command line or in a config's `method`."""
    name, _, changes = spec.partition("/")
    return Method(name, changes)


class LabelBudget(NamedTuple):
    """How many labels a model may use: a fraction of the training tiles, or `shots` tiles of every class."""

    fraction: float = 0.0
    shots: int = 0

    @property
    def name(self) -> str:
        """Key in files and CSV columns: "0.1" or "5-shot"."""
        return f"{self.shots}-shot" if self.shots else f"{self.fraction:g}"

    @property
    def title(self) -> str:
        """Name for people: "10 %" or "5-shot"."""
        return f"{self.shots}-shot" if self.shots else f"{100 * self.fraction:g} %"

    @property
    def sort_key(self) -> tuple[bool, float]:
        """Fractions first, then shots, each in ascending order."""
        return bool(self.shots), float(self.shots or self.fraction)


def parse_budget(name: str) -> LabelBudget:
    """The inverse of `LabelBudget.name`.

    Raises:
      InputError: the text is neither a fraction nor a number of shots.
    """
    number = name.removesuffix("-shot")
    try:
        return LabelBudget(shots=int(number)) if number != name else LabelBudget(fraction=float(number))
    except ValueError:
        raise InputError(
            f"{name!r} is not a label budget; expected a fraction such as 0.1, or shots such as 5-shot."
        ) from None


class Group(NamedTuple):
    """Cells that one run of an evaluator measures together, and that share a file."""

    method: Method
    modalities: ModalitySet
    task: str
    evaluator: str


class CellKey(NamedTuple):
    """One label subset: its budget, and the seed that drew it."""

    budget: LabelBudget
    seed: int


class Protocol(NamedTuple):
    """How a score was obtained.

    `training` is the evaluator's sentence; `resampled` the unit of the bootstrap ("tiles" or "scenes"); `statistics`
    whose statistics normalized the input ("checkpoint" or "dataset"); `score_split` the split that was scored;
    `optimistic` is True where hyperparameters were selected on the split that was scored; `folds` is the number of
    folds, each of which was scored with the labels of the others (0: none).
    """

    training: str
    resampled: str
    statistics: str = "checkpoint"
    score_split: str = "test"
    optimistic: bool = False
    folds: int = 0

    @property
    def title(self) -> str:
        """One sentence for tables; deviations from the default protocol are stated."""
        parts = [self.training, f"intervals over {self.resampled}"]
        if self.statistics != "checkpoint":
            parts.append(f"normalized with the {self.statistics}'s statistics")
        if self.folds:
            parts.append(
                f"{self.folds} folds of whole {self.resampled}: each tile is scored with the labels of the others"
            )
        elif self.score_split != "test":
            parts.append(f"scored on the {self.score_split} split")
        if self.optimistic:
            parts.append("hyperparameters selected on the same split: optimistic")
        return "; ".join(parts)


class MetricKey(NamedTuple):
    """A registered metric; a per-class metric has one key for each class."""

    name: str
    class_name: str = ""
