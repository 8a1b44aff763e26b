"""Any folder of co-registered scenes: `python -m data.prepare paired_scenes --raw=DIR --spec=FILE.yaml --out=DIR`."""
