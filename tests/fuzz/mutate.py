"""Inputs made of seeds: cut, repeated, joined, and with tokens of a grammar in them. Deterministic for a `Random`."""

from collections.abc import Sequence
from random import Random

MOST_EDITS = 6


def mutated(seeds: Sequence[bytes], tokens: Sequence[bytes], random: Random, *, max_bytes: int) -> bytes:
    data = bytearray(random.choice(seeds))
    for _ in range(random.randint(0, MOST_EDITS)):
        _edit(data, seeds, tokens, random)
    return bytes(data[:max_bytes])


def _edit(data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes], random: Random) -> None:
    start = random.randint(0, len(data))
    # Formats have their numbers in front, and what is edited at random there is seen more often.
    start = min(start, random.choice((len(data), 64, 512)))
    end = min(len(data), start + random.choice((0, 1, 4, 8, 1 + len(data) // 4)))
    match random.randrange(6):
        case 0 if tokens:
            data[start:end] = random.choice(tokens)
        case 1 if tokens:  # keeps the place of what follows
            token = random.choice(tokens)
            data[start : start + len(token)] = token
        case 2:
            del data[start:end]
        case 3:
            data[start:start] = data[start:end] * random.choice((1, 2, 100))
        case 4:
            other = random.choice(seeds)
            at = random.randint(0, len(other))
            data[start:end] = other[at : at + random.choice((1, 8, 64, len(other)))]
        case _:
            data[start:end] = random.randbytes(random.choice((1, 1, 4, 8)))
