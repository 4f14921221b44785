"""The mask covers exactly the answer, whatever template writes the text around it."""

import re
from types import SimpleNamespace

import pytest

from clues.config import TokenSettings, context_of
from clues.data.roundtrip import characters_lost
from clues.data.samples import Message, Sample
from clues.data.tokens import RowEncoder, encode_rows
from clues.errors import ConfigError, DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# Writes headers but has no word for "now it is the assistant's turn".
NO_GENERATION_PROMPT = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
)
# The same, header and answer on one line.
SAME_LINE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
# No rendering begins with the one before it.
COUNTS = (
    "{{ messages | length }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SILENT = "{% for m in messages %}<{{ m.role }}>{% endfor %}"
TEMPLATES = {
    "alpaca": None,
    "chatml": CHATML,
    "llama_2": LLAMA_2,
    "no_generation_prompt": NO_GENERATION_PROMPT,
    "same_line": SAME_LINE,
    "counts": COUNTS,
}
every_template = pytest.mark.parametrize("template", TEMPLATES)

QUESTION, ANSWER = "Where is insulin made?", "In the pancreas,\nbehind the stomach: 37 °C, 膵臓."
SECOND_QUESTION, SECOND_ANSWER = "And what pumps blood?", "The heart."
SECRET = "MARKER-4711 in the text of a row"


def one_turn(row=0, question=QUESTION, answer=ANSWER):
    return Sample(row, (Message("user", question), Message("assistant", answer)))


def two_turns():
    return Sample(
        0,
        (
            Message("system", "Be brief."),
            *one_turn().messages,
            Message("user", SECOND_QUESTION),
            Message("assistant", SECOND_ANSWER),
        ),
    )


@pytest.fixture(scope="module")
def make_encoder(make_tokenizer):
    def make(template="alpaca", *, adds_bos=False, **settings):
        tokenizer = make_tokenizer(adds_bos=adds_bos, chat_template=TEMPLATES[template])
        return RowEncoder(tokenizer, TokenSettings(**{"max_length": 512, **settings}))

    return make


def spans(encoder, encoded):
    """Decoded text of every stretch of response tokens, white space of the template removed."""
    texts, current = [], []
    for id_, counts in zip([*encoded.ids, 0], [*encoded.mask, False], strict=True):
        if counts:
            current.append(id_)
        elif current:
            texts.append(encoder.tokenizer.decode(current).strip())
            current = []
    return texts


def whole(encoder, encoded):
    return encoder.tokenizer.decode(encoded.ids)


@every_template
@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_masked_span_is_exactly_the_answer_and_the_end(make_encoder, template, adds_bos):
    encoder = make_encoder(template, adds_bos=adds_bos)
    encoded = encoder.encode(one_turn())
    assert spans(encoder, encoded) == [ANSWER + "</s>"], "a header or the question carries loss"
    assert QUESTION in whole(encoder, encoded)
    assert not encoded.truncated


@every_template
def test_every_answer_of_a_conversation_carries_loss_if_the_recipe_says_so(make_encoder, template):
    encoder = make_encoder(template, loss_on="assistant")
    encoded = encoder.encode(two_turns())
    assert spans(encoder, encoded) == [ANSWER + "</s>", SECOND_ANSWER + "</s>"]


@every_template
def test_only_the_last_answer_carries_loss_if_the_recipe_says_so(make_encoder, template):
    encoder = make_encoder(template, loss_on="last")
    encoded = encoder.encode(two_turns())
    assert spans(encoder, encoded) == [SECOND_ANSWER + "</s>"]
    assert ANSWER in whole(encoder, encoded), "the earlier answer is context and must stay"


@every_template
def test_what_carries_loss_does_not_change_the_text(make_encoder, template):
    one = make_encoder(template, loss_on="last").encode(two_turns())
    two = make_encoder(template, loss_on="assistant").encode(two_turns())
    encoder = make_encoder(template)
    assert whole(encoder, one) == whole(encoder, two)


@every_template
def test_the_text_is_what_the_template_writes(make_encoder, template):
    encoder = make_encoder(template)
    text = whole(encoder, encoder.encode(two_turns()))
    if template == "alpaca":
        assert text == (
            f"### System:\nBe brief.\n\n### Instruction:\n{QUESTION}\n\n### Response:\n{ANSWER}</s>"
            f"### Instruction:\n{SECOND_QUESTION}\n\n### Response:\n{SECOND_ANSWER}</s>"
        )
        return
    turns = [{"role": m.role, "content": m.content} for m in two_turns().messages]
    assert text == encoder.tokenizer.apply_chat_template(turns, tokenize=False)


@pytest.mark.parametrize("answer", ["0", "1", "assistant", "a", ":", "s", "\n", "<", "</s"])
@pytest.mark.parametrize("template", ["no_generation_prompt", "same_line", "chatml"])
def test_an_answer_that_looks_like_the_header_is_still_told_from_it(make_encoder, template, answer):
    encoder = make_encoder(template)
    encoded = encoder.encode(one_turn(answer=answer))
    assert spans(encoder, encoded) == [(answer + "</s>").strip()]


@every_template
@pytest.mark.parametrize("adds_bos", [False, True])
def test_there_is_never_more_than_one_beginning_of_text(make_encoder, template, adds_bos):
    encoder = make_encoder(template, adds_bos=adds_bos)
    for sample in (one_turn(), two_turns()):
        ids = encoder.encode(sample).ids
        wanted = 1 if adds_bos or template == "llama_2" else 0
        assert ids.count(0) == wanted, "no <s>, or two of them: every score would change"
        assert ids[0] == 0 or not wanted
        assert not encoder.encode(sample).mask[0], "nothing could predict the first token"


def test_a_tokenizer_without_beginning_of_text_works(make_tokenizer):
    encoder = RowEncoder(make_tokenizer(bos=False), TokenSettings())
    assert spans(encoder, encoder.encode(one_turn())) == [ANSWER + "</s>"]


def test_auto_takes_the_chat_template_and_alpaca_ignores_it(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=CHATML)
    assert RowEncoder(tokenizer, TokenSettings(template="auto")).template == "chat"
    assert RowEncoder(tokenizer, TokenSettings(template="alpaca")).template == "alpaca"
    assert RowEncoder(make_tokenizer(), TokenSettings(template="auto")).template == "alpaca"


def test_chat_without_a_chat_template_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"recipe\.tokens\.template is chat"):
        RowEncoder(tokenizer, TokenSettings(template="chat"))


