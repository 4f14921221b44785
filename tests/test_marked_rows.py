"""What a row says about itself is obeyed: weights, labels, pairs, thoughts, tools and calls."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_formats import assistant, error_of, everything_said, user, write_jsonl
from test_spans import KEEPS_THOUGHT, LAST_THOUGHT, MARKED, make_encoder, trained

from clues.data.formats import read_rows
from clues.data.remarks import Remark
from clues.data.samples import Message
from clues.data.tokens import UNTRAINED, UNWANTED, encode_rows
from clues.errors import DataError

MARKER = "zqxsecret"
__all__ = ["make_encoder"]  # a fixture

# Hermes and Qwen: calls as JSON between tags, results as a turn of the user.
HERMES = (
    "{% if tools %}<|im_start|>system\nTools:\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n"
    "<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n{% elif m.tool_calls %}"
    "<|im_start|>assistant\n{{ m.content }}{% for c in m.tool_calls %}{{ '\\n' }}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 3.1: one call, no tags, another end of the turn where a result is to come.
PYTHONIC = (
    "{{ bos_token }}{% if tools %}<|h|>system<|e|>\n\n{{ tools | tojson }}<|eot|>{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}<|h|>assistant<|e|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}<|eot|>{% elif m.role == 'tool' %}"
    "<|h|>ipython<|e|>\n\n{{ m.content | tojson }}<|eot|>{% else %}<|h|>{{ m.role }}<|e|>\n\n"
    "{{ m.content | trim }}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|e|>\n\n{% endif %}"
)
# Mistral: strict about ids, and about what a result follows.
STRICT = (
    "{{ bos_token }}{% set ns = namespace(called=false) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% if loop.last and tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}"
    "[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }} [/INST]{% elif m.tool_calls %}"
    "{% set ns.called = true %}[TOOL_CALLS][{% for c in m.tool_calls %}"
    "{% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('ids have 9') }}"
    '{% endif %}{"name": "{{ c.function.name }}", "arguments": '
    '{{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}{% endfor %}]{{ eos_token }}'
    "{% elif m.role == 'tool' %}{% if not ns.called %}{{ raise_exception('no call before') }}"
    '{% endif %}[TOOL_RESULTS]{"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}'
    "[/TOOL_RESULTS]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# gpt-oss: a call has a header, a channel and an end of its own.
CHANNELS = (
    "{% for m in messages %}{% if m.tool_calls %}{% set c = m.tool_calls[0].function %}"
    "<|start|>assistant to=functions.{{ c.name }}<|channel|>commentary json<|message|>"
    "{{ c.arguments | tojson }}<|call|>{% set ns = c.name %}{% elif m.role == 'tool' %}"
    "<|start|>functions to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>"
    "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# DeepSeek: results have no role of their own, and the first is opened after the call.
OPENED = (
    "{{ bos_token }}{% set ns = namespace(tool=false, first=true) %}{% for m in messages %}"
    "{% if m.role == 'user' %}<|User|>{{ m.content }}{% elif m.tool_calls %}{% set ns.tool = true %}"
    "<|Assistant|>{{ m.content }}<|calls|>{% for c in m.tool_calls %}<|call|>{{ c.function.name }}\n"
    "{{ c.function.arguments | tojson }}<|/call|>{% endfor %}<|/calls|>{{ eos_token }}"
    "{% elif m.role == 'tool' %}{% if ns.first %}<|outputs|>{% set ns.first = false %}{% endif %}"
    "<|output|>{{ m.content }}<|/output|>{% else %}{% if ns.tool %}<|/outputs|>{% else %}"
    "<|Assistant|>{% endif %}{{ m.content }}{{ eos_token }}{% set ns.tool = false %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt and not ns.tool %}<|Assistant|>{% endif %}"
)
CALL = '{"name": "weather", "arguments": {"city": "Kyiv", "days": 2}}'
TOOL_FAMILIES = {
    "hermes": (HERMES, f"\n<tool_call>\n{CALL}\n</tool_call><|im_end|>", "Cold.<|im_end|>"),
    "pythonic": (PYTHONIC, CALL.replace("arguments", "parameters") + "<|eot|>", "Cold.<|eot|>"),
    "strict": (STRICT, f'[TOOL_CALLS][{CALL[:-1]}, "id": "call00000"}}]</s>', " Cold.</s>"),
    "channels": (
        CHANNELS,
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Kyiv", "days": 2}<|call|>',
        "Cold.<|return|>",
    ),
    "opened": (
        OPENED,
        '<|calls|><|call|>weather\n{"city": "Kyiv", "days": 2}<|/call|><|/calls|></s>',
        "Cold.</s>",
    ),
}
TOOL = {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}
ARGUMENTS = {"city": "Kyiv", "days": 2}
FUNCTION = {"name": "weather", "arguments": json.dumps(ARGUMENTS)}
ASKED = {"role": "user", "content": "How is it in Kyiv?"}
SAID = {"role": "assistant", "content": "Cold."}
# The same conversation in the spellings of those who write such files.
SPELLINGS = {
    "openai": {
        "messages": [
            ASKED,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": FUNCTION}],
            },
            {"role": "tool", "content": "-3"},
            SAID,
        ],
        "tools": [{"type": "function", "function": TOOL}],
    },
    "openai, older": {
        "messages": [
            ASKED,
            {"role": "assistant", "content": "", "function_call": FUNCTION},
            {"role": "function", "content": "-3"},
            SAID,
        ],
        "functions": [TOOL],
    },
    "arguments as an object": {
        "messages": [
            ASKED,
            {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": ARGUMENTS}]},
            {"role": "tool", "content": -3},
            SAID,
        ],
        "tools": TOOL,
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": ASKED["content"]},
            {"from": "function_call", "value": CALL},
            {"from": "observation", "value": "-3"},
            {"from": "gpt", "value": "Cold."},
        ],
        "tools": json.dumps([TOOL]),
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": ASKED["content"]}]},
            {"role": "assistant", "content": [{"type": "tool_call", "value": CALL}]},
            {"role": "tool", "content": [{"type": "text", "value": "-3"}]},
            {"role": "assistant", "content": [{"type": "text", "value": "Cold."}]},
        ],
        "tools": json.dumps([{"type": "function", "function": TOOL}]),
    },
    "tool_use": {
        "messages": [
            ASKED,
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "name": "weather", "input": ARGUMENTS}],
            },
            {"role": "tool_response", "content": "-3"},
            SAID,
        ],
        "tools": [json.dumps(TOOL)],
    },
}


def read(tmp_path, *rows: dict, **options):
    return read_rows(write_jsonl(tmp_path / "rows.jsonl", *rows), **options)


def sample_of(tmp_path, row: dict):
    return read(tmp_path, row).samples[0]


def talk(*turns: dict) -> dict:
    """User and assistant by turns; each of the assistant's with what it says of itself."""
    return {
        "messages": [{"role": ("user", "assistant")[i % 2], **turn} for i, turn in enumerate(turns)]
    }


