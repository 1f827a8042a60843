"""Small worlds: people go to places, take things and hand them on; then it is asked who has what, and where.

Each person keeps name, job and pronoun through the text, and every answer follows from what was told last. `World`
holds the truth while sentences are made; the test reads the sentences and finds the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from fathom.text.synthetic.grammar import COLOURS, PLACES, THINGS, with_article
from fathom.text.synthetic.vocabulary import CATEGORIES, names

PETS = ("dog", "cat", "rabbit", "parrot", "turtle", "pony", "goat", "hamster")


@dataclass
class World:
    """Who is where and has what. `told` are the sentences so far."""

    people: list[str]
    he: dict[str, str]
    job: dict[str, str]
    pet: dict[str, str]
    place: dict[str, str] = field(default_factory=dict)
    holds: dict[str, str] = field(default_factory=dict)  # thing -> person
    lies: dict[str, str] = field(default_factory=dict)  # thing -> place
    told: list[str] = field(default_factory=list)


def _introduce(rng: random.Random, w: World, who: str) -> str:
    job, pet, he = with_article(w.job[who]), with_article(w.pet[who]), w.he[who].capitalize()
    return rng.choice((
        f"{who} is {job} and has {pet}.", f"{who} is {job}. {he} has {pet}.", f"There is {who}, {job}. {he} has {pet}.",
        f"{who} works as {job} and lives with {pet}.",
    ))  # fmt: skip


def _event(rng: random.Random, w: World, places: list[str], things: list[str]) -> str:
    """One thing that happens; changes the world."""
    who = rng.choice(w.people)
    kind = rng.random()
    free = [t for t in things if t not in w.holds and w.lies.get(t, w.place.get(who)) == w.place.get(who)]
    mine = [t for t, owner in w.holds.items() if owner == who]
    others = [p for p in w.people if p != who]
    if mine and kind < 0.2 and others:
        thing, other = rng.choice(mine), rng.choice(others)
        w.holds[thing] = other
        return rng.choice((f"{who} gave the {thing} to {other}.", f"{who} handed the {thing} to {other}."))
    if mine and kind < 0.4 and who in w.place:
        thing = rng.choice(mine)
        del w.holds[thing]
        w.lies[thing] = w.place[who]
        return rng.choice(
            (f"{who} put down the {thing}.", f"{who} left the {thing} there.", f"{who} dropped the {thing}.")
        )
    if free and kind < 0.65 and who in w.place:
        thing = rng.choice(free)
        w.holds[thing] = who
        w.lies.pop(thing, None)
        return rng.choice(
            (f"{who} took the {thing}.", f"{who} picked up the {thing}.", f"{who} found the {thing} there.")
        )
    w.place[who] = rng.choice([p for p in places if p != w.place.get(who)])
    return rng.choice((
        f"{who} went to the {w.place[who]}.",
        f"{who} walked to the {w.place[who]}.",
        f"{who} ran to the {w.place[who]}.",
        f"Then {who} went to the {w.place[who]}.",
    ))  # fmt: skip


def world(rng: random.Random) -> World:
    """1 to 4 people, 1 to 12 events."""
    people = names(rng, rng.choice((1, 2, 2, 3, 3, 4)), 0.6)
    jobs, pets = rng.sample(CATEGORIES["jobs"], len(people)), rng.sample(PETS, len(people))
    w = World(people, {p: rng.choice(("he", "she")) for p in people}, dict(zip(people, jobs, strict=True)),
              dict(zip(people, pets, strict=True)))  # fmt: skip
    places = rng.sample(PLACES, 4)
    things = [f"{rng.choice(COLOURS)} {t}" if rng.random() < 0.5 else t for t in rng.sample(THINGS, 3)]
    if rng.random() < 0.6:
        w.told += [_introduce(rng, w, who) for who in people]
    else:
        w.job, w.pet = {}, {}
    w.told += [_event(rng, w, places, things) for _ in range(1 + min(rng.randint(0, 11), rng.randint(0, 11)))]
    return w


def questions(rng: random.Random, w: World) -> list[tuple[str, str]]:
    """All that can be asked, in random order."""
    pairs = [(f"Where is {who}?", f"{who} is at the {place}.") for who, place in w.place.items()]
    pairs += [(f"Who has the {thing}?", f"{who} has the {thing}.") for thing, who in w.holds.items()]
    pairs += [(f"Where is the {thing}?", f"The {thing} is at the {place}.") for thing, place in w.lies.items()]
    for who in w.people:
        mine = [thing for thing, owner in w.holds.items() if owner == who]
        if not mine:
            pairs.append((f"What does {who} carry?", f"{who} carries nothing."))
        elif len(mine) == 1:
            pairs.append((f"What does {who} carry?", f"{who} carries the {mine[0]}."))
    for who, job in w.job.items():
        pairs.append((f"What is {who}'s job?", f"{who} is {with_article(job)}."))
        pairs.append((f"Who is the {job}?", f"{who} is the {job}."))
        pairs.append((f"Which pet does {who} have?", f"{who} has {with_article(w.pet[who])}."))
        pairs.append((f"Who has {with_article(w.pet[who])}?", f"{who} has {with_article(w.pet[who])}."))
    rng.shuffle(pairs)
    return pairs


def people(rng: random.Random) -> str:
    """A world told, and questions about it."""
    w = world(rng)
    pairs = questions(rng, w)[: rng.randint(1, 6)]
    form = rng.choice(("Question: {q}\nAnswer: {a}", "{q} {a}", "User: {q}\nAssistant: {a}", "Q: {q}\nA: {a}"))
    return rng.choice((" ", " ", "\n")).join(w.told) + "\n\n" + "\n".join(form.format(q=q, a=a) for q, a in pairs)
