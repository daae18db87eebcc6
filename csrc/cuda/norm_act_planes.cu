// Normalisation + activation of NCHW feature maps, where a channel of an image is a plane of P contiguous elements.
// See norm_act.cuh for the passes.
#include <algorithm>

#include "norm_act_planes.cuh"

namespace artkernels::cuda {

namespace {

__device__ __forceinline__ Coefficients plane_coefficients(const PlanesKernel& p, uint32_t plane, float mean,
                                                           float rstd) {
  const uint32_t C = static_cast<uint32_t>(p.op.features.C);
  return coefficients(p.op, plane / C, plane % C, mean, rstd);
}
__device__ __forceinline__ float plane_weight(const PlanesKernel& p, uint32_t plane) {
  const uint32_t C = static_cast<uint32_t>(p.op.features.C);
  return weight_of(p.op, plane / C, plane % C);
}

// The statistics group of a team's group.
__device__ __forceinline__ uint32_t statistics_of(const PlanesKernel& p, uint32_t group) {
  return p.pass == Pass::Whole || p.op.across_batch ? group : group / p.group_channels;
}

// Of `count` elements of a team, from the registers: two passes.
template <typename T, typename V, int n>
__device__ __forceinline__ Moments moments(const T& tile, V (&x)[n], float count) {
  float total[1] = {};
#pragma unroll
  for (int v = 0; v < n; ++v) {
    for_each<V::kQuads>([&](int quad) {
      float values[4];
      x[v].get(quad, values);
      for_each<4>([&](int e) { total[0] += values[e]; });  // zero beyond the end
    });
  }
  tile.sum(total);
  const float mean = total[0] / count;
  float deviation[2] = {};
#pragma unroll 1
  for (int v = 0; v < n; ++v) {
    const int valid = tile.slot(v).valid;
    for_each<V::kQuads>([&](int quad) {
      float values[4];
      x[0].get(quad, values);
      for_each<4>([&](int e) {
        const float d = quad * 4 + e < valid ? values[e] - mean : 0.f;
        deviation[0] += d;
        deviation[1] += d * d;
      });
    });
    rotate(x);
  }
  tile.sum(deviation);
  return corrected(mean, deviation[0], deviation[1], count);
}

// Forward.
//
// Tiling: see PlanesGeometry; a thread holds kVectors vectors of 16 bytes, loaded all at once. Whole: 256 threads x 4
// vectors (up to 16 KB a statistics group), or 512 x 8 (64 KB). The variance is taken from the registers, two-pass.
// Traffic: Whole reads and writes each element once. Statistics reads once more; Apply runs through the tiles in
// reverse, so that L2 still has what Statistics read last.
// Registers: at most 80 (three blocks of 256 threads an SM); 128 for 512 x 8 (one).
template <typename scalar_t, int kThreads, int kVectors, bool kVectorised>
__global__ __launch_bounds__(kThreads, kVectors == 4 ? 3 : 1) void norm_act_planes_kernel(const PlanesKernel p) {
  using V = Vector<scalar_t>;
  const PlanesTile<scalar_t, kThreads, kVectorised> tile(p, p.pass == Pass::Apply);
  if (tile.idle()) return;
  V x[kVectors], residual[kVectors] = {};
  tile.load(x, p.input);
  if (p.residual && p.pass != Pass::Statistics) tile.load(residual, p.residual);

  Moments m;
  if (p.pass == Pass::Statistics) {
    m = moments(tile, x, entry_size(p.entries, tile.tile));
    if (!tile.leads()) return;
    p.partial[tile.entry()] = m.mean;
    p.partial[p.entries.count + tile.entry()] = m.squares;
    return;
  }
  const uint32_t statistics = statistics_of(p, tile.group);
  float mean, var;
  if (p.pass == Pass::Whole || p.merge_partial) {
    if (p.pass == Pass::Whole) m = moments(tile, x, p.elements);
    else
      m = merge_moments(
          p, threadIdx.x, kThreads, [&](int i) { return int64_t{tile.group} * tile.g.tiles + i; },
          [&](auto& v) { tile.sum(v); });
    mean = m.mean;
    var = m.squares / p.divisor;
    if (tile.leads() && tile.tile == 0) {
      p.mean[statistics] = mean;
      p.var[statistics] = var;
    }
    if (!p.output) return;
  } else {
    mean = p.mean[statistics];
    var = p.var[statistics];
  }
  const bool many_channels = p.pass == Pass::Whole && p.group_channels > 1;
  const float rstd = rstd_of(p.op, var);
  Coefficients k = plane_coefficients(p, tile.group * tile.g.group_planes, mean, rstd);
#pragma unroll 1
  for (int v = 0; v < kVectors; ++v) {
    const auto at = tile.slot(v);
    if (at.valid) {
      if (many_channels) k = plane_coefficients(p, at.plane, mean, rstd);
#pragma unroll 1
      for (int quad = 0; quad < V::kQuads; ++quad) {
        float values[4], other[4];
        x[0].get(quad, values);
        residual[0].get(quad, other);
        norm_act(p.op, values, other, [&](int) { return k; });
        x[0].set(quad, values);
      }
      tile.store(at, p.output, x[0]);
    }
    rotate(x);
    rotate(residual);
  }
}

// Backward: as the forward, of two inputs. Sums are of dz and of dz (x - mean), in a statistics group of several
// channels for each of them, and weighted for the group. A residual added before the activation is read where z is
// needed, in Whole again for the result: from L1 or L2.
// Traffic: Whole, and Apply alone, 2 reads and a write of each element; else 2 reads more.
// Registers: at most 128 (two blocks of 256 threads an SM, or one of 512).
template <typename scalar_t, int kThreads, int kVectors, bool kVectorised>
__global__ __launch_bounds__(kThreads,
                             kVectors == 4 ? 2 : 1) void norm_act_planes_backward_kernel(const PlanesKernel p) {
  using V = Vector<scalar_t>;
  const PlanesTile<scalar_t, kThreads, kVectorised> tile(p, p.pass == Pass::Apply);
  if (tile.idle()) return;
  V x[kVectors], g[kVectors];
  tile.load(x, p.input);
  tile.load(g, p.grad_output);

  const bool many_channels = p.pass == Pass::Whole && p.group_channels > 1;
  const uint32_t statistics = statistics_of(p, tile.group), plane = tile.group * tile.g.group_planes;
  auto rstd = [&] { return rstd_of(p.op, p.var[statistics]); };  // read again where it is needed: a register less
  Coefficients k = plane_coefficients(p, plane, p.mean[statistics], rstd());
  float total[2] = {};  // of the group: sums of dz, of dz (x - mean)

  if (p.merge_partial) {
    for (int i = threadIdx.x; i < p.entries.per_channel; i += kThreads)
      for_each<2>([&](int j) { total[j] += p.partial[j * p.entries.count + int64_t{tile.group} * tile.g.tiles + i]; });
    tile.sum(total);
    if (p.sums && tile.leads() && tile.tile == 0) write_sums(p, tile.group, total[0], total[1], rstd());
  }
  // Whole needs the sums before the results, and so goes through the registers twice.
  for (int sweep = 0; sweep < 2; ++sweep) {
    const bool summed = p.pass == Pass::Apply ? p.accumulate : sweep == 0;
    const bool written = p.pass == Pass::Apply || sweep == 1;
    if (written && p.own_averages && (p.pass == Pass::Whole || p.merge_partial)) {
      const float weight = many_channels ? 1.f : plane_weight(p, plane);
      set_averages(k, p.op, rstd(), weight * total[0] / p.elements, weight * total[1] * rstd() / p.divisor);
    } else if (written && p.averages) {
      set_averages(k, p.op, rstd(), p.averages[statistics], p.averages[p.statistics + statistics]);
    }
    float plane_total[2] = {};
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
      const auto at = tile.slot(v);
      if (at.valid) {
        if (many_channels) set_affine(k, plane_coefficients(p, at.plane, k.mean, rstd()));
        const V residual = p.residual ? tile.load(at, p.residual) : V{};
#pragma unroll 1
        for (int quad = 0; quad < V::kQuads; ++quad) {
          float values[4], dz[4], other[4];
          x[0].get(quad, values);
          g[0].get(quad, dz);
          residual.get(quad, other);
          norm_act_backward(p.op, dz, values, other, [&](int) { return k; });
          for_each<4>([&](int e) {
            plane_total[0] += dz[e];
            plane_total[1] += dz[e] * (values[e] - k.mean);
          });
          if (!written) continue;
          g[0].set(quad, dz);
          input_gradient(dz, values, [&](int) { return k; });
          x[0].set(quad, dz);
        }
        if (written && p.grad_residual) tile.store(at, p.grad_residual, g[0]);
        if (written && p.output) tile.store(at, p.output, x[0]);
      }
      const bool plane_ends = ((v + 1) & ((1 << tile.g.plane_vectors_log2) - 1)) == 0;
      if (plane_ends) {
        const float weight = many_channels ? (at.in_plane ? plane_weight(p, at.plane) : 0.f) : 1.f;
        for_each<2>([&](int i) { total[i] += weight * plane_total[i]; });
        if (many_channels && p.sums) {
          tile.sum_lanes(plane_total);
          if (tile.lane() == 0 && at.in_plane) write_sums(p, at.plane, plane_total[0], plane_total[1], rstd());
        }
        for_each<2>([&](int i) { plane_total[i] = 0.f; });
      }
      rotate(x);
      rotate(g);
    }
    if (summed) {
      tile.sum(total);
      if (p.pass != Pass::Whole && tile.leads())
        for_each<2>([&](int i) { p.partial[i * p.entries.count + tile.entry()] = total[i]; });
      else if (p.sums && !many_channels && tile.leads()) write_sums(p, tile.group, total[0], total[1], rstd());
    }
    if (p.pass != Pass::Whole || !(p.output || p.grad_residual)) return;
  }
}

constexpr int kSmallThreads = 256, kSmallVectors = 4, kLargeThreads = 512, kLargeVectors = 8;

// merged: the planes that share a mean are one group; else those of the same channel.
PlanesGeometry make_geometry(const NormAct& op, bool merged, int threads, int vectors) {
  const auto [N, C, P, dtype, channels_last] = op.features;
  const int length = static_cast<int>(16 / element_size(dtype));
  const int64_t group_planes = op.across_batch ? 1 : merged ? C / op.groups : 1;
  PlanesGeometry g{};
  g.planes = static_cast<uint32_t>(op.across_batch ? N : group_planes);
  g.group_planes = static_cast<uint32_t>(group_planes);
  g.plane_step = static_cast<uint32_t>(op.across_batch ? C : 1);
  g.plane_pitch = g.plane_step * P;
  g.groups = static_cast<uint32_t>(op.across_batch ? C : N * C / group_planes);

  const int64_t plane_vectors = ceil_div(P, length);
  g.lanes_log2 = plane_vectors > 32 * vectors ? log2_ceil(threads) : std::min(5, log2_ceil(plane_vectors));
  g.plane_vectors_log2 = std::min(log2_ceil(ceil_div(plane_vectors, 1 << g.lanes_log2)), log2_ceil(vectors));
  const int lane_planes = vectors >> g.plane_vectors_log2;
  g.crew = threads;
  if (g.lanes_log2 <= 5) {
    if (ceil_div(int64_t{g.planes} << g.lanes_log2, 32) <= lane_planes) {  // a warp is enough for a group
      g.crew = 32;
      g.rows_log2 = std::min(5 - g.lanes_log2, log2_ceil(g.planes));
      g.teams_log2 = 5 - g.lanes_log2 - g.rows_log2;
    } else {
      const int line_log2 = 3;  // 8 vectors, 128 bytes
      if (op.across_batch) g.teams_log2 = std::min(std::max(line_log2 - g.lanes_log2, 0), log2_ceil(g.groups));
      g.rows_log2 = log2_ceil(threads) - g.lanes_log2 - g.teams_log2;
    }
  }
  const int64_t row_planes = std::min<int64_t>(lane_planes, ceil_div(g.planes, int64_t{1} << g.rows_log2));
  g.vectors = static_cast<int>(row_planes) << g.plane_vectors_log2;
  g.tile_pixels = length << (g.lanes_log2 + g.plane_vectors_log2);
  const int64_t tiles_per_plane = ceil_div(P, g.tile_pixels);
  const int64_t tiles = tiles_per_plane * ceil_div(g.planes, g.tile_planes());
  const int64_t crews = ceil_div(g.groups, 1 << g.teams_log2) * tiles;
  require(crews <= INT32_MAX && N * C <= INT32_MAX, "norm_act: " + std::to_string(N) + " x " + std::to_string(C) +
                                                        " planes of " + std::to_string(P) +
                                                        " pixels, at most 2^31 - 1 planes and blocks are possible");
  g.tiles_per_plane = static_cast<uint32_t>(tiles_per_plane);
  g.tiles = static_cast<uint32_t>(tiles);
  g.crews = static_cast<uint32_t>(crews);
  return g;
}

template <typename scalar_t, bool kBackward, bool kVectorised, int kThreads, int kVectors>
void launch_kernel(const PlanesKernel& p, cudaStream_t stream) {
  const int64_t blocks = ceil_div(p.geometry.crews, kThreads / p.geometry.crew);
  if constexpr (kBackward)
    launch(norm_act_planes_backward_kernel<scalar_t, kThreads, kVectors, kVectorised>,
           "norm_act_planes_backward_kernel", blocks, kThreads, 0, stream, p);
  else
    launch(norm_act_planes_kernel<scalar_t, kThreads, kVectors, kVectorised>, "norm_act_planes_kernel", blocks,
           kThreads, 0, stream, p);
}

template <typename scalar_t, bool kBackward, bool kVectorised>
void launch_sized(PlanesKernel p, cudaStream_t stream) {
  const bool whole = p.pass == Pass::Whole;
  p.geometry = make_geometry(p.op, whole, kSmallThreads, kSmallVectors);
  if (!whole || p.geometry.tiles == 1)
    return launch_kernel<scalar_t, kBackward, kVectorised, kSmallThreads, kSmallVectors>(p, stream);
  p.geometry = make_geometry(p.op, whole, kLargeThreads, kLargeVectors);
  launch_kernel<scalar_t, kBackward, kVectorised, kLargeThreads, kLargeVectors>(p, stream);
}

}  // namespace

