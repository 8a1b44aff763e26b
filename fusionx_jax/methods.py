"""Methods as tables and figures show them: label, color and marker by name, in the order of tables.

The name is `config.method`. Colors are those of Okabe & Ito ("Color Universal Design", 2008), which color-blind readers
can tell apart, then grays, dark blues and brown.
"""

import dataclasses
from collections.abc import Iterable

from fusionx_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class Method:
    """How one method is presented.

    Attributes:
      name: `config.method`, and the column "method" of result rows.
      label: in tables.
      short: in figures where space is short.
      color, marker: of matplotlib.
    """

    name: str
    label: str
    short: str
    color: str
    marker: str


METHODS: Registry[Method] = Registry("method")


def register(method: Method) -> Method:
    """Adds a method at the end of tables.

    Raises:
      ValueError: the name is taken.
    """
    return METHODS.register(method.name, method)


def presentation(name: str) -> Method:
    """The registered method, or for any other name (a variant of a sweep) that name with a color of matplotlib's
    default cycle, which depends on the name alone."""
    if name in METHODS:
        return METHODS[name]
    return Method(name, name, name, f"C{sum(map(ord, name)) % 10}", "o")


def in_table_order(names: Iterable[str]) -> list[str]:
    """Registered methods in the order of registration, then all others in the order given; each once."""
    present = list(dict.fromkeys(names))
    return [m for m in METHODS if m in present] + [m for m in present if m not in METHODS]


for _method in (
    Method("fusionx", "FusionX-Net", "FusionX-Net", "#0072B2", "o"),
    Method("fusionx_early", "FusionX-Net, fusion at the first block", "FusionX early", "#003F6B", "h"),
    Method("fusionx_bands", "FusionX-Net, groups of optical bands", "FusionX bands", "#332288", "p"),
    Method("mae_s1", "MAE, S1 alone", "MAE S1", "#56B4E9", "<"),
    Method("mae_s2", "MAE, S2 alone", "MAE S2", "#009E73", ">"),
    Method("stacked_mae", "MAE, stacked channels", "stacked", "#D55E00", "v"),
    Method("mae_pair", "two MAEs, one a sensor", "MAE pair", "#A6761D", "d"),
    Method("multimae", "MultiMAE-style", "MultiMAE", "#CC79A7", "P"),
    Method("multimae_contrastive", "MultiMAE-style with InfoNCE", "MultiMAE+NCE", "#7B3F8C", "p"),
    Method("croma", "CROMA-style", "CROMA", "#E69F00", "X"),
    Method("contrastive", "cross-modal InfoNCE", "InfoNCE", "#8C564B", "*"),
    Method("untrained", "same encoder, untrained", "untrained", "#7F7F7F", "s"),
    Method("band_statistics", "band mean and deviation", "bands", "#B8A100", "^"),
    Method("texture", "band statistics and texture", "texture", "#7D9D33", "3"),
    Method("texture_forest", "band statistics and texture, random forest", "forest", "#56701F", "4"),
    Method("difference_of_means", "difference of band means", "means", "#8A7F00", "1"),
    Method("change_vector", "change vector analysis", "CVA", "#5B5400", "2"),
    Method("supervised", "same network", "same network", "#000000", "D"),
    Method("supervised_vit", "ViT", "ViT", "#000000", "D"),
    Method("supervised_resnet", "ResNet", "ResNet", "#4D4D4D", "d"),
):
    register(_method)
