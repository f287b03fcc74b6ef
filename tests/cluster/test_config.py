"""ServeConfig: every field is documented, and wrong values and combinations are refused."""

import json
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import pytest
from pydantic import ValidationError

from twinflow.cluster.config import Group, ServeConfig
from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.flag_values import AdmissionName, OrderName, SchedulerName, is_wildcard
from twinflow.protos.errors import ConfigError
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.schedulers import create_scheduler
from twinflow.runtime.schedulers.admission import create_admission
from twinflow.runtime.schedulers.orders import create_order
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.workers.role import ROLES

SETUP = SchedulerSetup.of(EngineConfig(max_model_len=64, num_blocks=64), num_layers=2)


def serve(**settings: object) -> ServeConfig:
    return ServeConfig.model_validate({"model": "models/small", **settings})


def rejected(settings: Mapping[str, object]) -> set[str]:
    """The names of the fields that are complained about."""
    with pytest.raises(ValidationError) as raised:
        ServeConfig.model_validate({"model": "models/small", **settings})
    return {str(error["loc"][0]) for error in raised.value.errors()}


def test_every_field_has_one_sentence_and_one_heading() -> None:
    for name, field in ServeConfig.model_fields.items():
        assert field.description and field.description.endswith("."), name
        assert ". " not in field.description, name
        assert sum(isinstance(item, Group) for item in field.metadata) == 1, name


def test_defaults() -> None:
    config = serve()
    assert (config.prefill, config.decode, config.mixed) == (1, 1, 0)
    assert (config.host, config.port, config.grpc_port) == ("127.0.0.1", 8000, 50051)
    assert config.launcher == "ray"
    assert config.model_names == ("small",)


def test_engine_numbers_default_to_the_engines_own() -> None:
    engine, config = EngineConfig(max_model_len=64, num_blocks=64), serve()
    assert config.block_size == engine.block_size
    assert config.max_num_seqs == engine.max_num_seqs
    assert config.max_num_batched_tokens is None  # what suits the scheduler


def test_queue_bounds_default_to_the_queues_own() -> None:
    limits, config = AdmissionLimits(), serve()
    assert config.max_num_queued_reqs == limits.max_requests
    assert config.max_num_queued_tokens == limits.max_tokens


def test_it_cannot_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        serve().port = 1


@pytest.mark.parametrize(
    ("given", "pools"),
    [
        ({"mixed": "1"}, (0, 0, 1)),
        ({"mixed": 2, "prefill": 1}, (1, 0, 2)),
        ({"mixed": 1, "prefill": 1, "decode": 1}, (1, 1, 1)),
        ({"mixed": "0"}, (1, 1, 0)),
        ({"prefill": 2, "decode": 3}, (2, 3, 0)),
    ],
)
def test_mixed_replaces_the_pools_that_are_not_given(
    given: dict[str, object], pools: tuple[int, int, int]
) -> None:
    config = serve(**given)
    assert (config.prefill, config.decode, config.mixed) == pools


@pytest.mark.parametrize("given", [{"prefill": 0}, {"decode": 0}, {"prefill": 0, "decode": 0}])
def test_each_phase_needs_a_worker(given: dict[str, object]) -> None:
    assert rejected(given) == {"mixed"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("admission", "none"),
        ("block_size", 24),
        ("block_size", 0),
        ("decode", -1),
        ("dtype", "int8"),
        ("grpc_port", -1),
        ("host", "127.0.0.1:80"),
        ("host", "a b"),
        ("kv_cache_memory", "lots"),
        ("kv_transfer_timeout", 0),
        ("launcher", "kubernetes"),
        ("standby", "-1"),
        ("standby", "1"),  # Ray, which is the default, starts processes by itself
        ("log_level", "loud"),
        ("max_model_len", 0),
        ("max_num_queued_reqs", "none"),
        ("model", ""),
        ("model", 7),
        ("port", 65536),
        ("port", True),
        ("prefill_order", "lifo"),
        ("scheduler", "magic"),
        ("seed", 2**64),
        ("tbt_objective_ms", 0),
        ("served_model_name", ["a", "a"]),
        ("served_model_name", ["a\nb"]),
        ("shutdown_timeout", -1),
        ("shutdown_timeout", "nan"),
        ("tensor_parallel_size", 0),
        ("decode_tensor_parallel_size", 65),
        ("threads_per_worker", 0),
        ("no_such_setting", 1),
    ],
)
def test_values_that_cannot_be(name: str, value: object) -> None:
    assert rejected({name: value}) == {name}


