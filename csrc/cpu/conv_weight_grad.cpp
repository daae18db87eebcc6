// The gradient of a convolution's weight, and of its bias: SIMD kernels for one instruction set (cpu/isa.h).
//
// Bound: FMA, one for each weight that meets an output pixel. It is a matrix product over pixels for every tap: the
// input's channels, from the pixel where the tap lies, by grad_output's. Some images or a band of rows are packed into
// memory that stays in L2, the input with its border and channels innermost, grad_output in panels of output channels;
// every tile of input channels by a panel then runs over blocks of pixels whose panel stays in L1, tap after tap.
#include "cpu/conv_weight_grad.h"

#include "cpu/conv_axis.h"
#include "cpu/conv_pack.h"
#include "cpu/scratch.h"
#include "cpu/team.h"
#include "cpu/tile.h"

namespace artkernels::cpu {
namespace ARTKERNELS_ISA {
namespace {

// Terms of a running sum before it is added to the others: the error of a sum grows with its length.
constexpr int64_t BLOCK = 128;

// What is packed at a time: a band of rows of one image or some whole images.
struct Item {
  int64_t group;
  int64_t image, images;  // the first, and how many
  int64_t row, rows;      // of the output
};

class Geometry {
 public:
  Geometry(const ConvWeightGradParams& p, int threads)
      : rows(p.H, p.OH, p.rows, /*transposed=*/false),
        columns(p.W, p.OW, p.columns, /*transposed=*/false),
        C(p.C / p.groups),
        K(p.K / p.groups),
        panels(panels_of(K)) {
    // Without a gap between pixels the taps of a row are one run of channels. With many, pixels a power of two apart
    // would share few sets of L1.
    merged = p.columns.dilation == 1 && C < 64;
    pixel = merged ? C : odd_vectors(C);
    depth = merged ? C * p.columns.kernel : C;
    taps = merged ? p.rows.kernel : p.rows.kernel * p.columns.kernel;
    tiles = divided_up(depth, TILE_ROWS);
    units = tiles * panels;
    unit_floats = divided_up(taps * TILE_ROWS * PANEL, 16) * 16;
    width = columns.extent(p.OW);
    const int64_t budget = 160 * 1024;  // floats of both maps, packed: in L2
    auto floats = [&](int64_t r) { return rows.extent(r) * width * pixel + r * p.OW * panels * PANEL; };
    const int64_t fitting = larger((budget - floats(1)) / (floats(2) - floats(1)) + 1, 1);
    bands = divided_up(p.OH, fitting);
    rows_per_item = divided_up(p.OH, bands);
    bands = divided_up(p.OH, rows_per_item);
    // Not so many that threads have too few items, but a block of pixels.
    const int64_t shares = larger(divided_up(p.N, 4 * threads), divided_up(BLOCK, p.OH * p.OW));
    images_per_item = bands > 1 ? 1 : smaller(smaller(larger(budget / floats(p.OH), 1), shares), p.N);
    blocks = divided_up(p.N, images_per_item);
    image_floats = odd_vectors(rows.extent(rows_per_item) * width * pixel);
    item_pixels = images_per_item * rows_per_item * p.OW;
    // With many items each thread takes whole ones, waiting for nobody, and the sums of all are added up in the end.
    // With few, threads share every item, and each sums up weights of its own.
    const int64_t sums = threads * units * unit_floats;
    apart = p.groups == 1 && blocks * bands >= 4 * threads && sums <= 16 * 1024 * 1024;
  }

  int64_t items_per_group() const { return blocks * bands; }

  Item item(int64_t index, const ConvWeightGradParams& p) const {
    Item item;
    item.row = index % bands * rows_per_item;
    item.rows = smaller(rows_per_item, p.OH - item.row);
    item.image = index / bands % blocks * images_per_item;
    item.images = smaller(images_per_item, p.N - item.image);
    item.group = index / bands / blocks;
    return item;
  }

