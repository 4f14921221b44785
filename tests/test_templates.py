"""A chat template renders as transformers renders it, and takes neither the machine nor a row."""

import os
import time

import jinja2
import pytest

from clues.config import TokenSettings
from clues.data import templates
from clues.data.samples import Message, Sample
from clues.data.sandbox import environment
from clues.data.templates import MAX_TEMPLATE, ChatTemplate
from clues.data.tokens import RowEncoder
from clues.errors import ConfigError, DataError

TURNS = [
    {"role": "system", "content": "Be <brief> & “kind”.\n"},
    {"role": "user", "content": "  ¿Dónde?\u2028 {{ 7 * 7 }} {% raw %} 膵臓 \U0001f600 \\n"},
    {"role": "assistant", "content": "Here.\n\n  There. "},
]
# Every construct that templates of models in use have, one in each line.
RENDERED = {
    "chatml": "{% for m in messages %}<|{{ m.role }}|>\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "blocks": "{%- for m in messages %}\n    {%- if loop.first -%} {{ bos_token }} {%- endif %}\n"
    "  {{ m.content }}\n    {% endfor -%}\n{{ eos_token }}",
    "namespace": "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.s = ns.s ~ m.role[0] %}{% endfor %}{{ ns.n }}{{ ns.s }}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{{ m.content }}{% break %}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true) }}"
    "{{ messages[0] | tojson(ensure_ascii=true) }}{{ messages | tojson(separators=(',', ':')) }}",
    "generation": "{% for m in messages %}{% generation %}{% set x = m.role %}{{ x }}"
    "{% endgeneration %}{{ x }}{% endfor %}",
    "macro": "{% macro turn(m, end='!') %}[{{ m.role }}]{{ m.content }}{{ end }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m, end=loop.index) }}{% endfor %}",
    "slices": "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{{ rest | length }}{{ rest[-1]['content'].strip() }}",
    "methods": "{{ messages[1].content.split()[0].upper() }}{{ messages[2].content.startswith('H') }}"
    "{{ messages[0].content.replace('<', '[') }}{{ messages[0].get('name', 'none') }}",
    "filters": "{{ messages | map(attribute='role') | join('|') }}{{ messages | selectattr('role', "
    "'equalto', 'user') | list | length }}{{ messages[0].content | replace('b', 'B') | indent }}",
    "undefined": "{{ nothing }}{{ messages[0].nothing }}{% if tools is defined and tools %}T{% endif %}"
    "{% if documents is not none %}D{% endif %}{{ tools is none }}{{ pad_token is defined }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys([1], 2) }}{% set d = {'a': [1, 2.5, true, none]} %}{{ d }}"
    "{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}",
    "escapes": "{{ '<&>' }}{{ '<' | e }}{% raw %}{{ x }}{% endraw %}{# a comment #}{{ 'é' }}",
    "dates": "{{ strftime_now is defined }}",
    "flags": "{{ add_generation_prompt }}{{ messages is iterable }}{{ 7 // 2 }}{{ 1.0 / 3 }}",
}


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer(adds_bos=True)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(templates, "CPU_S", 0.25)


@pytest.mark.parametrize("name", RENDERED)
def test_the_text_is_what_transformers_writes(tokenizer, name):
    tokenizer.chat_template = RENDERED[name]
    made = environment().from_string(RENDERED[name])

    def ours(turns, header):
        values = {"messages": turns, "tools": None, "documents": None}
        return made.render(values, add_generation_prompt=header, **tokenizer.special_tokens_map)

    for turns in (TURNS, TURNS[1:], TURNS[:1], [{"role": "user", "content": ""}]):
        for header in (True, False):
            try:
                expected = tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=header
                )
            except jinja2.UndefinedError as error:
                with pytest.raises(type(error)):
                    ours(turns, header)
                continue
            assert ours(turns, header) == expected


def test_every_row_is_rendered_by_the_same_process(tokenizer):
    tokenizer.chat_template = "".join(RENDERED[n] for n in ("chatml", "tojson", "blocks"))
    chat, processes = ChatTemplate(tokenizer), set()
    for n in range(50):
        turns = [*TURNS, {"role": "user", "content": f"{n}\n" * n}]
        expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert chat.render(turns, header=True).text == expected
        processes.add(id(chat._process))
    assert len(processes) == 1


def test_a_tokenizer_with_several_templates_uses_the_usual_one(tokenizer):
    tokenizer.chat_template = {"default": RENDERED["chatml"], "tool_use": "x"}
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert ChatTemplate(tokenizer).render(TURNS, header=False).text == expected


