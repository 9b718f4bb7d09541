"""Text that has nothing to do with pictures: small records, what is said of them, and questions about them.

A record is a subject with attributes; two records make a text in which only binding tells who has what.
Each domain has its own words and sentences, so that what is learned here is judging, not a vocabulary.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from data_modules.world.scenes import COLORS, COUNTS, PLACES, SHAPES, SIZES, Split, split_of

NAMES = tuple("Anna Tom Maria Peter Lena Paul Nora Felix Clara Hugo Emma Oscar Ida Leo Vera Max".split())
JOBS = tuple("baker doctor farmer teacher pilot painter singer lawyer sailor nurse judge chef".split())
CITIES = tuple("Paris Rome Oslo Cairo Lima Delhi Tokyo Berlin Madrid Vienna Prague Dublin".split())
PETS = tuple("dogs cats birds horses goats rabbits ducks sheep".split())
FOODS = tuple("bread rice soup cheese apples plums cake honey beans fish".split())
GOODS = (
    *tuple("coat hat shirt bag lamp chair vase clock".split()),
    *SHAPES,
)  # a shop that sells wooden shapes too
TINTS = (*COLORS, "brown", "pink")
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
WEATHER = tuple("rain snow wind fog sun hail".split())
BUILDINGS = tuple("market school church museum castle bridge tower mill".split())
SIZES_OF_GOODS = (*SIZES, "tiny", "huge")
SHELVES = (*PLACES, "top", "bottom")
NUMBERS = (*COUNTS, "four", "five", "six", "seven", "eight")


@dataclass(frozen=True)
class Domain:
    """How one kind of record is worded.

    Attributes:
        subjects: Who or what the records are about.
        values: The words each attribute can take.
        sentence: The record told in full, with ``{subject}`` and the attributes as fields.
        questions: A question per attribute.
        answers: A full-sentence answer per attribute.
    """

    subjects: tuple[str, ...]
    values: dict[str, tuple[str, ...]]
    sentence: str
    questions: dict[str, str]
    answers: dict[str, str]


DOMAINS = (
    Domain(NAMES, {"job": JOBS, "city": CITIES}, "{subject} {job} {city}",
           {"job": "What job has {subject}?", "city": "What city has {subject}?"},
           {"job": "{subject} is a {job}.", "city": "{subject} is from {city}."}),
    Domain(NAMES, {"number": NUMBERS, "pet": PETS}, "{subject} {number} {pet}",
           {"number": "How many has {subject}?", "pet": "What animals has {subject}?"},
           {"number": "{subject} has {number}.", "pet": "{subject} has {pet}."}),
    Domain(NAMES, {"color": TINTS, "food": FOODS}, "{subject} {color} {food}",
           {"color": "What color has {subject}?", "food": "What food has {subject}?"},
           {"color": "{subject} wears {color}.", "food": "{subject} eats {food}."}),
    Domain(GOODS, {"color": TINTS, "number": NUMBERS}, "{subject} {color} {number} coins",
           {"color": "What color is the {subject}?", "number": "How many coins is the {subject}?"},
           {"color": "The {subject} is {color}.", "number": "The {subject} is {number} coins."}),
    Domain(GOODS, {"size": SIZES_OF_GOODS, "place": SHELVES}, "{subject} {size} {place}",
           {"size": "What size is the {subject}?", "place": "Where is the {subject}?"},
           {"size": "The {subject} is {size}.", "place": "The {subject} is {place}."}),
    Domain(DAYS, {"weather": WEATHER, "city": CITIES}, "{subject} {weather} {city}",
           {"weather": "What weather has {subject}?", "city": "What city has {subject}?"},
           {"weather": "{subject} brings {weather}.", "city": "{subject} is in {city}."}),
    Domain(BUILDINGS, {"color": TINTS, "place": SHELVES}, "{subject} {color} {place}",
           {"color": "What color is the {subject}?", "place": "Where is the {subject}?"},
           {"color": "The {subject} is {color}.", "place": "The {subject} is {place}."}),
    Domain(FOODS, {"number": NUMBERS, "job": JOBS}, "{subject} {number} {job}",
           {"number": "How many of the {subject}?", "job": "What job has the {subject}?"},
           {"number": "The {subject} are {number}.", "job": "The {job} gets the {subject}."}),
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """A subject and its attributes."""

    domain: int
    subject: str
    values: tuple[tuple[str, str], ...]

    def _fill(self, pattern: str) -> str:
        return pattern.format(subject=self.subject, **dict(self.values))

    def phrase(self) -> str:
        """All that is true of it."""
        return self._fill(DOMAINS[self.domain].sentence)

    def claim(self, attribute: str) -> str:
        """The shortest phrase that states one attribute, the subject first."""
        return f"{self.subject} {dict(self.values)[attribute]}"

    def question(self, attribute: str) -> str:
        """A question whose answer is the attribute."""
        return self._fill(DOMAINS[self.domain].questions[attribute])

    def answer(self, attribute: str) -> str:
        """A full sentence that answers it."""
        return self._fill(DOMAINS[self.domain].answers[attribute])


@dataclass(frozen=True)
class Facts:
    """Records of one domain, told one after the other."""

    records: tuple[Record, ...]

    @property
    def things(self) -> tuple[Record, ...]:
        """The records (the same name as a scene's things)."""
        return self.records

    def caption(self) -> str:
        """The text."""
        return ", ".join(record.phrase() for record in self.records) + "."

    def attributes(self) -> tuple[str, ...]:
        """What can be asked about, and altered."""
        return tuple(name for name, _ in self.records[0].values)


def sample_facts(rng: random.Random, *, split: Split, records: int = 2) -> Facts:
    """Draw facts of the split; subjects and values differ from record to record."""
    while True:
        index = rng.randrange(len(DOMAINS))
        domain = DOMAINS[index]
        subjects = rng.sample(domain.subjects, records)
        columns = {name: rng.sample(words, records) for name, words in domain.values.items()}
        facts = Facts(
            tuple(
                Record(index, subject, tuple((name, column[i]) for name, column in columns.items()))
                for i, subject in enumerate(subjects)
            )
        )
        if split_of(facts.caption()) == split:
            return facts


def alter_facts(
    rng: random.Random, facts: Facts, attribute: str, *, hard: bool
) -> tuple[Facts, Record, Record]:
    """Facts that differ in one attribute: swapped between two records (hard) or new to the text (easy).

    Also the record that tells them apart, as it was and as it is.
    """
    index, other = rng.sample(range(len(facts.records)), 2)
    records = list(facts.records)
    own, theirs = dict(records[index].values), dict(records[other].values)
    if hard:
        own[attribute], theirs[attribute] = theirs[attribute], own[attribute]
        records[other] = replace(records[other], values=tuple(theirs.items()))
    else:
        present = {dict(record.values)[attribute] for record in records}
        own[attribute] = rng.choice(
            [v for v in DOMAINS[records[index].domain].values[attribute] if v not in present]
        )
    records[index] = replace(records[index], values=tuple(own.items()))
    return Facts(tuple(records)), facts.records[index], records[index]
