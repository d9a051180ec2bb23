"""A run's folder: refused when it is there, whole when it is finished."""

import os
from itertools import count
from pathlib import Path

import pytest

from finetune.core.errors import RecipeError
from finetune.run.folder import MEASURED, RunFolder, open_run


def test_existing_run_is_refused_naming_the_ways_out(tmp_path):
    run = RunFolder(tmp_path / "runs" / "first")
    run.create(overwrite=False)
    (run.path / "recipe.yaml").write_text("model: {}\n")
    resume = rf"Go on with it by `finetune resume {run.path}`\. Or: Replace it with --overwrite, or .*--run NAME"
    with pytest.raises(RecipeError, match=rf"Expected no run at {run.path}, but there is one\. {resume}"):
        run.create(overwrite=False)
    run.finish({})
    with pytest.raises(RecipeError, match=r"but there is one\. Replace it with --overwrite, or .*--run NAME"):
        run.create(overwrite=False)
    assert run.recipe.is_file()
    run.create(overwrite=True)
    assert not list(run.path.iterdir())


def test_what_the_new_run_reads_is_not_removed_with_the_old_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunFolder(Path("runs/first"))
    run.create(overwrite=False)
    run.merged.mkdir()
    run.recipe.touch()
    with pytest.raises(RecipeError, match="to lie outside runs/first, which it replaces, but got runs/first/merged"):
        run.create(overwrite=True, needed=[tmp_path / "t.csv", Path("runs/first/merged")])
    assert run.merged.is_dir()
    run.create(overwrite=True, needed=[tmp_path / "t.csv", Path("runs/first-base")])
    assert not list(run.path.iterdir())


def test_a_folder_that_is_no_run_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(RecipeError, match="to be a run or absent, but it holds other files"):
        RunFolder(tmp_path).create(overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "all of it"


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".recipe.yaml.a1b2c3d4"]])
def test_what_a_process_left_that_was_killed_before_it_wrote_the_recipe_is_no_run(tmp_path, left):
    run = RunFolder(tmp_path / "runs" / "first")
    run.path.mkdir(parents=True)
    for name in left:
        (run.path / name).touch()
    run.create(overwrite=False)
    assert {path.name for path in run.path.iterdir()} <= {".lock"}
    with pytest.raises(RecipeError, match=r"holds no recipe\.yaml\. Start one with `finetune fit`"):
        open_run(run.path)


def test_a_link_in_a_run_is_replaced_and_what_it_names_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    run = RunFolder(tmp_path / "run")
    run.create(overwrite=False)
    run.recipe.touch()
    (run.path / "link").symlink_to(tmp_path / "mine")
    run.create(overwrite=True)
    assert not list(run.path.iterdir())
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "all of it"


def end_at(number: int) -> None:
    """Lets this process end at the removal of a file or folder with that number."""
    counts = count()

    def ending(remove):
        def removing(*words, **options):
            if next(counts) == number:
                os._exit(9)
            remove(*words, **options)

        return removing

    os.unlink, os.rmdir = ending(os.unlink), ending(os.rmdir)


def test_a_run_that_is_half_removed_is_unfinished_and_can_be_replaced(tmp_path):
    run = RunFolder(tmp_path / "run")
    for number in count():
        (run.merged / "deep").mkdir(parents=True)
        files = (run.recipe, run.finished, run.merged / "a", run.merged / "deep" / "b", run.adapter)
        for path in files:
            path.touch()
        child = os.fork()
        if child == 0:
            end_at(number)
            run.create(overwrite=True)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert run.is_finished == all(path.exists() for path in files)
        run.create(overwrite=True)
        assert list(run.path.iterdir()) == []
        if code == 0:
            break
    assert number == len(files) + 2


def test_a_run_is_finished_once_it_says_so(tmp_path):
    run = RunFolder(tmp_path)
    assert not run.is_finished
    run.finish({"versions": {}})
    assert run.is_finished


def test_open_run_names_the_nearest_run(tmp_path):
    for name in ("quickstart", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").touch()
    assert open_run(tmp_path / "quickstart").path == tmp_path / "quickstart"
    with pytest.raises(RecipeError, match=r"holds no recipe.yaml. Did you mean '.*/quickstart'"):
        open_run(tmp_path / "quikstart")
    with pytest.raises(RecipeError, match="Start one with `finetune fit`"):
        open_run(tmp_path / "nowhere" / "quickstart")


def test_places_are_inside_the_run_and_no_two_are_one(tmp_path):
    run = RunFolder(tmp_path)
    places = [value for name in dir(RunFolder) if isinstance(value := getattr(run, name), Path) and name != "path"]
    places += [run.measurement(model) for model in MEASURED] + [run.stage("train")]
    assert len(places) == len({*places}) > 20
    assert all(tmp_path in place.parents for place in places)


def test_trainings_of_a_soup_log_in_folders_of_their_own(tmp_path):
    run = RunFolder(tmp_path)
    members = run.members(3)
    assert members == [run, RunFolder(tmp_path / "members" / "2"), RunFolder(tmp_path / "members" / "3")]
    assert run.logs == []
    for member in members:
        member.path.mkdir(parents=True, exist_ok=True)
        member.logged.touch()
    assert run.logs == [member.logged for member in members]
