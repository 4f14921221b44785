"""Other people's tables: does influence fail on language models, or did the padding?

    make base
    python -m experiments.outside.run --data FOLDER

Every set is trained and scored twice: with the loss on the response, and as its authors had it, with
padding and prompt in the loss. A half that is done is kept in the work folder, a set that is done as
experiments/outside/results/MODEL-SET-SEED.json.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clues.collect import machine
from clues.config import LoraSettings, ModelSettings, derived_seed
from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, Checkpoint, LoraModel, load_tokenizer
from clues.rundir import read_json, write_json
from clues.scoring.hidden import Weigh, later_tokens, response_tokens, unit_vectors
from clues.scoring.perplexity import alignments, losses_before
from experiments.draws import PUBLISHED, Draw, Row, parser, run_draws
from experiments.outside.forms import (
    Parts,
    Public,
    Scores,
    by_class,
    class_gradients,
    influences,
    judged,
    selection_scores,
    taken,
)
from experiments.outside.masks import (
    Gradients,
    Tuning,
    filled,
    mean_loss,
    padded_gradients,
    padded_loss,
    prompt_of,
    row_gradients,
    tune,
    whole,
)
from experiments.outside.sets import LIMIT, SETS, Dealt, OutsideSet, damaged, deal, encode

LORA = LoraSettings(rank=4, alpha=32, dropout=0.1, target_modules=("q_proj", "v_proj"))
TUNING = Tuning()
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Scene:
    """One set, ready for a model.

    Attributes:
        model: with a new adapter.
        wanted: which set.
        dealt: its rows.
        train: training rows, encoded, with the mask of the response.
        queries: likewise.
        anchors: likewise.
        copies: damaged copies of the anchors, likewise.
        kinds: of damage, by copy.
        end: the token that pads.
        seed: of everything.
    """

    model: LoraModel
    wanted: OutsideSet
    dealt: Dealt
    train: Sequence[EncodedRow]
    queries: Sequence[EncodedRow]
    anchors: Sequence[EncodedRow]
    copies: Sequence[EncodedRow]
    kinds: Sequence[str]
    end: int
    seed: int

    @classmethod
    def of(
        cls, model: LoraModel, tokenizer: Any, wanted: OutsideSet, data: Path, seed: int
    ) -> "Scene":
        """Deal a set and encode its rows."""
        dealt = deal(data, wanted, seed=seed)
        copies, kinds = damaged(dealt.anchors, dealt.queries, seed=seed)
        parts = {
            "train": dealt.train,
            "queries": dealt.queries,
            "anchors": dealt.anchors,
            "copies": copies,
        }
        rows = {name: encode(tokenizer, texts, name=name) for name, texts in parts.items()}
        return cls(model, wanted, dealt, **rows, kinds=kinds, end=tokenizer.eos_token_id, seed=seed)

    @property
    def labels(self) -> list[str]:
        """Classes of the training rows."""
        return [text.label for text in self.dealt.train]

    @property
    def asked(self) -> list[str]:
        """Classes of the queries."""
        return [text.label for text in self.dealt.queries]

    @property
    def width(self) -> int:
        """Positions of a padded row."""
        if self.wanted.left:
            return LIMIT
        return max(len(prompt_of(row).ids) for row in (*self.train, *self.queries))

    def judge(self, single: Scores, joint: Scores) -> Row:
        """Figures of every score: each query alone, and all of a class as one direction."""
        classes = sorted(set(self.asked))
        return {
            name: judged(scores, self.asked, self.labels)
            | {"class_auc": judged(joint[name], classes, self.labels)["auc"]}
            for name, scores in single.items()
        }


def with_the_response(scene: Scene) -> Row:
    """Trained and scored with the loss on the response: all scores."""
    model, n, m = scene.model, len(scene.train), len(scene.queries)
    checkpoint = tune(model, scene.train, mean_loss, TUNING, seed=scene.seed)
    rows = [*scene.train, *scene.queries, *scene.anchors, *scene.copies]
    gradients, tuned = row_gradients(model, rows, checkpoint.adapter)
    train, queries = taken(gradients, 0, n), taken(gradients, n, m)
    public = taken(gradients, n + m, len(rows) - n - m)
    single, joint = _influences(scene, train, queries, checkpoint)
    base = losses_before(model, rows)
    helps = alignments(model, rows, tuned, adapter=checkpoint.adapter)
    weights: Row = {}
    for way, scores, directions, labels in (
        ("single", single, queries, scene.asked),
        ("class", joint, class_gradients(queries, scene.asked), sorted(set(scene.asked))),
    ):
        theirs = influences(public, directions, checkpoint, silo=train)["less"]
        scores["selection score"], weights[way] = selection_scores(
            Parts(scores["less"], -base[:n], helps[:n]),
            _public(scene, theirs, -base[n + m :], helps[n + m :]),
            labels,
        )
    _add_similar(scene, single, joint, checkpoint.adapter, base_too=True)
    blind = {
        "base_perplexity": -base[:n],
        "alignment": helps[:n],
        "length": np.array([float(row.n_response_tokens) for row in scene.train]),
        "random": np.random.default_rng(derived_seed(scene.seed, "random")).random(n),
    }
    for name, values in blind.items():
        single[name], joint[name] = (np.tile(values, (len(s["sgd"]), 1)) for s in (single, joint))
    return {
        "cells": {"response, response": scene.judge(single, joint)},
        "weights": weights,
        "loss": {"before": float(base[:n].mean()), "after": float(tuned[:n].mean())},
    }


def as_they_had_it(scene: Scene) -> Row:
    """Trained with padding and prompt in the loss; scored so, without padding, and by the response."""
    model, n, m = scene.model, len(scene.train), len(scene.queries)
    rows = [*scene.train, *scene.queries]
    how = {"end": scene.end, "width": scene.width}
    if scene.wanted.left:
        checkpoint, text, padded = with_padding_in_front(scene)
        adapter = checkpoint.adapter
    else:
        # DataInf trains on whole texts, and takes the gradients of the prompts.
        texts = [whole(row) for row in scene.train]
        checkpoint = tune(model, texts, mean_loss, TUNING, seed=scene.seed)
        adapter = checkpoint.adapter
        prompts = [prompt_of(row) for row in rows]
        text, _ = row_gradients(model, prompts, adapter)
        padded, _ = row_gradients(model, [filled(row, **how) for row in prompts], adapter)
    cells: Row = {}
    response, after = row_gradients(model, rows, adapter)
    for name, gradients in (("padded", padded), ("text", text), ("response", response)):
        parts = taken(gradients, 0, n), taken(gradients, n, m)
        single, joint = _influences(scene, *parts, checkpoint)
        if name == "padded":
            _add_similar(scene, single, joint, adapter, base_too=False)
        cells[f"padded, {name}"] = scene.judge(single, joint)
    return {"cells": cells, "loss": {"after": float(after[:n].mean())}}


def with_padding_in_front(scene: Scene) -> tuple[Checkpoint, Gradients, Gradients]:
    """Trained with padding and prompt in the loss, as arXiv 2409.19998 has it.

    Returns:
        The checkpoint, and gradients of training rows and then queries: of the whole text, and of
        text and padding.
    """
    model, rows = scene.model, [*scene.train, *scene.queries]
    how = {"end": scene.end, "width": scene.width}
    checkpoint = tune(model, scene.train, padded_loss(**how), TUNING, seed=scene.seed)
    text, _ = row_gradients(model, [whole(row) for row in rows], checkpoint.adapter)
    return checkpoint, text, padded_gradients(model, rows, checkpoint.adapter, texts=text, **how)


def _influences(
    scene: Scene, train: Gradients, queries: Gradients, checkpoint: Checkpoint
) -> tuple[Scores, Scores]:
    """Influence by form: on every query, and on the mean of every class's queries."""
    joint = class_gradients(queries, scene.asked)
    return (
        influences(train, queries, checkpoint, silo=train),
        influences(train, joint, checkpoint, silo=train),
    )


