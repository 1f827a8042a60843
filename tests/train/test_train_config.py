"""Recipes: strict, every mistake names its key, the keys are frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.commands.flags import parse_flags
from fathom.config import ModelConfig
from fathom.runtime import UserError
from fathom.train.config import TrainConfig, comparable, differences

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))

# A change here breaks recipes and runs that people have: it needs a line in the CHANGELOG.
FROZEN = """
preset model
data.train data.heldout data.tokenizer data.batch_rows data.micro_rows data.sequence_length data.long_length
data.long_fraction data.weights data.template data.text data.text_share data.fim_rate data.split_rate
data.generated_share data.generated data.max_epochs data.workers
data.ramp_from_rows data.ramp_tokens data.ramp_rows_step
optim.kind optim.peak_lr optim.final_lr optim.warmup_steps optim.decay_fraction optim.decay_start optim.beta1
optim.beta2 optim.eps optim.weight_decay optim.clip_norm optim.tail optim.moments optim.ema_decay optim.momentum
optim.newton_schulz optim.qk_clip
balance.method balance.gamma balance.gamma_stop_fraction balance.alpha balance.aux_alpha balance.mtp_lambda
balance.mtp_lambda_late balance.mtp_late_fraction
precision.gemm precision.scale precision.gradients precision.recompute
parallel.data parallel.expert parallel.pipeline parallel.schedule parallel.sharding parallel.dispatch
parallel.timeout_s
run.out run.steps run.seed run.checkpoint_every run.keep_checkpoints run.eval_every run.eval_rows run.log_every
run.init_from run.train run.spike_factor run.tensorboard
extend.factor extend.phases extend.long_share
lora.rank lora.alpha lora.targets
distill.teacher distill.top_k distill.direction distill.temperature distill.text_weight distill.positions distill.cache
"""
KEYS = FROZEN.split()


def flags(*argv: str) -> TrainConfig:
    return parse_flags(TrainConfig, "fathom train", argv, default=TrainConfig())


def test_the_keys_are_frozen() -> None:
    tables = TrainConfig().to_dict()
    keys = [
        f"{name}.{key}" if key else name
        for name, table in tables.items()
        for key in (table if isinstance(table, dict) and name != "model" else [""])
    ]
    assert keys == KEYS


def test_defaults_are_the_reports() -> None:
    c = TrainConfig()
    o, b = c.optim, c.balance
    assert (o.beta1, o.beta2, o.weight_decay, o.clip_norm, o.peak_lr, o.final_lr) == (
        0.9,
        0.95,
        0.1,
        1.0,
        2.2e-4,
        2.2e-5,
    )
    assert (b.gamma, b.alpha, b.mtp_lambda, b.mtp_lambda_late) == (0.001, 0.0001, 0.3, 0.1)
    assert b.gamma_stop_fraction == pytest.approx(14.3 / 14.8, abs=1e-3)
    assert b.mtp_late_fraction == pytest.approx(10 / 14.8, abs=1e-3)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_load(path: Path) -> None:
    config = TrainConfig.from_toml(path)
    model = config.model_config()
    assert model.quantization is None and config.run.out and config.data.train and config.data.tokenizer
    assert config.data.sequence_length <= model.max_position_embeddings
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_there_are_recipes() -> None:
    assert {"minnow-pretrain", "minnow-sft"} <= {p.stem for p in RECIPES}


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("speed = 1", ["speed", "preset"]),
        ("[optim]\npeak = 1.0", ["optim.peak ", "peak_lr"]),
        ("[optim]\npeak_lr = 'fast'", ["optim.peak_lr", "'fast'", "float"]),
        ("[optim]\nwarmup_steps = 1.5", ["optim.warmup_steps", "int"]),
        ("[run]\nsteps = true", ["run.steps", "int"]),
        ("[run]\nout = 5", ["run.out", "str"]),
        ("data = 5", ["data", "table"]),
        ("model = 'big'", ["model", "table"]),
        ("preset = 7", ["preset", "str"]),
        ("[run]\nsteps = 0", ["run.steps", "at least 1"]),
        ("[run]\nseed = -1", ["run.seed", "at least 0"]),
        ("[run]\nprecision = 'fp8'", ["run.precision", "not a known key"]),
        ("[run]\nspike_factor = -1.0", ["run.spike_factor"]),
        ("[run]\ntensorboard = 1", ["run.tensorboard", "bool"]),
        ("[precision]\ngemm = 'fp16'", ["precision.gemm", "'fp16'", "bf16"]),
        ("[precision]\nscale = 'ue8m0'", ["precision.scale", "precision.gemm is 'auto'"]),
        ("[precision]\ngemm = 'fp8'\nscale = 'e8'", ["precision.scale", "ue8m0"]),
        ("[precision]\ngradients = 'block'", ["precision.gradients", "FP8"]),
        ("[precision]\ngemm = 'fp8'\ngradients = 'row'", ["precision.gradients", "tile, block"]),
        ("[precision]\nrecompute = 'all'", ["precision.recompute", "report"]),
        ("[precision]\nrecompute = true", ["precision.recompute", "str"]),
        ("[parallel]\nexpert = 0", ["parallel.expert", "at least 1"]),
        ("[parallel]\ndata = 4\nexpert = 3", ["parallel.expert 3", "parallel.data 4"]),
        ("[parallel]\npipeline = -1", ["parallel.pipeline"]),
        ("[parallel]\nschedule = '2f2b'", ["parallel.schedule", "dualpipev"]),
        ("[parallel]\nsharding = 'zero3'", ["parallel.sharding", "fsdp2"]),
        ("[parallel]\ndispatch = 'int8'", ["parallel.dispatch", "fp8"]),
        ("[parallel]\ntimeout_s = 0", ["parallel.timeout_s"]),
        ("[optim]\nmoments = 'fp16'", ["optim.moments", "bf16"]),
        ("[optim]\nema_decay = 1", ["optim.ema_decay", "below 1"]),
        ("[data]\ntext = 'x.jsonl'\ntext_share = 1", ["data.text_share", "below 1"]),
        ("[data]\ntext_share = 0.5", ["data.text", "data.text_share", "belong together"]),
        ("[optim]\nkind = 'sgd'", ["optim.kind", "'sgd'", "muon"]),
        ("[optim]\nmomentum = 0.9", ["optim.momentum", "no effect", "adamw"]),
        ("[optim]\nkind = 'muon'\nmomentum = 1.0", ["optim.momentum", "below 1"]),
        ("[optim]\nnewton_schulz = 'bf16'", ["optim.newton_schulz", "no effect"]),
        ("[optim]\nkind = 'muon'\nnewton_schulz = 'fp8'", ["optim.newton_schulz", "bf16"]),
        ("[optim]\nqk_clip = -1", ["optim.qk_clip"]),
        ("[optim]\ndecay_start = 1000", ["optim.decay_start 1000", "run.steps"]),
        ("[optim]\ndecay_start = 960\ntail = [[0.05, 1e-5]]", ["optim.decay_start 960", "step 950"]),
        ("[optim]\ntail = [[0.5]]", ["optim.tail", "fraction of the run"]),
        ("[optim]\ntail = [[0.9, 1e-5]]", ["optim.tail", "decay_fraction"]),
        ("[optim]\ntail = 'flat'", ["optim.tail", "list"]),
        ("[optim]\ntail = [0.5, 1e-5]", ["optim.tail has 0.5", "fraction of the run"]),
        ("[data]\nramp_rows_step = 4", ["data.ramp_rows_step", "data.ramp_tokens"]),
        ("[data]\nramp_rows_step = -1", ["data.ramp_rows_step is -1"]),
        ("[data]\nlong_fraction = 0.2", ["data.long_fraction", "data.long_length"]),
        ("[balance]\nmethod = 'loss'", ["balance.method", "aux"]),
        ("[balance]\naux_alpha = -1", ["balance.aux_alpha"]),
        ("[data]\nfim_rate = 1.5", ["data.fim_rate", "between 0 and 1"]),
        ("[data]\nsplit_rate = -0.1", ["data.split_rate"]),
        ("[data]\nworkers = -1", ["data.workers"]),
        ("[data]\nramp_from_rows = 16", ["data.ramp_from_rows", "data.ramp_tokens"]),
        ("[data]\nramp_tokens = 1000", ["data.ramp_from_rows", "data.ramp_tokens"]),
        ("[data]\nramp_tokens = 9\nramp_from_rows = 32", ["data.ramp_from_rows 32", "data.batch_rows 16"]),
        ("[data]\nmicro_rows = 4\nramp_tokens = 9\nramp_from_rows = 6", ["data.ramp_from_rows 6", "data.micro_rows 4"]),
        (
            "[data]\nramp_tokens = 9\nramp_from_rows = 16\nlong_length = 1024",
            ["data.ramp_from_rows", "data.long_length"],
        ),
        ("[run]\nkeep_checkpoints = 0", ["run.keep_checkpoints"]),
        ("[run]\neval_rows = 0", ["run.eval_rows"]),
        ("[optim]\npeak_lr = -1e-3", ["optim.peak_lr"]),
        ("[optim]\npeak_lr = nan", ["optim.peak_lr"]),
        ("[optim]\nclip_norm = -1.0", ["optim.clip_norm"]),
        ("[optim]\nweight_decay = inf", ["optim.weight_decay"]),
        ("[optim]\nbeta2 = 1.0", ["optim.beta2", "below 1"]),
        ("[optim]\ndecay_fraction = 2.0", ["optim.decay_fraction", "between 0 and 1"]),
        ("[balance]\ngamma = -0.001", ["balance.gamma"]),
        ("[balance]\nmtp_late_fraction = 1.5", ["balance.mtp_late_fraction"]),
        ("[data]\nbatch_rows = 8\nmicro_rows = 3", ["data.batch_rows 8", "data.micro_rows 3"]),
        ("[data]\nsequence_length = 2", ["data.sequence_length"]),
        ("[data]\nlong_length = -1", ["data.long_length"]),
        ("[data]\nlong_fraction = 1.1", ["data.long_fraction"]),
        ("[data.weights]\nbooks = 'all'", ["data.weights.books", "number"]),
        ("[data.weights]\nbooks = -1", ["data.weights.books"]),
        ("[data]\nweights = [1]", ["data.weights", "table"]),
        ("speed =", ["not valid TOML"]),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, toml: str, words: list[str]) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(toml)
    with pytest.raises(UserError) as error:
        TrainConfig.from_toml(path)
    assert "\n" not in str(error.value)
    for word in [str(path), *words]:
        assert word in str(error.value), str(error.value)


def test_a_whole_number_is_a_float_too(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[optim]\npeak_lr = 1\n[data.weights]\na = 2")
    config = TrainConfig.from_toml(path)
    assert isinstance(config.optim.peak_lr, float) and config.data.weights == {"a": 2}


# ---- the model of a recipe


def test_the_model_is_the_preset_with_changes() -> None:
    plain = ModelConfig.preset("minnow").replace(quantization=None)
    assert TrainConfig().model_config() == plain
    changes = {"num_attention_heads": 2, "initializer_range": 0.02, "q_lora_rank": 64}
    assert TrainConfig(model=changes).model_config() == plain.replace(**changes)
    assert TrainConfig(model={"eos_token_id": [1, 3]}).model_config().eos_token_id == (1, 3)
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    scaling = TrainConfig(model={"rope_scaling": yarn}).model_config().rope_scaling
    assert scaling is not None and scaling.factor == 4.0


@pytest.mark.parametrize("name", ["minnow", "v2-lite-16b", "v2-236b", "v3-671b", "v3.1-671b"])
def test_every_preset_can_be_trained(name: str) -> None:
    assert TrainConfig(preset=name).model_config() == ModelConfig.preset(name).replace(quantization=None)


@pytest.mark.parametrize(
    ("model", "words"),
    [({"hidden": 5}, "hidden"), ({"hidden_size": "x"}, "hidden_size"), ({"hidden_size": 0}, "hidden_size"),
     ({"n_group": 5}, "n_group"), ({"scoring_func": "relu"}, "scoring_func"), ({"eos_token_id": 9000}, "eos_token_id")],
)  # fmt: skip
def test_wrong_models(model: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TrainConfig(model=model).model_config()


def test_an_unknown_preset() -> None:
    with pytest.raises(UserError, match="'whale'"):
        TrainConfig(preset="whale").model_config()


# ---- resuming


def test_only_what_changes_no_step_may_change() -> None:
    """Each key of a recipe either counts when a run is resumed or is known not to change a step."""
    plain = TrainConfig().to_dict()
    kept = set()
    for table, values in plain.items():
        for key in values if table not in ("preset", "model") else []:
            changed = {**plain, table: {**values, key: "another"}}
            if differences(comparable(plain), comparable(changed)):
                kept.add(f"{table}.{key}")
    free = {k for k in KEYS if "." in k and k not in kept}
    assert free == {
        "data.train", "data.heldout", "data.text", "data.tokenizer", "data.workers", "data.micro_rows",
        "data.max_epochs", "precision.recompute", "run.out",
        "run.checkpoint_every", "run.keep_checkpoints", "run.eval_every", "run.eval_rows", "run.log_every",
        "run.tensorboard", *(k for k in KEYS if k.startswith("parallel.")),
    }  # fmt: skip


def test_an_auxiliary_loss_is_one_of_micro_batches() -> None:
    a, b = (TrainConfig.from_dict({"data": {"micro_rows": n}, "balance": {"method": "aux"}}).to_dict() for n in (4, 8))
    assert differences(comparable(a), comparable(b)) == ["data.micro_rows"]


# ---- command line


def test_the_command_line_overrides() -> None:
    config = flags("--run.steps", "7", "--optim.peak-lr", "0.5", "--data.train", "x.jsonl", "--preset", "v2-lite-16b")
    assert (config.run.steps, config.optim.peak_lr, config.data.train) == (7, 0.5, "x.jsonl")
    assert config.preset == "v2-lite-16b" and config.optim.beta1 == TrainConfig().optim.beta1
    assert flags("--run.keep_checkpoints", "5").run.keep_checkpoints == 5
    config = flags("--precision.gemm", "fp8", "--parallel.expert", "2", "--run.tensorboard")
    assert (config.precision.gemm, config.parallel.expert, config.run.tensorboard) == ("fp8", 2, True)


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["--run.step", "7"], "--run.step"), (["--run.steps", "many"], "many"), (["--run.steps", "0"], "run.steps is 0"),
     (["--optim.beta1", "2"], "optim.beta1 is 2"), (["--precision.gemm", "fp4"], "precision.gemm"),
     (["--run.precision", "fp8"], "--run.precision"), (["--parallel.schedule", "none"], "parallel.schedule")],
)  # fmt: skip
def test_wrong_flags_are_one_line(argv: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        flags(*argv)
    assert words in str(error.value) and "\n" not in str(error.value)
