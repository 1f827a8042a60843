"""Constrained output: random walks under the mask always end in valid JSON, and rollback leaves no trace."""

import json
import random
import re

import jsonschema
import numpy as np
import pytest
import torch
from grammar_walks import accepts, load_minnow, load_v3, takes, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from json_schemas import INT, SCHEMAS, STR, VALUES, arr, obj
from tokenizers import Tokenizer as Backend
from tokenizers import models

from fathom.engine.grammar import MAX_COMPILED, Grammar, GrammarCompiler, Matcher
from fathom.engine.grammar_source import JSON_SPACE, MAX_BYTES
from fathom.runtime import UserError
from fathom.text.chat_tokens import END_THINK
from fathom.text.tokenizer import Tokenizer

PADDING = 64  # rows of the model that the tokenizer does not have
PLAN = obj({"title": STR, "steps": arr(obj({"n": INT, "what": STR, "done": {"type": "boolean"}}), 1, 3)})


@pytest.fixture(scope="module")
def minnow() -> Tokenizer:
    return load_minnow()


@pytest.fixture(scope="module")
def compiler(minnow: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(minnow, minnow.vocab_size + PADDING, minnow.eos_ids)


@pytest.fixture(scope="module")
def v3_compiler() -> GrammarCompiler:
    tokenizer = load_v3()
    return GrammarCompiler(tokenizer, 129280, tokenizer.eos_ids)


def schema_matcher(compiler: GrammarCompiler, schema: object, **options) -> Matcher:
    return compiler.matcher(Grammar("json_schema", json.dumps(schema)), **options)


def allowed(matcher: Matcher) -> list[int]:
    return np.flatnonzero(matcher.mask().numpy()).tolist()


CHECKER = jsonschema.FormatChecker()
for name, pattern in {
    "date": r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])",  # the library also knows a year 0
    "date-time": r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)",
    "time": r"\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)",
    "duration": r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?)",
    "hostname": r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*",
    "uri": r"[a-zA-Z][a-zA-Z0-9+.-]*:[!-~]*",
}.items():
    CHECKER.checks(name)(lambda value, pattern=pattern: not isinstance(value, str) or re.fullmatch(pattern, value))


def validator(schema):
    return jsonschema.Draft202012Validator(schema, format_checker=CHECKER)


def check_text(schema, text):
    value = json.loads(text)
    validator(schema).validate(value)
    json.dumps(value, ensure_ascii=False).encode()  # no halves of surrogate pairs
    return value


# ---------------------------------------------------------------- JSON schemas


@pytest.mark.parametrize("name", SCHEMAS)
def test_walks_end_in_valid_json(compiler, name):
    schema, rng = SCHEMAS[name], random.Random(name)
    for _ in range(2):
        matcher = schema_matcher(compiler, schema)
        text = compiler.tokenizer.decode(walk(compiler, matcher, rng), skip_special=False)
        value = check_text(schema, text)
        if len(text) > 2000 or re.search(r"[0-9][eE.]|\\u", text):
            continue  # Python would write the number or the escape in another way
        for style in ({"indent": 2}, {"indent": 4}, {"separators": (",", ":")}, {}):
            again = json.dumps(value, ensure_ascii=False, **style)
            assert accepts(compiler, schema_matcher(compiler, schema), again), again


@pytest.mark.parametrize("name", list(SCHEMAS)[::4])
def test_walks_with_the_real_tokenizer(v3_compiler, name):
    matcher = schema_matcher(v3_compiler, SCHEMAS[name])
    assert matcher.mask().shape == (129280,)
    text = v3_compiler.tokenizer.decode(walk(v3_compiler, matcher, random.Random(name), wild=15), skip_special=False)
    check_text(SCHEMAS[name], text)


