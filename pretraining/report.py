"""Measure the shipped language model, and write its card from what was measured.

    python -m pretraining.report                measure (about half an hour on two cores), then write the card
    python -m pretraining.report --only card    write the card again from data/language_model/measured.json

Weights made anew need their hashes in helpers/hub.py first: `sha256sum data/language_model/*`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import math
import time
from collections import Counter
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers import choose_machine, load_language_model, plots
from helpers.hub import LANGUAGE_MODEL
from helpers.scoreboard import versions
from pretraining.corpus import HELD_OUT_PACKAGES, ROOT, Text, canonical, digest, packages, read_corpus
from pretraining.ngrams import Trigram, lookup, windows
from pretraining.score import score_texts
from pretraining.train import LONGEST, STAGES, encode
from tools.measure import hardware

PARTS = ("speed", "text", "copying")
KINDS = ("held_out_docstrings", "held_out_packages")
WINDOW = 13  # tokens; a run of so many that also stands in the training text counts as shared
MEMORISED = (500, 50)  # texts tried, tokens given and tokens compared
COPIED = (200, 64)  # held-out docstrings, and tokens of each that are given twice
PROMPTS = (
    "Return the",
    "Compute the mean of",
    "Raises\n------\nValueError\n",
    "def load_model(path):\n",
    "This function is deprecated",
    "Open a connection to the server and",
    "The learning rate",
    "Why does my model",
    "Question: My GPU runs out of memory when I train.\nReply:",
    "Once upon a time",
)


def measure(folder: Path, part: str) -> dict[str, Any]:
    """One part of what the card says in numbers."""
    machine = choose_machine()
    print(machine)
    about = {
        "sha256": weights_sha256(folder),
        "hardware": hardware(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
    }
    begin = time.perf_counter()
    model, tokenizer = load_language_model(str(folder), device=machine.device)
    load_seconds = time.perf_counter() - begin
    if part == "speed":
        return {
            **about,
            "parameters": sum(p.numel() for p in model.parameters()),
            "embedding_parameters": model.get_input_embeddings().weight.numel(),
            "file_bytes": {name: (folder / name).stat().st_size for name in ("model.safetensors", "tokenizer.json")},
            "load_seconds": round(load_seconds, 2),
            "tokens_per_second": round(generation_speed(model, tokenizer), 1),
            "samples": samples(model, tokenizer),
        }
    if part == "copying":
        # The held-out packages come first, so the others change nothing about their texts.
        return {**about, **copying(model, tokenizer, [t.text for t in read_corpus(HELD_OUT_PACKAGES)])}
    corpus = read_corpus()
    tokens, starts = encode(tokenizer, [t.text for t in corpus if t.split == "train"])
    untrained, _ = load_language_model(str(folder), random_weights=True, device=machine.device, quiet=True)
    scores, overlap = bits_per_byte(model, untrained, tokenizer, corpus, tokens)
    return {
        **about,
        "corpus_sha256": digest(corpus),
        "corpus": describe(corpus),
        "packages": package_table(corpus),
        "training_tokens": len(tokens),
        "bits_per_byte": scores,
        "overlap": overlap,
        "memorised": memorised(model, tokenizer, corpus, tokens, starts),
    }


def weights_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def generation_speed(model, tokenizer, new_tokens: int = 200) -> float:
    """Tokens a second, one text at a time, greedy, with cache; the second of two runs."""
    inputs = tokenizer("Return the", return_tensors="pt").to(model.device)
    for _ in range(2):
        begin = time.perf_counter()
        model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        seconds = time.perf_counter() - begin
    return new_tokens / seconds


def samples(model, tokenizer) -> list[dict[str, str]]:
    """One continuation of each fixed prompt, drawn with seed 0 and shown whatever came."""
    found = []
    torch.manual_seed(0)
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        out = model.generate(**inputs, max_new_tokens=60, do_sample=True, temperature=0.8, top_p=0.95)
        new = out[0, inputs["input_ids"].shape[1] :]
        ended = tokenizer.eos_token_id in new
        found.append({"prompt": prompt, "text": tokenizer.decode(new, skip_special_tokens=True), "ended": bool(ended)})
    return found


def describe(corpus: list[Text]) -> list[dict[str, Any]]:
    sizes: Counter = Counter()
    counts: Counter = Counter()
    for t in corpus:
        counts[t.split, t.kind] += 1
        sizes[t.split, t.kind] += len(t.text.encode())
    return [{"split": s, "kind": k, "texts": counts[s, k], "bytes": sizes[s, k]} for s, k in sorted(counts)]


def package_table(corpus: list[Text]) -> list[dict[str, Any]]:
    counts, sizes = Counter(), Counter()
    for t in corpus:
        counts[t.package] += 1
        sizes[t.package] += len(t.text.encode())
    table = []
    for package in packages():
        name = canonical(package.name)
        if counts[name]:
            row = {"package": name, "version": package.version, "licence": licence(package.metadata)}
            table.append({**row, "texts": counts[name], "bytes": sizes[name]})
    return table


def licence(about: metadata.PackageMetadata) -> str:
    """What the package says of itself: the expression, the classifiers, or the first line of the licence field."""
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    first = (about.get("License") or "").strip().splitlines() or [""]
    return about.get("License-Expression") or ", ".join(classifiers) or first[0][:60] or "see its files"


def bits_per_byte(
    model, untrained, tokenizer, corpus: list[Text], tokens: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model and what it must beat, on both kinds of held-out text; and how much of that text training saw."""
    device = str(model.device)
    trigram = Trigram(tokens, len(tokenizer))
    seen = np.unique(windows(tokens, WINDOW))
    scores, overlap = {}, {}
    for kind in KINDS:
        texts = [t.text for t in corpus if t.split == kind]
        size = sum(len(t.encode()) for t in texts)
        ids, starts = encode(tokenizer, texts)
        text_tokens = ~np.isin(ids, [tokenizer.bos_token_id, tokenizer.eos_token_id])
        # The row begins as it does in training: after the end of another text.
        p3 = trigram.probabilities(np.concatenate([[tokenizer.eos_token_id], ids]))
        p3 = np.concatenate([[1.0], p3])  # the first start token is given
        score = score_texts(model, tokenizer, texts, device=device)
        shared = [lookup(seen, 1, windows(ids[a:b], WINDOW)) for a, b in pairwise(starts)]
        fresh = [text for text, s in zip(texts, shared) if not s.any()]
        fresh_score = score_texts(model, tokenizer, fresh, device=device)
        scores[kind] = {
            "texts": len(texts),
            "bytes": size,
            "tokens": score.tokens,
            "unigram": _bits(trigram.unigram[ids[text_tokens]], size),
            "trigram": _bits(p3[text_tokens], size),
            "xz": round(8 * len(lzma.compress("\n\n".join(texts).encode(), preset=9)) / size, 4),
            "before training": round(score_texts(untrained, tokenizer, texts, device=device).bits_per_byte, 4),
            "model": round(score.bits_per_byte, 4),
            "loss": round(score.loss, 4),
        }
        overlap[kind] = {
            "shared_windows": round(float(np.concatenate(shared).mean()), 4),
            "fresh_texts": len(fresh),
            "model_on_fresh": round(fresh_score.bits_per_byte, 4),
        }
    for package in HELD_OUT_PACKAGES:
        texts = [t.text for t in corpus if t.package == package and t.split == "held_out_packages"]
        score = score_texts(model, tokenizer, texts, device=device)
        scores[package] = {"texts": len(texts), "model": round(score.bits_per_byte, 4)}
    return scores, overlap


