"""Texts that models and files wrote, made fit to be shown."""

_KEPT = "\t\n\r"
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in _KEPT} | {0x7F: 0x2421}
# The second set of control characters has no pictures.
_SHOWN = _PICTURES | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def printable(text: str) -> str:
    """The text with control characters as pictures of themselves: ␛ for escape.

    As they are they would steer a terminal (clear it, rename it, colour what follows), and HTML may not hold them. Tabs
    and line ends stay.
    """
    return text.translate(_SHOWN)