def test_ranks_of_each_pool() -> None:
    config = serve(tensor_parallel_size="2", decode_tensor_parallel_size=4)
    assert [config.ranks(role) for role in ("prefill", "decode", "mixed")] == [2, 4, 2]


@pytest.mark.parametrize("pool", ["prefill", "decode"])
def test_ranks_of_a_pool_without_workers(pool: str) -> None:
    name = f"{pool}_tensor_parallel_size"
    assert rejected({"mixed": 1, name: 2}) == {name}


def test_everything_wrong_is_found_at_once() -> None:
    wrong = {
        "port": "x",
        "block_size": 24,
        "shutdown_timeout": -1,
        "log_level": "loud",
        "mixed": -1,
    }
    assert rejected(wrong) == set(wrong)


def test_http_and_grpc_need_a_port_each() -> None:
    assert rejected({"port": 9000, "grpc_port": 9000}) == {"grpc_port"}
    assert serve(port=0, grpc_port=0).grpc_port == 0


def test_a_step_holds_a_token_of_every_sequence() -> None:
    given = {"max_num_seqs": "9k", "max_num_batched_tokens": 1024}
    assert rejected(given) == {"max_num_batched_tokens"}
    assert serve(max_num_seqs="9k").max_num_batched_tokens is None


def test_kv_memory_is_given_in_blocks_or_bytes() -> None:
    assert rejected({"num_kv_blocks": 100, "kv_cache_memory": "1GiB"}) == {"kv_cache_memory"}
    assert serve(kv_cache_memory="1GiB").kv_cache_memory == 2**30


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "0", "0.0", "0x0", "::", "0::0", "::ffff:0.0.0.0", "::0.0.0.0"]
)
def test_listening_everywhere_needs_a_key(host: str) -> None:
    assert is_wildcard(host)
    assert rejected({"host": host}) == {"host"}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "10.0.0.1", "gpu-box.example"])
def test_other_hosts_do_not(host: str) -> None:
    assert not is_wildcard(host)
    assert serve(host=host).host == host


@pytest.mark.parametrize("guard", [{"api_key": "secret"}, {"insecure": True}])
def test_a_key_or_the_word_insecure_lifts_the_refusal(guard: dict[str, object]) -> None:
    assert serve(host="0.0.0.0", **guard).host == "0.0.0.0"


@pytest.mark.parametrize("key", ["", "two words", "tab\t", "clé"])
def test_keys_are_printable_ascii(key: str) -> None:
    assert rejected({"api_key": [key]}) == {"api_key"}


def test_keys_are_shown_to_the_front_doors_only() -> None:
    config = serve(api_key=["sesame", "open"])
    assert config.api_keys == ("sesame", "open")
    for shown in (repr(config), str(config), json.dumps(config.model_dump(mode="json"))):
        assert "sesame" not in shown


def test_model_names() -> None:
    assert serve(served_model_name=["a", "b"]).model_names == ("a", "b")
    assert serve(served_model_name="a").model_names == ("a",)
    assert serve(model="models/small/").model_names == ("small",)


@pytest.mark.parametrize(
    ("create", "names"),
    [
        (lambda name: create_scheduler(name, SETUP), SchedulerName),
        (lambda name: create_order(name, None), OrderName),
        (lambda name: create_admission(name, SETUP.limits), AdmissionName),
    ],
)
def test_every_policy_can_be_named_and_no_other(
    create: Callable[[str], object], names: object
) -> None:
    choices = sorted(get_args(names))
    with pytest.raises(ConfigError) as error:
        create("?")
    assert error.value.message.endswith(f"choose one of {choices}")
    for name in choices:
        assert name == "auto" or create(name)


POLICIES = {"scheduler": "layered", "prefill_order": "spf", "admission": "conservative"}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("pool", ["prefill", "decode"])
def test_policies_of_one_pool(pool: Literal["prefill", "decode"], policy: str) -> None:
    own, name = f"{pool}_{policy}", POLICIES[policy]
    config, common = serve(mixed=1, prefill=1, decode=1, **{own: name}), serve()
    for role in ROLES:
        found = getattr(config, f"{policy}_of")(role)
        assert found == (name if role == pool else getattr(common, policy))
    assert rejected({"mixed": 1, own: name}) == {own}
    assert rejected({own: "magic"}) == {own}