def test_what_is_accepted_is_what_is_valid(compiler):
    """Every schema on every value, against jsonschema. (The values have their properties in the schemas' order.)"""
    texts = [json.dumps(value, ensure_ascii=False) for value in VALUES]
    ids = [compiler.tokenizer.encode_plain(text) for text in texts]
    wrong = []
    for name, schema in SCHEMAS.items():
        valid, matcher = validator(schema), schema_matcher(compiler, schema)
        for value, text, tokens in zip(VALUES, texts, ids, strict=True):
            got, taken = takes(compiler, matcher, tokens)
            matcher.rollback(taken)
            if got != valid.is_valid(value):
                wrong.append((name, text, got))
    # the one difference: a multiple of 0.25 has two decimals or none, one of 0.125 three
    assert all(name in ("quarters", "eighths") and "." in text and not got for name, text, got in wrong), wrong
    assert len(wrong) == 9


def test_properties_keep_the_order_of_the_schema(compiler):
    schema = obj({"z": INT, "a": INT})
    assert accepts(compiler, schema_matcher(compiler, schema), '{"z": 1, "a": 2}')
    assert not accepts(compiler, schema_matcher(compiler, schema), '{"a": 2, "z": 1}')


def test_white_space_is_bounded(compiler):
    """Whoever always writes white space where it may gets on all the same."""
    tokenizer, rng = compiler.tokenizer, random.Random(0)
    blank = [i for i in range(tokenizer.vocab_size) if re.fullmatch(r"\s+", tokenizer.decode([i]))]
    assert len(blank) > 5
    matcher = schema_matcher(compiler, obj({"a": arr({"enum": [1]}, 2, 2), "b": {"const": None}}))
    text = ""
    while not matcher.finished:
        mask = matcher.mask()
        choices = [i for i in blank if mask[i]] or [i for i in allowed(matcher) if i not in compiler.eos_ids]
        token = rng.choice(choices)
        matcher.advance(token)
        text += tokenizer.decode([token])
    assert json.loads(text) == {"a": [1, 1], "b": None}
    runs = re.findall(r"\s+", text)
    assert len(runs) >= 9 and all(re.fullmatch(JSON_SPACE, run) for run in runs)
    for bad in (' {"a"', '{"a": [1, 1], "b": null} ', '{\n\n"a"', '{"a":\t[1'):
        assert not accepts(compiler, schema_matcher(compiler, obj({"a": arr(INT), "b": {}})), bad)


def test_json_object(compiler, v3_compiler):
    for c in (compiler, v3_compiler):
        ids = walk(c, c.matcher(Grammar("json_object")), random.Random(4))
        assert isinstance(json.loads(c.tokenizer.decode(ids, skip_special=False)), dict)
        assert not accepts(c, c.matcher(Grammar("json_object")), "[1]")


# ---------------------------------------------------------------- regular expressions, Lark


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"[0-9]{3}-[0-9]{4}", ["555-0123"], ["5555-012", "555-01234", ""]),
        (r"(yes|no)( maybe)?", ["yes", "no maybe"], ["yess", " yes", "maybe"]),
        (r"a.b", ["axb", "aäb"], ["a\nb"]),
        (r"(?i)hello\s+\p{L}+", ["HeLLo   Wörld"], ["hello1"]),
        (r"a/b|\x41&~", ["a/b", "A&~"], ["a\\/b"]),
        (r"", [""], ["x"]),
        (r"^日本(語)?$", ["日本", "日本語"], ["日本人"]),
    ],
)
def test_regular_expressions(compiler, pattern, good, bad):
    grammar = Grammar("regex", pattern)
    for text in good:
        assert accepts(compiler, compiler.matcher(grammar), text), text
    for text in bad:
        assert not accepts(compiler, compiler.matcher(grammar), text), text
    if pattern:
        text = compiler.tokenizer.decode(walk(compiler, compiler.matcher(grammar), random.Random(pattern)))
        assert re.fullmatch(pattern.replace(r"\p{L}", r"\w"), text)


