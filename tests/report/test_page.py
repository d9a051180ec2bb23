"""The page read back: its numbers are those of the files, it loads nothing, and what is not there is not shown."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from finetune.commands.cli import main
from finetune.core.errors import RecipeError
from finetune.report.page import write_report
from finetune.run.results import format_interpolation

from .conftest import METRICS, Page

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "figure", "figcaption"),
    *("h1", "h2", "p", "br", "wbr", "strong", "span", "code", "pre", "details", "summary", "ul", "li", "a", "div"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "img", "svg", "polyline", "circle", "line", "text"),
}
EVERYTHING = [
    *("results", "retention", "training", "interpolation", "calibration", "classes", "confusions", "mistakes"),
    *("proof", "use", "origin"),
]


def read_page(run) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def change(path: Path, **values):
    """Replaces values of a JSON file; None removes."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def percent(value):
    return f"{100 * value:.1f} %"


def decode(source) -> Image.Image:
    kind, _, content = source.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{image.format.lower()};base64"
    return image


def test_tables_hold_the_numbers_of_the_metrics_file(label_run):
    page = read_page(label_run)
    models = ("before", "linear probe", "after")
    expected = [["metric", *models, "difference, 95 % interval"]]
    expected += [
        ["test/accuracy", *(percent(METRICS[model]["test/accuracy"]) for model in models), "+50.5 (+41.2 to +60.6)"],
        ["test/accuracy_top5", "50.0 %", "100.0 %", "100.0 %", "+50.0 (-1.0 to +90.0) no clear difference"],
        ["test/mean_per_class_recall", "25.0 %", "60.0 %", "70.0 %", "-"],
    ]
    assert page.table("On the test rows") == expected
    assert page.table("Performance on other domains")[1:] == [
        ["photos", "test/mean_R@K", "40.0 %", "30.0 %", "25.0 %", "-10.0 (-15.0 to -4.0)"],
        ["maps", "test/accuracy", "20.0 %", "25.0 %", "-25.0 %", "-"],
        ["mean", "", "", "", "0.0 %", ""],
        ["worst", "", "", "", "25.0 %", ""],
    ]
    assert page.table("Interpolations tried")[1:] == [
        ["0", "25.0 %", "2.0 %", "0.0 %", "0.0 %"],
        ["0.75", "70.0 %", "2.0 %", "9.0 %", "3.0 %"],
        ["1", "75.0 %", "2.0 %", "25.0 %", "4.0 %"],
    ]
    assert page.table("Models that no other one beats in both")[1:] == [
        ["0", "25.0 %", "2.0 %", "0.0 %", "0.0 %"],
        ["image=1:0.5,text=0.3", "71.0 %", "2.0 %", "8.0 %", "3.0 %"],
        ["1", "75.0 %", "2.0 %", "25.0 %", "4.0 %"],
    ]
    assert page.table("Temperatures")[1:] == [
        ["trained", "0.0512", "12.3 %", "2.1 %"],
        ["fitted", "0.0731", "3.4 %", "2.2 %"],
    ]
    assert page.table("Points of the diagram")[1:] == [["35.0 %", "40.0 %", "25.0 %"], ["90.0 %", "85.0 %", "75.0 %"]]
    assert page.table("Largest differences")[1:] == [
        ["merged: image", "3.0e-07", "1e-05"],
        ["merged: text", "1.0e-07", "1e-05"],
    ]
    assert "Drift 0.062" in page.section("retention").text
    assert METRICS["notices"][0]["message"] in page.section("training").text
    assert format_interpolation(METRICS["interpolation"]) in page.section("interpolation").text
    assert "The text tower is the base's, byte for byte." in page.section("proof").text
    assert "open('merged')" in page.section("use").text
    assert "ab" * 32 in page.section("origin").text
    assert (label_run / "recipe.yaml").read_text() in page.section("origin").text
    assert page.anchors == EVERYTHING


