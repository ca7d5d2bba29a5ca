"""Ways to spoil bytes."""

from hypothesis import strategies as st


@st.composite
def spoiled(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut, with bits flipped, bytes put in, taken out, doubled, or overwritten."""
    kind = draw(st.sampled_from(("cut", "flip", "insert", "delete", "double", "overwrite", "head")))
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    length = draw(st.integers(1, 40))
    if kind == "cut":
        return content[:at]
    if kind == "head":
        return content[at:]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if kind == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=40)) + content[at:]
    if kind == "delete":
        return content[:at] + content[at + length :]
    if kind == "double":
        return content[: at + length] + content[at:]
    return content[:at] + draw(st.binary(min_size=length, max_size=length)) + content[at + length :]
