"""scale/: the notebooks' training, as a script: the same weights, in several processes, after any interruption."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields

import psutil
import pytest
import tiny
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from conftest import LONG
from forks import ROOT, Runs
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig

import helpers
from benchmarks.ours import SETUP, execute

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forks, which Windows does not have")
SCALE = ROOT / "scale"
CONFIGS = sorted(path for path in SCALE.glob("*.yaml") if path.name != "recipe.yaml")
FUNCTION = '''
def {verb}_{thing}({thing}, size):
    """{verb} the {thing} number {number}.

    Args:
        {thing}: What to {verb} at {number}.
        size: How many of it.
    """
'''


@pytest.fixture(scope="session")
def here(tmp_path_factory):
    """A folder with code of 200 functions, a tiny language model and a tiny encoder."""
    folder = tmp_path_factory.mktemp("scale")
    words = [
        (verb, thing) for verb in ("Add", "Drop", "Find", "Keep", "Move") for thing in ("card", "row", "key", "text")
    ]
    functions = (FUNCTION.format(verb=v, thing=t, number=n) for n in range(10) for v, t in words)
    (folder / "code.py").write_text("".join(functions), encoding="utf-8")
    tiny.made("llama 3", folder / "writer")
    tiny.made("bert", folder / "reader")
    return folder


@pytest.fixture(scope="session")
def runs():
    with Runs() as started:
        yield started


def write(here, name, **keys):
    """A recipe file: eight steps of the tiny models, checkpoints at each second; `keys` replace its own."""
    keys = {"name": name, "code": str(here / "code.py"), "results_dir": str(here), "score": False} | keys
    keys = {"language_model": str(here / "writer"), "encoder": str(here / "reader"), "train_examples": 24} | keys
    keys = {"precision": "float32", "steps": 8, "save_every": 2} | keys
    path = here / f"{name}.yaml"
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return path


def weights(here, name):
    kind, file = (
        ("adapters", "adapter_model") if (here / "adapters" / f"scale_{name}").exists() else ("models", "model")
    )
    return load_file(here / kind / f"scale_{name}" / f"{file}.safetensors")


def difference(one, other):
    """The largest difference of two sets of weights."""
    assert one.keys() == other.keys() and one
    return max((one[key] - other[key]).abs().max().item() for key in one)


def run(runs, here, name, *, status=0, resume=False, world=1, patches=None, **keys):
    """Write a recipe and run it in `world` processes, which all end with this status; returns what was said."""
    found, said = runs.run(write(here, name, **keys), resume=resume, processes=world, **patches or {})
    assert found == [status] * world, said
    return said


# ---------------------------------------------------------------- the same as the notebooks

NOTEBOOKS = {  # which cells of benchmarks.ours.SETUP, and what their training is told
    "lora": ("lora", ["LoRA"]),
    "topics": ("topics", ["LoRA q,v"]),
    "qlora": ("qlora", ["QLoRA", "nf4"]),
    "prompt_tuning": ("prompt", ["soft prompt"]),
}


@pytest.mark.parametrize("kind", NOTEBOOKS)
def test_one_process_gives_the_weights_of_the_notebooks_cell(here, kind, monkeypatch, capsys):
    import train

    monkeypatch.setattr(helpers.docstrings, "PACKAGES", ())
    setup, told = NOTEBOOKS[kind]
    notebook, cells = SETUP[setup]
    first, _, then = cells.partition(" parameters ")
    own = {"code": str(here / "code.py"), "language_model": str(here / "writer"), "encoder": str(here / "reader")}
    own |= {"steps": 4, "train_examples": 24, "results_dir": str(here / "notebook")}
    own |= {"language_model": "auto"} if kind == "lora" else {}  # once with the real one
    space = execute({"helpers": helpers}, notebook, first, "parameters") | own
    execute(space, notebook, *then.split())
    space["board"].step_loss = None
    space |= {"here": {"machine": space["machine"], "seed": space["seed"]}}
    theirs = space["adapt" if kind == "topics" else "teach"](*told)
    helpers.save_adapter(theirs.model, here / "adapters" / f"scale_{notebook}")
    keys = {"on": "topics", "targets": "q,v"} if kind == "topics" else {"technique": kind}
    keys |= {"precision": "auto", "steps": 4, "language_model": own["language_model"]}
    assert train.main([str(write(here, f"same_{kind}", **keys))]) == 0, capsys.readouterr().err
    assert difference(weights(here, f"same_{kind}"), weights(here, notebook)) == 0.0
    record = json.loads((here / "records" / f"scale_same_{kind}.json").read_text(encoding="utf-8"))[0]
    assert record["value"] == round(theirs.losses[-1], 6) and record["settings"]["processes"] == 1
    assert record["trainable_parameters"] == theirs.count.trainable


def test_what_was_trained_is_scored_and_stands_on_the_scoreboard(here, runs):
    results = here / "scored"
    for name, keys in {"lora": {}, "topics": {"on": "topics"}}.items():
        run(runs, here, f"scored_{name}", score=True, results_dir=str(results), save_every=0, **keys)
    found = {
        (record["technique"], record["split"], record["metric"])
        for path in (results / "records").glob("*.json")
        for record in json.loads(path.read_text(encoding="utf-8"))
    }
    assert {("lora", "test", metric) for metric in ("form", "names", "accuracy")} <= found
    assert {("lora", "validation", "form"), ("lora", "test_shifted", "accuracy")} <= found
    table = helpers.scoreboard.table_of(results)
    assert table.loc["LoRA", "variant"] == "scored_topics / scored_lora" and table.loc["LoRA", "topics"] != ""
    assert not [*(results / "scale").rglob("checkpoint-*")]


def test_everything_trained_is_a_model_that_loads(here, runs):
    run(runs, here, "whole", technique="full_fine_tuning")
    model, words = helpers.load_language_model(str(here / "models" / "scale_whole"), quiet=True)
    before = helpers.load_language_model(str(here / "writer"), quiet=True)[0]
    assert helpers.fingerprint(model) != helpers.fingerprint(before) and words.eos_token


# ---------------------------------------------------------------- several processes

TEN = {"batch": 4, "language_model": "auto", "steps": 10}  # the shipped model


@pytest.fixture(scope="session")
def of_two(here, runs):
    """What ten steps of two processes train."""
    run(runs, here, "of_two", world=2, **TEN | {"processes": 2})
    assert settings(here, "of_two")["processes"] == 2
    return weights(here, "of_two")


def settings(here, name):
    return json.loads((here / "records" / f"scale_{name}.json").read_text(encoding="utf-8"))[0]["settings"]


def test_ten_steps_of_two_processes_are_those_of_one_with_the_double_batch(here, runs, of_two, record_property):
    """But for the rounding of 32 bits. The mean of the two processes' means would be off by 3e-2."""
    run(runs, here, "of_one", **TEN | {"batch": 8})
    gap = difference(weights(here, "of_one"), of_two)
    record_property("largest difference", gap)
    print(f"two processes and one, ten steps: largest difference {gap:.1e}")
    assert gap < 1e-3