def test_mistakes_are_the_surest_wrong_rows_with_their_pictures(label_run):
    page = read_page(label_run)
    predictions = pd.read_csv(label_run / "predictions.csv")
    wrong = predictions[predictions["label"] != predictions["prediction"]]
    assert f"{len(wrong)} of 39 test rows" in page.section("mistakes").text
    cards = page.inside(page.section("mistakes"), "li")
    assert len(cards) == min(24, len(wrong))
    for card, row in zip(cards, wrong.sort_values("score", ascending=False).itertuples(), strict=False):
        assert f"{row.label}, mistaken for {row.prediction} at {100 * row.score:.0f} %; base: {row.before}" in card.text
        assert [it.text for it in page.inside(card, "span")] == [f"table.csv:{row.row}"]
        (img,) = page.inside(card, "img")
        picture = decode(img.attributes["src"])
        assert max(picture.size) <= 160
        assert np.asarray(picture.convert("RGB")).mean() == pytest.approx(9.5 + 6 * (row.row - 2), abs=2)


def test_queries_are_the_worst_and_the_best_of_either_direction(caption_run):
    page = read_page(caption_run)
    assert page.anchors == ["results", "training", "queries", "proof", "use", "origin"]
    tables = [it for it in page.all("table") if it.attributes.get("class") == "queries"]
    found = [
        [[cell.text for cell in page.inside(line, "th", "td")] for line in page.inside(table, "tr")][1:]
        for table in tables
    ]
    captions = [[line[0] for line in lines] for lines in found[:2]]
    assert captions[0] == [f"picture number {index}" for index in range(19, 13, -1)]
    assert captions[1] == [f"picture number {index}" for index in range(6)]
    assert "rank 20, similarity 0.10" in found[0][0][1]
    assert "picture number 0" in found[0][0][2]
    assert found[1][0][2] == "the same"
    assert found[3][0][2].startswith("the same")
    assert "the same" not in str(found[0] + found[2])
    assert "picture number 0" in found[2][0][1]
    assert "picture number 19" in found[2][0][2]
    assert "base: picture number 7" in found[2][0][2]
    own, retrieved = page.inside(page.inside(tables[0], "tr")[1], "img")
    levels = [np.asarray(decode(img.attributes["src"]).convert("RGB")).mean() for img in (own, retrieved)]
    assert levels == pytest.approx([9.5 + 6 * 19, 9.5], abs=2)


def test_of_several_files_the_whole_path_is_shown(label_run):
    table = label_run.parents[1] / "table.csv"
    predictions = pd.read_csv(label_run / "predictions.csv").assign(file=str(table))
    predictions.to_csv(label_run / "predictions.csv", index=False)
    page = read_page(label_run)
    shown = [it.text for it in page.inside(page.section("mistakes"), "span")]
    assert shown
    assert all(re.fullmatch(rf"{re.escape(str(table))}:\d+", place) for place in shown)
    assert len(page.all("img")) == len(shown)


HOSTILE = "<script>alert('1')</script> \"&amp;<img src=x onerror=alert(1)> \N{HONEYBEE}"


def test_whatever_the_run_says_stays_text(label_run):
    name = HOSTILE.replace("/", "|")
    for file in ("predictions.csv", "metrics.csv"):
        table = pd.read_csv(label_run / file)
        table = table.replace("ant", HOSTILE).rename(columns={"train/temperature": f"train/{HOSTILE}"})
        table.to_csv(label_run / file, index=False)
    tables = {HOSTILE: METRICS["retention"]["tables"]["photos"]}
    change(label_run / "metrics.json", retention=METRICS["retention"] | {"tables": tables})
    change(label_run / "environment.json", device=HOSTILE)
    (label_run / "recipe.yaml").write_text((label_run / "recipe.yaml").read_text() + f"# </code>{HOSTILE}\n")
    (label_run / "merged" / "README.md").write_text(f"```python\n{HOSTILE}\n```\n")
    run = label_run.rename(label_run.with_name(name))
    html = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in html
    page = Page(html)
    assert {it.tag for it in page.elements} == TAGS
    assert not [key for it in page.elements for key in it.attributes if key.startswith("on")]
    assert [it.text for it in page.all("h1", "title")] == [name, name]
    for anchor in ("retention", "training", "classes", "confusions", "mistakes", "use", "origin"):
        assert HOSTILE in page.section(anchor).text, anchor
    check_that_nothing_is_loaded(page)


