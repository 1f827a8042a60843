"""Conversions: round trips byte-equal, the demo layout against the official rules, refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_models import CONFIGS, EVEN_V3, TINY_V3, files, make_model, state
from conversions import SHARD, content, same, saved, weights
from safetensors.torch import load_file, save_file
from test_names import official_demo_name

from fathom.checkpoint import convert as convert_module
from fathom.checkpoint.convert import convert
from fathom.checkpoint.plan import Options
from fathom.checkpoint.reader import load_model
from fathom.checkpoint.writer import save_model
from fathom.config import ModelConfig
from fathom.runtime import UserError, locked


@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_and_fp8_round_trips_are_byte_equal(tmp_path: Path, name: str, scale_fmt: Any) -> None:
    a = saved(tmp_path / "bf16", CONFIGS[name])
    before = files(a)
    fp8, bf16 = Options("fp8", scale_fmt=scale_fmt), Options("bf16")
    convert(a, tmp_path / "f1", fp8, verify=True)
    convert(tmp_path / "f1", tmp_path / "b1", bf16, verify=True)
    convert(tmp_path / "b1", tmp_path / "f2", fp8)
    convert(tmp_path / "f2", tmp_path / "b2", bf16)
    assert content(tmp_path / "f1") == content(tmp_path / "f2")
    assert content(tmp_path / "b1") == content(tmp_path / "b2")
    assert set(content(tmp_path / "b1")) == set(before), "same files, tokenizer included"
    assert files(a) == before, "the source is only read"
    save_model(make_model(CONFIGS[name]), tmp_path / "direct", dtype="fp8", scale_fmt=scale_fmt)
    direct, converted = weights(tmp_path / "direct"), weights(tmp_path / "f1")
    assert set(direct) == set(converted) and all(same(direct[k], converted[k]) for k in direct)


def test_config_changes_no_more_than_the_conversion_does(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    config = json.loads((a / "config.json").read_text()) | {"auto_map": {"AutoConfig": "x"}, "my_field": 1}
    (a / "config.json").write_text(json.dumps(config))
    convert(a, tmp_path / "f", Options("fp8", scale_fmt="ue8m0"))
    new = json.loads((tmp_path / "f" / "config.json").read_text())
    quantization = new.pop("quantization_config")
    assert new == config and quantization["scale_fmt"] == "ue8m0" and quantization["quant_method"] == "fp8"
    convert(tmp_path / "f", tmp_path / "b", Options("bf16"))
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == config


def test_scales_follow_weights_from_other_files(tmp_path: Path) -> None:
    """Published FP8 checkpoints may hold a scale in another shard than its weight."""
    model = make_model(TINY_V3)
    save_model(model, tmp_path / "one", dtype="fp8")
    everything = load_file(tmp_path / "one" / "model.safetensors")
    split = shutil.copytree(tmp_path / "one", tmp_path / "split")
    (split / "model.safetensors").unlink()
    parts = [{k: v for k, v in everything.items() if k.endswith("_scale_inv") == bool(n)} for n in range(2)]
    weight_map = {}
    for n, part in enumerate(parts, 1):
        save_file(part, split / f"model-0000{n}-of-00002.safetensors")
        weight_map |= dict.fromkeys(part, f"model-0000{n}-of-00002.safetensors")
    (split / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    convert(tmp_path / "one", tmp_path / "a", Options("bf16"))
    convert(split, tmp_path / "b", Options("bf16"))
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert set(a) == set(b) and all(same(a[k], b[k]) for k in a)


# ---- the demo layout -------------------------------------------------------------------------------------------------


def official_ranks(tensors: dict[str, torch.Tensor], config: ModelConfig, ranks: int) -> list[dict[str, torch.Tensor]]:
    """What the official converter makes, after its own rules (slices along an axis, experts in turn, no MTP)."""
    out: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    for name, tensor in tensors.items():
        if f"model.layers.{config.num_hidden_layers}" in name:
            continue
        demo, axis = official_demo_name(name)
        for rank in range(ranks):
            if ".experts." in demo:
                expert, local = int(demo.split(".")[-3]), config.n_routed_experts // ranks
                if rank * local <= expert < (rank + 1) * local:
                    out[rank][demo] = tensor
            elif axis is not None:
                side = tensor.shape[axis] // ranks
                out[rank][demo] = tensor.narrow(axis, rank * side, side).contiguous()
            else:
                out[rank][demo] = tensor
    return out


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_demo_ranks_are_the_official_ones(tmp_path: Path, ranks: int, dtype: str) -> None:
    a = saved(tmp_path / "a", EVEN_V3, dtype=dtype)
    result = convert(a, tmp_path / "d", Options("demo", model_parallel=ranks), verify=True)
    assert any("leaves MTP layers out" in note for note in result.notes)
    for rank, wanted in enumerate(official_ranks(weights(a), EVEN_V3, ranks)):
        held = load_file(tmp_path / "d" / f"model{rank}-mp{ranks}.safetensors")
        assert set(held) == set(wanted) and all(same(held[k], wanted[k]) for k in held)
    assert (tmp_path / "d" / "tokenizer.json").exists()
    args = json.loads((tmp_path / "d" / "demo_config.json").read_text())
    assert args["dim"] == EVEN_V3.hidden_size and args["dtype"] == dtype
    load_model(tmp_path / "d")


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_hf_to_demo_to_hf_is_exact_mtp_included(tmp_path: Path, ranks: int, dtype: str) -> None:
    a = saved(tmp_path / "a", EVEN_V3, dtype=dtype)
    convert(a, tmp_path / "d", Options("demo", model_parallel=ranks, mtp=True), verify=True)
    convert(tmp_path / "d", tmp_path / "h", Options("hf", max_shard_bytes=SHARD), verify=True)
    assert content(tmp_path / "h") == content(a) | {k: content(tmp_path / "h")[k] for k in ("config.json",)}
    assert json.loads((tmp_path / "h" / "config.json").read_text()) == json.loads((a / "config.json").read_text())


def test_demo_without_mtp_comes_back_without_mtp(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    convert(a, tmp_path / "d", Options("demo"))
    convert(tmp_path / "d", tmp_path / "h", Options("hf"))
    model = load_model(tmp_path / "h")
    assert model.config.num_nextn_predict_layers == 0
    assert torch.equal(model.lm_head.weight, load_model(a).lm_head.weight)


def test_demo_folder_as_the_official_tools_leave_it(tmp_path: Path) -> None:
    """No config.json there: it is asked for, and the demo's own kind will do."""
    a = saved(tmp_path / "a", EVEN_V3, dtype="fp8")
    convert(a, tmp_path / "d", Options("demo", model_parallel=2))
    (tmp_path / "d" / "config.json").unlink()
    with pytest.raises(UserError, match="name the config file with --config"):
        convert(tmp_path / "d", tmp_path / "h", Options("hf"))
    (tmp_path / "d" / "demo_config.json").rename(tmp_path / "args.json")
    convert(tmp_path / "d", tmp_path / "h", Options("hf"), config_file=tmp_path / "args.json")
    held, original = weights(tmp_path / "h"), weights(a)
    assert all(same(held[k], original[k]) for k in held)
    assert len(held) == len([k for k in original if not k.startswith("model.layers.3.")])