NormActPlan plan_planes(const NormAct& op) {
  const auto [N, C, P, dtype, channels_last] = op.features;
  NormActPlan plan{};
  const PlanesGeometry small = make_geometry(op, true, kSmallThreads, kSmallVectors);
  const PlanesGeometry large = make_geometry(op, true, kLargeThreads, kLargeVectors);
  plan.whole = small.tiles == 1 || (large.tiles == 1 && enough_blocks(op, large.crews));
  const PlanesGeometry split = make_geometry(op, false, kSmallThreads, kSmallVectors);
  Entries& e = plan.entries;
  e.groups = 1;  // groups follow each other, across the images
  e.channels = op.across_batch ? 1 : static_cast<int>(C / op.groups);
  e.per_channel = static_cast<int>(split.tiles);
  e.entry_stride = 1;
  e.channel_stride = split.tiles;
  e.image_stride = int64_t{split.tiles} * e.channels;
  e.count = int64_t{split.tiles} * split.groups;
  const bool plane_split = split.tiles_per_plane > 1;
  e.tile = plane_split ? split.tile_pixels : split.tile_planes() * P;
  e.extent = plane_split ? P : split.planes * P;
  e.period = static_cast<int>(plane_split ? split.tiles_per_plane : split.tiles);
  // Each block of Apply then reads at most 1/32 of what its tile has.
  plan.merge_in_apply = e.channels == 1 && split.crew == kSmallThreads && split.teams_log2 == 0 && split.tiles <= 64;
  return plan;
}

void launch_planes(bool backward, const NormActKernel& p, cudaStream_t stream) {
  PlanesKernel kernel{};
  static_cast<NormActKernel&>(kernel) = p;
  const bool vectorised = aligned(p);
  dispatch(p.op.features.dtype, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    if (backward)
      vectorised ? launch_sized<scalar_t, true, true>(kernel, stream)
                 : launch_sized<scalar_t, true, false>(kernel, stream);
    else
      vectorised ? launch_sized<scalar_t, false, true>(kernel, stream)
                 : launch_sized<scalar_t, false, false>(kernel, stream);
  });
}

}  // namespace artkernels::cuda
