"""Pretrain the small language model from random weights.

    python -m pretraining.train                      two CPU cores, about 90 minutes, to results/language_model
    python -m pretraining.train --preset gpu         a GPU: larger, and many more tokens (not tried)
    python -m pretraining.train --steps 50 --folder /tmp/try

Stopped and started again, it goes on from its last checkpoint. The matrices learn by Muon (Jordan 2024), embeddings and
norms by AdamW; the learning rate warms up, stays, and falls in a straight line to zero; sequences grow from
256 to 1024 tokens on the way, because attention over short ones is cheap.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers import choose_machine
from pretraining import corpus
from pretraining.corpus import ROOT, Text, digest, packages, read_corpus
from pretraining.score import score_texts
from tools.measure import hardware

PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"
# (share of all tokens, length): the last stage teaches positions up to the longest.
STAGES = ((0.70, 256), (0.20, 512), (0.10, 1024))
LONGEST = 1024
EVALUATE_EVERY, CHECKPOINT_EVERY, PRINT_EVERY = 250, 250, 25  # steps


@dataclass(frozen=True)
class Recipe:
    """All that decides the result, apart from the machine."""

    width: int = 320
    layers: int = 6
    mlp_width: int = 896
    head_width: int = 64
    vocabulary: int = 8192
    steps: int = 2400
    tokens_per_step: int = 8192
    micro_batch_tokens: int = 2048  # what the processor computes at once: small enough for a CPU's cache
    muon_lr: float = 0.02
    adamw_lr: float = 0.003
    weight_decay: float = 0.05
    warmup: float = 0.03  # share of all steps
    decay: float = 0.7  # share of all steps
    seed: int = 0
    only: str = ""  # one kind of text, such as "docstring"; else all


PRESETS = {
    "cpu": Recipe(),
    # Never run: no GPU was to be had. About 160 million tokens, ten times the corpus; 23 million parameters, so that
    # the file stays below 48 MB. Meant for a card with bfloat16 (Ampere or newer).
    "gpu": Recipe(width=448, layers=8, mlp_width=1216, steps=5000, tokens_per_step=32768, micro_batch_tokens=8192),
}


def train_tokenizer(texts: list[Text], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `size` entries: every text can be written, so nothing is ever unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((t.text for t in texts if t.split == "train"), trainer)
    start = tokenizer.token_to_id(START)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A {START} $B", special_tokens=[(START, start)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # The class by its older name, which every version knows; and not how this machine happened to load it.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("backend", "is_local", "local_files_only"):
        config.pop(name, None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All texts in one array of token ids, each with its start and end, and the places where they begin."""
    pieces, starts, place = [], [], 0
    for i in range(0, len(texts), 4096):
        for ids in tokenizer(texts[i : i + 4096], verbose=False)["input_ids"]:
            pieces.append(np.array([*ids, tokenizer.eos_token_id], dtype=np.uint16))
            starts.append(place)
            place += len(pieces[-1])
    return np.concatenate(pieces), np.array([*starts, place])


class Stream:
    """The training texts, in another order in every epoch, as one endless row of tokens."""

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, seed: int) -> None:
        self.tokens, self.starts, self.seed = tokens, starts, seed
        self.epoch, self.row = -1, np.array([], dtype=np.uint16)

    def read(self, place: int, count: int) -> torch.Tensor:
        """Tokens number `place` to `place + count`, counted from the beginning of the first epoch."""
        parts = []
        while count:
            epoch, within = divmod(place, len(self.tokens))
            if epoch != self.epoch:
                order = np.random.default_rng([self.seed, epoch]).permutation(len(self.starts) - 1)
                self.row = np.concatenate([self.tokens[self.starts[i] : self.starts[i + 1]] for i in order])
                self.epoch = epoch
            parts.append(self.row[within : within + count])
            place, count = place + len(parts[-1]), count - len(parts[-1])
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp_width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // recipe.head_width,
        num_key_value_heads=recipe.width // recipe.head_width,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(config)


def check(recipe: Recipe) -> None:
    """Refuse at the start what would fail after hours."""
    if recipe.width % recipe.head_width:
        raise SystemExit(f"--width {recipe.width}: expected a multiple of --head-width {recipe.head_width}.")
    if recipe.tokens_per_step % LONGEST or recipe.tokens_per_step <= 0:
        raise SystemExit(f"--tokens-per-step {recipe.tokens_per_step}: expected a multiple of {LONGEST}.")
    if not (recipe.steps > 0 and 0 < recipe.warmup < 1 and 0 < recipe.decay <= 1):
        raise SystemExit("expected --steps above 0, --warmup and --decay between 0 and 1.")