def test_a_tokenizer_with_code_of_its_own_is_asked_itself(tokenizer):
    class Own(type(tokenizer)):
        def apply_chat_template(self, turns, **how):
            return f"mine: {len(turns)} {how['add_generation_prompt']}"

    own = Own(tokenizer_object=tokenizer.backend_tokenizer)
    own.chat_template = RENDERED["chatml"]
    assert ChatTemplate(own).render(TURNS, header=True).text == "mine: 3 True"


BOMBS = {
    "repeated text": "{{ 'a' * 10**9 }}",
    "loops of loops": "{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for i in range(9999) %}{% for j in range(9999) %}abcdef{% endfor %}"
    "{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a huge range": "{{ range(10**9) | list }}",
    "a power": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "%": "{{ '%0999999999d' % 1 }}",
    "format": "{{ '{:>999999999}'.format(1) }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "indent": "{{ ('x\n' * 9999) | indent(10**6) }}",
    "join": "{{ (['a' * 10**6] * 10**4) | join }}",
    "replace": "{{ ('a' * 10**6).replace('a', 'a' * 10**6) }}",
    "doubling": "{% set ns = namespace(s='aaaa') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}"
    "{% endfor %}",
    "nested": "{% if 1 %}" * 5000,
    "brackets": "{{ " + "(" * 50_000 + " }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_message_within_seconds(tokenizer, impatient, name):
    tokenizer.chat_template = BOMBS[name]
    chat, started = ChatTemplate(tokenizer), time.process_time()
    with pytest.raises(DataError, match="chat template"):
        chat.render(TURNS, header=False)
    assert time.process_time() - started < 1.0, "it took this process, and not the other"


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ namespace(__init__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ '{0.__class__}'.format('') }}{{ raise_exception('end') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ messages.append(1) }}",
    "{{ dict.mro() }}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_reaches_nothing_but_its_turns(template):
    with pytest.raises((jinja2.TemplateError, TypeError)):
        environment().from_string(template).render({"messages": TURNS})


@pytest.mark.parametrize("template", ["{{ ''|attr('__class__') }}", "{{ lipsum.__globals__ }}"])
def test_what_leads_out_of_jinja_is_not_there(template):
    assert environment().from_string(template).render({"messages": TURNS}) == ""


def test_after_a_bomb_the_next_row_is_rendered_by_a_new_process(tokenizer, impatient):
    tokenizer.chat_template = (
        "{% if messages[0].content == 'x' %}{% for i in range(9999) %}{% for j in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}"
    )
    chat = ChatTemplate(tokenizer)
    assert chat.render([{"role": "user", "content": "y"}], header=False).text == "y"
    with pytest.raises(DataError, match=r"over 0\.25 seconds"):
        chat.render([{"role": "user", "content": "x"}], header=False)
    assert chat.render([{"role": "user", "content": "z"}], header=False).text == "z"


def test_a_refusal_names_the_row_and_shows_nothing_of_it(tokenizer):
    tokenizer.chat_template = (
        "{% if messages[0].content == 'zqxsecret' %}{{ raise_exception(messages[0].content) }}"
        "{% endif %}{% if messages[0].content == 'odd' %}{{ messages[0][messages[0].content].x }}"
        "{% endif %}{{ raise_exception('Roles must alternate.') }}"
    )
    encoder = RowEncoder(tokenizer, TokenSettings(max_length=64))
    for text, said in (("zqxsecret", r"TemplateError\)"), ("a", r"Roles must alternate\.")):
        sample = Sample(4, (Message("user", text), Message("assistant", "b")))
        with pytest.raises(DataError, match=rf"row 5: .*{said}") as refusal:
            encoder.encode(sample)
        assert "zqxsecret" not in str(refusal.value)


@pytest.mark.parametrize("odd", [5, ["x"], {"tool_use": "x"}, "x" * (MAX_TEMPLATE + 1)])
def test_a_template_that_is_no_text_or_too_much_is_refused_before_any_row(tokenizer, odd):
    tokenizer.chat_template = odd
    with pytest.raises(ConfigError, match=r"chat template.*alpaca"):
        RowEncoder(tokenizer, TokenSettings())
    assert RowEncoder(tokenizer, TokenSettings(template="alpaca")).template == "alpaca"


def test_the_process_goes_with_its_template(tokenizer):
    tokenizer.chat_template = RENDERED["chatml"]
    chat = ChatTemplate(tokenizer)
    chat.render(TURNS, header=False)
    process = chat._process
    assert process is not None
    assert os.path.exists(f"/proc/{process.pid}")  # noqa: PTH110
    del chat
    assert process.poll() is not None