def _bits(probabilities: np.ndarray, size: int) -> float:
    return round(float(-np.log(probabilities).sum() / math.log(2) / size), 4)


@torch.no_grad()
def memorised(model, tokenizer, corpus, tokens, starts) -> dict[str, Any]:
    """How often 50 tokens of a training text, given the 50 before them, come back word for word (greedy)."""
    tried, length = MEMORISED
    draw = np.random.default_rng(0)
    held, held_starts = encode(tokenizer, [t.text for t in corpus if t.split == KINDS[0]])
    found = {"tokens": length}
    for name, row, places in (("training", tokens, starts), ("held_out", held, held_starts)):
        long = [a for a, b in pairwise(places) if b - a > 2 * length + 1]
        chosen = draw.choice(long, size=min(tried, len(long)), replace=False)
        ids = torch.from_numpy(np.stack([row[a : a + 2 * length] for a in chosen]).astype(np.int64)).to(model.device)
        same = 0
        for part in ids.split(50):
            given = part[:, :length]
            out = model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=length,
                min_new_tokens=length,
                do_sample=False,
            )
            same += int((out[:, length:] == part[:, length:]).all(dim=1).sum())
        found[name] = {"tried": len(chosen), "reproduced": same}
    return found


@torch.no_grad()
def copying(model, tokenizer, texts: list[str]) -> dict[str, Any]:
    """Loss for each token, in nats, of passages that stand twice in a row: where they are new, and where they return.

    A model that can copy loses next to nothing the second time; names of parameters are copied.
    """
    tried, length = COPIED
    ids = [ids[1:] for ids in tokenizer(texts, verbose=False)["input_ids"] if len(ids) > length]
    passages = torch.tensor([row[:length] for row in ids[:tried]], device=model.device)
    start = torch.full((len(passages), 1), tokenizer.bos_token_id, device=model.device)
    twice = torch.cat([start, passages, passages], 1)
    losses = []
    for rows in twice.split(25):
        logits = model(input_ids=rows[:, :-1]).logits.transpose(1, 2).float()
        losses.append(torch.nn.functional.cross_entropy(logits, rows[:, 1:], reduction="none"))
    mean = torch.cat(losses).mean(0)
    first, second = mean[:length].mean().item(), mean[length:].mean().item()
    return {"passages": len(passages), "tokens": length, "first": round(first, 4), "second": round(second, 4)}


