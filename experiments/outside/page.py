"""docs/outside.md from the stored figures: ours, and those of the authors. No torch."""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.outside.sets import SETS
from experiments.standalone import DEQUANTISED

RESULTS = Path(__file__).parent / "results"
PLACE = "outside.md"
TITLE = "Other people's tables: does influence fail, or did the padding?"
Stored = Mapping[str, Any]

# Trained with the loss on, scored with the loss on; in the order of the tables.
CELLS = {
    "padded, padded": "as they had it",
    "padded, text": "scored without padding",
    "padded, response": "scored by the response",
    "response, response": "trained and scored by the response",
}
FORMS = {
    "sgd": "gradient dot product",
    "datainf": "form `datainf`",
    "cosine": "cosine of gradients",
    "less": "form `less`, which the selection score takes",
}
SHOWN = ("sgd", "datainf", "less", "selection score", "repsim, prompt")
NAMES = {
    "sgd": "gradient dot product",
    "datainf": "DataInf",
    "repsim": "repsim (mean state of the response)",
    "repsim, prompt": "RepSim as theirs (last state of the prompt)",
}
# Of the notebooks of DataInf: AUC and recall, which is Cover.
DATAINF = {
    "datainf-grammars": {"sgd": (0.999, 0.985), "datainf": (1.000, 0.997)},
    "datainf-math": {"sgd": (0.770, 0.258), "datainf": (1.000, 0.999)},
    "datainf-math-reason": {"sgd": (0.772, 0.258), "datainf": (1.000, 0.996)},
}
MODELS = {"llama2": "Llama-2-7b-chat", "mistral": "Mistral-7B-Instruct"}
# Training rows of a query's class, and of all: chance, and what Cover can reach.
SIZES = {
    "grammars": (90, 900, 10),
    "math": (90, 900, 10),
    "mixedS": (20, 40, 2),
    "mixedL": (20, 250, 2),
}

ASKS = (
    'The paper "Do Influence Functions Work on Large Language Models?" (arXiv 2409.19998) answers no: on '
    "nine sets, influence often does not find the training rows of a test row's class. DataInf (arXiv "
    "2310.00902) asks the same of three sets. Both fill rows up to one length and take the loss over every "
    "position, padding and prompt included. Here the same rows are trained and scored once so, and once "
    "with the loss on the response alone."
)
ANSWER = """\
Where rows are padded, the padding did most of it. Where rows fill the limit there is hardly any padding, influence is weak, and no mask
mends that. As of 27 November 2026; of the published base (SmolLM2) eight sets of eleven were finished when this was written, and the rest is said of
the built-in base.

- **Padded rows** (grammars, math, emotion). On SmolLM2, 72, 49 and 81 % of the positions in the loss are padding. Mean AUC of the
  gradient dot product: 0.655 as they had it, 0.837 when the same adapter is scored without padding, 0.940 by the response, 0.969 when it is
  trained by the response too. DataInf: 0.846, 0.843, 0.956 and 0.978; `less`: 0.845, 0.860, 0.962 and 0.979. The plain product suffers most.
  In emotion every form is near chance (0.47 to 0.59) until the loss is on the response (0.82 to 0.89): there the prompts drown it as well.
- **What the padding does.** It is the same text in every row, so its gradient is common to all and grows with its length. On the built-in
  base the dot product as they had it ranks rows by how much padding they have: rank correlation 0.999 in grammars, 0.997 in math
  (`python -m experiments.outside.padding --data FOLDER`).
- **Rows as long as the limit** (mixed and backdoor sets). On SmolLM2, mean of mixedS and mixedL: dot product 0.78 as they had it and 0.73 by the
  response, DataInf 0.77 and 0.75; the mean state of the response 0.93, RepSim as theirs 0.73 and 0.69. On the built-in base, mean of five
  sets: the dot product 0.72 to 0.74 under every mask, DataInf 0.79 as they had it and 0.73 by the response, RepSim as theirs 0.76. In
  backdoor influence wins by far (0.84 by the response against 0.52).
- **DataInf's sets.** The gradients of the prompts find the class all but without an error (SmolLM2, without padding: dot product 0.997,
  DataInf 0.999): the prompts name it, or share its words. By the response it is 0.88 and 0.89. For this question their mask is the better one.
- **Similarity of hidden states is first here.** Over the eight sets of SmolLM2, trained and scored by the response, the mean state of the
  response has 0.950, DataInf 0.887, `less` 0.885, the dot product 0.877. Which rows are of a kind is what such states tell best. Which rows
  are good is another question: of answers that experts graded they tell nothing (README).
- **The selection score** has 0.901. Its other parts do not look at the query. They find damaged rows.

So the loss explains much of the paper's answer for padded rows, and not all: in grammars their own DataInf on Llama-2 has AUC 0.65,
ours as they had it 0.967. They train thirty times as many steps on thirty times as many rows, and which of this makes the difference was not
measured. In math their dot product has 0.94 with padding in the loss, ours 0.619; perhaps their longer training has learned the padding. That was
not measured either.
"""
HOW = """\
## How it was made

- **Rows.** Every set is dealt in small: 24 to 40 training rows of all classes and 12 test rows, each a query of its own (the table
  of sets says how many). mixedM is left out: its files, as they came to us, are those of mixedL.
- **Training.** As theirs: LoRA of rank 4, alpha 32, dropout 0.1 on q and v, their template, rows cut at 128 tokens. There are fewer
  rows, so there are fewer steps (two epochs, five rows per step), with rates that add up to as much as theirs.
- **As they had it.** For the first paper end tokens stand in front of the text, up to 128 positions, and all of them count. What a
  padded position reads differs between versions of the library; here it reads the padding before it, and the text reads no
  padding. DataInf trains on whole texts and takes gradients of the prompts, with padding behind them; here up to the longest
  prompt that was dealt.
- **Scored without padding.** The same adapter and the same rows; the loss is over every token of the text (DataInf: of the prompt).
- **Scored by the response.** The same adapter again; the loss is over the response.
- **Figures.** Acc: the highest row is of the query's class. Cover (DataInf: recall): the share of that class among the
  highest rows / classes. AUC: how often a row of the class scores above another one. All are means over queries.
- **The selection score** takes each query as its validation set, and five other test rows of the class as anchors. `base_perplexity`,
  `alignment`, `length` and `random` do not look at the query and give all queries one order of the rows, so they find a class by
  accident, or because its rows are unlike the others.
"""
LIMITS = """\
## What this does not show

- The base has a fiftieth of the weights of theirs, saw fewer rows for fewer steps, and its 4-bit file was turned back. Their own figures
  are beside ours for the question, not for a race.
- In `grammars` and `emotion` the response *is* the name of the class. A score that reads the response is told the answer there, a score
  that reads the prompt (RepSim as theirs) is not. In the other sets it is not so.
- One seed, and twelve queries of a set: a figure of one set may be off by a tenth. What holds over sets counts.
- LiSSA was not run here.
"""


