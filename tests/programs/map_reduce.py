"""Words are counted: mappers split what they find by the reducer that it is for, reducers add up.

Prints:
the 40
fox 30
dog 20
lazy 20
quick 20
4 reducers, 8 words
"""

import collections

import ray
from ray.exceptions import RayTaskError

REDUCERS = 4
SENTENCES = ["The quick fox", "the lazy dog", "the fox jumps over the dog", "a quick lazy fox"]


def reducer_of(word):
    return sum(word.encode()) % REDUCERS


@ray.remote(num_returns=REDUCERS)
def count(text):
    parts = [collections.Counter() for _ in range(REDUCERS)]
    for word in text.lower().split():
        if not word.isalpha():
            raise ValueError(f"{word!r} is no word")
        parts[reducer_of(word)][word] += 1
    return parts


@ray.remote
def add_up(*counters):
    return sum(counters, collections.Counter())


ray.init(num_cpus=2)
text = ray.put(SENTENCES)


@ray.remote
def lines(number):
    return ray.get(text)[number % len(SENTENCES)]


parts = [count.remote(lines.remote(number)) for number in range(40)]
totals = ray.get([add_up.remote(*[part[reducer] for part in parts]) for reducer in range(REDUCERS)])
words = sum(totals, collections.Counter())
for word, number in sorted(words.items(), key=lambda item: (-item[1], item[0]))[:5]:
    print(word, number)
print(len(totals), "reducers,", len(words), "words")

try:
    ray.get(count.options(num_returns=1).remote("4 words"))
except ValueError as error:
    assert isinstance(error, RayTaskError)
    assert "is no word" in str(error)
else:
    raise SystemExit("the mistake was not noticed")
