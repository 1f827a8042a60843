"""Wrong messages and wrong templates are one clear line; a checkpoint's own template is found, known and used."""

import json

import pytest
from chat_helpers import GOLDEN_USER, ONE_CALL, TOOLS, V3, V31, assistant, system, tool, user, write_checkpoint
from transformers.utils.chat_template_utils import render_jinja_template

from fathom.runtime import UserError
from fathom.text.chat import ChatTemplate

# ---------------------------------------------------------------- messages that are wrong


def call(**function):
    return [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "at least one message"),
        ("hi", "must be a list"),
        (["hi"], "message 0 is a str"),
        ([user("a"), {"role": "developer", "content": "x"}], "message 1 has the role 'developer'"),
        ([{"content": "x"}], "message 0 has the role None"),
        ([{"role": "user"}], r"message 0 \(user\): content is missing"),
        ([{"role": "user", "content": 3}], r"message 0 \(user\): content is a int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "part of type 'image_url'"),
        ([user("\ud800")], "message 0 .*surrogate"),
        ([user("a"), {"role": "assistant"}], r"message 1 \(assistant\) has neither"),
        ([user("a"), tool("x")], "message 1 is a tool output without a call"),
        ([user("a"), assistant("x", [("f", "{}")]), tool("1"), tool("2")], "message 3 is a tool output without"),
        ([user("a"), assistant("x", [("f", "{}")]), user("b"), tool("1")], "message 3 is a tool output without"),
        ([{"role": "assistant", "tool_calls": "f()"}], "message 0: tool_calls is a str"),
        ([{"role": "assistant", "tool_calls": [{"function": "f"}]}], "message 0, tool call 0 must be"),
        ([{"role": "assistant", "tool_calls": call(arguments="{}")}], "function name is None"),
        ([{"role": "assistant", "tool_calls": call(name="f\ng", arguments="{}")}], "one line of text"),
        ([{"role": "assistant", "tool_calls": call(name="f<｜tool▁sep｜>", arguments="{}")}], "function name is"),
        ([{"role": "assistant", "tool_calls": call(name="f", arguments="[]")}], "must be a JSON object"),
        ([{"role": "assistant", "tool_calls": call(name="f", arguments={"x": {1}})}], "cannot be written as JSON"),
        ([{"role": "assistant", "content": "x", "reasoning_content": 1}], "reasoning_content is a int"),
    ],
)
def test_wrong_messages_name_their_index(messages, says):
    with pytest.raises(UserError, match=says) as caught:
        V3.render(messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tools", ["f", ["f"], [{"function": {}}], [{"type": "x", "function": {"name": "f"}}]])
def test_wrong_tools_are_a_user_error(tools):
    with pytest.raises(UserError, match="tool"):
        V3.render([user("a")], tools=tools)


OBJECTS = {  # what templates of other families do with the arguments of a call, which Hugging Face gives as an object
    "tojson": "{{ call.arguments | tojson }}",
    "the whole call": "{{ call | tojson }}",
    "items": "{% for key, value in call.arguments.items() %}{{ key }}={{ value }};{% endfor %}",
    "the filter": "{% for key, value in call.arguments | items %}{{ key }}={{ value | tojson }};{% endfor %}",
    "keys": "{% for key in call.arguments %}{{ key }}: {{ call.arguments[key] }} {% endfor %}",
    "sorted": "{% for key, value in call.arguments | dictsort %}{{ key }}={{ value }};{% endfor %}",
    "mapping": "{% if call.arguments is mapping %}{{ call.arguments | tojson }}{% else %}no{% endif %}",
    "get": "{{ call.arguments.get('city') }}{{ call.arguments.get('none', 1) }}{{ call.arguments.city }}",
}


@pytest.mark.parametrize("body", OBJECTS.values(), ids=OBJECTS)
@pytest.mark.parametrize("given", ['{"city":"Bern","days":[1,{"a":null}]}', {"city": "Bern", "days": [1, {"a": None}]}])
def test_templates_that_need_an_object_get_one(body, given):
    """As in transformers, which is given the object, whether a client sent text or an object."""
    source = "{% for message in messages %}{% for one in message.tool_calls or [] %}{% set call = one.function %}"
    source += body + "{% endfor %}{% endfor %}"
    wanted = {"name": "f", "arguments": {"city": "Bern", "days": [1, {"a": None}]}}
    theirs = render_jinja_template(
        [[user("q"), {"role": "assistant", "tool_calls": [{"type": "function", "function": wanted}]}]],
        chat_template=source,
    )[0][0]
    messages = [user("q"), {"role": "assistant", "tool_calls": call(name="f", arguments=given)}]
    assert ChatTemplate(source).render(messages, add_generation_prompt=False) == theirs


def test_an_object_holds_no_control_tokens(v3_tokenizer):
    """Not even those that the JSON text spelt with escapes."""
    source = (
        "{% for message in messages %}{% for one in message.tool_calls or [] %}{{ one.function.arguments | tojson }}"
    )
    template = ChatTemplate(source + "{% endfor %}{% endfor %}")
    token = next(iter(v3_tokenizer.control_tokens.values()))
    escaped = "".join(f"\\u{ord(c):04x}" for c in token)
    for text in (f'{{"x": "{escaped}"}}', json.dumps({"x": token})):
        messages = [user("q"), {"role": "assistant", "tool_calls": call(name="f", arguments=text)}]
        ids = template.encode(v3_tokenizer, messages, add_generation_prompt=False)
        assert not set(ids) & set(v3_tokenizer.control_tokens) and v3_tokenizer.decode(ids) == json.dumps(
            {"x": token}, ensure_ascii=False
        )


def test_cut_and_empty_arguments():
    """History of other servers: a call that was cut off stays the text it is, none at all is an empty object."""
    cut = [user("q"), {"role": "assistant", "tool_calls": call(name="f", arguments='{"city": "Be')}]
    assert '{"city": "Be' in V3.render(cut)
    none = [
        V3.render([user("q"), {"role": "assistant", "tool_calls": call(name="f", arguments=a)}]) for a in ("", None, {})
    ]
    assert len(set(none)) == 1 and "{}" in none[0]
    half = [user("q"), {"role": "assistant", "tool_calls": call(name="f", arguments='{"x": "\\ud800"}')}]
    tojson = ChatTemplate("{{ messages[1].tool_calls[0].function.arguments | tojson }}")
    assert tojson.render(half).encode() and "\\ud800" in V3.render(half)
    with pytest.raises(UserError, match="not valid JSON, and the template needs an object"):
        ChatTemplate("{{ messages[1].tool_calls[0].function.arguments.items() }}").render(cut)


def test_text_parts_and_dict_arguments():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert V3.render([user(parts)]) == V3.render([user("a\nb")])
    assert V3.render([user("q"), assistant(calls=[("f", {"é": 1})])]) == V3.render(
        [user("q"), assistant(calls=[("f", '{"é": 1}')])]
    )


def test_outputs_follow_the_order_of_their_calls():
    asking = assistant(calls=[("f", "{}"), ("g", "{}")])
    for made, i in zip(asking["tool_calls"], ("c1", "c2"), strict=True):
        made["id"] = i
    first, second = ({**tool(f"out {i}"), "tool_call_id": i} for i in ("c1", "c2"))
    assert V3.render([user("q"), asking, second, first]) == V3.render([user("q"), asking, first, second])
    with pytest.raises(UserError, match="message 2: tool_call_id 'c9'"):
        V3.render([user("q"), asking, {**first, "tool_call_id": "c9"}])


# ---------------------------------------------------------------- templates of checkpoints


def test_where_a_template_is_found(tmp_path):
    note = write_checkpoint(tmp_path).note
    assert "no chat template" in note
    assert write_checkpoint(tmp_path).render([user("U1")]) == GOLDEN_USER
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | tojson }}"}]
    template = write_checkpoint(tmp_path, named)
    assert (template.render([user("a")]), template.note) == ("plain", "")
    assert template.render([user("a")], tools=TOOLS) == json.dumps(TOOLS)  # not escaped for HTML
    assert write_checkpoint(tmp_path, named, jinja="from the file").render([user("a")]) == "from the file"


