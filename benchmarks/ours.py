"""Our side: the cells of the notebooks themselves, executed in order, with the sizes of the row."""

import ast
import dataclasses
import json
import zlib

import helpers
from benchmarks import FOLDER, JUDGED, ROOT, accuracy, main, perplexity
from helpers.docstrings import Docstrings, Pair

SETUP = {  # cells that come before what is measured; [:-1]: without its last statement, which would train or show
    "features": ("01_feature_extraction", "imports parameters data count-words encoder fill-pool mean-pool "
                                          "in-batches"),
    "topics": ("02_lora", "imports parameters topics trainer-settings fit classifier adapt[:-1]"),
    "lora": ("02_lora", "imports parameters docstrings topics language-model picture trainer-settings fit flat "
                        "teach[:-1]"),
    "qlora": ("03_qlora", "imports parameters board formats load docstrings[:5] teach[:-1]"),
    "prompt": ("04_prompt_tuning", "imports parameters board docstrings writer soft-prompt equal allowance start "
                                   "teach"),
    "generation": ("02_lora", "imports parameters docstrings topics language-model six[:-1] as-it-is[:1]"),
}  # fmt: skip


def cells(data, name, **parameters):
    """What the cells of SETUP define; `parameters` replace those of the notebook, and data.json the reading."""
    notebook, names = SETUP[name]
    first, _, then = names.partition(" parameters ")
    helpers.load_docstrings = lambda style, code="": docstrings(data, style)
    space = execute({"helpers": helpers}, notebook, first, "parameters")
    return execute(space | parameters | {"results_dir": str(FOLDER / "run")}, notebook, *then.split())


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
    return Docstrings("docstrings", style, splits, fingerprint="", undocumented=[])


def features(data, clock, *, task, **options):
    """Notebook 1: embed and fit, and answer."""
    space = cells(data, "features", task=path_of(task), **options)
    space["texts"] = {split: space["texts"][split] for split in ("train", *JUDGED)}
    with clock:
        execute(space, "01_feature_extraction", "embed", "few-labels")
        probe = space["frozen_features"](space["last"]["train"], space["targets"]["train"])
        answers = {split: probe.predict(space["last"][split]) for split in JUDGED}
    return accuracy(answers, space["targets"])


def topics(data, clock, *, technique, **options):
    """Notebook 2 on topics: LoRA on query and value, or everything."""
    space = cells(data, "topics", **options)
    space["here"] = {"machine": space["machine"], "seed": space["seed"]}
    task, fit_on = space["data"], dataclasses.replace(space["data"], splits={"train": space["data"].splits["train"]})
    with clock:
        model = space["adapt"](technique, fit_on).model
    rows = {split: task.rows(split, space["tokenizer"]) for split in JUDGED}
    answers = {s: helpers.predict(model, rows[s], space["collate"], machine=space["machine"]).argmax(1) for s in JUDGED}
    return accuracy(answers, {split: task.targets(split) for split in JUDGED})


def language(data, clock, *, technique, **options):
    """Notebooks 2, 3 and 4 on docstrings: LoRA, QLoRA, a soft prompt."""
    space = cells(data, technique, **options)
    space["board"].step_loss = None  # it would count memory, which takes a step more
    with clock:
        model = space["teach"](technique, *{"qlora": ["nf4"]}.get(technique, [])).model
    return perplexity(model, {split: space["docs"].rows(split, space["words"]) for split in JUDGED})


def generation(data, clock, **options):
    """Notebook 2: a docstring for each function of the test, in batches."""
    space = cells(data, "generation", **options)
    with clock:
        replies = space["ask"](space["writer"], space["judged"])
    return {"measure": "answers", "answers": [zlib.crc32(reply.text.encode()) for reply in replies]}


def path_of(task):
    return str(FOLDER / f"{task}.csv") if task == "many" else task


def prepare(data, clock, *, quick):
    """Write data.json: what both sides read. The texts with 77 and 150 labels are docstrings of installed packages."""
    from benchmarks.run import DOCS, jobs
    from tests import docstrings as text

    text.FILES = 20 if quick else 2_000
    for name, rows, labels in (("many", 10_000, 77), ("growth", 12_000, 150)):
        size = {"rows": 300, "labels": 8, "depth": 2} if quick else {"rows": rows, "labels": labels, "depth": 3}
        text.write_csv(FOLDER / f"{name}.csv", **size)
    data = {"encoder": str(helpers.hub.find_model(helpers.hub.ENCODER)[0]), "topics": {}}
    data["language_model"] = str(helpers.hub.LANGUAGE_MODEL)
    for told in (told for _, module, _, told in jobs(quick) if module == "ours" and "task" in told):
        task, train_examples, seed = (told[name] for name in ("task", "train_examples", "seed"))
        drawn = helpers.load_task(path_of(task), train_examples=train_examples, seed=seed)
        splits = {split: [drawn.texts(split), drawn.targets(split)] for split in ("train", *JUDGED)}
        data["topics"][f"{task} {train_examples} {seed}"] = splits
    pairs = helpers.load_docstrings("google").splits
    data["docstrings"] = {split: [pair[:2] for pair in pairs[split][: 40 if quick else DOCS]] for split in pairs}
    (FOLDER / "data.json").write_text(json.dumps(data), encoding="utf-8")
    return {}


if __name__ == "__main__":
    main(globals())