# ---------------------------------------------------------------- the card


def card(found: dict[str, Any], log: dict[str, Any]) -> str:
    """The text of the model card: pretraining/card.md, filled with what was measured and recorded."""
    curve = whole_curve(log)
    template = (ROOT / "pretraining" / "card.md").read_text(encoding="utf-8")
    speed, text = found["speed"], found["text"]
    held_out = [name for name in text["bits_per_byte"] if name not in KINDS]
    return template.format(
        **{name: text["bits_per_byte"][kind] | text["overlap"][kind] for name, kind in zip(("docs", "other"), KINDS)},
        **text["memorised"],
        speed=speed,
        text=text,
        copying=found["copying"],
        recipe=log["recipe"],
        heads=log["recipe"]["width"] // log["recipe"]["head_width"],
        longest=LONGEST,
        stages=", then ".join(f"{share:.0%} at {length} tokens" for share, length in STAGES),
        epochs=curve[-1]["tokens"] / text["training_tokens"],
        last=curve[-1],
        runs="\n".join(map(_run, runs_of(log))),
        held_out_names=", ".join(held_out),
        each=", ".join(f"{name} {text['bits_per_byte'][name]['model']:.3f}" for name in held_out),
        window=WINDOW,
        sizes=", ".join(f"`{name}` {size / 1e6:.2f} MB" for name, size in speed["file_bytes"].items()),
        package_count=len(text["packages"]),
        samples="\n\n".join(map(_sample, speed["samples"])),
        corpus_table=_table(
            ("used for", "kind", "texts", "MB"),
            "{split} | {kind} | {texts:,} | {megabytes:.1f}",
            [
                {**row, "split": row["split"].replace("_", " "), "megabytes": row["bytes"] / 1e6}
                for row in text["corpus"]
            ],
        ),
        curve_table=_table(
            ("tokens", "length", "loss on training text", "loss on held-out docstrings", "bits per byte", "minutes"),
            "{tokens:,} | {length} | {train_loss:.3f} | {held_out_loss:.3f} | {bits:.3f} | {minutes:.0f}",
            [
                {**e, "bits": e["held_out_bits_per_byte"], "minutes": e["seconds"] / 60}
                for e in curve
                if "held_out_loss" in e
            ],
        ),
        package_table=_table(
            ("package", "licence as the package states it", "texts", "kB"),
            "{package} {version} | {licence} | {texts:,} | {kilobytes:,.0f}",
            [{**row, "kilobytes": row["bytes"] / 1e3} for row in text["packages"]],
        ),
    )


