"""`fusionx inspect`: parses its arguments and writes the page of prepared sets."""

import argparse

from fusionx_jax.errors import InputError


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusionx inspect",
        description="Shows what prepared sets hold: classes, histograms, tiles, places, duplicates, leakage.",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="prepared sets")
    parser.add_argument(
        "--out", default="runs/inspect", metavar="DIR", help="where the page goes (default runs/inspect)"
    )
    parser.add_argument("--tiles", type=int, default=None, help="read only this many tiles, evenly (default: all)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="write no page; verify the checksum of every record, and name damaged ones",
    )
    args = parser.parse_args(argv)
    if args.verify:
        from fusionx_jax.prepared.verify import verify

        for directory in args.directories:
            print(verify(directory))
        return 0
    if args.tiles is not None and args.tiles < 1:
        raise InputError(f"--tiles is {args.tiles}; at least 1 is needed.")
    from fusionx_jax.report import survey, survey_page

    surveys = []
    for directory in args.directories:
        surveys.append(survey.examine(directory, args.tiles))
        print(survey.summary(surveys[-1]))
    page = survey_page.write(surveys, args.out)
    print(page)
    return 0
