"""Command-line flags that several commands share. Imports nothing heavy: `--help` answers at once."""

import argparse


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that runs as several processes."""
    group = parser.add_argument_group("several processes (same command in each; nothing of this without --distributed)")
    group.add_argument("--distributed", action="store_true", help="join the other processes before anything else")
    group.add_argument("--coordinator", default=None, metavar="HOST:PORT", help="process 0's address")
    group.add_argument("--num_processes", type=int, default=None, metavar="N")
    group.add_argument("--process_id", type=int, default=None, metavar="I", help="0 to N - 1")
    group.add_argument(
        "--devices_per_process",
        type=int,
        default=0,
        metavar="N",
        help="GPUs of each process, counted on from its rank on the machine (Slurm: one; else all)",
    )
    group.add_argument(
        "--join_timeout", type=int, default=300, metavar="S", help="seconds to wait for all processes (300)"
    )
    group.add_argument(
        "--heartbeat_timeout", type=int, default=100, metavar="S", help="seconds until a silent process is dead (100)"
    )
