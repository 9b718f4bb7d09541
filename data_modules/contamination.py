"""Benchmark prompts that training prompts nearly repeat: MinHash (datasketch) finds them, Jaccard confirms.

Two prompts are near-duplicates if at least ``THRESHOLD`` of the word triples that occur in either occur in
both. What is compared are words without case and punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

from data_modules.files import read_rows

THRESHOLD = 0.7
LONG = 8  # words from which on a repeated prompt is no coincidence ("Describe the picture." is one)
_PERMUTATIONS = 64


@dataclass(frozen=True)
class NearDuplicate:
    """A training prompt that nearly is a benchmark's.

    Attributes:
        training: Its id.
        benchmark: The id of the other.
        similarity: Jaccard similarity of their word triples.
        prompt: The training prompt.
    """

    training: str
    benchmark: str
    similarity: float
    prompt: str

    @property
    def telling(self) -> bool:
        """Whether it is long enough to be more than a stock phrase."""
        return len(words(self.prompt)) >= LONG


def near_duplicates(
    training: Iterable[tuple[str, str]], benchmark: Iterable[tuple[str, str]]
) -> Iterator[NearDuplicate]:
    """For each training prompt, the benchmark prompt it resembles most, if it is that alike.

    Args:
        training: Ids and prompts.
        benchmark: Ids and prompts.
    """
    index = MinHashLSH(threshold=THRESHOLD - 0.1, num_perm=_PERMUTATIONS)  # errs on the side of finding
    known: dict[str, frozenset[str]] = {}
    for name, prompt in benchmark:
        known[name] = triples(prompt)
        index.insert(name, _sketch(known[name]), check_duplication=False)
    for name, prompt in training:
        own = triples(prompt)
        similar = map(str, index.query(_sketch(own)))
        candidates = [(jaccard(own, known[other]), other) for other in similar]
        similarity, closest = max(candidates, default=(0.0, ""))
        if similarity >= THRESHOLD:
            yield NearDuplicate(name, closest, similarity, prompt)


def benchmark_prompts(benchmark: str) -> list[tuple[str, str]]:
    """Row and prompt of a benchmark's rows.

    Args:
        benchmark: A file and its column of prompts, ``bench.jsonl:prompt``.

    Raises:
        ValueError: The file cannot be read, or a row has no prompt.
    """
    path, _, column = benchmark.rpartition(":")
    if not path:
        raise ValueError(f"--against={benchmark}: name a file and its column of prompts, bench.jsonl:prompt")
    found = []
    for number, row in read_rows(path):
        if not isinstance(row.get(column), str):
            raise ValueError(f"{path} row {number}: field {column!r} is missing or no text")
        found.append((f"row {number}", row[column]))
    return found


def words(text: str) -> list[str]:
    """Words without case and punctuation.

    Example:
        >>> words("What's in the picture?")
        ['what', 's', 'in', 'the', 'picture']
    """
    return re.findall(r"\w+", text.lower())


def triples(text: str) -> frozenset[str]:
    """Its word triples; all words together if there are fewer than three."""
    found = words(text)
    return frozenset(" ".join(found[i : i + 3]) for i in range(max(1, len(found) - 2)))


def jaccard(one: frozenset[str], two: frozenset[str]) -> float:
    """The part of what occurs in either that occurs in both."""
    return len(one & two) / len(one | two)


def _sketch(shingles: frozenset[str]) -> MinHash:
    sketch = MinHash(num_perm=_PERMUTATIONS)
    sketch.update_batch([shingle.encode() for shingle in shingles])
    return sketch
