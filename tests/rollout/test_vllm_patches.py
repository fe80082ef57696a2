"""Check what vLLM must have. tests/rollout/test_engine.py runs the rest of vllm_patches.py."""

from __future__ import annotations

import warnings

import pytest

from megatron_rapo.rollout import vllm_patches


def test_the_installed_vllm_has_what_is_used_of_it() -> None:
    vllm = vllm_patches.import_vllm()
    assert vllm.__version__.startswith(f"{vllm_patches.TESTED_VERSION}.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vllm_patches.check_interface(vllm.__version__)


def test_another_version_is_warned_of() -> None:
    vllm_patches.import_vllm()
    with pytest.warns(UserWarning, match=r"^vLLM 0\.33\.1: tested with 0\.32\. "):
        vllm_patches.check_interface("0.33.1")


def test_a_version_without_the_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_patches.import_vllm()
    monkeypatch.setitem(vllm_patches.INTERFACE, "vllm.config", ("set_current_vllm_config", "no_such_thing"))
    monkeypatch.setitem(vllm_patches.INTERFACE, "vllm.no_such_module", ("anything",))
    with pytest.raises(RuntimeError) as raised:
        vllm_patches.check_interface("0.99.0")
    assert str(raised.value) == (
        "vLLM 0.99.0 has no vllm.config.no_such_thing, no vllm.no_such_module, which rollouts and resharding need; "
        "install vllm 0.32."
    )