  const Axis rows, columns;
  const int64_t C, K, panels;  // of a group
  bool merged;                 // the taps of a row of the kernel count as channels of one tap
  bool apart;                  // threads have sums of their own
  int64_t depth, taps;         // channels and taps, as they are counted
  int64_t tiles, units;        // of channels; tiles by panels
  int64_t pixel, width;        // floats of a packed pixel, pixels of a packed row
  int64_t images_per_item, rows_per_item, bands, blocks;
  int64_t image_floats, item_pixels, unit_floats;

 private:
  static int64_t odd_vectors(int64_t floats) { return (divided_up(floats, 16) | 1) * 16; }
};

// Neighbouring pixels of an output row, or the one pixel of neighbouring images: where their input begins.
struct Segment {
  int64_t input, length;
};

// Where the input of a tap lies from that of the output pixel, and the tap's place among the sums.
struct WeightTap {
  int64_t input, index;
};

struct Scratch {
  float *input, *panels;  // packed; a team's first member's
  Segment* segments;      // [item_pixels]
  WeightTap* taps;        // [taps]
  double* bias;           // [panels * PANEL]: sums of the gradient

  static int64_t bytes(const Geometry& g) {
    const Scratch scratch(nullptr, g, 0);
    return reinterpret_cast<char*>(scratch.bias + g.panels * PANEL) - static_cast<char*>(nullptr);
  }
  Scratch(void* memory, const Geometry& g, int64_t offset) {
    char* next = static_cast<char*>(memory) + offset;
    auto take = [&](auto*& array, int64_t count) {
      array = reinterpret_cast<decltype(+array)>(next);
      next += (count * int64_t(sizeof(*array)) + 63) / 64 * 64;
    };
    take(input, g.images_per_item * g.image_floats);
    take(panels, g.item_pixels * g.panels * PANEL);
    take(segments, g.item_pixels);
    take(taps, g.taps);
    take(bias, g.panels * PANEL);
  }
};

// sums[i][:] += sum over pixels of input[pixel][i] * panel[pixel][:], for `rows` input channels; input pixels of a
// segment are `step` floats apart, the panel's one after the other. Bound: rows * vectors FMA a pixel.
template <int rows, int vectors>
__attribute__((noinline)) void accumulate(const float* input, int64_t step, const Segment* segments, int64_t count,
                                          const float* panel, float* sums) {
  vfloat acc[rows][vectors];
  ARTKERNELS_UNROLL
  for (int i = 0; i < rows; ++i) ARTKERNELS_UNROLL
  for (int v = 0; v < vectors; ++v) acc[i][v] = vfloat{};
  for (int64_t s = 0; s < count; ++s) {
    const float* x = input + segments[s].input;
    for (int64_t j = 0; j < segments[s].length; ++j, x += step, panel += PANEL) {
      vfloat b[vectors];
      ARTKERNELS_UNROLL
      for (int v = 0; v < vectors; ++v) b[v] = load(panel + v * VL);
      ARTKERNELS_UNROLL
      for (int i = 0; i < rows; ++i) {
        const vfloat a = broadcast(x[i]);
        ARTKERNELS_UNROLL
        for (int v = 0; v < vectors; ++v) acc[i][v] += a * b[v];
      }
    }
  }
  ARTKERNELS_UNROLL
  for (int i = 0; i < rows; ++i) ARTKERNELS_UNROLL
  for (int v = 0; v < vectors; ++v) store(sums + i * PANEL + v * VL, load(sums + i * PANEL + v * VL) + acc[i][v]);
}

using Accumulate = void (*)(const float*, int64_t, const Segment*, int64_t, const float*, float*);

template <int vectors, int rows = TILE_ROWS>
ARTKERNELS_INLINE Accumulate accumulate_for(int64_t wanted) {
  if constexpr (rows > 1)
    if (wanted < rows) return accumulate_for<vectors, rows - 1>(wanted);
  return accumulate<rows, vectors>;
}

template <typename scalar_t>
class Kernel {
 public:
  Kernel(const ConvWeightGradParams& p, const Geometry& g, const Scratch& mine, const Scratch& team)
      : p_(p), g_(g), mine_(mine), team_(team), taps_(list_taps()) {}

  // Rows of both maps.
  int64_t rows_to_pack(const Item& item) const { return item.images * (g_.rows.extent(item.rows) + item.rows); }

