"""What a project says of itself for others agrees: versions, the release, forms, workflows, the citation."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
CITATION_KEYS = {
    *("abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords"),
    *("license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact"),
    *("repository-code", "title", "type", "url", "version"),
}
"""Keys of the Citation File Format 1.2.0."""

pytestmark = pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="a source archive has no .github")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_newest_release_of_the_changelog_is_the_projects_version():
    titles = re.findall(r"(?m)^## (.*)$", CHANGELOG)
    assert titles[0] == "[Unreleased]"
    assert re.fullmatch(r"\[(\S+)\] - (\d{4}-\d\d-\d\d|not yet published)", titles[1])[1] == PROJECT["version"]
    assert all(re.fullmatch(r"\[\S+\] - \d{4}-\d\d-\d\d", title) for title in titles[2:])


def test_sections_of_the_changelog_are_those_of_its_format():
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for release in re.split(r"(?m)^## ", CHANGELOG)[1:]:
        found = re.findall(r"(?m)^### (.*)$", release)
        assert found == [kind for kind in kinds if kind in found]


def test_citation_is_valid():
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"authors", "cff-version", "message", "title"} <= citation.keys() <= CITATION_KEYS
    assert all(author.keys() == {"name"} for author in citation["authors"])
    assert citation["type"] in ("software", "dataset")
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert " ".join(citation["abstract"].split()) == PROJECT["description"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_do_little_and_name_actions_by_commit(path):
    workflow = read(path)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 180
        assert job.get("permissions", {}).items() <= {"contents": "read", "id-token": "write"}.items()
        for step in job["steps"]:
            assert "uses" in step or step["run"].split()[0] in (".ci/run", ".ci/release")
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
    scripts = [step["run"].split()[0] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_ci_is_its_script_alone():
    steps = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


def test_a_release_is_published_by_a_tag_alone_and_without_a_password():
    path = ROOT / ".github" / "workflows" / "release.yml"
    workflow = read(path)
    assert workflow[True]["push"] == {"tags": ["v*"]}  # YAML 1.1 reads the key `on` so
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert build["permissions"] == {"contents": "read"}
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert "startsWith(github.ref, 'refs/tags/v')" in publish["if"]
    assert "secrets." not in path.read_text()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_are_valid_and_ask_for_the_doctor(path):
    form = read(path)
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "title", "labels", "body"}
    fields = [item for item in form["body"] if item["type"] != "markdown"]
    assert {item["type"] for item in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert all(item["attributes"]["label"] for item in fields)
    ids = [item["id"] for item in fields]
    assert len(ids) == len(set(ids))
    assert "finetune doctor" in next(item["attributes"]["label"] for item in fields if item["id"] == "doctor")


def test_there_are_forms_for_faults_and_for_questions_and_nothing_blank():
    assert [path.stem for path in FORMS] == ["bug", "question"]
    assert read(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}
    doctor = next(item for item in read(FORMS[0])["body"] if item.get("id") == "doctor")
    assert doctor["validations"]["required"] is True


@pytest.mark.parametrize(
    ("tag", "message"),
    [("v9.9.9", f"Expected the tag v{PROJECT['version']}"), (f"v{PROJECT['version']}", "Write its date")],
)
def test_a_tag_that_is_not_the_version_or_has_no_date_is_no_release(tmp_path, tag, message):
    if "not yet published" not in CHANGELOG and "date" in message:
        pytest.skip("the newest release has its date")
    done = subprocess.run(
        [ROOT / ".ci" / "release", tmp_path / "dist"],
        env={**os.environ, "GITHUB_REF_TYPE": "tag", "GITHUB_REF_NAME": tag},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "dist").exists()