# Tools


@pytest.mark.parametrize("family", TOOL_FAMILIES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_calls_are_trained_and_results_never(make_encoder, family, spelling, tmp_path):
    template, call, answer = TOOL_FAMILIES[family]
    sample = sample_of(tmp_path, SPELLINGS[spelling])
    assert [m.role for m in sample.messages] == ["user", "assistant", "tool", "assistant"]
    encoder = make_encoder(template)
    assert trained(encoder, sample) == [call, answer]
    assert encoder.encode(sample).remarks == ((Remark.TOOLS,) if family in UNTOLD else ())
    text = encoder.tokenizer.decode(encoder.encode(sample).ids)
    assert ('"description": "of a city"' in text) == (family not in UNTOLD)
    assert "-3" in text


UNTOLD = ("channels", "opened", "strict")  # templates that do not write this row's tools


@pytest.mark.parametrize("family", TOOL_FAMILIES)
def test_a_result_that_says_what_the_call_says_is_not_trained(make_encoder, family, tmp_path):
    template, call, answer = TOOL_FAMILIES[family]
    row = json.loads(json.dumps(SPELLINGS["openai"]))
    row["messages"][2]["content"] = CALL
    assert trained(make_encoder(template), sample_of(tmp_path, row)) == [call, answer]


def test_words_before_a_call_and_several_calls_are_trained(make_encoder, tmp_path):
    row = json.loads(json.dumps(SPELLINGS["sharegpt"]))
    row["conversations"].insert(1, {"from": "gpt", "value": "Let me look."})
    row["conversations"].insert(3, {"from": "function_call", "value": CALL.replace("Kyiv", "Lviv")})
    sample = sample_of(tmp_path, row)
    assert [m.role for m in sample.messages] == ["user", "assistant", "tool", "assistant"]
    calls = [f"\n<tool_call>\n{c}\n</tool_call>" for c in (CALL, CALL.replace("Kyiv", "Lviv"))]
    encoder = make_encoder(HERMES)
    assert trained(encoder, sample) == [
        "Let me look." + "".join(calls) + "<|im_end|>",
        "Cold.<|im_end|>",
    ]
    assert encoder.encode(sample).remarks == ()


def test_a_call_may_be_the_last_turn_and_may_be_left_untrained(make_encoder, tmp_path):
    row = json.loads(json.dumps(SPELLINGS["openai"]))
    call = TOOL_FAMILIES["hermes"][1]
    last = {"messages": row["messages"][:2]}
    assert trained(make_encoder(HERMES), sample_of(tmp_path, last)) == [call]
    row["messages"][1]["weight"] = 0
    assert trained(make_encoder(HERMES), sample_of(tmp_path, row)) == ["Cold.<|im_end|>"]


def test_a_template_that_knows_no_tools_is_remarked(make_encoder, tmp_path):
    encoder = make_encoder(KEEPS_THOUGHT)
    sample = sample_of(tmp_path, SPELLINGS["openai"])
    assert trained(encoder, sample) == ["Cold.<|im_end|>"]
    assert {Remark.CALLS, Remark.TOOLS} <= set(encoder.encode(sample).remarks)
    plain = make_encoder(None)
    with pytest.raises(DataError, match="row 1: it calls tools, and template alpaca has no form"):
        plain.encode(sample)
    offered = sample_of(tmp_path, talk({"content": "hi"}, {"content": "yo"}) | {"tools": [TOOL]})
    assert plain.encode(offered).remarks == (Remark.TOOLS,)


@pytest.mark.parametrize(
    ("arguments", "written", "whole"),
    [
        ({"city": "Kyiv", "days": 3}, "{{ a | tojson }}", True),
        ({"city": "Kyiv", "days": 3}, "{{ a.city }}", False),
        ({"note": 'a "b"\n\u00e9', "at": [{"n": 1.5}], "on": True}, "{{ a | tojson }}", True),
        ({"note": "a b"}, "{% for k, v in a.items() %}{{ k }}={{ v }}{% endfor %}", True),
        ({"note": "a b"}, "{% for v in a.values() %}{{ v }}{% endfor %}", False),
        ({}, "", True),
    ],
)
def test_arguments_that_a_template_leaves_out_are_remarked(
    make_encoder, arguments, written, whole, tmp_path
):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% set a = c.function.arguments %}{{ c.function.name }}:"
        f"{written}{{% endfor %}}</s>{{% endfor %}}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    call = {"name": "weather", "arguments": arguments}
    row = talk({"content": "How warm?"}, {"content": "", "tool_calls": [call]})
    remarks = make_encoder(template).encode(sample_of(tmp_path, row)).remarks
    assert (Remark.ARGUMENTS not in remarks) == whole
    assert Remark.CALLS not in remarks