def runs_of(log: dict[str, Any]) -> list[dict[str, Any]]:
    """The logs of all runs that made a model, from the first."""
    return [*log.get("before", []), log]


def whole_curve(log: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of all runs in a row, tokens and seconds added up."""
    found, tokens, seconds = [], 0, 0.0
    for run in runs_of(log):
        found += [{**e, "tokens": e["tokens"] + tokens, "seconds": e["seconds"] + seconds} for e in run["curve"]]
        tokens, seconds = found[-1]["tokens"], found[-1]["seconds"]
    return found


def _run(log: dict[str, Any]) -> str:
    """One run in a sentence or two."""
    recipe, last = log["recipe"], log["curve"][-1]
    kind = f" of {recipe['only']}s alone" if recipe.get("only") else ""
    return (
        f"- {last['tokens']:,} tokens{kind}, in {recipe['steps']:,} steps of {recipe['tokens_per_step']:,}. Learning "
        f"rates {recipe['muon_lr']} (Muon) and {recipe['adamw_lr']} (AdamW); warm-up over {recipe['warmup']:.0%} of "
        f"the steps, then flat, then in a straight line to zero over the last {recipe['decay']:.0%}; seed "
        f"{recipe['seed']}. {last['seconds'] / 60:.0f} minutes on {log['hardware']} ({log['date']}), "
        f"{last['tokens'] / last['seconds']:,.0f} tokens a second."
    )


def _table(head: tuple[str, ...], line: str, rows: list[dict[str, Any]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(line.format(**row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _sample(sample: dict[str, str]) -> str:
    text = sample["prompt"] + "⟨" + sample["text"] + ("⟩" if sample["ended"] else "…")
    fence = "~~~~"
    return f"{fence}text\n{text}\n{fence}"


def plot_curve(curve: list[dict[str, Any]], path: Path) -> None:
    """Loss against tokens seen, for the training text and for the held-out docstrings."""
    series = {
        "training text": {e["tokens"] / 1e6: [e["train_loss"]] for e in curve},
        "held-out docstrings": {e["tokens"] / 1e6: [e["held_out_loss"]] for e in curve if "held_out_loss" in e},
    }
    ax = plots.lines(series, xlabel="tokens seen (millions)", ylabel="loss (nats for each token)")
    for line in ax.get_lines()[:1]:
        line.set(marker="", linewidth=1)
    ax.set_ylim(top=6.5)
    ax.legend(frameon=False)
    ax.figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pretraining.report", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=LANGUAGE_MODEL)
    parser.add_argument("--only", choices=(*PARTS, "card"), help="measure one part again, or only write the card")
    options = parser.parse_args()
    path = options.folder / "measured.json"
    for part in PARTS if options.only is None else [p for p in PARTS if p == options.only]:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found[part] = measure(options.folder, part)
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    log = json.loads((options.folder / "training_log.json").read_text(encoding="utf-8"))
    if absent := [part for part in PARTS if part not in found]:
        print(f"not measured yet: {', '.join(absent)}; no card")
        return
    if {found[part]["sha256"] for part in PARTS} != {weights_sha256(options.folder)}:
        raise SystemExit(f"{path}: measured on other weights, at least in part. Measure all parts again.")
    if options.folder.resolve() != LANGUAGE_MODEL:
        print(f"wrote {path}; the card is prose about one model, so it is written for {LANGUAGE_MODEL} only")
        return
    plot_curve(whole_curve(log), options.folder / "loss_curve.png")
    (options.folder / "README.md").write_text(card(found, log), encoding="utf-8")
    print(f"wrote {options.folder / 'README.md'}")


if __name__ == "__main__":
    main()