  void pack(const Item& item, Range range) {
    segments_ = list_segments(item);
    const Map<scalar_t> input = map(p_.input, p_.C, p_.H, p_.W, p_.input_channels_last, p_.transposed);
    const Map<scalar_t> gradient = map(p_.grad_output, p_.K, p_.OH, p_.OW, p_.output_channels_last, !p_.transposed);
    const int64_t input_rows = g_.rows.extent(item.rows), rows = input_rows + item.rows;
    for (int64_t r = range.begin; r < range.end; ++r) {
      const int64_t image = r / rows, row = r % rows;
      if (row < input_rows) {
        const int64_t y = item.row * g_.rows.step + row + g_.rows.low;
        pack_bordered_row(input, input.row(item.image + image, y, item.group * g_.C), g_.columns.low, g_.width, g_.C,
                          team_.input + image * g_.image_floats + row * g_.width * g_.pixel, g_.pixel);
      } else {
        pack_panels(gradient, item, image, row - input_rows);
      }
    }
  }

  // Adds the item to the sums of one unit.
  void compute(const Item& item, int64_t unit, float* sums) const {
    const int64_t tile = unit / g_.panels, panel = unit % g_.panels;
    const int64_t begin = g_.depth * tile / g_.tiles, height = g_.depth * (tile + 1) / g_.tiles - begin;
    const Accumulate accumulate = g_.K - panel * PANEL > VL ? accumulate_for<2>(height) : accumulate_for<1>(height);
    const float* gradient = team_.panels + panel * item_pixels(item) * PANEL;
    if (tile == 0 && p_.grad_bias) add_bias(gradient, item_pixels(item), mine_.bias + panel * PANEL);
    for (int64_t first = 0, last; first < segments_; first = last) {
      int64_t pixels = mine_.segments[first].length;
      for (last = first + 1; last < segments_ && pixels + mine_.segments[last].length <= BLOCK; ++last)
        pixels += mine_.segments[last].length;
      for (int64_t t = 0; t < taps_; ++t)
        accumulate(team_.input + mine_.taps[t].input + begin, step(), mine_.segments + first, last - first, gradient,
                   sums + mine_.taps[t].index * TILE_ROWS * PANEL);
      gradient += pixels * PANEL;
    }
  }

  // The sums of a unit to where they belong.
  void write(int64_t group, int64_t unit, const float* sums) const {
    const int64_t tile = unit / g_.panels, panel = unit % g_.panels;
    const int64_t begin = g_.depth * tile / g_.tiles, height = g_.depth * (tile + 1) / g_.tiles - begin;
    const int64_t channels = smaller(g_.K - panel * PANEL, PANEL), taps = p_.rows.kernel * p_.columns.kernel;
    const auto& s = p_.weight_strides;
    scalar_t* const out = static_cast<scalar_t*>(p_.grad_weight) + (group * g_.K + panel * PANEL) * s[1];
    if (!g_.merged && s[3] == 1 && s[2] == p_.columns.kernel) {
      for (int64_t i = 0; i < height; ++i)
        unpack_planes(sums + i * PANEL, TILE_ROWS * PANEL, taps, channels, out + (begin + i) * s[0], s[1]);
      return;
    }
    for (int64_t t = 0; t < g_.taps; ++t) {
      const float* const tap = sums + t * TILE_ROWS * PANEL;
      if (s[0] == 1 && (!g_.merged || s[3] == g_.C)) {
        const int64_t first = g_.merged ? t * s[2] : t / p_.columns.kernel * s[2] + t % p_.columns.kernel * s[3];
        unpack_planes(tap, PANEL, height, channels, out + first + begin, s[1]);
        continue;
      }
      for (int64_t i = 0; i < height; ++i) {
        const int64_t c = g_.merged ? (begin + i) % g_.C : begin + i;
        const int64_t row = g_.merged ? t : t / p_.columns.kernel;
        const int64_t column = g_.merged ? (begin + i) / g_.C : t % p_.columns.kernel;
        for (int64_t k = 0; k < channels; ++k)
          store_up_to(out + c * s[0] + k * s[1] + row * s[2] + column * s[3], broadcast(tap[i * PANEL + k]), 1);
      }
    }
  }

