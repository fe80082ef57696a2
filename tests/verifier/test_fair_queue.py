from megatron_rapo.verifier.fair_queue import FairQueue


def queue_of(*jobs):
    queue = FairQueue()
    for job in jobs:
        queue.append(job)
    return queue


def test_references_take_turns():
    """The problem with many answers came first. It takes turns with the problems that wait."""
    queue = queue_of(*((f"slow {i}", "a") for i in range(4)), ("x", "b"), ("y", "b"), ("z", "c"))
    assert len(queue) == 7
    taken = [queue.pop() for _ in range(7)]
    assert [job[0] for job in taken] == ["slow 0", "x", "z", "slow 1", "y", "slow 2", "slow 3"]
    assert not queue


def test_what_is_put_back_is_the_next_of_its_reference():
    queue = queue_of(("1", "a"), ("2", "a"))
    job = queue.pop()
    queue.push(job)
    assert queue.pop() == job == ("1", "a")


def test_only_what_is_wanted_is_kept():
    queue = queue_of(("1", "a"), ("2", "a"), ("3", "b"))
    queue.keep({("2", "a")})
    assert list(queue) == [("2", "a")] and queue and queue.pop() == ("2", "a") and not queue