def test_lark_with_control_tokens_and_schemas(compiler):
    tokenizer = compiler.tokenizer
    grammar = Grammar("lark", 'start: <think> TEXT </think> %json {"type": "integer"}\nTEXT: /[a-z ]*/')
    matcher = compiler.matcher(grammar)
    assert allowed(matcher) == [tokenizer.id_of("<think>")]
    assert not accepts(compiler, compiler.matcher(grammar), "<think>a</think>1")  # spelled out: not the tokens
    for token in tokenizer.encode("<think>some words</think>12"):
        assert matcher.allows(token)
        matcher.advance(token)
    assert matcher.allows(compiler.eos_ids[0]) and not matcher.finished


# ---------------------------------------------------------------- the end, padding rows, rollback


def test_the_end(minnow):
    eos = (1, 2, minnow.vocab_size + 3)  # the last one is a row without a token
    compiler = GrammarCompiler(minnow, minnow.vocab_size + 8, eos)
    matcher = compiler.matcher(Grammar("regex", "abc?"))
    assert not any(matcher.allows(i) for i in eos) and not matcher.mask()[list(eos)].any()
    with pytest.raises(ValueError, match="not complete"):
        matcher.advance(1)
    for token in minnow.encode_plain("ab"):
        matcher.advance(token)
    c = minnow.id_of("c")
    assert all(matcher.allows(i) for i in eos) and matcher.allows(c) and not matcher.finished
    assert set(allowed(matcher)) == {*eos, c}
    matcher.advance(c)
    assert matcher.finished and allowed(matcher) == list(eos)
    for i in eos:  # one after the other: an engine that goes on after EOS gets nothing else
        matcher.advance(i)
        assert matcher.finished and allowed(matcher) == list(eos) and not matcher.allows(c)
    matcher.rollback(4)
    assert set(allowed(matcher)) == {*eos, c} and not matcher.finished


def test_rows_without_a_token_and_control_tokens_are_never_text(compiler):
    tokenizer = compiler.tokenizer
    matcher = compiler.matcher(Grammar("regex", "(?s:.*)"))
    mask = matcher.mask()
    assert mask.dtype == torch.bool and mask.shape == (compiler.vocab_size,) and mask.sum() > 7000
    assert not mask[tokenizer.vocab_size :].any()
    assert allowed(matcher)[:2] == [1, 3] and not any(mask[i] for i in tokenizer.control_tokens if i != 1)
    for row in (-1, tokenizer.vocab_size, compiler.vocab_size + 5):
        assert not matcher.allows(row)
        with pytest.raises(ValueError, match="not allowed"):
            matcher.advance(row)
    padding = compiler.matcher(Grammar("lark", f"start: <[3-{tokenizer.vocab_size - 1}]>"))
    assert padding.mask().sum() == tokenizer.vocab_size - 3


def test_a_token_that_is_not_allowed_changes_nothing(compiler):
    matcher = schema_matcher(compiler, PLAN)
    before = matcher.mask().clone()
    with pytest.raises(ValueError, match="not allowed by the JSON schema"):
        matcher.advance(compiler.tokenizer.id_of("a"))
    assert torch.equal(matcher.mask(), before)
    matcher.rollback(0)
    with pytest.raises(ValueError, match="cannot roll back 1"):
        matcher.rollback(1)


def state(matcher):
    mask = matcher.mask()
    return None if mask is None else mask.tolist(), matcher.finished


