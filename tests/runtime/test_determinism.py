"""run.deterministic. tests/mcore/checkpoint_worker.py trains with it."""

from __future__ import annotations

import os

import pytest
import torch

from megatron_rapo.config import ConfigError
from megatron_rapo.runtime.determinism import VARIABLES, deterministic_algorithms, set_variables


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def test_variables_are_set_and_a_users_own_choice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    set_variables()
    assert {name: os.environ[name] for name in VARIABLES} == {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
        "NCCL_ALGO": "Ring",
    }


@pytest.mark.parametrize(
    ("name", "value"), [("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1"), ("NCCL_ALGO", "NVLS"), ("NCCL_ALGO", "")]
)
def test_a_choice_that_is_not_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        set_variables()
    assert str(raised.value) == (
        f"run.deterministic=true: needs {name}={' or '.join(VARIABLES[name])}, but the environment has {name}={value}; "
        "unset it, or set run.deterministic=false."
    )


def no_deterministic_kernel() -> None:
    """Call one of the few functions without a deterministic implementation, even on a CPU."""
    torch.zeros(1, 4, 4).put_(torch.tensor([0]), torch.tensor([1.0]), accumulate=False)


def test_inside_torch_refuses_what_is_not_and_outside_it_does_not() -> None:
    no_deterministic_kernel()
    with deterministic_algorithms(True):
        assert not torch.utils.deterministic.fill_uninitialized_memory
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            no_deterministic_kernel()
    no_deterministic_kernel()
    assert torch.utils.deterministic.fill_uninitialized_memory
    with deterministic_algorithms(False):
        no_deterministic_kernel()
