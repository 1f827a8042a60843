"""Simple stories: an opening, one of many plots, an ending. Past tense, short sentences, a few hundred everyday words.

No corpus like TinyStories can be had from a package, so this one is made. A plot is a list of paragraphs in the
template language of `grammar.py`; a story draws two characters, an object, a place, food and a colour, and every
sentence has several wordings, so two stories with the same plot rarely share a paragraph. Half of the names were made
up for one story, so that they can only be kept by looking back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from fathom.text.synthetic.grammar import (
    COLOURS,
    DISHES,
    PLACES,
    SKILLS,
    SNACKS,
    THINGS,
    capital,
    expand,
    person,
    with_article,
)
from fathom.text.synthetic.plots import ENDINGS, INTERLUDES, OPENINGS, PLOTS, Plot
from fathom.text.synthetic.plots_more import MORE_PLOTS
from fathom.text.synthetic.vocabulary import name

ALL_PLOTS = (*PLOTS, *MORE_PLOTS)
INVENTED = 0.5  # of the names
_SMALL = {"a", "an", "the", "in", "at", "on", "of", "to", "and", "for", "by"}


@dataclass(frozen=True)
class Story:
    """A finished story and what an instruction could have asked for."""

    title: str
    text: str
    hero: str  # "a fox named Pip"
    kind: str
    name: str
    theme: str  # "a lost kite": completes "a story about ..."


def _slots(rng: random.Random) -> dict[str, str]:
    first = person(rng)
    animal = first["kind"] not in ("girl", "boy")
    second = person(rng, "2", animal=animal if rng.random() < 0.85 else not animal, avoid=first["n"])
    while second["kind2"] == first["kind"] and animal:
        second = person(rng, "2", animal=True, avoid=first["n"])
    if rng.random() < INVENTED:
        first["n"] = name(rng, 1)
    if rng.random() < INVENTED:
        second["n2"] = name(rng, 1)
    skill, doing = rng.choice(SKILLS)
    place = rng.choice(PLACES)
    return {
        **first,
        **second,
        "thing": rng.choice(THINGS),
        "colour": rng.choice(COLOURS),
        "place": place,
        "place2": rng.choice([other for other in PLACES if other != place]),
        "snacks": rng.choice(SNACKS),
        "dish": rng.choice(DISHES),
        "skill": skill,
        "skilling": doing,
        "mother": rng.choice(["mother", "father", "grandmother", "grandfather", "aunt", "uncle"]),
        "number": rng.choice(["two", "three", "four", "five", "six"]),
    }


def story(rng: random.Random, plot: Plot | None = None) -> Story:
    """One story. `plot` fixes the plot, otherwise it is drawn."""
    plot = plot or rng.choice(ALL_PLOTS)
    slots = _slots(rng)
    she = slots["mother"] in ("mother", "grandmother", "aunt")
    slots |= {"mhe": "she", "mhis": "her", "mhim": "her"} if she else {"mhe": "he", "mhis": "his", "mhim": "him"}
    opening = expand(rng, rng.choice(OPENINGS), slots)
    paragraphs = [expand(rng, paragraph, slots) for paragraph in plot.paragraphs]
    paragraphs[0] = f"{opening} {paragraphs[0]}"
    if rng.random() < 0.35 and len(paragraphs) > 2:
        paragraphs.insert(1, expand(rng, rng.choice(INTERLUDES), slots))
    if rng.random() < 0.7:
        alone = not any("{n2}" in paragraph.lower() for paragraph in plot.paragraphs)
        endings = [ending for ending in (*ENDINGS, plot.moral) if not (alone and "{n2}" in ending)]
        paragraphs[-1] += " " + expand(rng, rng.choice(endings), slots)
    joint = "\n\n" if rng.random() < 0.7 else " "
    return Story(
        title=" ".join(word if word in _SMALL else capital(word) for word in expand(rng, plot.title, slots).split()),
        text=joint.join(paragraphs),
        hero=f"{with_article(slots['kind'])} named {slots['n']}",
        kind=slots["kind"],
        name=slots["n"],
        theme=expand(rng, plot.theme, slots),
    )
