"""The report is one page that needs no network, shows the given results, and can be read in a browser."""

import argparse
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from clada.command_line import exit_code
from clada.evaluation.curves import curves_figure
from clada.evaluation.heat_map import Cell, HeatMap, heat_map, load_color
from clada.evaluation.layer_plot import layers_figure
from clada.evaluation.report import report_html
from clada.evaluation.report_command import add_parser
from clada.evaluation.report_data import read_groups
from clada.runtime import Session, TokenStats
from tests.evaluation.test_regression import synthetic_table
from tests.project.test_bad_input import fails_with
from tests.support.browser import find_browser, look

HARDNESS = {"clada": 0.5, "cats": 1.0, "griffin": 1.6, "clada without load": 0.6}
NAME = 'clada "50%" <script>alert(1)</script>'


def estimate(value: float, spread: float = 0.1) -> dict:
    return {"value": value, "low": value * (1 - spread), "high": value * (1 + spread)}


def result(policy: str, cost: float, family: str = "llama", layers: int = 6) -> dict:
    """As `clada eval --json` writes it, with figures that follow from the policy and its cost."""
    kl = HARDNESS.get(policy, 0) * 0.002 * np.exp(5 * (1 - cost))
    sparsity = 1.4 * (1 - cost)
    metrics = {
        "read_fraction": estimate(cost, 0.01),
        "sparsity": estimate(sparsity),
        "kl": estimate(kl),
        "perplexity_ratio": estimate(1 + kl, 0.001),
        "disagreement": estimate(kl**0.5 / 3),
        "accuracy_ratio": estimate(1 - kl / 3, 0.002),
        "exact_match_length": estimate(32 / (1 + 8 * kl)),
    }
    return {
        "format": 1,
        "subject": {
            "name": policy if policy == "dense" else f"{policy} {cost:.0%}",
            "policy": {"name": policy, "seed": 0},
            "family": family,
            "layers": layers,
            "neurons": [704] * layers,
            "parameters": 900_000 * layers,
            "calibration": {},
        },
        "data": {
            "name": "heldout.jsonl",
            "sha256": "ab" * 32,
            "sequences": 64,
            "prompt_tokens": 64,
            "scored_tokens": 8192,
            "seed": 0,
        },
        "metrics": metrics,
        "layers": [{"sparsity": sparsity * (layer + 1) / layers, "pool": 1 - layer / 20} for layer in range(layers)],
        "sequences": {"kl": [kl]},
        "tools": {"clada": "0.1.0", "onnxruntime": "1.32.0"},
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of results of two models, one of them with a name that is not HTML."""
    folder = tmp_path_factory.mktemp("results")
    contents = [result(policy, cost) for policy in HARDNESS for cost in (0.4, 0.55, 0.7)]
    contents += [result("dense", 1.0), result("clada", 0.5, family="opt", layers=24)]
    contents[0]["subject"]["name"] = NAME
    (folder / "more").mkdir()
    for place, content in enumerate(contents):
        (folder / ("more" if place % 2 else ".") / f"{place}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def table_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens.npz"
    np.savez(path, **vars(synthetic_table()))
    return path


def report(*args: object) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["report", *map(str, args)])
    return exit_code(lambda: parsed.run(parsed))


def report_main(args: list[str]) -> int:
    return report(*args)


@pytest.fixture(scope="module")
def page(results, table_file, tiny_artifact, tmp_path_factory):
    """Report with everything that it can show."""
    path = tmp_path_factory.mktemp("report") / "out.html"
    options = ["--results", results, "--tokens", table_file, "--model", tiny_artifact, "--prompt", "<b>\tif a & b:\n"]
    assert report(path, *options) == 0
    assert list(path.parent.iterdir()) == [path]
    return path


class References(HTMLParser):
    """Collector of the addresses that a page refers to, and of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Record the addresses that an element refers to."""
        self.tags.add(tag)
        names = ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
        self.targets += [value for name, value in attrs if name in names]

    def handle_data(self, data):
        """Record the text."""
        self.texts.append(data)


def test_the_page_refers_to_nothing_outside(page):
    text = page.read_text(encoding="utf-8")
    found = References(text)
    assert len(found.targets) == 4  # layers of two models, curves of the one with several results, and the regression
    assert all(target.startswith("data:image/svg+xml;base64,") for target in found.targets)
    assert not found.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"url\(|@import|https?://", re.sub(r'src="[^"]*"', "", text))


def test_text_is_escaped_and_shown_as_it_is(page):
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    shown = "".join(References(text).texts)
    assert NAME in shown
    assert "<b>\tif a & b:\n" in shown


def test_every_result_is_shown(page, results):
    shown = "".join(References(page.read_text(encoding="utf-8")).texts)
    for path in results.rglob("*.json"):
        content = json.loads(path.read_text())
        assert content["subject"]["name"] in shown
        assert f"{content['metrics']['kl']['value']:.4f}" in shown
        assert f"({path.name})" in shown
    assert "opt, 21.6 M parameters, 24 layers" in shown
    assert "llama, 5.4 M parameters, 6 layers" in shown
    assert "onnxruntime" in shown


def one_result(folder: Path, **subject: str) -> str:
    content = result("clada", 0.5)
    content["subject"] |= subject
    (folder / "one.json").write_text(json.dumps(content))
    return report_html(read_groups([folder / "one.json"]))


def test_one_result_is_shown_as_one(tmp_path, capsys):
    """A sentence, figures and layers; no charts of one point, nor captions of lines that are not there."""
    text = one_result(tmp_path, model="Some-1B")
    shown = "".join(References(text).texts)
    assert "Some-1B: llama, 5.4 M parameters, 6 layers" in shown
    assert "clada 50% reads 50% of the bytes that it may skip, and changes perplexity by +1.22% (" in shown
    assert len(References(text).targets) == 1
    assert "One line a policy" not in shown
    assert report(tmp_path / "out.html", "--results", tmp_path / "one.json") == 0
    assert capsys.readouterr().out.endswith(": 1 result\n")


def test_the_verdict_is_the_cheapest_that_costs_little(tmp_path):
    """By the whole interval; of those that cost too much, the nearest."""
    for place, cost in enumerate((0.3, 0.5, 0.9)):
        (tmp_path / f"{place}.json").write_text(json.dumps(result("cats", cost)))
    (group,) = read_groups([tmp_path])
    highs = [r.metrics["perplexity_ratio"].high for r in group.results]
    assert highs[1] > 1.01 > highs[2]
    assert group.verdict.startswith("Least is read at less than 1% more perplexity by one of them: cats 90% reads 90%")
    (tmp_path / "2.json").unlink()
    (group,) = read_groups([tmp_path])
    assert group.verdict.startswith("None keeps perplexity within 1% of the dense model's. The nearest: cats 50% ")


def test_labels_of_layers_are_in_the_picture(results):
    """However few the results: nothing that is written is cut off."""
    (group,) = [group for group in read_groups([results]) if group.title.startswith("opt")]
    figure = layers_figure(group.results)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text():
            box = text.get_window_extent(renderer)
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text


def test_tokens_keep_their_text_and_figures():
    texts = ["a  <i>", "\n", "\t", "", "é"]
    stats = TokenStats(1.25, 2.5, 0.5, 0.375, **extra_stats())
    cells = tuple(Cell(text, stats, load_color(0.5)) for text in texts)
    text = report_html([], generated=HeatMap("p", cells, 0.5, 0.375, "demo (clada)"))
    block = text[text.index('<div class="text">') : text.index("</div>", text.index('<div class="text">'))]
    assert "".join(References(block).texts) == "p" + "".join(texts)
    assert len(re.findall(r'class="t( part)?"', block)) == len(texts)
    assert "load 0.50, 37.5% of neurons, surprisal 1.25 nats, entropy 2.50 nats" in block
    assert block.count("--active:0.375") == len(texts)


def extra_stats() -> dict:
    """Fields of TokenStats that the page does not show."""
    shown = {"surprisal", "entropy", "load", "active_fraction"}
    return dict.fromkeys(TokenStats.__dataclass_fields__.keys() - shown, 0.0)


def test_the_heat_map_is_what_the_session_generates(tiny_artifact):
    generated = heat_map(tiny_artifact, "import json")
    assert "".join(cell.text for cell in generated.cells) == Session(tiny_artifact).generate("import json")[0].text
    loads = [cell.stats.load for cell in generated.cells]
    assert generated.load == pytest.approx(np.mean(loads))
    # A harder token is darker.
    brightness = [sum(int(cell.color[at : at + 2], 16) for at in (1, 3, 5)) for cell in generated.cells]
    assert brightness[int(np.argmax(loads))] < brightness[int(np.argmin(loads))]


def test_curves_are_the_results(results):
    llama = next(group for group in read_groups([results]) if group.title.startswith("llama"))
    figure = curves_figure(llama.results)
    for axes, metric in zip(figure.axes, ("kl", "perplexity_ratio", "disagreement"), strict=True):
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        # On a logarithmic scale there is no place for the dense model's 0.
        assert set(lines) == {*HARDNESS} | ({"dense"} if metric != "kl" else set())
        for policy, line in lines.items():
            expected = sorted(
                (r.metrics["read_fraction"].value, r.metrics[metric].value) for r in llama.results if r.policy == policy
            )
            np.testing.assert_allclose(line.get_xydata(), expected)
    colors = {(line.get_color(), line.get_linestyle()) for line in figure.axes[1].lines if line.get_xydata().size > 2}
    assert len(colors) >= len(HARDNESS)


def test_layers_are_the_results(results):
    llama = next(group for group in read_groups([results]) if group.title.startswith("llama"))
    sparsity, pool = (axes.images[0].get_array() for axes in layers_figure(llama.results).axes[:2])
    np.testing.assert_allclose(sparsity, [[100 * value for value in r.sparsity] for r in llama.results])
    np.testing.assert_allclose(pool, [[100 * value for value in r.pool] for r in llama.results])


def test_the_same_results_give_the_same_page(results):
    assert report_html(read_groups([results])) == report_html(read_groups([results]))


@pytest.fixture(scope="module")
def browser():
    path, reason = find_browser()
    if not path:
        pytest.skip(reason)
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page(browser, page, tmp_path, width):
    view = look(browser, page, tmp_path, width)
    assert view.window_width == width
    assert view.content_width <= width
    assert view.requests == ()
    assert view.images == 4
    with Image.open(view.screenshot) as image:
        assert image.size == (width, view.height)
        assert 2000 < view.height < 30_000
        colors = image.convert("RGB").quantize(64).convert("RGB").getcolors()
        assert len(colors) > 30
        # Light, and with something in every part of it.
        gray = np.asarray(image.convert("L"))
    assert np.median(gray) > 240
    assert all(part.min() < 130 for part in np.array_split(gray, 12))


def test_the_browser_would_see_a_request_and_an_overflow(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<!DOCTYPE html><div style="width:2000px">x</div><img src="http://127.0.0.1:9/x.png">')
    view = look(browser, page, tmp_path)
    assert view.content_width > view.window_width
    assert view.requests == ("http://127.0.0.1:9/x.png",)
    assert view.images == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not a result of `clada eval`"),
        ("{", "is not valid JSON"),
        (json.dumps(result("clada", 0.5) | {"layers": [{"sparsity": 0.5}]}), "lacks a part of a result"),
        (json.dumps(result("clada", 0.5) | {"metrics": {}}), "lacks a part of a result"),
        (json.dumps(result("clada", 0.5)).replace("0.505", "NaN"), "holds a metric that is not finite"),
    ],
)
def test_bad_results_are_refused(capsys, tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content)
    fails_with(capsys, report_main, [tmp_path / "out.html", "--results", tmp_path / "bad.json"], message)
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--results", "/nowhere.json"], "cannot read the result /nowhere.json: No such file"),
        (["--results", "{empty}"], "holds no .json file"),
        (["--results", "{results}", "--prompt", "a"], "--model and --prompt are given together"),
        (["--results", "{results}", "--tokens", "/nowhere.npz"], "cannot read /nowhere.npz: No such file"),
    ],
)
def test_bad_input_is_refused(capsys, tmp_path, results, options, message):
    (tmp_path / "empty").mkdir()
    filled = [option.format(results=results, empty=tmp_path / "empty") for option in options]
    fails_with(capsys, report_main, [tmp_path / "out.html", *filled], message)
    assert not (tmp_path / "out.html").exists()
