"""Our side: the cells of the notebooks themselves, executed in order, with the sizes of the row."""

import ast
import dataclasses
import json
import sys
import zlib

import helpers
from benchmarks import FOLDER, ROOT, key_of, main, perplexity
from helpers.docstrings import Docstrings, Pair

SETUP = {  # cells that come before what is measured; [:-1]: without its last statement, which would train or show
    "features": ("01_feature_extraction", "imports parameters data fit-probe encoder fill-pool mean-pool in-batches"),
    "topics": ("02_lora", "imports parameters topics trainer-settings fit classifier adapt[:-1]"),
    "lora": (
        "02_lora",
        "imports parameters docstrings topics language-model picture trainer-settings fit flat teach[:-1]",
    ),
    "qlora": ("03_qlora", "imports parameters board formats load docstrings[:5] teach[:-1]"),
    "prompt": (
        "04_prompt_tuning",
        "imports parameters board docstrings writer soft-prompt equal allowance start teach",
    ),
    "generation": ("02_lora", "imports parameters docstrings topics language-model six[:-1] as-it-is[:1]"),
}


def cells(data, name, **parameters):
    """What the cells of SETUP define; `parameters` replace those of the notebook, and data.json the reading."""
    notebook, names = SETUP[name]
    first, _, then = names.partition(" parameters ")
    helpers.load_docstrings = lambda style, code="": docstrings(data, style)
    space = execute({"helpers": helpers}, notebook, first, "parameters")
    space |= {name: value for name, value in parameters.items() if name in space} | {"results_dir": str(FOLDER / "run")}
    return execute(space, notebook, *then.split())


def execute(space, notebook, *names):
    """Execute cells of a notebook, or a part of their statements, as in `teach[:-1]`."""
    found = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    source = {cell["id"]: "".join(cell["source"]) for cell in found}
    for cell, _, part in (name.partition("[:") for name in names):
        tree = ast.parse(source[cell])
        tree.body = tree.body[: int(part[:-1]) if part else None]
        exec(compile(tree, f"{notebook}, cell {cell}", "exec"), space)
    return space


def docstrings(data, style):
    splits = {split: [Pair(*pair, "") for pair in pairs] for split, pairs in data["docstrings"].items()}
    return Docstrings("docstrings", style, splits, "", {}, [])


def features(data, clock, *, task, train_examples, seed, few=False):
    """Notebook 1: embed and fit. With few examples only what is learned from is timed, else all texts, and answers."""
    space = cells(data, "features", task=path_of(task), train_examples=train_examples, seed=seed)
    tests = {split: space["texts"].pop(split) for split in list(space["texts"]) if few and split != "train"}
    with clock:
        execute(space, "01_feature_extraction", "embed", "few-labels")
        fitted = space["frozen_features"](space["last"]["train"], space["targets"]["train"])
        answers = {split: fitted.predict(v) for split, v in space["last"].items() if split.startswith("test")}
    answers |= {s: fitted.predict(space["embed"](t)[:, -1]) for s, t in tests.items() if s.startswith("test")}
    return {split: 100 * float((found == space["targets"][split]).mean()) for split, found in answers.items()}


def topics(data, clock, *, technique, task, train_examples, steps, seed):
    """Notebook 2 on topics: LoRA on query and value, or everything."""
    space = cells(data, "topics", task=task, train_examples=train_examples, steps=steps, seed=seed)
    space["here"] = {"machine": space["machine"], "seed": seed}
    learned, whole = space["data"], {"train": space["data"].splits["train"]}
    with clock:
        run = space["adapt"](technique, dataclasses.replace(learned, splits=whole))
    found = {}
    for split in ("test", "test_shifted"):
        rows = learned.rows(split, space["tokenizer"])
        logits = helpers.predict(run.model, rows, space["collate"], machine=space["machine"])
        found[split] = 100 * float(learned.judge(split, logits)["accuracy"].mean())
    return found


def language(data, clock, *, technique, steps, seed):
    """Notebooks 2, 3 and 4 on docstrings: LoRA, QLoRA, a soft prompt."""
    space = cells(data, technique, steps=steps, seed=seed)
    space["board"].step_loss = None  # it would count memory, which takes a step more
    with clock:
        run = space["teach"](technique, *{"qlora": ["nf4"]}.get(technique, []))
    return perplexity(run.model, docstrings(data, "google").rows("test", space["words"]), space["words"].pad_token_id)


def generation(data, clock, *, seed):
    space = cells(data, "generation", seed=seed)
    with clock:
        replies = space["ask"](space["writer"], space["judged"])
    return {"answers": [zlib.crc32(reply.text.encode()) for reply in replies]}


def path_of(task):
    return str(FOLDER / f"{task}.csv") if task == "many" else task


def prepare(draws, quick):
    """Write data.json: what both sides read. The texts with 77 and 150 labels are docstrings of installed packages."""
    from tests import docstrings as text

    text.FILES = 20 if quick else 2_000
    for name, rows, labels in (("many", 10_000, 77), ("growth", 12_000, 150)):
        size = {"rows": 300, "labels": 8, "depth": 2} if quick else {"rows": rows, "labels": labels, "depth": 3}
        text.write_csv(FOLDER / f"{name}.csv", **size)
    data = {"topics": {}}
    for task, train_examples, seed in draws:
        drawn = helpers.load_task(path_of(task), train_examples=train_examples, seed=seed)
        splits = {split: [drawn.texts(split), drawn.targets(split)] for split in drawn.splits}
        data["topics"][key_of(task, train_examples, seed)] = {"labels": len(drawn.labels), **splits}
    docs = helpers.load_docstrings("google")
    data["docstrings"] = {split: [pair[:2] for pair in pairs] for split, pairs in docs.splits.items()}
    if quick:
        data["docstrings"] = {split: pairs[:40] for split, pairs in data["docstrings"].items()}
    data |= {"encoder": str(helpers.hub.find_model(helpers.hub.ENCODER)[0])}
    data |= {"language_model": str(helpers.hub.LANGUAGE_MODEL)}
    (FOLDER / "data.json").write_text(json.dumps(data), encoding="utf-8")


SIDES = {"features": features, "topics": topics, "language": language, "generation": generation}

if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(**json.loads(sys.argv[2]))
    else:
        main(SIDES)
