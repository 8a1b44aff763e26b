"""`fusionx report`: parses its arguments and writes the page of a run or of a comparison."""

import argparse

from fusionx_jax.errors import InputError


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusionx report",
        description="Writes report.html, tables.md and figures/ into a workdir, from its checkpoint and results.",
    )
    parser.add_argument(
        "--workdir", required=True, metavar="W", help="workdir of `fusionx pretrain` or of a comparison"
    )
    args, rest = parser.parse_known_args(argv)
    if rest:
        raise InputError(f"`fusionx report` has no argument {rest[0]!r}; see `fusionx report --help`.")
    from fusionx_jax import files, progress
    from fusionx_jax.evaluate import members
    from fusionx_jax.report import comparison_page, run_page, sections

    page_of = comparison_page if members.is_comparison(args.workdir) else run_page
    page = page_of.make(args.workdir)
    figures = files.join(args.workdir, sections.FIGURES)
    progress.logger.info("Open %s in a browser; its figures are in %s.", page, figures)
    print(page)
    return 0