def test_in_64_bits_they_are_the_same_to_the_last_of_the_32_bits_that_adapters_have(here, runs):
    for world in (1, 2):
        run(runs, here, f"double_{world}", world=world, batch=8 // world, steps=10, patches={"double": True})
    assert difference(weights(here, "double_1"), weights(here, "double_2")) < 1e-6


def test_ten_steps_on_topics_are_the_same_too_without_dropout(here, runs):
    """Dropout draws other numbers in each process, so the models of the notebooks' encoder differ."""
    reader = here / "reader_without_dropout"
    shutil.copytree(here / "reader", reader)
    tiny.edit(reader / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    keys = {"on": "topics", "steps": 10, "encoder": str(reader)}
    run(runs, here, "topics_1", batch=8, **keys)
    run(runs, here, "topics_2", world=2, batch=4, **keys)
    assert difference(weights(here, "topics_1"), weights(here, "topics_2")) < 1e-4


def launch(here, command, name, *more, **keys):
    """Start a launch line; returns the process."""
    path = write(here, name, **keys)
    line = [sys.executable, "-m", *command.split(), str(SCALE / "train.py"), str(path), *more]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment, "cwd": ROOT}
    return subprocess.Popen(line, **pipes)


def test_one_rank_killed_ends_all_and_resumed_they_end_with_the_same_weights(here, of_two):
    """By the launch lines that really give two processes."""
    keys = TEN | {"processes": 2}
    job = launch(here, "torch.distributed.run --nproc_per_node 2", "killed", **keys)
    manifest = here / "scale" / "killed" / "checkpoint-2" / "manifest.json"
    until = time.monotonic() + 120
    while not manifest.exists() and time.monotonic() < until:
        time.sleep(0.05)
    ranks = psutil.Process(job.pid).children()
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    said = job.communicate(timeout=120)[0]
    assert job.returncode != 0 and not any(rank.is_running() and rank.status() != "zombie" for rank in ranks), said
    assert not (here / "adapters" / "scale_killed").exists()
    job = launch(here, f"accelerate.commands.launch --config_file {SCALE / 'ddp.yaml'}", "killed", "--resume", **keys)
    said = job.communicate(timeout=180)[0]
    assert job.returncode == 0 and said.count("Going on from checkpoint-") == 1, said  # rank 0 alone speaks
    assert difference(weights(here, "killed"), of_two) == 0.0


@pytest.mark.parametrize("technique", ["lora", "qlora"])
def test_fsdp_shards_trains_and_leaves_an_adapter_that_loads(here, runs, technique):
    keys = {"technique": technique, "processes": 2, "batch": 4, "language_model": "auto", "steps": 3, "save_every": 0}
    run(runs, here, "unsharded", world=2, **keys)
    config = SCALE / f"fsdp_{technique}.yaml"
    job = launch(here, f"accelerate.commands.launch --config_file {config}", "sharded", **keys)
    said = job.communicate(timeout=180)[0]
    assert job.returncode == 0, said
    held = {
        name: json.loads((here / "notes" / f"scale_{name}.json").read_text(encoding="utf-8"))["numbers in this process"]
        for name in ("sharded", "unsharded")
    }
    # Packed 4-bit weights are stored as if they were of 32 bits: a quarter of the numbers, of as many bytes.
    assert held["sharded"] == held["unsharded"] // 2 if technique == "lora" else held["sharded"] < held["unsharded"] / 2
    assert difference(weights(here, "sharded"), weights(here, "unsharded")) < 1e-6
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    options = {"quantization": four_bits} if technique == "qlora" else {}
    writer, words = helpers.load_language_model(quiet=True, **options)  # as notebooks 2 and 3 load it
    model = helpers.load_adapter(writer, here / "adapters" / "scale_sharded")
    replies = helpers.generate(
        model, words, ["def scale(image, size):\n"] * 2, machine=helpers.choose_machine(device="cpu")
    )
    assert all(reply.text for reply in replies)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key(path):
    assert {path.stem for path in CONFIGS} == {"one_gpu", "ddp", "fsdp_lora", "fsdp_qlora", "zero3"}
    config = load_config_from_file(str(path))  # refuses unknown keys, but not those within fsdp_config
    known = {action.dest for action in launch_command_parser()._actions}
    inner = {*(config.fsdp_config or {}), *(config.deepspeed_config or {})}
    assert inner <= known, inner - known
    assert config.num_processes == (1 if path.stem == "one_gpu" else 2)


# ---------------------------------------------------------------- interruption

MOMENTS = {  # a function, the number of its call, and when the SIGKILL comes
    "before the first step": ["checkpoints.Resumable.training_step", 1, "before"],
    "in the fourth step": ["checkpoints.Resumable.training_step", 4, "after"],
    "in the optimiser": ["torch.optim.AdamW.step", 5, "after"],
    "half of the adapter": ["peft.peft_model.safe_save_file", 2, "half"],
    "half of the optimiser's state": ["torch.save", 6, "half"],
    "half of the random numbers' state": ["torch.save", 8, "half"],
    "before the manifest": ["checkpoints.seal", 2, "before"],
    "before the manifest has its name": ["os.replace", 2, "before"],
    "before an old checkpoint is deleted": ["shutil.rmtree", 1, "before"],
    "while the adapter is saved": ["peft.peft_model.safe_save_file", 4, "half"],
    "after the adapter": ["train.finish", 1, "after"],
}


@pytest.fixture(scope="session")
def uninterrupted(here, runs):
    run(runs, here, "uninterrupted")
    return weights(here, "uninterrupted")


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_resumes_to_the_same_weights(here, runs, uninterrupted, moment):
    name = f"killed_{[*MOMENTS].index(moment)}"
    run(runs, here, name, status=-signal.SIGKILL, patches={"last": MOMENTS[moment]})
    said = run(runs, here, name, resume=True)
    assert "begins anew" in said or "Going on from" in said
    assert difference(weights(here, name), uninterrupted) == 0.0
    assert sorted(path.name for path in (here / "scale" / name).iterdir()) == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("technique", ["qlora", "prompt_tuning", "full_fine_tuning", "topics"])
def test_every_technique_resumes_exactly(here, runs, technique):
    """Topics have two groups of parameters and dropout."""
    keys = {"on": "topics", "steps": 5, "batch": 8} if technique == "topics" else {"technique": technique, "steps": 5}
    run(runs, here, f"through_{technique}", **keys)
    patches = {"last": ["checkpoints.Resumable.training_step", 4, "after"]}
    run(runs, here, f"cut_{technique}", status=-signal.SIGKILL, patches=patches, **keys)
    assert "Going on from checkpoint-2" in run(runs, here, f"cut_{technique}", resume=True, **keys)
    assert difference(weights(here, f"cut_{technique}"), weights(here, f"through_{technique}")) == 0.0


FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json", "optimizer.pt"]
FILES += ["rng_state.pth", "scheduler.pt", "trainer_state.json", "training_args.bin"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["removed", "truncated", "changed"])
def test_a_checkpoint_with_a_file_that_is_not_whole_is_skipped(here, uninterrupted, tmp_path, file, harm, capsys):
    from checkpoints import find_checkpoint

    folder = shutil.copytree(here / "scale" / "uninterrupted", tmp_path / "copy")
    assert sorted(path.name for path in (folder / "checkpoint-6").iterdir()) == FILES
    assert find_checkpoint(folder, True) == (folder / "checkpoint-6", [])
    path = folder / "checkpoint-6" / file
    spoil(path, harm)
    taken, skipped = find_checkpoint(folder, True)
    told = capsys.readouterr().out.splitlines()[-1]
    assert (taken, skipped) == (folder / "checkpoint-4", [folder / "checkpoint-6"])
    assert told.startswith("Going on from checkpoint-4; skipped checkpoint-6: ") and file in told


def spoil(path, harm):
    content = path.read_bytes()
    if harm == "removed":
        path.unlink()
    else:
        middle = bytes([content[len(content) // 2] ^ 0x80])
        half = len(content) // 2
        path.write_bytes(content[:half] + (middle + content[half + 1 :] if harm == "changed" else b""))


@pytest.mark.parametrize("files", [["optimizer.pt"], ["rng_state.pth"], ["adapter_model.safetensors", "manifest.json"]])
def test_after_damage_the_run_ends_with_the_same_weights(here, runs, uninterrupted, files):
    """One file: from the checkpoint before. Two, one in each: from the beginning."""
    name = f"spoilt_{files[0].partition('.')[0]}"
    shutil.copytree(here / "scale" / "uninterrupted", here / "scale" / name)
    for path in (here / "scale" / name).rglob("manifest.json"):  # of this name
        path.write_text(path.read_text().replace('"name": "uninterrupted"', f'"name": "{name}"'))
    for step, file in zip((6, 4), files):
        spoil(here / "scale" / name / f"checkpoint-{step}" / file, "truncated")
    said = run(runs, here, name, resume=True)
    assert ("Going on from checkpoint-4; skipped checkpoint-6" if len(files) == 1 else "so this begins anew") in said
    assert difference(weights(here, name), uninterrupted) == 0.0


def test_a_file_that_is_not_of_a_checkpoint_is_seen(here, uninterrupted, tmp_path):
    """Trainer would prefer a model.safetensors to the adapter."""
    from checkpoints import fault_of

    folder = shutil.copytree(here / "scale" / "uninterrupted" / "checkpoint-6", tmp_path / "checkpoint-6")
    (folder / "model.safetensors").write_bytes(b"")
    assert fault_of(folder) == "model.safetensors is not of it"


@pytest.mark.parametrize(
    ("name", "full"),
    [("full_saving", ["checkpoints.Resumable._save_checkpoint", 2]), ("full_end", ["train.finish", 1])],
)
def test_a_full_disk_leaves_nothing_that_looks_complete(here, runs, uninterrupted, name, full):
    said = run(runs, here, name, status=1, patches={"full": full})
    assert "could not be written" in said and "Is the disk full?" in said and "Traceback" not in said
    assert not (here / "adapters" / f"scale_{name}").exists()
    last = max((here / "scale" / name).iterdir(), key=lambda path: path.name)
    assert (last / "manifest.json").exists() == (name == "full_end")
    run(runs, here, name, resume=True)
    assert difference(weights(here, name), uninterrupted) == 0.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 9}, "written with steps=8, this run has 9"),
        ({"rate": 0.5}, "written with rate=0.008, this run has 0.5"),
        ({"language_model": "other"}, "written with language_model="),
        ({"code": "other.py"}, "written with code="),
        ({"processes": 2}, "written with processes=1, this run has 2"),
    ],
)
def test_another_run_is_not_resumed(here, runs, uninterrupted, change, said):
    for key, value in change.items():
        change = change | ({key: str(here / value)} if isinstance(value, str) else {})
    shutil.copytree(here / "writer", here / "other", dirs_exist_ok=True)
    shutil.copy(here / "code.py", here / "other.py")
    processes = change.get("processes", 1)
    assert said in run(runs, here, "uninterrupted", status=1, resume=True, world=processes, **change)


