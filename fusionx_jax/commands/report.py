"""`fusionx report`: parses its arguments and writes the page of a run or of a comparison."""

import argparse
import os

from fusionx_jax.errors import InputError


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusionx report",
        description="Writes report.html, tables.md and figures/ into a workdir, from what is there.",
    )
    parser.add_argument(
        "--workdir", required=True, metavar="W", help="workdir of `fusionx pretrain` or of a comparison"
    )
    args, rest = parser.parse_known_args(argv)
    if rest:
        raise InputError(f"The argument {rest[0]!r} is not understood by `fusionx report`; see its --help.")
    from fusionx_jax import progress
    from fusionx_jax.evaluate import compare
    from fusionx_jax.report import run_page

    whole = os.path.exists(os.path.join(args.workdir, compare.SETTINGS_FILE))
    if whole:
        from fusionx_jax.report import comparison_page

        page = comparison_page.make(args.workdir)
    else:
        page = run_page.make(args.workdir)
    progress.logger.info("Open %s in a browser; its figures are in %s.", page, os.path.join(args.workdir, "figures"))
    print(page)
    return 0
