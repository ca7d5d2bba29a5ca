"""Keys and passwords kept out of whatever is written: configurations, records, reports, messages."""

import os
import re
from collections.abc import Mapping
from typing import Any

SECRET_NAME = re.compile(
    r"(^|[_\-.])((?<!eos_)(?<!pad_)(?<!bos_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)token|api_?key|key|secret|password"
    r"|passwd|credentials?|auth|authorization|bearer)$",
    re.IGNORECASE,
)
"""Last words of option names that hold secrets: `hf_token` does, `max_tokens` and `eos_token` do not."""
SERVICE_KEY = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[\w\-.]{20,}|github_pat_\w{20,}|glpat-[\w\-.]{20,}|xox[abeprs]-[\w\-.]{16,}"
    r"|AKIA[A-Z0-9]{16}\b|AIza[\w\-]{35})"
)
"""Keys whose form alone tells them from names and paths: Hugging Face, GitHub, GitLab, Slack, AWS, Google."""
SK_KEY = re.compile(r"\bsk-[\w\-]{16,}")
"""Keys of OpenAI and those who follow it, and as yet names such as `sk-learn-prompts-v2` too."""
URL_LOGIN = re.compile(r"(?<=://)[^/\s@\"']+(?=@)")
URL_SECRET = re.compile(r"([?&][^=&\s]*(?:key|token|secret|password|sig|signature)=)[^&\s]+", re.IGNORECASE)
HEADER = re.compile(r"(\bBearer\s+|\bAuthorization\W+Basic\s+)[A-Za-z0-9+/=_\-.~]{16,}", re.IGNORECASE)
HIDDEN = "[hidden]"
UNBROKEN = 20
"""Letters and digits in a row: no word is as long."""
MIXED = 8
"""The same with digits, small letters and capitals among them."""

SECRET_VARIABLE = re.compile(r"((^|_)(key|auth)|api_?key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
"""Names of environment variables whose values are secrets."""
SHORTEST_SECRET = 8
"""Characters: a shorter value of a variable may stand in any text by chance."""


def redacted(value: Any, name: str = "") -> Any:
    """The same value without anything that looks like a secret, by the option's name or by its own look."""
    if isinstance(value, Mapping):
        return {key: redacted(part, str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(part, name) for part in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if SECRET_NAME.search(name) else hide(value)


def hide(text: str) -> str:
    """A text without keys and passwords: what looks like one, and what the environment holds as one."""
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    text = SERVICE_KEY.sub(HIDDEN, SK_KEY.sub(_hide_if_random, text))
    text = HEADER.sub(rf"\g<1>{HIDDEN}", text)
    return URL_SECRET.sub(rf"\g<1>{HIDDEN}", URL_LOGIN.sub(HIDDEN, text))


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable holds a secret, by its name."""
    return SECRET_VARIABLE.search(name) is not None


def _hide_if_random(found: re.Match[str]) -> str:
    """What was drawn at random is hidden; words between hyphens are a name."""
    parts = re.findall("[A-Za-z0-9]+", found[0])
    return HIDDEN if any(len(part) >= UNBROKEN or _is_mixed(part) for part in parts) else found[0]


def _is_mixed(part: str) -> bool:
    kinds = ("[0-9]", "[a-z]", "[A-Z]")
    return len(part) >= MIXED and all(re.search(kind, part) for kind in kinds)


def _environment_secrets() -> list[str]:
    """Longest first, since one may be a part of another. A path is no secret: it says where one is."""
    found = {value.strip() for name, value in os.environ.items() if is_secret_variable(name)}
    kept = [value for value in found if len(value) >= SHORTEST_SECRET and not os.path.exists(value)]
    return sorted(kept, key=len, reverse=True)
