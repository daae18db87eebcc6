// Convolution or transposed convolution, scale, bias and activation (or the statistics that a normalisation needs) in
// one pass: SIMD kernels for one instruction set (cpu/isa.h).
//
// Bound: FMA, one for each weight that meets an input pixel, or the instruction set's dot product of bfloat16 pairs,
// one for two weights (cpu/conv_operand.h). Transposed, the output pixels of one residue of the stride (a phase) are a
// small dense convolution of the input, so that no zero is multiplied (Shi et al. 2016). A band of the input's rows is
// packed once, channels innermost, with a border of zeros, into memory that stays in L2; every phase and panel of
// output channels reads it from there, and the packed weights once.
#include "cpu/conv.h"

#include "cpu/conv_axis.h"
#include "cpu/conv_pack.h"
#include "cpu/conv_tile.h"
#include "cpu/scratch.h"
#include "cpu/team.h"

namespace artkernels::cpu {
namespace ARTKERNELS_ISA {
namespace {

// What one team computes before it goes on: a band of rows of one image, some whole images, or, where an image is one
// pixel, a row of such images. A contiguous range of output pixels in any case.
struct Item {
  int64_t group;
  int64_t image, images;  // the first, and how many
  int64_t row, rows;      // positions of the row axis
  int64_t columns;        // positions of the column axis
};

class Geometry {
 public:
  Geometry(const ConvParams& p, int64_t words, int threads)
      : rows(p.H, p.OH, p.rows, p.transposed),
        columns(p.W, p.OW, p.columns, p.transposed),
        C(p.C / p.groups),
        K(p.K / p.groups),
        words(words),
        panels(panels_of(K)),
        images_are_columns(p.H == 1 && p.W == 1 && p.transposed && p.statistics != Statistics::Instance) {
    // Pixels a power of two apart would share few sets of L1. Without a gap the taps of a row are one run of words.
    merged = !p.transposed && p.columns.dilation == 1 && words < 64;
    pixel = words % 256 == 0 ? words + VL : words;
    const int64_t positions = rows.positions() * columns.positions();
    if (images_are_columns) {
      images_per_item = smaller(p.N, 128);
      rows_per_item = 1;
      width = images_per_item;
    } else {
      width = columns.extent(columns.positions());
      const int64_t budget = 160 * 1024;  // words of packed input: with the weights of a panel, in L2
      const int64_t fitting = larger((budget / (width * pixel) - rows.extent(1)) / rows.step + 1, 1);
      int64_t bands = divided_up(rows.positions(), fitting);
      if (panels < threads) bands = larger(bands, smaller(divided_up(threads, p.N * p.groups), rows.positions()));
      rows_per_item = divided_up(rows.positions(), bands);
      const int64_t image = rows.extent(rows_per_item) * width * pixel;
      images_per_item = bands > 1 ? 1 : larger(1, smaller(smaller(128 / positions, budget / image), p.N));
    }
    bands = divided_up(rows.positions(), rows_per_item);
    blocks = divided_up(p.N, images_per_item);
    items = p.groups * blocks * bands;
    image_words = rows.extent(rows_per_item) * width * pixel;
    // A pair may begin with the last pixel and read one more.
    input_words = (images_are_columns ? 1 : images_per_item) * image_words + columns.step * pixel;
    pairs_per_phase = divided_up(columns_of(images_per_item), 2) * rows_per_item * images_per_item;
    output_pixels = images_are_columns ? images_per_item * p.OH * p.OW
                                       : images_per_item * smaller(rows_per_item * rows.phases, p.OH) * p.OW;
  }

  Item item(int64_t index, int64_t N) const {
    Item item;
    item.row = index % bands * rows_per_item;
    item.rows = smaller(rows_per_item, rows.positions() - item.row);
    item.image = index / bands % blocks * images_per_item;
    item.images = smaller(images_per_item, N - item.image);
    item.group = index / bands / blocks;
    item.columns = columns_of(item.images);
    return item;
  }

