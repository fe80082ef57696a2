r"""Run the study: for each seed a base model, and from it one run of each method, all judged on the same problems.

    python -m examples.exploration_ceiling.study --seeds 0 --jobs 2           one seed of all methods
    python -m examples.exploration_ceiling.study --seeds 0 1 2 3 4 --jobs 2   the recorded study
    python -m examples.exploration_ceiling.study --quick                      all of it in small, in a few minutes

from the repository's root. Finished parts are skipped, so the same command continues a stopped study.
Every training run and evaluation is a process of its own: `python -m megatron_rapo train` and `evaluate`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from examples.exploration_ceiling.records import (
    BASE,
    BASE_AGAIN,
    Record,
    counts_by_kind,
    is_finished,
    thinned_curves,
    write_record,
)
from megatron_rapo.runtime.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
METHODS = ("none", "none_slow", "reverse_kl", "k3", "forward_kl", "rapo_paper", "rapo_exact", "rapo_exact_half")
QUICK_METHODS = ("none", "rapo_exact")
ANOTHER_SEED = 1_000_000
"""Added to the seed of the base model's second evaluation: other samples of the same problems."""
SECONDS_TO_END = 10.0
"""For a child to end after SIGTERM; then it is killed."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of the study."""

    attempts: int | None = None  # that the base model is taught; None: make_base.py's own
    judged: int | None = None  # problems of each kind
    training: tuple[str, ...] = ()  # settings of every training run, as --set takes them
    judging: tuple[str, ...] = ()  # and of every evaluation


FULL = Scale()
QUICK = Scale(
    attempts=38_400,
    judged=20,
    training=("run.steps=4",),
    judging=("evaluation.samples_per_problem=16", "evaluation.k=[1,4,16]"),
)


class Stopped(Exception):
    """The study was told to end."""


@dataclass
class Children:
    """The processes that are running; all of them end with the study."""

    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def run(self, command: Sequence[str], log: Path, *, tools: bool = False) -> float:
        """Run a command to its end, its output to `log`, and return the seconds that it took.

        Raises:
            Stopped: if the study is told to end meanwhile.
            RuntimeError: if the command fails.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with log.open("wb") as output:
            with self._lock:
                if self._stopped:
                    raise Stopped
                child = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment(tools=tools),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches the study alone, which ends its children in order
                )
                self._running.add(child)
            try:
                status = child.wait()
            except BaseException:  # Ctrl-C, where the main thread waits
                self.stop()
                raise
        with self._lock:
            self._running.discard(child)
            if self._stopped:
                raise Stopped
        if status:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{' '.join(command)}\nended with status {status}; the end of {log}:\n{tail}")
        return time.monotonic() - started

    def stop(self) -> None:
        """End all children and their own children, and start no more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for child in running:
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_END
        for child in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(child, signal.SIGKILL)


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def environment(*, tools: bool) -> dict[str, str]:
    """Return the variables of examples/quickstart.sh: CPU, one thread, engine in the trainer, no downloads."""
    path = [str(ROOT), *([str(ROOT / "tools")] if tools else [])]
    return {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_COLOR": "1",
    }


@dataclass(frozen=True, kw_only=True)
class Study:
    """The folders of a study, and a method for each of its parts."""

    folder: Path
    results: Path
    scale: Scale
    split: str  # the problems that are judged: test, or dev to choose settings
    overrides: tuple[str, ...]  # on top of the scale's, of every run
    children: Children

    def seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed{seed}"

    def make_base(self, seed: int) -> None:
        """Make the folder of a seed atomically."""
        folder = self.seed_folder(seed)
        if (folder / "base").exists():
            return
        partial = folder.with_name(f"{folder.name}.partial")
        command = [sys.executable, "-m", "examples.exploration_ceiling.make_base"]
        command += ["--output", str(partial), "--seed", str(seed)]
        if self.scale.attempts:
            command += ["--attempts", str(self.scale.attempts)]
        if self.scale.judged:
            command += ["--judged", str(self.scale.judged)]
        seconds = self.children.run(command, self.folder / f"seed{seed}-make_base.log", tools=True)
        partial.rename(folder)
        say(f"seed {seed}: base model made in {seconds:.0f} s")

    def judge_base(self, seed: int, name: str) -> None:
        """Judge the base model, and write its record."""
        sampling_seed = seed + (ANOTHER_SEED if name == BASE_AGAIN else 0)
        self._judge(seed, name, self.seed_folder(seed) / "base", sampling_seed)

    def train(self, seed: int, method: str, run: Path) -> float:
        """Train from the beginning, and return the seconds. Deletes an unfinished attempt in the folder `run`."""
        command = [
            "train",
            str(HERE / "methods" / f"{method}.toml"),
            "--overwrite",
            *self._settings(seed, self.scale.training, self.overrides),
        ]
        command += ["--set", f"run.folder={run}", "--set", f"run.seed={seed}"]
        seconds = self._megatron_rapo(command, run.with_name(f"{run.name}.train.log"))
        shutil.rmtree(RunFolder(run).checkpoints)  # the model is in hf/
        return round(seconds, 1)

    def train_and_judge(self, seed: int, method: str) -> None:
        """Train and judge one method of one seed, and write its record."""
        run = self.seed_folder(seed) / method
        training = self.train(seed, method, run)
        say(f"seed {seed}: {method} trained in {training:.0f} s")
        curves, settings = thinned_curves(read_metrics(run)), settings_of(run)
        self._judge(seed, method, RunFolder(run).hf, seed, training, curves=curves, settings=settings)

    def measure(self, seed: int, model: Path, output: Path) -> dict[str, dict]:
        """Return the results of exact.py for a model on the judged problems."""
        command = [sys.executable, "-m", "examples.exploration_ceiling.exact", str(model)]
        command += [f"{self.seed_folder(seed) / self.split}.jsonl", "--output", str(output)]
        command += ["--base", str(self.seed_folder(seed) / "base")]
        self.children.run(command, output.with_suffix(".log"))
        measured: dict[str, dict] = json.loads(output.read_text())
        return measured

    def _judge(
        self, seed: int, name: str, model: Path, sampling_seed: int, training: float = 0.0, **training_record: Any
    ) -> None:
        """Sample and verify as `evaluate` does, and write everything about the model to its record."""
        output = self.seed_folder(seed) / f"{name}.{self.split}.json"
        samples = output.with_suffix(".jsonl")
        samples.unlink(missing_ok=True)
        command = ["evaluate", str(HERE / "judging.toml"), "--output", str(samples)]
        command += self._settings(seed, self.scale.judging)
        command += ["--set", f"model.path={model}", "--set", f"run.seed={sampling_seed}"]
        command += ["--set", f"evaluation.data={self.seed_folder(seed) / self.split}.jsonl"]
        seconds = self._megatron_rapo(command, output.with_suffix(".log"))
        evaluation = json.loads(output.read_text())
        correct = counts_by_kind(evaluation)
        record = Record(
            seed=seed,
            method=name,
            samples=evaluation["samples_per_problem"],
            correct=correct,
            exact=self.measure(seed, model, output.with_suffix(".exact.json")),
            seconds={"train": training, "evaluate": round(seconds, 1)},
            **training_record,
        )
        write_record(self.results, record)
        solved = ", ".join(f"{sum(n > 0 for n in counts)} of {len(counts)} {kind}" for kind, counts in correct.items())
        say(f"seed {seed}: {name} judged in {seconds:.0f} s: solves {solved}")

    def _settings(self, seed: int, *more: Sequence[str]) -> list[str]:
        folder = self.seed_folder(seed)
        own = (f"model.path={folder / 'base'}", f"data.train={folder / 'train.jsonl'}")
        return [part for setting in chain(own, *more) for part in ("--set", setting)]

    def _megatron_rapo(self, arguments: Sequence[str], log: Path) -> float:
        return self.children.run([sys.executable, "-m", "megatron_rapo", *arguments], log)


