"""The study of examples/exploration_ceiling: its problems, its figures, and what of it counts as finished."""

import json
import math
import random
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from examples.exploration_ceiling import report, study
from examples.exploration_ceiling.problems import (
    Product,
    careless_answer,
    carries,
    make_splits,
    student_attempts,
    write_problems,
)
from examples.exploration_ceiling.records import (
    BASE,
    BASE_AGAIN,
    Record,
    Table,
    counts_by_kind,
    estimate,
    expected_pass_at,
    is_finished,
    read_records,
    score,
    thinned_curves,
    write_record,
)
from megatron_rapo.config.file import load_config

# Problems


def test_splits_are_disjoint_and_complete() -> None:
    splits = make_splits(num_judged=300, num_rl_train=2000)
    easy = [splits.taught["easy"], splits.rl_train, splits.dev["easy"], splits.test["easy"]]
    hard = [splits.taught["hard"], splits.dev["hard"], splits.test["hard"]]
    assert [len(part) for part in easy] == [4600, 2000, 300, 300]
    assert [len(part) for part in hard] == [71_400, 300, 300]
    for parts, num_digits, total in ((easy, 3, 7200), (hard, 4, 72_000)):
        everything = [product for part in parts for product in part]
        assert len(set(everything)) == len(everything) == total
        assert {len(str(product.multiplicand)) for product in everything} == {num_digits}


def test_the_split_has_no_room_for_everything() -> None:
    with pytest.raises(ValueError, match="7200 easy problems in all"):
        make_splits(num_judged=300, num_rl_train=6600)


@pytest.mark.parametrize(
    ("product", "count", "right", "all_forgotten"),
    [
        (Product(123, 4), 1, "492", "482"),  # 4*3 = 12 carries 1; 4*2 + 1 carries nothing
        (Product(111, 2), 0, "222", "222"),
        (Product(789, 6), 2, "4734", "4284"),  # 54: 4, carry 5 forgotten; 48: 8, carry 4 forgotten; 42
        (Product(9999, 9), 3, "89991", "81111"),
        (Product(500, 4), 0, "2000", "2000"),  # what the first column gives is written, not carried
    ],
)
def test_careless_answers_by_hand(product: Product, count: int, right: str, all_forgotten: str) -> None:
    rng = random.Random(0)
    assert carries(product) == count
    assert careless_answer(product, forgets=0.0, rng=rng) == right == product.answer
    assert careless_answer(product, forgets=1.0, rng=rng) == all_forgotten


def test_each_carry_is_forgotten_by_itself() -> None:
    rng = random.Random(0)
    answers = [careless_answer(Product(789, 6), forgets=0.7, rng=rng) for _ in range(4000)]
    # 789*6 = 4734. The first carry forgotten: 4, 8 and 4 carried, 46. The second one: 4, 3, 42. Both: 4284.
    assert set(answers) == {"4734", "4684", "4234", "4284"}
    assert answers.count("4734") / 4000 == pytest.approx(0.09, abs=0.015)
    assert answers.count("4284") / 4000 == pytest.approx(0.49, abs=0.03)


def test_attempts_follow_shares_and_seed() -> None:
    taught = make_splits().taught

    def attempts(seed: int) -> list[tuple[Product, str]]:
        shares = {"tiny": 0.2, "easy": 0.7, "hard": 0.1}
        return list(student_attempts(taught, shares=shares, forgets=0.5, num_attempts=3000, seed=seed))

    assert attempts(0) == attempts(0) != attempts(1)
    lengths = [len(str(product.multiplicand)) for product, _ in attempts(0)]
    assert [lengths.count(n) / 3000 for n in (2, 3, 4)] == pytest.approx([0.2, 0.7, 0.1], abs=0.03)
    assert all(text.startswith(r"\boxed{") and text.endswith("}") for _, text in attempts(0))


def test_written_problems_are_told_apart_by_their_ids(tmp_path) -> None:
    write_problems(tmp_path / "x.jsonl", {"easy": [Product(123, 4)], "hard": [Product(9999, 9)]})
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert rows == [
        {"id": "easy-0", "problem": "123*4", "answer": "492"},
        {"id": "hard-0", "problem": "9999*9", "answer": "89991"},
    ]