GRAMMARS = [
    Grammar("json_schema", json.dumps(PLAN)),
    Grammar("json_schema", json.dumps(SCHEMAS["any JSON"])),
    Grammar("regex", "(a|bc)*d?"),
    Grammar("lark", 'start: <think> /[a-z]*/ </think> %json {"enum": ["x", 12]}'),
]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(GRAMMARS), st.booleans(), st.randoms(use_true_random=False), st.data())
def test_rollback_leaves_no_trace(compiler, grammar, waiting, rng, data):
    """Tokens forward and back: everything is as in a fresh matcher that took the same tokens."""
    tokenizer = compiler.tokenizer
    tokens = []
    if waiting:  # a thought, whose end is one control token or is spelled by several
        end = data.draw(st.sampled_from([tokenizer.encode(END_THINK), tokenizer.encode_plain(END_THINK)]))
        tokens = [*tokenizer.encode_plain("hm </thi "), *end]
    matcher = compiler.matcher(grammar, after=END_THINK if waiting else None)
    states = [state(matcher)]
    for token in tokens:
        assert matcher.mask() is None and matcher.allows(token)
        matcher.advance(token)
        states.append(state(matcher))
    for _ in range(data.draw(st.integers(0, 15))):
        tokens.append(rng.choice(allowed(matcher)))
        matcher.advance(tokens[-1])
        states.append(state(matcher))
    at = len(tokens)
    for _ in range(4):
        back = data.draw(st.integers(0, at))
        matcher.rollback(back)
        at -= back
        assert state(matcher) == states[at]
        forward = data.draw(st.integers(0, len(tokens) - at))
        for token in tokens[at : at + forward]:
            assert matcher.allows(token)
            matcher.advance(token)
        at += forward
        assert state(matcher) == states[at]


@pytest.mark.parametrize("spelled", [False, True])
def test_after(compiler, spelled):
    tokenizer = compiler.tokenizer
    matcher = compiler.matcher(Grammar("regex", "[0-9]+"), after=END_THINK)
    text = [*tokenizer.encode_plain("a < b </thin"), 1, compiler.vocab_size - 1, *tokenizer.encode_plain("</th")]
    for token in text:
        assert matcher.mask() is None and matcher.allows(token) and not matcher.finished
        matcher.advance(token)
    for token in tokenizer.encode_plain(END_THINK) if spelled else tokenizer.encode(END_THINK):
        assert matcher.mask() is None
        matcher.advance(token)
    digits = {tokenizer.decode([i]) for i in allowed(matcher)}
    assert {"0", "9"} <= digits and all(text.isdigit() and text.isascii() for text in digits)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("regex", "(", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", r"[^\s\S]", "no text can satisfy it"),
        ("regex", "a\ud800", "surrogates not allowed"),
        ("regex", "a" * 8193, "8193 bytes, the limit is 8192"),
        ("regex", "(" * 4000 + "a" + ")" * 4000, "nest"),
        ("lark", "", "Empty grammar"),
        ("lark", "start: x", 'line 1, column 8: unknown name: "x"'),
        ("lark", 'start: "a"\nb: "', "line 2, column 5: lexer error"),
        ("lark", "start: <nothing>", 'unknown special token: "<nothing>"$'),
        ("lark", "start: a\na: a", "no text can satisfy it"),
        ("lark", "start: " + "(" * 30000 + '"a"' + ")" * 30000, "too deeply nested"),
        ("lark", 'start: "x"\na: %json // c\n {"multipleOf": 99999999}', "line 2: a JSON schema must follow %json"),
        ("lark", 'start: %json {"type": "integer", "multipleOf": 99999999}', "multiples of 99999999"),
        ("json_object", "{}", "takes no text"),
        ("yaml", "", "kind 'yaml' is not known; use one of json_schema"),
        ("json_schema", "{", "not valid JSON"),
        ("json_schema", "[]", "is a list; it must be a JSON object"),
        ("json_schema", "true", "is a bool"),
        ("json_schema", "[" * 30000, "nested too deeply"),
        ("json_schema", '{"items":' * 4000 + "{}" + "}" * 4000, "recursion limit|nested too deeply"),
        ("json_schema", '{"x-guidance": {"lenient": true}}', "'x-guidance'.*remove it"),
        ("json_schema", '{"type": "strin"}', "Invalid type: strin"),
        ("json_schema", '{"not": {}}', 'Unimplemented keys: ..not'),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"type": "array", "contains": {}}', "contains"),
        ("json_schema", '{"if": {}, "then": {}}', "if"),
        ("json_schema", '{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "oneOf.*use anyOf$"),
        ("json_schema", '{"type": "string", "format": "iri"}', "Unknown format: iri"),
        ("json_schema", '{"type": "string", "pattern": "(?!a)b"}', "look-around"),
        ("json_schema", '{"$ref": "https://example.org/s.json"}', "does not fetch"),
        ("json_schema", '{"$ref": "#/$defs/a"}', "does not exist"),
        ("json_schema", '{"enum": []}', "Unsatisfiable"),
        ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 2}', "minimum .3. is greater"),
        ("json_schema", '{"type": "object", "properties": {"a": false}, "required": ["a"]}', "'a' is unsatisfiable"),
        ("json_schema", '{"type": "integer", "multipleOf": 999983}', "multiples of 999983.*limit is 100000"),
        ("json_schema", '{"allOf": [{"multipleOf": 0.997}, {"multipleOf": 991}]}', "multiples of 988027000"),
        ("json_schema", '{"type": "integer", "multipleOf": true}', "multipleOf"),
        ("json_schema", f'{{"type": "integer", "multipleOf": 1{310 * "0"}}}', "multiples of 1000"),
    ],
)  # fmt: skip
def test_what_does_not_compile_says_why_in_one_line(compiler, kind, text, why):
    with pytest.raises(UserError, match=why) as caught:
        compiler.matcher(Grammar(kind, text))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400


