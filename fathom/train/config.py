"""What a training run is: one frozen dataclass per concern. Defaults < recipe file (TOML) < command line; strict.

The resolved config is saved with the run; a run folder that was started with another one is refused.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fathom.config import ModelConfig
from fathom.runtime import UserError


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it is cut."""

    train: str = ""  # JSONL of documents, or of dialogues for SFT
    heldout: str = ""  # the same for evaluation; empty: no evaluation
    tokenizer: str = ""  # folder with tokenizer.json
    batch_rows: int = 16  # rows per optimizer step
    micro_rows: int = 16  # rows per forward pass (gradient accumulation in between)
    sequence_length: int = 512
    long_length: int = 0  # pretraining: rows of the last part of the run, same tokens per step; 0: no such part
    long_fraction: float = 0.1  # how much of the run that part is
    weights: dict[str, float] = field(default_factory=dict)  # source -> factor on its share of tokens
    template: str = "v3"  # chat format of SFT samples; own: that of the tokenizer's folder
    text: str = ""  # SFT: documents, as `train` of pretraining, mixed in so that less of them is forgotten
    text_share: float = 0.0  # SFT: how many of the rows are such text
    fim_rate: float = 0.0  # share of documents in fill-in-the-middle form (report 4.1: 0.1); pretraining
    split_rate: float = 0.0  # share of tokens joining punctuation and line breaks that are split; pretraining
    generated_share: float = 0.0  # of the rows: text made as it is needed, never the same (text/generated.py)
    generated: dict[str, float] = field(default_factory=dict)  # maker -> factor on its share (text/synthetic/makers.py)
    max_epochs: float = 0.0  # a run that would read a source more often is refused; 0: no limit; pretraining
    workers: int = 0  # threads that make the next batches ahead
    ramp_from_rows: int = 0  # rows of the first steps, growing to batch_rows ...
    ramp_tokens: int = 0  # ... over this many tokens; 0: no ramp
    ramp_rows_step: int = 0  # by so many rows at a time; 0: the greatest common divisor of both


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule: linear warm-up, constant, cosine to `final_lr` (report section 4.2)."""

    kind: str = "adamw"  # adamw | muon (hidden matrices; AdamW for all else: parallel/matrices.py)
    peak_lr: float = 2.2e-4
    final_lr: float = 2.2e-5
    warmup_steps: int = 100
    decay_fraction: float = 0.3  # last part of the run in which the learning rate falls
    decay_start: int = 0  # step from which it falls, in place of decay_fraction; 0: by decay_fraction
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # matrices only
    clip_norm: float = 1.0  # 0: gradients are not clipped
    tail: list[list[float]] = field(default_factory=list)  # after the cosine: [fraction of the run, learning rate], ...
    moments: str = "fp32"  # fp32 | bf16 (the report's)
    ema_decay: float = 0.0  # moving average of the weights; 0: none
    momentum: float = 0.95  # Muon's
    newton_schulz: str = "auto"  # Muon's products: fp32 | bf16; auto: bf16 where small products are faster in it
    qk_clip: float = 0.0  # largest attention logit of a head before its weights shrink (qk_clip.py); 0: no limit


@dataclass(frozen=True)
class BalanceConfig:
    """Auxiliary-loss-free balancing, the sequence-wise loss beside it, and MTP (report sections 2.1.2, 2.2, 4.2)."""

    method: str = "bias"  # bias | aux (an auxiliary loss over each micro-batch instead) | none
    gamma: float = 0.001  # step of the router bias
    gamma_stop_fraction: float = 0.966  # 14.3T of 14.8T tokens; zero from there on
    alpha: float = 0.0001  # sequence-wise balance loss
    aux_alpha: float = 0.003  # method aux: DeepSeek-V2's strength of its expert-level loss
    mtp_lambda: float = 0.3
    mtp_lambda_late: float = 0.1
    mtp_late_fraction: float = 0.676  # 10T of 14.8T tokens


@dataclass(frozen=True)
class PrecisionConfig:
    """What the products are computed in, and what is computed twice (report sections 3.2.3, 3.3)."""

    gemm: str = "auto"  # fp32 | bf16 | fp8; auto: bf16 where matmuls are faster in it, else fp32
    scale: str = "fp32"  # FP8 scales: fp32 | ue8m0 (powers of two)
    gradients: str = "tile"  # tile | block: the ablation of appendix B.2
    recompute: str = "none"  # none | report (norms, up-projections, SwiGLU) | block


@dataclass(frozen=True)
class ParallelConfig:
    """Who holds what (report section 3.2). Ranks = pipeline x data; experts are spread inside the data ranks."""

    data: int = 0  # 0: all processes that the pipeline leaves
    expert: int = 1
    pipeline: int = 1
    schedule: str = "1f1b"  # gpipe | 1f1b | zb1p | dualpipev
    sharding: str = "zero1"  # zero1 | fsdp2
    dispatch: str = "auto"  # what travels to experts: fp32 | bf16 | fp8; auto: as precision.gemm
    timeout_s: float = 300.0  # a rank without progress for so long is named, and the run ends


@dataclass(frozen=True)
class RunConfig:
    """The run itself."""

    out: str = ""  # run folder: config, log, checkpoints, export
    steps: int = 1000
    seed: int = 0
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    eval_every: int = 200
    eval_rows: int = 16  # rows per source; SFT: rows
    log_every: int = 10
    init_from: str = ""  # checkpoint folder to start from; empty: fresh weights
    train: list[str] = field(default_factory=lambda: ["all"])  # parts that train, the rest is frozen: selection.py
    spike_factor: float = 0.0  # a step this many deviations off is skipped; 0: never
    tensorboard: bool = False


@dataclass(frozen=True)
class ExtendConfig:
    """Long-context extension with YaRN (report section 4.3); `fathom train extend` alone reads it."""

    factor: float = 0.0  # the new context is this many times the trained one; 0: the recipe is no extension
    phases: list[list[int]] = field(default_factory=list)  # [row length, rows per step, steps], one after the other
    long_share: float = 0.0  # share of rows that are made-up long documents which ask what they said before


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of low rank beside frozen matrices (lora.py); they train where run.train has "lora"."""

    rank: int = 0  # 0: none
    alpha: float = 16.0  # their product counts alpha / rank times
    targets: list[str] = field(default_factory=lambda: ["attention", "ffn"])  # and "experts": the routed ones