def test_every_method_has_a_configuration_that_differs_in_its_algorithm_only() -> None:
    configs = {method: load_config(study.HERE / "methods" / f"{method}.toml") for method in study.METHODS}
    slow = configs.pop("none_slow").model_dump()
    assert slow["optimizer"].pop("lr") == configs["none"].optimizer.lr / 2
    assert slow == {**configs["none"].model_dump(), "optimizer": slow["optimizer"]}
    common = [config.model_dump(exclude={"algorithm"}) for config in configs.values()]
    assert all(each == common[0] for each in common)
    assert [c.algorithm.divergence for c in configs.values()] == [
        "none",
        "reverse_kl",
        "forward_kl_k3",
        "forward_kl_exact",
        "rapo_paper",
        "forward_kl_exact",
        "forward_kl_exact",
    ]
    phi_min = {method: c.algorithm.phi_min for method, c in configs.items() if c.algorithm.phi_min < 1}
    assert phi_min == {"rapo_paper": 0.9, "rapo_exact": 0.9, "rapo_exact_half": 0.5}


# Records and figures


def record(seed: int, method: str, easy: list[int], hard: list[int], samples: int = 4) -> Record:
    return Record(seed=seed, method=method, samples=samples, correct={"easy": easy, "hard": hard})


def test_counts_by_kind() -> None:
    problems = [{"id": "easy-0", "correct": 3}, {"id": "easy-1", "correct": 0}, {"id": "hard-0", "correct": 1}]
    assert counts_by_kind({"problems": problems}) == {"easy": [3, 0], "hard": [1]}
    with pytest.raises(AssertionError, match="easy-1 at place 0"):
        counts_by_kind({"problems": problems[1:]})


def test_thinned_curves_are_means_of_windows() -> None:
    rows = [{"step": s, "reward/mean": s / 10, "policy/entropy": 1.0, "policy/kl": 0.0} for s in range(1, 6)]
    assert thinned_curves(rows, every=2) == {
        "step": [2, 4, 5],
        "reward": [0.15, 0.35, 0.5],
        "entropy": [1.0, 1.0, 1.0],
        "kl": [0.0, 0.0, 0.0],
    }


def test_records_survive_and_half_written_ones_do_not_count(tmp_path) -> None:
    kept = record(3, "none", [1, 2], [0, 4])
    write_record(tmp_path, kept)
    (tmp_path / "seed4-none.partial").write_text('{"seed": 4')
    assert is_finished(tmp_path, 3, "none") and not is_finished(tmp_path, 4, "none")
    assert read_records(tmp_path) == [kept]


def test_table_takes_complete_seeds_only() -> None:
    records = [
        record(0, BASE, [0, 1], [0, 2]),
        record(0, "none", [4, 0], [0, 0]),
        record(1, BASE, [0, 4], [1, 0]),
    ]
    table = Table.of(records, [BASE, "none"])
    assert table.seeds == (0,)
    np.testing.assert_array_equal(table.counts_MSP("all"), [[[0, 1, 0, 2]], [[4, 0, 0, 0]]])
    # Of 4 samples, 2 right: pass@2 is 1 - C(2, 2) / C(4, 2) = 5/6; 1 right: 1 - C(3, 2) / C(4, 2) = 1/2.
    np.testing.assert_allclose(
        table.pass_at_MSPK("all", [1, 2])[0, 0], [[0, 0], [1 / 4, 1 / 2], [0, 0], [1 / 2, 5 / 6]]
    )
    with pytest.raises(ValueError, match="no seed has all of base, rapo_exact"):
        Table.of(records, [BASE, "rapo_exact"])


def test_records_of_different_studies_are_refused() -> None:
    records = [replace(record(seed, BASE, [0], [0]), settings={"alpha": 0.1 * seed}) for seed in (0, 1)]
    with pytest.raises(ValueError, match="settings of base differ between seeds"):
        Table.of(records, [BASE])
    with pytest.raises(ValueError, match=r"differ between records: \[4, 16\]"):
        Table.of([record(0, BASE, [0], [0]), record(0, "none", [0], [0], samples=16)], [BASE, "none"])


