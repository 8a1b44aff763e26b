"""A simulated Sentinel-1/2 world: `python -m data.prepare simulated --out=DIR --num_tiles=N`."""
