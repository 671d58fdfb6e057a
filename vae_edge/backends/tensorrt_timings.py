"""The kernel timings of earlier builds: with them full TensorRT builds the next engine in a part of the time."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge import compiled_cache
from vae_edge.atomic import write_bytes
from vae_edge.backends.cuda.driver import Gpu
from vae_edge.compiled_cache import CompiledKey

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timings:
    """Timings of one TensorRT version on one kind of GPU."""

    file: Path | None
    """Where they are; None: in the cache of compiled models."""
    runtime: str
    gpu: Gpu

    def load(self, config: Any) -> None:
        """Give a build the timings that there are."""
        path = self.file or compiled_cache.find(self._key)
        try:
            stored = path.read_bytes() if path is not None and path.is_file() else b""
        except OSError as error:
            _log.warning("the timings in %s cannot be read (%s) and are measured afresh", path, error)
            stored = b""
        cache = config.create_timing_cache(stored)
        if cache is None or not config.set_timing_cache(cache, False):
            _log.warning("%s does not fit this device or TensorRT version; its timings are measured afresh", path)
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep(self, config: Any) -> None:
        """Keep the timings of a build, with those it was given.

        Raises:
            InputError: the file that was named cannot be written.
        """
        content = memoryview(config.get_timing_cache().serialize())
        if self.file is not None:
            write_bytes(self.file, content)
        else:
            compiled_cache.keep(self._key, lambda path: path.write_bytes(content))

    @property
    def _key(self) -> CompiledKey:
        return CompiledKey("tensorrt-timings", "", self.runtime, self.gpu.kind)
