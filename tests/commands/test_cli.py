"""The commands in real processes: quick to start, clear when the input is at fault."""

import subprocess
import sys
import time

import pytest

from finetune.commands.cli import main


def finetune(*words, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "finetune", *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_help_and_recipes_do_not_import_torch(tmp_path):
    script = (
        "import sys; from finetune.commands.cli import main\n"
        "for words in (['recipes', 'list'], ['recipes', 'show', 'quickstart'], ['fit', '--help']):\n"
        "    try:\n        main(words)\n    except SystemExit as done:\n        assert not done.code\n"
        "assert not {'torch', 'transformers', 'lightning', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


def test_help_names_every_command(tmp_path):
    start = time.perf_counter()
    done = finetune("--help", cwd=tmp_path)
    assert time.perf_counter() - start < 5  # measured: 0.07 s; this catches an import of torch on a busy machine
    names = ("fit", "test", "export", "verify", "report", "classify", "prepare", "recipes")
    for command in (*names, "embed", "resume", "compare", "check", "suspects"):
        assert f"\n    {command} " in done.stdout


def test_copied_recipe_is_the_shipped_one_and_never_overwrites(tmp_path, capsys):
    target = tmp_path / "own.yaml"
    assert main(["recipes", "copy", "quickstart", str(target)]) == 0
    assert capsys.readouterr().out == f"wrote {target}\n"
    assert main(["recipes", "show", "quickstart"]) == 0
    assert target.read_text() == capsys.readouterr().out
    target.write_text("mine")
    assert main(["recipes", "copy", "quickstart", str(target)]) == 2
    assert "Expected" in capsys.readouterr().err
    assert target.read_text() == "mine"


def test_recipes_alone_are_listed(capsys):
    assert main(["recipes", "list"]) == 0
    listed = capsys.readouterr().out
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out == listed
    assert "\nquickstart " in f"\n{listed}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipes", "show", "quikstart"], "Did you mean 'quickstart'"),
        (["fit", "--config", "quikstart"], "Did you mean 'quickstart'"),
        (["fit"], "Expected --config RECIPE"),
        (["test"], "Expected either RUN or --config RECIPE"),
        (["prepare", "digit"], "Did you mean 'digits'"),
        (["verify", "nowhere"], "merge_proof.json is missing"),
        (["export", "nowhere", "--output", "x"], "holds no recipe.yaml"),
        (["report", "nowhere"], "holds no recipe.yaml"),
        (["fit", "--config", "quickstart", "--trainer.max_epoch", "3"], "Did you mean 'max_epochs'"),
        (["fit", "--config", "quickstart", "--overwite"], "but got --overwite. Did you mean '--overwrite'? See `fine"),
        (["fit", "--config", "quickstart", "--batch_size", "3"], "Did you mean '--data.batch_size'?"),
        (["check", "--config", "quickstart", "--dta.batch_size=3"], "Did you mean '--data.batch_size'?"),
        (["check", "--config", "quickstart", "--lr", "1"], "but got --lr. See `finetune check --help`; `fine"),
        (["fit", "--config", "quickstart"], "data/digits/digits.csv"),
        (["suspects", "--config", "quickstart"], "data/digits/digits.csv"),
        (["classify", "align-mini", "nowhere.png", "--label", "a cat"], "Expected nowhere.png to be an image file"),
        (["classify", "align-mini", "a.png", "--label", "a cat", "--output", "nodir/a.csv"], "but got nodir/a.csv"),
        (["classify", "align-mini", "a.png", "--label", "a cat", "--output", "."], "Expected --output to name a file"),
        (["embed", "align-mini", "nowhere.png", "--output", "a.npy"], "Expected nowhere.png to be an image file"),
        (["embed", "align-mini", "a.png", "--output", "nodir/a.npy"], "but got nodir/a.npy"),
        (["check", "--config", "quikstart"], "Did you mean 'quickstart'"),
        (["check", "--config", "quickstart", "--output", "nodir/a.json"], "but got nodir/a.json"),
        (["suspects", "--config", "quickstart", "--output", "nodir/a.csv"], "but got nodir/a.csv"),
        (["suspects", "--config", "quickstart", "--output", "."], "Expected --output to name a file"),
        (["resume", "nowhere"], "holds no recipe.yaml"),
        (["test", "nowhere"], "holds no recipe.yaml"),
        (["compare", "nowhere", "elsewhere"], "Expected nowhere to be "),
    ],
)
def test_faults_of_the_input_are_told_in_one_message_with_exit_code_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    found = capsys.readouterr().err
    assert found.startswith("error: ")
    assert message in found
    assert not list(tmp_path.iterdir())


