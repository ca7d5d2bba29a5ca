"""Online RLHF of language models with a token-level critic: KLQ and PPO on Lightning.

Names are imported when they are first used, so that `import klqlit` and `--help` cost nothing.
"""

from importlib import import_module
from typing import Any

from klqlit.version import __version__

_HOMES = {
    "AdaptiveKL": "klqlit.algorithms.ppo",
    "KLQ": "klqlit.algorithms.klq",
    "LinearSchedule": "klqlit.algorithms.schedules",
    "Optimization": "klqlit.algorithms.optimization",
    "PPO": "klqlit.algorithms.ppo",
    "RLHFModule": "klqlit.algorithms.base",
    "ClippedSurrogate": "klqlit.algorithms.surrogates",
    "PenalisedSurrogate": "klqlit.algorithms.surrogates",
    "SquaredError": "klqlit.algorithms.q_losses",
    "HuberError": "klqlit.algorithms.q_losses",
    "ValueClippedError": "klqlit.algorithms.q_losses",
    "RatioClippedError": "klqlit.algorithms.q_losses",
    "DoubleClippedError": "klqlit.algorithms.q_losses",
    "SupervisedFinetuning": "klqlit.finetuning.sft",
    "RewardModelling": "klqlit.finetuning.reward",
    "LanguageModel": "klqlit.models.language_model",
    "LanguagePolicy": "klqlit.models.policy",
    "NoCritic": "klqlit.models.critic",
    "SeparateCritic": "klqlit.models.critic",
    "SharedCritic": "klqlit.models.critic",
    "EndpointJudge": "klqlit.judges.endpoint",
    "Judge": "klqlit.judges.base",
    "LengthJudge": "klqlit.judges.baselines",
    "LikelihoodJudge": "klqlit.judges.likelihood",
    "RewardJudge": "klqlit.judges.reward",
    "RougeJudge": "klqlit.judges.baselines",
    "FunctionReward": "klqlit.rewards.function",
    "Reward": "klqlit.rewards.base",
    "RewardModel": "klqlit.rewards.model",
    "RewardShaping": "klqlit.rewards.shaping",
    "Sampler": "klqlit.rollout.sampling",
    "CompletionDataModule": "klqlit.data.supervised",
    "HHDialogue": "klqlit.data.hh",
    "OnlineDataModule": "klqlit.data.online",
    "PreferenceDataModule": "klqlit.data.supervised",
    "Source": "klqlit.data.source",
    "TableSource": "klqlit.data.columns",
    "TLDRSummaries": "klqlit.data.tldr",
    "FullySharded": "klqlit.strategies.fully_sharded",
    "CompiledBlocks": "klqlit.callbacks.compiled_blocks",
    "EntropyCollapse": "klqlit.callbacks.alarms",
    "Export": "klqlit.callbacks.export",
    "KLBudget": "klqlit.callbacks.kl_budget",
    "OverLength": "klqlit.callbacks.alarms",
    "RaiseTau": "klqlit.callbacks.kl_budget",
    "StopRun": "klqlit.callbacks.kl_budget",
    "JudgedWinRate": "klqlit.callbacks.judged",
    "Progress": "klqlit.callbacks.progress",
    "SampleTable": "klqlit.callbacks.samples",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'klqlit' has no attribute {name!r}")
    return vars(import_module(_HOMES[name]))[name]


def __dir__() -> list[str]:
    return __all__
