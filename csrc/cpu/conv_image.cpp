// Transposed convolution to few channels, scale, bias and activation: the layer that makes the picture. A convolution
// of stride 1 is one too, with its kernel turned around (conv.h).
//
// Bound: FMA. A panel of output channels would be almost empty, so the lanes of a vector are a block of output pixels
// with all of their channels: `stride` rows by a multiple of `stride` columns. In the coordinates o + padding every
// block reads the same window of input pixels, one step on from its neighbour's: a stride-1 convolution to LANES
// channels. Taps that an output of a block lacks are zeros there: an infinite input reaches the whole block.
#include "cpu/activation.h"
#include "cpu/conv.h"
#include "cpu/conv_axis.h"
#include "cpu/conv_pack.h"
#include "cpu/scratch.h"
#include "cpu/team.h"

namespace artkernels::cpu {
namespace ARTKERNELS_ISA {
namespace {

constexpr int LANES = IMAGE_LAYER_LANES, VECTORS = LANES / VL;
// A tile is QUADS runs of RUN blocks, so many that the sums fill the vector registers.
constexpr int RUN = VL == 16 ? 4 : VL == 8 ? 2 : 1, QUADS = VL == 16 ? 6 : 3;

// The blocks of outputs, in the coordinates o + padding.
struct Blocks {
  int64_t rows, columns;                // of blocks
  int64_t height, width;                // outputs of one
  int64_t step;                         // input columns from one block to the next
  int64_t row_taps, column_taps;        // that meet one output at most
  int64_t window_rows, window_columns;  // input pixels that meet a block
  int64_t line;                         // input pixels of a packed row

  explicit Blocks(const ConvParams& p) {
    height = p.rows.stride;
    step = LANES / (p.K * height * p.columns.stride);
    width = step * p.columns.stride;
    row_taps = divided_up(p.rows.kernel, p.rows.stride);
    column_taps = divided_up(p.columns.kernel, p.columns.stride);
    window_rows = row_taps;
    window_columns = column_taps + step - 1;
    rows = divided_up(p.OH + p.rows.padding, height);
    columns = divided_up(p.OW + p.columns.padding, width);
    line = columns * step + column_taps - 1;
  }

  // The lane of output (a, b) of a block, channel k: in the order in which a row of the output is written.
  int64_t lane(const ConvParams& p, int64_t a, int64_t b, int64_t k) const {
    return p.output_channels_last ? (a * width + b) * p.K + k : (a * p.K + k) * width + b;
  }
};

// out[block][LANES] += sum over i in [0, terms) of input[block][i] * weight[i][LANES], blocks `step` floats apart.
template <int quads>
__attribute__((noinline)) void multiply(const float* input, int64_t step, int64_t terms, const float* weight,
                                        float* out) {
  vfloat acc[quads * RUN][VECTORS];
  ARTKERNELS_UNROLL
  for (int i = 0; i < quads * RUN; ++i) ARTKERNELS_UNROLL
  for (int v = 0; v < VECTORS; ++v) acc[i][v] = vfloat{};
  const float* x[quads];
  ARTKERNELS_UNROLL
  for (int q = 0; q < quads; ++q) x[q] = input + q * RUN * step;
  for (int64_t i = 0; i < terms; ++i, weight += LANES) {
    vfloat b[VECTORS];
    ARTKERNELS_UNROLL
    for (int v = 0; v < VECTORS; ++v) b[v] = load(weight + v * VL);
    ARTKERNELS_UNROLL
    for (int q = 0; q < quads; ++q) ARTKERNELS_UNROLL
    for (int r = 0; r < RUN; ++r) {
      const vfloat a = broadcast(x[q][i + r * step]);
      ARTKERNELS_UNROLL
      for (int v = 0; v < VECTORS; ++v) acc[q * RUN + r][v] += a * b[v];
    }
  }
  ARTKERNELS_UNROLL
  for (int i = 0; i < quads * RUN; ++i) ARTKERNELS_UNROLL
  for (int v = 0; v < VECTORS; ++v) store(out + i * LANES + v * VL, load(out + i * LANES + v * VL) + acc[i][v]);
}

template <int quads = QUADS>
void multiply_tile(int64_t wanted, const float* input, int64_t step, int64_t terms, const float* weight, float* out) {
  if constexpr (quads > 1)
    if (wanted < quads) return multiply_tile<quads - 1>(wanted, input, step, terms, weight, out);
  multiply<quads>(input, step, terms, weight, out);
}

template <Activation activation>
void finish(float* sums, int64_t blocks, const float* scale, const float* bias, float negative_slope) {
  for (int64_t i = 0; i < blocks * LANES; i += LANES)
    for (int v = 0; v < LANES; v += VL)
      store(sums + i + v, activate<activation>(load(sums + i + v) * load(scale + v) + load(bias + v), negative_slope));
}

template <typename scalar_t>
class Kernel {
 public:
  Kernel(const ConvParams& p, const Blocks& blocks, float* input, float* sums)
      : p_(p), b_(blocks), input_(input), sums_(sums), line_(sums + rounded_blocks(blocks) * LANES) {
    for (int lane = 0; lane < LANES; ++lane) scale_[lane] = bias_[lane] = 0;
    for (int64_t a = 0; a < b_.height; ++a)
      for (int64_t b = 0; b < b_.width; ++b)
        for (int64_t k = 0; k < p.K; ++k) {
          scale_[b_.lane(p, a, b, k)] = p.scale ? p.scale[k] : 1;
          bias_[b_.lane(p, a, b, k)] = p.bias ? p.bias[k] : 0;
        }
  }

