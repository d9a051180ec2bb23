"""The benchmark as a picture: what each method learned of a task, and what it changed on other domains.

    python benchmarks/transfer_plot.py --output docs/pictures/transfer.svg

Reads the results of `transfer.py`; runs nothing. A point is the mean over the seeds, at the setting that suits the
task's validation rows best; recipes run as shipped.
"""

import argparse
import statistics
from html import escape
from pathlib import Path
from typing import NamedTuple

from transfer_left_out import OURS
from transfer_methods import METHODS
from transfer_results import Results
from transfer_table import figures, zero_shot_figures
from transfer_tasks import TASKS, Task

from finetune.core.files import write_text

WIDTH, LINE, TOP, NAMES, GAP = 920, 36, 84, 226, 36
LEARNED, CHANGED = (0.0, 100.0), (-30.0, 10.0)
"""Ends of the two axes: per cent on the target, points on other domains."""
OUR_STYLE, OTHER_STYLE, BASE_STYLE = (
    'r="6" fill="#0b6bcb"',
    'r="4.5" fill="#9aa1ab" fill-opacity="0.85"',
    'r="4.5" fill="#ffffff" stroke="#374151" stroke-width="1.5"',
)
LEGEND = {"base, zero-shot": BASE_STYLE, "other methods": OTHER_STYLE, "the recipe, as shipped": OUR_STYLE}


class Point(NamedTuple):
    """What a method did in a task.

    Attributes:
        title: The method.
        learned: Per cent on the target.
        changed: Points on other domains; None where there are none.
        style: How it is drawn.
    """

    title: str
    learned: float
    changed: float | None
    style: str


def find_points(results: Results, task: Task) -> list[Point]:
    """Reads the points of a task: the base, the other methods, and on top the recipe that stands for ours there.

    Args:
        results: The cells.
        task: The task.
    """
    zero_shot = zero_shot_figures(results, task)
    points = [Point("base", 100 * zero_shot["target"], 0.0, BASE_STYLE)]
    own: list[Point] = []
    for method in METHODS[1:]:
        is_ours = method.name in OURS and method.handles(task)
        if not method.handles(task) or (method.title.startswith("ours") and not is_ours):
            continue
        records = results.repeats(task, method, results.choose(task, method).setting).values()
        places = [figures(record) for record in records]
        if not places:
            continue
        others = [name for name in places[0] if name in task.retention() and name in zero_shot]
        changes = [place[name] - zero_shot[name] for place in places for name in others]
        learned = 100 * statistics.mean(place["target"] for place in places)
        changed = 100 * statistics.mean(changes) if changes else None
        point = Point(method.title, learned, changed, OUR_STYLE if is_ours else OTHER_STYLE)
        (own if is_ours else points).append(point)
    return points + own[-1:]


def find_tasks(results: Results) -> dict[str, list[Point]]:
    """Reads the points of each task that was measured before anything was learned, by its title.

    Args:
        results: The cells.
    """
    return {task.title: find_points(results, task) for task in TASKS if zero_shot_figures(results, task)}


def draw(tasks: dict[str, list[Point]]) -> str:
    """Draws two panels with a line for each task.

    Args:
        tasks: Points by the task's title.
    """
    half = (WIDTH - NAMES - 2 * GAP) / 2
    panels = (
        ("on the target, %", LEARNED, NAMES, 20.0),
        ("change on other domains, points", CHANGED, NAMES + half + GAP, 10.0),
    )
    height = TOP + LINE * len(tasks) + 30
    bottom = height - 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#1f2937">',
        '<title id="title">What each method learned, and what it lost on other domains</title>',
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    for place, (name, style) in enumerate(LEGEND.items()):
        x = NAMES + 190 * place
        parts += [f'<circle cx="{x}" cy="22" {style}/>', f'<text x="{x + 12}" y="27">{name}</text>']
    for title, (low, high), left, step in panels:
        parts.append(f'<text x="{left:g}" y="62" font-weight="600">{title}</text>')
        for count in range(int((high - low) / step) + 1):
            value = low + count * step
            x = left + half * (value - low) / (high - low)
            colour = "#9ca3af" if value == 0 and low < 0 else "#e5e7eb"
            parts += [
                f'<path d="M{x:.1f} {TOP - 10} V{bottom}" stroke="{colour}"/>',
                f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" font-size="12">{value:g}</text>',
            ]
    for place, (task, points) in enumerate(tasks.items()):
        y = TOP + LINE * (place + 0.5)
        parts.append(f'<text x="{NAMES - 16}" y="{y + 4:g}" text-anchor="end">{escape(task)}</text>')
        for point in points:
            for (_, (low, high), left, _), value in zip(panels, (point.learned, point.changed), strict=True):
                if value is not None:
                    x = left + half * (value - low) / (high - low)
                    about = escape(f"{point.title}: {value:.1f}")
                    parts.append(f'<circle cx="{x:.1f}" cy="{y:g}" {point.style}><title>{about}</title></circle>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the SVG")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "transfer")
    options = parser.parse_args()
    results = Results(options.results)
    write_text(options.output, draw(find_tasks(results)))


if __name__ == "__main__":
    main()
