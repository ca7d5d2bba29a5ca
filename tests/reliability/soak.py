"""Kill runs at random moments, many times, and count what survives: `make soak`.

Prints a Markdown table, a row a mode. A kill has survived where the same command, started again, goes on; a run is
identical where its last checkpoint and its logs are those of a run that was left in peace, bit for bit.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability.killing import MOMENTS
from reliability.programs import MODES, NEVER, Program, differences, write_config

SIGNALS = ("KILL", "KILL", "TERM", "INT", "USR1")
"""Half of what happens to runs is not announced."""


def random_kill(rng: random.Random, ranks: int) -> str:
    """A signal, a moment, a step and a rank, for `killing.KillAt`."""
    return f"{rng.choice(SIGNALS)} {rng.choice(MOMENTS)} {rng.randrange(1, 12)} {rng.randrange(ranks)}"


@dataclass
class Storm:
    """What came of the kills of one mode."""

    signals: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    ended: int = 0
    different: int = 0

    def row(self, mode: str) -> str:
        """Of the Markdown table."""
        kills = self.signals.total()
        how = (
            ", ".join(f"{name} {count}" for name, count in part.most_common()) for part in (self.signals, self.moments)
        )
        cells = (mode, kills, kills - self.lost, self.ended, self.ended - self.different, *how)
        return f"| {' | '.join(map(str, cells))} |"


def storm(mode: str, config: Path, folder: Path, kills: int, rng: random.Random) -> Storm:
    """Runs of one mode, one after another, each killed until it ends, until there were `kills` kills."""
    whole = Program(config, folder / mode / "whole", **MODES[mode])
    assert set(whole.run()[0]) == {0}
    found = Storm()
    while found.signals.total() < kills and not found.lost:
        program = Program(config, folder / mode / f"run-{found.ended}", **MODES[mode])
        while not program.is_finished:
            kill = random_kill(rng, program.ranks) if found.signals.total() < kills else NEVER
            statuses, output = program.run(kill)
            if set(statuses) != {0}:
                signal, moment, *_ = kill.split()
                found.signals[signal] += 1
                found.moments[moment] += 1
            if 2 in statuses or (kill == NEVER and any(statuses)):
                print(f"{mode}: the run did not go on ({kill}):\n{output[-3000:]}", file=sys.stderr)
                found.lost += 1
                return found
        found.ended += 1
        if names := differences(whole, program):
            print(f"{mode}: {program.run_dir} differs in {names}", file=sys.stderr)
            found.different += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="kills over all modes")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; the time by default")
    arguments = parser.parse_args()
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    share = -(-arguments.kills // len(MODES))
    print(f"seed {seed}\n\n| mode | kills | went on | runs ended | identical | signals | moments |")
    print("|---|---|---|---|---|---|---|", flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder))
        for mode in MODES:
            found = storm(mode, config, Path(folder), share, random.Random(f"{seed} {mode}"))
            print(found.row(mode), flush=True)
            failed |= bool(found.lost or found.different)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
