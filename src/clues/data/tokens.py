"""Text to token ids and loss mask; the same function serves training, scoring and evaluation.

T tokens of a row. `mask_T` is True where the token belongs to a response and is predicted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from clues.config import TokenSettings
from clues.data.pieces import PieceTokens, Segment
from clues.data.remarks import Remark
from clues.data.samples import Message, Sample
from clues.data.spans import Found, find_answers
from clues.data.templates import ChatTemplate, Rendered, template_of
from clues.data.turns import foldings
from clues.errors import ConfigError, DataError, TurnsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ODD_TURNS = "turns that the chat template refuses"
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
        remarks: what is worth knowing about its text; a check counts them.
    """

    row: int
    id: str
    ids: tuple[int, ...] = field(repr=False)
    mask: tuple[bool, ...] = field(repr=False)
    truncated: bool = False
    remarks: tuple[Remark, ...] = field(default=(), compare=False)

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


class RowEncoder:
    """Turns samples into token ids and masks under one recipe."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        settings: TokenSettings,
        *,
        context: int | None = None,
    ) -> None:
        """Choose the template.

        Args:
            tokenizer: of the base model.
            settings: of the recipe.
            context: how many tokens the base model has learned to read at once; no row is read
                beyond it, whatever the recipe says. None where the model names no end.

        Raises:
            ConfigError: the recipe asks for a chat template and the tokenizer has none.
        """
        self.tokenizer: Any = tokenizer
        # What lies further back has positions that the model never saw.
        most = min(settings.max_length, context or settings.max_length)
        self.settings = settings.model_copy(update={"max_length": most})
        wanted = settings.template != "alpaca"
        has_chat = wanted and template_of(tokenizer)
        day = settings.date.isoformat()
        self.chat = ChatTemplate(tokenizer, day=day) if has_chat else None
        self._pieces = PieceTokens(tokenizer)
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
            TurnsError: the chat template refuses the turns, and the recipe does not fold them.
            DataError: no response token is left, or the chat template shows no answer.
        """
        segments, remarks = self._read(sample)
        return self._cut(sample, segments if with_end else _without_end(segments, sample), remarks)

    def encode_prompt(self, sample: Sample) -> tuple[int, ...]:
        """Return the token ids in front of the last response, whole."""
        segments = self.segments(sample)
        last = max(i for i, segment in enumerate(segments) if segment.is_response)
        if self._pieces.apart:
            return tuple(self._pieces.of(segments[:last])[0])
        ids, owners = self._pieces.of(segments)
        return tuple(ids[: next(i for i, owner in enumerate(owners) if owner >= last)])

    def _cut(
        self, sample: Sample, segments: Sequence[Segment], remarks: tuple[Remark, ...]
    ) -> EncodedRow:
        ids, owners = self._pieces.of(segments)
        mask = [owner >= 0 and segments[owner].is_response for owner in owners]
        truncated = len(ids) > self.settings.max_length
        if truncated and self.settings.overlong == "truncate":
            ids, mask = _with_room(ids, mask, self.settings.max_length)
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
        return EncodedRow(sample.row, sample.id, tuple(ids), tuple(mask), truncated, remarks)

    def segments(self, sample: Sample) -> list[Segment]:
        """Split the rendered text into prompt and response pieces, in order."""
        return self._read(sample)[0]

    def _read(self, sample: Sample) -> tuple[list[Segment], tuple[Remark, ...]]:
        if self.chat is None:
            segments = list(self._alpaca_segments(sample.messages))
            led = sample.messages[0].role == "assistant" and self.settings.loss_on == "assistant"
            endless = self.tokenizer.eos_token_id is None
            said = ((Remark.LED, led), (Remark.NO_END, endless))
            return segments, tuple(remark for remark, holds in said if holds)
        try:
            found = self._found(sample.messages)
        except TurnsError as error:
            folded = self._folded(sample) if self.settings.odd_turns == "fold" else None
            if folded is None:
                raise TurnsError(f"row {sample.row + 1}: {error}") from None
            return _split(folded), (*folded.remarks, Remark.FOLDED)
        except DataError as error:
            raise DataError(f"row {sample.row + 1}: {error}") from None
        return _split(found), found.remarks

    def _folded(self, sample: Sample) -> Found | None:
        """The first folding of the turns that the template takes."""
        for turns in foldings(sample.messages):
            try:
                return self._found(turns)
            except TurnsError:
                continue
        return None

    def _found(self, turns: Sequence[Message]) -> Found:
        return find_answers(self._render, turns, last=self.settings.loss_on == "last")

    def _alpaca_segments(self, messages: Sequence[Message]) -> Iterator[Segment]:
        """Headed turns; tokenising prompt and response apart keeps the mask exact."""
        for index, message in enumerate(messages):
            gap = "" if index == 0 or messages[index - 1].role == "assistant" else "\n\n"
            yield Segment(gap + HEADERS[message.role], is_response=False)
            if message.role != "assistant":
                yield Segment(message.content, is_response=False)
                continue
            # Nobody has asked for an answer that begins the conversation.
            asked = self.settings.loss_on == "assistant" and index > 0
            counts = asked or index == len(messages) - 1
            has_end = self.tokenizer.eos_token_id is not None
            yield Segment(message.content, is_response=counts, ends_text=has_end)

    def _render(self, turns: Sequence[Message], *, header: bool) -> Rendered:
        assert self.chat is not None
        plain = [{"role": turn.role, "content": turn.content} for turn in turns]
        return self.chat.render(plain, header=header)


def _with_room(ids: list[int], mask: list[bool], limit: int) -> tuple[list[int], list[bool]]:
    """Where the question alone fills the limit, its middle goes, so that some of the answer is read."""
    first = mask.index(True) if True in mask else 0
    if first < limit:
        return ids, mask
    room = min(sum(mask[first:]), limit // 2)
    # What is asked stands at either end: the instruction first, the turn's end last.
    head, tail = (limit - room + 1) // 2, (limit - room) // 2
    places = [*range(head), *range(first - tail, len(ids))]
    return [ids[i] for i in places], [mask[i] for i in places]


def _split(found: Found) -> list[Segment]:
    """The text in pieces; white space after an answer is a piece of its own."""
    segments: list[Segment] = []
    done = 0
    for start, end, tail in found.pieces:
        segments.append(Segment(found.text[done:start], is_response=False))
        segments.append(Segment(found.text[start:end], is_response=True))
        if tail > end:
            segments.append(Segment(found.text[end:tail], is_response=False))
        done = tail
    if done < len(found.text):
        segments.append(Segment(found.text[done:], is_response=False))
    return segments


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
    if before.strip():  # the template's words, and not the choice's
        return [*earlier, Segment(before, is_response=False), Segment(words, is_response=True)]
    return [*earlier, Segment(before + words, is_response=True)]


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
        DataError: the rule is `error` and a row is too long, or nothing is left and that is not
            expected.
    """
    kept: list[EncodedRow] = []
    dropped: dict[int, str] = {}
    limit, rule = encoder.settings.max_length, encoder.settings.overlong
    for sample in samples:
        try:
            encoded = encoder.encode(sample)
        except TurnsError as error:
            if encoder.settings.odd_turns != "drop":
                raise TurnsError(f"{where} {error}") from None
            dropped[sample.row] = ODD_TURNS
            continue
        except DataError as error:
            if rule != "error" and "after truncation" in str(error):
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
