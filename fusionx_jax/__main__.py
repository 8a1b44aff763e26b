"""`python -m fusionx_jax COMMAND`, installed as `fusionx`. A command's module is imported only when it is called."""

import importlib
import sys
from collections.abc import Callable

COMMANDS = {
    "pretrain": ("fusionx_jax.commands.pretrain", "learn a representation from a prepared set, without labels"),
    "evaluate": ("fusionx_jax.commands.evaluate", "judge it where labels are few, beside baselines"),
    "report": ("fusionx_jax.commands.report", "make tables, figures and one HTML page of a workdir"),
    "inspect": ("fusionx_jax.commands.survey", "show what prepared sets hold, and what looks wrong"),
    "export": ("fusionx_jax.commands.export", "write a trained encoder for others: Orbax, safetensors, StableHLO"),
    "plan": ("fusionx_jax.commands.plan", "tell memory, speed and days of a run on machines that are not here"),
    "bench": ("fusionx_jax.commands.bench", "measure speed as ratios against named alternatives"),
}


def _usage() -> str:
    lines = [f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fusionx COMMAND [options]",
            "",
            "Self-supervised fusion of radar and optical satellite tiles, judged at few labels.",
            "",
            "commands:",
            *lines,
            "",
            "`fusionx COMMAND --help` lists a command's options; `python -m data.prepare --help` prepares data.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        import fusionx_jax

        print(f"fusionx {fusionx_jax.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: there is no command {argv[0]!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    return guarded(lambda rest: importlib.import_module(COMMANDS[argv[0]][0]).main(rest), argv[1:])


def guarded(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Runs a command; a failure outside the program becomes one sentence and an exit status."""
    from fusionx_jax.errors import failure

    try:
        if not {"-h", "--help"} & set(argv):
            from fusionx_jax import progress

            progress.setup_logging()
        return command(argv)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except Exception as error:
        reported = failure(error)
        if reported is None:
            raise
        print(f"error: {reported.message}", file=sys.stderr)
        return reported.status


if __name__ == "__main__":
    sys.exit(main())
