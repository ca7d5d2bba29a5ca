"""HH: dialogues with a helpful and harmless assistant (Bai et al., 2022, arXiv 2204.05862)."""

from collections import Counter
from typing import final

from lightning.pytorch.utilities import rank_zero_info

from klqlit.data.reading import named, text
from klqlit.data.shortening import longest
from klqlit.data.source import Row, Source, Split, TokenCounter
from klqlit.data.splits import SplitRows

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"


COLUMNS = ("prompt", "completion", "chosen", "rejected")


@final
class HHDialogue(Source):
    r"""Prompts as `\n\nHuman: ..\n\nAssistant:`, completions with exactly one leading space.

    Reads transcripts (`chosen` and `rejected`, or `chosen` alone; their last assistant turn is the completion), a
    `prompt` with completions beside it, or prompts alone, also as a JSON list of first human turns. The chosen
    completion is the one that supervised fine-tuning imitates. Rows that cannot be used are left out and counted in
    one line: several human turns (where `single_turn`), chosen and rejected answers to different prompts, empty
    completions.

    Args:
        path: a file (.json, .jsonl, .csv or .parquet, plain or .gz) or a data set's name on the hub.
        data_dir: subdirectory on the hub, such as "helpful-base" of Anthropic/hh-rlhf.
        validation_path: validation rows; None to hold some out of `path`, by prompt.
        validation_rows: rows to hold out; None for one in twenty, at most 1,000.
        single_turn: keep only dialogues with one human turn.
    """

    def __init__(
        self,
        path: str,
        *,
        data_dir: str | None = None,
        validation_path: str | None = None,
        validation_rows: int | None = None,
        single_turn: bool = True,
    ) -> None:
        self._single_turn = single_turn
        self._splits = SplitRows(
            path,
            data_dir=data_dir,
            validation_path=validation_path,
            validation_rows=validation_rows,
            formatted=self._format,
        )

    def rows(self, split: Split) -> list[Row]:
        return self._splits.rows(split)

    def shorten(self, prompt: str, count: TokenCounter, limit: int) -> str:
        """The prompt without its earliest turns; where the last human turn alone is too long, without its first words.

        Raises:
            ValueError: `limit` does not hold one word between the turn marks.
        """
        while count(prompt) > limit and prompt.count(HUMAN) > 1:
            prompt = HUMAN + prompt.split(HUMAN, 2)[2]
        if count(prompt) <= limit:
            return prompt
        words = prompt.removeprefix(HUMAN).removesuffix(ASSISTANT).strip().split(" ")
        kept = longest(len(words) - 1, lambda k: count(_as_prompt(" ".join(words[len(words) - k - 1 :]))) <= limit)
        if kept is None:
            raise ValueError(f"max_prompt_tokens={limit} leaves no room for a word between the turn marks: raise it")
        return _as_prompt(" ".join(words[len(words) - kept - 1 :]))

    def _format(self, rows: list[Row], path: str) -> list[Row]:
        kept, reasons = [], Counter[str]()
        for number, row in enumerate(rows, start=1):
            formatted, reason = self._row(row, f"{path}, row {number}")
            if reason is None:
                kept.append(formatted)
            else:
                reasons[reason] += 1
        if reasons:
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            rank_zero_info(f"{path}: {len(kept)} of {len(rows)} rows used; left out: {counts}")
        if not kept:
            raise ValueError(f"{path}: not one of its {len(rows)} rows can be used")
        return kept

    def _row(self, row: Row, where: str) -> tuple[Row, str | None]:
        """The row in our format, and why it cannot be used, None where it can."""
        found = {name: text(row, name, where) for name in COLUMNS if name in row}
        if not found.keys() & {"prompt", "chosen"}:
            raise ValueError(f"{where} has neither `chosen` nor `prompt`; it has {named(row)}")
        prompts, completions = set(), {}
        for name in found.keys() - {"prompt"}:
            if found[name].startswith(HUMAN):
                prompt, completions[name] = _split(found[name], where)
                prompts.add(prompt)
            elif "prompt" in found:
                completions[name] = found[name].strip()
            else:
                raise ValueError(
                    f"{where}: {name!r} must be a transcript that opens with {HUMAN!r}, or have a `prompt`"
                )
        if not prompts:
            prompts = {_as_prompt(found["prompt"])}
        prompt = min(prompts)
        others = {name: value for name, value in row.items() if name not in found}
        formatted = others | {"prompt": prompt} | {name: " " + value for name, value in completions.items()}
        if "chosen" in formatted:
            formatted.setdefault("completion", formatted["chosen"])
        return formatted, self._unusable(prompts, list(completions.values()))

    def _unusable(self, prompts: set[str], completions: list[str]) -> str | None:
        if len(prompts) > 1:
            return "whose chosen and rejected answer different prompts"
        if not all(completions):
            return "with an empty completion"
        if self._single_turn and min(prompts).count(HUMAN) > 1:
            return "of several human turns"
        return None


def _split(transcript: str, where: str) -> tuple[str, str]:
    prompt, mark, completion = transcript.rpartition(ASSISTANT)
    if not mark or HUMAN in completion:
        raise ValueError(f"{where}: the transcript must end in an assistant turn, opened by {ASSISTANT!r}")
    return prompt + ASSISTANT, completion.strip()


def _as_prompt(turn: str) -> str:
    """A first human turn, or a whole prompt, in the format of the transcripts."""
    turn = turn.rstrip() if turn.startswith(HUMAN) else f"{HUMAN} {turn.strip()}"
    return turn if turn.endswith(ASSISTANT) else turn + ASSISTANT
