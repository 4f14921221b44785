"""Every way to score on every kind of model, against a loop over single rows (make models).

The models are tiny and random. For each, five rows are scored by every way and compared with the
product of each row's own gradient, made by autograd for that row alone; then the adapter is saved
and opened again by plain PEFT.
"""

import logging
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from peft import PeftModel

from benchmarks.architectures import ARCHITECTURES, N_TOKENS, Architecture, tiny_model
from clues.config import LoraSettings, ScoreSettings
from clues.data.tokens import EncodedRow
from clues.errors import ConfigError
from clues.model.adapters import AdapterState, LoraModel
from clues.model.layers import short_names
from clues.model.loss import make_batch, row_losses
from clues.scoring.direction import mean_gradient, trainable
from clues.scoring.finite import difference_scores
from clues.scoring.gradients import transformed_products
from clues.scoring.influence import influence_scores
from clues.scoring.inrun import InRun, Reference
from clues.scoring.trial import try_out
from docs.blocks import table, write_block

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
NAME = "models"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WAYS = ("side branch", "gradients", "in-run")
# Largest distance from the loop, as a share of the loop's norm; a finite difference has a cut-off.
LIMITS = {"float32": 1e-5, "bfloat16": 0.02}
DIFFERENCE_LIMIT, REOPENED_LIMIT = 0.05, {"float32": 1e-6, "bfloat16": 1e-6}
LENGTHS = (13, 21, 34, 9, 27)
N_VALIDATION = 2


@dataclass(frozen=True)
class Cell:
    """One model in one number type.

    Attributes:
        layers: last parts of the names of its adapted layers.
        distances: by way, distance of the scores from the loop's, as a share of the loop's norm.
        difference: the same of the finite difference; None where it is refused.
        correlation: of the finite difference with the loop; likewise.
        rounding: distance of the loop itself from the loop in float32 on the same weights; 0 there.
        reopened: largest distance of the logits of the saved adapter, opened by PEFT, from ours,
            as a share of the largest logit.
    """

    layers: tuple[str, ...]
    distances: dict[str, float]
    difference: float | None
    correlation: float | None
    rounding: float
    reopened: float