  static int64_t rounded_blocks(const Blocks& b) { return divided_up(b.columns, QUADS * RUN) * QUADS * RUN; }
  // Of the sums of a row of blocks and one row of output; stores of whole vectors run over its end.
  static int64_t row_floats(const Blocks& b, const ConvParams& p) {
    return rounded_blocks(b) * LANES + b.columns * b.width * p.K + 2 * LANES;
  }

  // Packed row `row` of those that begin with the first which block row `first` reads.
  void pack(int64_t image, int64_t first, int64_t row) const {
    const Map<scalar_t> map = input_map<scalar_t>(p_);
    pack_bordered_row(map, map.row(image, first + row - (b_.row_taps - 1), 0), -(b_.column_taps - 1), b_.line, p_.C,
                      input_ + row * b_.line * p_.C, p_.C);
  }

  // Block row `row`, of which the packed rows begin at `input`.
  void compute(int64_t image, int64_t row, const float* input) const {
    __builtin_memset(sums_, 0, rounded_blocks(b_) * LANES * sizeof(float));
    const int64_t terms = b_.window_columns * p_.C, run = terms > 256 ? 64 : 32, tiles = divided_up(b_.columns, RUN);
    for (int64_t q = 0; q < tiles; q += QUADS)
      for (int64_t y = 0; y < b_.window_rows; ++y)
        for (int64_t i = 0; i < terms; i += run)
          multiply_tile(tiles - q, input + (y * b_.line + q * RUN * b_.step) * p_.C + i, b_.step * p_.C,
                        smaller(run, terms - i), p_.packed_weight + (y * terms + i) * LANES, sums_ + q * RUN * LANES);
    with_activation(p_.activated ? Activation::None : p_.activation, [&](auto a) {
      finish<decltype(a)::activation>(sums_, b_.columns, scale_, bias_, p_.negative_slope);
    });
    for (int64_t a = 0; a < b_.height; ++a) {
      const int64_t o = row * b_.height + a - p_.rows.padding;
      if (o >= 0 && o < p_.OH) write(image, o, a);
    }
  }

 private:
  void write(int64_t image, int64_t o, int64_t a) const {
    scalar_t* const out = static_cast<scalar_t*>(p_.output);
    if (p_.output_channels_last)
      return write_line(sums_ + b_.lane(p_, a, 0, 0), b_.width * p_.K, p_.columns.padding * p_.K, p_.OW * p_.K,
                        out + (image * p_.OH + o) * p_.OW * p_.K);
    for (int64_t k = 0; k < p_.K; ++k)
      write_line(sums_ + b_.lane(p_, a, 0, k), b_.width, p_.columns.padding, p_.OW,
                 out + ((image * p_.K + k) * p_.OH + o) * p_.OW);
  }