def test_demo_to_bf16_and_to_other_ranks(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", EVEN_V3, dtype="fp8")
    convert(a, tmp_path / "d2", Options("demo", model_parallel=2, mtp=True))
    convert(tmp_path / "d2", tmp_path / "d1", Options("demo", model_parallel=1, mtp=True))
    convert(a, tmp_path / "e1", Options("demo", model_parallel=1, mtp=True))
    assert content(tmp_path / "d1") == content(tmp_path / "e1")
    convert(tmp_path / "d2", tmp_path / "x", Options("bf16"))
    convert(a, tmp_path / "y", Options("bf16"))
    x, y = weights(tmp_path / "x"), weights(tmp_path / "y")
    assert set(x) == set(y) and all(same(x[k], y[k]) for k in x)


def test_a_missing_rank_and_ranks_that_disagree(tmp_path: Path) -> None:
    convert(saved(tmp_path / "a", EVEN_V3), tmp_path / "d", Options("demo", model_parallel=2))
    one = tmp_path / "d" / "model1-mp2.safetensors"
    broken = load_file(one)
    broken.pop("head.weight")
    broken["stray"] = torch.ones(1)
    save_file(broken, one)
    with pytest.raises(UserError, match=r"head\.weight is in 1 of 2 ranks"):
        load_model(tmp_path / "d")
    one.unlink()
    with pytest.raises(UserError, match=r"1 of 2 files are missing: model1-mp2\.safetensors"):
        load_model(tmp_path / "d")


def test_one_file_of_another_name_has_an_index(tmp_path: Path) -> None:
    a = tmp_path / "a"
    save_model(make_model(TINY_V3), a)
    (a / "model.safetensors").rename(a / "model-00001-of-000001.safetensors")
    names = load_file(a / "model-00001-of-000001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-000001.safetensors")}
    (a / "model.safetensors.index.json").write_text(json.dumps(index))
    convert(a, tmp_path / "b", Options("fp8"))
    assert set(json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())["weight_map"]) > set(names)
    load_model(tmp_path / "b")


