"""A judging process that is killed and started again asks for what is missing, and comes to the same numbers.

What is guaranteed, and counted here at the server:

- Ended by SIGTERM or SIGINT, it waits for the answers under way: no question is ever asked twice.
- Ended by SIGKILL, it loses no judgment that was in the cache, and each is there before the next is looked at. Asked
  again are the questions that were under way, as many as may be at once, and those whose answers came in within that
  last moment.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from judges.servers import JudgeServer, longer_wins, say
from klqlit.judges.cache import JudgmentCache

pytestmark = pytest.mark.slow

PAIRS, CONCURRENCY = 60, 4
QUESTIONS = 2 * PAIRS
LOST = 2 * CONCURRENCY


class Place:
    """Two files of completions, a server that sends a signal when it has been asked so often, and the command."""

    def __init__(self, folder):
        self.folder = folder
        self.process = None
        self.number, self.when = None, None
        lengths = random.Random(5)
        for side in "ab":
            rows = [{"prompt": f"p{i}", "completion": f"{side} " * lengths.randint(1, 9)} for i in range(PAIRS)]
            (folder / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answer(self, text, asked):
        if asked == self.when:
            self.process.send_signal(self.number)
        return say(longer_wins(text), delay=0.03)

    def run(self, number=None, when=None, *, name="whole"):
        """Run the command; it gets the signal `number` when `when` more questions have been asked."""
        self.number, self.when = number, None if when is None else len(self.server.asked) + when
        options = ["--a=a.jsonl", "--b=b.jsonl", f"--out={name}", f"--cache={name}.sqlite", "--judge=EndpointJudge"]
        options += ["--judge.model=m", f"--judge.base_url={self.server.base_url}", f"--judge.concurrency={CONCURRENCY}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "klqlit", "judge", *options],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        _, errors = self.process.communicate(timeout=300)
        return self.process.returncode, errors

    def kept(self, name):
        with JudgmentCache(self.folder / f"{name}.sqlite") as cache:
            return len(cache)

    def result(self, name):
        result = json.loads((self.folder / name / "judged.json").read_text())
        return {part: result[part] for part in ("counts", "statistics", "judge")}

    def judgments(self, name):
        return (self.folder / name / "judgments.jsonl").read_text()


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    with JudgeServer(place.answer) as place.server:
        yield place


def test_after_sigterm_and_sigint_no_question_is_asked_twice(place):
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        found, errors = place.run(number, random.randint(2, 45), name="stopped")
        assert found == status, errors
        assert f"klqlit: stopped: {place.kept('stopped')} of {QUESTIONS} judgments kept; run again to go on" in errors
        assert "Traceback" not in errors
        # What was under way has been waited for.
        assert place.kept("stopped") == len(place.server.asked) < QUESTIONS
        assert not (place.folder / "stopped").exists()
    assert place.run(name="stopped") == (0, "")
    assert set(Counter(place.server.asked).values()) == {1}
    assert len(place.server.asked) == QUESTIONS
    assert place.run(name="stopped") == (0, "")
    assert len(place.server.asked) == QUESTIONS

    assert place.run(name="whole") == (0, "")
    assert place.result("stopped") == place.result("whole")
    assert place.judgments("stopped") == place.judgments("whole")


def test_after_sigkill_only_the_last_moments_questions_are_asked_again(place):
    kills = 3
    for _ in range(kills):
        before, known = len(place.server.asked), place.kept("killed")
        found, _ = place.run(signal.SIGKILL, random.randint(0, 35), name="killed")
        assert found == -signal.SIGKILL
        # Every question that came was one that was not kept before, and all but those of the last moment are kept now.
        asked = place.server.asked[before:]
        assert len(set(asked)) == len(asked)
        assert len(asked) - (place.kept("killed") - known) <= LOST
    assert place.run(name="killed") == (0, "")
    assert place.kept("killed") == len(set(place.server.asked)) == QUESTIONS
    assert len(place.server.asked) - QUESTIONS <= kills * LOST

    assert place.run(name="whole") == (0, "")
    assert place.result("killed") == place.result("whole")
    assert place.judgments("killed") == place.judgments("whole")


def test_a_second_signal_stops_at_once(place):
    """An endpoint that does not answer holds nobody up."""

    def answer(text, asked):
        if asked == 3:
            place.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            place.process.send_signal(signal.SIGINT)
        return say(longer_wins(text), delay=0.0 if asked < 2 else 60.0)

    place.server.answer = answer
    start = time.monotonic()
    found, errors = place.run(name="stopped")
    assert found == 130
    assert "what was judged is kept; run again to go on" in errors
    assert place.kept("stopped") == 2
    assert time.monotonic() - start < 55