def test_large_grammars_within_the_limits(compiler):
    fields = {f"field_{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i % 40 + 1}}}(x|y)*[0-9]+$"} for i in range(600)}
    words = {"enum": [f"value number {i} of the enumeration" for i in range(1500)]}
    for schema in (obj(fields), words):
        assert len(json.dumps(schema)) < MAX_BYTES["json_schema"]
        assert schema_matcher(compiler, schema).mask().any()
    with pytest.raises(UserError, match=r"the JSON schema has \d+ bytes, the limit is 65536"):
        schema_matcher(compiler, {"description": "x" * 70_000})


def test_a_grammar_that_needs_too_much_work_is_a_user_error(compiler):
    """Its automaton has more states than the limits allow, which shows only while it is used."""
    grammar = Grammar("regex", "(.{0,300}a){0,300}(.{0,300}b){300}")
    with pytest.raises(UserError, match="needs more work than the limits allow") as caught:
        matcher, rng = compiler.matcher(grammar), random.Random(0)
        for _ in range(300):
            matcher.advance(rng.choice(allowed(matcher)))
    assert "\n" not in str(caught.value)


def test_compiled_grammars_are_kept_and_bounded(minnow):
    compiler = GrammarCompiler(minnow, minnow.vocab_size, minnow.eos_ids)
    for i in range(MAX_COMPILED + 5):
        compiler.matcher(Grammar("regex", f"a{{{i}}}"))
        compiler.matcher(Grammar("regex", "kept"))
    assert len(compiler._compiled) == MAX_COMPILED and Grammar("regex", "kept") in compiler._compiled
    one, two = (compiler.matcher(Grammar("regex", "kept")) for _ in range(2))
    one.advance(minnow.encode_plain("kept")[0])
    assert torch.equal(two.mask(), compiler.matcher(Grammar("regex", "kept")).mask())  # matchers share no position


def test_tokenizers_that_cannot_be_used(minnow):
    words = Tokenizer(Backend(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")), eos_ids=[1])
    with pytest.raises(UserError, match="cannot be used for constrained output"):
        GrammarCompiler(words, 3, [1]).matcher(Grammar("regex", "a"))
    with pytest.raises(UserError, match="no end token"):
        GrammarCompiler(minnow, minnow.vocab_size, [])
