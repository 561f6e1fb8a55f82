"""What `import helpers` settles: versions, one card, quiet threads; and the choice of device and precision."""

import logging
import os
import re
import subprocess
import sys

import pytest
import torch
from cards import fake_cuda

from helpers import choose_machine, environment
from helpers.errors import DeviceError, ParameterError, TutorialError
from helpers.machine import has_kernels


def test_import_touches_no_network_no_gpu_and_no_style():
    """bitsandbytes must not come along either: after it no processes can be started for several cards."""
    code = """
import os, socket, sys
os.environ.pop("OMP_WAIT_POLICY", None)
socket.socket.connect = lambda *a: sys.exit("network")
import helpers
assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
assert not {"bitsandbytes", "peft"} & set(sys.modules)
import matplotlib, torch
assert not torch.cuda.is_initialized()
same = {k: v == matplotlib.rcParamsDefault[k] for k, v in matplotlib.rcParams.items() if k != "backend"}
assert all(same.values()), same
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert logging.getLogger("bitsandbytes").level == logging.CRITICAL


@pytest.mark.parametrize(
    ("mark", "remedy"),
    [("COLAB_RELEASE_TAG", "Do not upgrade"), ("KAGGLE_KERNEL_RUN_TYPE", "Do not upgrade"), ("", "make setup")],
)
def test_missing_and_old_packages_are_named(monkeypatch, mark, remedy):
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    if mark:
        monkeypatch.setenv(mark, "x")
    wanted = {"transformers": "99.0", "no-such-package": "1", "torch": "2.10", "Python": "3.99"}
    monkeypatch.setattr(environment, "OLDEST", wanted)
    with pytest.raises(TutorialError, match=remedy) as caught:
        environment.check_packages()
    said = r"transformers 5\.\S+ \(needed: 99\.0 or newer\); no-such-package \(missing\); Python 3\.\d+"
    assert re.search(said, str(caught.value)) and "torch" not in str(caught.value)
    # As numbers: 2.10 is newer than 2.9.
    assert environment._numbers("2.10.0+cu128") >= environment._numbers("2.10") > environment._numbers("2.9.1")
    assert environment._numbers("5.0.0rc1") >= environment._numbers("5.0")


@pytest.fixture
def cards(monkeypatch):
    """A driver that reports cards, and a PyTorch built for Volta and newer, as Colab's and Kaggle's."""
    built = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.delenv("TUTORIAL_CARD", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")

    def report(*rows):
        shown = subprocess.CompletedProcess([], 0, "\n".join(rows) + "\n", "")
        monkeypatch.setattr("subprocess.run", lambda *a, **k: shown)

    yield report
    for name in ("TUTORIAL_CARD", "CUDA_VISIBLE_DEVICES"):
        os.environ.pop(name, None)


@pytest.mark.parametrize(
    ("rows", "chosen", "said"),
    [
        (["0, Tesla T4, 7.5", "1, Tesla T4, 7.5"], "0", "one of 2 cards used"),
        (["0, Tesla P100-PCIE-16GB, 6.0"], "", "P100-PCIE-16GB (sm_60) not used: this PyTorch has no kernels for it"),
        (["0, Tesla P100-PCIE-16GB, 6.0", "1, Tesla T4, 7.5"], "1", "one of 2 cards used"),
        (["0, NVIDIA A100, 8.0"], None, ""),
        (["NVIDIA-SMI has failed because it could not communicate with the driver"], None, ""),
    ],
    ids=["two T4", "P100", "P100 and T4", "A100", "no driver"],
)
def test_one_card_at_most(cards, rows, chosen, said):
    cards(*rows)
    environment.keep_one_card()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == chosen and said in os.environ.get("TUTORIAL_CARD", "")
    assert said in str(choose_machine(device="cpu"))


def test_a_choice_made_by_the_reader_stays_and_too_late_is_said(cards, monkeypatch):
    cards("0, Tesla T4, 7.5", "1, Tesla T4, 7.5")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(DeviceError, match=r"2 cards in sight.*restart the session"):
        environment.keep_one_card()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    environment.keep_one_card()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_card_without_kernels_is_not_chosen(monkeypatch):
    fake_cuda(monkeypatch, (6, 0), ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90"])
    machine = choose_machine()
    assert machine.device == "cpu" and "a card (sm_60) has no kernels in this PyTorch" in str(machine)
    with pytest.raises(DeviceError, match=r"sm_60.*Use device='cpu'"):
        choose_machine(device="cuda")


def test_bfloat16_only_from_capability_8(monkeypatch):
    fake_cuda(monkeypatch, (7, 5), ["sm_75", "sm_90"])
    machine = choose_machine()
    assert (machine.device, machine.precision) == ("cuda", torch.float32) and "\n" not in str(machine)
    with pytest.raises(DeviceError, match=r"capability 7\.5.*float16"):
        choose_machine(precision="bfloat16")
    fake_cuda(monkeypatch, (8, 6), ["sm_80"])  # runs kernels built for 8.0
    assert choose_machine().precision == torch.bfloat16


def test_kernels_of_two_digit_generations(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_90a", "sm_100", "sm_120", "compute_120"])
    assert all(has_kernels(*card) for card in [(9, 0), (10, 0), (10, 3), (12, 0)])
    assert not any(has_kernels(*card) for card in [(1, 0), (8, 9), (11, 0)])


@pytest.mark.parametrize("wrong", [{"device": "gpu"}, {"precision": "half"}])
def test_unknown_names_are_refused(wrong):
    with pytest.raises(ParameterError, match=r"(device='gpu'|precision='half'): expected .*auto"):
        choose_machine(**wrong)


@pytest.mark.parametrize(("fast", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
def test_precision_follows_the_processor(monkeypatch, fast, expected):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    with choose_machine(device="cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
