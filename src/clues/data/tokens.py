"""Text to token ids and loss mask; the same function serves training, scoring and evaluation.

T tokens of a row. `mask_T` is True where the token belongs to a response and is predicted.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from clues.config import TokenSettings
from clues.data.pieces import NO_TURN, PieceTokens, Segment, TurnRun, turn_runs
from clues.data.remarks import Remark
from clues.data.rendering import Render
from clues.data.samples import Message, Sample
from clues.data.spans import Found, find_answers
from clues.data.templates import ChatTemplate, Rendered, template_of
from clues.data.turns import as_template_reads, foldings, with_thoughts
from clues.errors import ConfigError, DataError, TurnsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ODD_TURNS = "turns that the chat template refuses"
NO_CALLS = "it calls tools, and template alpaca has no form for calls"
UNTRAINED = "every turn of the assistant is marked as one that is not trained"
UNWANTED = "its label is false: the answer is one not to give"
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
        turns: which trained tokens are which turn's; empty where fewer than two turns are trained,
            or the turns are folded.
    """

    row: int
    id: str
    ids: tuple[int, ...] = field(repr=False)
    mask: tuple[bool, ...] = field(repr=False)
    truncated: bool = False
    remarks: tuple[Remark, ...] = field(default=(), compare=False)
    turns: tuple[TurnRun, ...] = field(default=(), compare=False)

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
        n_known: int | None = None,
        context: int | None = None,
    ) -> None:
        """Choose the template.

        Args:
            tokenizer: of the base model.
            settings: of the recipe.
            n_known: how many tokens the model has an embedding for; None leaves it open.
            context: how many tokens the base model has learned to read at once; no row is read
                beyond it, whatever the recipe says. None where the model names no end.

        Raises:
            ConfigError: the recipe asks for a chat template and the tokenizer has none.
        """
        self.tokenizer: Any = tokenizer
        self.n_known = n_known
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
        turns = [segments[owner].turn if owner >= 0 else NO_TURN for owner in owners]
        limit = self.settings.max_length
        if truncated := len(ids) > limit:
            rule = self.settings.overlong
            places = _with_room(mask, limit) if rule == "truncate" else range(limit)
            ids = [ids[i] for i in places]
            mask = [mask[i] for i in places]
            turns = [turns[i] for i in places]
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
        if self.n_known is not None and max(ids) >= self.n_known:
            raise DataError(
                f"row {sample.row + 1}: token number {max(ids)} is not in the model, which knows "
                f"{self.n_known}. Take the model's own tokenizer, or resize the model's embeddings."
            )
        runs = turn_runs(turns, mask)
        return EncodedRow(sample.row, sample.id, tuple(ids), tuple(mask), truncated, remarks, runs)

    def segments(self, sample: Sample) -> list[Segment]:
        """Split the rendered text into prompt and response pieces, in order."""
        return self._read(sample)[0]

    def _read(self, sample: Sample) -> tuple[list[Segment], tuple[Remark, ...]]:
        if not sample.is_trained(last=self.settings.loss_on == "last"):
            raise DataError(f"row {sample.row + 1}: {UNTRAINED}.")
        if self.chat is None:
            return self._read_plain(sample)
        tools = json.loads(sample.tools or "[]")
        try:
            found = self._found(sample.messages, tools)
        except TurnsError as error:
            folded = self._folded(sample, tools) if self.settings.odd_turns == "fold" else None
            if folded is None:
                raise TurnsError(f"row {sample.row + 1}: {error}") from None
            # Folded turns are not the row's own, and have other positions.
            unknown = (NO_TURN,) * len(folded.owners)
            found = replace(folded, remarks=(*folded.remarks, Remark.FOLDED), owners=unknown)
        except DataError as error:
            raise DataError(f"row {sample.row + 1}: {error}") from None
        return _split(found), found.remarks

    def _read_plain(self, sample: Sample) -> tuple[list[Segment], tuple[Remark, ...]]:
        """A row under headings.

        Raises:
            DataError: it calls tools, for which there is no heading.
        """
        turns = sample.messages
        if _calls(sample):
            raise DataError(
                f"row {sample.row + 1}: {NO_CALLS}. Use a model with a chat template, or leave the "
                "row out."
            )
        led = turns[0].role == "assistant" and self.settings.loss_on == "assistant"
        endless = self.tokenizer.eos_token_id is None
        said = ((Remark.LED, led), (Remark.NO_END, endless), (Remark.TOOLS, bool(sample.tools)))
        segments = list(self._alpaca_segments(turns))
        return segments, tuple(remark for remark, holds in said if holds)

    def _folded(self, sample: Sample, tools: Sequence[Any]) -> Found | None:
        """The first folding of the turns that the template takes."""
        for turns in foldings(sample.messages):
            try:
                return self._found(turns, tools)
            except TurnsError:
                continue
        return None

    def _found(self, turns: Sequence[Message], tools: Sequence[Any]) -> Found:
        assert self.chat is not None
        turns = with_thoughts(turns, self.chat.template or "")
        found = find_answers(self._renderer(tools), turns, last=self.settings.loss_on == "last")
        if not tools or self._renderer(())(turns, header=False).text != found.text:
            return found
        return replace(found, remarks=(*found.remarks, Remark.TOOLS))

    def _renderer(self, tools: Sequence[Any]) -> Render:
        assert self.chat is not None
        chat, template = self.chat, self.chat.template or ""

        def render(turns: Sequence[Message], *, header: bool) -> Rendered:
            return chat.render(as_template_reads(turns, template), header=header, tools=tools)

        return render

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
            counts = message.trained and (asked or index == len(messages) - 1)
            has_end = self.tokenizer.eos_token_id is not None
            yield Segment(message.said, is_response=counts, ends_text=has_end, turn=index)