 private:
  Map<scalar_t> map(const void* data, int64_t C, int64_t H, int64_t W, bool channels_last, bool is_gradient) const {
    const void* const activated = is_gradient ? p_.activated : nullptr;
    return {static_cast<const scalar_t*>(data),
            static_cast<const scalar_t*>(activated),
            p_.activation,
            p_.negative_slope,
            C,
            H,
            W,
            channels_last,
            /*reflect=*/false};
  }

  int64_t item_pixels(const Item& item) const { return item.images * item.rows * p_.OW; }
  bool images_are_columns() const { return p_.OH == 1 && p_.OW == 1; }
  int64_t step() const { return images_are_columns() ? g_.image_floats : g_.columns.step * g_.pixel; }

  // Row `row` of an item's image, to every panel.
  void pack_panels(const Map<scalar_t>& gradient, const Item& item, int64_t image, int64_t row) const {
    for (int64_t panel = 0; panel < g_.panels; ++panel) {
      const int64_t k = panel * PANEL, channels = smaller(g_.K - k, PANEL);
      float* const out = team_.panels + (panel * item_pixels(item) + (image * item.rows + row) * p_.OW) * PANEL;
      if (channels < PANEL) __builtin_memset(out, 0, p_.OW * PANEL * sizeof(float));
      pack_row(gradient, gradient.row(item.image + image, item.row + row, item.group * g_.K + k), p_.OW, channels, out,
               PANEL);
    }
  }

  // Taps of one residue of the strides after each other, because they read the same pixels.
  int64_t list_taps() const {
    int64_t count = 0;
    const int64_t rows = p_.rows.kernel, columns = g_.merged ? 1 : p_.columns.kernel;
    const int64_t row_step = smaller(p_.rows.stride, rows), column_step = smaller(p_.columns.stride, columns);
    for (int64_t a = 0; a < row_step; ++a)
      for (int64_t b = 0; b < column_step; ++b)
        for (int64_t r = a; r < rows; r += row_step)
          for (int64_t c = b; c < columns; c += column_step)
            mine_.taps[count++] = {(r * p_.rows.dilation * g_.width + c * p_.columns.dilation) * g_.pixel,
                                   r * columns + c};
    return count;
  }

  int64_t list_segments(const Item& item) const {
    int64_t count = 0;
    if (images_are_columns()) {
      for (int64_t n = 0; n < item.images; n += BLOCK)
        mine_.segments[count++] = {n * g_.image_floats, smaller(item.images - n, BLOCK)};
      return count;
    }
    for (int64_t n = 0; n < item.images; ++n)
      for (int64_t i = 0; i < item.rows; ++i)
        for (int64_t j = 0; j < p_.OW; j += BLOCK)
          mine_.segments[count++] = {
              n * g_.image_floats + (i * g_.rows.step * g_.width + j * g_.columns.step) * g_.pixel,
              smaller(p_.OW - j, BLOCK)};
    return count;
  }

  static void add_bias(const float* panel, int64_t pixels, double* bias) {
    for (int64_t first = 0; first < pixels; first += BLOCK)
      for (int v = 0; v < PANEL; v += VL) {
        vfloat sum = {};
        for (int64_t j = first; j < pixels && j < first + BLOCK; ++j) sum += load(panel + j * PANEL + v);
        for (int k = 0; k < VL; ++k) bias[v + k] += double(sum[k]);
      }
  }

