"""Text to token ids and loss mask; the same function serves training, scoring and evaluation.

T tokens of a row. `mask_T` is True where the token belongs to a response and is predicted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from clues.config import TokenSettings
from clues.data.samples import Message, Sample
from clues.data.templates import ChatTemplate, template_of
from clues.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEADERS = {"system": "### System:\n", "user": "### Instruction:\n", "assistant": "### Response:\n"}


@dataclass(frozen=True)
class EncodedRow:
    """A row as the model sees it.

    Attributes:
        row: zero-based position in the user's file.
        id: content id of the sample.
        ids: T token ids, exactly one beginning-of-text token where the tokenizer uses one.
        mask: T booleans, True on response tokens.
        truncated: whether tokens were cut at the end.
    """

    row: int
    id: str
    ids: tuple[int, ...] = field(repr=False)
    mask: tuple[bool, ...] = field(repr=False)
    truncated: bool = False

    @property
    def n_response_tokens(self) -> int:
        """Number of tokens that carry loss."""
        return sum(self.mask)


def as_encoded(row: EncodedRow | Mapping[str, Any], number: int) -> EncodedRow:
    """A row of a tokenised data set: `input_ids`, and `labels` that are -100 where no loss falls.

    Raises:
        DataError: no label from the second token on.
    """
    if isinstance(row, EncodedRow):
        return row
    ids = tuple(int(i) for i in row["input_ids"])
    # The first token has nothing before it that could predict it.
    mask = (False, *(int(label) != -100 for label in row.get("labels", ids)[1:]))
    if not any(mask):
        raise DataError(f"row {number + 1}: no label from the second token on.")
    return EncodedRow(number, f"row-{number}", ids, mask)


@dataclass(frozen=True)
class Segment:
    """A piece of the rendered text that is wholly prompt or wholly response."""

    text: str = field(repr=False)
    is_response: bool
    ends_text: bool = False


class RowEncoder:
    """Turns samples into token ids and masks under one recipe."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", settings: TokenSettings) -> None:
        """Choose the template.

        Raises:
            ConfigError: the recipe asks for a chat template and the tokenizer has none.
        """
        self.tokenizer: Any = tokenizer
        self.settings = settings
        wanted = settings.template != "alpaca"
        self.chat = ChatTemplate(tokenizer) if wanted and template_of(tokenizer) else None
        if settings.template == "chat" and self.chat is None:
            raise ConfigError(
                "recipe.tokens.template is chat, but this model's tokenizer has no chat "
                "template. Set it to alpaca or auto."
            )
        self.template = "chat" if self.chat else "alpaca"

    def encode(self, sample: Sample, *, with_end: bool = True) -> EncodedRow:
        """Return token ids and mask of one sample, cut at `max_length`.

        Args:
            sample: what to encode.
            with_end: whether what ends the last response belongs to it. It does in training and
                scoring; a choice of an answer is its own words alone.

        Raises:
            DataError: no response token is left, or the chat template cannot be split.
        """
        segments = self.segments(sample)
        return self._cut(sample, segments if with_end else _without_end(segments, sample))

    def encode_prompt(self, sample: Sample) -> tuple[int, ...]:
        """Return the token ids in front of the last response, whole."""
        segments = self.segments(sample)
        last = max(i for i, segment in enumerate(segments) if segment.is_response)
        return tuple(self._tokens(segments[:last])[0])

    def _cut(self, sample: Sample, segments: Sequence[Segment]) -> EncodedRow:
        ids, mask = self._tokens(segments)
        truncated = len(ids) > self.settings.max_length
        ids, mask = ids[: self.settings.max_length], mask[: self.settings.max_length]
        # The first token of a text has nothing before it that could predict it.
        if mask:
            mask[0] = False
        if not any(mask):
            raise DataError(
                f"row {sample.row + 1}: no response token left"
                f"{' after truncation' if truncated else ''} at "
                f"{self.settings.max_length} tokens. Raise recipe.tokens.max_length or set "
                "overlong: drop."
            )
        return EncodedRow(sample.row, sample.id, tuple(ids), tuple(mask), truncated)

    def _tokens(self, segments: Sequence[Segment]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        mask: list[bool] = []
        for segment in segments:
            piece = self.tokenizer(segment.text, add_special_tokens=False)["input_ids"]
            if segment.ends_text:
                piece = [*piece, self.tokenizer.eos_token_id]
            ids += piece
            mask += [segment.is_response] * len(piece)
        first = self.tokenizer.bos_token_id
        # Templates may write the first token themselves: two of them would change every score.
        if first is not None and self._adds_bos() and ids[:1] != [first]:
            ids, mask = [first, *ids], [False, *mask]
        return ids, mask

    def segments(self, sample: Sample) -> list[Segment]:
        """Split the rendered text into prompt and response pieces, in order."""
        if self.template == "chat":
            return list(self._chat_segments(sample))
        return list(self._alpaca_segments(sample.messages))

    def _alpaca_segments(self, messages: Sequence[Message]) -> Iterator[Segment]:
        """Headed turns; tokenising prompt and response apart keeps the mask exact."""
        for index, message in enumerate(messages):
            gap = "" if index == 0 or messages[index - 1].role == "assistant" else "\n\n"
            yield Segment(gap + HEADERS[message.role], is_response=False)
            if message.role != "assistant":
                yield Segment(message.content, is_response=False)
                continue
            counts = self.settings.loss_on == "assistant" or index == len(messages) - 1
            has_end = self.tokenizer.eos_token_id is not None
            yield Segment(message.content, is_response=counts, ends_text=has_end)

    def _chat_segments(self, sample: Sample) -> Iterator[Segment]:
        """Render growing prefixes; what the response turn adds is the response."""
        done = ""
        turns = [{"role": m.role, "content": m.content} for m in sample.messages]
        for index, message in enumerate(sample.messages):
            if message.role != "assistant":
                continue
            if self.settings.loss_on == "last" and index < len(turns) - 1:
                continue
            prefix = self._render(sample, turns[:index], header=True)
            full = self._render(sample, turns[: index + 1], header=False)
            if not (prefix.startswith(done) and full.startswith(prefix)):
                raise DataError(
                    f"row {sample.row + 1}: this model's chat template rewrites earlier turns, "
                    "so the response cannot be told from the prompt. Set "
                    "recipe.tokens.loss_on: last or template: alpaca."
                )
            # A template without a generation prompt writes the header together with the answer.
            other = "1" if message.content.lstrip().startswith("0") else "0"
            answered = self._render(
                sample, [*turns[:index], {"role": "assistant", "content": other}], header=False
            )
            # The space before an answer stays with its first word: so tokenizers merge them.
            prefix += _common_start(full, answered)[len(prefix) :].rstrip(" ")
            yield Segment(prefix[len(done) :], is_response=False)
            response, tail = self._split_after_end(full[len(prefix) :])
            yield Segment(response, is_response=True)
            if tail:
                yield Segment(tail, is_response=False)
            done = full

    def _split_after_end(self, text: str) -> tuple[str, str]:
        """Cut white space that a template writes after the end-of-turn token."""
        stripped = text.rstrip()
        return stripped, text[len(stripped) :]

    def _render(self, sample: Sample, turns: list[dict[str, str]], *, header: bool) -> str:
        assert self.chat is not None
        try:
            return self.chat.render(turns, header=header)
        except DataError as error:
            raise DataError(f"row {sample.row + 1}: {error}") from None

    def _adds_bos(self) -> bool:
        return self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]


