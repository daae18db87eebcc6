"""Networks on pictures whose feature maps do not fit in memory: bands of rows, and the same result as without.

A band is some rows of the picture, at full width. Each map is computed band by band, and keeps the last rows of a band
until the next one has used them, so that nothing is computed twice and no edge is padded but the picture's own. Only an
instance norm must see the whole of a map first: the maps before it are streamed once for their statistics and a second
time to be normalised by them. In between they are kept, in memory or in a temporary file, or computed anew where that
is cheaper.
"""

from .maps import AdaptiveNormalisation, Affine, FeatureMap, Photograph
from .network import feature_map
from .plan import Plan, Tiling
from .stream import OnProgress, pixels_of, progress_of, run, statistics

__all__ = [
    "AdaptiveNormalisation",
    "Affine",
    "FeatureMap",
    "OnProgress",
    "Photograph",
    "Plan",
    "Tiling",
    "feature_map",
    "pixels_of",
    "progress_of",
    "run",
    "statistics",
]