def test_a_template_that_mixes_calls_and_results_is_refused(make_encoder, tmp_path):
    # The result stands inside of the assistant's mark.
    mixed = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}={% if not loop.last %}"
        "{{ messages[loop.index].content }}{% endif %}{% endif %}</s>{% endgeneration %}{% elif m.role == 'user' %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    row = json.loads(json.dumps(SPELLINGS["openai"]))
    row["messages"][2]["content"] = MARKER
    with pytest.raises(DataError, match=r"row 1: .*calls of tools so that they cannot") as error:
        make_encoder(mixed).encode(sample_of(tmp_path, row))
    assert MARKER not in str(error.value)


def test_a_template_that_reads_results_is_looked_through(make_encoder, tmp_path):
    reads = (
        "{% if m.role == 'tool' and m.content | int == 0 %}{{ raise_exception('no') }}{% endif %}"
    )
    template = HERMES.replace("{% for m in messages %}", "{% for m in messages %}" + reads, 1)
    encoder = make_encoder(template)
    _, call, answer = TOOL_FAMILIES["hermes"]
    row = json.loads(json.dumps(SPELLINGS["openai"]))
    row["messages"][2]["content"] = "-31"
    assert trained(encoder, sample_of(tmp_path, row)) == [call, answer]
    row["messages"][2]["content"] = "2"  # stands in the call too, so that nobody can tell
    with pytest.raises(DataError, match="calls of tools so that they cannot be told"):
        encoder.encode(sample_of(tmp_path, row))


