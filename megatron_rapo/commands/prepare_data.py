"""Prepare a data set of mathematics problems for training and evaluation, or show one of its prompts.

    megatron-rapo prepare-data prepare SOURCE OUTPUT.parquet
    megatron-rapo prepare-data prepare SOURCE OUTPUT.parquet --against FILE
    megatron-rapo prepare-data show FILE --template NAME --model FOLDER

SOURCE is the name of a data set, or a JSONL, JSON, Parquet or CSV file with a problem and an answer in each row. Its
columns are problem (or question), answer, id, subject, level and solution. --field gives other column names.

A named data set comes from the Hugging Face hub. With --from it comes from a folder that has its original file.

OUTPUT has the same columns for every source. OUTPUT.manifest.json says where the data is from and which rows were left
out: rows without a problem or an answer, and duplicates. --against reports problems that other files, such as
evaluation sets, have too.

The exit status is 0 when OUTPUT is complete. It is 2 when nothing was written, and one line says why. docs/data.md has
more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_rapo.commands.arguments import Commands, call_function, command_parser, number, sub_command
from megatron_rapo.data import (
    TEMPLATES,
    DataError,
    build_prompts,
    find_stops,
    load_problems,
    load_tokenizer,
    render,
    template_of,
    template_stops,
)
from megatron_rapo.data.preparation import CONTAMINATED, OVERLAP, UNPARSABLE, Request, prepare
from megatron_rapo.data.prepared_file import manifest_path
from megatron_rapo.data.sources import SOURCES
from megatron_rapo.errors import InputError, printable

SHOWN = 5  # rows of each list that are printed; the manifest has all
START, END_OF_LINE, END = "▶", "⏎", "◀"  # a prompt's boundaries, and each newline in it
NO_LIMIT = 2**31


def prepare_file(options: argparse.Namespace) -> int:
    manifest = prepare(
        Request(
            source=options.source,
            output=options.output,
            original=options.original,
            revision=options.revision,
            fields=dict(options.field),
            answer_after=options.answer_after,
            name=options.name,
            licence=options.licence,
            against=tuple(options.against),
            overlap=options.overlap,
            drop=tuple(options.drop),
            overwrite=options.overwrite,
        )
    )
    report(options.output, manifest)
    return 0


def report(output: Path, manifest: dict[str, Any]) -> None:
    rows = manifest["rows"]
    print(f"{output}: {rows['written']:,} problems of {rows['read']:,} rows; details in {manifest_path(output)}")
    for reason, dropped in manifest["dropped"].items():
        if dropped:
            show_rows(
                f"left out, {reason}", [f"{row['id']} of {row['of']}" if "of" in row else row["id"] for row in dropped]
            )
    unparsable = manifest["unparsable"]
    show_rows("references that the verifier cannot parse", [f"{row['id']} {row['answer']!r:.80}" for row in unparsable])
    for each in manifest["contamination"]["against"]:
        found = [f"{pair['id']} is {pair['with']} ({pair['overlap']:.2f})" for pair in each["contaminated"]]
        show_rows(f"pairs of the same problem with {each['file']} ({each['problems']:,})", found)
        if below := each["below"]:
            print(f"  and {len(below):,} with less in common, {below[0]['overlap']:.2f} at most")


def show_rows(what: str, lines: Sequence[str]) -> None:
    """Print the number of lines and the first ones."""
    print(f"{what}: {len(lines):,}")
    for line in lines[:SHOWN]:
        print(f"  {printable(line)}")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN:,} more")


def show(options: argparse.Namespace) -> int:
    template = template_of(options.template, instruction=options.instruction, system=options.system)
    if template.is_jinja and not options.model:
        raise InputError(f"--template {template.name}: needs a tokenizer; pass --model FOLDER.")
    problems = load_problems(options.file)
    found = next((each for each in problems if options.id in (None, each.id)), None)
    if found is None:
        raise DataError(f"--id {options.id}: not in {options.file}, whose first is {problems[0].id}.")
    print(f"{printable(found.id)} by {options.template}, reference answer {found.answer!r}:")
    if options.model:
        tokenizer = load_tokenizer(options.model)
        prompt = build_prompts([found], tokenizer, template, NO_LIMIT).prompts[0]
        print(bounded(prompt.text))
        tokens = tokenizer.convert_ids_to_tokens(list(prompt.token_ids))
        print(f"{len(tokens):,} tokens: {' '.join(map(repr, tokens[:4]))} ... {' '.join(map(repr, tokens[-4:]))}")
        strings = template_stops(template, tokenizer)
        stops = find_stops(options.model, tokenizer, vocab_size=len(tokenizer), strings=strings)
        print(f"a completion stops at {stops.shown}")
    else:
        print(bounded(render(template, [found.text], None)[0]))
        print("a completion stops at the model's end-of-sequence tokens" + "".join(f", {s!r}" for s in template.stop))
    return 0


def bounded(text: str) -> str:
    """Return a text with its boundaries, the ends of its lines and its control characters to be seen."""
    return START + printable(text).replace("\n", END_OF_LINE + "\n") + END


def column(text: str) -> tuple[str, str]:
    name, equals, its_column = text.partition("=")
    if not (name and equals and its_column):
        raise argparse.ArgumentTypeError(f"{text}: not of the form FIELD=COLUMN; write for example problem=question")
    return name, its_column


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `prepare-data`."""
    parser = command_parser("prepare-data", __doc__ or "")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_prepare(commands)
    _add_show(commands)
    return parser.parse_args(arguments)


