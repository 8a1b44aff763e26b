"""What the tests of generated bad inputs share: how many, and what may happen to each.

An input is handled or refused in one sentence. Any other exception, a message of several lines, and a file that appears or
changes outside of the output folder are faults. `FUZZ=N` in the environment generates N times as many inputs, anew each
time; without it there are few, always the same.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fusionx_jax.errors import InputError, RunError

TIMES = int(os.environ.get("FUZZ", "0"))
LONGEST = 3000  # characters of a message: it may list names
SECONDS = 60  # for one input, on a busy machine


def inputs(count: int) -> settings:
    """Settings of a test with `count` inputs."""
    return settings(
        max_examples=count * max(1, TIMES),
        derandomize=not TIMES,
        deadline=datetime.timedelta(seconds=SECONDS),
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def handled(action: Callable[[], object]) -> str | None:
    """Runs an action; returns the sentence with which it refused its input, None if it did not."""
    try:
        action()
    except (InputError, RunError) as error:
        message = str(error)
        assert message.strip().endswith((".", "!", ")")), message
        assert "Traceback" not in message, message
        assert len(message) < LONGEST, message
        return message
    return None


@contextlib.contextmanager
def only_writes(root: Path, out: Path) -> Iterator[None]:
    """Checks that nothing under `root` appears, changes or vanishes except in `out`."""
    before = _states(root, out)
    yield
    assert _states(root, out) == before


def _states(root: Path, out: Path) -> dict[str, tuple[int, int]]:
    paths = [p for p in root.rglob("*") if p.is_file() and out not in p.parents]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in paths}


numbers = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 7, 255, 256, 10**6, 2**31, 2**63, 10**30, 0.0, -0.5, 0.5, 1e-30, 1e300]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**40), 2**40),
)
texts = st.one_of(
    st.sampled_from(
        ["", " ", "s1", "s2", "VV", "no", "None", "../..", "a,b", "{scene}", "漢字", "a" * 5000, "\x00", "%s {}"]
    ),
    st.text(max_size=20),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