  // The first `run` lanes from `lanes` of every block, one after the other; of them `count` from `skipped` on.
  void write_line(const float* lanes, int64_t run, int64_t skipped, int64_t count, scalar_t* out) const {
    for (int64_t block = 0; block < b_.columns; ++block)
      for (int64_t i = 0; i < run; i += VL) store(line_ + block * run + i, load(lanes + block * LANES + i));
    for (int64_t i = 0; i < count; i += VL) store_up_to(out + i, load(line_ + skipped + i), count - i);
  }

  const ConvParams& p_;
  const Blocks& b_;
  float* const input_;
  float *const sums_, *const line_;
  alignas(64) float scale_[LANES], bias_[LANES];
};

template <typename scalar_t>
void run(const ConvParams& p, int threads) {
  const Blocks b(p);
  const int64_t budget = 64 * 1024;  // floats of packed input
  const int64_t fitting = larger(budget / (b.line * p.C) - (b.row_taps - 1), 1);
  const int64_t bands = divided_up(b.rows, fitting), rows_per_band = divided_up(b.rows, bands);
  // The blocks that fill up a tile read beyond the last row.
  const int64_t input_floats = ((rows_per_band + b.row_taps - 1) * b.line + (QUADS * RUN + 1) * b.step) * p.C;
  const int64_t floats = (input_floats + Kernel<scalar_t>::row_floats(b, p) + LANES - 1) / LANES * LANES;
  float* const memory = static_cast<float*>(thread_scratch(threads * floats * sizeof(float)));
#pragma omp parallel num_threads(threads)
  deal(p.N * bands, [&](int64_t item, Team team) {
    const int64_t image = item / bands, first = item % bands * rows_per_band;
    float* const input = memory + team.first * floats;
    const Kernel<scalar_t> kernel(p, b, input, memory + (team.first + team.member) * floats + input_floats);
    const int64_t rows = smaller(rows_per_band, b.rows - first);
    const Range packed = team.share(rows + b.row_taps - 1), mine = team.share(rows);
    team.barrier();
    for (int64_t row = packed.begin; row < packed.end; ++row) kernel.pack(image, first, row);
    team.barrier();
    for (int64_t row = mine.begin; row < mine.end; ++row)
      kernel.compute(image, first + row, input + row * b.line * p.C);
  });
}

// [window row][window column][c][LANES]
template <typename scalar_t>
void pack_weight(const ConvParams& p) {
  const Blocks blocks(p);
  const scalar_t* const weight = static_cast<const scalar_t*>(p.weight);
  __builtin_memset(p.packed_weight, 0, image_layer_weight_size(p) * sizeof(float));
  for (int64_t y = 0; y < blocks.window_rows; ++y)
    for (int64_t x = 0; x < blocks.window_columns; ++x)
      for (int64_t a = 0; a < blocks.height; ++a)
        for (int64_t b = 0; b < blocks.width; ++b) {
          const int64_t t =
              b / p.columns.stride + blocks.column_taps - 1 - x;  // the tap, of those of the output's phase
          const int64_t row = a + p.rows.stride * (blocks.row_taps - 1 - y);
          const int64_t column = b % p.columns.stride + p.columns.stride * t;
          if (t < 0 || t >= blocks.column_taps || row >= p.rows.kernel || column >= p.columns.kernel) continue;
          for (int64_t c = 0; c < p.C; ++c)
            for (int64_t k = 0; k < p.K; ++k)
              p.packed_weight[((y * blocks.window_columns + x) * p.C + c) * LANES + blocks.lane(p, a, b, k)] =
                  load_one(weight + c * p.weight_strides[0] + k * p.weight_strides[1] + row * p.weight_strides[2] +
                           column * p.weight_strides[3]);
        }
}

}  // namespace

void conv_image(const ConvParams& p, int threads) {
  with_scalar_type(p.dtype, [&](auto scalar) { run<decltype(scalar)>(p, threads); });
}

void pack_conv_image_weight(const ConvParams& p, int) {
  with_scalar_type(p.dtype, [&](auto scalar) { pack_weight<decltype(scalar)>(p); });
}

}  // namespace ARTKERNELS_ISA
}  // namespace artkernels::cpu
