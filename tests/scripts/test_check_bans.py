"""Each ban finds a planted offence, and leaves alone what only looks like one."""

import ast
from pathlib import Path

import pytest
from scripts.check_bans import ENVIRONMENT_READER, findings
from scripts.sources import PACKAGE, Source, python_sources


def found(code: str, path: Path = Path("runtime/example.py")) -> list[str]:
    return list(findings(Source(path, code, ast.parse(code))))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import os, marshal",
        "import dill as d",
        "from cloudpickle import dumps",
        "import shelve",
        "import joblib.memory",
        "eval(text)",
        "exec(text)",
        "compile(text, 'f', 'exec')",
        "__import__(name)",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path)",
        "from torch import load\nload(path)",
        "from torch import load as read\nreader = read",
        "import torch\ntorch.save(x, path)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.unsafe_load(text)",
        "import numpy as np\nnp.load(path)",
        "import torch.distributed as dist\ndist.broadcast_object_list(x)",
        "from torch.distributed import all_gather_object\nall_gather_object(a, b)",
        "group.send_object_list(x)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "def load(path, trust_remote_code=False): ...",
        "import os\nos.environ['HOME']",
        "import os\nos.environ.get('HOME')",
        "from os import environ\nhome = environ['HOME']",
        "import os\nos.getenv('HOME')",
        "from os import getenv as g\ng('HOME')",
    ],
)
def test_a_planted_offence_is_found(code: str) -> None:
    (finding,) = found(code)
    line = code.count("\n") + 1
    assert finding.startswith(f"runtime/example.py:{line}: ")


@pytest.mark.parametrize(
    "code",
    [
        '"""Never pickle, never eval()."""',
        "model.eval()",
        "re.compile('x')",
        "import yaml\nyaml.safe_load(text)",
        "store.load(path)",
        "from json import load\nload(stream)",
        "import os\nos.environ['RAY_USAGE_STATS_ENABLED'] = '0'",
        "from twinflow.runtime.rules import compile\ncompile(rule)",
    ],
)
def test_what_only_looks_like_one_is_not(code: str) -> None:
    assert found(code) == []


def test_one_file_reads_the_environment() -> None:
    assert found("import os\nos.environ['HOME']", ENVIRONMENT_READER) == []


def test_the_whole_package_is_read() -> None:
    read = {source.path for source in python_sources(PACKAGE)}
    assert {Path("src/twinflow/__main__.py"), ENVIRONMENT_READER} <= read
    assert not any("_pb2" in path.name for path in read)
    # The links below src/twinflow would show every file a second time.
    assert not any(path.is_relative_to("src/twinflow/cluster") for path in read)
