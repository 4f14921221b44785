"""What a tokenizer loses of a text: characters that do not come back when its tokens are decoded."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from clues.data.samples import Sample

N_TRIED = 100  # rows, spread over the file
N_NAMED = 6


class Lost(NamedTuple):
    """What is lost of a sample of rows.

    Attributes:
        share: of the characters, white space aside.
        signs: the signs that are lost most often; letters are counted and not named.
    """

    share: float
    signs: str


def characters_lost(tokenizer: Any, samples: Sequence[Sample]) -> Lost:
    """Take some rows to tokens and back, and count the characters that are not there any more.

    A character that comes back in another case or form is lost, too: the model reads another text.
    """
    step = max(1, len(samples) // N_TRIED)
    lost: Counter[str] = Counter()
    n = 0
    for sample in samples[::step][:N_TRIED]:
        for turn in sample.messages:
            before = _counted(turn.content)
            ids = tokenizer(turn.content, add_special_tokens=False)["input_ids"]
            lost += before - _counted(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
            n += before.total()
    signs = [sign for sign, _ in lost.most_common() if not sign.isalnum() and sign.isprintable()]
    return Lost(lost.total() / n if n else 0.0, "".join(signs[:N_NAMED]))


def _counted(text: str) -> Counter[str]:
    return Counter("".join(text.split()))
