"""Texts of strangers in Markdown."""

import re
from html import escape

from finetune.core.console import make_harmless


def as_markdown(text: str) -> str:
    r"""Returns a text that Markdown shows as it is, on one line: no link, no picture, no HTML.

    Args:
        text: Any text.

    Example:
        >>> as_markdown("a_b [c](d) <img>")
        'a_b \\[c\\](d) &lt;img&gt;'
    """
    plain = make_harmless(" ".join(text.split()))
    return re.sub(r"[\\`*\[\]|~#]", r"\\\g<0>", escape(plain, quote=False))