  const Axis rows, columns;
  const int64_t C, K, words, panels;  // of a group: channels, words of the input's, panels of the output's
  const bool images_are_columns;
  bool merged;           // the taps of a row of the kernel count as words of one tap
  int64_t pixel, width;  // words of a packed pixel, pixels of a packed row
  int64_t images_per_item, rows_per_item, bands, blocks, items;
  int64_t image_words, input_words, pairs_per_phase, output_pixels;

 private:
  int64_t columns_of(int64_t images) const { return images_are_columns ? images : columns.positions(); }
};

// The memory of one thread. A team works on the packed input of its first member.
struct Scratch {
  float* input;           // [input_words]
  float* panel;           // [output_pixels, PANEL]: output of a panel on its way to planes
  Tap* taps;              // [kernel_h * kernel_w]
  const float** pairs;    // [pairs_per_phase]
  int64_t* pixels;        // [pairs_per_phase]: output pixel of a pair's first, counted from the item's first
  int8_t* valid;          // [pairs_per_phase]
  PanelMoments* moments;  // [images_per_item] of every image, or [1]

  static int64_t bytes(const Geometry& g, const ConvParams& p) {
    Scratch scratch(nullptr, g, p, 0);
    return reinterpret_cast<char*>(scratch.moments + g.images_per_item) - static_cast<char*>(nullptr) + 64;
  }
  Scratch(void* memory, const Geometry& g, const ConvParams& p, int64_t offset) {
    char* next = static_cast<char*>(memory) + offset;
    auto take = [&](auto*& array, int64_t count) {
      array = reinterpret_cast<decltype(+array)>(next);
      next += (count * int64_t(sizeof(*array)) + 63) / 64 * 64;
    };
    take(input, g.input_words);
    take(panel, p.output_channels_last ? 0 : g.output_pixels * PANEL);
    take(taps, p.rows.kernel * p.columns.kernel);
    take(pairs, g.pairs_per_phase);
    take(pixels, g.pairs_per_phase);
    take(valid, g.pairs_per_phase);
    take(moments, g.images_per_item);
  }
};

template <typename scalar_t>
class Kernel {
  using Operand = typename OperandOf<scalar_t>::type;

 public:
  Kernel(const ConvParams& p, const Geometry& g, const Scratch& mine, const Scratch& team, double* totals)
      : p_(p), g_(g), mine_(mine), input_(team.input), totals_(totals) {}

  void pack(const Item& item, Range rows) const {
    const int64_t per_image = g_.rows.extent(item.rows);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int64_t image = r / per_image, row = r % per_image;
      pack_row_of(item, item.image + image, item.row * g_.rows.step + row + g_.rows.low,
                  input_ + image * g_.image_words + row * g_.width * g_.pixel);
    }
  }
  int64_t rows_to_pack(const Item& item) const {
    return (g_.images_are_columns ? 1 : item.images) * g_.rows.extent(item.rows);
  }

  // Units of work after the packing: panels or, where planes need not be put together, phases of a panel.
  int64_t units() const { return g_.panels * (p_.output_channels_last ? phases() : 1); }

  void compute(const Item& item, int64_t unit) const {
    if (p_.output_channels_last) {
      scalar_t* const pixels = static_cast<scalar_t*>(p_.output) + first_pixel(item) * p_.K + item.group * g_.K;
      const int64_t panel = unit / phases();
      compute_phases<scalar_t>(item, panel, {unit % phases(), unit % phases() + 1}, pixels + panel * PANEL, p_.K);
    } else {
      compute_phases<float>(item, unit, {0, phases()}, mine_.panel, PANEL);
      unpack(item, unit);
    }
  }

 private:
  int64_t phases() const { return g_.rows.phases * g_.columns.phases; }
  int64_t plane() const { return p_.OH * p_.OW; }
  int64_t first_pixel(const Item& item) const { return item.image * plane() + item.row * g_.rows.phases * p_.OW; }

  void pack_row_of(const Item& item, int64_t image, int64_t row, float* out) const {
    const Map<scalar_t> map = input_map<scalar_t>(p_);
    const int64_t channel = item.group * g_.C;
    if (g_.images_are_columns) {
      const Row<scalar_t> images = {map.data, map.activated, p_.C, 1};
      return pack_row<Operand>(map, images.from(image * p_.C + channel), item.images, g_.C, out, g_.pixel);
    }
    pack_bordered_row<Operand>(map, map.row(image, row, channel), g_.columns.low, g_.width, g_.C, out, g_.pixel);
  }

