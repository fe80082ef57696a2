"""Describe the data sets that are known by name: where their files are, and what their columns mean.

A file comes from the Hugging Face hub, or from a folder with a downloaded copy. The licences are those stated on the
hub's pages and in the authors' repositories. docs/data.md has more on each data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megatron_rapo.data.rows import DataError

Fields = Mapping[str, tuple[str, ...]]
"""Columns for each field of a record (records.py); the first existing one counts. "a.b" is the field b of struct a."""

USUAL_FIELDS: Fields = {
    "problem": ("problem", "question"),
    "answer": ("answer",),
    "id": ("id", "unique_id"),
    "subject": ("subject",),
    "level": ("level",),
    "solution": ("solution",),
}

ORIGINALS = Path("data/original")
"""Folder that messages suggest for downloaded files, with a subfolder for each data set."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set with a name."""

    title: str
    licence: str
    rows: int  # a file with another number of rows is a different one, or incomplete
    repository: str  # data set on the hub
    file: str  # path in the repository
    other_files: tuple[str, ...] = ()  # files with the same rows that the authors publish elsewhere
    fields: Fields = field(default_factory=lambda: USUAL_FIELDS)
    answer_after: str | None = None  # the text after its last occurrence is the answer; the text before, the solution

    def url(self, revision: str) -> str:
        """Return the URL of the file on the hub."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repository, self.file, repo_type="dataset", revision=revision)


def _gsm8k(split: str, rows: int) -> Source:
    return Source(
        title=f"GSM8K, {split} (Cobbe et al. 2021)",
        licence="MIT",
        rows=rows,
        repository="openai/gsm8k",
        file=f"main/{split}-00000-of-00001.parquet",
        other_files=(f"{split}.jsonl",),
        fields={"problem": ("question",), "answer": ("answer",)},
        answer_after="####",
    )


SOURCES: Mapping[str, Source] = {
    # The hard part of SimpleRL-Zoo's data. `other_files` is SimpleRL-Zero's own file, with the same number of rows.
    "simplerl-zero-8k": Source(
        title="MATH levels 3 to 5 as in SimpleRL-Zero and SimpleRL-Zoo (Hendrycks et al. 2021; Zeng et al. 2025)",
        licence="MIT (MATH); Apache-2.0 (SimpleRL-Zoo-Data)",
        rows=8523,
        repository="hkust-nlp/SimpleRL-Zoo-Data",
        file="simplelr_qwen_level3to5/train.parquet",
        other_files=("math_level3to5_data_processed_with_qwen_prompt.json",),
        fields={
            "problem": ("question", "extra_info.question"),
            "answer": ("gt_answer", "reward_model.ground_truth"),
            "subject": ("subject",),
            "level": ("level",),
        },
    ),
    "math500": Source(
        title="MATH-500 (Hendrycks et al. 2021; Lightman et al. 2023)",
        licence="MIT",
        rows=500,
        repository="HuggingFaceH4/MATH-500",
        file="test.jsonl",
    ),
    "aime24": Source(
        title="AIME 2024 I and II",
        licence="none stated (hub); the problems are the Mathematical Association of America's",
        rows=30,
        repository="HuggingFaceH4/aime_2024",
        file="data/train-00000-of-00001.parquet",
        other_files=("test.jsonl",),  # of simpleRL-reason's evaluation
    ),
    "aime25": Source(
        title="AIME 2025 I and II",
        licence="none stated (hub); the problems are the Mathematical Association of America's",
        rows=30,
        repository="math-ai/aime25",
        file="test.jsonl",
    ),
    "gsm8k": _gsm8k("test", 1319),
    "gsm8k-train": _gsm8k("train", 7473),
    "olympiadbench": Source(
        title="OlympiadBench, open-ended competition mathematics in English without pictures (He et al. 2024)",
        licence="Apache-2.0",
        rows=674,
        repository="Hothan/OlympiadBench",
        file="OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet",
        fields={
            "problem": ("question",),
            "answer": ("final_answer",),
            "id": ("id",),
            "subject": ("subfield",),
            "solution": ("solution",),
        },
    ),
}
"""The known data sets, by their name for megatron-rapo prepare-data."""


def find_original(name: str, place: Path, revision: str) -> Path:
    """Return the original file of the data set `name`: `place` itself, or a file in that folder. Raises DataError."""
    source = SOURCES[name]
    if place.is_file():
        return place
    paths = (source.file, Path(source.file).name, *source.other_files)
    found = next((place / path for path in dict.fromkeys(paths) if (place / path).is_file()), None)
    if found is None:
        raise DataError(
            f"--from {place}: holds none of {', '.join(dict.fromkeys(paths))}; download {source.url(revision)} into it."
        )
    return found


def download_original(name: str, revision: str) -> tuple[Path, str]:
    """Download the original file of data set `name`, if it is not in the hub's cache. Return its path and commit.

    Raises DataError.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RevisionNotFoundError

    source = SOURCES[name]
    try:
        path = Path(hf_hub_download(source.repository, source.file, repo_type="dataset", revision=revision))
    except RevisionNotFoundError:
        raise DataError(
            f"--revision {revision}: {source.repository} has no such branch, tag or commit; leave it out."
        ) from None
    except OSError as error:  # the library's errors for a missing network, hub or file are all OSErrors
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{name}: {source.url(revision)} cannot be downloaded ({type(error).__name__}: {reason}); download it on a "
            f"machine with network access, put it into {ORIGINALS / name} and pass --from {ORIGINALS / name}."
        ) from None
    return path, path.parents[len(Path(source.file).parts) - 1].name  # the cache has .../snapshots/COMMIT/FILE