def _public(scene: Scene, less: np.ndarray, loss: np.ndarray, helps: np.ndarray) -> Public:
    """Parts of the anchors, which come first, and of their copies."""
    n = len(scene.anchors)
    return Public(
        Parts(less[:, :n], loss[:n], helps[:n]),
        Parts(less[:, n:], loss[n:], helps[n:]),
        np.array([text.label for text in scene.dealt.anchors]),
        np.array(scene.kinds),
    )


def last_of_prompt(row: EncodedRow) -> Sequence[float]:
    """The last token before the response, alone: RepSim of arXiv 2409.19998."""
    last = row.mask.index(True) - 1
    return [float(t == last) for t in range(len(row.ids))]


def _add_similar(
    scene: Scene, single: Scores, joint: Scores, adapter: AdapterState, *, base_too: bool
) -> None:
    """Similarities of hidden states: cosines with the queries; of a class their mean, or the best."""
    ways: dict[str, tuple[AdapterState, Weigh, bool]] = {
        "repsim": (adapter, response_tokens, False),
        "repsim, prompt": (adapter, last_of_prompt, False),
    }
    if base_too:
        ways["rds"] = (scene.model.initial, later_tokens, True)
    for name, (state, weigh, best) in ways.items():
        rows = [*scene.train, *scene.queries]
        units = unit_vectors(scene.model, rows, adapter=state, weigh=weigh)
        n = len(scene.train)
        single[name] = units[n:] @ units[:n].T
        joint[name] = by_class(single[name], scene.asked, best=best)


