"""Words for tasks that ask for exact copies, too many to be guessed; and names that nobody has heard before.

A story with one of eighty names can be told by knowing the eighty. A name that was made up for one text can only be
told by looking back. `name` and `code` make such strings; the lists are common words, mostly one token each.
"""

from __future__ import annotations

import random

from fathom.text.synthetic.grammar import BOYS, GIRLS, split
from fathom.text.synthetic.knowledge import COUNTRIES, LISTS

MORE_NAMES = split("""
    Abel Agnes Alan Albert Alma Amber Andrew Anita Anton Arne Astrid Aurora Barbara Beatrice Bella Bernard Boris
    Brian Bruno Camilla Carmen Cecilia Charles Chloe Chris Claire Colin Conrad Cora Damian David Dennis Diana Diego
    Dora Edgar Edith Edward Elena Elias Elliot Elsa Emil Enzo Erika Esther Fabio Fiona Flora Frank Fred Gabriel Gina
    Gloria Greta Gustav Harold Harriet Hector Heidi Helen Hilda Howard Hugh Ian Ingrid Irene Isaac Isabel Jana Janet
    Jasper Jean Jenny Jerome Joan Joel John Jonas Joseph Josie Judith Karen Karl Keith Kevin Kira Kurt Laura
    Laurence Leon Lewis Linda Linus Liz Louis Louise Lydia Magnus Marcus Maria Marina Martha Martin Mateo Matilda
    Maurice Michael Milo Mira Monica Morris Nadia Naomi Natalie Neil Nigel Nils Norman Odette Olaf Oswald Otis Owen
    Patrick Paula Petra Philip Quentin Rachel Ralph Ramona Raoul Rebecca Regina Rita Robert Robin Roger Roland Ronja
    Ross Rudolf Sabine Samuel Sandra Selma Sheila Simone Stella Stephen Susan Sven Sylvia Tamara Tara Teresa Thomas
    Tobias Trevor Ulrich Ursula Valerie Vera Victor Vincent Viola Virginia Walter Wanda Wilma Xavier Yara Yusuf
    Zelda
""")
NAMES = [*GIRLS, *BOYS, *MORE_NAMES]
NOUNS = split("""
    apple arm arrow axe baby bag ball bank barn basket bath beach bean bear bed bee bell belt bench bird boat bone
    book boot bottle bowl box boy branch bread brick bridge broom brush bucket bus butter button cake camel candle
    cap car card carrot cart castle cat chain chair chalk cheese cherry chest chicken child church circle city clock
    cloth cloud clown coat coffee coin comb cook corn cow crab cream cross crow crown cup curtain desk dish doctor
    dog doll door dragon dream dress drink drum duck eagle ear earth egg elephant engine eye face farm father
    feather fence field finger fire fish flag floor flower flute fly foot forest fork fox friend frog fruit game
    garden gate ghost giant gift girl glass glove goat gold grape grass ground hair hammer hand hat heart hen hill
    hole honey hook horn horse house ice island jacket jam jar jewel juice key king kitchen kite knife ladder lake
    lamp leaf leg lemon letter light lion lock map market mask meal milk mirror money monkey moon mother mountain
    mouse mouth nail neck needle nest net night nose nut ocean oil onion orange oven owl page paint pan paper park
    pear pen pencil picture pie pig pillow pin pipe plane planet plant plate pond pot potato pump queen rabbit radio
    rain rat ribbon rice ring river road robot rock roof room root rope rose ruler salt sand school sea seat seed
    shadow shark sheep shell ship shirt shoe shop shovel sky snail snake snow soap sock soup spider spoon spring
    square star stone stool storm stove street string sugar sun sword table tail tea teacher tent thread ticket
    tiger toast tooth towel tower town toy train tree truck tub turtle umbrella valley vase village violin wagon
    wall watch water wave wheel whistle window wing winter wolf wood wool worm yard zebra
""")
ADJECTIVES = split("""
    angry big black blue brave bright broken brown calm cheap clean clever cold cool dark deep dirty dry easy empty
    fair fast fat fine flat fresh full funny gentle glad good gray great green happy hard heavy high hot huge hungry
    kind large lazy light little long loud lucky mild narrow new nice noisy odd old open orange pale pink plain poor
    pretty proud purple quick quiet rare red rich rough round sad safe sharp short shy silent silly simple slow
    small smooth soft sour square strange strong sweet tall thick thin tiny tired warm weak wet white wide wild wise
    wooden yellow young
""")
VERBS = split("""
    ask bake begin blow break bring build buy call carry catch clean climb close come cook count cut dance dig draw
    drink drive drop eat fall feel find fly follow give go grow hear help hide hold hop jump keep kick know laugh
    learn leave lift listen live look lose make meet move open paint pass pay pick plan play pour pull push read
    rest ride ring rise run sail say see sell send sew shine shout show sing sit sleep smile speak spend stand start
    stay stop swim take talk teach tell think throw touch try turn wait wake walk wash watch wear win wish work
    write
""")
CATEGORIES: dict[str, list[str]] = {
    name: words for name, words in LISTS.items() if all(" " not in word for word in words) and len(words) >= 8
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"

_ONSETS = split("b d f g h j k l m n p r s t v w z br dr fl gr kr pl st tr sh th sk")
_VOWELS = split("a e i o u a e o ai ee ou")
_CITIES = {city for city, _, _ in COUNTRIES.values()} | {"Geneva"}  # the needle test asks for those
_CODAS = [*[""] * 5, *split("n r l s k m th nd x p")]


def name(rng: random.Random, invented: float = 0.5) -> str:
    """A first name, with probability `invented` one that was made up."""
    if rng.random() >= invented:
        return rng.choice(NAMES)
    while (made := _invented(rng)) in _CITIES:
        pass
    return made


def _invented(rng: random.Random) -> str:
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2, 3)))]
    return ("".join(parts) + (rng.choice(_CODAS) or rng.choice(("n", "a", "o", "r", "")))).capitalize()


def names(rng: random.Random, count: int, invented: float = 0.5) -> list[str]:
    """So many different ones."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[name(rng, invented)] = None
    return list(found)


def code(rng: random.Random) -> str:
    """A string that says nothing: digits, letters, or both; short ones often."""
    size = rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 6, 8))
    signs = rng.choice(("0123456789", "0123456789", LETTERS, LETTERS.upper(), LETTERS + "0123456789"))
    return "".join(rng.choice(signs) for _ in range(size))


def number(rng: random.Random, digits: int = 4) -> int:
    """Up to so many digits, every length as often."""
    return rng.randrange(10 ** rng.randint(1, digits))


def items(rng: random.Random, count: int, kind: str = "") -> list[str]:
    """`count` different things of one kind: words, letters, numbers, names, codes."""
    kind = kind or rng.choice(
        ("words", "words", "words", "letters", "numbers", "names", "codes", "adjectives", "verbs")
    )
    pools = {"words": NOUNS, "adjectives": ADJECTIVES, "verbs": VERBS, "letters": LETTERS}
    if kind in pools:
        return rng.sample(pools[kind], count)
    if kind == "names":
        return names(rng, count)
    found: dict[str, None] = {}
    while len(found) < count:
        found[str(number(rng, 3)) if kind == "numbers" else code(rng)] = None
    return list(found)
