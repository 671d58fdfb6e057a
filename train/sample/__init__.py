"""A procedurally drawn inspection set, so that everything can be tried without a download.

Three products, each with six or seven kinds of defect and exact masks, in the folder layout of MVTec AD
(https://www.mvtec.com/company/research/datasets/mvtec-ad).
"""

from vae_edge.train.sample.drawing import (
    DEFAULT_PRODUCT,
    PRODUCTS,
    SAMPLE_VERSION,
    DefectiveDrawing,
    SampleSettings,
    defect_kinds,
    draw_defective,
    draw_normal,
)
from vae_edge.train.sample.writer import write_sample_set

__all__ = [
    "DEFAULT_PRODUCT",
    "PRODUCTS",
    "SAMPLE_VERSION",
    "DefectiveDrawing",
    "SampleSettings",
    "defect_kinds",
    "draw_defective",
    "draw_normal",
    "write_sample_set",
]
