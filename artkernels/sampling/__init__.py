"""Pictures from networks that make them out of noise: by seed, on the way from one to another, as sheets and videos."""

from artkernels.sampling.codes import seed_code, slerp, walk
from artkernels.sampling.networks import Sampler, sample
from artkernels.sampling.sheet import sheet, sheet_size
from artkernels.sampling.video import check_video, write_video

__all__ = ["Sampler", "check_video", "sample", "seed_code", "sheet", "sheet_size", "slerp", "walk", "write_video"]
