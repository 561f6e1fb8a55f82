"""`fit` and `predict`: every loss is kept, what cannot work is refused, the order of the rows does not matter."""

import peft
import pytest
import torch
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, DataCollatorWithPadding

from helpers import (
    choose_machine,
    each_batch,
    fit,
    generate,
    load_classifier,
    load_encoder,
    load_language_model,
    load_task,
    predict,
)
from helpers.attention import texts_of
from helpers.docstrings import mask_prompt
from helpers.errors import ParameterError
from helpers.models import Classifier, active_dropout
from helpers.waiting import progress

MACHINE = choose_machine(device="cpu", precision="float32")


@pytest.fixture(scope="module")
def task():
    data = load_task(train_examples=24)
    tokenizer = load_encoder(quiet=True)[1]
    return data, data.rows("train", tokenizer, max_tokens=16), DataCollatorWithPadding(tokenizer)


def head_only(data):
    model = load_classifier(labels=data.labels)
    model.backbone.requires_grad_(False)
    return model


def test_every_loss_is_kept_and_the_model_learns(task):
    data, rows, collator = task
    model = head_only(data)
    losses = fit(model, rows, collator, steps=12, rate=1e-3, head_rate=5e-2, machine=MACHINE, batch=8)
    assert len(losses) == 12 and losses[0] == pytest.approx(torch.tensor(12.0).log().item(), abs=1e-5)
    found = predict(model, rows, collator, machine=MACHINE, batch=7)
    assert found.shape == (24, 12) and found.dtype == torch.float32
    assert (found.argmax(1) == torch.tensor(data.targets("train"))).float().mean() > 0.8
    backwards = predict(model, rows[::-1], collator, machine=MACHINE)
    assert torch.allclose(found, backwards.flip(0), atol=1e-5)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_batches_that_are_read_beside_each_other_are_those_read_one_by_one(task, three_threads):
    _, rows, collator = task
    encoder = load_encoder(quiet=True)[0]
    batches = [{k: v for k, v in collator(rows[i : i + 3]).items() if k != "labels"} for i in range(0, 24, 3)]

    def layers(batch):
        return torch.stack(encoder(**batch, output_hidden_states=True).hidden_states)

    together = each_batch(layers, batches, MACHINE)
    assert torch.get_num_threads() == 3 and len(together) == 8 and not together[0].requires_grad
    torch.set_num_threads(1)
    alone = each_batch(layers, batches, MACHINE)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(together, alone, strict=True))
    torch.set_num_threads(3)
    with pytest.raises(TypeError):
        each_batch(layers, [None, *batches], MACHINE)
    assert torch.get_num_threads() == 3


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_remedy(task):
    data, rows, collator = task
    with pytest.raises(ParameterError, match=r"the loss is \S+ at step \d+, learning rate 1.0e\+30.*third"):
        fit(load_classifier(labels=data.labels), rows, collator, steps=4, rate=1e30, machine=MACHINE)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps=0, seed=0: expected a step or more"),
        ({"seed": -1}, "seed=-1: expected .* a seed from 0"),
        ({"rate": 0.0}, "'A': 0.0.* expected numbers above 0"),
        ({"head_rate": float("nan")}, "'head': nan.* expected numbers above 0"),
    ],
)
def test_numbers_that_cannot_work_are_refused_before_anything_is_trained(task, wrong, said):
    data, rows, collator = task
    with pytest.raises(ParameterError, match=said):
        fit(head_only(data), rows, collator, **{"steps": 1, "rate": 1e-3, "machine": MACHINE} | wrong)


