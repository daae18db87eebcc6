// Normalisation + activation of channels_last feature maps, where a pixel is a row of C contiguous channels. See
// norm_act.cuh for the passes.
#include <algorithm>
#include <numeric>

#include "norm_act_rows.cuh"

namespace artkernels::cuda {

namespace {

// Of a thread's channel: where its statistics and its entry are.
template <typename T>
__device__ __forceinline__ int64_t statistics_of(const RowsKernel& p, const T& tile) {
  return tile.image() * p.op.groups + tile.channel() / p.group_channels;
}
template <typename T>
__device__ __forceinline__ int64_t entry_of(const RowsKernel& p, const T& tile) {
  return (tile.image() * tile.g.tiles + tile.tile()) * tile.C() + tile.channel();
}

// Of the rows of the tile, from the registers, two passes: the thread of each channel gets its moments.
template <typename T, typename V, int n>
__device__ __forceinline__ Moments moments(const T& tile, typename T::Sums& sums, typename T::Shared& shared, V (&x)[n],
                                           float rows) {
#pragma unroll
  for (int quad = 0; quad < V::kQuads; ++quad) {
    float s[1][4] = {};
#pragma unroll
    for (int v = 0; v < n; ++v) {
      float values[4];
      x[v].get(quad, values);
      for_each<4>([&](int e) { s[0][e] += values[e]; });  // zero beyond the last row
    }
    tile.add(sums, quad, s);
  }
  float total[1];
  tile.collect(sums, total);
  const float mean = total[0] / rows;
  tile.put(shared, {mean});
#pragma unroll
  for (int quad = 0; quad < V::kQuads; ++quad) {
    Coefficients k[4];
    tile.get(shared, quad, k);
    float s[2][4] = {};
#pragma unroll
    for (int v = 0; v < n; ++v) {
      float values[4];
      x[v].get(quad, values);
      for_each<4>([&](int e) {
        const float d = tile.has(v) ? values[e] - k[e].mean : 0.f;
        s[0][e] += d;
        s[1][e] += d * d;
      });
    }
    tile.add(sums, quad, s);
  }
  float deviation[2];
  tile.collect(sums, deviation);
  return corrected(mean, deviation[0], deviation[1], rows);
}

// Of all channels of a group, each with `rows` elements.
template <typename T>
__device__ __forceinline__ Moments group_moments(const T& tile, Moments m, float rows, int group_channels) {
  float total[1] = {m.mean};
  tile.sum_group(total, group_channels);
  const float mean = total[0] / group_channels, d = m.mean - mean;
  float deviation[2] = {rows * d, m.squares + rows * d * d};
  tile.sum_group(deviation, group_channels);
  return corrected(mean, deviation[0], deviation[1], rows * group_channels);
}

// Forward.
//
// Tiling: see RowsGeometry; a thread holds kVectors vectors of 16 bytes, loaded all at once: 256 threads 16 KB, for
// Whole also 512 threads 32 KB. Whole takes as many channel lanes, 1 to 32, as leave enough row lanes for the rows of
// an image; Statistics and Apply take 4: 64 bytes of a row, and few partial sums. Traffic: Whole reads and writes each
// element once. Statistics reads once more; Apply runs through the tiles in reverse, so that L2 still has what
// Statistics read last. Registers: at most 80 (three blocks of 256 threads an SM), 128 for 512 threads (one).
template <typename scalar_t, int kThreads, int kVectors, bool kVectorised>
__global__ __launch_bounds__(kThreads, kThreads == 256 ? 3 : 1) void norm_act_rows_kernel(const RowsKernel p) {
  using V = Vector<scalar_t>;
  using T = RowsTile<scalar_t, kThreads, kVectorised>;
  __shared__ typename T::Sums sums;
  __shared__ typename T::Shared shared;
  const T tile(p);
  V x[kVectors], residual[kVectors] = {};
  tile.load(x, p.input);
  if (p.residual && p.pass != Pass::Statistics) tile.load(residual, p.residual);

  const int64_t statistics = statistics_of(p, tile);
  float mean, var;
  if (p.pass == Pass::Apply) {
    mean = p.mean[statistics];
    var = p.var[statistics];
  } else {
    const float rows = static_cast<float>(tile.tile_rows());
    Moments m = moments(tile, sums, shared, x, rows);
    if (p.pass == Pass::Statistics) {
      if (!tile.has_channel()) return;
      p.partial[entry_of(p, tile)] = m.mean;
      p.partial[p.entries.count + entry_of(p, tile)] = m.squares;
      return;
    }
    m = group_moments(tile, m, rows, p.group_channels);
    mean = m.mean;
    var = m.squares / p.divisor;
    if (tile.has_channel() && tile.channel() % p.group_channels == 0) {
      p.mean[statistics] = mean;
      p.var[statistics] = var;
    }
    if (!p.output) return;
  }
  tile.put(shared, coefficients(p.op, tile.image(), tile.channel(), mean, rstd_of(p.op, var)));
#pragma unroll 1
  for (int quad = 0; quad < V::kQuads; ++quad) {
    Coefficients k[4];
    tile.get(shared, quad, k);
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
      if (tile.has(v)) {
        float values[4], other[4];
        x[0].get(quad, values);
        residual[0].get(quad, other);
        norm_act(p.op, values, other, [&](int e) { return k[e]; });
        x[0].set(quad, values);
        if (quad == V::kQuads - 1) tile.store(v, p.output, x[0]);
      }
      rotate(x);
      rotate(residual);
    }
  }
}

// Backward: as the forward, of two inputs. A residual added before the activation is read where z is needed: again for
// the second quad, and in Whole for the result, from L1 or L2.
// Traffic: Whole, and Apply alone, 2 reads and a write of each element; else 2 reads more.
// Registers: at most 128 (two blocks of 256 threads an SM, or one of 512).
template <typename scalar_t, int kThreads, int kVectors, bool kVectorised>
__global__ __launch_bounds__(kThreads, kThreads == 256 ? 2 : 1) void norm_act_rows_backward_kernel(const RowsKernel p) {
  using V = Vector<scalar_t>;
  using T = RowsTile<scalar_t, kThreads, kVectorised>;
  __shared__ typename T::Sums sums;
  __shared__ typename T::Shared shared;
  const T tile(p);
  V x[kVectors], g[kVectors];
  tile.load(x, p.input);
  tile.load(g, p.grad_output);

  // Of this thread's channel, read where they are needed: the registers are for its vectors.
  auto statistics = [&] { return statistics_of(p, tile); };
  auto rstd = [&] { return rstd_of(p.op, p.var[statistics()]); };
  float total[2] = {};  // sums of dz, of dz (x - mean)
  // Whole needs the sums before the results, and so goes through the registers twice.
  for (int sweep = 0; sweep < 2; ++sweep) {
    const bool summed = p.pass == Pass::Apply ? p.accumulate : sweep == 0;
    const bool written = p.pass == Pass::Apply || sweep == 1;
    Coefficients own = coefficients(p.op, tile.image(), tile.channel(), p.mean[statistics()], rstd());
    if (written && p.pass == Pass::Whole && p.own_averages) {
      for_each<2>([&](int i) { total[i] *= weight_of(p.op, tile.image(), tile.channel()); });
      tile.sum_group(total, p.group_channels);
      set_averages(own, p.op, rstd(), total[0] / p.elements, total[1] * rstd() / p.divisor);
    } else if (written && p.averages) {
      set_averages(own, p.op, rstd(), p.averages[statistics()], p.averages[p.statistics + statistics()]);
    }
    tile.put(shared, own);
#pragma unroll 1
    for (int quad = 0; quad < V::kQuads; ++quad) {
      Coefficients k[4];
      tile.get(shared, quad, k);
      float s[2][4] = {};
#pragma unroll 1
      for (int v = 0; v < kVectors; ++v) {
        if (tile.has(v)) {
          float values[4], dz[4], other[4];
          const V residual = p.residual ? tile.load(v, p.residual) : V{};
          x[0].get(quad, values);
          g[0].get(quad, dz);
          residual.get(quad, other);
          norm_act_backward(p.op, dz, values, other, [&](int e) { return k[e]; });
          for_each<4>([&](int e) {
            s[0][e] += dz[e];
            s[1][e] += dz[e] * (values[e] - k[e].mean);
          });
          if (written) {
            g[0].set(quad, dz);
            input_gradient(dz, values, [&](int e) { return k[e]; });
            x[0].set(quad, dz);
            if (p.grad_residual && quad == V::kQuads - 1) tile.store(v, p.grad_residual, g[0]);
            if (p.output && quad == V::kQuads - 1) tile.store(v, p.output, x[0]);
          }
        }
        rotate(x);
        rotate(g);
      }
      if (summed) tile.add(sums, quad, s);
    }
    if (summed) {
      tile.collect(sums, total);
      if (!tile.has_channel()) {
      } else if (p.pass != Pass::Whole) {
        for_each<2>([&](int i) { p.partial[i * p.entries.count + entry_of(p, tile)] = total[i]; });
      } else if (p.sums) {
        write_sums(p, tile.image() * tile.C() + tile.channel(), total[0], total[1], rstd());
      }
    }
    if (p.pass != Pass::Whole || !(p.output || p.grad_residual)) return;
  }
}

constexpr int kSmallThreads = 256, kLargeThreads = 512, kVectors = 4;

RowsGeometry make_geometry(const NormAct& op, int lanes_log2, int64_t block_channels, int threads) {
  const auto [N, C, P, dtype, channels_last] = op.features;
  RowsGeometry g{};
  g.lanes_log2 = lanes_log2;
  g.block_channels = static_cast<int>(block_channels);
  g.rows = op.across_batch ? N * P : P;
  g.tile_rows = int64_t{threads >> lanes_log2} * kVectors;
  const int64_t channel_blocks = ceil_div(C, block_channels), tiles = ceil_div(g.rows, g.tile_rows);
  const int64_t blocks = (op.across_batch ? 1 : N) * channel_blocks * tiles;
  require(blocks <= INT32_MAX && N * C <= INT32_MAX,
          "norm_act: " + std::to_string(N) + " x " + std::to_string(P) + " pixels of " + std::to_string(C) +
              " channels, at most 2^31 - 1 channels and blocks are possible");
  g.channel_blocks = static_cast<uint32_t>(channel_blocks);
  g.tiles = static_cast<uint32_t>(tiles);
  g.blocks = static_cast<uint32_t>(blocks);
  return g;
}

int lanes_for_all(const NormAct& op) {
  const int64_t length = 16 / element_size(op.features.dtype);
  return std::min(5, log2_ceil(ceil_div(op.features.C, length)));
}

// Tiles of all rows and of whole groups, with as long a part of a row as that allows, but no longer than 128 bytes
// where it takes blocks from SMs. No blocks: impossible.
RowsGeometry make_whole(const NormAct& op, int threads) {
  const int64_t C = op.features.C, length = 16 / element_size(op.features.dtype);
  const int64_t unit = std::lcm(C / op.groups, length);  // whole groups, aligned vectors
  RowsGeometry best{};
  for (int log2 = lanes_for_all(op), last = std::min(1, log2); log2 >= last; --log2) {
    const int64_t lane_channels = length << log2, block_channels = C <= lane_channels ? C : lane_channels / unit * unit;
    if (block_channels == 0) break;
    const RowsGeometry g = make_geometry(op, log2, block_channels, threads);
    if (g.tiles > 1) continue;
    if (best.blocks && (log2 < 3 || best.blocks >= device_attribute(cudaDevAttrMultiProcessorCount))) break;
    best = g;
  }
  return best;
}

RowsGeometry make_split(const NormAct& op) {
  const int log2 = std::min(2, lanes_for_all(op));
  return make_geometry(op, log2, (16 / element_size(op.features.dtype)) << log2, kSmallThreads);
}

template <typename scalar_t, bool kBackward, bool kVectorised, int kThreads>
void launch_kernel(const RowsKernel& p, cudaStream_t stream) {
  if constexpr (kBackward)
    launch(norm_act_rows_backward_kernel<scalar_t, kThreads, kVectors, kVectorised>, "norm_act_rows_backward_kernel",
           p.geometry.blocks, kThreads, 0, stream, p);
  else
    launch(norm_act_rows_kernel<scalar_t, kThreads, kVectors, kVectorised>, "norm_act_rows_kernel", p.geometry.blocks,
           kThreads, 0, stream, p);
}

template <typename scalar_t, bool kBackward, bool kVectorised>
void launch_sized(RowsKernel p, cudaStream_t stream) {
  p.geometry = p.pass == Pass::Whole ? make_whole(p.op, kSmallThreads) : make_split(p.op);
  if (p.geometry.blocks) return launch_kernel<scalar_t, kBackward, kVectorised, kSmallThreads>(p, stream);
  p.geometry = make_whole(p.op, kLargeThreads);
  launch_kernel<scalar_t, kBackward, kVectorised, kLargeThreads>(p, stream);
}

}  // namespace

NormActPlan plan_rows(const NormAct& op) {
  const auto [N, C, P, dtype, channels_last] = op.features;
  NormActPlan plan{};
  const RowsGeometry small = make_whole(op, kSmallThreads), large = make_whole(op, kLargeThreads);
  const int64_t blocks = small.blocks ? small.blocks : large.blocks;
  plan.whole = blocks && enough_blocks(op, blocks);
  const RowsGeometry split = make_split(op);
  Entries& e = plan.entries;
  e.groups = op.groups;
  e.channels = static_cast<int>(C / op.groups);
  e.per_channel = e.period = static_cast<int>(split.tiles);
  e.channel_stride = 1;
  e.entry_stride = C;
  e.group_stride = e.channels;
  e.image_stride = int64_t{split.tiles} * C;
  e.count = (op.across_batch ? 1 : N) * e.image_stride;
  e.tile = split.tile_rows;
  e.extent = split.rows;
  return plan;
}

void launch_rows(bool backward, const NormActKernel& p, cudaStream_t stream) {
  RowsKernel kernel{};
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
