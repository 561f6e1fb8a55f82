"""The four techniques as drawings of one style: what is frozen, what trains, what is stored.

`python -m tools.pages` writes them. Counts and bytes are computed from the shipped models and the notebooks' own
settings. Frozen is blue with a thin outline, trained is orange and hatched with a thick one, so the two are told apart
without colour too. The white ground belongs to the drawing, because a page may be dark.
"""

import json
import re
from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from xml.sax.saxutils import escape

import papermill
from bitsandbytes.functional import quantize_4bit
from torch import nn

import helpers
from helpers.hub import DATA
from helpers.plots import FROZEN, GREY, TRAINED, short

from .results import ROOT

LEFT, STACK, MIDDLE, RIGHT = 36, 146, 109, 204  # where the stack begins, its width and middle, and the notes beside it
TOP, STEP, HIGH = 130, 22, 18  # of the blocks
OUTLINE = "#A63F00"
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 440 404" width="440" height="404" role="img" \
aria-labelledby="{name}-title {name}-told" font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#1F2933">
<title id="{name}-title">{title}</title>
<desc id="{name}-told">{told}</desc>
<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">\
<path d="M0 0H6V6H0z" fill="{fill}"/><path d="M1 0V6" stroke="{outline}" opacity=".5"/></pattern></defs>
<rect x=".5" y=".5" width="439" height="403" rx="10" fill="#FFF" stroke="#CBD2D9"/>
{shapes}
</svg>
"""


@cache
def facts() -> SimpleNamespace:
    """What the drawings tell: of the shipped models, with the settings that stand in the notebooks."""
    rows = (DATA / "helpdesk" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    classifier = helpers.load_classifier(labels=sorted({json.loads(row)["label"] for row in rows}))
    writer = helpers.load_language_model(quiet=True)[0]
    lora, prompt = (ROOT / "notebooks" / f"{name}.ipynb" for name in ("02_lora", "04_prompt_tuning"))
    rank = int(re.search(r"\brank = (\d+)", lora.read_text(encoding="utf-8"))[1])
    bill = partial(helpers.memory_bill, writer.config, rank=rank, precision="float32")
    layer = next(m for m in helpers.transformer_blocks(writer)[0].modules() if isinstance(m, nn.Linear))
    packed, state = quantize_4bit(layer.weight.data, quant_type="nf4", compress_statistics=True)
    corner = packed.view(len(layer.weight), -1)[:4, :2].tolist()
    return SimpleNamespace(
        head=classifier.head, encoder=classifier.backbone, writer=writer, rank=rank, layer=layer,
        length=int(papermill.inspect_notebook(str(prompt))["length"]["default"]),
        lora=bill(method="lora"), qlora=bill(method="qlora"),
        layers=sum(isinstance(m, nn.Linear) for m in helpers.transformer_blocks(writer).modules()),
        codes=[[code for byte in row for code in divmod(byte, 16)] for row in corner],
        packed=packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes + state.offset.nbytes,
    )  # fmt: skip


def count(model: nn.Module) -> int:
    return helpers.count_parameters(model).total


def size(taken: float) -> str:
    value, unit = (taken / 2**20, "MiB") if taken >= 2**20 else (taken / 2**10, "KiB")
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def styled(**style: object) -> str:
    return "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())


def text(x: float, y: float, words: str, **style: object) -> str:
    return f'<text x="{x:g}" y="{y:g}"{styled(**style)}>{escape(words)}</text>'


def middle(x: float, y: float, words: str, **style: object) -> str:
    return text(x, y, words, text_anchor="middle", **style)


def line(steps: str, **style: object) -> str:
    return f'<path d="{steps}" fill="none" stroke="{GREY}"{styled(**style)}/>'


def up(y: float, long: float = 8) -> str:
    """An arrow in the middle of the stack that ends at y."""
    return line(f"M{MIDDLE} {y + long:g}V{y:g}m-3.5 4 3.5-4 3.5 4")


def box(x: float, y: float, wide: float, high: float, *, trained: bool = False) -> str:
    style = {"fill": FROZEN, "stroke": GREY}
    style = {"fill": "url(#hatch)", "stroke": OUTLINE, "stroke_width": 2} if trained else style
    return f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" rx="2"{styled(**style)}/>'


def name_of(x: float, y: float, words: str) -> str:
    """Words on a trained box, on a ground of their own."""
    return middle(x, y, words, font_weight="bold", stroke="#FFF", stroke_width=4, paint_order="stroke")


def note(y: float, *words: str, span: float = 0) -> list[str]:
    """Lines beside what stands at height y in the stack; a bracket takes in a span of it."""
    x = LEFT + STACK + 4
    mark = f"M{x} {y - span / 2:g}h5v{span:g}h-5M{x + 5} {y:g}h6" if span else f"M{x} {y:g}h11"
    return [line(mark), *(text(RIGHT, y + 4.5 + 16 * (n - (len(words) - 1) / 2), w) for n, w in enumerate(words))]


def stack(model: nn.Module, reads: str, writes: str, *, learned: int = 0, block: str = "") -> list[str]:
    """A model from the text at the bottom to its answer, without what is above its blocks.

    Args:
        learned: how many of the vectors at the bottom are trained.
        block: what a block with adapters is called.
    """
    blocks, wide = len(helpers.transformer_blocks(model)), STACK / 9
    shapes = [middle(MIDDLE, 57, writes), up(62), up(260), middle(MIDDLE, 304, reads)]
    for number in range(blocks):
        y, words = TOP + STEP * number, f"{block or 'block'} {blocks - number}"
        shapes += [box(LEFT, y, STACK, HIGH), middle(MIDDLE - 14 * bool(block), y + 13.5, words)]
        shapes += [box(LEFT + STACK - 28, y, 28, HIGH, trained=True)] if block else []
    return shapes + [box(LEFT + 1.5 + wide * n, 270, wide - 3, 16, trained=n < learned) for n in range(9)]


def output(to: float) -> list[str]:
    """Of a language model, above the blocks; and on the left, how far down the gradient comes back."""
    turned = middle(17, (83 + to) / 2, "gradient", transform=f"rotate(-90 17 {(83 + to) / 2:g})", font_size=12)
    back = line(f"M{LEFT - 3} 83H22V{to:g}h10m-4-3.5 4 3.5-4 3.5", stroke_dasharray="4 3")
    return [box(LEFT, 72, STACK, 22), middle(MIDDLE, 87.5, "output layer"), up(97, 33), back, turned]


def books(notebook: int, frozen: int, numbers: int, *, before: str = "", now: float = 0) -> list[str]:
    """The table at the bottom: how many numbers, and how many bytes, 4 for each if nothing else is said."""
    shapes = [line("M20 318H420", opacity=0.4), text(20, 337, f"notebook {notebook}, as shipped", fill=GREY)]
    shapes += [text(x, 337, words, text_anchor="end", fill=GREY) for x, words in ((330, "numbers"), (420, "bytes"))]
    kept = f"frozen ({before} in 32 bits)" if before else "frozen, as it came"
    for y, words, there, taken in (
        (350, kept, frozen, now or 4 * frozen),
        (376, "trained: all you store", numbers, 4 * numbers),
    ):
        weight = {"font_weight": "bold"} if y == 376 else {}
        shapes += [box(20, y, 26, 14, trained=y == 376), text(56, y + 12, words, **weight)]
        for x, told in ((330, short(there)), (420, size(taken))):
            shapes.append(text(x, y + 12, told, text_anchor="end", **weight))
    return shapes


def inside(packed: bool) -> list[str]:
    """What LoRA makes of each linear layer, and how many bytes that is, drawn to scale."""
    found = facts()
    (high, wide), rank, x, y, from_block = found.layer.weight.shape, found.rank, RIGHT + 12, 94, TOP + 2 * STEP
    shapes = [line(f"M182 {from_block}L204 46M182 {from_block + HIGH}L204 304M204 46H420V304H204z", opacity=0.5)]
    shapes += [
        text(x, 66, f"one of the {found.layers} linear layers:"),
        text(x, 83, "W + (α / r) · B A", font_weight="bold"),
    ]
    if packed:
        for row, codes in enumerate(found.codes):
            for at, code in enumerate(codes):
                place = x + 13.5 * at, y + 16 * row
                shapes += [box(*place, 13.5, 16), middle(place[0] + 6.75, place[1] + 12, str(code), font_size=10.5)]
        shapes += [box(x + 57, y, 7, 64)]
    else:
        shapes += [box(x, y, 64, 64), middle(x + 32, y + 36.5, "W", font_weight="bold")]
    shapes += [middle(x + 76, y + 36.5, "+"), box(x + 87, y, 12, 64, trained=True), middle(x + 113, y + 36.5, "×")]
    shapes += [box(x + 127, y + 26, 64, 12, trained=True)]
    names = {32: ("W, 4 bits" if packed else "W", f"{high}×{wide}")}
    names |= {93: ("B", f"{high}×{rank}"), 159: ("A", f"{rank}×{wide}")}
    for at, (name, shape) in names.items():
        shapes += [middle(x + at, 176, name, font_weight="bold"), middle(x + at, 192, shape)]
    full = found.layer.weight.nbytes
    bars = [("W in 32 bits", full), ("codes and scales", found.packed), ("A and B", 4 * rank * (high + wide))]
    for number, (words, taken) in enumerate(bars if packed else bars[::2]):
        at, wide = 214 + 31 * number, 191 * taken / full
        shapes += [text(x, at, f"{words}: {size(taken)}"), box(x, at + 6, wide, 8, trained=words == "A and B")]
    return (
        shapes
        if packed
        else [*shapes, text(x, 277, "B starts at zero, so training"), text(x, 293, "begins at the model as it was")]
    )


def feature_extraction() -> tuple[str, str, list[str]]:
    found = facts()
    topics, width = found.head.weight.shape
    frozen, numbers = count(found.encoder), count(found.head)
    shapes = stack(found.encoder, "a question", "its topic")
    shapes += [box(LEFT, 72, STACK, 22, trained=True), name_of(MIDDLE, 87.5, "head"), up(97), up(120)]
    shapes += [box(LEFT + 24, 106, STACK - 48, 12)]
    shapes += note(83, f"trained: {width} numbers", f"for each of {topics} topics")
    shapes += note(112, "mean: one vector a text")
    shapes += note(194, "frozen: each text passes", "once, its vector is kept,", "no gradient comes back", span=128)
    shapes += note(278, "a vector for each token")
    told = (
        f"A question goes up through frozen blocks. The mean of what comes out is one vector of {width} numbers. On it "
        f"stands a head, which alone is trained and stored: {short(numbers)} numbers, {size(4 * numbers)}, beside a "
        f"model of {short(frozen)} numbers, {size(4 * frozen)}."
    )
    return "Feature extraction", told, shapes + books(1, frozen, numbers)


def lora(packed: bool = False) -> tuple[str, str, list[str]]:
    found = facts()
    frozen, numbers = count(found.writer), found.lora.trainable_parameters
    before, after = size(found.lora.weights), found.qlora.weights + found.qlora.constants
    shapes = stack(found.writer, "def resize(image):", "its docstring", block="4-bit block" if packed else "block")
    shapes += output(TOP + 5.5 * STEP - 2) + inside(packed)
    shapes += books(3, frozen, numbers, before=before, now=after) if packed else books(2, frozen, numbers)
    how = f"W is frozen, and so is all else, {before}."
    if packed:
        how = (
            f"W is frozen and stored as codes of 4 bits with scales, {size(found.packed)} for one that had "
            f"{size(found.layer.weight.nbytes)}; so the whole model takes {size(after)} and not {before}."
        )
    told = (
        f"In each linear layer of the blocks W becomes W plus B times A, two thin matrices of rank {found.rank}. {how} "
        f"Only A and B are trained and stored: {short(numbers)} numbers, {size(4 * numbers)}, beside {short(frozen)}."
    )
    return "QLoRA" if packed else "LoRA", told, shapes


def prompt_tuning() -> tuple[str, str, list[str]]:
    found = facts()
    width = found.writer.config.hidden_size
    frozen, numbers = count(found.writer), found.length * width
    shapes = stack(found.writer, "", "its docstring", learned=4) + output(278)
    shapes += [middle(69, 304, "learned", font_weight="bold"), middle(143, 304, "def resize(…")]
    shapes += note(194, "frozen, to the last bit:", "the gradient only", "passes through", span=128)
    shapes += note(278, f"{found.length} learned vectors, then", "those of the text")
    told = (
        f"Before the vectors of a text stand {found.length} learned vectors of {width} numbers. Both go up through the "
        f"blocks, and the whole model is frozen. Only the learned vectors are trained and stored: {short(numbers)} "
        f"numbers, {size(4 * numbers)}, beside a model of {short(frozen)} numbers, {size(4 * frozen)}."
    )
    return "Prompt tuning", told, shapes + books(4, frozen, numbers)


def svg(name: str, draw: Callable[[], tuple[str, str, list[str]]]) -> str:
    title, told, shapes = draw()
    style = {"name": name, "title": title, "told": told, "fill": TRAINED, "outline": OUTLINE}
    shapes = [text(20, 31, title, font_size=17, font_weight="bold"), *shapes]
    return SVG.format(**style, shapes="\n".join(shapes))


DRAWN = {"feature_extraction": feature_extraction, "lora": lora, "qlora": partial(lora, packed=True)}
DRAWN |= {"prompt_tuning": prompt_tuning}
PAGES = {DATA / "drawings" / f"{name}.svg": partial(svg, name, draw) for name, draw in DRAWN.items()}