def test_format_is_found_by_what_is_rendered(tmp_path):
    assert (V3.format, V31.format) == ("v3", "v3.1")
    assert ChatTemplate(V31.source).format == "v3.1"
    assert ChatTemplate("{{ messages[-1].content }}<｜Assistant｜><think>\n").format == "v3"
    assert ChatTemplate("{{ messages[-1].content }}<｜Assistant｜></think>").format == "v3.1"
    assert ChatTemplate("<|im_start|>{{ messages[-1].content }}").format == "other"
    assert ChatTemplate("{{ raise_exception('never') }}").format == "other"


def test_tools_are_never_dropped(tmp_path):
    """V3's published template has no place for tool definitions: they go to the end of the system text."""
    template = ChatTemplate(V3.source.replace("if tools", "if false"))
    messages = [system("S"), *ONE_CALL, system("late")]
    expected = V3.render([system("S"), system("late"), *ONE_CALL], tools=TOOLS)
    assert template.render(messages, tools=TOOLS) == expected
    with pytest.raises(UserError, match="no place for tool definitions"):
        ChatTemplate("{{ messages[0].content }}").render([user("a")], tools=TOOLS)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% if %}", "not valid Jinja"),
        ("x" * (256 * 1024 + 1), "limit is 262144"),
        ("{{ raise_exception('two\nlines') }}", "two lines"),
        ("{{ messages[0].content + 1 }}", "does not render"),
        ("{{ nothing.at.all }}", "does not render"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "does not render"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "does not render"),
        ("{{ messages.append(1) }}", "does not render"),
        ("{{ 'a' * 10 ** 9 }}", "does not render"),
        (
            "{% set ns = namespace(t='a') %}{% for i in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
            "not render",
        ),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps of range"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "does not render"),
    ],
)
def test_bad_templates_are_one_line(source, says):
    with pytest.raises(UserError, match=says) as caught:
        ChatTemplate(source).render([user("a")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [3, [], ["x"], [{"name": "default"}], [{"name": "rag", "template": ""}]])
def test_bad_template_entries(tmp_path, value):
    with pytest.raises(UserError, match="chat_template"):
        write_checkpoint(tmp_path, value)


def test_template_file_that_is_not_text(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        ChatTemplate.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="not built in"):
        ChatTemplate.builtin("v4")


def test_names_a_template_may_count_on():
    source = "{{ strftime_now('%Y') | length }}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    source += "\n  {%- endfor %}"
    assert ChatTemplate(source).render([user("a"), user("b")]) == "4"
