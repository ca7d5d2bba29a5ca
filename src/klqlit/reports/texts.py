"""What the page says above its figures: titles, and how to read what follows."""

TEXTS: dict[str, tuple[str, str]] = {
    "summary": (
        "Who gets how far",
        "J = score − τ KL is what both algorithms maximise: the score of a completion less τ for each nat by which "
        "its probability leaves the reference's. Scores at different KL are not comparable; J at different τ neither.",
    ),
    "curves": (
        "Learning curves",
        "Lines: rollouts of each phase, before its updates. Dots: held-out prompts. Means over seeds; from three "
        "seeds on with a band, the 95 % t-interval at each phase (cut where it leaves the frame), with two seeds each"
        " of them thin. Seconds are those of sampling, scoring and updates, without validation, averaged over seeds.",
    ),
    "time": (
        "Where the time goes",
        "Wall-clock seconds of one update (phase), by stage.",
    ),
    "frontier": (
        "What score costs in KL",
        "One point a τ (the small numbers), at the end of training; higher and further left is better. Bars: 95 % "
        "t-intervals over seeds, from three seeds on.",
    ),
    "wins": (
        "Who wins under a judge, over τ",
        "Win rates of runs with the same τ, ties half; above 50 % the first wins. Length-controlled: what a logistic "
        "regression gives to completions of equal length. One comparison has its own interval, over prompts. Several "
        "seeds share their prompts, so that their verdicts are not independent and are not pooled as if they were: "
        "the interval counts both seeds and prompts as drawn (two-way clustered, Student's t with one degree of "
        "freedom less than seeds; never narrower than over prompts with just these seeds). It speaks of new seeds on "
        "new prompts, and is wide with few seeds.",
    ),
    "overoptimisation": (
        "Does the truth follow the proxy?",
        "The proxy is the reward that is trained on, the gold score the truth behind it, which is only measured. "
        "Gains over the reference on held-out prompts in standard deviations of the reference's scores, a point a "
        "validation, means over seeds. Where the proxy rises and gold does not, the reward model is being exploited.",
    ),
    "critic": (
        "Does the critic tell the truth?",
        "Response tokens of held-out prompts at the last validation, in ten bins of equally many tokens by what was "
        "predicted; on the grey line predictions are right on average. What V should predict is the realised return: "
        "the shaped score less τ times the log-ratios from the token on, undiscounted. Q = V + τ log(π/π_b) is held "
        "against the same without the token's own penalty. Explained variance: 1 − var(return − V) / var(return) on "
        "each phase's rollouts; 0 is what a constant explains.",
    ),
    "samples": (
        "Samples side by side",
        "The same prompts answered by the reference and by each run of a τ and seed, at the end. Texts are as the "
        "models wrote them.",
    ),
    "tokens": (
        "Token by token",
        "What the algorithm saw of the first held-out prompts at the last validation. log(π/π_b) is how much likelier"
        " the policy makes the token than the reference; V what the critic expects from there on; Q = V + τ "
        "log(π/π_b); the return is what came; the advantage is the algorithm's own (PPO's are whitened over the "
        "validation).",
    ),
    "judged": (
        "Judges",
        "What may change a verdict is part of the judge: its model, its template and settings.",
    ),
    "runs": (
        "Runs",
        "Every run that was found, those that no mean counts included.",
    ),
    "settings": (
        "Settings",
        "What differs between the runs of a task, then each configuration as it ran. Values that look like secrets "
        "are hidden.",
    ),
}
"""Title and lead by a section's key."""

FIT = "python -m klqlit fit --config FILE --run_dir FOLDER"
OTHER_SEED = f"`{FIT} --seed_everything 2` adds a seed"
OTHER_TAU = f"`{FIT} --model.tau 0.1` adds a tau"
JUDGE = (
    "`python -m klqlit judge --a RUN --b RUN --judge LengthJudge` compares two runs (any other judge in its place); "
    "then give the report that folder, too"
)
