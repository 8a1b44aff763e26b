"""`python -m fusionx_jax COMMAND`, installed as `fusionx`. A command's module is imported only when it is called."""

import importlib
import sys
from collections.abc import Callable
from typing import NamedTuple

from fusionx_jax.registry import Registry


class Command(NamedTuple):
    """A command: the module whose `main(argv)` runs it, and its line in `fusionx --help`."""

    module: str
    summary: str


COMMANDS: Registry[Command] = Registry("command")
for _name, _summary in (
    ("pretrain", "learn a representation from a prepared set, without labels"),
    ("evaluate", "measure it at few labels, beside baselines"),
    ("report", "write tables, figures and one HTML page of a workdir"),
    ("inspect", "write a page of prepared sets: classes, histograms, tiles, duplicates, leakage"),
    ("export", "write a trained encoder for others: Orbax, safetensors, StableHLO"),
    ("plan", "estimate memory, speed and days of a run without its machines"),
    ("bench", "measure speed as ratios against named alternatives"),
):
    # A module named inspect.py would hide the standard library's for programs started beside it.
    COMMANDS.register(_name, Command(f"fusionx_jax.commands.{_name.replace('inspect', 'survey')}", _summary))


def _usage() -> str:
    lines = [f"  {name:10} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fusionx COMMAND [options]",
            "",
            "Self-supervised fusion of radar and optical satellite tiles, evaluated at few labels.",
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
        print(f"error: There is no command {argv[0]!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    return guarded(lambda rest: importlib.import_module(COMMANDS[argv[0]].module).main(rest), argv[1:])


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
