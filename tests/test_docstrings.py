"""The docstring task: what is read, what is left out and counted, how replies are judged, and generation in batches."""

import pytest
import torch
from transformers import AutoTokenizer

from helpers import choose_machine, docstrings, generate, load_docstrings, load_language_model
from helpers.docstrings import UNSEEN, Reply, grade, mask_prompt, names_of, write
from helpers.errors import DataError, ParameterError
from helpers.hub import LANGUAGE_MODEL
from pretraining.corpus import HELD_OUT_PACKAGES

TOWN = '''
from elsewhere import nothing  # reading must not import
open("{trace}", "w").write("reading must not run code")


def moor_{n}(ferry, pier: int = 0, **rest) -> bool:
    """
    Tie ferry number {n} to a pier,
    whatever the tide. It may take a while.

    Parameters
    ----------
    ferry : Ferry
        the ferry. It must have arrived
    pier : int, optional
        number of the pier
    **rest
        what else is known

    Returns
    -------
    bool
        whether it held
    """


class Harbour{n}:
    def leave(self, ferry):
        """Let a ferry of harbour {n} go.

        :param ferry: the ferry
        """

    @classmethod
    def build(cls, /, piers, *, town):
        """Build harbour {n}.

        Args:
            piers (int): how many piers
            town: where
        """
'''
FAULTS = '''
def bare(a): ...
def prose(a): """Only a sentence about a."""
def alone(): """A sentence. Args: none."""
def many(a, b, c, d, e):
    """Take five.

    Args:
        a: one
    """
def renamed(new):
    """Say something.

    Args:
        old: was renamed
    """
def empty(a): """:param a: one"""
def long(a):
    """Say something.

    Args:
        a: {words}
    """
'''


@pytest.fixture
def town(tmp_path):
    folder = tmp_path / "town"
    folder.mkdir()
    for n in range(30):
        (folder / f"part_{n}.py").write_text(TOWN.format(n=n, trace=tmp_path / "trace"))
    return folder


@pytest.fixture(scope="module")
def packages():
    return {style: load_docstrings(style) for style in ("google", "numpy")}


# ---------------------------------------------------------------- what is read


