import os
import signal
import subprocess
import sys
import threading
import time
from itertools import chain, repeat
from pathlib import Path

import pytest

import megatron_rapo
from megatron_rapo.types import Outcome, Verdict
from megatron_rapo.verifier import VerifierPool
from megatron_rapo.verifier import worker_process as process
from tests.patience import HANG_S

RIGHT = (r"\boxed{x=1}", "1")  # for a worker: where texts or whole numbers are compared none is asked
HANG = r"\boxed{9^{9^{9^{9}}}}"  # SymPy evaluates the power in one C call, deaf to signal handlers
CORRECT = Verdict(outcome=Outcome.CORRECT, formatted=True)
WRONG = Verdict(outcome=Outcome.WRONG, formatted=True)
TIMEOUT = Verdict(outcome=Outcome.TIMEOUT, formatted=True)


def gone(pid):
    """Return whether the process has ended, or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition):
    end = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(2, 30.0) as pool:
        yield pool


def test_verdicts_come_in_order(pool):
    items = [(rf"\boxed{{x={n}}}", str(n if n % 3 else n + 1)) for n in range(1, 31)]
    assert pool.judge_all(items) == [CORRECT if n % 3 else WRONG for n in range(1, 31)]


def test_every_outcome_but_timeout(pool):
    items = [(r"\boxed{1/2}", "0.5"), (r"\boxed{2}", "3"), ("2", "2"), (r"\boxed{?}", "2"), (r"\boxed{½}", "½")]
    assert pool.judge_all(items) == [
        CORRECT,
        WRONG,
        Verdict(outcome=Outcome.NO_ANSWER, formatted=False),
        Verdict(outcome=Outcome.UNPARSABLE, formatted=True),
        CORRECT,
    ]


def test_verdicts_depend_neither_on_order_nor_on_what_was_judged_before(pool):
    contents = [r"\frac{14}{3}", r"\{2, 1\}", r"\sqrt{8}", "x^2 + 1", "?", "(1, 2)", r"\text{(C)}", "0.5", "y = 2x"]
    references = ["14/3", r"\{1, 2\}", "2x", "1 + x^2", "C"]
    items = [(rf"\boxed{{{content}}}", reference) for content in contents for reference in references]
    verdicts = pool.judge_all(items)
    assert verdicts.count(CORRECT) == 6
    assert pool.judge_all(items[::-1]) == verdicts[::-1]
    assert [pool.judge_all([item]) for item in items] == [[verdict] for verdict in verdicts]


def test_nothing_to_judge(pool):
    assert pool.judge_all([]) == []


def test_texts_larger_than_a_pipe_and_not_ascii(pool):
    assert pool.judge_all([("x" * 300_000 + r"\boxed{x=1}", "1")]) == [CORRECT]
    long = "½\ud800\n" * 100_000
    unparsable = Verdict(outcome=Outcome.UNPARSABLE, formatted=True)
    assert pool.judge_all([(rf"\boxed{{{long}}}", long), (rf"\boxed{{{long}}}", "1")]) == [unparsable] * 2


def test_a_hang_costs_one_deadline_and_no_other_verdict():
    with VerifierPool(2, 3.0) as pool:
        items = [RIGHT, (HANG, "2"), (r"\boxed{x=4}", "3"), (HANG, "2"), (r"\boxed{x=3}", "3")]
        assert pool.judge_all(items) == [CORRECT, TIMEOUT, WRONG, TIMEOUT, CORRECT]
        assert pool.judge_all([(r"\boxed{x=5}", "5")]) == [CORRECT]


def test_the_start_of_a_worker_counts_against_no_deadline(monkeypatch):
    monkeypatch.setattr(process, "_BOOTSTRAP", "import time; time.sleep(4.0)" + process._BOOTSTRAP)
    with VerifierPool(1, 3.0) as pool:
        items = [(r"\boxed{x=3}", "3"), (HANG, "3"), (r"\boxed{x=4}", "4")]
        assert pool.judge_all(items) == [CORRECT, TIMEOUT, CORRECT]


def test_a_worker_killed_while_idle_is_replaced():
    with VerifierPool(2, 30.0) as pool:
        assert pool.judge_all([RIGHT]) == [CORRECT]
        before = pool.pids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert pool.judge_all([(rf"\boxed{{x={n}}}", "1") for n in (1, 2, 3)]) == [CORRECT, WRONG, WRONG]
        assert not set(before) & set(pool.pids)


def kill_at_work(pool, times):
    """Kill the only worker `times` times, each time while it has an answer to judge."""

    def kill():
        for _ in range(times):
            worker = pool._workers.present[0]
            wait_until(lambda worker=worker: worker.job is not None)
            os.kill(worker.pid, signal.SIGKILL)
            wait_until(lambda worker=worker: pool._workers.present[0] is not worker)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_an_answer_whose_worker_was_killed_is_tried_once_more():
    with VerifierPool(1, 60.0) as pool:
        assert pool.judge_all([RIGHT]) == [CORRECT]
        os.kill(pool.pids[0], signal.SIGSTOP)  # so that it is still at work when it is killed
        thread = kill_at_work(pool, times=1)
        assert pool.judge_all([(r"\boxed{x=2}", "2"), (r"\boxed{x=5}", "2")]) == [CORRECT, WRONG]
        thread.join()


def test_an_answer_that_costs_two_workers_is_unparsable():
    with VerifierPool(1, 60.0) as pool:
        thread = kill_at_work(pool, times=2)
        assert pool.judge_all([(HANG, "2"), (r"\boxed{2}", "2")]) == [
            Verdict(outcome=Outcome.UNPARSABLE, formatted=True),
            CORRECT,
        ]
        thread.join()
        assert len(pool._cache) == 0  # another time it may do better


def test_memory_is_limited():
    with VerifierPool(1, 60.0, memory_bytes=2**29) as pool:
        pool.judge_all([RIGHT])
        limits = Path(f"/proc/{pool.pids[0]}/limits").read_text()
    assert next(line for line in limits.splitlines() if line.startswith("Max address space")).split()[3] == str(2**29)


def interrupted(*_):
    raise KeyboardInterrupt


def test_an_interrupted_call_leaves_no_stale_reply(monkeypatch):
    with VerifierPool(1, 3.0) as pool:
        assert pool.judge_all([RIGHT]) == [CORRECT]
        pid = pool.pids[0]
        with monkeypatch.context() as patch:
            patch.setattr("megatron_rapo.verifier.judging.wait_any", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.judge_all([(HANG, "1")])
        assert pool.pids[0] != pid
        assert pool.judge_all([(r"\boxed{x=2}", "1")]) == [WRONG]


def test_close_leaves_no_process():
    pool = VerifierPool(3, 30.0)
    pool.judge_all([RIGHT])
    pids = pool.pids
    pool.close()
    pool.close()
    assert len(pids) == 3 and all(gone(pid) for pid in pids)
    with pytest.raises(RuntimeError, match=r"^the verifier pool is closed; make a new one\.$"):
        pool.judge_all([(r"\boxed{1}", "1")])


def test_a_worker_that_cannot_start_is_reported(monkeypatch):
    monkeypatch.setattr(process, "_BOOTSTRAP", "raise SystemExit('no algebra here')")
    with VerifierPool(1, 30.0) as pool, pytest.raises(RuntimeError) as raised:
        pool.judge_all([RIGHT])
    assert str(raised.value) == (
        "3 verifier processes in a row died or hung while starting; fix what the last one wrote to stderr:\n"
        "no algebra here"
    )


@pytest.mark.parametrize(("workers", "timeout_s", "budget_s"), [(0, 5.0, 9.0), (1, 0.0, 9.0), (1, 5.0, 0.0)])
def test_sizes_are_checked(workers, timeout_s, budget_s):
    with pytest.raises(ValueError) as raised:
        VerifierPool(workers, timeout_s, budget_s=budget_s)
    assert str(raised.value) == (
        f"workers={workers}, timeout_s={timeout_s}, budget_s={budget_s}: nothing could be judged; raise them above 0."
    )


# --- the budget of a call ---


def test_a_batch_of_hangs_takes_no_longer_than_the_budget():
    """One after the other they would take 5 minutes. Answers without a worker and the next batch are still judged."""
    hangs = [(rf"\boxed{{{n}^{{9^{{9^{{9}}}}}}}}", "2") for n in range(2, 102)]
    with VerifierPool(1, 3.0, budget_s=1.0) as pool:
        assert pool.judge_all([RIGHT]) == [CORRECT]
        started = time.monotonic()
        assert pool.judge_all([*hangs, (r"\boxed{7}", "7"), (r"\boxed{7}", "8")]) == [TIMEOUT] * 100 + [CORRECT, WRONG]
        assert 1.0 <= time.monotonic() - started < 150.0
    with VerifierPool(1, 3.0, budget_s=HANG_S) as pool:
        assert pool.judge_all([*hangs[:2], RIGHT]) == [TIMEOUT, TIMEOUT, CORRECT]


def test_what_nobody_looked_at_is_timed_out_without_a_box(monkeypatch):
    clock = chain([0.0], repeat(1.0))  # the first takes all of it
    with VerifierPool(1, 1.0, budget_s=1.0) as pool, monkeypatch.context() as patch:
        patch.setattr("megatron_rapo.verifier.judging.time.monotonic", lambda: next(clock))
        assert pool.judge_all([(r"\boxed{1}", "1")] * 3) == [
            CORRECT,
            *[Verdict(outcome=Outcome.TIMEOUT, formatted=False)] * 2,
        ]


def test_the_first_start_of_a_pool_costs_nothing_of_the_budget(monkeypatch):
    monkeypatch.setattr(process, "_BOOTSTRAP", "import time; time.sleep(4.0)" + process._BOOTSTRAP)
    with VerifierPool(1, 3.0, budget_s=3.0) as pool:
        assert pool.judge_all([RIGHT]) == [CORRECT]


def test_a_worker_that_has_taken_much_memory_is_replaced():
    """2^(3 x 10^8) takes 200 MB of memory, which is more than half."""
    with VerifierPool(1, 60.0, memory_bytes=360 * 2**20) as pool:
        assert pool.judge_all([RIGHT]) == [CORRECT]
        pid = pool.pids[0]
        assert pool.judge_all([(r"\boxed{x=2}", "2"), (r"\boxed{2^{3\cdot10^8}}", "1/3")]) == [CORRECT, WRONG]
        wait_until(lambda: gone(pid))
        assert pool.judge_all([(r"\boxed{x=3}", "3")]) == [CORRECT]
        assert pool.pids[0] != pid


# --- what is known, bounded and shared out ---


def test_what_a_worker_has_found_is_known_in_later_batches(monkeypatch):
    with VerifierPool(1, 3.0) as pool:
        assert pool.judge_all([RIGHT, (r"\boxed{x=2}", "3"), (HANG, "1")]) == [CORRECT, WRONG, TIMEOUT]
        monkeypatch.setattr("megatron_rapo.verifier.judging.wait_any", lambda *_: pytest.fail("it waited"))
        assert pool.judge_all([(r"\boxed{x=2}", "3"), RIGHT, RIGHT]) == [WRONG, CORRECT, CORRECT]
        judging = pool.judging()
        judging.submit(HANG, "1")  # a time-out is tried again
        assert list(judging._waiting) == [("9^{9^{9^{9}}}", "1")]


def test_fractions_need_no_worker(monkeypatch):
    """With workers, 20,000 of them would exceed the budget."""
    items = [(rf"\boxed{{\frac{{{n}}}{{8}}}}", str((n + n % 4 // 2) / 8)) for n in range(1, 1000, 2)]
    with VerifierPool(1, 30.0) as pool:
        monkeypatch.setattr("megatron_rapo.verifier.judging.wait_any", lambda *_: pytest.fail("it waited"))
        verdicts = pool.judge_all(items)
    assert verdicts == [WRONG if n % 4 // 2 else CORRECT for n in range(1, 1000, 2)]


def test_a_problem_of_slow_answers_does_not_use_up_the_time_of_others():
    """Its answers came first. Those of other problems wait for at most one of them."""
    hangs = [(rf"\boxed{{{n}^{{9^{{9^{{9}}}}}}}}", "2") for n in range(2, 12)]
    with VerifierPool(1, 1.0) as pool:
        judging = pool.judging()
        for item in (*hangs, (r"\boxed{x=2}", "3"), (r"\boxed{x=3}", "4")):
            judging.submit(*item)
        assert [judging._waiting.pop() for _ in range(4)] == [
            ("2^{9^{9^{9}}}", "2"),
            ("x=2", "3"),
            ("x=3", "4"),
            ("3^{9^{9^{9}}}", "2"),
        ]


@pytest.mark.parametrize(
    ("form", "completion", "outcome", "formatted"),
    [
        ("after:####", "5 + 5 = 10\n#### 10", Outcome.CORRECT, True),
        ("after:####", "#### $10", Outcome.CORRECT, True),
        ("after:####", r"\boxed{10}", Outcome.NO_ANSWER, False),
        ("after:####", r"#### 10} and {7", Outcome.UNPARSABLE, True),  # \boxed{10} would be read of it
        ("tag:answer", r"<answer> x = 10 </answer>", Outcome.CORRECT, True),
        ("tag:answer", "<answer>11</answer>", Outcome.WRONG, True),
        ("last_number", "It is 10.", Outcome.CORRECT, True),
        ("last_number", "It is ten.", Outcome.NO_ANSWER, False),
    ],
)
def test_forms_of_answers(form, completion, outcome, formatted):
    with VerifierPool(1, 30.0, answer=form) as pool:
        assert pool.judge_all([(completion, "10")]) == [Verdict(outcome=outcome, formatted=formatted)]


@pytest.mark.parametrize("unit", ["{", "}", "{}", "\\", r"\boxed{", r"\frac{", "1+", "#### ", "$", r"\text{"])
def test_long_texts_are_unparsable_and_not_read(unit, monkeypatch):
    long = unit * (200_000 // len(unit))
    monkeypatch.setattr("megatron_rapo.verifier.judging.judge_plainly", lambda *_: pytest.fail("it was read"))
    monkeypatch.setattr("megatron_rapo.verifier.judging.is_balanced", lambda _: pytest.fail("it was read"))
    with VerifierPool(1, 30.0, answer="after:!") as pool:
        verdicts = pool.judge_all([(f"!{long}", "5"), ("!5", long)])
    assert verdicts == [Verdict(outcome=Outcome.UNPARSABLE, formatted=True)] * 2


# --- answers that come one by one ---


def test_verdicts_are_those_of_a_batch_that_is_there_at_once(pool):
    """Answers are submitted over a while, some more than once, with polls between them."""
    contents = [*(rf"\boxed{{x={n}}}" for n in range(1, 13)), "2", r"\boxed{?}", r"\boxed{7}", r"\boxed{x=4}"]
    items = [(content, str(n % 5)) for n, content in enumerate(contents)]
    judging = pool.judging()
    numbers = []
    for item in items:
        numbers.append(judging.submit(*item))
        judging.poll()
        time.sleep(0.01)
    assert numbers == list(range(16))
    assert judging.finish() == pool.judge_all(items)


def test_what_is_judged_meanwhile_is_not_waited_for(monkeypatch):
    with VerifierPool(1, 30.0) as pool:
        assert pool.judge_all([RIGHT]) == [CORRECT]
        judging = pool.judging()
        for n in (1, 2, 3):
            judging.submit(rf"\boxed{{x={n}}}", "2")
        wait_until(lambda: judging.poll() or len(judging._outcomes) == 3)
        monkeypatch.setattr("megatron_rapo.verifier.judging.wait_any", lambda *_: pytest.fail("it waited"))
        assert judging.finish() == [WRONG, CORRECT, WRONG]


def test_only_what_is_chosen_is_waited_for_and_the_others_leave_nothing_behind():
    with VerifierPool(1, HANG_S) as pool:
        assert pool.judge_all([RIGHT]) == [CORRECT]
        judging = pool.judging()
        numbers = [judging.submit(content, "2") for content in (r"\boxed{x=2}", HANG, r"\boxed{x=5}")]
        wait_until(lambda: judging.poll() or len(judging._outcomes) == 1)
        judging.poll()
        assert pool._workers.present[0].job == ("9^{9^{9^{9}}}", "2")
        pid, started = pool.pids[0], time.monotonic()
        assert judging.finish(numbers[:1]) == [CORRECT]
        assert time.monotonic() - started < HANG_S / 2 and pool.pids[0] != pid and gone(pid)
        assert pool.judge_all([(r"\boxed{x=2}", "2")]) == [CORRECT]


def test_a_batch_that_was_left_unfinished_leaves_nothing_behind():
    with VerifierPool(1, 30.0) as pool:
        assert pool.judge_all([RIGHT]) == [CORRECT]
        left = pool.judging()
        left.submit(HANG, "2")
        left.poll()
        pid = pool.pids[0]
        assert pool.judge_all([(r"\boxed{x=2}", "2")]) == [CORRECT]
        assert pool.pids[0] != pid


def test_the_budget_is_of_the_time_that_the_batch_holds_up():
    """Time between the calls is longer than the budget, but `finish` still waits until the budget ends."""
    with VerifierPool(1, HANG_S, budget_s=3.0) as pool:
        assert pool.judge_all([RIGHT]) == [CORRECT]
        judging = pool.judging()
        judging.submit(r"\boxed{x=2}", "2")
        judging.poll()
        time.sleep(4.0)
        judging.submit(HANG, "2")
        started = time.monotonic()
        assert judging.finish() == [CORRECT, TIMEOUT]
        assert 1.0 <= time.monotonic() - started < HANG_S / 2


def test_an_answer_that_took_too_long_is_late_however_seldom_it_is_looked_after():
    """2^(10^8) takes half a second. The pool is not polled until the worker has replied that it is wrong."""
    with VerifierPool(1, 0.01) as pool:
        pool._workers.await_first()
        judging = pool.judging()
        judging.submit(r"\boxed{2^{10^8}}", "1/3")
        judging.poll()
        pool._workers.present[0].deadline = float("inf")  # nobody looks while it works
        wait_until(lambda: judging.poll() or judging._outcomes)
        assert judging.finish() == [TIMEOUT]


def run_script(text):
    root = str(Path(megatron_rapo.__path__[0]).parent)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{text}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)


def test_workers_end_with_their_parent():
    ended = run_script(
        "import os, signal\n"
        "from megatron_rapo.verifier import VerifierPool\n"
        "pool = VerifierPool(2, 30.0)\n"
        "pool.judge_all([(rf'\\boxed{{x={n}}}', '1') for n in range(20)])\n"
        "print(*pool.pids, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 2
    wait_until(lambda: all(gone(pid) for pid in pids))


def test_workers_need_no_torch():
    ended = run_script(
        "import megatron_rapo.verifier.worker_main\n"
        "print([name for name in ('torch', 'transformers', 'vllm', 'pydantic') if name in sys.modules])"
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")
