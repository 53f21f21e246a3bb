"""The README: its snippets run, its links lead somewhere, what it prints is what is printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _without_numbers(text):
    text = re.sub(r"\d(\.\d)?e[-+]\d\d", "0.0e+00", text)
    text = re.sub(r"[\d.]+ ulp \(autodiff [\d.]+\)", "0 ulp (autodiff 0)", text)
    return re.sub(r"(?<=\S) {2,}", "  ", text)  # a column is as wide as its numbers


def test_first_two_blocks_are_the_two_commands():
    first, second = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)[:2]
    for command, ending in ((first, "jaxcnn train"), (second, "python -m pytest")):
        assert command.count("\n") == 1
        assert command.strip().endswith(ending)


def test_python_snippets_run_in_order(capsys):
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert said.startswith("True\n")
    reports = blocks("text")
    assert len(reports) == 2
    for report in reports:
        # The numbers differ between machines in their last digits; the rest does not.
        assert _without_numbers(report) in _without_numbers(said)
    assert "dconv2d/bias is zero everywhere, the right gradient is not" in said


@pytest.mark.parametrize("page", ["README.md", "experiments/README.md"])
def test_links_lead_somewhere(page):
    path = ROOT / page
    links = [link for link in re.findall(r"\]\(([^)]+)\)", path.read_text()) if "://" not in link]
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        target = path.parent / file
        assert target.exists(), link
        assert not anchor or f"# {anchor}\n" in target.read_text(), link


def test_table_names_functions_that_exist():
    import jaxcnn

    names = set(re.findall(r"`jaxcnn\.([\w.]+)`", README))
    assert {"conv2d", "g_maxpool", "backproplayer", "models.source"} <= names
    for name in names:
        value = jaxcnn
        for part in name.split("."):
            value = getattr(value, part)
