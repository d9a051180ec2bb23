"""What a card says of a training: its data, its base, the terms of both."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow.compute
from pyarrow import parquet

from finetune.core.files import read_json
from finetune.data.table.splits import SPLITS
from finetune.export.markdown import as_markdown
from finetune.model.base import Base
from finetune.model.licence import Licence, read_licence
from finetune.run.folder import RunFolder

_OF_HUB = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(@[^/]*)?/")

SHOWN = 3  # templates
_KINDS = {"train": "training", "val": "validation", "test": "test"}


class Facts(NamedTuple):
    """What is known of a training.

    Attributes:
        base: Fingerprint of the base's weights.
        licence: The base's; None where its card states none.
        rows: How many rows each split had.
        has_captions: Whether captions were learned, of which rows with labels may have some, too.
        classes: How many classes; 0 where there are captions alone.
        templates: The sentences that class names were put into.
        table: Fingerprint of the table's files, see `fingerprint_table`; None for a DataFrame.
        files: How many files these are.
        datasets: The data sets of the hub that the table was read from.
        versions: Those of the libraries that decide the numbers.
    """

    base: str
    licence: Licence | None
    rows: Mapping[str, int]
    has_captions: bool
    classes: int
    templates: tuple[str, ...]
    table: str | None
    files: int
    datasets: tuple[str, ...]
    versions: Mapping[str, str]


def read_facts(run: RunFolder, base: Base) -> Facts:
    """Reads what a run keeps of its training.

    Args:
        run: The run.
        base: Its base.
    """
    environment = read_json(run.environment)
    files = environment["table"]
    names = (_OF_HUB.match(file["path"]) for file in files)
    return Facts(
        base=base.fingerprint,
        licence=read_licence(base),
        rows=_count_rows(run),
        has_captions=environment.get("captions", not environment["classes"]),  # earlier releases did not say
        classes=len(environment["classes"]),
        templates=tuple(environment.get("templates", ())) if environment["classes"] else (),
        table=fingerprint_table(files),
        files=len(files),
        datasets=tuple(dict.fromkeys(found["name"] for found in names if found)),
        versions=environment["versions"],
    )


def fingerprint_table(files: Iterable[Mapping[str, Any]]) -> str | None:
    """Returns one SHA-256 for the files of a table, which anyone with the same files finds again, wherever they lie.

    Of one file it is its own. Of several it is that of their sorted SHA-256, a line each, as of
    `sha256sum FILES | cut -c1-64 | sort | sha256sum`. A remote file counts by its server's version.

    Args:
        files: `table` of `environment.json`.

    Returns:
        None where there are no files, or a server says nothing of one.

    Example:
        >>> fingerprint_table([{"path": "a.csv", "sha256": "ab12"}])
        'ab12'
    """
    found = sorted(str(file["sha256"] if "sha256" in file else file["version"]) for file in files)
    if not all(found) or not found:
        return None
    if len(found) == 1:
        return found[0]
    return hashlib.sha256("".join(f"{one}\n" for one in found).encode()).hexdigest()


def describe_training(base_model: str, facts: Facts) -> str:
    """Returns what a card says of a training, Markdown.

    Args:
        base_model: Name of the base.
        facts: What is known of the training.
    """
    parts = [f"{count:,} {_KINDS[split]} rows" for split, count in facts.rows.items() if count]
    told = ["captions"] * facts.has_captions + [f"labels of {facts.classes:,} classes"] * (facts.classes > 0)
    lines = [f"- Base: `{base_model}`, weights with the fingerprint `{facts.base}`."]
    if parts:
        lines.append(f"- Data: images with {', and '.join(told)}; {', '.join(parts)}.")
    if facts.templates:
        shown = ", ".join(f'"{as_markdown(template)}"' for template in facts.templates[:SHOWN])
        more = f", and {len(facts.templates) - SHOWN} more" if len(facts.templates) > SHOWN else ""
        start = "For evaluation, class names" if facts.has_captions else "Class names"
        lines.append(f"- {start} were put into {shown}{more}.")
    if facts.datasets:
        lines.append(f"- Data sets of the hub: {', '.join(f'`{name}`' for name in facts.datasets)}.")
    if facts.table:
        of = "the table" if facts.files == 1 else f"the {facts.files:,} files of the table (of their sorted SHA-256)"
        lines.append(f"- SHA-256 of {of}: `{facts.table}`; the images are no part of it.")
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return "\n".join([*lines, f"- Versions: {versions}."])


def describe_licence(licence: Licence | None) -> str:
    """Returns what a card says of the terms of a model, Markdown.

    Args:
        licence: That of the base; None where it is not known.
    """
    if licence is None:
        return (
            "Not known: the base has no model card beside its weights that states one. A fine-tuned model is under the "
            "terms of its base, and those of the data may add to them. Find them out, and state them as `license:` in "
            "the lines at the top of this file before you hand the model on."
        )
    return (
        f"That of the base, `{licence.identifier}`, {licence.source}. A fine-tuned model is under the terms of its "
        "base, and those of the data may add to them."
    )


def _count_rows(run: RunFolder) -> dict[str, int]:
    if not run.table.is_file():  # of an earlier release
        return {}
    splits = parquet.read_table(run.table, columns=["split"]).column("split")
    counts = {str(row["values"]): int(row["counts"]) for row in pyarrow.compute.value_counts(splits).to_pylist()}
    return {split: counts.get(split, 0) for split in SPLITS}
