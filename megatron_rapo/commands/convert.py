"""Convert checkpoints between Hugging Face and Megatron, reshard, inspect and compare them.

    megatron-rapo convert hf-to-megatron INPUT OUTPUT
    megatron-rapo convert megatron-to-hf INPUT OUTPUT
    megatron-rapo convert reshard INPUT OUTPUT --tensor 4
    megatron-rapo convert inspect INPUT
    megatron-rapo convert verify A B

A Megatron checkpoint is a distributed one (torch_dist): RUN/checkpoints/step-N of a run, or an output of this command.
It loads under any parallel layout. --tensor, --pipeline and --virtual-pipeline choose the layout under which each rank
finds its part in one file.

The command needs no GPU and no torchrun, and memory for a few tensors only. After an interruption, the same command
continues the conversion. The output gets its name when it is complete.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from megatron_rapo.checkpoints.tensors import Reader
from megatron_rapo.commands.arguments import (
    Commands,
    call_function,
    command_parser,
    number,
    said,
    sub_command,
    whole_number,
)
from megatron_rapo.convert.inspect import summarise, total_bytes
from megatron_rapo.convert.model_tensors import Layout
from megatron_rapo.convert.reshard import reshard_megatron, tensor_bytes
from megatron_rapo.convert.source import ModelSource, open_source
from megatron_rapo.convert.to_hf import megatron_to_hf
from megatron_rapo.convert.to_megatron import hf_to_megatron
from megatron_rapo.convert.verify import compare
from megatron_rapo.errors import printable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WORST = 10  # tensors that `verify` shows


def to_megatron(options: argparse.Namespace) -> int:
    source = open_source(options.input)
    layout = layout_of(options)
    dtype = DTYPES.get(options.dtype, source.dtype)
    with progress_bar("converting", total_bytes(source) // source.dtype.itemsize * dtype.itemsize) as progress:
        hf_to_megatron(
            options.input, options.output, layout, dtype=dtype, processes=options.processes, progress=progress
        )
    print(f"{options.output}: a Megatron checkpoint, cut up for {layout.tensor} x {layout.pipeline} ranks")
    return 0


def reshard(options: argparse.Namespace) -> int:
    layout = layout_of(options)
    with progress_bar("cutting up", tensor_bytes(Reader(options.input))) as progress:
        reshard_megatron(
            options.input,
            options.output,
            layout,
            like=options.like,
            processes=options.processes,
            progress=progress,
        )
    print(f"{options.output}: the same checkpoint, cut up for {layout.tensor} x {layout.pipeline} ranks")
    return 0


def layout_of(options: argparse.Namespace) -> Layout:
    return Layout(tensor=options.tensor, pipeline=options.pipeline, virtual_pipeline=options.virtual_pipeline)


def to_hf(options: argparse.Namespace) -> int:
    source = open_source(options.input, options.like)
    dtype = DTYPES.get(options.dtype, source.dtype)
    with progress_bar("converting", total_bytes(source) // source.dtype.itemsize * dtype.itemsize) as progress:
        megatron_to_hf(
            options.input,
            options.output,
            like=options.like,
            dtype=dtype,
            max_shard_size=options.max_shard_size,
            processes=options.processes,
            progress=progress,
        )
    print(f"{options.output}: a Hugging Face folder")
    return 0


def inspect(options: argparse.Namespace) -> int:
    with progress_bar("reading", total_bytes(open_source(options.input, options.like))) as progress:
        found = summarise(options.input, options.like, progress)
    console = output()
    facts = Table("", "", title=f"{found.kind} checkpoint {options.input}", show_header=False)
    for name, value in found.facts.items():
        facts.add_row(name, printable(value))
    console.print(facts)
    tensors = tensor_table("shape", "dtype", "digest")
    for tensor in found.tensors:
        dtype = str(tensor.dtype).removeprefix("torch.")
        tensors.add_row(tensor.name, str(list(tensor.shape)), dtype, f"{tensor.digest:016x}")
    console.print(tensors)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Compare two checkpoints. Returns 0 only if they are the same (or within the tolerance)."""
    a, b = (open_source(folder, options.like) for folder in (options.a, options.b))
    with progress_bar("comparing", total_bytes(a)) as progress:
        found = list(compare(a, b, progress))
    different = [d for d in found if (d.largest > options.tolerance if options.tolerance else d.count)]
    if different:
        print(f"{options.a} and {options.b} differ in {len(different)} of {len(found)} tensors; the worst of them:")
        table = tensor_table("largest difference", "numbers that differ")
        for each in sorted(different, key=lambda d: d.largest, reverse=True)[:WORST]:
            table.add_row(each.name, f"{each.largest:.3g}", f"{each.count:,} of {each.numel:,}")
        output().print(table)
    else:
        within = f"within {options.tolerance:g}" if options.tolerance else "bit by bit"
        print(f"{options.a} and {options.b} are the same {within}: {len(found)} tensors")
    same = verify_logits(a, b, options) if options.logits else True
    return 0 if same and not different else 1


