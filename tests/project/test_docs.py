"""Documentation: the site builds without a warning, agrees with parsers and results, and names existing files."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

import clada
from tests.conftest import ROOT
from tests.project.test_scripts import load_script

DOCS = ROOT / "docs"
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted(DOCS.rglob("*.md"))]
FETCHES = re.compile(r"<(?:script|img|iframe)\b[^>]* src=\"(?:https?:)?//|<link\b[^>]* href=\"(?:https?:)?//")
# A path of the project, or the name of a file of it.
PATH = re.compile(r"[\w.*-]+/[\w.*/-]*|[\w*-]+\.(?:py|md|toml|yml|csv|h|cpp|cu|cuh|sh)")
NOT_OF_THE_PROJECT = ("out/", "build/", ".venv/", "path/to/", "NvInferRuntime.h")
# A recipe for the kernels leaves their folder out.
FOLDERS = [ROOT, ROOT / "plugins" / "kernels", ROOT / "runtime"]
PACKAGES = ("clada", "exporter", "runtime", "server", "plugins", "gpu_suite", "scripts", "tests")
BRITISH = re.compile(
    r"\b(?:quant|dequant|optim|normal|serial|recogn|initial|token|vector|organ|minim|maxim|general|parallel|summar|special"
    r"|util|penal|emphas|memor|random|synchron|visual|author|custom)is(?:e|ed|es|er|ing|ation)\b"
    r"|(?:behavi|col|neighb|fav)our|artefact|licence|centre|modell|labell|cancelled|analys(?:ed|er|ing)",
    re.IGNORECASE,
)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code and the targets of its links."""
    return re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", "", text_of(page), flags=re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built without a network, warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    offline = {**os.environ, **dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")}
    result = subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def test_site_has_each_page_and_fetches_nothing(site):
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).with_suffix("")
        assert not FETCHES.findall(text_of(site / ("" if name.name == "index" else name) / "index.html")), name


def test_site_documents_the_public_names(site):
    html = text_of(site / "reference" / "python" / "index.html")
    for name in set(clada.__all__) - {"__version__"}:
        assert f'id="clada.{name}"' in html, name


def test_command_line_is_described_as_the_parsers_have_it():
    made = load_script("cli_reference").page()
    assert text_of(DOCS / "reference" / "cli.md") == made, "python scripts/cli_reference.py writes it anew"


def test_paths_exist():
    """Every file and folder of the project that a page names in backticks, also as a word of a command."""
    code = [(page.name, span) for page in PAGES for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text_of(page))]
    named = [(page, word) for page, span in code for word in span.split() if PATH.fullmatch(word)]
    assert len(named) > 80
    for page, name in named:
        if not name.startswith(NOT_OF_THE_PROJECT):
            assert any(list(folder.glob(name.rstrip("/"))) for folder in FOLDERS), f"{page}: {name}"


def test_contributing_says_where_things_are():
    """Each folder of its tree exists, and each folder of the project is in it."""
    tree = re.findall(r"^ {4}((?: {2})*)([\w/]+)/ ", text_of(CONTRIBUTING), re.MULTILINE)
    assert len(tree) > 15
    above: list[str] = []
    for indent, name in tree:
        above[len(indent) // 2 :] = [name]
        assert (ROOT / "/".join(above)).is_dir(), above
    folders = {path.parent.name for path in ROOT.glob("*/*") if not path.parent.name.startswith(".")}
    assert folders - {"build", "dist", "out", "__pycache__"} <= {name for indent, name in tree if not indent}


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Those of pages that are not of the site, whose links mkdocs checks."""
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", text_of(page)):
        assert (ROOT / target).exists(), target
        headings = re.findall(r"^#+ (.*)$", text_of(ROOT / target), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {slugify(heading, "-") for heading in headings}, f"{target}#{anchor}"


def test_spelling_is_american():
    """In pages, and in names and comments of the sources."""
    suffixes = {".py", ".h", ".cpp", ".cu", ".cuh", ".txt", ".sh"}
    sources = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    texts = {page: prose(page) for page in PAGES} | {path: text_of(path) for path in sources if path != Path(__file__)}
    assert len(texts) > 400
    assert [f"{path}: {found[0]}" for path, text in texts.items() for found in BRITISH.finditer(text)] == []


def docstrings(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(text_of(module))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def test_no_docstring_begins_with_what():
    """A noun or an imperative says the same in fewer words."""
    modules = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 300
    assert [f"{path}: {text}" for path in modules for text in docstrings(path) if text.startswith("What ")] == []


def table(page: Path, beginning: str) -> list[list[str]]:
    """The cells of the rows of the table of a page that begins so."""
    _, _, rest = text_of(page).partition(f"\n| {beginning}")
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def measured(weights: str) -> list[tuple[float, float, str]]:
    """Of each share that was asked for: milliseconds per token, the share that was read, how many times as fast."""
    path = ROOT / "benchmarks" / "dial" / f"qwen2.5-coder-0.5b-{weights}-avx512.json"
    (timed,) = json.loads(text_of(path))["tables"]
    return [
        (row["ms"], row["active"], f"{row['ratio']:.2f}x") for row in timed["rows"] if row["name"].startswith("ours ")
    ]


def test_speed_beside_llama_cpp_is_what_was_measured():
    path = ROOT / "benchmarks" / "llama_cpp" / "qwen2.5-coder-0.5b-int4-avx2.json"
    *decode, prefill = json.loads(text_of(path))["tables"]
    assert [(timed["phase"], timed["context"]) for timed in decode] == [("decode", 64), ("decode", 2048)]
    seconds = {row["name"]: f"{row['ms'] / 1000:.2f}" for row in prefill["rows"]}
    expected = []
    for rows in zip(*(timed["rows"] for timed in decode), strict=True):
        cells = [rows[0]["name"]]
        for row in rows:
            low, high = row["ms_quartiles"]
            cells += [f"{row['ms']:.1f} ({low:.1f} - {high:.1f})", f"{row['ratio']:.2f}x"]
        expected.append([*cells, seconds.get(rows[0]["name"], "")])
    assert table(DOCS / "results.md", "contender | ms a token after 64") == expected


def test_speed_of_the_real_model_is_what_was_measured():
    both = list(zip(measured("float32"), measured("int4"), strict=True))
    short, whole = table(README, "`bytes=`"), table(DOCS / "results.md", "asked for")
    assert len(short) == 5
    for brief, full, ((ms, active, ratio), (int4_ms, _, int4_ratio)) in zip(short, whole, both, strict=True):
        share, read, *speed, cost = brief
        assert abs(float(share) - active) < 0.02
        assert abs(float(read.removesuffix("%")) / 100 - active) < 0.01
        assert speed == [f"{1000 / ms:.1f}", ratio, f"{1000 / int4_ms:.1f}", int4_ratio]
        assert full[:2] == [share, read]
        assert full[2:] == [f"{ms:.0f} ({speed[0]})", ratio, f"{int4_ms:.1f} ({speed[2]})", int4_ratio, cost]
