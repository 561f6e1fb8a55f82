"""The bill of one card of several, against steps of two processes on the CPU (gloo), counted by tests/several.py."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from several import SETTINGS
from torch.distributed.run import get_args_parser

from helpers.errors import DeviceError
from helpers.memory import CARDS, memory_bill, require_fit
from tools.pages import moved
from tools.run import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="two processes by gloo, as on Linux and macOS")
SHARDINGS = ("none", "full")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of the two processes counted."""
    folder = tmp_path_factory.mktemp("several")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("several.py")), str(folder)]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("name", SETTINGS)
def test_the_bill_is_what_each_of_two_processes_holds(found, name, sharding):
    """Byte for byte on the first process; the last one may have less, where rows do not divide. Buffers within 1%."""
    config, options = SETTINGS[name]
    bill = memory_bill(config, **options, processes=2, sharding=sharding).parts()
    first, last = (counted[f"{name}, {sharding}"] for counted in found)
    assert [counted["world"] for counted in found] == [2, 2]
    assert first["buffers"] == pytest.approx(bill.pop("buffers"), rel=0.01 if sharding == "full" else 0)
    bill.pop("activations"), bill.pop("logits")
    assert {part: first[part] for part in bill} == bill
    assert all(0.8 * size <= last[part] <= size for part, size in bill.items())


@pytest.mark.parametrize("name", [name for name, (_, options) in SETTINGS.items() if "precision" in options])
def test_both_ways_compute_the_same(found, name):
    """In 32 bits, 4-bit weights put together again from both processes included."""
    assert len({counted[f"{name}, {sharding}"]["loss"] for counted in found for sharding in SHARDINGS}) == 1


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_sent_is_what_the_page_reckons_with(found, name):
    """For FSDP a bound: an embedding that is not trained is not gathered again, one used at both ends once more."""
    config, options = SETTINGS[name]
    bill = memory_bill(config, **options)
    itemsize = 4 if "precision" in options else 2
    whole = {sharding: found[0][f"{name}, {sharding}"]["moved"] for sharding in SHARDINGS}
    assert moved(bill, 2, False, itemsize) == whole["none"]  # half of it, twice
    print(name, f"{2 * moved(bill, 2, True, itemsize) / whole['full'] - 1:+.1%}")
    assert 2 * moved(bill, 2, True, itemsize) == pytest.approx(whole["full"], rel=0.25)


def test_more_cards_less_on_each_and_one_card_as_before():
    one, two, four = (
        memory_bill("Llama-2-7B", method="lora", length=16, processes=n, sharding="full" if n > 1 else "none")
        for n in (1, 2, 4)
    )
    assert one.buffers == 0 and "buffers" not in one.parts() and "buffers" in two.parts()
    assert two.weights / one.weights == pytest.approx(0.5, rel=1e-6) and two.buffers == four.buffers
    assert four.optimizer_state / two.optimizer_state == pytest.approx(0.5, rel=1e-3)
    together = memory_bill("Llama-2-7B", method="lora", length=16, processes=8)
    assert together.buffers == together.gradients and together.total - one.total == one.gradients


def test_what_does_not_fit_each_card_is_told_what_helps_there():
    """Not bitsandbytes' optimisers, which refuse shared weights."""
    bill = memory_bill("Llama-2-7B", method="full", length=16, processes=2, sharding="full")
    with pytest.raises(DeviceError, match=r"use more cards") as refused:
        require_fit(bill, CARDS["A100 40 GB"])
    assert "paged" not in str(refused.value)
    require_fit(memory_bill("Llama-2-7B", method="full", length=16, processes=4, sharding="full"), CARDS["A100 40 GB"])


def test_the_launch_lines_of_the_page_are_understood():
    """By the launchers' own parsers, with what Slurm and the shell fill in; the script gets a recipe and no more."""
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.sub(r"\$\(\(.*?\)\)|\$\w+", "8", "\n".join(re.findall(r"```\n(.*?)```", page, re.DOTALL))).splitlines()
    parsers = {"accelerate launch ": launch_command_parser(), "torchrun ": get_args_parser()}
    found = []
    for line in lines:
        for command, parser in parsers.items():
            if command in line:
                told = parser.parse_args(shlex.split(line.partition(command)[2].rstrip("'")))
                script, *rest = told.training_script, *told.training_script_args
                assert script == "scale/train.py" and rest in (["scale/recipe.yaml"], ["scale/recipe.yaml", "--resume"])
                found.append(command)
    assert len(found) == 5
