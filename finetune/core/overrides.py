"""Words of the command line that replace values of a recipe."""

import re
from collections.abc import Sequence


def write_out_nulls(words: Sequence[str]) -> list[str]:
    """Writes `--a.b null` as a piece of YAML: jsonargparse hands a null that lies deep on as a text.

    Args:
        words: Options with their values, in either form.

    Example:
        >>> write_out_nulls(["--data.table.label", "null", "--run.seed=3"])
        ['--config', '{data: {table: {label: null}}}', '--run.seed=3']
    """

    def write(option: re.Match[str]) -> str:
        keys = option[1].split(".")
        return "--config\0{" + ": {".join(keys) + ": null" + "}" * len(keys)

    joined = re.sub(r"(?<![^\0])--(\w+(?:\.\w+)+)[\0=]null(?![^\0])", write, "\0".join(words))
    return joined.split("\0") if words else []
