"""What vLLM must have; the rest of guest.py is seen at work in tests/rollout/test_engine.py."""

from __future__ import annotations

import warnings

import pytest

from megatron_rapo.rollout import guest


def test_the_installed_vllm_has_what_is_used_of_it() -> None:
    vllm = guest.import_vllm()
    assert vllm.__version__.startswith(f"{guest.TESTED_VERSION}.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guest.check_interface(vllm.__version__)


def test_another_version_is_warned_of() -> None:
    guest.import_vllm()
    with pytest.warns(UserWarning, match=r"^vLLM 0\.33\.1: tested with 0\.32\. "):
        guest.check_interface("0.33.1")


def test_a_version_without_the_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    guest.import_vllm()
    monkeypatch.setitem(guest.INTERFACE, "vllm.config", ("set_current_vllm_config", "no_such_thing"))
    monkeypatch.setitem(guest.INTERFACE, "vllm.no_such_module", ("anything",))
    with pytest.raises(RuntimeError) as raised:
        guest.check_interface("0.99.0")
    assert str(raised.value) == (
        "vLLM 0.99.0 has no vllm.config.no_such_thing, no vllm.no_such_module, which rollouts and resharding need; "
        "install vllm 0.32."
    )
