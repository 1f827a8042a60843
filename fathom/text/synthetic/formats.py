"""Instructions that say what the answer must look like: lists of n, JSON with given keys, one word, capitals, spelling.

The answer's content is easy, so that what is learned is to obey. Counting is done aloud (list_tasks.py says why).
"""

from __future__ import annotations

import json
import random

from fathom.text.synthetic.asking import Exchange
from fathom.text.synthetic.grammar import COLOURS, PLACES, THINGS, capital, with_article
from fathom.text.synthetic.knowledge import COUNTRIES, LISTS
from fathom.text.synthetic.vocabulary import ADJECTIVES, CATEGORIES, NOUNS, VERBS, name, names, number

CLASSES = (
    "fruits", "animals", "colors", "sports", "clothes", "jobs", "musical instruments", "flowers", "planets",
    "parts of the body", "languages", "pieces of furniture",
)  # fmt: skip
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")


def sentence(rng: random.Random) -> str:
    """A short one, of random words."""
    who, thing = name(rng, 0.3), rng.choice(NOUNS)
    return rng.choice((
        f"The {rng.choice(ADJECTIVES)} {thing} is at the {rng.choice(PLACES)}.",
        f"{who} has {with_article(rng.choice(ADJECTIVES))} {thing}.",
        f"{who} and {name(rng, 0.3)} want to {rng.choice(VERBS)} near the {rng.choice(PLACES)}.",
        f"Please {rng.choice(VERBS)} the {thing}.",
        f"The {thing} and the {rng.choice(NOUNS)} are {rng.choice(COLOURS)}.",
    ))  # fmt: skip


def list_of(rng: random.Random) -> Exchange:
    """n items of a kind, in the form that was asked for."""
    kind = rng.choice(list(LISTS))
    n = rng.randint(1, min(7, len(LISTS[kind])))
    found = rng.sample(LISTS[kind], n)
    how_many = COUNTS[n] if rng.random() < 0.5 else str(n)
    form = rng.randrange(4)
    what = f"{how_many} {kind}" if n > 1 else f"{how_many} of the {kind}"
    ask = rng.choice(("List {}", "Name {}", "Give me {}", "Write down {}")).format(what)
    if form == 0:
        return f"{ask}{rng.choice(('.', ' as a numbered list.'))}", "\n".join(
            f"{k}. {x}" for k, x in enumerate(found, 1)
        )
    if form == 1:
        return f"{ask} as bullet points.", "\n".join(f"- {x}" for x in found)
    if form == 2:
        return f"{ask}, separated by commas.", ", ".join(found)
    return f"{ask} as a JSON list.", json.dumps(found)


def as_json(rng: random.Random) -> Exchange:
    """A person in a sentence as an object with the keys that are asked for."""
    who, age = name(rng), rng.randint(2, 99)
    job, place, colour = rng.choice(CATEGORIES["jobs"]), rng.choice(PLACES), rng.choice(COLOURS)
    values: dict[str, str | int] = {"name": who, "age": age, "job": job, "place": place, "color": colour}
    text = rng.choice((
        f"{who} is {age} years old, works as {with_article(job)}, is at the {place} and likes {colour}.",
        f"At the {place} there is {who}, {with_article(job)} of {age}, who wears {colour}.",
        f"Name: {who}. Age: {age}. Job: {job}. Place: {place}. Color: {colour}.",
    ))  # fmt: skip
    keys = rng.sample(list(values), rng.randint(1, 5))
    ask = rng.choice(("Write this as JSON with the keys {}: {}", "Give a JSON object with {} from this text: {}",
                      "Extract {} as JSON: {}"))  # fmt: skip
    return ask.format(", ".join(keys), text), json.dumps({key: values[key] for key in keys}, ensure_ascii=False)


def make_json(rng: random.Random) -> Exchange:
    """Keys and values given one by one."""
    keys = rng.sample([word for word in NOUNS if len(word) < 7], rng.randint(1, 5))
    values: dict[str, str | int | bool] = {
        key: rng.choice((rng.choice(NOUNS), number(rng, 3), rng.random() < 0.5, name(rng))) for key in keys
    }
    said = ", ".join(f"{key} is {str(v).lower() if isinstance(v, bool) else v}" for key, v in values.items())
    return f"Make a JSON object where {said}.", json.dumps(values, ensure_ascii=False)


def read_json(rng: random.Random) -> Exchange:
    """A value out of an object."""
    keys = rng.sample(NOUNS, rng.randint(1, 6))
    values = {key: rng.choice((rng.choice(NOUNS), number(rng, 3))) for key in keys}
    key = rng.choice(keys)
    ask = rng.choice(('What is the value of "{k}" in {j}?', '{j}\nWhat is "{k}"?', 'Read "{k}" from {j}'))
    return ask.format(k=key, j=json.dumps(values)), str(values[key])


def yes_or_no(rng: random.Random) -> Exchange:
    """Whether a word belongs to a class."""
    kind, other = rng.sample(CLASSES, 2)
    word = rng.choice(LISTS[kind])
    asked = rng.choice((kind, other))
    rule = rng.choice((" Answer yes or no.", " Yes or no?", " Answer with one word."))
    ask = rng.choice(("Does the word {} belong to {}?", "Is {} one of the {}?")).format(word, asked)
    return ask + rule, "Yes" if word in LISTS[asked] else "No"