def check_that_nothing_is_loaded(page):
    for element in page.elements:
        for key, value in element.attributes.items():
            if key in ("src", "href", "srcset", "poster", "data", "action"):
                assert re.match(r"data:image/(png|jpeg);base64,|#", value), (element.tag, key)
    style = page.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style
    policies = [it.attributes["content"] for it in page.all("meta") if "http-equiv" in it.attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


@pytest.mark.parametrize("kind", ["label_run", "caption_run"])
def test_page_can_be_read_without_eyes_and_on_a_phone(kind, request):
    page = read_page(request.getfixturevalue(kind))
    check_that_nothing_is_loaded(page)
    assert page.all("html")[0].attributes["lang"] == "en"
    assert "width=device-width, initial-scale=1" in [it.attributes.get("content") for it in page.all("meta")]
    assert "prefers-color-scheme: dark" in page.all("style")[0].text
    levels = [int(it.tag[1]) for it in page.all("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [it.attributes["href"] for it in page.all("a")] == [f"#{anchor}" for anchor in page.anchors]
    assert all(it.attributes["alt"] for it in page.all("img"))
    for table in page.all("table"):
        assert page.inside(table, "caption")
        heads = page.inside(table, "th")
        assert {it.attributes["scope"] for it in heads} == {"col", "row"}
    for svg in page.all("svg"):
        assert svg.attributes.get("aria-hidden") == "true" or svg.attributes["aria-label"]


@pytest.mark.parametrize(
    "place", ["/home/someone/align", "models/align", f"/home/{'a long way ' * 12}/align", "C:\\\\x"]
)
def test_page_calls_a_local_base_by_its_public_name(label_run, place):
    settings = {
        "model": {"init_args": {"checkpoint": place, "image_lora": None}},
        **yaml.safe_load((label_run / "recipe.yaml").read_text()),
    }
    (label_run / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    checkpoint = {"name": place, "public_name": "sha256:0123", "sha256": "ab" * 32}
    change(label_run / "environment.json", checkpoint=checkpoint)
    page = read_page(label_run)
    assert place not in page.html
    assert place[-12:] not in page.html
    (recipe,) = [it.text for it in page.all("pre") if "init_args" in it.text]
    assert yaml.safe_load(recipe)["model"] == {"init_args": {"checkpoint": "sha256:0123", "image_lora": None}}
    assert yaml.safe_load(recipe)["data"] == settings["data"]


def test_rebuilt_page_is_the_first_one(label_run, capsys):
    first = write_report(label_run).read_bytes()
    (label_run / "report.html").unlink()
    assert main(["report", str(label_run)]) == 0
    assert capsys.readouterr().out.strip() == str(label_run / "report.html")
    assert (label_run / "report.html").read_bytes() == first


def test_page_is_written_without_torch(label_run):
    code = (
        "import sys\n"
        "from finetune.commands.cli import main\n"
        "assert main(['report', sys.argv[1]]) == 0\n"
        "print(*sorted({'torch', 'lightning', 'transformers', 'peft'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(label_run)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{label_run / 'report.html'}\n\n"


def test_sections_are_there_only_where_their_facts_are(label_run):
    absent = ("interpolation", "calibration", "retention", "drift", "linear probe", "difference")
    change(label_run / "metrics.json", **dict.fromkeys(absent))
    shutil.rmtree(label_run / "merged")
    (label_run / "metrics.csv").unlink()
    predictions = pd.read_csv(label_run / "predictions.csv").drop(columns="before")
    predictions["prediction"] = predictions["label"]
    predictions.to_csv(label_run / "predictions.csv", index=False)
    page = read_page(label_run)
    assert page.anchors == ["results", "origin"]
    assert page.table("On the test rows")[0] == ["metric", "before", "after"]
    assert "None" not in page.all("main")[0].text


def test_retention_loss_may_be_unknown(label_run):
    curve = [
        {"interpolation": point["interpolation"], "target": point["target"], "retention_loss": None}
        for point in METRICS["interpolation"]["curve"]
    ]
    interpolation = {"chosen": 1.0, "max_retention_loss": None, "curve": curve}
    change(label_run / "metrics.json", interpolation=interpolation)
    page = read_page(label_run)
    assert page.table("Interpolations tried")[1] == ["0", "25.0 %", "-", "-", "-"]
    section = page.section("interpolation")
    assert "retention loss" not in "".join(it.text for it in page.inside(section, "figure", "p"))


def test_charts_of_interpolations_show_what_was_chosen(label_run):
    falling = METRICS["interpolation"]["profiles"][0]["interpolation"]
    for chosen, legends in ((0.75, ["chosen: 0.75"] * 2), (falling, ["chosen: image=1:0.5,text=0.3"])):
        change(label_run / "metrics.json", interpolation={**METRICS["interpolation"], "chosen": chosen})
        page = read_page(label_run)
        section = page.section("interpolation")
        charts = page.inside(section, "figure")
        assert len(charts) == 2
        shown = "\n".join(chart.text for chart in charts)
        assert [line.strip() for line in shown.split("\n") if "chosen" in line] == legends
        circles = [len(page.inside(chart, "circle")) for chart in charts]
        assert circles == [6, 6]  # two lines of three points; three points, two profiles, and a ring around one
    earlier = {key: part for key, part in METRICS["interpolation"].items() if key != "profiles"}
    change(label_run / "metrics.json", interpolation=earlier)
    page = read_page(label_run)
    assert len(page.inside(page.section("interpolation"), "figure")) == 1


def test_labels_that_look_like_numbers_or_like_nothing_stay_what_they_are(label_run):
    predictions = pd.read_csv(label_run / "predictions.csv").replace({"ant": "007", "bee": "NA"})
    predictions.to_csv(label_run / "predictions.csv", index=False)
    found = read_page(label_run).table("Recall, the largest loss first")
    assert sorted(line[0] for line in found[1:]) == ["007", "NA", "cow"]


def test_several_labels_a_row_have_no_classes_to_compare(label_run):
    predictions = pd.read_csv(label_run / "predictions.csv").assign(score="0.5|0.1", prediction="ant|bee")
    predictions.to_csv(label_run / "predictions.csv", index=False)
    change(
        label_run / "metrics.json",
        after={"test/mAP": 0.5},
        before={"test/mAP": 0.25},
        **{"linear probe": {"test/mAP": 0.4}},
    )
    page = read_page(label_run)
    assert not {"classes", "confusions", "mistakes"} & set(page.anchors)
    summary = page.all("header")[0].text.replace("\N{NO-BREAK SPACE}", " ")
    assert "mAP went from 25.0 % to 50.0 %." in summary
    assert "A linear probe of the base's frozen embeddings reaches 40.0 % without fine-tuning." in summary


def test_absent_tables_and_images_are_reported(label_run):
    table = label_run.parents[1] / "table.csv"
    count = len(page_images := read_page(label_run).all("img"))
    sources = [img.attributes["src"] for img in page_images]
    first = int(re.search(r"csv:(\d+)", page_images[0].attributes["alt"])[1]) - 2
    (table.parent / f"{first}.png").unlink()
    without_one = read_page(label_run)
    assert [img.attributes["src"] for img in without_one.all("img")] == sources[1:]
    assert without_one.section("mistakes").text.count("missing image") == 1

    table.write_text(table.read_text().replace("ant", "bee"))
    changed = read_page(label_run)
    assert f"The table {table} has changed since the run" in changed.section("mistakes").text
    assert changed.section("mistakes").text.count("missing image") == count

    table.unlink()
    assert f"The table {table} is no longer there" in read_page(label_run).section("mistakes").text
    assert not read_page(label_run).all("img")


def test_table_that_only_foreign_code_reads_is_reported(label_run):
    recipe = yaml.safe_load((label_run / "recipe.yaml").read_text())
    recipe["data"]["class_path"] = "mine.Data"
    (label_run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    expected = "Only the recipe's own code can read its table. So the page shows no images."
    assert expected in read_page(label_run).section("mistakes").text


def test_all_images_may_have_gone(label_run):
    for file in label_run.parents[1].glob("*.png"):
        file.unlink()
    assert "can be read any more. So the page shows no images." in read_page(label_run).section("mistakes").text


def test_run_that_was_never_measured_is_refused(label_run):
    (label_run / "metrics.json").unlink()
    message = r"Expected .*insects to be measured, but it has no metrics.json.* `finetune resume .*insects`"
    with pytest.raises(RecipeError, match=message):
        write_report(label_run)
