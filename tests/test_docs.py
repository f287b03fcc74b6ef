"""What the documentation says is so: links, commands, names, tables and examples."""

import asyncio
import dataclasses
import importlib
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from tests.support.calibrations import quality_row
from tests.support.documents import DOCUMENTS, ROOT, Document, code_in
from tests.support.fake_backend import FakeBackend
from tests.support.grpc_doors import pipeline_of, running_door
from tests.support.http_gateway import http_gateway
from tests.support.served_models import write_tiny_model

from twinflow.cluster.cli.main import build_parser
from twinflow.cluster.gateway.admin_desk import AdminDesk
from twinflow.cluster.gateway.grpc_door import GrpcConfig
from twinflow.cluster.gateway.http.app import create_app
from twinflow.cluster.gateway.http.config import HttpConfig
from twinflow.cluster.gateway.http.dependencies import HttpDependencies
from twinflow.cluster.gateway.http.gate import OPEN_PATHS
from twinflow.cluster.gateway.latent_metrics import export_loss
from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.cluster.gateway.pool_metrics import PoolCollector
from twinflow.cluster.gateway.validation import unsupported
from twinflow.cluster.gateway.validation.chat import ChatFields
from twinflow.cluster.gateway.validation.completion import CompletionFields
from twinflow.protos.errors import SetupError, subclasses_by_code
from twinflow.runtime.calibration.report import QualityReport

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LONGEST_EXAMPLE = 40
TOP = {path.name for path in ROOT.iterdir() if path.is_dir()}
FOLDERS = ("cluster", "workers", "runtime", "parallel", "protos")
API = Document.read(ROOT / "docs/design/api.md")

documents = pytest.mark.parametrize(
    "document", [Document.read(path) for path in DOCUMENTS], ids=[path.name for path in DOCUMENTS]
)
examples = pytest.mark.parametrize("example", EXAMPLES, ids=[path.name for path in EXAMPLES])


@documents
def test_links_within_the_repository_resolve(document: Document) -> None:
    for link in document.links():
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.path.parent / path).resolve() if path else document.path
        assert target.exists(), link
        if anchor:
            assert anchor in Document.read(target).anchors(), link


@documents
def test_commands_of_twinflow_are_accepted(document: Document) -> None:
    for words in document.commands("twinflow"):
        if words[:2] != ["models", "import"] or len(words) > 2:
            check_twinflow(words)


def check_twinflow(words: list[str]) -> None:
    """Raise ConfigError, or fail, unless the command line takes these words."""
    # What comes behind a `>` is the shell's.
    mine = itertools.takewhile(lambda word: word != ">", words)
    wanted = [word for word in mine if word != "--help"]
    _, unknown = build_parser().parse_known_args(wanted)
    assert not unknown, words


@documents
def test_commands_of_make_exist(document: Document) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    for words in document.commands("make"):
        given = dict(word.split("=", 1) for word in words if "=" in word)
        assert {word for word in words if "=" not in word} <= targets, words
        assert given.keys() <= variables, words
        arguments = shlex.split(given.get("ARGS", ""))
        if "test" in words:
            paths = [word for word in arguments if not word.startswith("-")]
            assert all((ROOT / path).exists() for path in paths), words
        else:
            check_twinflow(["serve", *arguments])


@documents
def test_python_compiles(document: Document) -> None:
    for code in document.blocks("python"):
        compile(code, str(document.path), "exec")


@documents
def test_names_of_modules_and_files_exist(document: Document) -> None:
    for span in document.spans():
        if re.fullmatch(rf"(twinflow\.)?({'|'.join(FOLDERS)})(\.\w+)+", span):
            assert resolve(span) is not None
        elif re.fullmatch(r"[\w-]+/[\w./-]*", span) and span.partition("/")[0] in TOP:
            assert (ROOT / span).exists(), span


def resolve(name: str) -> Any:
    """The module of this name, or the attribute of a module."""
    full = "twinflow." + name.removeprefix("twinflow.")
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError:
        module, _, attribute = full.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


def test_the_first_command_of_the_readme_comes_early() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith("make "))
    assert first <= 25


def test_timeouts_of_the_hand_off_are_those_of_the_code() -> None:
    page = Document.read(ROOT / "docs/design/kv-handoff.md")
    for name, value, home in page.table("name", "value", "in"):
        owner = resolve(code_in(home)[0])
        (field,) = code_in(name)
        assert default_of(owner, field) == float(value), name


def default_of(owner: Any, field: str) -> Any:
    """A constant of a module, or the default of a field of a configuration."""
    if not isinstance(owner, type):
        return getattr(owner, field)
    is_struct = issubclass(owner, msgspec.Struct)
    fields = msgspec.structs.fields(owner) if is_struct else dataclasses.fields(owner)
    return {one.name: one.default for one in fields}[field]