def positions(scene: Scene) -> Row:
    """Of the positions in the loss as they had it, the shares of padding, prompt and response."""
    if not scene.wanted.left:
        used = [len(prompt_of(row).ids) for row in scene.train]
        padding = 1 - sum(used) / (scene.width * len(used))
        return {"padding": round(padding, 4), "prompt": round(1 - padding, 4), "response": 0.0}
    total = (scene.width - 1) * len(scene.train)
    padding = sum(scene.width - len(row.ids) for row in scene.train) / total
    response = sum(row.n_response_tokens for row in scene.train) / total
    shares = {"padding": padding, "prompt": 1 - padding - response, "response": response}
    return {name: round(share, 4) for name, share in shares.items()}


HALVES: Mapping[str, Callable[[Scene], Row]] = {
    "response": with_the_response,
    "padded": as_they_had_it,
}


def run_set(draw: Draw, scene: Scene, *, dtype: str) -> Row:
    """Both halves of a set; one that is done is read from the draw's folder."""
    found: dict[str, Row] = {}
    for name, half in HALVES.items():
        path = draw.folder / f"{name}.json"
        if not path.exists():
            start = time.process_time()
            content = half(scene)
            write_json(path, content | {"seconds": round(time.process_time() - start)})
        found[name] = read_json(path, advice="Remove it and run again.")
    rows = scene.labels
    return {
        "set": scene.wanted.name,
        "base_model": draw.label,
        "dtype": dtype,
        "seed": draw.seed,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(scene.model.device),
        "torch": torch.__version__,
        "tuning": asdict(TUNING),
        "rows": len(rows),
        "queries": len(scene.queries),
        "anchors": len(scene.anchors),
        # Their names are the answers of some sets.
        "classes": [rows.count(label) for label in sorted(set(rows))],
        "asked": len(set(scene.asked)),
        "chance": round(
            float(np.mean([rows.count(label) / len(rows) for label in scene.asked])), 4
        ),
        "positions": positions(scene),
        "weights": found["response"]["weights"],
        "seconds": {name: half["seconds"] for name, half in found.items()},
        "loss": found["response"]["loss"] | {"after, padded": found["padded"]["loss"]["after"]},
        "cells": found["response"]["cells"] | found["padded"]["cells"],
    }


def main() -> None:
    """Run every set of every seed."""
    options = parser(__doc__, model=PUBLISHED, seeds=[0], work="outside")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--sets", nargs="+", default=[wanted.name for wanted in SETS])
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = options.parse_args()
    models: dict[int, LoraModel] = {}

    def run(draw: Draw) -> Row:
        settings = ModelSettings(name=draw.model, dtype=args.dtype)
        if draw.seed not in models:
            models[draw.seed] = LoraModel.load(settings, LORA, seed=draw.seed, device="cpu")
        tokenizer = load_tokenizer(settings)
        scene = Scene.of(models[draw.seed], tokenizer, wanted, args.data, draw.seed)
        return run_set(draw, scene, dtype=args.dtype)

    for wanted in SETS:
        if wanted.name in args.sets:
            run_draws(args, RESULTS, run, part=wanted.name)


if __name__ == "__main__":
    main()
