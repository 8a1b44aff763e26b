"""Types that libraries leave open. `Any` is written in this module alone, each time with its reason."""

from typing import Any

Json = Any
"""A value that JSON, YAML or a config can hold; its type is known only at run time."""
JsonObject = dict[str, Any]
"""A JSON object: values of several types by key."""
Example = dict[str, Any]
"""One example by feature: arrays, numbers and strings."""
Untyped = Any
"""An object of a library without type annotations (matplotlib, rasterio, TensorFlow), or of no common type."""
