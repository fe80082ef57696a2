"""Check the part of an engine's weights that needs no engine. tests/rollout/test_engine.py has the rest."""

from __future__ import annotations

import pytest
import torch

from megatron_rapo.rollout.weights import PlainWeights, check_parameters, open_weights

SHAPES = {"weight": (2, 3), "bias": (2,)}


def test_parameters_that_the_engine_uses_as_they_are_are_written_in_place() -> None:
    model = torch.nn.Linear(3, 2)
    weights = open_weights(model, None, SHAPES, torch.float32)
    assert isinstance(weights, PlainWeights) and weights.keeps
    with weights.opened() as opened:
        for name in SHAPES:
            opened.target(name).fill_(3.0)
            opened.complete(name)
    assert torch.equal(model(torch.ones(1, 3)), torch.full((1, 2), 12.0))


def test_what_was_not_written_is_named_each_time() -> None:
    weights = open_weights(torch.nn.Linear(3, 2), None, SHAPES, torch.float32)
    for _ in range(2):
        with (
            pytest.raises(RuntimeError, match=r"^1 of the engine's parameters were not written: bias$"),
            weights.opened() as opened,
        ):
            opened.complete("weight")


def test_a_failure_inside_is_not_hidden_by_what_is_missing() -> None:
    weights = open_weights(torch.nn.Linear(3, 2), None, SHAPES, torch.float32)
    with pytest.raises(OSError, match="the cable is out"), weights.opened():
        raise OSError("the cable is out")


def test_a_parameter_that_the_map_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="in 1 places: bias is unknown"):
        open_weights(torch.nn.Linear(3, 2), None, {"weight": (2, 3)}, torch.float32)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"weight": (2, 3)}, "in 1 places: bias is missing. "),
        ({"weight": (3, 2), "bias": (2,)}, "in 1 places: weight has shape [3, 2] instead of [2, 3]. "),
        ({"weight": (2, 3), "bias": (2,), "scale": ()}, "in 1 places: scale is unknown. "),
        ({}, "in 2 places: weight is missing; bias is missing. "),
    ],
)
def test_parameters_must_be_those_of_the_map(found: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        check_parameters(SHAPES, found)
    assert message in str(raised.value) and "(models/parameter_map.py)" in str(raised.value)
    check_parameters(SHAPES, SHAPES)
