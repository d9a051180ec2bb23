"""Lists the public names with their signatures; `python tests/list_public_names.py` writes `public_names.txt` anew."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

import finetune

KEPT = Path(__file__).with_name("public_names.txt")
WIDEST = 120


def list_public_names() -> str:
    """Every name of `finetune.__all__` as its source defines it, then the classes of what the functions return."""
    things = [getattr(finetune, name) for name in finetune.__all__]
    parts = [*things, *(kind for kind in list_returned() if kind not in things)]
    return "\n\n".join("\n".join(_describe(thing)) for thing in parts) + "\n"


def list_returned() -> list[type]:
    """The toolkit's records (named tuples, dataclasses) that public functions return, by name."""
    found = set()
    for name in finetune.__all__:
        thing = getattr(finetune, name)
        if not inspect.isclass(thing):
            returned = typing.get_type_hints(thing)["return"]
            found |= {kind for kind in (returned, *typing.get_args(returned)) if inspect.isclass(kind)}
    records = (kind for kind in found if issubclass(kind, tuple) or dataclasses.is_dataclass(kind))
    return sorted((kind for kind in records if kind is not tuple), key=lambda kind: kind.__name__)


def list_members(kind: type) -> dict[str, ast.FunctionDef | ast.AnnAssign]:
    """Fields, methods and properties of a class, its constructor too, and what it has of classes that are not public.

    Lightning's hooks (`on_...`) are its business and not listed.
    """
    found: dict[str, ast.FunctionDef | ast.AnnAssign] = {}
    for base in kind.__mro__:
        if not base.__module__.startswith("finetune.") or (base is not kind and base.__name__ in finetune.__all__):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for member in tree.body:
            if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                name = member.target.id
            elif isinstance(member, ast.FunctionDef):
                name = member.name
            else:
                continue
            if not name.startswith(("_", "on_")) or name in ("__init__", "__call__"):
                found.setdefault(name, member)
    return found


def _describe(thing: object) -> Iterator[str]:
    if not inspect.isclass(thing):
        (tree,) = ast.parse(inspect.getsource(thing)).body  # type: ignore[arg-type]
        yield from _write(tree)
        return
    bases = [base.__name__ for base in thing.__bases__ if base is not object]
    yield f"class {thing.__name__}({', '.join(bases)})" if bases else f"class {thing.__name__}"
    for member in list_members(thing).values():
        yield from (f"    {line}" for line in _write(member))


def _write(member: ast.AST) -> Iterator[str]:
    if not isinstance(member, ast.FunctionDef):
        yield ast.unparse(member)
        return
    decorators = "".join(f"@{ast.unparse(decorator)} " for decorator in member.decorator_list)
    returns = f" -> {ast.unparse(member.returns)}" if member.returns else ""
    line = f"{decorators}{member.name}({ast.unparse(member.args)}){returns}"
    if len(line) <= WIDEST:
        yield line
        return
    yield f"{decorators}{member.name}("
    given = member.args
    defaults = [None] * (len(given.args) - len(given.defaults)) + given.defaults
    for argument, default in zip(given.args, defaults, strict=True):
        yield f"    {ast.unparse(argument)}" + (f" = {ast.unparse(default)}" if default else "")
    assert [given.kwonlyargs, given.vararg, given.kwarg] == [[], None, None], member.name
    yield f"){returns}"


if __name__ == "__main__":
    KEPT.write_text(list_public_names(), encoding="utf-8")