def test_estimate_resamples_seeds_and_problems() -> None:
    constant = estimate(np.full((5, 10), 0.25), scale=4)
    assert (constant.mean, constant.low, constant.high) == pytest.approx((1.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    by_problem = estimate(np.tile(rng.random(400) < 0.5, (5, 1)).astype(float))
    # Seeds that agree add nothing: the interval of 400 fair coins, +-1.96 * 0.5 / 20.
    assert by_problem.high - by_problem.low == pytest.approx(2 * 0.049, rel=0.1)
    by_seed = estimate(np.repeat([[0.0], [1.0]], 400, axis=1))
    assert (by_seed.low, by_seed.high) == pytest.approx(
        (0.0, 1.0)
    )  # two seeds that differ, drawn alike a quarter of the time each


def test_expected_pass_at_by_hand() -> None:
    logprobs = [math.log(0.5), -math.inf]
    assert expected_pass_at(logprobs, 1) == pytest.approx(0.25)
    assert expected_pass_at(logprobs, 2) == pytest.approx((0.75 + 0) / 2)
    assert score({"easy": [0.0], "hard": [-math.inf]}) == pytest.approx(0.5)


def test_discoveries_by_hand() -> None:
    table = Table.of(
        [
            record(0, BASE, [0, 1, 2], [0, 0, 1]),
            record(0, BASE_AGAIN, [0, 1, 2], [1, 0, 1]),
            record(0, "none", [3, 0, 0], [0, 2, 0]),
        ],
        [BASE, BASE_AGAIN, "none"],
    )
    again, none = report.discovery_table(table).splitlines()[2:]
    assert [cell.split()[0] for cell in again.split("|")[2:-1]] == ["0.0", "0.0", "1.0", "0.0"]
    assert [cell.split()[0] for cell in none.split("|")[2:-1]] == ["1.0", "2.0", "1.0", "1.0"]


def test_powers_of_two() -> None:
    assert report.powers_of_two(256) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert report.powers_of_two(20) == [1, 2, 4, 8, 16]


# Resuming and stopping


class PretendedStudy(study.Study):
    """Does what it is told by writing records at once; `fails` names one that does not get there."""

    done: list[tuple[int, str]] = []  # noqa: RUF012
    fails: str = ""

    def make_base(self, seed: int) -> None:
        self.done.append((seed, "make_base"))

    def judge_base(self, seed: int, name: str) -> None:
        self.train_and_judge(seed, name)

    def train_and_judge(self, seed: int, method: str) -> None:
        self.done.append((seed, method))
        if method == self.fails:
            raise RuntimeError("ended with status 1")
        write_record(self.results, record(seed, method, [1], [0]))


@pytest.fixture
def pretended(tmp_path):
    PretendedStudy.done, PretendedStudy.fails = [], ""
    return PretendedStudy(
        folder=tmp_path,
        results=tmp_path / "results",
        scale=study.QUICK,
        split="test",
        overrides=(),
        children=study.Children(),
    )


def test_what_failed_is_done_again_and_what_is_finished_is_not(pretended) -> None:
    PretendedStudy.fails = "none"
    assert study.run(pretended, [0, 1], ["none", "k3"], jobs=2) == [
        "seed 0, none: ended with status 1",
        "seed 1, none: ended with status 1",
    ]
    PretendedStudy.done.clear()
    PretendedStudy.fails = ""
    assert study.run(pretended, [0, 1], ["none", "k3"], jobs=2) == []
    assert [entry for entry in sorted(pretended.done) if entry[1] != "make_base"] == [(0, "none"), (1, "none")]
    PretendedStudy.done.clear()
    assert study.run(pretended, [0, 1], ["none", "k3"], jobs=2) == []
    assert pretended.done == []


def test_a_base_model_is_made_before_it_is_used(pretended) -> None:
    study.run(pretended, [0, 1, 2], ["none"], jobs=1)
    order = pretended.done
    assert all(order.index((seed, "make_base")) < order.index((seed, BASE)) for seed in (0, 1, 2))
    assert len(order) == 3 * 4


def test_children_say_why_they_failed(tmp_path) -> None:
    with pytest.raises(RuntimeError, match=r"status 3; the end of .*\nout of luck"):
        study.Children().run([sys.executable, "-c", "print('out of luck'); raise SystemExit(3)"], tmp_path / "log")


def test_leaving_by_an_exception_ends_children(tmp_path) -> None:
    children = study.Children()
    with pytest.raises(KeyboardInterrupt), study.workers(children, jobs=1) as pool:
        future = pool.submit(children.run, [sys.executable, "-c", "import time; time.sleep(10000)"], tmp_path / "log")
        while not children._running:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert isinstance(future.exception(), study.Stopped)  # and this has not waited for hours


def test_stopping_ends_children(tmp_path) -> None:
    children = study.Children()
    ended: list[type[BaseException]] = []

    def sleep() -> None:
        try:
            children.run([sys.executable, "-c", "import time; time.sleep(10000)"], tmp_path / "log")
        except study.Stopped as stopped:
            ended.append(type(stopped))

    thread = threading.Thread(target=sleep)
    thread.start()
    while not children._running:
        time.sleep(0.01)
    children.stop()
    thread.join(5)
    assert ended == [study.Stopped]
    with pytest.raises(study.Stopped):
        children.run([sys.executable, "-c", ""], tmp_path / "log")