def test_the_config_that_was_given_is_the_one_that_is_written(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    given = json.loads((a / "config.json").read_text()) | {"rope_theta": 12345.0}
    (tmp_path / "given.json").write_text(json.dumps(given))
    convert(a, tmp_path / "b", Options("bf16"), config_file=tmp_path / "given.json")
    assert ModelConfig.from_pretrained(tmp_path / "b").rope_theta == 12345.0
    demo = tmp_path / "demo"
    convert(saved(tmp_path / "even", EVEN_V3), demo, Options("demo"))
    (demo / "demo_config.json").rename(demo / "config.json")  # as people copy the official file
    for to in ("hf", "fp8"):
        convert(demo, tmp_path / to, Options(to))  # type: ignore[arg-type]
        written = json.loads((tmp_path / to / "config.json").read_text())
        assert written["model_type"] == "deepseek_v3" and "dim" not in written
        load_model(tmp_path / to)


@pytest.mark.parametrize("changes", [{"rms_norm_eps": 1e-5}, {"norm_topk_prob": False}, {"moe_layer_freq": 2}])
def test_what_the_demos_config_cannot_say_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    a = saved(tmp_path / "a", EVEN_V3.replace(**changes))
    with pytest.raises(UserError, match=f"cannot say .*{next(iter(changes))}"):
        convert(a, tmp_path / "b", Options("demo"))
    assert not (tmp_path / "b").exists()


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options("bf16", scale_fmt="ue8m0"), "only means something with --to fp8"),
        (Options("bf16", model_parallel=2), "only means something with --to demo"),
        (Options("hf", mtp=True), "only means something with --to demo"),
        (Options("bf16", max_shard_bytes=5), "only means something where files are cut anew"),
        (Options("demo", max_shard_bytes=5), "only means something where files are cut anew"),
        (Options("demo", model_parallel=0), "must be at least 1"),
        (Options("hf", max_shard_bytes=0), "must be at least 1"),
        (Options("demo", model_parallel=3), "does not divide 8 experts"),
        (Options("demo", model_parallel=8), "does not divide 4 attention heads"),
        (Options("demo", model_parallel=2), "does not divide the .* scale blocks of"),
        (Options("fp8"), "is FP8 with scale_fmt None already"),
    ],
)
def test_options_that_cannot_work(tmp_path: Path, options: Options, said: str) -> None:
    a = saved(tmp_path / "a", TINY_V3, dtype="fp8")
    with pytest.raises(UserError, match=said):
        convert(a, tmp_path / "b", options)
    assert not (tmp_path / "b").exists()