def length_at(step: int, recipe: Recipe) -> int:
    passed = 0.0
    for share, length in STAGES:
        passed += share
        if step < round(passed * recipe.steps):
            return length
    return STAGES[-1][1]


def rate_at(step: int, recipe: Recipe) -> float:
    """The share of the full learning rate: up, flat, down in a straight line."""
    warmup, decay = recipe.warmup * recipe.steps, recipe.decay * recipe.steps
    return min(1.0, (step + 1) / warmup, (recipe.steps - step) / decay)


def next_token_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean loss in nats; `ids` is (sequences, length + 1)."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = nn.functional.linear(hidden, model.lm_head.weight)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def orthogonal(grad: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> torch.Tensor:
    """Newton-Schulz iteration of Muon (Jordan 2024) in float32.

    PyTorch's is in bfloat16, which took 24 times as long on a processor that has no instructions for it.
    """
    a, b, c = coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


def train(
    recipe: Recipe,
    folder: Path,
    cache: Path,
    *,
    compiled: bool,
    start: Path | None = None,
    stop_at: int | None = None,
) -> None:
    check(recipe)
    machine = choose_machine()
    print(machine)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, stream, held_out = _prepare(recipe, cache, start)
    model = build_model(recipe, tokenizer)
    if start:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(start, dtype=torch.float32).state_dict())
    model.to(machine.device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; {len(stream.tokens):,} tokens to train on")
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    kept = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in kept]
    optimizers = [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    if machine.device == "cpu" and machine.precision == torch.float32:
        torch.optim._muon._zeropower_via_newtonschulz = orthogonal
    full_rates = [recipe.muon_lr, recipe.adamw_lr]
    log: list[dict[str, float]] = []
    first, seconds = 0, 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["recipe"] != dataclasses.asdict(recipe):
            raise SystemExit(f"{checkpoint} is of another recipe. Delete it, or give another --folder.")
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        first, seconds, log = state["step"], state["seconds"], state["log"]
        print(f"goes on from step {first}")
    # Without dynamic shapes: one compilation for each of the three lengths is faster than one for all.
    loss_of = torch.compile(next_token_loss, dynamic=False) if compiled else next_token_loss
    since, tokens_since, losses = time.perf_counter(), 0, []
    model.train()
    for step in range(first, recipe.steps):
        if step == stop_at:
            return
        length = length_at(step, recipe)
        # On a CPU the plain formula beats the fused kernel as long as the scores fit its cache.
        model.set_attn_implementation("eager" if machine.device == "cpu" and length <= 512 else "sdpa")
        rows = recipe.tokens_per_step // length
        row = stream.read(step * recipe.tokens_per_step, rows * length + 1)
        batch = row.unfold(0, length + 1, length).to(machine.device)
        parts = batch.split(max(1, recipe.micro_batch_tokens // length))
        total = torch.zeros((), device=machine.device)
        for part in parts:
            with machine.autocast():
                loss = loss_of(model, part) / len(parts)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer, full in zip(optimizers, full_rates):
            for group in optimizer.param_groups:
                group["lr"] = full * rate_at(step, recipe)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(total.item())
        if not np.isfinite(losses[-1]):
            raise SystemExit(f"step {step}: the loss is {losses[-1]}. Lower --muon-lr and --adamw-lr.")
        tokens_since += rows * length
        done = step + 1
        if done % PRINT_EVERY == 0 or done == recipe.steps:
            passed = time.perf_counter() - since
            seconds += passed
            speed = tokens_since / passed
            left = (recipe.steps - done) * recipe.tokens_per_step / speed / 60
            print(
                f"step {done:5}/{recipe.steps}  length {length:4}  loss {np.mean(losses):.3f}  "
                f"{speed:6,.0f} tokens/s  {left:4.0f} minutes left",
                flush=True,
            )
            entry = {
                "step": done,
                "tokens": done * recipe.tokens_per_step,
                "length": length,
                "train_loss": round(float(np.mean(losses)), 4),
                "seconds": round(seconds, 1),
            }
            if done % EVALUATE_EVERY == 0 or done == recipe.steps:
                score = score_texts(model, tokenizer, held_out, device=machine.device)
                entry["held_out_loss"] = round(score.loss, 4)
                entry["held_out_bits_per_byte"] = round(score.bits_per_byte, 4)
                print(f"      held-out docstrings: {score}", flush=True)
                model.train()
            log.append(entry)
            if done % CHECKPOINT_EVERY == 0 and done < recipe.steps:
                _checkpoint(checkpoint, recipe, model, optimizers, done, seconds, log)
            since, tokens_since, losses = time.perf_counter(), 0, []
    _save(model, tokenizer, folder, recipe, log, machine.reason, start)
    checkpoint.unlink(missing_ok=True)
    print(f"\n{'step':>6}{'tokens':>14}{'train loss':>12}{'held out':>10}{'bits/byte':>11}{'minutes':>9}")
    for e in log:
        if "held_out_loss" in e:
            print(
                f"{e['step']:>6}{e['tokens']:>14,}{e['train_loss']:>12.3f}{e['held_out_loss']:>10.3f}"
                f"{e['held_out_bits_per_byte']:>11.3f}{e['seconds'] / 60:>9.1f}"
            )


def _prepare(recipe: Recipe, cache: Path, start: Path | None) -> tuple[PreTrainedTokenizerFast, Stream, list[str]]:
    """Tokenizer, training stream and a fixed quarter of the held-out docstrings; kept in `cache` between runs."""
    # Another set of packages, another Python or another corpus.py gives other texts.
    origin = [(p.name, p.version) for p in packages()], sys.version, Path(corpus.__file__).read_text(encoding="utf-8")
    if start:  # what goes on keeps its tokenizer
        origin += ((start / "tokenizer.json").read_text(encoding="utf-8"),)
    key = hashlib.sha256(repr(origin).encode()).hexdigest()[:16]
    stored = cache / f"{key}-{recipe.vocabulary}{recipe.only}"
    if not stored.exists():
        print("reading the corpus from the installed packages: a few minutes, once")
        texts = read_corpus()
        print(f"corpus: {len(texts):,} texts, sha256 {digest(texts)}")
        draft = cache / f"{stored.name}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        tokenizer = (
            PreTrainedTokenizerFast.from_pretrained(start) if start else train_tokenizer(texts, recipe.vocabulary)
        )
        save_tokenizer(tokenizer, draft)
        chosen = [t.text for t in texts if t.split == "train" and recipe.only in ("", t.kind)]
        tokens, starts = encode(tokenizer, chosen)
        np.savez(draft / "tokens.npz", tokens=tokens, starts=starts)
        held_out = [t.text for t in texts if t.split == "held_out_docstrings"][::4]
        (draft / "held_out.json").write_text(json.dumps(held_out), encoding="utf-8")
        os.replace(draft, stored)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(stored)
    arrays = np.load(stored / "tokens.npz")
    held_out = json.loads((stored / "held_out.json").read_text(encoding="utf-8"))
    return tokenizer, Stream(arrays["tokens"], arrays["starts"], recipe.seed), held_out


def _checkpoint(path: Path, recipe, model, optimizers, step, seconds, log) -> None:
    draft = path.with_suffix(".draft")
    torch.save(
        {
            "recipe": dataclasses.asdict(recipe),
            "model": model.state_dict(),
            "optimizers": [o.state_dict() for o in optimizers],
            "step": step,
            "seconds": seconds,
            "log": log,
        },
        draft,
    )
    os.replace(draft, path)


def _save(model, tokenizer, folder: Path, recipe: Recipe, log: list, processor: str, start: Path | None) -> None:
    model.set_attn_implementation("sdpa")
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    about = {
        "recipe": dataclasses.asdict(recipe),
        "hardware": f"{hardware()}; {processor}",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "curve": log,
        "before": [],  # the runs that it goes on from
    }
    if start and (start / "training_log.json").exists():
        earlier = json.loads((start / "training_log.json").read_text(encoding="utf-8"))
        about["before"] = [*earlier.pop("before", []), earlier]
    (folder / "training_log.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pretraining.train", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "language_model", help="where it goes")
    parser.add_argument("--start", type=Path, help="a model of the same shape to go on from, instead of random weights")
    parser.add_argument("--cache", type=Path, default=ROOT / "results" / "pretraining", help="tokens of the corpus")
    parser.add_argument(
        "--compile", choices=("auto", "yes", "no"), default="auto", help="auto: on Linux with a compiler"
    )
    for field in dataclasses.fields(Recipe):
        kind = type(getattr(PRESETS["cpu"], field.name))
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--stop-at", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [field.name for field in dataclasses.fields(Recipe)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    recipe = dataclasses.replace(PRESETS[options.preset], **given)
    compiled = options.compile == "yes"
    if options.compile == "auto":  # elsewhere the compiler that comes with the system often lacks OpenMP
        headers = Path(sysconfig.get_path("include"), "Python.h")
        compiled = sys.platform == "linux" and bool(shutil.which("c++")) and headers.exists()
    train(recipe, options.folder, options.cache, compiled=compiled, start=options.start, stop_at=options.stop_at)


if __name__ == "__main__":
    main()