def test_nulls_that_arrow_fills_in_are_no_arguments(make_encoder, tmp_path):
    rows = [SPELLINGS["arguments as an object"], json.loads(json.dumps(SPELLINGS["openai"]))]
    rows = [{"messages": row["messages"], "tools": [TOOL]} for row in rows]
    rows[0]["messages"][2] = {"role": "tool", "content": "-3"}
    other = {"name": "tide", "arguments": {"port": "Odesa"}}
    rows[1]["messages"][1] = {"role": "assistant", "tool_calls": [other]}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    first, second = read_rows(tmp_path / "rows.parquet").samples
    assert trained(make_encoder(HERMES), first)[0] == TOOL_FAMILIES["hermes"][1]
    assert '{"port": "Odesa"}' in trained(make_encoder(HERMES), second)[0]


BAD_CALLS = {
    "no name": ({"tool_calls": [{"arguments": MARKER}]}, "turn 2 has a call of a tool that names"),
    "no JSON": (
        {"function_call": {"name": "f", "arguments": "{" + MARKER}},
        "a call's arguments in turn 2 is not valid JSON",
    ),
    "a list": ({"function_call": {"name": "f", "arguments": "[1]"}}, "arguments are no object"),
    "a text": ({"tool_calls": MARKER}, "tool_calls of turn 2 is not valid JSON"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_call_that_is_none_is_named_and_not_shown(case, tmp_path):
    keys, said = BAD_CALLS[case]
    row = talk({"content": "hi"}, {"content": MARKER, **keys})
    error = error_of(write_jsonl(tmp_path / "rows.jsonl", row))
    assert said in str(error)
    assert MARKER not in everything_said(error)


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"role": "user", "content": MARKER, "tool_calls": [FUNCTION]}, "is not the assistant's"),
        ({"from": "function_call", "value": MARKER}, "turn 1 is not valid JSON"),
    ],
)
def test_a_call_of_somebody_else_is_refused(turn, said, tmp_path):
    error = error_of(write_jsonl(tmp_path / "rows.jsonl", {"messages": [turn, SAID]}))
    assert said in str(error)
    assert MARKER not in everything_said(error)


@pytest.mark.parametrize("tools", [[{"description": MARKER}], MARKER, 7, [MARKER]])
def test_tools_that_are_none_are_refused(tools, tmp_path):
    row = talk({"content": "hi"}, {"content": "yo"}) | {"tools": tools}
    error = error_of(write_jsonl(tmp_path / "rows.jsonl", row))
    assert "tools" in str(error)
    assert MARKER not in everything_said(error)


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools_are_no_tools(tools, tmp_path):
    plain = talk({"content": "hi"}, {"content": "yo"})
    with_key = talk({"content": "hi", "tool_calls": None}, {"content": "yo", "tool_calls": []})
    assert sample_of(tmp_path, with_key | {"tools": tools}).id == sample_of(tmp_path, plain).id


# Weights

OFF = {
    "weight": (0, 0.0, False, "0", "false"),
    "train": (False, 0),
    "trainable": (False,),
    "loss": (False, 0),
    "loss_weight": (0.0, 0),
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in OFF.items() for v in values])
@pytest.mark.parametrize("template", [KEEPS_THOUGHT, LAST_THOUGHT, MARKED, None])
def test_a_turn_that_says_so_is_read_and_not_trained(make_encoder, template, key, value, tmp_path):
    on = {"0": "1", "false": "true"}.get(value, not value if isinstance(value, bool) else 1)
    row = talk(
        {"content": "hi"},
        {"content": "WRONG", key: value},
        {"content": "hi2"},
        {"content": "good", key: on},
    )
    encoder = make_encoder(template)
    sample = sample_of(tmp_path, row)
    assert "WRONG" in encoder.tokenizer.decode(encoder.encode(sample).ids)
    texts = trained(encoder, sample)
    assert len(texts) == 1
    assert "good" in texts[0]
    assert "WRONG" not in texts[0]