  // Pixels of the item are `width` elements apart at `out`.
  template <typename out_t>
  void compute_phases(const Item& item, int64_t panel, Range phases, out_t* out, int64_t width) const {
    alignas(64) float scale[PANEL], bias[PANEL];
    const int64_t first = item.group * g_.K + panel * PANEL, channels = smaller(g_.K - panel * PANEL, PANEL);
    for (int64_t k = 0; k < PANEL; ++k) {
      scale[k] = p_.scale && k < channels ? p_.scale[first + k] : 1;
      bias[k] = p_.bias && k < channels ? p_.bias[first + k] : 0;
    }
    TileOutput<out_t> tile = {};
    tile.step = (g_.images_are_columns ? plane() : g_.columns.phases) * width;
    tile.channels = channels;
    tile.scale = scale;
    tile.bias = bias;
    tile.negative_slope = p_.negative_slope;
    const int64_t runs = p_.statistics == Statistics::Instance ? item.images : 1;
    if (p_.statistics != Statistics::None) __builtin_memset(mine_.moments, 0, runs * sizeof(PanelMoments));
    for (int64_t phase = phases.begin; phase < phases.end; ++phase) {
      const Residue row = g_.rows.residue(phase / g_.columns.phases);
      const Residue column = g_.columns.residue(phase % g_.columns.phases);
      const int64_t taps = list_taps(row, column), pairs = list_pairs(item, row, column, phase);
      for (int64_t run = 0; run < runs; ++run) {
        tile.moments = p_.statistics == Statistics::None ? nullptr : mine_.moments + run;
        compute_run(item, panel, taps, {pairs * run / runs, pairs * (run + 1) / runs}, out, width, tile);
      }
    }
    for (int64_t run = 0; p_.statistics != Statistics::None && run < runs; ++run) {
      double* const total =
          totals_ + 2 * ((p_.statistics == Statistics::Instance ? item.image + run : 0) * p_.K + first);
      for (int64_t k = 0; k < channels; ++k) {
        total[2 * k] += mine_.moments[run].sum[k];
        total[2 * k + 1] += mine_.moments[run].squares[k];
      }
    }
  }

  int64_t list_taps(const Residue& row, const Residue& column) const {
    int64_t count = 0;
    for (int64_t r = 0; r < row.taps; ++r)
      for (int64_t c = 0; c < (g_.merged ? 1 : column.taps); ++c)
        mine_.taps[count++] = {(row.shift_of(r) * g_.width + column.shift_of(c)) * g_.pixel,
                               (row.tap(r) * p_.columns.kernel + column.tap(c)) * g_.words * PANEL};
    return count;
  }

  int64_t list_pairs(const Item& item, const Residue& row, const Residue& column, int64_t phase) const {
    const int64_t images = g_.images_are_columns ? 1 : item.images;
    const int64_t rows = smaller(item.rows, row.outputs - item.row);
    const int64_t columns = g_.images_are_columns ? item.images : column.outputs;
    const int64_t residue = phase / g_.columns.phases * p_.OW + phase % g_.columns.phases;
    const int64_t step = g_.images_are_columns ? plane() : g_.columns.phases;
    int64_t count = 0;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t i = 0; i < rows; ++i) {
        const float* const x =
            input_ + n * g_.image_words + ((i * g_.rows.step - g_.rows.low) * g_.width - g_.columns.low) * g_.pixel;
        const int64_t y = n * plane() + i * g_.rows.phases * p_.OW + residue;
        for (int64_t j = 0; j < columns; j += 2, ++count) {
          mine_.pairs[count] = x + j * g_.columns.step * g_.pixel;
          mine_.pixels[count] = y + j * step;
          mine_.valid[count] = columns - j < 2 ? 1 : 2;
        }
      }
    return count;
  }

