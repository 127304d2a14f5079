"""Chat templates come with checkpoints: they can access nothing but the chat, and fail by name before a model runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_pipes.data.prompts import end_of_turn_id, render_prompt
from realign_pipes.models.load import load_chat_tokenizer

PARTS = st.sampled_from(
    [
        *("{{", "}}", "{%", "%}", "{#", "#}", "'", "|", ".", "(", ")", "[", "]", " ", "\n", "0", "messages", "message"),
        *(
            "for m in messages",
            "endfor",
            "if",
            "endif",
            "set x =",
            "namespace()",
            "m.content",
            "m['role']",
            "loop.index",
        ),
        *("__class__", "__globals__", "__init__", "attr", "format", "map", "range(9)", "cycler", "self", "tojson", "~"),
        *("raise_exception('x')", "include 'x'", "import 'os' as os", "<|im_end|>", "{{ messages[0].content }}", "\0"),
        *("macro f()", "endmacro", "f()", "add_generation_prompt", "generation", "endgeneration", "\ud800", "1/0"),
    ]
)


@pytest.fixture
def with_template(tmp_path, make_checkpoint):
    """`with_template(text)` is a checkpoint with that chat template."""
    folder = make_checkpoint(tmp_path / "checkpoint")

    def install(template: str):
        (folder / "chat_template.jinja").write_bytes(template.encode("utf-8", "surrogatepass"))
        return folder

    return install


@given(parts=st.lists(PARTS, max_size=12))
def test_made_up_templates(parts, with_template):
    folder = with_template("".join(parts))
    try:
        tokenizer = load_chat_tokenizer(folder)
        text, ids = render_prompt(tokenizer, "1 + 1")
        end_of_turn_id(tokenizer)
    except ValueError as error:
        assert str(folder) in str(error)
    else:
        assert "1 + 1" in text and tokenizer.decode(ids) == text


INJECTIONS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch X') }}",
    "{{ joiner.__init__.__globals__.os.system('touch X') }}",
    "{{ namespace.__init__.__globals__.os.system('touch X') }}",
    "{{ lipsum.__globals__.os.system('touch X') }}",
    "{{ self.__init__.__globals__.__builtins__.open('X', 'w') }}",
    "{{ raise_exception.__globals__.os.system('touch X') }}",
    "{{ strftime_now.__globals__.os.system('touch X') }}",
    "{{ messages|attr('__class__')|attr('__base__')|attr('__subclasses__')() }}",
    "{{ messages|map(attribute='__class__.__base__')|list }}",
    "{{ '{0.__class__.__base__}'.format(messages) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch X') }}",
    "{% from 'os' import system %}",
    "{{ open('X', 'w') }}",
    "{{ __import__('os').system('touch X') }}",
    "{{ messages.append(1) }}",
]


@pytest.mark.parametrize("template", INJECTIONS)
def test_injections_reach_nothing(template, with_template, tmp_path, monkeypatch):
    """Alone they fail: the sandbox refuses them, or writes nothing in their place. In a good template as well."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = with_template(template)
    with pytest.raises(ValueError, match=rf"the chat template of {folder} (is damaged|leaves out what the user says)"):
        load_chat_tokenizer(folder)
    try:
        text, _ = render_prompt(load_chat_tokenizer(with_template("{{ messages[0].content }}" + template)), "1 + 1")
        assert text in ("1 + 1", "1 + 1[Undefined]")
    except ValueError as error:
        assert "the chat template of" in str(error)
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("", "leaves out what the user says"),
        ("assistant:", "leaves out what the user says"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[7].content.x }}", "UndefinedError"),
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for i in range(10 ** 9) %}{{ i }}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_templates_that_fail(template, reason, with_template):
    with pytest.raises(ValueError, match=f"the chat template of .*{reason}"):
        load_chat_tokenizer(with_template(template))


@pytest.mark.parametrize("question", ["{{ 7 * 7 }}", "{% raw %}", "{{ ''.__class__ }}", "{# x #}"])
def test_questions_are_no_templates(question, with_template):
    text, _ = render_prompt(load_chat_tokenizer(with_template("{{ messages[0].content }}<|im_end|>")), question)
    assert text == f"{question}<|im_end|>"