@pytest.mark.parametrize("what", ["data", "weights at the start"])
def test_other_data_or_another_model_of_the_same_name_is_not_resumed(here, runs, what):
    name = f"swapped_{what[:4]}"
    shutil.copytree(here / "writer", here / name)
    shutil.copy(here / "code.py", here / f"{name}.py")
    keys = {"language_model": str(here / name), "code": str(here / f"{name}.py")}
    run(runs, here, name, **keys)
    if what == "data":
        text = (here / f"{name}.py").read_text(encoding="utf-8")
        (here / f"{name}.py").write_text(text.replace("How many of it", "How many there are"), encoding="utf-8")
    else:
        model = helpers.load_language_model(str(here / name), random_weights=True, seed=1, quiet=True)[0]
        model.save_pretrained(here / name)
    assert f"written with {what}=" in run(runs, here, name, status=1, resume=True, **keys)


def test_checkpoints_of_an_earlier_run_are_not_overwritten(here, runs, uninterrupted):
    said = run(runs, here, "uninterrupted", status=1)
    assert "checkpoints of an earlier run. Say --resume, or delete them" in said


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(here, runs):
    said = run(runs, here, "diverged", status=1, rate=1e30, steps=40, save_every=40)
    assert "the loss is" in said and "Start again with a third of the rate" in said
    assert not [*(here / "scale" / "diverged").iterdir()]