def _without_end(segments: Sequence[Segment], sample: Sample) -> list[Segment]:
    """Only the words of the last response count; templates write an end-of-turn after them."""
    last = max(i for i, segment in enumerate(segments) if segment.is_response)
    before, words, _ = segments[last].text.partition(sample.response.strip())
    if not words:
        raise DataError(
            f"row {sample.row + 1}: this model's chat template rewrites responses, so the words "
            "of a choice cannot be found in it. Set recipe.tokens.template: alpaca."
        )
    earlier = [replace(segment, is_response=False) for segment in segments[:last]]
    return [*earlier, Segment(before + words, is_response=True)]


def _common_start(one: str, two: str) -> str:
    n = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(two))
    return one[:n]


@dataclass(frozen=True)
class EncodedRows:
    """Rows ready for the model, and those that are not, by reason."""

    rows: tuple[EncodedRow, ...]
    dropped: dict[int, str]


def encode_rows(
    samples: Iterable[Sample], encoder: RowEncoder, *, where: str, may_be_empty: bool = False
) -> EncodedRows:
    """Encode all samples under the recipe's rule for rows that are too long.

    Raises:
        DataError: a row loses its whole response and the rule is not `drop`, or the rule is
            `error` and a row is too long, or nothing is left and that is not expected.
    """
    kept: list[EncodedRow] = []
    dropped: dict[int, str] = {}
    limit, rule = encoder.settings.max_length, encoder.settings.overlong
    for sample in samples:
        try:
            encoded = encoder.encode(sample)
        except DataError as error:
            if rule == "drop" and "after truncation" in str(error):
                dropped[sample.row] = f"longer than {limit} tokens"
                continue
            raise DataError(f"{where} {error}") from None
        if encoded.truncated and rule == "error":
            raise DataError(
                f"{where} row {sample.row + 1}: longer than {limit} tokens. Raise "
                "recipe.tokens.max_length or set overlong: drop or truncate."
            )
        if encoded.truncated and rule == "drop":
            dropped[sample.row] = f"longer than {limit} tokens"
            continue
        kept.append(encoded)
    if not kept and not may_be_empty:
        raise DataError(
            f"{where}: no row fits into {limit} tokens. Raise recipe.tokens.max_length."
        )
    return EncodedRows(tuple(kept), dropped)


def token_budget_batches(
    lengths: Sequence[int], *, budget: int, max_rows: int = 256
) -> Iterator[list[int]]:
    """Yield index batches of rows of similar length, each at most `budget` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for index in order:
        # Rows come longest first, so the first row of a batch sets its padded width.
        if batch and (len(batch) == max_rows or (len(batch) + 1) * lengths[batch[0]] > budget):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