def _add_prepare(commands: Commands) -> None:
    make = sub_command(commands, "prepare", prepare_file, "make a Parquet file for training of a data set")
    make.add_argument("source", metavar="SOURCE", help=f"{', '.join(SOURCES)}, or a file")
    make.add_argument("output", type=Path, metavar="OUTPUT", help="Parquet file to write")
    origin = make.add_argument_group("where a named data set comes from")
    origin.add_argument(
        "--from", dest="original", type=Path, metavar="FOLDER", help="folder with the original file, or that file"
    )
    origin.add_argument("--revision", default="main", metavar="R", help="branch, tag or commit on the hub")
    reading = make.add_argument_group("how a file is read")
    reading.add_argument(
        "--field",
        type=column,
        action="append",
        default=[],
        metavar="FIELD=COLUMN",
        help="read FIELD from COLUMN; a.b is field b of struct a",
    )
    reading.add_argument("--answer-after", metavar="MARK", help="the answer follows the last MARK in its column")
    reading.add_argument("--name", help="name of the data set, with which ids start; the file's by default")
    reading.add_argument("--licence", help="licence to note in the manifest")
    checks = make.add_argument_group("what is checked")
    checks.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="files whose problems the output should not have",
    )
    checks.add_argument(
        "--overlap",
        type=number(0, 1),
        default=OVERLAP,
        metavar="X",
        help="share of a problem's n-grams that counts as the same (%(default)s)",
    )
    checks.add_argument(
        "--drop",
        nargs="+",
        default=[],
        choices=(CONTAMINATED, UNPARSABLE),
        help="leave these rows out instead of only reporting them",
    )
    make.add_argument("--overwrite", action="store_true", help="replace OUTPUT and its manifest")


def _add_show(commands: Commands) -> None:
    look = sub_command(commands, "show", show, "show the prompt of one problem exactly as the model gets it")
    look.add_argument("file", type=Path, metavar="FILE", help="JSONL or Parquet, as data.train")
    look.add_argument(
        "--template", default="qwen-boxed", metavar="NAME", help=f"{', '.join(TEMPLATES)} or a file (%(default)s)"
    )
    look.add_argument("--instruction", metavar="TEXT", help="as data.instruction")
    look.add_argument("--system", metavar="TEXT", help="as data.system")
    look.add_argument("--model", type=Path, metavar="FOLDER", help="model whose tokens to show too")
    look.add_argument("--id", help="id of the problem; the first one by default")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status. Raises InputError."""
    return call_function(parse(arguments), interrupted="nothing was written")
