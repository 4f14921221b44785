"""Measure a base model on held-out text against unigram and trigram models, and write its card.

    python -m experiments.base.card --corpus ../shared/corpus --model src/clues/assets/base

All three predict the same tokens; losses are in nats per byte of text, so that they compare
across tokenizers. The n-gram models are trained on the same training documents.
"""

import argparse
import itertools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from experiments.base.text import Document, all_documents

MIXES = [(a, b) for a in (0.3, 0.5, 0.7) for b in (0.5, 0.7, 0.9)]


class Trigram:
    """Interpolated trigram, bigram and add-one unigram over tokens."""

    def __init__(self, sequences: list[list[int]], *, vocabulary: int) -> None:
        """Count."""
        self.vocabulary = vocabulary
        self.one: Counter[int] = Counter()
        self.two: Counter[tuple[int, int]] = Counter()
        self.three: Counter[tuple[int, int, int]] = Counter()
        for ids in sequences:
            self.one.update(ids)
            self.two.update(itertools.pairwise(ids))
            self.three.update(zip(ids, ids[1:], ids[2:], strict=False))
        self.n_tokens = sum(self.one.values())
        self.after_one: Counter[int] = Counter()
        for (a, _), count in self.two.items():
            self.after_one[a] += count
        self.after_two: Counter[tuple[int, int]] = Counter()
        for (a, b, _), count in self.three.items():
            self.after_two[a, b] += count

    def unigram(self, token: int) -> float:
        """Probability of a token with one added to every count."""
        return (self.one[token] + 1) / (self.n_tokens + self.vocabulary)

    def losses(self, ids: list[int]) -> tuple[float, np.ndarray]:
        """Nats of a text under the unigram, and under the trigram for every mix."""
        unigram, trigram = 0.0, np.zeros(len(MIXES))
        for i, token in enumerate(ids):
            p1 = self.unigram(token)
            unigram -= np.log(p1)
            a, b = (ids[i - 2] if i > 1 else -1), (ids[i - 1] if i else -1)
            p2 = self.two[b, token] / self.after_one[b] if self.after_one[b] else p1
            p3 = self.three[a, b, token] / self.after_two[a, b] if self.after_two[a, b] else p2
            for n, (m3, m2) in enumerate(MIXES):
                trigram[n] -= np.log(m3 * p3 + (1 - m3) * (m2 * p2 + (1 - m2) * p1))
        return unigram, trigram


@torch.no_grad()
def model_loss(model: torch.nn.Module, ids: list[int], *, end: int) -> float:
    """Nats of a text under the model, an end-of-text token before it, in windows of 256."""
    total = 0.0
    for start in range(0, len(ids), 256):
        window = [end if start == 0 else ids[start - 1], *ids[start : start + 256]]
        tensor = torch.tensor(window)[None]
        logits = model(input_ids=tensor[:, :-1]).logits[0]
        total += float(cross_entropy(logits, tensor[0, 1:], reduction="sum"))
    return total


def measure(
    documents: list[Document],
    tokenizer: PreTrainedTokenizerBase,
    model: torch.nn.Module,
    *,
    most: int,
) -> dict[str, dict[str, float]]:
    """Losses per byte by source, for at most this many held-out documents of each."""
    encode = lambda d: tokenizer(d.text, add_special_tokens=False)["input_ids"]  # noqa: E731
    train = [encode(d) for d in documents if not d.held_out]
    ngram = Trigram(train, vocabulary=len(tokenizer))
    by_source: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        if document.held_out and len(by_source[document.source]) < most:
            by_source[document.source].append(document)
    table: dict[str, dict[str, float]] = {}
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    for source, held_out in sorted(by_source.items()):
        n_bytes, own, unigram, trigram = 0, 0.0, 0.0, np.zeros(len(MIXES))
        for document in held_out:
            ids = encode(document)
            n_bytes += len(document.text.encode())
            own += model_loss(model, ids, end=end)
            one, three = ngram.losses(ids)
            unigram, trigram = unigram + one, trigram + three
        # The best mix on the held-out text itself: the baseline gets the benefit.
        figures = {"model": own, "unigram": unigram, "trigram": float(trigram.min())}
        table[source] = {name: value / n_bytes for name, value in figures.items()}
        table[source]["documents"] = len(held_out)
    return table


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--most", type=int, default=60)
    args = parser.parse_args()
    documents = all_documents(args.corpus, seed=0, n_paragraphs=12_000)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    print("| held-out text | documents | this model | trigram | unigram |")
    print("| :--- | ---: | ---: | ---: | ---: |")
    for source, row in measure(documents, tokenizer, model, most=args.most).items():
        figures = " | ".join(f"{row[name]:.3f}" for name in ("model", "trigram", "unigram"))
        print(f"| {source} | {row['documents']:.0f} | {figures} |")


if __name__ == "__main__":
    main()
