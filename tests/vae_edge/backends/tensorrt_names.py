"""Which of TensorRT's names the sources use, read off their syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCES = (
    "vae_edge/backends/tensorrt/module.py",
    "vae_edge/backends/tensorrt_backend.py",
    "vae_edge/backends/tensorrt/engine.py",
    "vae_edge/backends/tensorrt/progress.py",
    "vae_edge/backends/tensorrt/build.py",
    "vae_edge/backends/tensorrt/network.py",
)
TABLE = Path(__file__).with_name("tensorrt_api.json")

CLASSES = {
    "api": "",
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "dtype": "DataType",
    "engine": "ICudaEngine",
    "layer": "ILayer",
    "listener": "IProgressMonitor",
    "mode": "TensorIOMode",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "plan": "IHostMemory",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "tensor": "ITensor",
}
"""What the variables and attributes of these names hold, whatever underscore they begin with; "" is the module."""

RESULTS = {"get_timing_cache": "ITimingCache"}
"""What a call gives whose result is used at once."""

PATHS = {"plan"}
"""Names of `CLASSES` that hold a file's path in some module: only the builder's count."""

GUARDS = {
    "BuilderFlag.FP16": "BuilderFlag.FP16",
    "BuilderFlag.INT8": "BuilderFlag.FP16",
    "BuilderFlag.PREFER_PRECISION_CONSTRAINTS": "BuilderFlag.FP16",
    "ILayer.precision": "BuilderFlag.FP16",
    "ILayer.set_output_type": "BuilderFlag.FP16",
    "ComputeCapability": "IBuilderConfig.num_compute_capabilities",
    "EngineInvalidityDiagnostics": "Runtime.get_engine_validity",
    "EngineValidity": "Runtime.get_engine_validity",
    "EngineValidity.INVALID": "Runtime.get_engine_validity",
    "Runtime.get_engine_validity": "Runtime.get_engine_validity",
    "IBuilderConfig.num_compute_capabilities": "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability": "IBuilderConfig.num_compute_capabilities",
}
"""Optional names, and the name whose `hasattr` stands before their use."""


def used_names(source: str, *, plans_are_paths: bool = False) -> tuple[set[str], set[str]]:
    """Return the names that a source uses, and those it asks for with `hasattr`."""
    tree = ast.parse(source)
    known = {name: held for name, held in CLASSES.items() if not (plans_are_paths and name in PATHS)}
    used: set[str] = set()
    asked: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            _add(used, _class_of(node.value, known), node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "hasattr" and isinstance(node.args[1], ast.Constant):
                _add(asked, _class_of(node.args[0], known), str(node.args[1].value))
            elif node.func.id == "type" and len(node.args) == 3:
                used |= _overridden(node, known)
    return used | asked, asked


def all_used_names() -> tuple[set[str], set[str]]:
    """Return the names that all sources use, and those they ask for with `hasattr`."""
    used: set[str] = set()
    asked: set[str] = set()
    for source in SOURCES:
        text = (ROOT / source).read_text(encoding="utf-8")
        more_used, more_asked = used_names(text, plans_are_paths="build" not in source)
        used |= more_used
        asked |= more_asked
    return used, asked


def _add(names: set[str], held: str | None, attribute: str) -> None:
    if held is not None and not attribute.startswith("__"):
        names.add(f"{held}.{attribute}" if held else attribute)


def _class_of(node: ast.expr, known: dict[str, str]) -> str | None:
    """Return the class of TensorRT that an expression is or holds, or None."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return RESULTS.get(node.func.attr)
    if isinstance(node, ast.Attribute):
        if node.attr.lstrip("_") in known:
            return known[node.attr.lstrip("_")]
        parent = _class_of(node.value, known)
        # A class inside the module, or inside a class of it: `api.ILogger.Severity`.
        if parent is not None and node.attr[:1].isupper():
            return f"{parent}.{node.attr}" if parent else node.attr
    return None


def _overridden(call: ast.Call, known: dict[str, str]) -> set[str]:
    """Return the methods that a class made with `type` overrides, which must be TensorRT's own."""
    bases, methods = call.args[1], call.args[2]
    if not isinstance(bases, ast.Tuple) or not isinstance(methods, ast.Dict):
        return set()
    held = [_class_of(base, known) for base in bases.elts]
    keys = [str(key.value) for key in methods.keys if isinstance(key, ast.Constant)]
    return {f"{base}.{key}" for base in held if base for key in keys}