def test_pairs_are_written_anew_and_nothing_is_run(town, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load_docstrings("google", "town")
    pairs = {pair.signature: pair.docstring for split in found.splits.values() for pair in split}
    assert len(pairs) == 30 + 2 and sum(map(len, found.splits.values())) == 90
    assert pairs["def moor_7(ferry, pier, **rest):"] == (
        "Tie ferry number 7 to a pier, whatever the tide.\n\nArgs:\n    ferry: The ferry.\n"
        "    pier: Number of the pier.\n    **rest: What else is known."
    )
    assert {"def leave(ferry):", "def build(piers, town):"} < set(pairs), "methods come without self and cls"
    assert not (tmp_path / "trace").exists()
    numpy = load_docstrings("numpy", str(town))
    assert numpy.fingerprint != found.fingerprint == load_docstrings("google", str(town)).fingerprint
    assert [p.signature for p in numpy.splits["test"]] == found.signatures("test")
    assert "\n\nParameters\n----------\nferry\n    The ferry." in numpy.splits["train"][0].docstring


def test_what_cannot_be_used_is_counted_by_reason_and_left_out(town, capsys):
    (town / "faults.py").write_text(FAULTS.format(words="so many words " * 20))
    (town / "latin.py").write_bytes('"""caf\xe9"""'.encode("latin-1"))
    (town / "broken.py").write_text("def broken(:\n")
    (town / "tests").mkdir()
    (town / "tests" / "test_part.py").write_text("def broken(:\n")
    (town / "copy.py").write_text((town / "part_3.py").read_text().replace("moor_3(", "tie("))
    found = load_docstrings("google", str(town))
    left_out = {
        "files that are not UTF-8": 1,
        "files that do not parse": 1,
        "without a docstring": 1,
        "with no parameters documented in a known style": 1,
        "without parameters": 1,
        "with more than 4 parameters": 1,
        "whose documented parameters are not those of the signature": 1,
        "with an empty summary or description": 1,
        "with sentences above 100 characters": 1,
        "the same text again": 3,
    }
    assert found.undocumented == ["def bare(a):"]
    told = capsys.readouterr().out.partition("Left out: ")[2].rstrip(".\n").split("; ")
    assert set(told) == {f"{count} {reason}" for reason, count in left_out.items()}


def test_too_little_is_refused_with_the_counts(tmp_path):
    (tmp_path / "only.py").write_text("def bare(a): ...\n")
    with pytest.raises(DataError, match=r"0 usable functions, expected at least 40\. Left out: 1 without a docstring"):
        load_docstrings("google", str(tmp_path / "only.py"))
    (tmp_path / "empty").mkdir()
    for place, said in {"nowhere": "no such folder", "empty": "there is no Python file"}.items():
        with pytest.raises(DataError, match=said):
            load_docstrings("google", str(tmp_path / place))
    with pytest.raises(ParameterError, match="google, numpy"):
        load_docstrings("sphinx")


def test_installed_packages_give_enough_and_the_test_is_on_unseen_ones(packages):
    assert set(UNSEEN) == set(HELD_OUT_PACKAGES), "nor has the language model seen them"
    with pytest.raises(ParameterError, match="1 replies"):
        packages["google"].judge("test", [Reply("", True)])
    for style, found in packages.items():
        assert len(found.splits["train"]) > 3000 and len(found.splits["test"]) >= 100
        folders = {pair.where.split("/")[0].lower() for pair in found.splits["test"]}
        assert folders == {name.replace("-", "_") for name in UNSEEN}
        texts = [pair.docstring.lower() for split in found.splits.values() for pair in split]
        assert len(set(texts)) == len(texts), "one text in two splits, or twice in one"
        perfect = [Reply(pair.docstring, True) for pair in found.splits["train"]]
        assert min(right.mean() for right in found.judge("train", perfect).values()) > 0.995, style


# ---------------------------------------------------------------- how it is judged

RIGHT = {
    style: write(style, "Scale it.", [("image", "What."), ("*sizes", "By what.")]) for style in ("google", "numpy")
}
SIGNATURE = "def scale(image, *sizes):"


def test_what_a_package_holds_is_read_once_and_anew_where_the_file_is_broken(tmp_path, monkeypatch):
    read = docstrings.read_package.__wrapped__
    monkeypatch.setattr(docstrings.constants, "HF_HOME", tmp_path)
    first, refuse = read("docstring-parser"), lambda *_, **__: pytest.fail("it was read again")
    (kept,) = tmp_path.rglob("docstring-parser-*")
    with monkeypatch.context() as patched:
        patched.setattr(docstrings, "_read", refuse)
        assert read("docstring-parser") == first and len(first[0]) > 5
    kept.write_text("[", encoding="utf-8")
    assert read("docstring-parser") == first and kept.stat().st_size > 1000
    monkeypatch.setattr(docstrings.constants, "HF_HOME", kept)  # no folder can be made there
    assert read("docstring-parser") == first


@pytest.mark.parametrize("style", ["google", "numpy"])
def test_the_right_docstring_passes_and_each_fault_fails_its_rule(style):
    right = RIGHT[style]
    assert grade(SIGNATURE, Reply(right, True), style) == {"form": True, "names": True, "ended": True}
    assert grade(SIGNATURE, Reply(right, False), style)["ended"] is False
    other = RIGHT["numpy" if style == "google" else "google"]
    first, _, second = right.partition("\n\n")
    formless = {
        "no list": "Scale it.",
        "the other style": other,
        "no full stop": right.replace("Scale it.", "Scale it"),
        "one word": right.replace("Scale it.", "Scale."),
        "no summary": second,
        "nothing": "",
        "more prose": f"{first}\n\nMore about it.\n\n{second}",
        "a description that is missing": right.replace("What.", ""),
        "another section": f"{right}\n\n"
        + {"google": "Returns:\n    It.", "numpy": "Returns\n-------\nint\n    It."}[style],
    }
    for fault, text in formless.items():
        marks = grade(SIGNATURE, Reply(text, True), style)
        assert not marks["form"] and not marks["names"], fault
    misnamed = {
        "another name": right.replace("image", "picture"),
        "no star": right.replace("*sizes", "sizes"),
        "one too few": write(style, "Scale it.", [("image", "What.")]),
        "another order": write(style, "Scale it.", [("*sizes", "By what."), ("image", "What.")]),
        "twice": write(style, "Scale it.", [("image", "What."), ("*sizes", "By what."), ("*sizes", "By what.")]),
    }
    for fault, text in misnamed.items():
        marks = grade(SIGNATURE, Reply(text, True), style)
        assert marks["form"] and not marks["names"], fault


def test_names_of_a_typed_signature():
    assert names_of("async def f(a, /, b: int = 3, *c, d, **e) -> int:") == ["a", "b", "*c", "d", "**e"]
    assert names_of("def f(a, b)") == ["a", "b"], "the colon may be left out"
    for wrong in ("resize the image", "def f(a", "x = 3", ""):
        with pytest.raises(ParameterError, match="such as def add"):
            names_of(wrong)


# ---------------------------------------------------------------- rows and replies


def test_the_loss_looks_at_the_docstring_only_and_the_end_is_learned(packages):
    tokenizer = AutoTokenizer.from_pretrained(LANGUAGE_MODEL)
    pair, row = packages["google"].splits["train"][0], packages["google"].rows("train", tokenizer)[0]
    learned = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(learned) == pair.docstring + tokenizer.eos_token
    read = row["input_ids"][: -len(learned)]
    assert tokenizer.decode(read, skip_special_tokens=True) == f"{pair.signature}\n"
    assert row == mask_prompt(tokenizer, f"{pair.signature}\n", pair.docstring)
    assert len(row["labels"]) == len(row["input_ids"]) == len(row["attention_mask"])


def test_a_batch_writes_what_each_prompt_writes_alone_and_a_reply_that_ends_says_so():
    options = {"machine": choose_machine(device="cpu", precision="float32")}
    model, tokenizer = load_language_model(str(LANGUAGE_MODEL), quiet=True)
    prompts = ["def load(path):\n", "Return the", "Compute the mean of a long row of numbers, and then"]
    together = generate(model, tokenizer, prompts, new_tokens=24, **options)
    assert together == [generate(model, tokenizer, [prompt], new_tokens=24, **options)[0] for prompt in prompts]
    assert len({reply.text for reply in together}) == 3
    assert all(reply.text and not reply.text.startswith(prompt) for reply, prompt in zip(together, prompts))
    model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    for score in (9, -9):  # only the end has a score: a model that always ends, and one that never does
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.bias.zero_()[tokenizer.eos_token_id] = score
        assert generate(model, tokenizer, ["Return the"], new_tokens=3, **options) == [Reply("", score > 0)]
