"""Sums and targets of figures that are known."""

from __future__ import annotations

from benchmarks import bench_prompts


def test_sums_by_hand() -> None:
    def process(cpu_s: float, mib: float, digest: str = "a") -> dict[str, object]:
        return {"cpu_s": cpu_s, "private_mib": mib, "rss_mib": 2 * mib, "digest": digest}

    sides = {"alone": [process(10.0, 100.0), process(10.0, 100.0)], "shared": [process(9.0, 80.0), process(4.0, 10.0)]}
    found = bench_prompts.summed_up(sides)
    assert found["shared_of_alone"] == {"cpu_s": 0.65, "private_mib": 0.45}
    assert [target["met"] for target in found["targets"]] == [False, True, True]
    sides["alone"][0]["digest"] = "b"
    assert not bench_prompts.summed_up(sides)["targets"][-1]["met"]
