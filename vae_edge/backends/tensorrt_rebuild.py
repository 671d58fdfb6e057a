"""Builds an engine from a bundle's ONNX for one GPU, once: into the cache of compiled models, under a lock."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from vae_edge import compiled_cache
from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.cuda.driver import Gpu
from vae_edge.backends.tensorrt_build import EngineSettings, build_plan
from vae_edge.backends.tensorrt_module import MisfitError, TensorRtModule
from vae_edge.backends.tensorrt_progress import Activate
from vae_edge.compiled_cache import CompiledKey

_log = logging.getLogger(__name__)

_Accepted = TypeVar("_Accepted")


@dataclass(frozen=True)
class Rebuild:
    """An engine that can be built here.

    Args:
        onnx_path: the model.
        module: the TensorRT to build with.
        gpu: the GPU to build for, the one that `activate` makes current.
        max_batch: the largest batch that has to go in; None: that of `EngineSettings`.
        activate: makes the GPU current on a thread.
    """

    onnx_path: Path
    module: TensorRtModule
    gpu: Gpu
    max_batch: int | None
    activate: Activate

    @property
    def settings(self) -> EngineSettings:
        """How it is built: as export builds, for the batch that has to go in."""
        settings = EngineSettings() if self.max_batch is None else EngineSettings(max_batch=self.max_batch)
        # TensorRT-RTX leaves GPUs before Ampere out unless they are named.
        is_old = tuple(map(int, self.gpu.compute_capability.split("."))) < (8, 0)
        if self.module.flavour.module == "tensorrt_rtx" and is_old:
            return replace(settings, compute_capabilities=(self.gpu.compute_capability,))
        return settings

    def key(self, model_sha256: str) -> CompiledKey:
        """Return what the engine is kept under."""
        settings = self.settings
        return CompiledKey(
            "tensorrt",
            model_sha256,
            str(self.module),
            self.gpu.kind,
            (
                ("platform", f"{platform.system()} {platform.machine()}"),
                ("max_batch", str(settings.max_batch)),
                ("opt_batch", str(settings.opt_batch)),
                ("workspace_bytes", str(settings.workspace_bytes)),
                ("optimization_level", str(settings.optimization_level)),
                ("compute_capabilities", ",".join(settings.compute_capabilities)),
                ("describe_layers", str(settings.describe_layers)),
            ),
        )

    def find_or_build(
        self, accept: Callable[[bytes], _Accepted], options: RuntimeOptions
    ) -> tuple[_Accepted, float | None] | None:
        """Return the engine that was built before, or build and keep it; a second process waits for the first.

        Args:
            accept: makes of an engine's bytes what is wanted, or raises MisfitError.
            options: `rebuild` tells whether it may be built; `model_sha256` is what it is kept under, None: it is not
                kept; `progress` is told of the steps.

        Returns:
            What `accept` made, and the seconds of the build, or None where it was there. None for both: it is not there
            and may not be built.

        Raises:
            InputError: the ONNX file does not fit the settings.
            DeviceError: TensorRT cannot read or build the model.
            MisfitError: the new engine was not accepted. Nothing is kept.
        """
        key = None if options.model_sha256 is None else self.key(options.model_sha256)
        found = None if key is None else _from_cache(key, accept)
        if found is not None:
            return found, None
        if not options.rebuild:
            return None
        if key is None:
            return self._build(accept, None, options)
        tell = options.progress or _tell_nobody
        waiting = "waiting for another process that builds this engine"
        waited = False

        def on_wait() -> None:
            nonlocal waited
            waited = True
            _log.info("%s", waiting)
            tell(waiting, 0, 1)

        with compiled_cache.building(key, on_wait):
            if waited:
                tell(waiting, 1, 1)
            # Between the first look and the lock somebody may have built it.
            found = _from_cache(key, accept)
            return self._build(accept, key, options) if found is None else (found, None)

    def _build(
        self, accept: Callable[[bytes], _Accepted], key: CompiledKey | None, options: RuntimeOptions
    ) -> tuple[_Accepted, float]:
        tell = options.progress or _tell_nobody
        _log.info("building an engine from %s for %s with %s", self.onnx_path, self.gpu, self.module)
        started = time.perf_counter()
        content = build_plan(
            self.onnx_path,
            self.settings,
            self.module,
            self.gpu,
            lambda phase, done, total: tell(f"building the engine: {phase}", done, total),
            activate=self.activate,
        ).content
        seconds = time.perf_counter() - started
        # Before it is kept: one that does not load here is of no use to the next start either.
        accepted = accept(content)
        if key is not None:
            compiled_cache.keep(key, lambda path: path.write_bytes(content))
        return accepted, seconds


def _from_cache(key: CompiledKey, accept: Callable[[bytes], _Accepted]) -> _Accepted | None:
    path = compiled_cache.find(key)
    if path is None:
        return None
    try:
        return accept(path.read_bytes())
    except OSError as error:  # The cache was cleared in this moment.
        _log.debug("%s is gone: %s", path, error)
    except MisfitError as error:
        _log.warning("the engine that was built here before %s; it is built anew", error)
    return None


def _tell_nobody(what: str, done: int, total: int) -> None:
    """Stand in for progress that nobody wants."""
