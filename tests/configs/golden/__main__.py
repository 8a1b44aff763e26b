"""Rewrites the golden files after a deliberate change: `python -m tests.configs.golden`."""

from tests.configs import goldens

for name in goldens.names():
    goldens.write(name)