def test_marks_count_for_a_rows_id_and_its_absence_does_not(tmp_path):
    plain = talk({"content": "a"}, {"content": "b"}, {"content": "c"}, {"content": "d"})
    off, on = json.loads(json.dumps(plain)), json.loads(json.dumps(plain))
    off["messages"][1]["weight"], on["messages"][1]["weight"] = 0, 1
    ids = [sample_of(tmp_path, row).id for row in (plain, on, off)]
    assert ids[0] == ids[1] != ids[2], "data tokens are made of ids: a changed mark must show"


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ({"weight": 0.5}, "turn 2 has a weight other than 0 and 1"),
        ({"loss_weight": 2}, "turn 2 has a loss_weight other than 0 and 1"),
        ({"weight": -1}, "turn 2 has a weight other than 0 and 1"),
        ({"train": MARKER}, "turn 2 has a train that is text; give true or false"),
        ({"trainable": [0]}, "turn 2 has a trainable that is a list"),
        ({"train_detail": [{"begin_offset": 0, "train": False}]}, "turn 2 has train_detail"),
    ],
)
def test_a_weight_between_is_refused_by_name(mark, said, tmp_path):
    row = talk({"content": "hi"}, {"content": MARKER, **mark})
    error = error_of(write_jsonl(tmp_path / "rows.jsonl", row))
    assert said in str(error)
    assert MARKER not in everything_said(error)


def test_a_row_without_a_trained_turn_is_left_out_and_counted(make_encoder, tmp_path):
    silent = talk({"content": "a"}, {"content": "b", "train": False})
    half = talk({"content": "a"}, {"content": "b"}, {"content": "c"}, {"content": "d", "weight": 0})
    whole = talk({"content": "a"}, {"content": "b"})
    samples = read(tmp_path, silent, half, whole).samples
    for loss_on, wanted in (("assistant", {0: UNTRAINED}), ("last", {0: UNTRAINED, 1: UNTRAINED})):
        found = encode_rows(samples, make_encoder(KEEPS_THOUGHT, loss_on=loss_on), where="a.jsonl")
        assert found.dropped == wanted
    with pytest.raises(DataError, match=r"a\.jsonl: no row is left to train; of the others, every"):
        encode_rows(samples[:1], make_encoder(KEEPS_THOUGHT), where="a.jsonl")


# Thoughts


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "part"])
@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        # Neither looks for a thought beside the content, so that it stands in it.
        (LAST_THOUGHT, "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>"),
        (KEEPS_THOUGHT, "Two and two.\n</think>\n\nFour.<|im_end|>"),
        (None, "<think>\nTwo and two.\n</think>\n\nFour.</s>"),
    ],
)
def test_a_thought_beside_the_content_is_trained(make_encoder, key, template, wanted, tmp_path):
    turn = {"content": "Four.", key: "Two and two."}
    if key == "part":
        turn = {
            "content": [
                {"type": "thinking", "thinking": "Two and two."},
                {"type": "text", "text": "Four."},
            ]
        }
    sample = sample_of(tmp_path, talk({"content": "2 + 2?"}, turn))
    encoder = make_encoder(template)
    assert trained(encoder, sample) == [wanted]
    assert encoder.encode(sample).remarks == ()


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_gets_thoughts_under_its_own_key(make_encoder, tmp_path):
    thinking = {"content": "Four.", "thinking": "Two and two."}
    sample = sample_of(tmp_path, talk({"content": "a"}, thinking, {"content": "b"}, thinking))
    encoder = make_encoder(THINKS)
    assert trained(encoder, sample) == [
        "Four.<|im_end|>",
        "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>",
    ]
    # The first answer's thought is dropped, and that is said.
    assert encoder.encode(sample).remarks == (Remark.THOUGHT,)
    plain = "{% for m in messages %}<{{ m.content }}></s>{% endfor %}"
    assert Remark.THOUGHT in make_encoder(plain).encode(sample).remarks


