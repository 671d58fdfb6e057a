from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.vae_edge.backends.make_tensorrt_api_table import make_table, read_dumps
from tests.vae_edge.backends.tensorrt_double import CudaDouble, TensorRtDouble
from tests.vae_edge.backends.tensorrt_names import GUARDS, TABLE, all_used_names, used_names


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return content


def missing_from(table: dict[str, Any], names: set[str]) -> set[str]:
    """Return the names that some version lacks and that are not optional, or that the table does not know."""
    rows = table["names"]
    return {
        name
        for name in names
        if name not in rows or (not rows[name]["optional"] and set(rows[name]["in"]) != set(table["versions"]))
    }


def test_the_table_covers_six_versions_from_the_floor_on(table: dict[str, Any]) -> None:
    assert len(table["versions"]) == 6
    assert table["versions"][0] == "tensorrt 10.3.0"
    assert table["versions"][-1].startswith("tensorrt_rtx ")


def test_every_tensorrt_name_in_use_is_in_all_versions(table: dict[str, Any]) -> None:
    assert missing_from(table, all_used_names()[0]) == set()


def test_the_table_holds_no_name_that_is_not_in_use(table: dict[str, Any]) -> None:
    assert set(table["names"]) == all_used_names()[0]


def test_optional_names_stand_behind_a_hasattr(table: dict[str, Any]) -> None:
    asked = all_used_names()[1]
    optional = {name for name, row in table["names"].items() if row["optional"]}
    assert optional == set(GUARDS)
    assert set(GUARDS.values()) <= asked


def test_a_name_that_tensorrt_does_not_have_is_found_out(table: dict[str, Any]) -> None:
    source = """
def build(api, config, seat):
    config.build_it_faster = True
    seat.context.execute_async_v9(0)
    api.NetworkDefinitionCreationFlag.WEAKLY_TYPED
    type("Listener", (api.IProgressMonitor,), {"phase_skipped": None})
"""
    assert missing_from(table, used_names(source)[0]) == {
        "IBuilderConfig.build_it_faster",
        "IExecutionContext.execute_async_v9",
        "NetworkDefinitionCreationFlag.WEAKLY_TYPED",
        "IProgressMonitor.phase_skipped",
    }


def test_a_name_that_one_version_lacks_is_found_out(table: dict[str, Any]) -> None:
    rows = {**table["names"], "Builder.new_in_11": {"optional": False, "in": {"tensorrt 11.4.0.106": []}}}
    assert missing_from({**table, "names": rows}, {"Builder.new_in_11"}) == {"Builder.new_in_11"}


def test_the_table_agrees_with_the_dumps(table: dict[str, Any]) -> None:
    folder = os.environ.get("VAE_EDGE_TENSORRT_API")
    if not folder:
        pytest.skip("VAE_EDGE_TENSORRT_API names no folder with dumps of TensorRT's modules")
    assert make_table(read_dumps(Path(folder))) == table


def test_the_installed_tensorrt_has_every_name_in_use(table: dict[str, Any]) -> None:
    api = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    for name, row in table["names"].items():
        thing = api
        for part in name.split("."):
            thing = getattr(thing, part, None)
        # Names of enumeration members and of methods of parser errors are found the same way.
        assert thing is not None or not any(version.startswith("tensorrt_rtx") for version in row["in"]), name


def test_the_double_has_no_name_that_tensorrt_lacks(table: dict[str, Any]) -> None:
    api = TensorRtDouble(CudaDouble()).api
    public = {name: held for name, held in vars(api).items() if not name.startswith("_")}
    own = {f"{name}.{member}" for name, held in public.items() for member in vars(held) if not member.startswith("_")}
    # Kept by the double for itself, or real names that only the double's own code needs.
    known = {"IHostMemory.nbytes", "TensorIOMode.NONE", "DataType.HALF", "DataType.INT8"}
    assert own - known <= set(table["names"])