def edge_word(rng: random.Random) -> Exchange:
    """Begin or end with a word."""
    thing, colour = rng.choice(THINGS), rng.choice(COLOURS)
    word = rng.choice(("Sure", "Well", "Indeed", "Yes", "Certainly", *NOUNS[:60]))
    fact = f"The {thing} is {colour}."
    if rng.random() < 0.5:
        start = capital(word)
        return (
            f'{fact} What color is the {thing}? Begin your answer with "{start}".',
            f"{start}, the {thing} is {colour}.",
        )
    return f'{fact} What color is the {thing}? End your answer with "{word}".', f"The {thing} is {colour}, {word}"


def one_word(rng: random.Random) -> Exchange:
    country = rng.choice(sorted(COUNTRIES))
    kind = rng.choice(list(CATEGORIES))
    three = rng.sample(CATEGORIES[kind], 3)
    return rng.choice((
        (f"What is the capital of {country}? Give only the name.", COUNTRIES[country][0]),
        (f"Choose the first of these {kind} and say nothing else: {', '.join(three)}", three[0]),
        (f"On which continent is {country}? Answer in a few words.", COUNTRIES[country][1]),
    ))  # fmt: skip


def case(rng: random.Random) -> Exchange:
    text = sentence(rng) if rng.random() < 0.5 else " ".join(rng.sample(NOUNS, rng.randint(1, 4)))
    if rng.random() < 0.5:
        ask = rng.choice(("Write in capital letters: {}", "In upper case: {}", "Shout this: {}"))
        return ask.format(text), text.upper()
    shown = text.upper() if rng.random() < 0.5 else text
    return rng.choice(("Write in small letters: {}", "In lower case: {}")).format(shown), text.lower()


def _word(rng: random.Random) -> str:
    return rng.choice((rng.choice(NOUNS), rng.choice(ADJECTIVES), rng.choice(VERBS), name(rng).lower()))


def spell(rng: random.Random) -> Exchange:
    word = _word(rng)
    if rng.random() < 0.3:
        return f"Which word is spelled {'-'.join(word)}?", word
    ask = rng.choice(("Spell {}.", 'Spell the word "{}".', "How is {} spelled?", "Write {} letter by letter."))
    return ask.format(word), "-".join(word)


def letters(rng: random.Random) -> Exchange:
    """How many letters a word has, or how many of one kind: spelled and counted aloud."""
    word = _word(rng)
    if rng.random() < 0.5:
        aloud = ", ".join(f"{n} {letter}" for n, letter in enumerate(word, 1))
        ask = rng.choice(
            ('How many letters has the word "{}"?', "Count the letters of {}.", "How long is the word {}?")
        )
        return ask.format(word), f"{aloud}. It has {len(word)} letters."
    letter = rng.choice(word) if rng.random() < 0.75 else rng.choice("aeioubcdlmnrst")
    marked, seen = [], 0
    for sign in word:
        seen += sign == letter
        marked.append(f"{sign} ({seen})" if sign == letter else sign)
    ask = rng.choice(('How many times is the letter {1} in "{0}"?', "Count the letter {1} in the word {0}.",
                      "How often does {1} occur in {0}?"))  # fmt: skip
    return ask.format(word, letter), f"{', '.join(marked)}. The answer is {seen}."


def which_letter(rng: random.Random) -> Exchange:
    word = _word(rng)
    which, at = rng.choice((("first", 0), ("last", -1), ("second", 1)))
    if len(word) < 2:
        which, at = "first", 0
    return f"What is the {which} letter of {word}?", f"{'-'.join(word)}. The {which} letter is {word[at]}."


def which_word(rng: random.Random) -> Exchange:
    text = sentence(rng)
    found = text.rstrip(".").split()
    which, at = rng.choice((("first", 0), ("last", -1), ("second", 1), ("third", 2)))
    return f"What is the {which} word of this sentence: {text}", found[at]


def count_words(rng: random.Random) -> Exchange:
    text = sentence(rng)
    aloud = ", ".join(f"{n} {word}" for n, word in enumerate(text.rstrip(".").split(), 1))
    return f"How many words are in this sentence: {text}", f"{aloud}. It has {len(text.split())} words."


def quote(rng: random.Random) -> Exchange:
    """Say exactly what was said."""
    text, who = sentence(rng), name(rng)
    return rng.choice((
        (f'{who} said: "{text}" What did {who} say?', f'{who} said: "{text}"'), (f"Repeat this sentence: {text}", text),
        (f"Say exactly this: {text}", text), (f"Put this in quotation marks: {text}", f'"{text}"'),
    ))  # fmt: skip


def letter_to(rng: random.Random) -> Exchange:
    """A note with the given names and words in it."""
    to, sender = names(rng, 2)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    ask = rng.choice(("Write a short note from {s} to {t}: the {x} is at the {p}.",
                      "{s} wants to tell {t} that the {x} is at the {p}. Write the note."))  # fmt: skip
    return ask.format(s=sender, t=to, x=thing, p=place), f"Dear {to},\nThe {thing} is at the {place}.\n{sender}"


KINDS = (
    (list_of, 6), (as_json, 6), (make_json, 3), (read_json, 3), (yes_or_no, 4), (edge_word, 3), (one_word, 3),
    (case, 4),
    (spell, 4), (letters, 5), (which_letter, 2), (which_word, 3), (count_words, 2), (quote, 3), (letter_to, 2),
)  # fmt: skip