def test_a_thought_and_a_call_are_trained_together(make_encoder, tmp_path):
    row = json.loads(json.dumps(SPELLINGS["openai"]))
    row["messages"][1]["reasoning_content"] = "I cannot know."
    template = HERMES.replace(
        "assistant\n{{ m.content }}",
        "assistant\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m.content }}",
    )
    call = "<think>I cannot know.</think>" + TOOL_FAMILIES["hermes"][1]
    encoder = make_encoder(template)
    assert trained(encoder, sample_of(tmp_path, row))[0] == call
    assert encoder.encode(sample_of(tmp_path, row)).remarks == ()


# Labels and pairs


@pytest.mark.parametrize("name", ["label", "kto_tag"])
@pytest.mark.parametrize(
    "shape",
    [
        lambda a: {"prompt": "hi", "completion": a},
        lambda a: {"instruction": "hi", "output": a},
        lambda a: talk({"content": "hi"}, {"content": a}),
        lambda a: {"prompt": [{"role": "user", "content": "hi"}], "completion": [SAID]},
    ],
)
def test_an_unwanted_answer_is_left_out_and_counted(make_encoder, name, shape, tmp_path):
    rows = read(tmp_path, shape("yo") | {name: True}, shape("go away") | {name: False})
    found = encode_rows(rows.samples, make_encoder(KEEPS_THOUGHT), where="a.jsonl")
    assert found.dropped == {1: UNWANTED}
    assert rows.samples[1].id != sample_of(tmp_path, shape("go away")).id
    assert rows.unused == {}


@pytest.mark.parametrize("values", [(0, 1), ("cut", ""), (None, 3), ("true", "cut")])
def test_a_label_that_is_no_truth_value_is_a_column_like_others(values, tmp_path):
    rows = read(tmp_path, *({"prompt": "hi", "completion": "yo", "label": v} for v in values))
    assert not any(sample.unwanted for sample in rows.samples)
    assert rows.columns == ("label",)
    assert rows.unused == {"label": sum(v not in (None, "") for v in values)}


