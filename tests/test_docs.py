"""The documentation names everything there is, and its examples run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from generate_client_losses import TARGET, source
from generate_docs import PAGES, written
from lossd.losses import LOSSES
from lossd.losses.docstring import docstring_arguments, docstring_section
from lossd.settings import Settings
from lossd_client.errors import ERRORS
from sweeps import computed, figure

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOSSES_PAGE = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
SECTIONS = ("Formula", "Use", "Args", "Returns", "Traps", "Example", "References")


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_says_what_it_is(name: str) -> None:
    loss = LOSSES[name]
    for section in SECTIONS:
        assert docstring_section(loss.function, section), section
    assert "http" in docstring_section(loss.function, "References")
    assert docstring_section(loss.function, "Traps").startswith("- ")
    described = {key: field.description for key, field in loss.parameters.model_fields.items()}
    assert all(described.values()), described
    assert set(loss.own_parameters(loss.parameters())) <= set(docstring_arguments(loss.function))


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_has_its_row_its_chapter_and_its_plot(name: str) -> None:
    assert f"[`{name}`](docs/losses.md#{name})" in README
    assert f"\n### `{name}`\n" in LOSSES_PAGE
    for alias in LOSSES[name].aliases:
        assert f"`{alias}`" in README
        assert f"`{alias}`" in LOSSES_PAGE
    plot = (ROOT / "docs" / "plots" / f"{name}.svg").read_text(encoding="utf-8")
    assert f"(plots/{name}.svg)" in LOSSES_PAGE
    drawn = figure(name)
    texts = [drawn.axis, *([one.label for one in drawn.sweeps] if len(drawn.sweeps) > 1 else [])]
    for text in [name, f"d value / d {drawn.slope}", *texts]:
        assert f">{text}<" in plot, "run make plots"


def test_no_plot_is_left_of_a_loss_that_is_gone() -> None:
    assert {path.stem for path in (ROOT / "docs" / "plots").iterdir()} == set(LOSSES)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("dice", 1e-3),
        ("focal", 1e-2),
        ("kl_divergence", 1e-2),
        ("distance_map_cross_entropy", 1e-2),
        ("soft_cldice", 0.3),  # the derivative jumps from pixel to pixel
        ("l2", 1e-6),
        ("giou", 2e-2),
        ("contrastive", 2e-2),
        ("triplet", 2e-2),
        ("center", 1e-6),
        ("spatial_embedding", 2e-2),
        ("distribution_focal", 1e-2),
        ("softmax_l2", 1e-3),
    ],
)
def test_a_plotted_gradient_is_the_slope_of_the_plotted_value(name: str, tolerance: float) -> None:
    drawn = figure(name)
    x = drawn.positions
    logit_per_position = 1.0 / (x * (1.0 - x)) if "logit" in drawn.slope else np.ones_like(x)
    for sweep in drawn.sweeps:
        values, slopes = computed(name, sweep)
        assert len(values) == len(slopes) == len(x)
        found = np.gradient(values, x, edge_order=2)
        error = np.abs(found / logit_per_position - slopes)[2:-2]
        # Kinks that fall between two positions are where the two may differ.
        assert np.quantile(error, 0.95) <= tolerance * np.abs(slopes).max(), sweep.label


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_formula_uses_nothing_that_github_refuses(name: str) -> None:
    formula = docstring_section(LOSSES[name].function, "Formula")
    assert not re.search(r"\\(operatorname|def|newcommand|require|href|class|style)\b", formula)
    assert "$" not in formula
    assert formula.count("{") == formula.count("}")


def test_generated_pages_are_up_to_date() -> None:
    for name, generated in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text == written(text, generated()), f"{name}: run make docs"
    assert all(error.title() for error in ERRORS.values())
    assert all(field.description for field in Settings.model_fields.values())


def test_anchors_lead_to_headings() -> None:
    headings = re.findall(r"^#+ (.*)$", LOSSES_PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}
    assert len(anchors) == len(headings)
    targets = re.findall(r"\]\(#([^)]+)\)", LOSSES_PAGE)
    targets += re.findall(r"\]\(docs/losses\.md#([^)]+)\)", README)
    assert len(targets) > 2 * len(LOSSES)
    assert set(targets) <= anchors


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


def test_the_python_pages_examples_run(service_url: str) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5
    script = "\n".join([*blocks, "client.close()"]).replace("http://127.0.0.1:8000", service_url)
    done = subprocess.run(  # noqa: S603 - our own page
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LOSSD_KERNELS": "eager"},  # at once; compiled ones have their own test
    )
    assert done.returncode == 0, done.stderr
    assert "(2,) [(1, 4, 48, 64), (1, 4, 31, 20)]" in done.stdout
    assert "TensorRef(" in done.stdout
    assert "Result(samples=1" in done.stdout
    assert re.search(r"nobody-drew-this.*has no annotation", done.stdout)
    assert re.search(r"^street \[\d", done.stdout, re.MULTILINE)


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


CLIENTS_PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", CLIENTS_PAGE, re.DOTALL)
    return found


def test_the_clients_pages_python_runs(service_url: str) -> None:
    address = service_url.removeprefix("http://")
    script = "\n".join(blocks("python")).replace("127.0.0.1:8000", address)
    done = subprocess.run(  # noqa: S603 - our own page
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    values = done.stdout.splitlines()
    assert values[0].endswith("(2, 3, 64, 64)")
    assert values[2].endswith("(2, 3, 64, 64)")
    assert values[1] == values[0].partition("]")[0] + "]"  # both clients, one Dice


def other_languages(service_url: str) -> list[list[str]]:
    curl, node = shutil.which("curl"), shutil.which("node")
    found = [[*shlex.split(text)] for text in blocks("bash")] if curl else []
    if node is not None:
        found.append([node, "--input-type=module", "-e", *blocks("javascript")])
    return [[word.replace("http://127.0.0.1:8000", service_url) for word in one] for one in found]


def test_the_clients_pages_other_calls_run(service_url: str) -> None:
    """Each gives the Dice of two probable pixels and two improbable ones, 2x2 or of the files."""
    commands = other_languages(service_url)
    if not commands:
        pytest.skip("neither curl nor node is installed")
    printed = [
        subprocess.run(  # noqa: S603 - our own page
            one, capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        for one in commands
    ]
    # Probabilities of 2, -1, 0.5, -3 against 1, 0, 1, 0: 1 - 2 * 1.503256 / (1.819623 + 2).
    assert all("0.21287" in text for text in printed if "loss/dice" in text), printed
    assert all("loss" in text for text in printed)


def test_links_in_the_documentation_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.name}: {target}"