@dataclass(frozen=True)
class DistillConfig:
    """What a teacher's distributions are taught with; `fathom train distill` alone reads it (distill.py)."""

    teacher: str = ""  # folder or name, "llama:PATH", "transformers:FOLDER"; empty: the frozen main model itself
    top_k: int = 64  # most likely tokens that are kept of a teacher's distribution; the others are one lump
    direction: str = "forward"  # forward: KL(teacher || student) | reverse: KL(student || teacher)
    temperature: float = 1.0
    text_weight: float = 0.0  # share of the text's own next-token loss
    positions: str = "all"  # of dialogues: all | answers
    cache: bool = True  # the teacher speaks once, before the run, and is kept in run.out; else it runs beside


@dataclass(frozen=True)
class TrainConfig:
    """A whole recipe."""

    preset: str = "minnow"
    model: dict[str, Any] = field(default_factory=dict)  # fields of ModelConfig that differ from the preset
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    run: RunConfig = field(default_factory=RunConfig)
    extend: ExtendConfig = field(default_factory=ExtendConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        from fathom.train.limits import check  # its own file: a list of limits

        check(self)

    def model_config(self) -> ModelConfig:
        """Preset with this recipe's changes; never quantised while training."""
        fields = {f.name for f in dataclasses.fields(ModelConfig)}
        unknown = set(self.model) - fields
        if unknown:
            raise UserError(f"model has unknown fields {sorted(unknown)}; ModelConfig has {sorted(fields)}")
        plain = ModelConfig.preset(self.preset).replace(quantization=None).to_dict()
        del plain["num_key_value_heads"]  # follows num_attention_heads, which the recipe may change
        return ModelConfig.from_dict(plain | self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, as saved with the run."""
        return dataclasses.asdict(self)

    @classmethod
    def from_toml(cls, path: Path | str) -> TrainConfig:
        """Read a recipe; unknown keys and wrong types are errors that name the key."""
        try:
            with open(path, "rb") as file:
                data = tomllib.load(file)
        except OSError as error:
            raise UserError(f"cannot read recipe {path}: {error.strerror}") from None
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"recipe {path} is not valid TOML: {error}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"recipe {path} is not UTF-8 text: {error}") from None
        try:
            return cls.from_dict(data)
        except UserError as error:
            raise UserError(f"recipe {path}: {error}") from None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainConfig:
        """From nested dicts, strictly."""
        out: TrainConfig = _build(cls, data, "")
        return out


def _build(cls: type[Any], data: dict[str, Any], prefix: str) -> Any:
    if not isinstance(data, dict):
        raise UserError(f"a {type(data).__name__} is no table of keys")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in fields:
            raise UserError(f"{prefix}{key} is not a known key; known here: {', '.join(fields)}")
        default = _default(fields[key])
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            values[key] = _build(type(default), value, f"{prefix}{key}.")
            continue
        wanted: tuple[type, ...] = (int, float) if isinstance(default, float) else (type(default),)
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            kind = "table" if isinstance(default, dict) or dataclasses.is_dataclass(default) else type(default).__name__
            raise UserError(f"{prefix}{key} is {value!r}, it must be a {kind}")
        values[key] = float(data[key]) if isinstance(default, float) else value
    return cls(**values)


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


# What says how a run ends. It may change when a run goes on, as long as no step that was taken would have been another
# one (schedules.contradiction): so a run of unknown length gets its decay once its end is known.
ENDING = (
    "run.steps", "optim.decay_start", "optim.decay_fraction", "optim.final_lr", "optim.tail",
    "balance.gamma_stop_fraction", "balance.mtp_late_fraction", "data.long_fraction",
)  # fmt: skip


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a run's config that must not change between start and resume.

    The layout may, since state is resharded, and with it the rows of a micro-batch unless they make the objective.
    """
    free = {"checkpoint_every", "keep_checkpoints", "eval_every", "eval_rows", "log_every", "out", "tensorboard"}
    data_free = {"train", "heldout", "text", "tokenizer", "workers", "max_epochs"}
    if config["balance"]["method"] != "aux":
        data_free.add("micro_rows")
    run = {k: v for k, v in config["run"].items() if k not in free}
    data = {k: v for k, v in config["data"].items() if k not in data_free}
    precision = {k: v for k, v in config["precision"].items() if k != "recompute"}
    return config | {"run": run, "data": data, "precision": precision, "parallel": {}}


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys under which two nested dicts differ."""
    out = []
    for key in sorted(a.keys() | b.keys()):
        one, other = a.get(key), b.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            out += differences(one, other, f"{prefix}{key}.")
        elif one != other:
            out.append(f"{prefix}{key}")
    return out