def read_metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in RunFolder(run).metrics.read_text().splitlines()]


def settings_of(run: Path) -> dict[str, object]:
    """Return a method's settings, as its run recorded them."""
    config = json.loads(RunFolder(run).settings.read_text())
    return {**config["algorithm"], "lr": config["optimizer"]["lr"], "steps": config["run"]["steps"]}


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)


@contextmanager
def workers(children: Children, jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Start threads that wait for children. After an exception in the block (Ctrl-C), end all children first."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
            raise


def run(study: Study, seeds: Sequence[int], methods: Sequence[str], jobs: int) -> list[str]:
    """Do everything that is not finished yet, `jobs` parts at a time. Return descriptions of the failures."""
    todo = {
        seed: [name for name in (BASE, BASE_AGAIN, *methods) if not is_finished(study.results, seed, name)]
        for seed in seeds
    }
    skipped = len(seeds) * (2 + len(methods)) - sum(map(len, todo.values()))
    say(f"{sum(map(len, todo.values()))} models to train and judge, {skipped} finished before")
    seeds = [seed for seed in seeds if todo[seed]]
    futures: dict[str, Future[None]] = {}
    bases: dict[int, Future[None]] = {}

    def one(seed: int, name: str) -> None:
        bases[seed].result()
        if name in (BASE, BASE_AGAIN):
            study.judge_base(seed, name)
        else:
            study.train_and_judge(seed, name)

    with workers(study.children, jobs) as pool:
        # In this order nothing waits for a base model that has not begun, and the next one is made in time.
        for place, seed in enumerate(seeds):
            for near in seeds[place : place + 2]:
                if near not in bases:
                    bases[near] = pool.submit(study.make_base, near)
            for name in todo[seed]:
                futures[f"seed {seed}, {name}"] = pool.submit(one, seed, name)
        for future in futures.values():
            future.exception()
    return [f"{what}: {error}" for what, future in futures.items() if (error := future.exception())]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the study; what is finished is skipped.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each with its own base model")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="default: all; two if --quick")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one core each")
    parser.add_argument("--quick", action="store_true", help="a base that knows little, few steps, few problems")
    parser.add_argument("--split", default="test", choices=("test", "dev"), help="the problems that are judged")
    parser.add_argument("--folder", type=Path, help="working folder; default runs/exploration_ceiling[_quick]")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="change a setting of every run; give a --folder of its own with it",
    )
    arguments = parser.parse_args()
    default = ROOT / "runs" / ("exploration_ceiling_quick" if arguments.quick else "exploration_ceiling")
    folder: Path = (arguments.folder or default).resolve()
    study = Study(
        folder=folder,
        results=folder / f"results_{arguments.split}",
        scale=QUICK if arguments.quick else FULL,
        split=arguments.split,
        overrides=tuple(arguments.set),
        children=Children(),
    )
    methods = arguments.methods or (QUICK_METHODS if arguments.quick else METHODS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        failed = run(study, arguments.seeds, methods, arguments.jobs)
    except KeyboardInterrupt:
        say("stopped; the same command goes on with what is not finished")
        return 130
    for what in failed:
        print(f"failed: {what}", file=sys.stderr)
    say(f"results are in {study.results}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