def test_accumulated_gradients_give_the_loss_of_the_whole_batch(task):
    """Trainer would report, and apply, a larger one: transformers normalises over the accumulated batches."""
    data, rows, collator = task
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))[:8]
    losses = [
        fit(head_only(data), rows, collator, steps=2, rate=1e-3, machine=MACHINE, batch=size, gathered=8 // size)
        for size in (8, 4)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


PROMPTED = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
WRITERS = [None, peft.LoraConfig(init_lora_weights=False, target_modules="all-linear")]
WRITERS += [peft.PromptTuningConfig(**PROMPTED), peft.PrefixTuningConfig(**PROMPTED)]


@pytest.mark.parametrize("config", WRITERS, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize("gathered", [1, 2])
def test_halves_beside_each_other_train_like_the_whole_batch_and_twice_alike(config, gathered, three_threads):
    """One thread leaves the batch whole. The last row has nothing to learn, the others different lengths."""
    trained = []
    for threads in (1, 3, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        model, words = load_language_model(quiet=True)
        model = peft.get_peft_model(model, config) if config else model
        rows = [mask_prompt(words, "def name(a, b):\n", f"Return it{' to them' * n}.") for n in range(6)]
        rows += [{**rows[0], "labels": [-100] * len(rows[0]["labels"])}]
        numbers = {"steps": 3, "rate": 1e-3, "batch": 3, "gathered": gathered, "weight_decay": 0.0, "seed": 1}
        losses = fit(model, rows, DataCollatorForSeq2Seq(words), machine=MACHINE, optimizer=torch.optim.SGD, **numbers)
        assert torch.get_num_threads() == threads
        trained.append((losses, [p.detach() for p in model.parameters() if p.requires_grad]))
    whole, halves, again = trained
    assert halves[0] == pytest.approx(whole[0], rel=1e-5)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(halves[1], whole[1]))
    assert halves[0] == again[0] and all(map(torch.equal, halves[1], again[1]))


def test_a_classifier_has_no_dropout_and_a_model_that_has_is_left_whole(task, three_threads):
    data, rows, collator = task
    encoder = load_encoder(quiet=True)[0]
    assert active_dropout(encoder) and not active_dropout(load_classifier(labels=data.labels))
    seen = []
    for model in (load_classifier(labels=data.labels), Classifier(encoder, data.labels)):
        sizes = []
        model.head.register_forward_pre_hook(lambda _, given, sizes=sizes: sizes.append(len(given[0])))
        fit(model, rows, collator, steps=1, rate=1e-3, machine=MACHINE, batch=6)
        seen.append(sizes)
    assert seen == [[3, 3], [6]]


def test_flattened_texts_train_a_model_as_padded_ones_do():
    """Where a cache of keys and values is kept, texts in one row would see each other."""
    losses = []
    for flat in (True, False):
        model, tokenizer = load_language_model()
        texts = [f"Return the value{' of the field' * n}." for n in range(1, 9)]
        rows = [mask_prompt(tokenizer, "def name(a, b):\n", text) for text in texts]
        collator = DataCollatorWithFlattening() if flat else DataCollatorForSeq2Seq(tokenizer)
        losses.append(fit(model, rows, collator, steps=3, rate=1e-3, machine=MACHINE, batch=8))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][2] < losses[0][0] - 0.01


@pytest.mark.parametrize(
    ("mask", "lengths"),
    [
        (torch.block_diag(*(torch.ones(n, n).tril() for n in (3, 1, 2))), [3, 1, 2]),
        (torch.ones(4, 4).tril(), [4]),
        (torch.ones(4, 4), []),  # looks ahead
        (torch.ones(6, 6).tril().triu(-2), []),  # a window of three
        (torch.ones(4, 4).tril() * torch.tensor([0, 1, 1, 1]), []),  # padded
        (torch.block_diag(torch.ones(3, 3).tril(), torch.ones(2, 2)), []),
    ],
)
def test_the_texts_of_a_row_are_read_from_its_mask(mask, lengths):
    assert texts_of(mask.bool()[None, None]) == lengths
    assert texts_of(mask[None, None]) == texts_of(None) == texts_of(mask.bool()[None, None].expand(2, 1, -1, -1)) == []


def test_the_shipped_model_reads_text_by_text():
    assert load_language_model(quiet=True)[0].config._attn_implementation == "text_by_text"


@pytest.mark.parametrize("config", WRITERS, ids=lambda config: type(config).__name__)
def test_batches_that_are_written_beside_each_other_are_those_written_one_by_one(config, three_threads):
    """Threads end at different times: a reply of the first may be long, those of the others short."""
    model, words = load_language_model(dtype=torch.float64, quiet=True)  # so that rounding decides nothing
    torch.manual_seed(0)
    model = peft.get_peft_model(model, config).double() if config else model
    weights = {name: p.data_ptr() for name, p in model.named_parameters()}
    prompts = [f"def {name}({', '.join('abcd'[: 1 + n % 4])}):\n" for n, name in enumerate(["add", "to_path"] * 5)]
    together = generate(model, words, prompts, machine=MACHINE, new_tokens=24)
    assert torch.get_num_threads() == 3 and weights == {name: p.data_ptr() for name, p in model.named_parameters()}
    torch.set_num_threads(1)
    assert generate(model, words, prompts, machine=MACHINE, new_tokens=24, batch=1) == together
    assert len({reply.text for reply in together}) >= 3


def test_a_model_that_cannot_write_in_a_thread_says_so_and_leaves_the_threads_as_they_were(three_threads):
    model, words = load_language_model(quiet=True)
    del model.model.layers[1].mlp.down_proj
    with pytest.raises(AttributeError):
        generate(model, words, ["def f():", "def g(a):"], machine=MACHINE, new_tokens=4)
    assert torch.get_num_threads() == 3


def test_a_bar_appears_after_a_second_and_leaves_blanks(capsys):
    """On stdout: the runner takes what is written to stderr for a fault."""
    assert list(progress(range(3), "soon")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    bar = progress(what="slow", total=2)
    bar.start_t -= 2  # as if it had begun two seconds ago
    bar.last_print_t -= 2
    bar.update()
    assert "slow:  50%" in capsys.readouterr().out
    bar.close()
    told = capsys.readouterr()
    assert told.out.strip() == "" != told.out and told.err == ""
