"""Networks on pictures whose feature maps do not fit in memory: bands of rows, and the same result as without.

A band is some rows of the output, at full width. Each map is computed band by band, and keeps the last rows of a band
until the next one has used them, so that nothing is computed twice and no edge is padded but the picture's own. Only an
instance norm must see the whole of a map first: the maps before it are streamed once for their statistics and a second
time to be normalised by them. In between they are kept, in memory or in a temporary file, or computed anew where that
is cheaper.
"""

from .maps import Affine, FeatureMap, Photograph, adaptive_instance_norm
from .network import feature_map
from .plan import Plan, Tiling
from .stream import pixels_of, run, statistics

__all__ = [
    "Affine",
    "FeatureMap",
    "Photograph",
    "Plan",
    "Tiling",
    "adaptive_instance_norm",
    "feature_map",
    "pixels_of",
    "run",
    "statistics",
]