# ---------------------------------------------------------------- what is refused before anything is loaded

BAD = {
    "unknown key": ("name: x\nlanguage_modle: auto", "unknown key 'language_modle'. Did you mean 'language_model'?"),
    "nothing like it": ("name: x\nzzz: 1", "unknown key 'zzz'. Known are name, technique"),
    "wrong type": ("name: x\nsteps: many", "steps='many' is of type str, expected int"),
    "bool for int": ("name: x\nsteps: true", "steps=True is of type bool, expected int"),
    "int for bool": ("name: x\nscore: 1", "score=1 is of type int, expected bool"),
    "float for int": ("name: x\nrank: 8.0", "rank=8.0 is of type float, expected int"),
    "number as text": ("name: x\nrate: 8e-3", "rate='8e-3' is of type str, expected float (YAML takes 8e-3 for text"),
    "no value": ("name: x\ncode:", "code=None is of type NoneType, expected str"),
    "below its range": ("name: x\nsteps: 0", "steps=0: expected a finite number from 1"),
    "not finite": ("name: x\nrate: .inf", "rate=inf: expected a finite number from 0"),
    "not a number": ("name: x\nrate: .nan", "rate=nan: expected a finite number from 0"),
    "no such choice": ("name: x\ntechnique: dora", "technique='dora': expected one of lora, qlora, prompt_tuning"),
    "name with a path": ("name: ../x", "name='../x': expected letters, digits"),
    "no name": ("steps: 1", "expected lines `key: value`, a `name` among them"),
    "a list": ("- name: x", "expected lines `key: value`"),
    "no YAML": ("name: [x", "no readable YAML file"),
    "not UTF-8": (b"name: \xff", "no readable YAML file"),
    "a Python object": ("name: !!python/object/apply:os.system [ls]", "no readable YAML file"),
    "fewer processes": ("name: x\nprocesses: 2", "processes=2, but 1 run. Start `torchrun --nproc_per_node 2"),
    "does not fit": ("name: x\ncard_gib: 1.05", "this needs 0.2 GiB and a reserve of 1.0, the card has 1.1"),
    "no bill": ("name: x\non: topics\ncard_gib: 8", "card_gib: only LoRA, QLoRA and full fine-tuning"),
    "no such task": ("name: x\non: topics\ntask: none.csv", "task='none.csv': there is no such file or folder"),
    "no such code": ("name: x\ncode: none", "code='none': there is no such folder or file"),
    "no such model": ("name: x\nlanguage_model: ./none", "./none"),
    "no such encoder": ("name: x\non: topics\nencoder: ./none", "./none"),
    "prompt on topics": ("name: x\non: topics\ntechnique: prompt_tuning", "prompt_tuning on topics"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_loaded(case, tmp_path, monkeypatch, capsys):
    import train

    def loaded(*_, **__):
        raise AssertionError("something was loaded")

    for name in ("load_language_model", "load_classifier", "load_encoder"):
        monkeypatch.setattr(helpers, name, loaded)
    monkeypatch.setattr(train, "trainer_settings", loaded)  # starts the processes' connections
    monkeypatch.chdir(tmp_path)
    text, said = BAD[case]
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert train.main([str(path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("Stopped: ") and said in told and len(told.splitlines()) < 12


def test_a_missing_recipe_is_refused(tmp_path, capsys):
    import train

    assert train.main([str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: no readable YAML file" in capsys.readouterr().err


@pytest.mark.skipif(not LONG, reason="twenty seconds for one sentence: LONG=1 make test")
def test_too_few_processes_by_the_launch_line_that_starts_one(here):
    """`accelerate launch --cpu --num_processes 2` starts one, in silence."""
    job = launch(here, "accelerate.commands.launch --quiet --cpu --num_processes 2", "lonely", processes=2)
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 1 and "processes=2, but 1 run" in said and "Traceback" not in said, said


def test_the_shipped_recipe_is_that_of_notebook_2():
    from recipe import Recipe, read_recipe, settle

    assert settle(read_recipe(SCALE / "recipe.yaml"), 10e6) == settle(Recipe("lora", save_every=50), 10e6)
    assert len((SCALE / "train.py").read_text(encoding="utf-8").splitlines()) <= 250


def test_the_page_names_every_key():
    from recipe import Recipe

    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    about = page.partition("## The recipe")[2].partition("\n## ")[0]
    assert {field.name for field in fields(Recipe)} <= set(re.findall(r"`(\w+)`", about))


@pytest.mark.parametrize(
    ("technique", "size", "numbers"), [("lora", 6e8, (16, 2e-4, 8, 1)), ("qlora", 7e9, (16, 2e-4, 1, 8))]
)
def test_larger_models_get_the_notebooks_numbers(technique, size, numbers):
    from recipe import Recipe, settle

    recipe = settle(Recipe("x", technique=technique), size)
    assert (recipe.rank, recipe.rate, recipe.batch, recipe.gathered) == numbers
    with pytest.raises(helpers.errors.ParameterError, match="give a rate, such as 1e-5"):
        settle(Recipe("x", technique="full_fine_tuning"), size)
