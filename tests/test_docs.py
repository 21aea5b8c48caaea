"""The documentation names everything there is, and its examples run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from generate_client_losses import TARGET, source
from generate_docs import PAGES, written
from lossd.losses import LOSSES
from lossd.losses.declare import docstring_arguments, docstring_section
from lossd.settings import Settings
from lossd_client.errors import ERRORS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_has_its_row_and_says_what_it_is(name: str) -> None:
    loss = LOSSES[name]
    assert f"| `{name}`" in README
    for alias in loss.aliases:
        assert f"`{alias}`" in README
    for section in ("Formula", "Args", "Returns", "Example", "References"):
        assert docstring_section(loss.function, section), section
    assert "http" in docstring_section(loss.function, "References")
    described = {key: field.description for key, field in loss.parameters.model_fields.items()}
    assert all(described.values()), described
    assert set(loss.own_parameters(loss.parameters())) <= set(docstring_arguments(loss.function))


def test_generated_tables_are_up_to_date() -> None:
    for name, table in PAGES.items():
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert text == written(text, table()), "run make docs"
    assert all(error.title() for error in ERRORS.values())
    assert all(field.description for field in Settings.model_fields.values())


def test_the_clients_losses_are_those_of_the_service() -> None:
    assert TARGET.read_text(encoding="utf-8") == source(), "run make client"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readmes_python_runs(service_url: str) -> None:
    (block,) = _blocks("python")
    code = block.replace("http://127.0.0.1:8000", service_url)
    done = subprocess.run(  # noqa: S603 - our own README
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["(2, 4, 64, 64)", "(2, 64, 64)"]


@pytest.mark.skipif(
    shutil.which("curl") is None and "CI" not in os.environ, reason="curl is not installed"
)
@pytest.mark.parametrize("number", [0, 1])
def test_the_readmes_curl_runs(service_url: str, number: int) -> None:
    command = shlex.split(
        _blocks("bash")[number].replace("http://127.0.0.1:8000", service_url).replace("\\\n", " ")
    )
    done = subprocess.run(  # noqa: S603 - our own README
        [*command, "--silent", "--fail-with-body"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
    assert '"dice"' in done.stdout
    assert '"focal"' in done.stdout


def test_links_in_the_documentation_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.name}: {target}"