def verify_logits(a: ModelSource, b: ModelSource, options: argparse.Namespace) -> bool:
    from megatron_rapo.convert.logits import compare_logits  # transformers takes seconds to import

    found = compare_logits(a, b, options.text)
    print(
        f"logits after {found.tokens} tokens of text, in float32: they differ by {found.largest:.3g} at most, their "
        f"distributions by {found.mean_kl:.3g} nats on average; the likeliest token is the same after "
        f"{found.same_choice}"
    )
    return found.largest <= options.tolerance


def output() -> Console:
    """Return a console as wide as the terminal, or of a fixed width without a terminal."""
    console = Console(markup=False)  # names from files are no markup
    return console if console.is_terminal else Console(width=200, markup=False)


def tensor_table(*columns: str) -> Table:
    """Build a table whose first column is the tensor's full name."""
    table = Table()
    table.add_column("tensor", overflow="fold")
    for column in columns:
        table.add_column(column)
    return table


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show bytes, speed and remaining time on a terminal."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


def size(text: str) -> str:
    """Check a size in huggingface_hub's form."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}(KB|MB|GB|TB)", text):
        raise argparse.ArgumentTypeError(f"{said(text)}: not a size; write for example 500MB or 5GB")
    return text


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `convert`."""
    parser = command_parser("convert", __doc__ or "")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    to = sub_command(commands, "hf-to-megatron", to_megatron, "make a Megatron checkpoint of a Hugging Face folder")
    _add_paths(to)
    _add_dtype(to)
    _add_layout(to)
    another = "write a Megatron checkpoint, with its optimizer state, for another layout"
    other = sub_command(commands, "reshard", reshard, another)
    _add_paths(other)
    _add_layout(other)
    _add_like(other)
    back = sub_command(commands, "megatron-to-hf", to_hf, "make a Hugging Face folder of a Megatron checkpoint")
    _add_paths(back)
    _add_dtype(back)
    _add_like(back)
    back.add_argument(
        "--max-shard-size", type=size, default="5GB", metavar="SIZE", help="largest size of a safetensors file"
    )
    look = sub_command(commands, "inspect", inspect, "show what is in a checkpoint of either kind")
    look.add_argument("input", type=Path, metavar="INPUT")
    _add_like(look)
    _add_verify(commands)
    return parser.parse_args(arguments)


def _add_verify(commands: Commands) -> None:
    added = sub_command(
        commands, "verify", verify, "say whether two checkpoints of either kind are the same; status 0 or 1"
    )
    added.add_argument("a", type=Path, metavar="A")
    added.add_argument("b", type=Path, metavar="B")
    added.add_argument(
        "--tolerance",
        type=number(0, 10**9),
        default=0.0,
        metavar="X",
        help="largest difference allowed; none by default",
    )
    logits = "also compute the logits of both models, one at a time; needs 4 bytes for each parameter"
    added.add_argument("--logits", action="store_true", help=logits)
    added.add_argument("--text", help="text for the logits; a problem and its solution by default")
    _add_like(added)


def _add_paths(added: argparse.ArgumentParser) -> None:
    added.add_argument("input", type=Path, metavar="INPUT")
    added.add_argument("output", type=Path, metavar="OUTPUT")
    added.add_argument(
        "--processes", type=whole_number(1, 1024), default=1, help="processes that write files in parallel"
    )


def _add_like(added: argparse.ArgumentParser) -> None:
    text = "Hugging Face folder of the model, if the checkpoint has no copy of its files"
    added.add_argument("--like", type=Path, metavar="FOLDER", help=text)


def _add_dtype(added: argparse.ArgumentParser) -> None:
    added.add_argument("--dtype", choices=DTYPES, help="number format of the output; the input's by default")


def _add_layout(added: argparse.ArgumentParser) -> None:
    texts = {
        "--tensor": "tensor-parallel size",
        "--pipeline": "pipeline-parallel size",
        "--virtual-pipeline": "model chunks of each pipeline rank",
    }
    for option, text in texts.items():
        added.add_argument(option, type=whole_number(1, 2**14), default=1, metavar="N", help=f"{text} of the layout")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status. Raises InputError."""
    return call_function(parse(arguments), interrupted="the same command goes on")