def stored() -> dict[str, list[Stored]]:
    """Files of finished sets by base model, published models first."""
    found: dict[str, list[Stored]] = defaultdict(list)
    for file in sorted(RESULTS.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if "cells" in content:
            found[content["base_model"]].append(content)
    return dict(sorted(found.items(), key=lambda item: item[0] not in DEQUANTISED))


def page() -> str:
    """The whole page."""
    sets = [wanted.name for wanted in SETS]
    lines = [f"# {TITLE}", "", ASKS, "", "## What comes out", "", *ANSWER.splitlines(), ""]
    lines += HOW.splitlines()
    for base, contents in stored().items():
        order = {name: place for place, name in enumerate(sets)}
        contents = sorted(contents, key=lambda one: (order[one["set"]], one["seed"]))
        lines += ["", *_base(base, contents, sets)]
    lines += ["", "## Their own figures", "", *theirs_table(), "", *LIMITS.splitlines(), ""]
    lines += ["Again: `python -m experiments.outside.run --data FOLDER`."]
    return "\n".join(lines) + "\n"


def group_of(one: Stored) -> str:
    """Sets alike in what their authors' loss was made of."""
    shares = one["positions"]
    if shares["response"] == 0:
        return "gradients of prompts"
    return "rows with padding" if shares["padding"] > 0.05 else "rows as long as the limit"


def summary_table(contents: Sequence[Stored]) -> list[str]:
    """Mean AUC over sets that are alike, by form and mask; and RepSim as theirs."""
    groups: dict[str, list[Stored]] = defaultdict(list)
    for one in contents:
        groups[group_of(one)].append(one)
    lines = [
        f"| sets | score | {' | '.join(CELLS.values())} |",
        "| :--- | :--- |" + " ---: |" * len(CELLS),
    ]
    for group, ones in groups.items():
        names = ", ".join(dict.fromkeys(one["set"] for one in ones))
        for form in SHOWN:
            means = [
                f"{statistics.fmean(one['cells'][cell][form]['auc'] for one in ones):.3f}"
                if all(form in one["cells"][cell] for one in ones)
                else ""
                for cell in CELLS
            ]
            said = f"{group}: {names}" if form == SHOWN[0] else ""
            lines.append(f"| {said} | {NAMES.get(form, form)} | {' | '.join(means)} |")
    return lines


def _base(base: str, contents: Sequence[Stored], sets: Sequence[str]) -> list[str]:
    source = ", dequantised from 4-bit" if base in DEQUANTISED else ""
    done = {one["set"] for one in contents}
    missing = [name for name in sets if name not in done]
    seeds = ", ".join(sorted({str(one["seed"]) for one in contents}))
    dates = ", ".join(sorted({one["date"] for one in contents}))
    first = contents[0]
    seconds = sum(sum(one["seconds"].values()) for one in contents)
    said = f" Not measured yet: {', '.join(missing)}." if missing else ""
    lines = [
        f"## {base}{source}",
        "",
        f"Seed {seeds}; {dates}; {first['machine']}; torch {first['torch']}; {first['dtype']}; "
        f"{seconds:,} seconds of one core in all.{said}",
        "",
        *sets_table(contents),
        "",
        "### Mean AUC of sets that are alike",
        "",
        *summary_table(contents),
    ]
    for form, words in FORMS.items():
        lines += ["", f"### AUC of the {words}", ""]
        lines += cells_table(contents, form)
    lines += ["", "### AUC of all scores by the response", "", *scores_table(contents)]
    return [*lines, "", "### In their metric: Acc / Cover", "", *metric_table(contents)]


def sets_table(contents: Sequence[Stored]) -> list[str]:
    """Sizes, chance, and what the loss was made of as they had it."""
    lines = [
        "| set | rows | classes | queries | chance | padding | prompt | response |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in contents:
        shares = " | ".join(f"{one['positions'][n]:.0%}" for n in ("padding", "prompt", "response"))
        sizes = f"{one['rows']} | {len(one['classes'])} | {one['queries']} | {one['chance']:.2f}"
        lines.append(f"| {one['set']} | {sizes} | {shares} |")
    return [
        *lines,
        "",
        "Padding, prompt and response are shares of the positions in the loss as they had it.",
    ]


def cells_table(contents: Sequence[Stored], form: str) -> list[str]:
    """AUC of one form by set and mask."""
    lines = [f"| set | {' | '.join(CELLS.values())} |", "| :--- |" + " ---: |" * len(CELLS)]
    columns: list[list[float]] = []
    for one in contents:
        values = [one["cells"][cell][form]["auc"] for cell in CELLS]
        columns.append(values)
        lines.append(f"| {one['set']} | {' | '.join(f'{v:.3f}' for v in values)} |")
    means = (f"{statistics.fmean(column):.3f}" for column in zip(*columns, strict=True))
    return [*lines, f"| mean | {' | '.join(means)} |"]


def scores_table(contents: Sequence[Stored]) -> list[str]:
    """AUC of every score with the loss on the response, best mean first."""
    cell = "response, response"
    names = contents[0]["cells"][cell]
    means = {n: statistics.fmean(one["cells"][cell][n]["auc"] for one in contents) for n in names}
    heads = " | ".join(one["set"] for one in contents)
    lines = [f"| score | mean | {heads} |", "| :--- | ---: |" + " ---: |" * len(contents)]
    for name in sorted(names, key=lambda n: -means[n]):
        values = " | ".join(f"{one['cells'][cell][name]['auc']:.3f}" for one in contents)
        lines.append(f"| {NAMES.get(name, name)} | {means[name]:.3f} | {values} |")
    return lines


def metric_table(contents: Sequence[Stored]) -> list[str]:
    """Acc and Cover by set: their setting, and the response."""
    columns = [
        ("padded, padded", "sgd", "dot, as they had it"),
        ("padded, padded", "datainf", "DataInf, as they had it"),
        ("padded, padded", "repsim, prompt", "RepSim as theirs"),
        ("response, response", "sgd", "dot, response"),
        ("response, response", "datainf", "DataInf, response"),
        ("response, response", "less", "`less`, response"),
        ("response, response", "selection score", "selection score"),
    ]
    heads = " | ".join(head for *_, head in columns)
    lines = [f"| set | chance | {heads} |", "| :--- | ---: |" + " ---: |" * len(columns)]
    for one in contents:
        found = [one["cells"][cell][name] for cell, name, _ in columns]
        cells = " | ".join(f"{f['acc']:.2f} / {f['cover']:.2f}" for f in found)
        lines.append(f"| {one['set']} | {one['chance']:.2f} | {cells} |")
    return lines


def theirs_table() -> list[str]:
    """Their stored scores in their metric and as AUC, and DataInf's published figures."""
    content = json.loads((RESULTS / "theirs.json").read_text(encoding="utf-8"))
    names = {"sgd": "gradient dot product", "datainf": "DataInf", "lissa": "LiSSA"}
    lines = [
        "Of the first paper, all rows, from the scores that its authors stored; AUC is ours, from the same "
        "scores. Cover reaches no more than the class has rows: 0.16 in mixedL.",
        "",
        "| set | model | score | chance | Acc | Cover | AUC |",
        "| :--- | :--- | :--- | ---: | ---: | ---: | ---: |",
    ]
    for name, (own, rows, _) in SIZES.items():
        for model, scores in content[name].items():
            for score, f in scores.items():
                said = f"{name} | {MODELS[model]} | {names[score]} | {own / rows:.2f}"
                lines.append(f"| {said} | {f['acc']:.2f} | {f['cover']:.3f} | {f['auc']:.3f} |")
    lines += [
        "",
        "DataInf's notebooks, Llama-2-13b-chat, all rows:",
        "",
        "| set | score | recall (Cover) | AUC |",
        "| :--- | :--- | ---: | ---: |",
    ]
    for name, scores in DATAINF.items():
        for score, (auc, recall) in scores.items():
            lines.append(f"| {name} | {names[score]} | {recall:.3f} | {auc:.3f} |")
    return lines
