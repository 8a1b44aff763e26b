"""`fusionx bench`: parses its arguments and prints one measurement."""

import argparse
import dataclasses
import json

from fusionx_jax.errors import InputError
from fusionx_jax.types import Json, JsonObject, Untyped


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusionx bench", description="Speed as ratios against named alternatives, measured in one run."
    )
    _add_benches(parser.add_subparsers(dest="bench", required=True, metavar="WHAT"))
    args, overrides = parser.parse_known_args(argv)
    args.overrides = overrides
    if args.overrides and (args.bench != "train" or not all(o.startswith("--config.") for o in args.overrides)):
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    if args.bench == "train":
        args.config = args.config or ["configs/speed.py:demo", "configs/speed.py:small"]
    values = args.run(args)
    print(json.dumps(values) if args.json else _table(values))
    return 0


def _add_benches(benches: Untyped) -> None:  # argparse does not name its type
    pipeline = benches.add_parser("input", help="the input pipeline against TFRecord + shuffle and a memmap gather")
    pipeline.add_argument(
        "--tiles", type=int, default=1536, help="pairs in the set (default 1536: 0.6 GB, three forms)"
    )
    pipeline.add_argument("--tile_size", type=int, default=120, help="side in pixels (default 120)")
    pipeline.add_argument("--batch_size", type=int, default=64)
    pipeline.add_argument("--rounds", type=int, default=5, help="turns of each alternative (default 5)")
    pipeline.add_argument(
        "--tmp", metavar="DIR", default=None, help="folder for the tiles (default: the system's temporary folder)"
    )
    pipeline.add_argument("--json", action="store_true", help="print one JSON object")
    pipeline.set_defaults(run=_input)
    sweep = benches.add_parser("probe", help="the linear-probe sweep against scikit-learn on every core")
    sweep.add_argument("--kind", choices=("multi", "single"), default="multi", help="labels per tile (default multi)")
    sweep.add_argument("--examples", type=int, default=10_000, help="training examples (default 10000)")
    sweep.add_argument("--features", type=int, default=384, help="features per example (default 384)")
    sweep.add_argument("--seeds", type=int, default=5, help="label subsets per fraction (default 5)")
    sweep.add_argument("--json", action="store_true", help="print one JSON object")
    sweep.set_defaults(run=_probe)
    full = benches.add_parser(
        "evaluate", help="seconds and peak memory of a label-efficiency sweep at BigEarthNet's size",
        description="Measures one fit of each label fraction and the bootstrap of one cell on synthetic features, and "
        "extrapolates to all label subsets. The default sizes are BigEarthNet's.",
    )  # fmt: skip
    for name in ("train", "test", "features", "classes", "seeds", "resamples"):
        full.add_argument(f"--{name}", type=int, default=None, metavar="N", help="default: BigEarthNet's")
    full.add_argument("--json", action="store_true", help="print one JSON object")
    full.set_defaults(run=_evaluate)
    train = benches.add_parser(
        "train", help="the train step against matrix products, and against PyTorch",
        epilog="Config values are set with --config.KEY=VALUE, for every config.",
    )  # fmt: skip
    train.add_argument(
        "--config", action="append", metavar="FILE[:options]",
        help="may be given several times (configs/speed.py:demo and configs/speed.py:small)",
    )  # fmt: skip
    train.add_argument(
        "--peer", action="append", choices=("torch", "torch.compile"), default=[],
        help="also measure the PyTorch twin of the step, eager or compiled; may be given twice",
    )  # fmt: skip
    train.add_argument("--dataset", metavar="DIR", default="", help="read tiles of this set (random ones in memory)")
    train.add_argument(
        "--tile_size", type=int, default=120, help="side of random tiles where augment.crop is 0 (default 120)"
    )
    train.add_argument("--rounds", type=int, default=5, help="turns of each alternative (default 5)")
    train.add_argument("--seconds", type=float, default=2.0, help="length of a turn (default 2)")
    train.add_argument("--profile", metavar="DIR", default="", help="write a trace and a table by operation there")
    train.add_argument("--json", action="store_true", help="print one JSON object")
    train.set_defaults(run=_train)


def _input(args: argparse.Namespace) -> JsonObject:
    from fusionx_jax.bench import input as bench_input

    return bench_input.run(args.tiles, args.tile_size, args.batch_size, args.rounds, args.tmp)


def _probe(args: argparse.Namespace) -> JsonObject:
    from fusionx_jax.bench import probe

    if args.examples < 1000 or args.features < 2 or args.seeds < 1:
        raise InputError(
            f"--examples is {args.examples}, --features {args.features} and --seeds {args.seeds}; at least 1000 "
            "examples (ten labels at 1 %), two features and one seed are needed."
        )
    return probe.run(args.kind, args.examples, args.features, args.seeds)


def _evaluate(args: argparse.Namespace) -> JsonObject:
    from fusionx_jax.bench import evaluate

    names = [f.name for f in dataclasses.fields(evaluate.Sizes)]
    return evaluate.run(evaluate.Sizes(**{n: getattr(args, n) for n in names if getattr(args, n) is not None}))


def _train(args: argparse.Namespace) -> JsonObject:
    from fusionx_jax.bench import train

    if args.rounds < 1 or args.seconds <= 0 or args.tile_size < 1:
        raise InputError(
            f"--rounds is {args.rounds}, --seconds {args.seconds} and --tile_size {args.tile_size}; all must be "
            "positive."
        )
    configs = train.load_configs(args.config, args.overrides)
    return train.run(configs, args.dataset, args.tile_size, args.peer, args.rounds, args.seconds, args.profile)


def _table(values: JsonObject, indent: str = "") -> str:
    lines = []
    for k, v in values.items():
        if isinstance(v, dict):
            lines += [f"{indent}{k}", _table(v, indent + "  ")]
        elif isinstance(v, list):
            lines += [f"{indent}{k}", *(f"{indent}  " + "  ".join(_text(x) for x in row.values()) for row in v)]
        else:
            lines.append(f"{indent}{k:{32 - len(indent)}} {_text(v)}")
    return "\n".join(lines)


def _text(value: Json) -> str:
    if value is None:
        return "not available"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