  // Tiles of equal height, as few as there can be.
  template <typename out_t>
  void compute_run(const Item& item, int64_t panel, int64_t taps, Range pairs, out_t* out, int64_t width,
                   TileOutput<out_t>& tile) const {
    const float* const weight =
        p_.packed_weight + (item.group * g_.panels + panel) * p_.rows.kernel * p_.columns.kernel * g_.words * PANEL;
    const int64_t count = pairs.end - pairs.begin, tiles = divided_up(count, TILE_PAIRS);
    auto finished = finish<Activation::None, out_t>;
    if (!p_.activated)
      with_activation(p_.activation, [&](auto a) { finished = finish<decltype(a)::activation, out_t>; });
    alignas(64) float sums[2 * TILE_PAIRS * PANEL];
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = pairs.begin + count * t / tiles, height = pairs.begin + count * (t + 1) / tiles - begin;
      for (int64_t i = 0; i < height; ++i) {
        tile.pairs[i] = out + mine_.pixels[begin + i] * width;
        tile.valid[i] = mine_.valid[begin + i];
      }
      tile.prefetch(int(height));
      const Multiply multiply =
          tile.channels > VL ? multiply_for<Operand, 2>(height) : multiply_for<Operand, 1>(height);
      multiply(mine_.pairs + begin, g_.columns.step * g_.pixel, mine_.taps, taps,
               g_.merged ? g_.words * p_.columns.kernel : g_.words, weight, sums);
      if (tile.moments) gather(sums, int(height), tile);
      finished(sums, int(height), tile);
    }
  }

  void unpack(const Item& item, int64_t panel) const {
    const int64_t first = item.group * g_.K + panel * PANEL, row = item.row * g_.rows.phases;
    const int64_t pixels = smaller(item.rows * g_.rows.phases, p_.OH - row) * p_.OW;
    for (int64_t n = 0; n < item.images; ++n)
      unpack_planes(mine_.panel + n * plane() * PANEL, PANEL, pixels, smaller(g_.K - panel * PANEL, PANEL),
                    static_cast<scalar_t*>(p_.output) + ((item.image + n) * p_.K + first) * plane() + row * p_.OW,
                    plane());
  }

  const ConvParams& p_;
  const Geometry& g_;
  const Scratch& mine_;
  float* const input_;
  double* const totals_;  // [N or 1, K, 2] of this thread
};

int64_t statistics_of(const ConvParams& p) {
  return p.statistics == Statistics::None ? 0 : p.statistics == Statistics::Batch ? p.K : p.N * p.K;
}

// Sums of all threads, in their order. In double, so that the difference may cancel.
void finish_statistics(const ConvParams& p, const double* totals, int threads, Range range) {
  const int64_t statistics = statistics_of(p);
  const double pixels = double(p.OH * p.OW * (p.statistics == Statistics::Batch ? p.N : 1));
  for (int64_t s = range.begin; s < range.end; ++s) {
    double sum = 0, squares = 0;
    for (int t = 0; t < threads; ++t) {
      sum += totals[2 * (t * statistics + s)];
      squares += totals[2 * (t * statistics + s) + 1];
    }
    const double mean = sum / pixels, var = squares / pixels - mean * mean;
    p.mean[s] = float(mean);
    p.var[s] = float(var > 0 ? var : 0);
  }
}

template <typename scalar_t>
void run(const ConvParams& p, int threads) {
  const Geometry g(p, words_of<typename OperandOf<scalar_t>::type>(p.C / p.groups), threads);
  const int64_t bytes = Scratch::bytes(g, p), statistics = statistics_of(p);
  char* const memory = static_cast<char*>(thread_scratch(threads * (bytes + 2 * statistics * sizeof(double))));
  double* const totals = reinterpret_cast<double*>(memory + threads * bytes);
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num(), present = omp_get_num_threads();  // maybe fewer than asked for
    double* const mine = totals + thread * 2 * statistics;
    __builtin_memset(mine, 0, 2 * statistics * sizeof(double));
    deal(g.items, [&](int64_t index, Team team) {
      const Item item = g.item(index, p.N);
      const Scratch scratch(memory, g, p, thread * bytes), first(memory, g, p, team.first * bytes);
      const Kernel<scalar_t> kernel(p, g, scratch, first, mine);
      team.barrier();
      kernel.pack(item, team.share(kernel.rows_to_pack(item)));
      team.barrier();
      const Range units = team.share(kernel.units());
      for (int64_t unit = units.begin; unit < units.end; ++unit) kernel.compute(item, unit);
    });
#pragma omp barrier
    finish_statistics(p, totals, present, share(statistics, thread, present));
  }
}