def test_destinations_that_cannot_be(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    for bad in (a, a / "inside", tmp_path, a / ".." / "a"):
        with pytest.raises(UserError, match="overlap"):
            convert(a, bad, Options("fp8"))
    (tmp_path / "link").symlink_to(a)
    with pytest.raises(UserError, match="overlap"):
        convert(a, tmp_path / "link", Options("fp8"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        convert(a, tmp_path / "file", Options("fp8"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        convert(a, tmp_path / "full", Options("fp8"))
    assert set(files(tmp_path / "full")) == {"thesis.txt"}


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    with locked(tmp_path / "b", "another conversion"), pytest.raises(UserError, match="another conversion is writing"):
        convert(a, tmp_path / "b", Options("fp8"))


def test_too_little_space_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = saved(tmp_path / "a", TINY_V3)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="are free"):
        convert(a, tmp_path / "b", Options("fp8"))
    assert not (tmp_path / "b").exists()


LIMITED = """
import resource, sys
sys.path.insert(0, {root!r})
from fathom.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(main(["convert", {source!r}, {destination!r}, "--to", "bf16"]))
"""


def test_a_disk_that_fills_in_the_middle_is_one_line_and_resumable(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", TINY_V3, dtype="fp8")
    sizes = sorted(p.stat().st_size for p in a.glob("*.safetensors"))
    root = str(Path(convert_module.__file__).parents[2])
    code = LIMITED.format(root=root, limit=sizes[-1], source=str(a), destination=str(tmp_path / "b"))
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert child.returncode == 2
    lines = child.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("fathom: error: cannot write") and "free some space" in lines[0]
    assert not list((tmp_path / "b").glob(".*.tmp"))
    convert(a, tmp_path / "b", Options("bf16"))
    convert(a, tmp_path / "c", Options("bf16"))
    assert files(tmp_path / "b") == files(tmp_path / "c")


def test_untie_writes_the_embedding_as_head(tmp_path: Path) -> None:
    config = EVEN_V3.replace(tie_word_embeddings=True)
    save_model(make_model(config), tmp_path / "tied")
    convert(tmp_path / "tied", tmp_path / "own", Options("bf16", untie=True), verify=True)
    tied, own = load_file(tmp_path / "tied/model.safetensors"), load_file(tmp_path / "own/model.safetensors")
    assert own.keys() - tied.keys() == {"lm_head.weight"}
    assert torch.equal(own["lm_head.weight"], tied["model.embed_tokens.weight"])
    before, after = load_model(tmp_path / "tied"), load_model(tmp_path / "own")
    assert not after.config.tie_word_embeddings and after.lm_head.weight is not after.embed_tokens.weight
    tokens = torch.arange(20)[None]
    assert torch.equal(before(tokens), after(tokens))
    with pytest.raises(UserError, match="--untie has no effect"):
        convert(tmp_path / "own", tmp_path / "again", Options("bf16", untie=True))
    with pytest.raises(UserError, match="--untie writes both"):
        convert(tmp_path / "tied", tmp_path / "demo", Options("demo", model_parallel=2))
    convert(tmp_path / "tied", tmp_path / "demo", Options("demo", model_parallel=2, mtp=True, untie=True))
    again = load_model(tmp_path / "demo")
    assert all(torch.equal(value, state(after)[name]) for name, value in state(again).items())


def test_a_template_of_its_own_also_goes_into_the_tokenizers_settings(tmp_path: Path) -> None:
    """The official converter copies `*token*` files alone."""
    a = saved(tmp_path / "a", TINY_V3)
    (a / "chat_template.jinja").write_text("{{ messages }}\n")
    (a / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    convert(a, tmp_path / "b", Options("fp8"))
    assert (tmp_path / "b/chat_template.jinja").read_text() == "{{ messages }}\n"
    settings = json.loads((tmp_path / "b/tokenizer_config.json").read_text())
    assert settings == {"bos_token": "<s>", "chat_template": "{{ messages }}\n"}
    (a / "tokenizer_config.json").write_text('{"chat_template": [{"name": "default", "template": "x"}]}')
    convert(a, tmp_path / "c", Options("fp8"))
    assert (tmp_path / "c/tokenizer_config.json").read_bytes() == (a / "tokenizer_config.json").read_bytes()


def test_one_file_with_an_index_keeps_one(tmp_path: Path) -> None:
    a = tmp_path / "a"
    save_model(make_model(TINY_V3), a)
    names = load_file(a / "model.safetensors")
    index = {"metadata": {"total_size": 0}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (a / "model.safetensors.index.json").write_text(json.dumps(index))
    convert(a, tmp_path / "b", Options("fp8"))
    written = json.loads((tmp_path / "b/model.safetensors.index.json").read_text())
    assert written["weight_map"] == dict.fromkeys(load_file(tmp_path / "b/model.safetensors"), "model.safetensors")