def test_a_template_that_writes_no_answer_is_refused_by_row_number(make_tokenizer):
    encoder = RowEncoder(make_tokenizer(chat_template=SILENT), TokenSettings())
    sample = Sample(11, (Message("user", SECRET), Message("assistant", SECRET)))
    with pytest.raises(DataError, match="row 12: this model's chat template does not") as raised:
        encoder.encode(sample)
    assert SECRET not in str(raised.value)


def rows_of_three_lengths():
    return [
        one_turn(0, "Hi?", "Yes."),
        one_turn(1, SECRET, "Long answer. " * 40 + SECRET),
        one_turn(2, SECRET * 40, SECRET),
    ]


def limit_between(make_encoder):
    """A length that the first sample fits, the second exceeds, the third loses its answer at."""
    short, middle, long = (make_encoder().encode(s) for s in rows_of_three_lengths())
    limit = len(short.ids) + 60
    assert middle.mask.index(True) < limit < len(middle.ids)
    assert limit <= long.mask.index(True)
    return limit


def test_drop_leaves_out_rows_that_are_too_long_and_says_why(make_encoder):
    limit = limit_between(lambda: make_encoder(max_length=10_000))
    encoder = make_encoder(max_length=limit, overlong="drop")
    encoded = encode_rows(rows_of_three_lengths(), encoder, where="notes.jsonl")
    assert [row.row for row in encoded.rows] == [0]
    assert encoded.dropped == dict.fromkeys([1, 2], f"longer than {limit} tokens")


def test_truncate_cuts_the_end_and_marks_the_row(make_encoder):
    full = make_encoder(max_length=10_000).encode(rows_of_three_lengths()[1])
    limit = limit_between(lambda: make_encoder(max_length=10_000))
    encoder = make_encoder(max_length=limit, overlong="truncate")
    encoded = encode_rows(rows_of_three_lengths()[:2], encoder, where="notes.jsonl")
    assert [row.truncated for row in encoded.rows] == [False, True]
    cut = encoded.rows[1]
    assert (cut.ids, cut.mask) == (full.ids[:limit], full.mask[:limit])
    assert encoded.dropped == {}


