"""The data sets that `python -m data.prepare` knows. A new one is a folder beside this file and a line below."""

import argparse
import importlib
from typing import NamedTuple, Protocol, cast

from data.source import Source
from fusionx_jax.registry import Registry


class Builder(Protocol):
    """The module that builds a data set: its options, and the source that they select."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def make_source(self, args: argparse.Namespace) -> Source: ...


class DataSet(NamedTuple):
    """A data set that can be prepared.

    Attributes:
      summary: one line for the help page.
      module: the builder's module, imported when the data set is chosen.
    """

    summary: str
    module: str

    def builder(self) -> Builder:
        return cast(Builder, importlib.import_module(self.module))


DATA_SETS: Registry[DataSet] = Registry("data set")


def register(name: str, summary: str) -> None:
    """Registers the builder in the folder `name`."""
    DATA_SETS.register(name, DataSet(summary, f"data.{name}.builder"))


register("simulated", "a simulated Sentinel-1/2 world; nothing to download")
register("paired_scenes", "any folder of co-registered scenes, described by a small YAML file")
register("bigearthnet_v1", "BigEarthNet-MM, 19 or 43 classes, multi-label")
register("bigearthnet_v2", "reBEN, with official splits and reference maps")
register("sen12ms", "four seasons, MODIS land cover")
register("dfc2020", "the layout of SEN12MS with better labels")
register("ssl4eo_s12", "a quarter of a million places, four seasons, no labels")
register("so2sat_lcz42", "local climate zones, HDF5")
register("sen1floods11", "hand-labeled floods")
register("oscd", "urban change between two dates, with Sentinel-1")
register("eurosat", "EuroSAT with EuroSAT-SAR")
