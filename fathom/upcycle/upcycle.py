"""`upcycle`: a Llama-type checkpoint becomes a DeepSeek-V3 checkpoint, without training.

    plan      all dimensions, from the source's config and the options                        options.py
    rows      a text as token ids: some to fit to, some held out                              calibrate.py
    layers    the original runs over the rows; each layer is converted when it passes         layer.py, from
                  keys of several heads into one rotated key                                  attention.py
                  values through the normed latent                                            latent.py
                  neurons into experts                                                        feed_forward.py, sparse.py
    MTP       a copy of the last block                                                        mtp.py
    write     as it goes, into a folder that appears whole                                    write.py
    compare   the result, read back, with the original on the held-out rows                   measure.py

Memory holds one layer's weights and the hidden states of the rows, whatever the size of the model.
Close in aim: TransMLA (arXiv 2502.07864), MHA2MLA (2502.14837), sparse upcycling (2212.05055), CMoE (2502.04416).
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from fathom.checkpoint.writer import config_for
from fathom.runtime import write_text
from fathom.text.tokenizer import Tokenizer
from fathom.upcycle.calibrate import BUNDLED, ROW, Rows, Walk, read_rows
from fathom.upcycle.latent import One
from fathom.upcycle.layer import attention_tensors, feed_forward_tensors
from fathom.upcycle.measure import Comparison, compare, result_head, result_hidden
from fathom.upcycle.mtp import mtp_tensors
from fathom.upcycle.notice import notice
from fathom.upcycle.options import Options, Plan, make_plan
from fathom.upcycle.report import Report
from fathom.upcycle.source import Source
from fathom.upcycle.sparse import Quality
from fathom.upcycle.write import whole_folder, write_weights

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
HELD_OUT_TOKENS = 4096
FIT_TOKENS = {"mix": 2048, "fit": 8192}  # for principal components; for regressions and clusters


@torch.no_grad()
def upcycle(source: Source, destination: Path, options: Options) -> Report:
    """Convert `source` into the new folder `destination`."""
    began = time.monotonic()
    plan = make_plan(source.config, options)
    with whole_folder(destination) as part:
        source.write_side_files(part)
        rows = _rows(source, part, plan, options)
        layers = _Layers(source, plan, options, rows)
        write_weights(config_for(plan.config, options.to, None), layers.make, part, options.to)
        write_text(part / "NOTICE", notice(source, options))
        comparison = _compare(source, layers, rows, part) if options.verify else None
    return Report.of(plan, options, layers.ones, layers.qualities, comparison, time.monotonic() - began)


def _rows(source: Source, part: Path, plan: Plan, options: Options) -> Rows:
    fitted = plan.values == "constant" or source.config.qkv_bias or options.ffn == "sparse"
    context = source.config.max_position_embeddings
    held_out_row = options.row or (ROW if options.slow_angle is None else context)
    return read_rows(
        options.calibrate or BUNDLED,
        Tokenizer.from_pretrained(part),
        FIT_TOKENS["fit" if fitted else "mix"],
        (options.held_out or HELD_OUT_TOKENS) if options.verify else 0,
        min(ROW, context),
        min(held_out_row, context) if options.verify else 1,
    )


class _Layers:
    """Makes the tensors of each layer in turn, while the original walks over the rows."""

    def __init__(self, source: Source, plan: Plan, options: Options, rows: Rows) -> None:
        self.source, self.plan, self.options = source, plan, options
        self.walk = Walk(source, rows)
        self.ones: list[One] = []
        self.qualities: list[Quality] = []
        self._last: dict[str, Tensor] = {}

    def make(self, key: int | str) -> dict[str, Tensor]:
        """Of a layer, by names inside it; of a tensor of the whole model, itself."""
        if isinstance(key, str):
            return {key: self.source.tensor(EMBEDDING if key == HEAD and self.plan.source.tie_word_embeddings else key)}
        if key == self.plan.source.num_hidden_layers:
            u = self.walk.fit
            return self._last | mtp_tensors(self.source.tensor("model.norm.weight"), u, self.walk.normed(u))
        layer, sample = self.walk.step(key)
        attention, one = attention_tensors(self.plan, self.options, layer, sample)
        moe = self.plan.config.is_moe_layer(key)
        seed = (self.options.seed or 0) * 10_007 + key
        feed_forward, quality = feed_forward_tensors(self.plan, self.options, layer, sample, moe, seed)
        self.ones += [one] if one else []
        self.qualities += [quality] if quality else []
        self._last = attention | feed_forward if key == self.plan.source.num_hidden_layers - 1 else {}
        return attention | feed_forward


def _compare(source: Source, layers: _Layers, rows: Rows, part: Path) -> Comparison:
    original = layers.walk.normed(layers.walk.held_out)
    head = source.tensor(EMBEDDING if source.config.tie_word_embeddings else HEAD)
    return compare(rows.held_out, original, head, result_hidden(part, rows.held_out), result_head(part))