def _calls(sample: Sample) -> bool:
    """Whether tools are called, or answer, in a row."""
    return any(turn.calls or turn.role == "tool" for turn in sample.messages)


def _with_room(mask: Sequence[bool], limit: int) -> Sequence[int]:
    """Which tokens of a longer row stay: the first ones.

    Where the question alone fills the limit, its middle goes, so that some of the answer is read.
    """
    first = list(mask).index(True) if True in mask else 0
    if first < limit:
        return range(limit)
    room = min(sum(mask[first:]), limit // 2)
    # What is asked stands at either end: the instruction first, the turn's end last.
    head, tail = (limit - room + 1) // 2, (limit - room) // 2
    return [*range(head), *range(first - tail, len(mask))][:limit]


def _split(found: Found) -> list[Segment]:
    """The text in pieces; white space after an answer is a piece of its own."""
    segments: list[Segment] = []
    done = 0
    for (start, end, tail), turn in zip(found.pieces, found.owners, strict=True):
        segments.append(Segment(found.text[done:start], is_response=False))
        segments.append(Segment(found.text[start:end], is_response=True, turn=turn))
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
    """Rows ready for the model, in memory or in a token file, and those that are not, by reason."""

    rows: Sequence[EncodedRow]
    dropped: dict[int, str]


def encode_rows(
    samples: Iterable[Sample], encoder: RowEncoder, *, where: str, may_be_empty: bool = False
) -> EncodedRows:
    """Encode all samples under the recipe's rule for rows that are too long.

    Raises:
        DataError: the rule is `error` and a row is too long, or nothing is left and that is not
            expected.
    """
    dropped: dict[int, str] = {}
    kept = tuple(each_encoded(samples, encoder, where=where, dropped=dropped))
    if not kept and not may_be_empty:
        raise none_left(dropped, encoder, where=where)
    return EncodedRows(kept, dropped)


def each_encoded(
    samples: Iterable[Sample], encoder: RowEncoder, *, where: str, dropped: dict[int, str]
) -> Iterator[EncodedRow]:
    """Encode samples one by one, as `encode_rows`.

    Args:
        samples: to encode.
        encoder: of the base model and the recipe.
        where: whose rows, for errors.
        dropped: gets the reason of every row that cannot be used, by its position.

    Raises:
        DataError: the rule is `error` and a row is too long.
    """
    limit, rule = encoder.settings.max_length, encoder.settings.overlong
    for sample in samples:
        if reason := own_reason(sample, encoder):
            dropped[sample.row] = reason
            continue
        try:
            encoded = encoder.encode(sample)
        except TurnsError as error:
            # What cannot be folded is left out like any other row that cannot be used.
            if encoder.settings.odd_turns == "error":
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
        yield encoded


def none_left(dropped: Mapping[int, str], encoder: RowEncoder, *, where: str) -> DataError:
    """The error that says why no row of a file can be used."""
    if own := {UNTRAINED, UNWANTED, NO_CALLS} & set(dropped.values()):
        how = " Use a model with a chat template." if NO_CALLS in own else ""
        why = " and ".join(sorted(own))
        return DataError(f"{where}: no row is left to train; of the others, {why}.{how}")
    limit = encoder.settings.max_length
    return DataError(f"{where}: no row fits into {limit} tokens. Raise recipe.tokens.max_length.")


def own_reason(sample: Sample, encoder: RowEncoder) -> str:
    """Why nothing of a row can be trained, whatever its length; empty where something can be."""
    if sample.unwanted:
        return UNWANTED
    if not sample.is_trained(last=encoder.settings.loss_on == "last"):
        return UNTRAINED
    return NO_CALLS if encoder.chat is None and _calls(sample) else ""
