"""``Pool`` with the API of ``multiprocessing.Pool``, whose processes are actors anywhere in the cluster.

``TimeoutError`` and ``JoinableQueue`` are those of the standard library; a ``JoinableQueue`` is for the processes
of this machine, ``noded.util.queue.Queue`` is for all.
"""

from multiprocessing import JoinableQueue, TimeoutError

from noded.util.multiprocessing.pool import Pool

__all__ = ["JoinableQueue", "Pool", "TimeoutError"]
