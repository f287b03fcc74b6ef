"""Profiles as files, devices as files, lanes on a device, and predictions without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.cost import CURVES, EXPERTS, STAIR_PRICES, chunk, decodes, h100, step

from twinflow.parallel.partition.layout import Grid
from twinflow.protos.errors import ConfigError
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.cost.contention import Contention
from twinflow.runtime.cost.device import load_device, shipped_devices
from twinflow.runtime.cost.fit import Accuracy
from twinflow.runtime.cost.lanes import Lane, LaneTimes
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.cost.profile import (
    LaneAccuracy,
    Profile,
    ProfileKey,
    load_profile,
    profile_path,
    save_profile,
)

KEY = ProfileKey(model="abc-float32", device="AMD EPYC (7)", dtype="float32", threads=2)
PROFILE = Profile(
    key=KEY,
    times=CostModel(EXPERTS, STAIR_PRICES, CURVES, Contention(0.2, 0.1)),
    held_out=Accuracy(10, 0.02, 0.05, 0.06),
    fitted=Accuracy(30, 0.01, 0.04, 0.05),
    lanes=LaneAccuracy(
        backend="cores",
        grid=Grid.of(2),
        held_out=Accuracy(4, 0.05, 0.1, 0.1),
        fitted=Accuracy(8, 0.04, 0.1, 0.1),
    ),
)


def test_a_profile_comes_back_as_it_was(tmp_path: Path) -> None:
    path = profile_path(tmp_path, KEY)
    save_profile(PROFILE, path)
    assert load_profile(path, KEY) == PROFILE
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert path.name == "twinflow-profile-amd-epyc--7-float32-t2.json"


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "def"), ("device", "H100"), ("dtype", "bfloat16"), ("threads", 4), ("ranks", 2)],
)
def test_a_profile_of_something_else_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "p.json"
    save_profile(PROFILE, path)
    wanted = ProfileKey(**{**{f: getattr(KEY, f) for f in KEY.__struct_fields__}, field: value})
    with pytest.raises(ConfigError, match=f"for {field} .*{value}"):
        load_profile(path, wanted)


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"version": 1}'])
def test_a_damaged_profile_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(damage)
    with pytest.raises(ConfigError, match="no profile of this release"):
        load_profile(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(tmp_path / "none.json")


def test_a_profile_with_a_price_below_zero_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    save_profile(PROFILE, path)
    text = path.read_text()
    path.write_text(text.replace('"step": 0.002', '"step": -0.002'))
    assert path.read_text() != text
    with pytest.raises(ConfigError, match="at least 0"):
        load_profile(path)


def test_a_profile_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--output"):
        save_profile(PROFILE, tmp_path / "missing" / "p.json")


def test_devices_are_read_and_name_their_sources() -> None:
    assert "h100" in shipped_devices()
    for name in shipped_devices():
        device = load_device(name)
        figures = set(device.__struct_fields__) - {"name", "sources"}
        assert device.sources.keys() == figures


def test_a_device_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="h100"):
        load_device(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text('{"name": "x"}')
    with pytest.raises(ConfigError, match="no description"):
        load_device(str(tmp_path / "bad.json"))


def test_lanes_slow_each_other_down_within_bounds() -> None:
    lanes = LaneTimes(h100())
    decode, prefill = Lane(step(decode=decodes(32, 2048)), 0.4), Lane(step(chunk(0, 2048)), 0.6)
    alone = lanes.seconds(decode)
    assert alone == lanes.seconds(decode, Lane(StepLoad((), 0), 0.6))
    assert alone <= lanes.seconds(decode, prefill) <= 1.3 * alone
    crowded = Lane(step(decode=decodes(64, 8192)), 1.0)
    assert lanes.seconds(crowded, crowded) == pytest.approx(1.3 * lanes.seconds(crowded), rel=0.03)


def test_predicting_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "import twinflow.runtime.cost.profile, twinflow.runtime.cost.device\n"
        "import twinflow.runtime.cost.lanes\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
