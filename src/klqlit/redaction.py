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
SECRET_VALUE = re.compile(r"\b(sk|hf|gh[pousr]|github_pat|glpat|xox[abprs]|AKIA|AIza)[-_]?[A-Za-z0-9_\-]{16,}")
URL_LOGIN = re.compile(r"(?<=://)[^/\s@\"']+(?=@)")
URL_SECRET = re.compile(r"([?&][^=&\s]*(?:key|token|secret|password|sig|signature)=)[^&\s]+", re.IGNORECASE)
HEADER = re.compile(r"(\bBearer\s+|\bAuthorization\W+Basic\s+)[A-Za-z0-9+/=_\-.~]{16,}", re.IGNORECASE)
HIDDEN = "[hidden]"

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
    if value is not None and not isinstance(value, bool) and SECRET_NAME.search(name):
        return HIDDEN
    return hide(value) if isinstance(value, str) else value


def hide(text: str) -> str:
    """A text without keys and passwords: what looks like one, and what the environment holds as one."""
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    text = HEADER.sub(rf"\g<1>{HIDDEN}", SECRET_VALUE.sub(HIDDEN, text))
    return URL_SECRET.sub(rf"\g<1>{HIDDEN}", URL_LOGIN.sub(HIDDEN, text))


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable holds a secret, by its name."""
    return SECRET_VARIABLE.search(name) is not None


def _environment_secrets() -> list[str]:
    """Longest first, since one may be a part of another. A path is no secret: it says where one is."""
    found = {value.strip() for name, value in os.environ.items() if is_secret_variable(name)}
    kept = [value for value in found if len(value) >= SHORTEST_SECRET and not os.path.exists(value)]
    return sorted(kept, key=len, reverse=True)
