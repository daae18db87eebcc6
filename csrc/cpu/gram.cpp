// Gram matrices, the loss on them and their gradient: single-precision SIMD kernels for one instruction set
// (cpu/isa.h).
#include "cpu/gram.h"

#include "cpu/scratch.h"
#include "cpu/team.h"
#include "cpu/tile.h"

namespace artkernels::cpu {
namespace ARTKERNELS_ISA {
namespace {

constexpr int64_t BLOCK = PANEL * PANEL;  // floats of one block of a Gram matrix

// ---- forward
// -----------------------------------------------------------------------------------------------------------

// Blocks (I, J), I >= J, of the lower triangle lie one after the other.
int64_t block_index(int64_t I, int64_t J) { return I * (I + 1) / 2 + J; }

// Pixels packed and multiplied at a time. Two panels of so many fit in L1, and no running sum has more than 128 terms
// before it is added to the others, which keeps the error near that of a pairwise sum.
constexpr int64_t STEP = 128;

// Pixels of a plane read in one go, a multiple of STEP. Planes often lie a power of two apart, so that their lines
// compete for the same sets of every cache: a run must be long enough for the hardware's prefetching to be used before
// it is evicted.
constexpr int64_t pixels_per_run(int64_t C) { return C <= 64 ? 4 * STEP : C <= 128 ? 2 * STEP : STEP; }

// Pixels [begin, begin + K) of the VL channels from c on, of an image of planes, as out[pixel][VL], pixels PANEL apart.
template <typename scalar_t>
void pack_planes(const scalar_t* x, const FeatureMap& f, int64_t c, int64_t begin, int64_t K, float* out) {
  for (int64_t k = 0; k < K; k += VL, out += VL * PANEL) {
    vfloat rows[VL];
    if (c + VL <= f.C && k + VL <= K) {
      ARTKERNELS_UNROLL
      for (int i = 0; i < VL; ++i) rows[i] = load(x + (c + i) * f.P + begin + k);
      transpose(rows);
      ARTKERNELS_UNROLL
      for (int j = 0; j < VL; ++j) store(out + j * PANEL, rows[j]);
    } else {
      for (int i = 0; i < VL; ++i) rows[i] = c + i < f.C ? load_up_to(x + (c + i) * f.P + begin + k, K - k) : vfloat{};
      transpose(rows);
      for (int j = 0; j < VL && k + j < K; ++j) store(out + j * PANEL, rows[j]);
    }
  }
}

// The same for all channels of K pixels of a channels_last image, panel after panel.
template <typename scalar_t>
void pack_pixels(const scalar_t* x, const FeatureMap& f, int64_t begin, int64_t K, float* packed) {
  for (int64_t k = 0; k < K; ++k)
    for (int64_t c = 0; c < panels_of(f.C) * PANEL; c += VL)
      store(packed + (c / PANEL * K + k) * PANEL + c % PANEL,
            c < f.C ? load_up_to(x + (begin + k) * f.C + c, f.C - c) : vfloat{});
}

// Pixels [begin, end) of one image as [step][panel][pixel < STEP][PANEL channels], channels beyond C zero; the last
// step has only the pixels that are left.
template <typename scalar_t>
void pack_run(const scalar_t* x, const FeatureMap& f, int64_t begin, int64_t end, float* packed) {
  const int64_t channels = panels_of(f.C) * PANEL;
  auto each_step = [&](auto pack) {
    for (int64_t k = begin; k < end; k += STEP)
      pack(k, end - k < STEP ? end - k : STEP, packed + (k - begin) * channels);
  };
  if (f.channels_last) each_step([&](int64_t k, int64_t K, float* panels) { pack_pixels(x, f, k, K, panels); });
  else
    for (int64_t c = 0; c < channels; c += VL)
      each_step([&](int64_t k, int64_t K, float* panels) {
        pack_planes(x, f, c, k, K, panels + c / PANEL * PANEL * K + c % PANEL);
      });
}

template <int rows, int vectors>
__attribute__((noinline)) void add_product(const float* A, const float* B, int64_t K, float* out, bool first) {
  Tile<rows, vectors> tile;
  tile.multiply(A, B, K);
  ARTKERNELS_UNROLL
  for (int i = 0; i < rows; ++i) ARTKERNELS_UNROLL
  for (int v = 0; v < vectors; ++v) {
    float* const o = out + i * PANEL + v * VL;
    store(o, first ? tile.acc[i][v] : load(o) + tile.acc[i][v]);
  }
}

// Adds the products of K packed pixels to the triangle. Of the blocks on the diagonal only what their lower triangle
// needs is computed: VL x VL, then VL x 2 VL.
void add_products(const float* packed, int64_t panels, int64_t K, float* triangle, bool first) {
  for (int64_t J = 0; J < panels; ++J) {
    const float* const B = packed + J * K * PANEL;
    float* const diagonal = triangle + block_index(J, J) * BLOCK;
    add_product<VL, 1>(B, B, K, diagonal, first);
    for (int row = VL; row < PANEL; row += VL / 2) add_product<VL / 2, 2>(B + row, B, K, diagonal + row * PANEL, first);
    for (int64_t I = J + 1; I < panels; ++I) {
      const float* const A = packed + I * K * PANEL;
      float* const out = triangle + block_index(I, J) * BLOCK;
      for_panel_rows(
          [&](int row, auto rows) { add_product<decltype(rows)::value, 2>(A + row, B, K, out + row * PANEL, first); });
    }
  }
}

// The triangle of one image's pixels [range), unscaled.
template <typename scalar_t>
void sum_products(const GramParams& p, int64_t n, Range range, float* packed, float* triangle) {
  const scalar_t* const x = static_cast<const scalar_t*>(p.input) + n * p.features.C * p.features.P;
  const int64_t panels = panels_of(p.features.C), run = pixels_per_run(p.features.C);
  if (range.begin == range.end) __builtin_memset(triangle, 0, block_index(panels, 0) * BLOCK * sizeof(float));
  for (int64_t r = range.begin; r < range.end; r += run) {
    const int64_t end = r + run < range.end ? r + run : range.end;
    pack_run(x, p.features, r, end, packed);
    for (int64_t k = r; k < end; k += STEP)
      add_products(packed + (k - r) * panels * PANEL, panels, end - k < STEP ? end - k : STEP, triangle,
                   k == range.begin);
  }
}

typedef float Block[PANEL][PANEL];

void transpose_block(const Block& in, Block& out) {
  for (int r = 0; r < PANEL; r += VL)
    for (int c = 0; c < PANEL; c += VL) {
      vfloat rows[VL];
      ARTKERNELS_UNROLL
      for (int i = 0; i < VL; ++i) rows[i] = load(&in[r + i][c]);
      transpose(rows);
      ARTKERNELS_UNROLL
      for (int i = 0; i < VL; ++i) store(&out[c + i][r], rows[i]);
    }
}

void read_block(const float* matrix, int64_t C, int64_t I, int64_t J, Block& block) {
  const int64_t columns = C - J * PANEL;
  for (int r = 0; r < PANEL; ++r)
    for (int c = 0; c < PANEL; c += VL) {
      const int64_t row = I * PANEL + r;
      const bool inside = row < C && columns > c;
      store(&block[r][c], inside ? load_up_to(matrix + row * C + J * PANEL + c, columns - c) : vfloat{});
    }
}

void write_block(const Block& block, float* matrix, int64_t C, int64_t I, int64_t J) {
  const int64_t columns = C - J * PANEL;
  for (int r = 0; r < PANEL && I * PANEL + r < C; ++r)
    for (int c = 0; c < PANEL && c < columns; c += VL)
      store_up_to(matrix + (I * PANEL + r) * C + J * PANEL + c, load(&block[r][c]), columns - c);
}

// Block (I, J) of G = scale * the sum of `parts` triangles that lie `stride` apart; on the diagonal, mirrored.
void sum_parts(const GramParams& p, const float* triangle, int parts, int64_t stride, int64_t I, int64_t J, Block& g) {
  const float* const source = triangle + block_index(I, J) * BLOCK;
  for (int r = 0; r < PANEL; ++r)
    for (int c = 0; c < (I == J && r < VL ? VL : PANEL); c += VL) {
      vfloat total = load(source + r * PANEL + c);
      for (int part = 1; part < parts; ++part) total += load(source + part * stride + r * PANEL + c);
      store(&g[r][c], total * broadcast(p.scale));
    }
  if (I == J)
    for (int r = 0; r < PANEL; ++r)
      for (int c = r + 1; c < PANEL; ++c) g[r][c] = g[c][r];
}

// Replaces block (I, J) of G and its mirror image by the symmetric part of G - T; returns the sum of (G - T)^2 over
// both.
double subtract_target(const float* target, int64_t C, int64_t I, int64_t J, Block& g) {
  Block t, upper, mirrored;
  read_block(target, C, I, J, t);
  read_block(target, C, J, I, upper);
  transpose_block(upper, mirrored);
  vfloat squares = {};
  for (int r = 0; r < PANEL; ++r)
    for (int c = 0; c < PANEL; c += VL) {
      const vfloat lower = load(&g[r][c]) - load(&t[r][c]), mirror = load(&g[r][c]) - load(&mirrored[r][c]);
      squares += lower * lower + mirror * mirror;
      store(&g[r][c], (lower + mirror) * broadcast(0.5f));
    }
  return I == J ? 0.5 * sum(squares) : sum(squares);
}

void write_symmetric(const Block& block, const Block& transposed, float* matrix, int64_t C, int64_t I, int64_t J) {
  write_block(block, matrix, C, I, J);
  if (I != J) write_block(transposed, matrix, C, J, I);
}

// Writes row I of blocks (and its mirror image) of what is asked for; returns its share of the sum of (G - T)^2.
double finish_row(const GramParams& p, int64_t n, int64_t I, const float* triangle, int parts, int64_t stride) {
  const int64_t C = p.features.C;
  double squares = 0;
  for (int64_t J = 0; J <= I; ++J) {
    Block g, transposed;
    sum_parts(p, triangle, parts, stride, I, J, g);
    if (p.gram) {
      transpose_block(g, transposed);
      write_symmetric(g, transposed, p.gram + n * C * C, C, I, J);
    }
    if (!p.target) continue;
    squares += subtract_target(p.target + n * p.target_stride, C, I, J, g);
    if (p.residual) {
      transpose_block(g, transposed);
      write_symmetric(g, transposed, p.residual + n * C * C, C, I, J);
    }
  }
  return squares;
}

// A thread sums its part of an image's pixels in a triangle of its own; its team then adds the triangles block by
// block, in a fixed order, and writes the result.
template <typename scalar_t>
void forward(const GramParams& p, int threads) {
  const FeatureMap& f = p.features;
  const int64_t panels = panels_of(f.C), triangle_size = block_index(panels, 0) * BLOCK;
  const int64_t packed_size = pixels_per_run(f.C) * panels * PANEL, thread_size = triangle_size + packed_size;
  const int64_t losses_size = p.loss ? f.N * panels : 0;
  double* const losses =
      static_cast<double*>(thread_scratch(losses_size * sizeof(double) + 64 + threads * thread_size * sizeof(float)));
  float* const scratch = reinterpret_cast<float*>(losses + (losses_size + 7) / 8 * 8);
#pragma omp parallel num_threads(threads)
  deal(f.N, [&](int64_t n, Team team) {
    float* const triangles = scratch + team.first * thread_size;  // of the team, thread_size apart
    float* const mine = triangles + team.member * thread_size;
    sum_products<scalar_t>(p, n, team.share(f.P, VL), mine + triangle_size, mine);
    team.barrier();
    for (int64_t I = team.member; I < panels; I += team.size) {
      const double squares = finish_row(p, n, I, triangles, team.size, thread_size);
      if (p.loss) losses[n * panels + I] = squares;
    }
    team.barrier();
  });
  if (p.loss) {
    double total = 0;
    for (int64_t i = 0; i < losses_size; ++i) total += losses[i];
    *p.loss = float(total / (double(f.N) * f.C * f.C));
  }
}

// ---- backward
// ----------------------------------------------------------------------------------------------------------

// Panel `panel` of S = factor * (D + D^T): [k < C][PANEL columns], columns beyond C zero. S is symmetric, so that the
// same panels serve as the left operand (NCHW) and as the right one (channels_last).
void pack_symmetric(const float* D, int64_t C, int64_t panel, float factor, float* packed) {
  for (int64_t j = panel * PANEL; j < (panel + 1) * PANEL; j += VL)
    for (int64_t k = 0; k < C; k += VL) {
      vfloat mirrored[VL];
      for (int i = 0; i < VL; ++i) mirrored[i] = j + i < C ? load_up_to(D + (j + i) * C + k, C - k) : vfloat{};
      transpose(mirrored);
      for (int i = 0; i < VL && k + i < C; ++i) {
        const vfloat d = j < C ? load_up_to(D + (k + i) * C + j, C - j) : vfloat{};
        store(packed + (k + i) * PANEL + j % PANEL, (d + mirrored[i]) * broadcast(factor));
      }
    }
}

constexpr int64_t PIXEL_ROWS =
    8 * TILE_ROWS;  // channels_last: pixels multiplied at a time, so that S is read once for all

// dX[i][p] = sum over k of S[k][i] X[k][p], pixels [begin, end) of one image [C, P].
template <typename scalar_t>
void multiply_planes(const FeatureMap& f, const scalar_t* x, const float* S, scalar_t* dx, int64_t begin, int64_t end,
                     float* packed) {
  const int64_t run = pixels_per_run(f.C);
  for (int64_t p = begin; p < end; p += run) {
    const int64_t panels = panels_of(end - p < run ? end - p : run);
    for (int64_t k = 0; k < f.C; ++k)
      for (int64_t q = 0; q < panels * PANEL; q += VL)
        store(packed + (q / PANEL * f.C + k) * PANEL + q % PANEL,
              p + q < end ? load_up_to(x + k * f.P + p + q, end - p - q) : vfloat{});
    for (int64_t I = 0; I < panels_of(f.C); ++I)
      for_panel_rows([&](int row, auto rows) {
        for (int64_t q = 0; q < panels; ++q) {
          Tile<decltype(rows)::value> tile;
          tile.multiply(S + I * f.C * PANEL + row, packed + q * f.C * PANEL, f.C);
          const int64_t first = I * PANEL + row, pixel = p + q * PANEL;
          scalar_t* const out = dx + first * f.P + pixel;
          for (int i = 0; i < rows && first + i < f.C; ++i)
            for (int v = 0; v < 2 && pixel + v * VL < end; ++v)
              store_up_to(out + i * f.P + v * VL, tile.acc[i][v], end - pixel - v * VL);
        }
      });
  }
}

template <int rows, typename scalar_t>
ARTKERNELS_INLINE void multiply_rows(const FeatureMap& f, const float* x, const float* S, int64_t J, scalar_t* dx) {
  Tile<rows> tile;
  tile.multiply(x, f.C, S + J * f.C * PANEL, f.C);
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < 2; ++v) {
      const int64_t c = J * PANEL + v * VL;
      if (c < f.C) store_up_to(dx + i * f.C + c, tile.acc[i][v], f.C - c);
    }
}

// dX[p][j] = sum over k of X[p][k] S[k][j], pixels [begin, end) of one image [P, C].
template <typename scalar_t>
void multiply_pixels(const FeatureMap& f, const scalar_t* x, const float* S, scalar_t* dx, int64_t begin, int64_t end,
                     float* widened) {
  for (int64_t p = begin; p < end; p += PIXEL_ROWS) {
    const int64_t rows = end - p < PIXEL_ROWS ? end - p : PIXEL_ROWS;
    const float* source;
    if constexpr (sizeof(scalar_t) == sizeof(float)) {
      source = x + p * f.C;
    } else {
      for (int64_t i = 0; i < rows * f.C; i += VL)
        store_up_to(widened + i, load_up_to(x + p * f.C + i, rows * f.C - i), rows * f.C - i);
      source = widened;
    }
    for (int64_t J = 0; J < panels_of(f.C); ++J) {
      int64_t r = 0;
      for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
        multiply_rows<TILE_ROWS>(f, source + r * f.C, S, J, dx + (p + r) * f.C);
      for (; r < rows; ++r) multiply_rows<1>(f, source + r * f.C, S, J, dx + (p + r) * f.C);
    }
  }
}

// Image by image: the team packs S together, then each of its threads multiplies its share of the pixels by it.
template <typename scalar_t>
void backward(const GramBackwardParams& p, int threads) {
  const FeatureMap& f = p.features;
  const int64_t panels = panels_of(f.C), S_size = panels * f.C * PANEL;
  const int64_t thread_size =
      f.channels_last ? (sizeof(scalar_t) == sizeof(float) ? 0 : PIXEL_ROWS * f.C) : pixels_per_run(f.C) * f.C;
  const int64_t teams = f.N < threads ? 1 : threads;
  float* const scratch = static_cast<float*>(thread_scratch((teams * S_size + threads * thread_size) * sizeof(float)));
  const float factor = p.scale * (p.factor ? *p.factor : 1.f);
#pragma omp parallel num_threads(threads)
  deal(f.N, [&](int64_t n, Team team) {
    const Range pixels = team.share(f.P, f.channels_last ? TILE_ROWS : PANEL);
    float* const S = scratch + team.first * S_size;
    float* const mine = scratch + teams * S_size + (team.first + team.member) * thread_size;
    const int64_t image = n * f.C * f.P;
    const scalar_t* const x = static_cast<const scalar_t*>(p.input) + image;
    scalar_t* const dx = static_cast<scalar_t*>(p.grad_input) + image;
    for (int64_t panel = team.member; panel < panels; panel += team.size)
      pack_symmetric(p.grad_output + n * f.C * f.C, f.C, panel, factor, S + panel * f.C * PANEL);
    team.barrier();
    if (f.channels_last) multiply_pixels(f, x, S, dx, pixels.begin, pixels.end, mine);
    else multiply_planes(f, x, S, dx, pixels.begin, pixels.end, mine);
    team.barrier();
  });
}

// No more threads than there are steps of pixels: one without pixels would still bring a triangle to be summed.
int useful_threads(const FeatureMap& f, int threads) {
  const int64_t steps = f.N * ((f.P + STEP - 1) / STEP);
  return steps < threads ? int(steps) : threads;
}

}  // namespace

void gram(const GramParams& p, int threads) {
  const int useful = useful_threads(p.features, threads);
  with_scalar_type(p.features.dtype, [&](auto scalar) { forward<decltype(scalar)>(p, useful); });
}

void gram_backward(const GramBackwardParams& p, int threads) {
  const int useful = useful_threads(p.features, threads);
  with_scalar_type(p.features.dtype, [&](auto scalar) { backward<decltype(scalar)>(p, useful); });
}

}  // namespace ARTKERNELS_ISA
}  // namespace artkernels::cpu
