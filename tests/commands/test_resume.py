"""`finetune resume`: the stages that are left, and the same summary in the end."""

import shutil

from finetune.commands.cli import main


def test_finished_run_has_nothing_left_and_shows_what_fit_showed(two_towers, capsys):
    before = {path: path.stat().st_mtime_ns for path in two_towers.path.rglob("*")}
    assert main(["resume", str(two_towers.path)]) == 0
    assert capsys.readouterr().out == f"{two_towers.path} is finished: nothing is left to do.\n\n{two_towers.shown}"
    assert {path: path.stat().st_mtime_ns for path in two_towers.path.rglob("*")} == before


def test_summary_lists_every_artifact_with_its_proof(two_towers, with_head):
    proof = "reproduces the trained model within"
    assert f"merged      {two_towers.path / 'merged'}: {proof}" in two_towers.shown
    assert "classifier " not in two_towers.shown
    for name in ("merged     ", "classifier "):
        assert f"{name} {with_head.path / name.strip()}: {proof}" in with_head.shown
    for run in (two_towers, with_head):
        assert run.shown.splitlines()[-1] == f"run         {run.path}"


def test_run_that_was_stopped_goes_on_where_it_was(two_towers, tmp_path, capsys):
    run = tmp_path / "stopped"
    shutil.copytree(two_towers.path, run)
    for name in ("finished.json", "report.html", "metrics.json", "stages/report.json"):
        (run / name).unlink()
    shutil.rmtree(run / "measurements" / "after")
    trained = (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert main(["resume", str(run)]) == 0
    assert capsys.readouterr().out == two_towers.shown.replace(str(two_towers.path), str(run))
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == trained
    assert (run / "metrics.json").read_text() == (two_towers.path / "metrics.json").read_text()
    assert (run / "finished.json").is_file()


def test_only_a_run_is_resumed(refused, two_towers):
    assert "Expected nowhere to be a run, but it holds no recipe.yaml" in refused("resume", "nowhere")
    assert f"Did you mean '{two_towers.path}'?" in refused("resume", two_towers.path.parent / "colors")


def test_run_of_an_earlier_release_is_refused_with_the_new_names(refused, two_towers, tmp_path):
    recipe = (two_towers.path / "recipe.yaml").read_text().replace("  interpolation: ", "  alpha: ")
    (tmp_path / "recipe.yaml").write_text(recipe)
    expected = f"error: {tmp_path}/recipe.yaml: run.alpha is now run.interpolation. Rename the key.\n"
    assert refused("resume", tmp_path) == expected
