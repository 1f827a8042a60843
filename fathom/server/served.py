"""What the routes of one app share."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from fathom import __version__
from fathom.engine.defaults import sampling_dict
from fathom.engine.llm import LLM
from fathom.engine.service import EngineService
from fathom.server.access import RequestRecord
from fathom.server.errors import ApiError
from fathom.server.metrics import ServerMetrics
from fathom.server.prepare import TemplateFacts
from fathom.server.security import ServerState
from fathom.server.settings import Settings
from fathom.server.tokens import TokenTexts
from fathom.server.usage import UsageCount

NO_TEMPLATE = TemplateFacts(knows_thinking=False, always_thinks=False, uses_names=False, format="other")


@dataclass(frozen=True)
class Served:
    """One engine behind one app; in `app.state.served`."""

    service: EngineService
    settings: Settings
    state: ServerState
    metrics: ServerMetrics
    texts: TokenTexts
    facts: TemplateFacts
    created: int
    """When the server started, seconds since 1970."""

    @classmethod
    def of(cls, service: EngineService, settings: Settings) -> Served:
        llm = service.llm
        facts = NO_TEMPLATE if llm.template is None else TemplateFacts.of(llm.template)
        return cls(
            service, settings, ServerState(), ServerMetrics(service), TokenTexts(llm.tokenizer), facts, int(time.time())
        )

    @property
    def llm(self) -> LLM:
        return self.service.llm

    @property
    def fingerprint(self) -> str:
        """What made an answer: the version of the code."""
        return f"fathom-{__version__}"

    def check_model(self, name: str | None) -> None:
        """404 for a model that is not here."""
        if name is not None and name != self.settings.model_id:
            message = f"the model {name[:100]!r} is not here; this server has {self.settings.model_id!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def model_card(self) -> dict[str, Any]:
        """The entry of /v1/models."""
        config = self.llm.model.config
        return {
            "id": self.settings.model_id,
            "object": "model",
            "created": self.created,
            "owned_by": "fathom",
            "fathom": {
                "max_model_len": self.llm.max_model_len,
                "thinking": self.facts.knows_thinking and not self.facts.always_thinks,
                "format": self.facts.format,
                "moe_layers": sum(config.is_moe_layer(i) for i in range(config.num_hidden_layers)),
                "experts": config.n_routed_experts,
                "experts_per_token": config.num_experts_per_tok,
                "mtp_depth": config.num_nextn_predict_layers,
                "dtype": self.llm.precision.partition(" ")[0],
                "default": sampling_dict(self.llm.sampling),
                "starters": list(self.settings.starters),
            },
        }


def served_of(request: Request) -> Served:
    """For routes: `served: Annotated[Served, Depends(served_of)]`."""
    found: Served = request.app.state.served
    return found


def note_usage(request: Request, usage: UsageCount) -> None:
    """Tell the access log how many tokens there were so far."""
    record: RequestRecord = request.state.record
    record.prompt_tokens, record.generated_tokens = usage.prompt_total, usage.generated_total
