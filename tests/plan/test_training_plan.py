"""The report's anchors, bubbles against the simulated schedules, and a page that fits 100 columns."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest

from fathom.config import ModelConfig
from fathom.model.cost import training_flops_per_token
from fathom.parallel.schedules import schedule
from fathom.parallel.timeline import Costs, simulate
from fathom.plan.job import Job
from fathom.plan.timing import DEVICES, bubble, device, report_share, this_machine
from fathom.plan.traffic import traffic
from fathom.plan.training import plan, show
from fathom.runtime import UserError

V3 = ModelConfig.preset("v3-671b")
H800 = DEVICES["h800"]
JOB = Job(
    V3, 14_800_000_000_000, 15360, gemm="fp8", recompute="report", moment_bytes=2, ema=True, pipeline=16, data=128,
    expert=64, schedule="dualpipev", dispatch="fp8",
)  # fmt: skip


def test_the_reports_anchors() -> None:
    """671,026,419,200 parameters; 2664K H800 hours, 180K per trillion tokens, 3.7 days of 2048 devices (facts 5)."""
    p = plan(JOB, H800)
    assert p["parameters"]["total"] == 671_026_419_200 and p["layout"]["devices"] == 2048
    assert p["time"]["device_hours"] == pytest.approx(2_664_000, rel=1e-9)
    trillion = plan(dataclasses.replace(JOB, tokens=10**12), H800)["time"]
    assert trillion["device_hours"] == pytest.approx(180_000, rel=1e-3)
    assert trillion["days"] == pytest.approx(3.7, abs=0.05)
    assert 86400 * p["time"]["tokens_per_second"] == pytest.approx(273.1e9, rel=1e-3)  # facts 5: tokens a day
    assert plan(JOB, H800, share=report_share() / 2)["time"]["device_hours"] == pytest.approx(2 * 2_664_000)


def test_the_share_that_the_reports_hours_imply() -> None:
    """Facts 5: 250 GFLOPs per token, 38.9 % causal and 43.7 % non-causal of 989 TFLOP/s; half a point of tolerance."""
    assert training_flops_per_token(V3, 4096, mtp=False) == pytest.approx(250e9, rel=0.005)
    shares = plan(JOB, H800)["report"]["implied_share_of_peak"]
    assert shares["main model"] == pytest.approx(0.389, abs=0.005)
    assert shares["main model, attention not halved"] == pytest.approx(0.437, abs=0.005)
    assert shares["with MTP"] > shares["main model"]
    assert "report" not in plan(dataclasses.replace(JOB, model=V3.replace(vocab_size=1280)), H800)


def test_nobody_computes_in_a_bubble() -> None:
    one = dataclasses.replace(JOB, batch_rows=128, schedule="1f1b")  # one micro-batch in a pipeline of 16
    p = plan(one, H800)
    assert p["time"]["share_of_peak"] == pytest.approx(1 - p["layout"]["bubble"]) and p["layout"]["bubble"] > 0.9
    twice = plan(dataclasses.replace(JOB, recompute="block"), H800)["time"]["share_of_peak"]
    assert twice == pytest.approx(0.75 * report_share())


def test_experts_on_a_part_of_a_node_make_it_a_node() -> None:
    c = V3.replace(n_routed_experts=160)
    sent = "all-to-all between nodes, two hops"
    spread = [traffic(Job(c, 1, 640, data=640, expert=e), 0, 8)[sent] for e in (8, 10, 16, 20)]
    assert spread[0] == 0 < spread[1] == spread[2] < spread[3]


def test_flops_of_a_small_model_by_hand() -> None:
    """One dense layer: 2 per matrix parameter and 2 H (N + R + V) per token of context, three times."""
    c = V3.replace(
        hidden_size=8, num_attention_heads=2, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=3, q_lora_rank=None,
        kv_lora_rank=5, intermediate_size=16, num_hidden_layers=1, vocab_size=32, n_routed_experts=0,
        num_nextn_predict_layers=0,
    )  # fmt: skip
    matrices = 8 * 2 * 6 + 8 * 7 + 5 * 2 * 7 + 2 * 3 * 8 + 3 * 8 * 16 + 8 * 32
    gains = 5 + 8 + 8 + 8  # norms count as parameters; a rounding error at real sizes
    assert training_flops_per_token(c, 99) == 3 * (2 * (matrices + gains) + 2 * 2 * (6 + 3) * 50)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb1p", "dualpipev"])
@pytest.mark.parametrize(("ranks", "micro"), [(2, 8), (4, 8), (4, 24), (8, 16)])
def test_bubbles_are_those_of_the_simulated_schedule(name: str, ranks: int, micro: int) -> None:
    job = Job(V3, 1, micro, pipeline=ranks, schedule=name)
    timeline = simulate(schedule(name, ranks, micro), Costs(1.0, 2.0, 1.0, 3.0))
    assert bubble(job) == pytest.approx(min(timeline.bubbles) / timeline.makespan, abs=0.01)
    assert bubble(dataclasses.replace(job, pipeline=1)) == 0


def test_the_dict_is_json_and_the_page_fits() -> None:
    for job, on in (
        (JOB, H800),
        (Job(ModelConfig.preset("minnow"), 10**6, 8, length=512), this_machine({"fp32": 2e11, "bf16": 1e11})),
    ):
        p = plan(job, on)
        assert json.loads(json.dumps(p))["tokens"] == job.tokens
        assert all(
            r["memory"]["total"] == pytest.approx(sum(v for k, v in r["memory"].items() if k != "total"))
            for r in p["ranks"]
        )
        page = io.StringIO()
        show(p, page)
        lines = page.getvalue().splitlines()
        assert max(map(len, lines)) <= 100
        assert "memory: activations" in page.getvalue() and "device hours" in page.getvalue()
    assert "2,664,000 device hours" in _page(plan(JOB, H800)) and "0-1" in _page(plan(JOB, H800))


def _page(p: dict[str, object]) -> str:
    page = io.StringIO()
    show(p, page)
    return page.getvalue()


def test_an_unknown_device() -> None:
    with pytest.raises(UserError, match=r"'h900'.*h800"):
        device("h900")


def test_without_bf16_the_share_is_of_fp32() -> None:
    small = Job(ModelConfig.preset("minnow"), 10**6, 8, length=512, gemm="fp32")
    on = this_machine({"fp32": 2e11, "bf16": 1e11})
    p = plan(small, on, share=0.5)
    assert p["device"]["peak"] == 2e11
    assert p["time"]["step_seconds"] == pytest.approx(p["flops"]["per_step"] / 1e11)