def test_classify_replaces_a_file_only_when_told_to(tiny, colour_table, tmp_path, capsys):
    table = tmp_path / "found.csv"
    table.write_text("mine")
    words = ["classify", tiny, str(colour_table.parent / "0.png"), "--label", "a cat", "--label", "a dog"]
    words += ["--output", str(table)]
    assert main(words) == 2
    assert "Remove it or pass --overwrite" in capsys.readouterr().err
    assert table.read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    header, *lines = table.read_text().splitlines()
    assert header == "image,label,probability"
    assert sum(float(line.split(",")[-1]) for line in lines) == pytest.approx(1)
    assert [line.split(",")[1] for line in lines] == ["a cat", "a dog"]


@pytest.mark.usefixtures("share_opener")
def test_verify_takes_a_run_and_checks_each_of_its_folders(with_head, tmp_path, capsys):
    assert main(["verify", str(with_head.path)]) == 0
    merged, classifier = capsys.readouterr().out.splitlines()
    assert merged.startswith(f"{with_head.path / 'merged'}: reproduces the trained model within ")
    assert classifier.startswith(f"{with_head.path / 'classifier'}: reproduces the trained model within ")
    (tmp_path / "recipe.yaml").touch()
    assert main(["verify", str(tmp_path)]) == 2
    assert "to be a finished run, but it is unfinished" in capsys.readouterr().err


def test_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as done:
        main(["verify", "folder", "--outptu", "x"])
    assert done.value.code == 2
    assert "unrecognized arguments: --outptu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "the following arguments are required: COMMAND. See `finetune --help`."),
        (["export", "run"], "the following arguments are required: --output. See `finetune export --help`."),
        (["check"], "the following arguments are required: --config. See `finetune check --help`."),
        (["verify", "folder", "--outptu", "x"], "unrecognized arguments: --outptu x. See `finetune verify --help`."),
        (
            ["compare", "a", "b", "--over"],
            "unrecognized arguments: --over. Did you mean '--overwrite'? See `finetune compare --help`.",
        ),
        (
            ["search", "m", "--index", "i", "--ouptut=x"],
            "unrecognized arguments: --ouptut=x. Did you mean '--output'? See `finetune search --help`.",
        ),
        (["fitt"], "Expected COMMAND to be known, but got 'fitt'. Did you mean 'fit'? See `finetune --help`."),
        (
            ["recipes", "cpoy"],
            "Expected ACTION to be known, but got 'cpoy'. Did you mean 'copy'? See `finetune recipes --help`.",
        ),
        (["suspects", "--folds", "x"], "argument --folds: invalid int value: 'x'. See `finetune suspects --help`."),
    ],
)
def test_words_that_no_command_takes_are_refused_in_one_line(words, line, capsys):
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_prepare_lists_the_data_sets_and_passes_the_exit_code_on(tmp_path, capsys):
    assert main(["prepare", "--help"]) == 0
    assert "digits" in capsys.readouterr().out
    (tmp_path / "mine").write_text("keep")
    assert finetune("prepare", "digits", "--output", tmp_path, cwd=tmp_path).returncode == 2
    assert (tmp_path / "mine").read_text() == "keep"


def test_keys_are_listed_with_their_meaning(capsys):
    assert main(["fit", "--keys"]) == 0
    screen = capsys.readouterr().out
    assert "--data.batch_size" in screen
    assert "Largest number of rows in a batch" in screen
