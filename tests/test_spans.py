"""What is trained is the answer and the end of its turn, whatever shape a chat template has.

The templates have the shapes of those in use and are written for these tests.
"""

import json
import random
import re
from dataclasses import replace

import pytest
from federation_helpers import tiny_model, write_micro

from clues.config import TokenSettings, load_config
from clues.data.pieces import PieceTokens, Segment
from clues.data.remarks import Remark
from clues.data.samples import Message, Sample
from clues.data.tokens import NO_CALLS, ODD_TURNS, RowEncoder, encode_rows
from clues.errors import DataError, TurnsError
from clues.prepare.check import check_run

SECRET = "zqxsecret"
LAST_ASKED = (
    "{% set ns = namespace(n=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.n = loop.index0 %}{% endif %}{% endfor %}"
)
# Phi-3: the end of the text is written once, whatever the number of turns.
END_ONCE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# gpt-oss: the last turn ends with another token than those before it.
TWO_ENDS = (
    "<|start|>system<|message|>Today: {{ strftime_now('%Y-%m-%d') }}<|end|>{% for m in messages %}"
    "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}{% if m.role == 'assistant' and loop.last and not add_generation_prompt %}"
    "<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Qwen3: a thought is shown in the last answer alone, empty where there is none.
LAST_THOUGHT = (
    LAST_ASKED + "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') "
    "if '</think>' in m.content else '' %}{% if loop.index0 > ns.n %}<think>\n{{ thought }}\n"
    "</think>\n\n{% endif %}{{ said }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# DeepSeek: the prompt opens a thought, and no answer keeps one.
OPENS_THOUGHT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'system' %}{{ m.content }}{% else %}<|Assistant|>"
    "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# QwQ: the prompt opens a thought, and answers are kept as they are.
KEEPS_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# Nemotron: an empty thought in front of every answer, opened by the prompt.
EMPTY_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' "
    "and '<think>' not in m.content %}<think></think>{% endif %}{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# Llama 2 and Mistral: the system's text is within the user's turn; strict about the order.
INST = (
    "{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set sys = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
    "{{ bos_token }}[INST] {% if loop.first and sys %}<<SYS>>\n{{ sys }}\n<</SYS>>\n\n{% endif %}"
    "{{ m.content.strip() }} [/INST]{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
# Gemma: no system, its own name for the assistant, white space taken off.
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Must alternate') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# GLM: a turn ends where the next one begins.
NO_END = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>"
    "\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Every answer of a random conversation as it is trained: (answer, is it the last) -> text.
FAMILIES = {
    "end once": (END_ONCE, lambda a, last: f"{a}<|end|>" + ("\n</s>" if last else "")),
    "two ends": (
        TWO_ENDS,
        lambda a, last: a + ("<|return|>" if last else "<|end|>"),
    ),
    "last thought": (LAST_THOUGHT, lambda a, last: a.lstrip("\n") + "<|im_end|>"),
    "opens a thought": (OPENS_THOUGHT, lambda a, last: a + "</s>"),
    "keeps a thought": (KEEPS_THOUGHT, lambda a, last: a + "<|im_end|>"),
    "empty thought": (EMPTY_THOUGHT, lambda a, last: a.strip() + "<|im_end|>"),
    "inst": (INST, lambda a, last: f" {a.strip()} </s>"),
    "no system": (NO_SYSTEM, lambda a, last: a.strip() + "<end_of_turn>"),
    "no end": (NO_END, lambda a, last: a.rstrip()),
    "marked": (
        MARKED,
        lambda a, last: ("<think>\n\n</think>\n\n" if last else "") + a + "<|im_end|>",
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
PARTS = [
    "heart",
    "blood",
    "0",
    "1",
    "a",
    ":",
    "zq",
    "s",
    "<b>",
    "[x]",
    "</think",
    "[INST]",
    "<|im_end|>",
    "###",
    "\n",
    "\t",
    "¿",
    "膵臓",
    "assistant",
    "user",
]
THOUGHT = "<think>\nTwo and two.\n</think>\n\nFour."


def conversation(*texts: str, row: int = 0, first: str = "user") -> Sample:
    """Turns of user and assistant by turns, after a system turn if there is to be one."""
    roles = ["system"] if first == "system" else []
    roles += ["user", "assistant"] * len(texts) if first != "assistant" else []
    roles += ["assistant", "user"] * len(texts) if first == "assistant" else []
    return Sample(row, tuple(Message(r, t) for r, t in zip(roles, texts, strict=False)))


@pytest.fixture(scope="module")
def make_encoder(make_tokenizer):
    made: dict[str | None, RowEncoder] = {}

    def make(template: str | None, **settings):
        if not settings and template in made:
            return made[template]
        tokenizer = make_tokenizer(chat_template=template)
        encoder = RowEncoder(tokenizer, TokenSettings(**{"max_length": 4096, **settings}))
        return encoder if settings else made.setdefault(template, encoder)

    return make


def trained(encoder: RowEncoder, sample: Sample) -> list[str]:
    """Decoded text of every stretch of trained tokens."""
    row = encoder.encode(sample)
    return stretches(encoder.tokenizer, row.ids, row.mask)


def stretches(tokenizer, ids, mask) -> list[str]:
    texts, current = [], []
    for id_, counts in zip([*ids, 0], [*mask, False], strict=True):
        if counts:
            current.append(id_)
        elif current:
            texts.append(tokenizer.decode(current))
            current = []
    return texts


def random_conversation(seed: int) -> Sample:
    chance = random.Random(seed)

    def text() -> str:
        while True:
            found = chance.choice(" \n").join(
                chance.choice(PARTS) for _ in range(chance.randint(1, 6))
            )
            if found.strip():
                return found

    return conversation(*(text() for _ in range(2 * chance.randint(1, 4))), row=seed)


@every_family
def test_every_trained_span_is_the_answer_and_the_end_of_its_turn(make_encoder, family):
    template, expected = FAMILIES[family]
    every, last = make_encoder(template), make_encoder(template, loss_on="last")
    for seed in range(25):
        sample = random_conversation(seed)
        answers = [m.content for m in sample.messages if m.role == "assistant"]
        wanted = [expected(a, i == len(answers) - 1) for i, a in enumerate(answers)]
        assert trained(every, sample) == wanted, f"conversation of seed {seed}"
        assert trained(last, sample) == wanted[-1:], f"conversation of seed {seed}"
        assert every.encode(sample).ids == last.encode(sample).ids or family == "no end"


@every_family
def test_the_text_is_the_templates_own(make_encoder, family):
    encoder = make_encoder(FAMILIES[family][0])
    sample = random_conversation(3)
    text = encoder.tokenizer.decode(encoder.encode(sample).ids)
    turns = [{"role": m.role, "content": m.content} for m in sample.messages]
    written = encoder.tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == re.sub(r"Today: [0-9-]+", "Today: 2025-01-01", written)


@pytest.mark.parametrize(
    ("template", "wanted", "remark"),
    [
        # The model is not given <think>, so that it has to say it.
        (LAST_THOUGHT, THOUGHT + "<|im_end|>", None),
        # It is given here, and to say it twice is not to be learned.
        (EMPTY_THOUGHT, THOUGHT.removeprefix("<think>\n") + "<|im_end|>", None),
        (KEEPS_THOUGHT, THOUGHT.removeprefix("<think>\n") + "<|im_end|>", None),
        (OPENS_THOUGHT, "\n\nFour.</s>", Remark.THOUGHT),
        (NO_END, THOUGHT, Remark.NO_END),
    ],
)
def test_a_thought_is_trained_where_the_model_has_to_say_it(make_encoder, template, wanted, remark):
    encoder = make_encoder(template)
    sample = conversation("2 + 2?", THOUGHT)
    assert trained(encoder, sample) == [wanted]
    assert encoder.encode(sample).remarks == ((remark,) if remark else ())


def test_thoughts_of_earlier_turns_are_dropped_and_counted(make_encoder):
    encoder = make_encoder(LAST_THOUGHT)
    sample = conversation("2 + 2?", THOUGHT, "And 1 + 1?", THOUGHT.replace("Four", "Two"))
    assert trained(encoder, sample) == [
        "Four.<|im_end|>",
        THOUGHT.replace("Four", "Two") + "<|im_end|>",
    ]
    assert encoder.encode(sample).remarks == (Remark.THOUGHT,)


# Writes no answer but the last, and a row whose first answer is one to read and not to train.
SKIPS_FIRST = (
    "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}<{{ m.content }}></s>"
    "{% endif %}{% endfor %}"
)
UNTRAINED_FIRST = Sample(
    0,
    (
        *(Message("user", "Who?"), Message("assistant", "Bob.", trained=False)),
        *(Message("user", "No."), Message("assistant", "Ann.")),
    ),
)


@pytest.mark.parametrize(
    ("template", "sample", "remark"),
    [
        (NO_SYSTEM, conversation("Who?", " Ann. \n"), Remark.SPACE),
        ("{% for m in messages %}<{{ m.content | lower }}></s>{% endfor %}", None, Remark.CHANGED),
        ("{% for m in messages[-2:] %}<{{ m.content }}></s>{% endfor %}", None, Remark.MISSING),
        ("{% for m in messages[1:] %}<{{ m.content }}></s>{% endfor %}", None, Remark.PROMPT),
        (NO_END, None, Remark.NO_END),
        (SKIPS_FIRST, conversation("Hello!", "Who?", "Ann.", first="assistant"), Remark.PROMPT),
        (SKIPS_FIRST, UNTRAINED_FIRST, Remark.PROMPT),
    ],
)
def test_what_a_template_does_to_a_row_is_remarked(make_encoder, template, sample, remark):
    sample = sample or conversation("Who?", "Ann.", "And?", "Bob.")
    assert remark in make_encoder(template).encode(sample).remarks
    # Of the row itself, whatever the template, nothing but its first turn may be said.
    assert set(make_encoder(KEEPS_THOUGHT).encode(sample).remarks) <= {Remark.LED}


ODD = {
    "system": conversation("Be brief.", "Who?", "Ann.", row=4, first="system"),
    "two of one role": Sample(
        4, tuple(Message(r, t) for r, t in (("user", "A"), ("user", "B"), ("assistant", "C")))
    ),
    "two answers": Sample(
        4, tuple(Message(r, t) for r, t in (("user", "A"), ("assistant", "B"), ("assistant", "C")))
    ),
    "assistant first": conversation("Welcome!", "Who?", "Ann.", row=4, first="assistant"),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_turns_are_named_folded_or_left_out_as_the_recipe_says(make_encoder, odd):
    sample = Sample(4, tuple(Message(m.role, m.content + SECRET) for m in ODD[odd].messages))
    with pytest.raises(TurnsError, match=r"a\.jsonl row 5: .*odd_turns to fold or drop") as error:
        encode_rows([sample], make_encoder(NO_SYSTEM), where="a.jsonl")
    assert SECRET not in str(error.value)
    assert error.value.exit_code == 3

    drop = make_encoder(NO_SYSTEM, odd_turns="drop")
    kept = encode_rows([sample, conversation("Who?", "Ann.")], drop, where="a.jsonl")
    assert [row.row for row in kept.rows] == [0]
    assert kept.dropped == {4: ODD_TURNS}

    folded = make_encoder(NO_SYSTEM, odd_turns="fold")
    row = folded.encode(ODD[odd])
    assert row.id == ODD[odd].id, "a row's id is that of its own text"
    assert Remark.FOLDED in row.remarks
    wanted = {
        "system": ["Be brief.\n\nWho?<end_of_turn>", "Ann.<end_of_turn>"],
        "two of one role": ["A\n\nB<end_of_turn>", "C<end_of_turn>"],
        "two answers": ["A<end_of_turn>", "B\n\nC<end_of_turn>"],
        "assistant first": ["Who?<end_of_turn>", "Ann.<end_of_turn>"],
    }[odd]
    text = folded.tokenizer.decode(row.ids)
    assert text == f"<s><start_of_turn>user\n{wanted[0]}\n<start_of_turn>model\n{wanted[1]}\n"
    assert trained(folded, ODD[odd]) == [wanted[1]]


CALLING = Sample(
    7,
    (
        Message("user", "How warm is it?"),
        Message("assistant", "", calls='[{"name": "look", "arguments": {"n": 1}}]'),
        Message("tool", "21", name="look"),
        Message("assistant", "21 degrees."),
    ),
)


@pytest.mark.parametrize("odd_turns", ["error", "fold", "drop"])
def test_a_row_that_calls_tools_costs_no_other_one_under_headings(make_encoder, odd_turns):
    encoder = make_encoder(None, odd_turns=odd_turns)
    kept = encode_rows([conversation("Who?", "Ann."), CALLING], encoder, where="a.jsonl")
    assert [row.row for row in kept.rows] == [0]
    assert kept.dropped == {7: NO_CALLS}
    with pytest.raises(DataError, match=r"no row is left.*calls tools.*\. Use a model with a chat"):
        encode_rows([CALLING], encoder, where="a.jsonl")


def test_what_cannot_be_folded_is_left_out(make_encoder):
    refuses = "{{ raise_exception('no') if messages|length > 1 and messages[0].content == 'A' }}"
    folded = make_encoder(refuses + KEEPS_THOUGHT, odd_turns="fold")
    kept = encode_rows([conversation("A", "B"), conversation("Who?", "Ann.")], folded, where="a")
    assert len(kept.rows) == 1
    assert list(kept.dropped.values()) == [ODD_TURNS]


def test_turns_that_a_template_takes_are_not_folded(make_encoder):
    for odd in ODD.values():
        plain, fold = make_encoder(KEEPS_THOUGHT), make_encoder(KEEPS_THOUGHT, odd_turns="fold")
        assert fold.encode(odd) == plain.encode(odd)
        assert Remark.FOLDED not in fold.encode(odd).remarks


@pytest.mark.parametrize("template", [KEEPS_THOUGHT, END_ONCE, None])
def test_an_answer_that_nobody_asked_for_is_read_and_not_trained(make_encoder, template):
    encoder = make_encoder(template)
    row = encoder.encode(ODD["assistant first"])
    assert "Welcome!" in encoder.tokenizer.decode(row.ids)
    assert [text[:4] for text in trained(encoder, ODD["assistant first"])] == ["Ann."]
    assert row.remarks == (Remark.LED,)


def test_what_is_no_refusal_is_neither_folded_nor_dropped(make_encoder):
    for rule in ("fold", "drop"):
        encoder = make_encoder("{{ messages[0].nothing.x }}", odd_turns=rule)
        with pytest.raises(DataError, match="row 5: this model's chat template cannot be used"):
            encode_rows([ODD["system"]], encoder, where="a.jsonl")


def test_an_answer_in_two_places_is_refused_by_row_number(make_encoder):
    encoder = make_encoder("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match=r"row 5: .*in several places") as error:
        encoder.encode(conversation(SECRET, SECRET, row=4))
    assert SECRET not in str(error.value)


def test_a_mark_around_an_answer_that_is_not_written_is_nothing_to_train(make_encoder):
    """Templates for pictures want a list of parts, and write nothing of a plain text."""
    marks = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}"
        "{% for part in m.content if part.text is defined %}{{ part.text }}{% endfor %} <end>"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    )
    with pytest.raises(DataError, match=r"row 5: .*does not write the answer into the text"):
        make_encoder(marks).encode(conversation("Who?", "Ann.", row=4))


def test_a_date_in_a_template_is_the_recipes(make_encoder, monkeypatch):
    sample = conversation("Who?", "Ann.")
    for zone in ("UTC", "Pacific/Kiritimati"):
        monkeypatch.setenv("TZ", zone)
        encoder = make_encoder(TWO_ENDS, date="2024-07-26")
        text = encoder.tokenizer.decode(encoder.encode(sample).ids)
        assert "Today: 2024-07-26<|end|>" in text
    other = make_encoder(TWO_ENDS, date="2024-07-27")
    assert other.encode(sample).ids != encoder.encode(sample).ids


def test_a_choice_is_its_words_alone_under_every_template(make_encoder):
    for template, _ in FAMILIES.values():
        encoder = make_encoder(template)
        sample = conversation("Who?", "Ann.", "And?", "Bob.")
        row = encoder.encode(sample, with_end=False)
        words = encoder.tokenizer.decode(
            [i for i, counts in zip(row.ids, row.mask, strict=True) if counts]
        )
        assert words.strip() == "Bob."


@pytest.fixture(scope="module")
def make_marking_tokenizer():
    """A tokenizer that writes a mark in front of every text, as those of Llama 2 and Mistral do."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    def make(template=None):
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁"]
        pieces += [chr(n) for n in range(33, 127)]
        merges = [("O", "n"), ("c", "e"), ("On", "ce"), ("▁", "Once"), ("▁", "a")]
        pieces += ["".join(pair) for pair in merges]
        bpe = models.BPE(
            {piece: n for n, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
        made = Tokenizer(bpe)
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        made.add_special_tokens(
            [AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>")]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=template
        )

    return make


@pytest.mark.parametrize("template", [INST, END_ONCE, LAST_THOUGHT])
def test_a_tokenizer_that_marks_the_start_of_a_text_gives_the_tokens_of_the_whole(
    make_marking_tokenizer, template
):
    tokenizer = make_marking_tokenizer(template)
    encoder = RowEncoder(tokenizer, TokenSettings())
    for seed in range(10):
        sample = random_conversation(seed)
        turns = [{"role": m.role, "content": m.content} for m in sample.messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        row = encoder.encode(sample)
        assert list(row.ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = encoder.encode_prompt(sample)
        assert row.ids[: len(prompt)] == prompt
        assert row.mask[len(prompt)]
    row = encoder.encode(conversation("Tell me.", "Once a Once.", "More.", "Once"))
    said = [tokenizer.convert_ids_to_tokens(i) for i, m in zip(row.ids, row.mask, strict=True) if m]
    assert "▁" not in said[:2], "a mark that the text does not have"
    assert next(piece for piece in said if "Once" in piece) in ("▁Once", "Once")


def test_headings_are_written_without_marks_between(make_marking_tokenizer):
    tokenizer = make_marking_tokenizer()
    row = RowEncoder(tokenizer, TokenSettings()).encode(conversation("Tell me.", "Once."))
    whole = "### Instruction:\nTell me.\n\n### Response:\nOnce."
    assert list(row.ids) == [*tokenizer(whole)["input_ids"], tokenizer.eos_token_id]
    said = [i for i, counts in zip(row.ids, row.mask, strict=True) if counts]
    assert tokenizer.convert_ids_to_tokens(said) == ["Once", ".", "</s>"]


def test_a_tokenizer_without_offsets_gets_no_mark_between_pieces(make_marking_tokenizer):
    tokenizer = make_marking_tokenizer(INST)

    class Slow:
        """The same tokenizer as one in Python is: no place of a token in the text."""

        is_fast = False

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, **how):
            assert "return_offsets_mapping" not in how
            return tokenizer(text, **how)

    pieces = [
        Segment("<s>[INST] Tell me. [/INST]", is_response=False),
        Segment(" Once a Once. </s>", is_response=True),
    ]
    slow, fast = PieceTokens(Slow()).of(pieces), PieceTokens(tokenizer).of(pieces)
    assert slow == fast


@every_family
def test_an_earlier_turn_keeps_its_end_where_the_last_one_is_not_trained(family, make_tokenizer):
    template, expected = FAMILIES[family]
    encoder = RowEncoder(make_tokenizer(chat_template=template), TokenSettings())
    sample = conversation("What pumps?", "The heart.", "And blood?", "It is red.")
    quiet = replace(sample.messages[3], trained=False)
    segments = encoder.segments(replace(sample, messages=(*sample.messages[:3], quiet)))
    (trained,) = [segment.text for segment in segments if segment.is_response]
    assert trained == expected("The heart.", False)


@pytest.mark.slow
def test_check_counts_what_a_template_does_and_names_what_it_never_ends(tmp_path):
    model = tiny_model(tmp_path / "model")
    config = load_config(write_micro(tmp_path, model, silos=("north",)))
    template = NO_END.replace("{% for", "{{ strftime_now('%Y') }}{% for", 1)
    (model / "chat_template.jinja").write_text(template.replace("m.content", "m.content | trim"))
    rows = [{"prompt": "Who?", "completion": f"{SECRET} {n} \n"} for n in range(3)]
    silo = tmp_path / "silos" / "north.jsonl"
    silo.write_text("".join(f"{json.dumps({**row, 'damage': ''})}\n" for row in rows))
    found = check_run(config, n_shown=0)
    notes = "\n".join(found.notes)
    assert found.files[0].remarks == {str(Remark.SPACE): 3, str(Remark.NO_END): 3}
    assert f"silo north: 3 rows: {Remark.SPACE}." in notes
    assert "told 2025-01-01 on every day" in notes
    assert "no token at which the model stops is ever trained (</s>)" in notes
    assert SECRET not in notes + json.dumps(found.to_json())

    (model / "chat_template.jinja").write_text(NO_SYSTEM)
    turns = [{"role": m.role, "content": m.content} for m in ODD["system"].messages]
    plain = [{"messages": turns[1:], "damage": ""}, {"messages": turns, "damage": ""}]
    silo.write_text("".join(f"{json.dumps(row)}\n" for row in plain))
    found = check_run(config, n_shown=0)
    assert any("silo north row 2: this model's chat template refuses" in e for e in found.errors)
    tokens = config.recipe.tokens.model_copy(update={"odd_turns": "drop"})
    recipe = config.recipe.model_copy(update={"tokens": tokens})
    found = check_run(config.model_copy(update={"recipe": recipe}), n_shown=0)
    assert (found.files[0].n_odd_turns, found.files[0].n_too_long) == (1, 0)
    assert any("1 row is left out: the chat template refuses" in note for note in found.notes)
