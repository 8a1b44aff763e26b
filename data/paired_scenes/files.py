"""Finding the files of scenes: patterns with `{scene}` and `*`, matched component by component below a folder."""

import os
import re
import sys
from collections.abc import Mapping
from typing import NamedTuple

from data.paired_scenes.spec import Spec
from fusionx_jax.errors import InputError

Paths = Mapping[str, str]
"""Path of each pattern's file of one scene, by pattern."""


class Found(NamedTuple):
    """The files of each complete scene, sorted by name, and the names of incomplete ones."""

    scenes: dict[str, Paths]
    incomplete: list[str]


def find_scenes(spec: Spec, raw: str, skip_incomplete: bool) -> Found:
    """Finds the scenes that have one file for each pattern; optional labels may lack.

    Raises:
      InputError: no scene is found, one lacks a file, or two files of a scene match one pattern.
    """
    found = {pattern: _match(raw, pattern) for pattern in spec.patterns()}
    _drop_weaker_matches(found)
    if not any(found.values()):
        raise InputError(
            f"No file in {raw} matches {' or '.join(found)} (from {spec.path}), with extensions in any case; check "
            "--raw and the patterns."
        )
    optional = {spec.labels.pattern} if spec.labels and spec.labels.optional else set()
    scenes = sorted({scene for matches in found.values() for scene, _ in matches})
    out: dict[str, Paths] = {}
    incomplete: dict[str, list[str]] = {}
    for scene in scenes:
        paths = {p: [path for s, path in matches if s == scene] for p, matches in found.items()}
        twice = [p for p, candidates in paths.items() if len(candidates) > 1]
        if twice:
            raise InputError(
                f"Two files of scene {scene} match {twice[0]}: {' and '.join(paths[twice[0]][:2])}; make the pattern "
                f"more specific (from {spec.path})."
            )
        missing = [p.replace("{scene}", scene) for p, c in paths.items() if not c and p not in optional]
        if missing:
            incomplete[scene] = missing
        else:
            out[scene] = {p: os.path.join(raw, candidates[0]) for p, candidates in paths.items() if candidates}
    if incomplete and not skip_incomplete:
        scene, missing = next(iter(incomplete.items()))
        raise InputError(
            f"{len(incomplete)} of {len(scenes)} scenes in {raw} lack a file; the first is {scene}, which has no "
            f"{' and no '.join(missing)}. Add it, or pass --skip_incomplete to leave such scenes out."
        )
    if incomplete:
        print(f"Left out {len(incomplete)} incomplete scene(s): {', '.join(incomplete)}.", file=sys.stderr)
    if not out:
        raise InputError(f"No scene in {raw} has all of {', '.join(found)}.")
    return Found(out, list(incomplete))


def _match(raw: str, pattern: str) -> list[tuple[str, str]]:
    """(scene, path below `raw`) of every file that a pattern matches; its extension in any case."""
    matches: list[tuple[str | None, str]] = [(None, "")]
    components = pattern.split("/")
    for i, component in enumerate(components):
        expression = _expression(component, last=i + 1 == len(components))
        longer: list[tuple[str | None, str]] = []
        for scene, folder in matches:
            try:
                names = sorted(os.listdir(os.path.join(raw, folder)))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for name in names:
                m = expression.fullmatch(name)
                here = m.groupdict().get("scene") if m else None
                if m and (scene is None or here is None or here == scene):
                    longer.append((here or scene, f"{folder}/{name}" if folder else name))
        matches = longer
    return [(scene, path) for scene, path in matches if scene is not None]


def _expression(component: str, last: bool) -> re.Pattern[str]:
    stem, extension = os.path.splitext(component) if last else (component, "")
    text = re.escape(stem).replace(re.escape("{scene}"), "(?P<scene>.+)", 1)
    text = text.replace(re.escape("{scene}"), "(?P=scene)").replace(re.escape("*"), ".*")
    if "{scene}" in extension or "*" in extension:
        return re.compile(text + re.escape(extension).replace(re.escape("*"), ".*"))
    return re.compile(f"{text}(?i:{re.escape(extension)})")


def _drop_weaker_matches(found: dict[str, list[tuple[str, str]]]) -> None:
    """Keeps a file that several patterns match for the one with most letters: `{scene}_VV.tif` over `{scene}.tif`."""
    fixed = {p: len(p.replace("{scene}", "").replace("*", "")) for p in found}
    strongest: dict[str, str] = {}
    for pattern in sorted(found, key=lambda p: fixed[p]):
        strongest |= {path: pattern for _, path in found[pattern]}
    for pattern, matches in found.items():
        found[pattern] = [(s, path) for s, path in matches if fixed[strongest[path]] == fixed[pattern]]
