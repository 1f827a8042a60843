"""Byte-level BPE training with V3's pre-tokenizer: round trip, ids and flags of the added tokens, golden splits."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fathom.runtime import UserError
from fathom.text.bpe import LAST_TOKENS, SMALLEST, pre_tokenizer, train_bpe
from fathom.text.synthetic.stories import story

SIZE = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    out = tmp_path_factory.mktemp("tokenizer")
    train_bpe((story(rng).text for _ in range(150)), SIZE, out, model_max_length=1024)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_ids_and_flags(folder: Path, tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == SIZE
    assert sorted(tokenizer.get_vocab().values()) == list(range(SIZE))
    first = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
    assert [tokenizer.id_to_token(i) for i in range(3)] == first
    assert [tokenizer.id_to_token(i) for i in range(SIZE - len(LAST_TOKENS), SIZE)] == list(LAST_TOKENS)
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert {token["content"] for token in added if token["special"]} == {*first, "<|EOT|>"}
    for k, content in enumerate(LAST_TOKENS):
        assert tokenizer.encode(content).ids == [SIZE - len(LAST_TOKENS) + k]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_chat_tokens_survive_skipping_of_specials(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Yes<｜end▁of▁sentence｜>").ids
    assert ids[0] == 0 and ids[-1] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<｜User｜>Hi<｜Assistant｜>Yes"


GOLDEN = {
    "1234567": ["123", "456", "7"],
    "12 apples": ["12", "Ġapples"],
    "a.\n\nb": ["a", ".ĊĊ", "b"],
    "Hello, world!": ["Hello", ",", "Ġworld", "!"],
    "don't (stop)": ["don", "'t", "Ġ(", "stop", ")"],
    "DeepSeek-V3": ["DeepSeek", "-V", "3"],
    "x   y": ["x", "ĠĠ", "Ġy"],
}


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_splits(text: str) -> None:
    assert [piece for piece, _ in pre_tokenizer().pre_tokenize_str(text)] == GOLDEN[text]


def test_single_digits(tmp_path: Path) -> None:
    pieces = [piece for piece, _ in pre_tokenizer("single").pre_tokenize_str("In 1234, 5.06 and x²")]
    assert pieces == ["In", "Ġ", "1", "2", "3", "4", ",", "Ġ", "5", ".", "0", "6", "Ġand", "Ġx", "Â²"]
    for text in GOLDEN:
        if not text[0].isdigit():
            assert pre_tokenizer("single").pre_tokenize_str(text) == pre_tokenizer().pre_tokenize_str(text)
    texts = [f"{story(random.Random(k)).text} {k * 111} {k * 111} years" for k in range(40)]
    train_bpe(texts, 500, tmp_path, digits="single")
    trained = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert not [token for token in trained.get_vocab() if sum(c.isdigit() for c in token) > 1]
    assert trained.encode("Room 1234.").tokens[-5:-1] == list("1234")
    with pytest.raises(UserError, match="digits 'double' is not known; take one of v3, single"):
        train_bpe(texts, 500, tmp_path, digits="double")  # type: ignore[arg-type]


def test_splits_are_those_of_the_real_tokenizer(v3_folder: Path) -> None:
    real = Tokenizer.from_file(str(v3_folder / "tokenizer.json")).pre_tokenizer
    texts = [
        "Hi 2024-05-06, 你好，世界 and カナ漢字!",
        "if (x==1) {\n\treturn 'a';\n}\n\n",
        "  naïve — ¿qué? $5.00 ½ cup\r\n end ",
    ]
    for text in texts:
        assert pre_tokenizer().pre_tokenize_str(text) == real.pre_tokenize_str(text)


def test_loads_in_transformers(folder: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(loaded) == SIZE
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2)
    assert loaded.model_max_length == 1024
    text = "<｜User｜>Once upon a time, 1234 cats.\n\nThe end.<｜Assistant｜>"
    assert loaded(text).input_ids == tokenizer.encode(text).ids  # no BOS is put in front
    assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True) == text


def test_training_is_deterministic(tmp_path: Path) -> None:
    texts = [story(random.Random(k)).text for k in range(40)]
    for name in ("one", "two"):
        train_bpe(iter(texts), 500, tmp_path / name)
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()


def test_impossible_sizes_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"too small: .* need {SMALLEST}"):
        train_bpe(["text"], SMALLEST - 1, tmp_path / "out")
    with pytest.raises(UserError, match="give more text or a smaller vocab_size"):
        train_bpe(["one two"], 5000, tmp_path / "out")
    assert not (tmp_path / "out").exists()
