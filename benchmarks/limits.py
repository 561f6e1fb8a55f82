"""The limit and what is between it and us: products, a profile, bytes read, a busy machine, and how cost grows."""

import re
import subprocess
import sys
import time
from collections import Counter

import torch  # before helpers: what is not set for OpenMP must stay so
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import helpers
from benchmarks import FOLDER, Clock, main, ours

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}
GROUPS = {  # by the names of torch's operations; the first that fits
    "matrix products": r"::(mm|addmm|bmm|baddbmm|mkldnn_linear|linear|matmul)$",
    "attention": r"attention",
    "4 bits to 16": r"bitsandbytes|dequant",
    "casts and copies": r"::(copy_|_to_copy|to|clone|cat|stack|index\w*|embedding\w*|(fill|zero|empty)\w*|contiguous)$",
    "optimiser": r"Optimizer|::(lerp_|addcmul_|addcdiv_|_foreach\w*|_fused\w*|linalg_vector_norm)$",
    "other tensor operations": r"^aten::|Backward|^autograd",
}


class Products(TorchDispatchMode):
    """Counts the matrix products of a block: which, of which shapes, strides and types."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            tensors = (a for a in args if isinstance(a, torch.Tensor))
            self.counts[func, tuple((tuple(t.shape), t.stride(), t.dtype) for t in tensors)] += 1
        return func(*args, **(kwargs or {}))

    def seconds(self):
        """How long all of them take alone, on numbers of the same shapes."""
        total = 0.0
        for (func, like), count in self.counts.items():
            some = [torch.empty_strided(shape, stride, dtype=dtype).fill_(0.5) for shape, stride, dtype in like]
            total += count * best(lambda func=func, some=some: func(*some))
        return total


def best(compute, times=3):
    """The shortest of some runs, in seconds."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        compute()
        found.append(time.perf_counter() - started)
    return min(found)


def rate_of(dtype, side=2048):
    """Operations a second of a large matrix product."""
    one, two = torch.randn(2, side, side).to(dtype)
    return 2 * side**3 / best(lambda: one @ two, 5)


def limit(data, clock, *, side, options):
    """A side of `ours` three times: undisturbed, with its products counted, and under the profiler."""
    run = lambda timer: ours.SIDES[side](data, timer, **options)  # noqa: E731
    run(clock)
    operations, products = FlopCounterMode(display=False), Products()
    run(Clock(operations, products))
    watched, profiled = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]), Clock()
    profiled.around = (watched,)
    run(profiled)
    groups = Counter()
    for event in watched.key_averages():
        name = next((group for group, names in GROUPS.items() if re.search(names, event.key)), "Python and the rest")
        groups[name] += event.self_cpu_time_total / 1e6
    groups["Python and the rest"] = max(0.0, profiled.found["seconds"] - sum(groups.values()))
    rates = {str(dtype).removeprefix("torch."): rate_of(dtype) for dtype in (torch.float32, torch.bfloat16)}
    found = {"operations": operations.get_total_flops(), "rates": rates, "products_seconds": products.seconds()}
    used = Counter(str(like[0][2]).removeprefix("torch.") for (_, like), n in products.counts.items() for _ in range(n))
    return found | {"profile": dict(groups), "types": dict(used)}


def reading(data, clock):
    """Generation: what each of its steps must read, and how fast this machine reads."""
    space, steps = ours.cells(data, "generation"), []
    space["writer"].register_forward_hook(lambda model, *_: steps.append(model))
    with clock:
        replies = space["ask"](space["writer"], space["judged"])
    shape, rows = space["writer"].config, len(replies) / -(-len(replies) // 64)  # of a batch, on average
    asked, written = ([len(space["words"](text)["input_ids"]) for text in texts] for texts in
                      (space["judged"], [reply.text for reply in replies]))  # fmt: skip
    cache = 8 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * rows
    cache *= (sum(asked) + sum(written) / 2) / len(replies)  # keys and values of 4 bytes; half is there on average
    big = torch.ones(2**28)
    found = {"steps": len(steps), "tokens": sum(written), "bytes_a_second": big.nbytes / best(big.sum, 5)}
    return found | {"weights_bytes": sum(p.nbytes for p in space["writer"].parameters()), "cache_bytes": cache}


def busy(data, clock, *, steps):
    """A loop of LoRA on docstrings alone, then beside a process that never rests."""
    space, alone = ours.cells(data, "lora", steps=steps), Clock()
    space["teach"]("warm-up", steps=2)
    with alone:
        space["teach"]("alone")
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with clock:
            space["teach"]("busy")
    finally:
        burner.kill()
    return {"alone": alone.found["seconds"]}


def probe(data, texts=2_000, labels=12):
    """Seconds of notebook 1's embedding and fitting."""
    space, both = ours.cells(data, "features", task=str(FOLDER / "growth.csv"), train_examples=0), [Clock(), Clock()]
    space["texts"] = {"train": (3 * space["texts"]["train"])[:texts]}
    answers = (list(space["targets"]["train"] % labels) * 3)[:texts]
    with both[0]:
        ours.execute(space, "01_feature_extraction", "embed", "few-labels")
    with both[1]:
        space["frozen_features"](space["last"]["train"], answers)
    return {name: timer.found["seconds"] for name, timer in zip(("embedding, s", "fitting, s"), both)}


def step(rank=16, prompt=0, tokens=80, width=0):
    """Seconds and MiB of a training step of four texts, of the small model or of a random one of this width."""
    import peft
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear")
    if prompt:
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prompt)
    shape = helpers.models.language_model_config()
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 64}
    shape.update({"hidden_size": width, "intermediate_size": 3 * width, **heads} if width else {})
    model = AutoModelForCausalLM.from_config(shape) if width else helpers.load_language_model(quiet=True)[0]
    model, ids = peft.get_peft_model(model, config).train(), torch.randint(100, 8000, (4, tokens))
    loss = lambda: model(input_ids=ids, labels=ids, use_cache=False).loss  # noqa: E731
    with helpers.choose_machine().autocast():
        found = {"step, s": best(lambda: loss().backward())}
        found["step, MiB"] = sum(helpers.training_memory(model, loss).values())
    return found | ({"x": helpers.count_parameters(model).total / 1e6} if width else {})


def growth(data, clock, *, part, values):
    """Costs for growing values of one cause: {cost: [[value, cost], ...]}."""
    found = {}
    with clock:
        for value in values:
            costs = probe(data, **{part: value}) if part in ("texts", "labels") else step(**{part: value})
            x = costs.pop("x", value)
            for name, cost in costs.items():
                found.setdefault(name, []).append([x, cost])
        for method in ("lora", "qlora") if part == "width" else ():
            bills = [helpers.memory_bill(name, method=method) for name in helpers.memory.MODELS]
            found[f"bill of {method}, MiB"] = sorted([b.total_parameters / 1e6, b.needs() / 2**20] for b in bills)
    return {"growth": found}


def about(data, clock):
    from importlib.metadata import version

    from tools.measure import hardware

    names = ("torch", "transformers", "peft", "sentence-transformers", "scikit-learn", "bitsandbytes")
    return {"hardware": hardware(), "versions": {name: version(name) for name in names}}


SIDES = {side.__name__: side for side in (limit, reading, busy, growth, about)}

if __name__ == "__main__":
    main(SIDES)
