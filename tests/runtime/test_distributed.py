"""Which errors of collectives mean a lost process."""

from __future__ import annotations

import pytest

from megatron_rapo.runtime.distributed import is_lost_process


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4567", True),
        ("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1000ms for recv operation", True),
        ("NCCL communicator was aborted: timeout", True),
        ("the verifier timed out", False),
        ("NCCL error: invalid usage", False),
    ],
)
def test_lost_processes(text: str, lost: bool) -> None:
    assert is_lost_process(RuntimeError(text)) is lost