  const ConvWeightGradParams& p_;
  const Geometry& g_;
  const Scratch &mine_, &team_;
  const int64_t taps_;
  int64_t segments_ = 0;
};

void write_bias(const ConvWeightGradParams& p, const Geometry& g, int64_t group, int64_t panel, const double* sums) {
  for (int64_t k = panel * PANEL; k < smaller((panel + 1) * PANEL, g.K); ++k)
    p.grad_bias[group * g.K + k] = float(sums[k]);
}

// Every thread has units of its own.
template <typename scalar_t>
void run_shared(const ConvWeightGradParams& p, const Geometry& g, int threads) {
  const int64_t bytes = Scratch::bytes(g), items = g.items_per_group();
  const bool at_once = items == 1;  // sums need not outlive the work on their unit, and stay in L1
  const int64_t floats = (at_once ? threads : g.units) * g.unit_floats;
  char* const memory = static_cast<char*>(thread_scratch(threads * bytes + floats * sizeof(float)));
  float* const all_sums = reinterpret_cast<float*>(memory + threads * bytes);
#pragma omp parallel num_threads(threads)
  {
    const Team team = {0, omp_get_num_threads(), omp_get_thread_num()};
    const Scratch mine(memory, g, team.member * bytes), first(memory, g, 0);
    Kernel<scalar_t> kernel(p, g, mine, first);
    const Range units = team.share(g.units);
    for (int64_t index = 0; index < p.groups * items; ++index) {
      const Item item = g.item(index, p);
      const bool begins = index % items == 0, ends = (index + 1) % items == 0;
      if (begins) __builtin_memset(mine.bias, 0, g.panels * PANEL * sizeof(double));
      team.barrier();
      kernel.pack(item, team.share(kernel.rows_to_pack(item)));
      team.barrier();
      for (int64_t unit = units.begin; unit < units.end; ++unit) {
        float* const sums = all_sums + (at_once ? team.member : unit) * g.unit_floats;
        if (begins) __builtin_memset(sums, 0, g.unit_floats * sizeof(float));
        kernel.compute(item, unit, sums);
        if (!ends) continue;
        kernel.write(item.group, unit, sums);
        if (p.grad_bias && unit < g.panels) write_bias(p, g, item.group, unit, mine.bias);
      }
    }
  }
}

// Every thread has items of its own, and sums of all units.
template <typename scalar_t>
void run_apart(const ConvWeightGradParams& p, const Geometry& g, int threads) {
  const int64_t bytes = Scratch::bytes(g), floats = g.units * g.unit_floats;
  char* const memory = static_cast<char*>(thread_scratch(threads * (bytes + floats * sizeof(float))));
  float* const all_sums = reinterpret_cast<float*>(memory + threads * bytes);
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num(), present = omp_get_num_threads();
    const Scratch mine(memory, g, thread * bytes);
    __builtin_memset(mine.bias, 0, g.panels * PANEL * sizeof(double));
    __builtin_memset(all_sums + thread * floats, 0, floats * sizeof(float));
    deal(g.items_per_group(), [&](int64_t index, Team team) {
      const Item item = g.item(index, p);
      const Scratch first(memory, g, team.first * bytes);
      Kernel<scalar_t> kernel(p, g, mine, first);
      team.barrier();
      kernel.pack(item, team.share(kernel.rows_to_pack(item)));
      team.barrier();
      const Range units = team.share(g.units);
      for (int64_t unit = units.begin; unit < units.end; ++unit)
        kernel.compute(item, unit, all_sums + thread * floats + unit * g.unit_floats);
    });
#pragma omp barrier
    const Kernel<scalar_t> kernel(p, g, mine, mine);
    const Range units = share(g.units, thread, present);
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      float* const total = all_sums + unit * g.unit_floats;
      for (int t = 1; t < present; ++t)
        for (int64_t i = 0; i < g.unit_floats; i += VL)
          store(total + i, load(total + i) + load(total + t * floats + i));
      kernel.write(0, unit, total);
      if (!p.grad_bias || unit >= g.panels) continue;
      double* const bias = Scratch(memory, g, 0).bias + unit * PANEL;
      for (int t = 1; t < present; ++t)
        for (int k = 0; k < PANEL; ++k) bias[k] += Scratch(memory, g, t * bytes).bias[unit * PANEL + k];
      write_bias(p, g, 0, unit, bias - unit * PANEL);
    }
  }
}

template <typename scalar_t>
void run(const ConvWeightGradParams& p, int threads) {
  const Geometry g(p, threads);
  if (g.apart) run_apart<scalar_t>(p, g, threads);
  else run_shared<scalar_t>(p, g, threads);
}

}  // namespace

void conv_weight_grad(const ConvWeightGradParams& p, int threads) {
  with_scalar_type(p.dtype, [&](auto scalar) { run<decltype(scalar)>(p, threads); });
}

}  // namespace ARTKERNELS_ISA
}  // namespace artkernels::cpu