def rows_of_tokens() -> list[EncodedRow]:
    """Five rows of random tokens, of different lengths, the first third of each a prompt."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for n, length in enumerate(LENGTHS):
        ids = torch.randint(3, N_TOKENS, (length,), generator=generator).tolist()
        mask = tuple(t >= length // 3 for t in range(length))
        rows.append(EncodedRow(n, f"row-{n}", tuple(ids), mask))
    return rows


def adapted(
    architecture: Architecture, dtype: torch.dtype, *, computed_in: torch.dtype | None = None
) -> LoraModel:
    """A tiny model with an adapter whose A and B are random.

    Args:
        architecture: of the base model.
        dtype: its weights are numbers of this type.
        computed_in: the type that they are computed in, where it is another.
    """
    targets = architecture.targets
    settings = LoraSettings(rank=4, alpha=8.0, dropout=0.0, target_modules=targets)
    base = tiny_model(architecture, dtype=dtype).to(computed_in or dtype)
    model = LoraModel(base, settings, seed=0, device="cpu")
    try_out(model, ScoreSettings())
    generator = torch.Generator().manual_seed(1)
    state = {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in model.initial.items()}
    model.set_state(state)
    return model


def measure(architecture: Architecture, dtype: torch.dtype) -> Cell:
    """Every way on one model, and the loop."""
    model, rows = adapted(architecture, dtype), rows_of_tokens()
    state = model.state()
    weights = list(state)
    direction = mean_gradient(model, rows[:N_VALIDATION], state, weights=weights)[0]
    expected = loop(model, rows, direction)
    found = {
        "side branch": influence_scores(
            model, rows, adapter=state, directions=[direction]
        ).products[:, 0],
        "gradients": transformed_products(
            model, rows, adapter=state, directions=[direction], transforms={"": None}
        )[""].products[:, 0],
        "in-run": in_run(model, rows, direction),
    }
    difference = correlation = None
    try:
        moved = difference_scores(model, rows, adapter=state, directions=[direction])
    except ConfigError:
        pass
    else:
        difference = distance(moved.products[:, 0], expected)
        correlation = float(np.corrcoef(moved.products[:, 0], expected)[0, 1])
    return Cell(
        tuple(short_names([name.rsplit(".lora_", 1)[0] for name in weights])),
        {way: distance(values, expected) for way, values in found.items()},
        difference,
        correlation,
        rounding_of(architecture, dtype, rows, direction, expected),
        reopened(model, architecture, dtype, rows),
    )


def loop(model: LoraModel, rows: Sequence[EncodedRow], direction: AdapterState) -> np.ndarray:
    """The oracle: one row at a time, its gradient by autograd."""
    parameters = model.parameters()
    weights = list(parameters.values())
    products = []
    with model.evaluating(), trainable(weights, only=weights):
        for row in rows:
            loss = row_losses(model.peft, make_batch([row]))[0]
            gradients = torch.autograd.grad(loss, weights)
            pairs = zip(parameters, gradients, strict=True)
            products.append(
                sum(float((g.double() * direction[n].double()).sum()) for n, g in pairs)
            )
    return np.array(products)


def rounding_of(
    architecture: Architecture,
    dtype: torch.dtype,
    rows: Sequence[EncodedRow],
    direction: AdapterState,
    found: np.ndarray,
) -> float:
    """How far the loop is from what it gives where the same weights are computed in float32."""
    if dtype == torch.float32:
        return 0.0
    exact = loop(adapted(architecture, dtype, computed_in=torch.float32), rows, direction)
    return distance(found, exact)


def in_run(model: LoraModel, rows: Sequence[EncodedRow], direction: AdapterState) -> np.ndarray:
    """Scores from inside a training step on all rows."""
    reference = Reference({"": direction}, {"": 1.0}, 0.0)
    order = np.arange(len(rows))[None]
    watch = InRun(
        model,
        order,
        reference,
        [],
        n_rows=len(rows),
        first_step=0,
        every_visit=True,
        seed=0,
    )
    model.peft.train()
    with watch.watching(0, last=True):
        losses_N = row_losses(model.peft, make_batch(rows))
        watch.saw(losses_N)
        losses_N.mean().backward()
    model.peft.eval()
    model.peft.zero_grad()
    return watch.visits()[0].scores[""]


def reopened(
    model: LoraModel, architecture: Architecture, dtype: torch.dtype, rows: Sequence[EncodedRow]
) -> float:
    """Save the adapter, open it with PEFT on a base model of its own, compare the logits."""
    batch = make_batch(rows)
    inputs = {"input_ids": batch.ids_NT, "attention_mask": batch.attention_NT, "use_cache": False}
    with TemporaryDirectory() as folder, torch.no_grad():
        model.save(model.state(), Path(folder))
        opened = PeftModel.from_pretrained(tiny_model(architecture, dtype=dtype), folder).eval()
        ours, theirs = model.peft(**inputs).logits.float(), opened(**inputs).logits.float()
    return float((ours - theirs).abs().max() / ours.abs().max())


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Of scores from the loop's, as a share of the loop's norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def rounded(value: float, finest: int) -> str:
    """The next of 1, 2, 5, 10 and so on that a distance is below; digits beyond differ by machine."""
    if value == 0:
        return "0"
    if value < 10**finest:
        return f"1e{finest}"
    power = math.floor(math.log10(value))
    first = next(step for step in (2, 5, 10) if value < step * 10**power)
    return f"{1 if first == 10 else first}e{power + (first == 10)}"


def row_of(name: str, cells: dict[str, Cell]) -> list[str]:
    """A line of the table."""
    full, half = cells["float32"], cells["bfloat16"]
    shown = [name, ", ".join(f"`{layer}`" for layer in full.layers)]
    shown += [rounded(max(full.distances.values()), -6), rounded(full.reopened, -6)]
    shown += [rounded(max(half.distances.values()), -2), rounded(half.rounding, -2)]
    shown.append(rounded(half.reopened, -6))
    if full.difference is None or full.correlation is None:
        return [*shown, "refused"]
    return [*shown, f"{math.floor(1e3 * full.correlation) / 1e3:.3f}"]


HEADS = (
    "model",
    "layers with an adapter",
    "float32: scores",
    "adapter opened again",
    "bfloat16: scores",
    "the loop's own rounding",
    "adapter opened again",
    "finite difference",
)


def failures(cells: dict[str, Cell]) -> list[str]:
    """What of one model is beyond the limits."""
    found = []
    for kind, cell in cells.items():
        far = {way: d for way, d in cell.distances.items() if not d <= LIMITS[kind]}
        found += [f"{kind}, {way}: {d:.1e} from the loop" for way, d in far.items()]
        if not cell.rounding <= LIMITS[kind]:
            found.append(f"{kind}: the loop itself is off by {cell.rounding:.1e}")
        if not cell.reopened <= REOPENED_LIMIT[kind]:
            found.append(f"{kind}: logits of the opened adapter are off by {cell.reopened:.1e}")
        if cell.difference is not None and not cell.difference <= DIFFERENCE_LIMIT:
            found.append(f"{kind}, finite difference: {cell.difference:.1e} from the loop")
    return found


def main(write: bool) -> int:
    """Measure all, say what is beyond the limits, and write the page's table."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows, n_bad = [], 0
    for name, architecture in ARCHITECTURES.items():
        cells = {kind: measure(architecture, dtype) for kind, dtype in DTYPES.items()}
        rows.append(row_of(name, cells))
        print(" | ".join(rows[-1]), flush=True)
        for problem in failures(cells):
            n_bad += 1
            print(f"  {name}, {problem}", flush=True)
    if write and not n_bad:
        write_block(PAGE, NAME, table(HEADS, rows))
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main(write="--write" in sys.argv))
