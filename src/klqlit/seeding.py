"""Counter-based seeds: no random state ever needs to be saved."""

import hashlib


def derive_seed(seed: int, *counters: int | str) -> int:
    """A 63-bit seed that depends on the run's seed and on what it is for.

    The same arguments give the same seed in every process and on every machine, so a resumed run draws what the
    uninterrupted one would have drawn.
    """
    text = "/".join(str(part) for part in (seed, *counters))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