def test_limits_of_the_doors_are_those_of_the_code() -> None:
    http, grpc = HttpConfig(), GrpcConfig()
    tables = [table for table in API.tables() if table[0] == ["field", "value", "what"]]
    for config, table in zip((http, grpc), tables, strict=True):
        for name, value, _ in table[1:]:
            assert getattr(config, code_in(name)[0]) == float(value), name


def test_endpoints_are_those_of_the_application() -> None:
    backend = FakeBackend()
    pipeline, registry = pipeline_of(backend), CollectorRegistry()
    app = create_app(HttpDependencies(pipeline=pipeline, backend=backend, registry=registry))
    served = {
        f"{method} {route.path.replace(':path', '')}"
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    rows = API.table("method and path", "what", "key needed")
    named = {route for row in rows for route in code_in(row[0])}
    assert named == served | {f"GET {app.openapi_url}"}
    unlocked = {route for row in rows if row[2] == "no" for route in code_in(row[0])}
    is_open = {route.removeprefix("GET ") for route in unlocked}
    assert is_open == OPEN_PATHS


def test_fields_are_those_of_the_validator() -> None:
    rows = API.table("field", "values", "default", "")
    documented = {name for row in rows for name in code_in(row[0])}
    accepted = ChatFields.model_fields.keys() | CompletionFields.model_fields.keys()
    assert documented == accepted - {"best_of"}


def test_refused_fields_are_those_of_the_validator() -> None:
    listed = API.prose.split("Not supported, and refused")[1].split("## Streams")[0]
    common = unsupported.CHAT.keys() & unsupported.COMPLETION.keys()
    expected = {
        "everywhere": common,
        "chat": unsupported.CHAT.keys() - common,
        "completions": unsupported.COMPLETION.keys() - common,
        "messages": unsupported.MESSAGE.keys() | {"tool", "function"},
        "`stream_options`": unsupported.STREAM_OPTIONS.keys(),
    }
    found = {}
    for item in listed.split("\n* ")[1:]:
        where, _, fields = item.partition(":")
        found[where] = set(code_in(fields.replace("\n", " ")))
    assert found == expected


def test_errors_are_those_of_the_tree() -> None:
    documented = {
        code_in(code)[0]: (int(http), code_in(grpc)[0])
        for code, http, grpc, _ in API.table("code", "HTTP", "gRPC", "when")
    }
    raised = {
        code: (error.http_status, error.grpc_status)
        for code, error in subclasses_by_code().items()
        if not issubclass(error, SetupError) and error.__module__ == "twinflow.protos.errors"
    }
    assert documented == raised


def test_metrics_are_those_of_the_registry() -> None:
    registry = CollectorRegistry()
    GatewayMetrics(registry, "tiny")
    registry.register(PoolCollector("tiny", AdminDesk()))
    export_loss(registry, "tiny", quality_row())
    exposed = {(family.name, family.type) for family in registry.collect()}
    rows = API.table("metric", "kind", "what")
    assert {(code_in(name)[0], kind) for name, kind, _ in rows} == exposed


def test_the_loss_of_tpla_is_what_was_measured() -> None:
    measured = ROOT / "docs/measurements/tpla-nano.json"
    report = msgspec.json.decode(measured.read_bytes(), type=QualityReport)
    assert report.table() in (ROOT / "docs/design/tpla.md").read_text()


@examples
def test_examples_are_short_and_the_readme_knows_them(example: Path) -> None:
    code = example.read_text()
    compile(code, str(example), "exec")
    assert len(code.splitlines()) <= LONGEST_EXAMPLE
    assert f"examples/{example.name}" in Document.read(ROOT / "README.md").links()


def run_example(name: str, *arguments: str) -> str:
    """What an example prints; it must end well."""
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_offline_example_runs(tmp_path: Path) -> None:
    printed = run_example("offline.py", str(write_tiny_model(tmp_path / "tiny")))
    assert "'Once upon a time' -> '" in printed
    assert printed.endswith("same tokens: True\n")


@pytest.mark.slow
def test_the_openai_example_runs() -> None:
    with http_gateway() as gateway:
        printed = run_example("openai_client.py", f"{gateway.url}/v1")
    assert len(printed.splitlines()) == 4
    assert "completion_tokens=4" in printed


@pytest.mark.slow
async def test_the_grpc_example_runs() -> None:
    async with running_door() as door:
        printed = await asyncio.to_thread(run_example, "grpc_client.py", door.target)
    assert "model='tiny'" in printed
    assert re.search(r"^  validate +\d+\.\d+ ms$", printed, re.MULTILINE)