def test_labels_of_csv_are_truth_values_too(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion,label\na,b,True\nc,d,False\ne,f,\n")
    assert [s.unwanted for s in read_rows(tmp_path / "rows.csv").samples] == [False, True, False]


ASK, GOOD, BAD = user("hi"), assistant("yo"), assistant("no")
TURN = {"role": "user", "content": "hi"}
YES, NO = ({"role": "assistant", "content": text} for text in ("yo", "no"))
PREFERENCES = {
    "texts": {"prompt": "hi", "chosen": "yo", "rejected": "no"},
    "a question": {"question": "hi", "chosen": "yo", "rejected": "no"},
    "an instruction": {"instruction": "hi", "input": "", "chosen": "yo", "rejected": "no"},
    "turns": {"prompt": [TURN], "chosen": [YES], "rejected": [NO]},
    "implicit": {"chosen": [TURN, YES], "rejected": [TURN, NO]},
    "prompt repeated": {"prompt": "hi", "chosen": [TURN, YES], "rejected": [TURN, NO]},
    "beside the whole conversation": {
        "prompt": "hi",
        "messages": [TURN, YES],
        "chosen": [TURN, YES],
        "rejected": [TURN, NO],
    },
    "turns repeated": {"prompt": [TURN], "chosen": [TURN, YES], "rejected": [TURN, NO]},
    "one turn each": {
        "conversations": [{"from": "human", "value": "hi"}],
        "chosen": {"from": "gpt", "value": "yo"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    "messages": {"chosen_messages": [TURN, YES], "rejected_messages": [TURN, NO]},
    "spoken": {
        "chosen": "\n\nHuman: hi\n\nAssistant: yo",
        "rejected": "\n\nHuman: hi\n\nAssistant: no",
    },
    "beside a conversation": {"messages": [TURN, YES], "rejected_response": "no"},
    "beside a response": {"prompt": "hi", "response": "yo", "rejected_response": "no"},
    "beside turns": {"messages": [TURN, YES], "rejected_messages": [TURN, NO]},
}


@pytest.mark.parametrize("shape", PREFERENCES)
def test_the_chosen_side_of_a_pair_is_the_row(shape, tmp_path):
    rows = read(tmp_path, PREFERENCES[shape])
    sample = rows.samples[0]
    assert sample.messages == (ASK, GOOD)
    assert sample.rejected == (ASK, BAD)
    assert rows.unused == ({"messages": 1} if shape == "beside the whole conversation" else {})
    assert sample.id == sample_of(tmp_path, {"prompt": "hi", "completion": "yo"}).id


def test_a_pair_keeps_its_system_and_what_a_side_repeats(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    row = {"prompt": "hi", "chosen": [system, TURN, YES], "rejected": [system, TURN, NO]}
    assert sample_of(tmp_path, row).rejected == (Message("system", "Be brief."), ASK, BAD)
    row = {"prompt": "hi", "chosen": "yo", "rejected": "no", "system": "Be brief."}
    assert sample_of(tmp_path, row).messages == (Message("system", "Be brief."), ASK, GOOD)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": MARKER, "rejected": MARKER}, "chosen is text without turns, and no column"),
        (
            {"prompt": [TURN], "chosen": [{**TURN, "content": MARKER}, YES], "rejected": [NO]},
            "chosen begins with another prompt",
        ),
        ({"prompt": "hi", "chosen": None, "rejected": MARKER}, "chosen is null"),
        ({"prompt": "hi", "chosen": [TURN], "rejected": MARKER}, "the last turn is not"),
        ({"prompt": "hi", "chosen": MARKER, "rejected": [TURN]}, "the last turn is not"),
    ],
)
def test_a_pair_that_is_none_is_named(row, said, tmp_path):
    error = error_of(write_jsonl(tmp_path / "rows.jsonl", row))
    assert said in str(error)
    assert MARKER not in everything_said(error)


def test_a_pair_without_its_other_side_is_a_row(tmp_path):
    whole, half = ({"prompt": "hi", "chosen": "yo", "rejected": r} for r in ("no", None))
    assert [bool(s.rejected) for s in read(tmp_path, whole, half).samples] == [True, False]


# What is not read


@pytest.mark.parametrize("name", ["image", "images", "audios", "video"])
def test_pictures_and_sounds_are_refused_by_name(name, tmp_path):
    row = talk({"content": "<image>Who?"}, {"content": MARKER})
    error = error_of(write_jsonl(tmp_path / "rows.jsonl", row | {name: ["a.jpg"]}))
    assert f"it has {name}, and text alone is read" in str(error)
    assert MARKER not in everything_said(error)
    assert read(tmp_path, row | {name: []}).n_rows == 1
    unseen = read(tmp_path, row | {name: ["a.jpg"]}, columns={name: None})
    assert unseen.unused == {name: 1}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image"}, "turn 1 has a part of type image, and text alone is read"),
        ({"type": "image_url", "image_url": {"url": MARKER}}, "a part of type image"),
        ({"type": "input_audio", "input_audio": {}}, "a part of type audio"),
        ({"type": MARKER}, "a part of a type that is not known"),
        (7, "turn 1 has a part that is a number"),
        ({"type": "text", "text": None}, "turn 1 is null"),
    ],
)
def test_parts_that_are_no_text_are_refused_by_name(part, said, tmp_path):
    row = talk({"content": [{"type": "text", "text": MARKER}, part]}, {"content": "yo"})
    error = error_of(write_jsonl(tmp_path / "rows.jsonl", row))
    assert said in str(error)
    assert MARKER not in everything_said(error)


def test_parts_of_text_are_one_text(tmp_path):
    row = talk(
        {"content": [{"type": "text", "text": "Who "}, "came?"]},
        {"content": [{"type": "text", "value": "Ann."}]},
    )
    assert sample_of(tmp_path, row).messages == (user("Who came?"), assistant("Ann."))


def test_columns_and_keys_that_are_not_read_are_counted(tmp_path):
    row = talk({"content": "hi", "name": "bob", "weight": 1}, {"content": "yo", "date": "today"})
    rows = read(
        tmp_path,
        row | {"id": 1, "source": "", "a b": "c"},
        row | {"id": 2, "source": "web"},
        talk({"content": "hi"}, {"content": "yo"}),
    )
    assert rows.unused == {
        "id": 2,
        "source": 1,
        "columns or keys with names that are not shown": 1,
        "messages[].date": 2,
        "messages[].name": 2,
        "messages[].weight of other turns": 2,
    }
