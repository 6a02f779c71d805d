"""Work shared by a pool of actors, in order and as it comes; a generator whose items are worked on while it runs.

Prints:
in order: [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
as they come: [0, 3, 6, 9, 12]
pool by hand: [50, 70]
streamed: 285
zero-copy: True
"""

import numpy as np
import ray
from ray.util import ActorPool


@ray.remote(num_cpus=0)
class Multiplier:
    def times(self, factor, number):
        return factor * number


@ray.remote
def numbers(count):
    for number in range(count):
        yield np.full(100_000, number, dtype=np.int64)


@ray.remote
def squared_mean(values):
    return int(values.mean()) ** 2


@ray.remote
def is_a_view(values):
    return not values.flags.owndata and not values.flags.writeable


ray.init(num_cpus=2)
pool = ActorPool([Multiplier.remote() for _ in range(3)])
print("in order:", list(pool.map(lambda actor, number: actor.times.remote(2, number), range(10))))
print("as they come:", sorted(pool.map_unordered(lambda actor, number: actor.times.remote(3, number), range(5))))
pool.submit(lambda actor, number: actor.times.remote(10, number), 5)
pool.submit(lambda actor, number: actor.times.remote(10, number), 7)
print("pool by hand:", [pool.get_next(), pool.get_next()])
print("streamed:", sum(ray.get([squared_mean.remote(ref) for ref in numbers.remote(10)])))
print("zero-copy:", ray.get(is_a_view.remote(ray.put(np.zeros(1_000_000)))))
