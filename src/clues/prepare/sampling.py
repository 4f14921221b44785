"""Draw rows for a person to check, spread so that few of them say much, and write a page to do it on."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clues.atomic import atomic_write_bytes
from clues.config import BUILT_IN, Columns, LoraSettings, ModelSettings, TokenSettings
from clues.data.formats import RowFile, read_rows
from clues.data.samples import Sample
from clues.data.tokens import encode_rows
from clues.errors import DataError
from clues.findings.look import look
from clues.model.adapters import LoraModel, load_tokenizer
from clues.model.cache import encoder_for
from clues.prepare.athand import at_hand
from clues.progress import Progress, Silent
from clues.report.page import environment
from clues.scoring.perplexity import mean_losses

N_CLUSTERS = 8
N_LENGTHS = 4
MORE = 3  # rows whose loss is taken, for each that is drawn
MAX_SHOWN = 20_000  # characters of a turn on the page
N_FEATURES = 2**12


def sample_page(
    rows: str,
    page: Path,
    *,
    n: int,
    model: str = BUILT_IN,
    seed: int,
    schema: str | None = None,
    columns: Columns | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a page with rows to check; returns how many.

    Rows of which a rule is sure that they are bad need nobody to look at them, and are not drawn.

    Raises:
        CluesError: rows or model cannot be used.
    """
    file = read_rows(rows, schema=schema, columns=columns, lenient=True)
    usable = [sample for sample in file.samples if sample.row not in file.unusable]
    seen = look(usable)
    plain = [s for s in usable if not any(finding.sure for finding in seen.of(s.row))]
    if not plain:
        raise DataError(
            f"{rows}: no row is left to check: each has a fault that a rule is sure of."
        )
    drawn = draw(plain, n=n, model=model, seed=seed, progress=progress or Silent())
    atomic_write_bytes(page, _page(file, drawn).encode(), private=True)
    return len(drawn)


def draw(
    samples: Sequence[Sample], *, n: int, model: str, seed: int, progress: Progress | None = None
) -> list[Sample]:
    """Rows spread over subject, length and the base model's loss, in an order of chance.

    Every k-th row of a list that is sorted by these three: each part of it sends its share.
    """
    rng = np.random.default_rng(seed)
    if len(samples) <= n:
        return [samples[i] for i in rng.permutation(len(samples))]
    groups = _groups(samples, seed=seed)
    candidates = _every(np.lexsort((rng.random(len(samples)), groups)), MORE * n, rng)
    losses = _losses([samples[i] for i in candidates], model, progress or Silent())
    inner = _every(np.lexsort((losses, groups[candidates])), n, rng)
    chosen = candidates[inner]
    return [samples[i] for i in rng.permutation(chosen)]


def _groups(samples: Sequence[Sample], *, seed: int) -> NDArray[np.int64]:
    """A number for each row, of its cluster of words and its length together."""
    from sklearn.cluster import MiniBatchKMeans  # a second, for one verb
    from sklearn.feature_extraction.text import HashingVectorizer

    texts = [f"{sample.prompt[-1].content} {sample.response}"[:MAX_SHOWN] for sample in samples]
    words = HashingVectorizer(n_features=N_FEATURES, alternate_sign=False).transform(texts)
    k = min(N_CLUSTERS, len(samples))
    clusters = MiniBatchKMeans(k, random_state=seed).fit_predict(words)
    lengths = np.array([len(sample.response) for sample in samples])
    bands = np.searchsorted(np.quantile(lengths, np.linspace(0, 1, N_LENGTHS + 1)[1:-1]), lengths)
    return clusters.astype(np.int64) * N_LENGTHS + bands


def _every(order: NDArray[Any], n: int, rng: np.random.Generator) -> NDArray[Any]:
    """About every k-th of an order, from a place of chance on."""
    n = min(n, len(order))
    places = (np.arange(n) + rng.random()) * len(order) / n
    return order[places.astype(int)]


def _losses(samples: Sequence[Sample], model: str, progress: Progress) -> NDArray[np.float64]:
    """Loss of each row under the base model; of a row that does not fit the largest."""
    hand = at_hand(model)
    settings = ModelSettings.model_validate({"name": model, "dtype": hand.dtype})
    loaded = LoraModel.load(settings, LoraSettings(rank=1, target_modules="all-linear"), seed=0)
    tokens = TokenSettings(max_length=hand.max_length, overlong="truncate", odd_turns="fold")
    encoder = encoder_for(loaded, load_tokenizer(settings), tokens)
    encoded = encode_rows(samples, encoder, where="rows").rows
    with progress.task("read rows", len(encoded)) as advance:
        losses = mean_losses(
            loaded, encoded, adapter=loaded.initial, skip_nonfinite=True, on_rows=advance
        )
    found = dict(zip([row.row for row in encoded], losses, strict=True))
    return np.nan_to_num([found.get(s.row, np.inf) for s in samples], nan=1e9, posinf=1e9)


def _page(file: RowFile, drawn: Sequence[Sample]) -> str:
    records = file.table.read(file.table.columns)
    rows = [
        {
            "row": sample.row + 1,
            "turns": [[t.role, t.shown[:MAX_SHOWN]] for t in sample.messages],
            "record": records[sample.row],
        }
        for sample in drawn
    ]
    text = json.dumps(rows, ensure_ascii=True, default=str)
    script = (files("clues") / "report" / "templates" / "sample.js").read_text(encoding="utf-8")
    return (
        environment()
        .get_template("sample.html.j2")
        .render(
            n=len(rows),
            key=hashlib.sha256(text.encode()).hexdigest()[:16],
            # Base64 has no character that HTML or a script could take for its own.
            data=base64.b64encode(text.encode()).decode(),
            script=script,
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