// `count` lanes, `stride` elements apart.
template <typename scalar_t>
ARTKERNELS_INLINE vfloat load_strided(const scalar_t* p, int64_t stride, int64_t count) {
  if (stride == 1) return load_up_to(p, count);
  alignas(64) scalar_t lanes[VL] = {};
  for (int64_t i = 0; i < VL && i < count; ++i) lanes[i] = p[i * stride];
  return load(lanes);
}

// The weights of one word, `C` input channels or as many as it holds, for a panel, K output channels or as many as it
// holds: [tap][PANEL], taps `tap_step` words apart.
template <typename scalar_t>
void pack_word(const ConvParams& p, const scalar_t* weight, int64_t C, int64_t K, float* out, int64_t tap_step) {
  const int64_t *const s = p.weight_strides, taps = p.rows.kernel * p.columns.kernel;
  auto load = [&](const scalar_t* first, int64_t stride, int64_t count) ARTKERNELS_LAMBDA {
    return load_words<typename OperandOf<scalar_t>::type>(
        C, [&](int64_t half) ARTKERNELS_LAMBDA { return load_strided(first + half * s[0], stride, count); });
  };
  if (s[3] == 1 && s[2] == p.columns.kernel) {  // taps one after the other: transpose
    for (int64_t k = 0; k < PANEL; k += VL)
      for (int64_t tap = 0; tap < taps; tap += VL) {
        vfloat rows[VL];
        for (int i = 0; i < VL; ++i)
          rows[i] = k + i < K ? load(weight + (k + i) * s[1] + tap, 1, taps - tap) : vfloat{};
        transpose(rows);
        for (int i = 0; i < VL && tap + i < taps; ++i) store(out + (tap + i) * tap_step + k, rows[i]);
      }
    return;
  }
  auto pack_taps = [&](int64_t stride) ARTKERNELS_LAMBDA {
    for (int64_t tap = 0; tap < taps; ++tap, out += tap_step) {
      const scalar_t* const w = weight + tap / p.columns.kernel * s[2] + tap % p.columns.kernel * s[3];
      for (int64_t k = 0; k < PANEL; k += VL) store(out + k, k < K ? load(w + k * stride, stride, K - k) : vfloat{});
    }
  };
  if (s[1] == 1) pack_taps(1);
  else pack_taps(s[1]);
}

// [panel][tap][word][PANEL], output channels beyond K zero.
template <typename scalar_t>
void pack_weight(const ConvParams& p, int threads) {
  using Operand = typename OperandOf<scalar_t>::type;
  const int64_t C = p.C / p.groups, K = p.K / p.groups, words = words_of<Operand>(C), panels = panels_of(K);
  const int64_t *const s = p.weight_strides, taps = p.rows.kernel * p.columns.kernel;
#pragma omp parallel for num_threads(threads) collapse(2)
  for (int64_t panel = 0; panel < p.groups * panels; ++panel)
    for (int64_t word = 0; word < words; ++word) {
      const int64_t group = panel / panels, k = panel % panels * PANEL, c = word * Operand::channels;
      const int64_t first = group * (p.transposed ? C * s[0] : K * s[1]) + c * s[0] + k * s[1];
      pack_word(p, static_cast<const scalar_t*>(p.weight) + first, C - c, K - k,
                p.packed_weight + (panel * taps * words + word) * PANEL, words * PANEL);
    }
}

}  // namespace

void conv(const ConvParams& p, int threads) {
  with_scalar_type(p.dtype, [&](auto scalar) { run<decltype(scalar)>(p, threads); });
}

void pack_conv_weight(const ConvParams& p, int threads) {
  with_scalar_type(p.dtype, [&](auto scalar) { pack_weight<decltype(scalar)>(p, threads); });
}

}  // namespace ARTKERNELS_ISA
}  // namespace artkernels::cpu