def test_truncate_reads_some_of_the_answer_where_the_question_alone_is_too_long(make_encoder):
    limit = limit_between(lambda: make_encoder(max_length=10_000))
    encoder = make_encoder(max_length=limit, overlong="truncate")
    found = encode_rows(rows_of_three_lengths(), encoder, where="notes.jsonl")
    assert found.dropped == {}, "a row has no score although a part of it can be read"
    assert [row.truncated for row in found.rows] == [False, True, True]
    whole = make_encoder(max_length=10_000).encode(rows_of_three_lengths()[2])
    cut = found.rows[2]
    assert len(cut.ids) <= limit
    assert 0 < cut.n_response_tokens <= whole.n_response_tokens
    first, n_asked = whole.mask.index(True), cut.mask.index(True)
    head = (n_asked + 1) // 2
    assert cut.ids[:head] == whole.ids[:head], "the instruction is lost"
    assert cut.ids[n_asked - 3 : n_asked + 1] == whole.ids[first - 3 : first + 1]


def test_no_row_is_read_beyond_the_context_of_the_model(tokenizer):
    """Positions that the model never saw give scores that mean nothing."""
    settings = TokenSettings(template="alpaca", max_length=2048, overlong="truncate")
    (_, long, _) = rows_of_three_lengths()
    free = RowEncoder(tokenizer, settings).encode(long)
    assert len(RowEncoder(tokenizer, settings, context=len(free.ids) - 3).encode(long).ids) == (
        len(free.ids) - 3
    )
    for context in (None, 4096):
        assert RowEncoder(tokenizer, settings, context=context).encode(long).ids == free.ids


def stretched(**rope: object) -> dict[str, object]:
    return {"max_position_embeddings": 256, "rope_scaling": rope}


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024, "n_ctx": 1024}, 1024),
        ({"max_seq_len": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"max_position_embeddings": None, "seq_length": 32768}, 32768),
        ({"hidden_size": 768}, None),
        ({"max_position_embeddings": -1}, None),
        (stretched(rope_type="linear", factor=4.0), 1024),
        (stretched(rope_type="yarn", factor=4, original_max_position_embeddings=128), 512),
        (stretched(rope_type="linear", factor=float("nan")), 256),
        (stretched(rope_type="linear", factor="4"), 256),
        ({"max_position_embeddings": 256, "rope_scaling": "odd"}, 256),
    ],
)
def test_the_context_is_found_under_the_names_that_models_use(config, context):
    assert context_of(config) == context
    assert context_of(SimpleNamespace(**config)) == context


def test_error_refuses_the_first_row_that_is_too_long_by_number_alone(make_encoder):
    limit = limit_between(lambda: make_encoder(max_length=10_000))
    encoder = make_encoder(max_length=limit, overlong="error")
    with pytest.raises(DataError, match=re.escape(f"row 2: longer than {limit} tokens")) as raised:
        encode_rows(rows_of_three_lengths(), encoder, where="notes.jsonl")
    assert "MARKER" not in str(raised.value)


def test_nothing_left_is_an_error_not_an_empty_set(make_encoder):
    with pytest.raises(DataError, match="no row fits into 4 tokens"):
        encode_rows(rows_of_three_lengths(), make_encoder(max_length=4), where="notes.jsonl")


def test_an_encoded_row_does_not_show_its_tokens(make_encoder):
    encoded = make_encoder().encode(one_turn(answer=SECRET))
    assert str(encoded.ids[0]) not in repr(encoded).replace(encoded.id, "").replace("row=0", "")
    assert "ids" not in repr(encoded)
    assert "MARKER" not in repr(make_encoder().segments(one_turn(answer=SECRET)))


@every_template
def test_encoding_depends_on_the_sample_alone(make_encoder, template):
    encoder = make_encoder(template, adds_bos=True)
    first = encoder.encode(one_turn())
    encoder.encode(two_turns())
    encoder.encode(one_turn(1, "Other?", "Other."))
    assert encoder.encode(one_turn()) == first
    assert make_encoder(template, adds_bos=True).encode(one_turn()) == first
    moved = encoder.encode(one_turn(row=5))
    assert (moved.ids, moved.mask, moved.id) == (first.ids, first.mask, first.id)


def test_a_tokenizer_that_loses_characters_is_noticed(tokenizer):
    """What it does not know the model does not read, and nobody sees it in the scores."""

    class Lossy:
        def __call__(self, text, **how):
            return tokenizer(text.replace("$", "").lower(), **how)

        def decode(self, ids, **how):
            return tokenizer.decode(ids, **how)

    row = Sample(0, (Message("user", "How much is it?"), Message("assistant", "It is $ 4 $")))
    assert characters_lost(tokenizer, [row]) == (0.0, "")
    lost = characters_lost(Lossy(), [row] * 300)
    assert lost.signs == "$"
    # Two dollars, an H and an I of 19 characters.
    assert lost.share == pytest.approx(4 / 19)
    assert characters_lost(tokenizer, []) == (0.0, "")
