"""Types of command-line options, for argparse: a value that cannot work ends with one line that says what can."""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from megatron_rapo.errors import printable, shortened

Function = Callable[[argparse.Namespace], int]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_DIGITS = re.compile(r"[0-9]{1,18}")


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser for `megatron_rapo NAME`, whose help has the first paragraph of `description` above its options.

    The other paragraphs are below them. Indented ones are shown as they are, and all others wrapped to the terminal.
    """
    width = shutil.get_terminal_size().columns - 2
    first, *others = [
        part if part.startswith(" ") else textwrap.fill(part, width) for part in description.strip("\n").split("\n\n")
    ]
    return argparse.ArgumentParser(
        prog=f"megatron_rapo {name}",
        description=first,
        epilog="\n\n".join(others),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def config_parser(name: str, description: str, *, required: bool = True) -> argparse.ArgumentParser:
    """Return a parser for `megatron_rapo NAME CONFIG.toml`, with --set. CONFIG.toml may be absent unless `required`."""
    parser = command_parser(name, description)
    parser.add_argument(
        "config", type=Path, metavar="CONFIG.toml", nargs=None if required else "?", help="the run's settings"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="override one setting; may be given many times",
    )
    return parser


def sub_command(commands: Commands, name: str, function: Function, text: str) -> argparse.ArgumentParser:
    """Add a command to `commands`; its options have the `function` to call with them."""
    added = commands.add_parser(name, help=text, description=text)
    added.set_defaults(function=function)
    return added


def call_function(options: argparse.Namespace, *, interrupted: str) -> int:
    """Call the function of a sub-command and return its exit status. On Ctrl-C print `interrupted` and return 130."""
    try:
        return int(options.function(options))
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return a type for whole numbers from `least` to `most`, written in decimal digits."""

    def parse(text: str) -> int:
        if not _DIGITS.fullmatch(text.strip()) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{said(text)}: not a whole number from {least:,} to {most:,}")
        return int(text)

    return parse


def number(least: float, most: float, *, above: bool = False) -> Callable[[str], float]:
    """Return a type for finite numbers from `least` (with `above`: from above it) to `most`."""
    limits = f"above {least:,g} and up to {most:,g}" if above else f"from {least:,g} to {most:,g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least < value if above else least <= value) or not value <= most:  # false of NaN
            raise argparse.ArgumentTypeError(f"{said(text)}: not a number {limits}")
        return value

    return parse


def whole_numbers(text: str) -> list[int]:
    """Parse whole numbers with commas between them, such as the k of pass@k."""
    try:
        return [int(k) for k in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{said(text)}: not whole numbers with commas between; write e.g. --k 1,4,16"
        ) from None


def said(text: str) -> str:
    """Return an option's value as messages show it."""
    return shortened(printable(repr(text)))
