// Reparameterisation and KL divergence of a variational autoencoder: SIMD kernels for one instruction set (cpu/isa.h).
//
// Bound: memory, three arrays read and one written, backward four and two; in cache the two exponentials of an element.

#include "cpu/reparameterize_kl.h"

#include "cpu/activation.h"
#include "cpu/scratch.h"
#include "cpu/team.h"

namespace artkernels::cpu {
namespace ARTKERNELS_ISA {
namespace {

// A sample is divided into pieces, which the threads share; or, where it is short, a piece is a run of whole samples. A
// piece of one sample is summed block by block: a long chain of additions would lose what the pairwise sums of torch
// keep.
constexpr int64_t PIECE = 8192, RUN = 2048, BLOCK = 16 * VL;

struct LogNormal {
  vfloat sigma, variance_less_one, excess;  // e^(x/2), e^x - 1, e^x - 1 - x
};
// Near 0 both differences cancel: there they are made of x^2 (1/2! + x/3! + x^2/4! ...), good to 2e-9.
ARTKERNELS_INLINE LogNormal log_normal(vfloat x) {
  const vfloat less_one = exponential(x) - 1.f;  // not sigma squared, which has three times the error
  vfloat p = x * (1 / 362880.f) + 1 / 40320.f;
  p = p * x + 1 / 5040.f;
  p = p * x + 1 / 720.f;
  p = p * x + 1 / 120.f;
  p = p * x + 1 / 24.f;
  p = p * x + 1 / 6.f;
  p = p * x + 0.5f;
  p *= x * x;
  const auto small = magnitude(x) < 0.5f;
  return {exponential(x * 0.5f), small ? p + x : less_one, small ? p : less_one - x};
}

// `count` elements from `begin` of a sample on; in a run they go on through the next samples.
struct Piece {
  int64_t sample, begin, count;

  template <typename scalar_t>
  const scalar_t* of(const Samples& s) const {
    return s.data ? static_cast<const scalar_t*>(s.data) + sample * s.pitch + begin : nullptr;
  }
  template <typename scalar_t>
  scalar_t* of(void* dense, int64_t D) const {
    return dense ? static_cast<scalar_t*>(dense) + sample * D + begin : nullptr;
  }
};

struct Pieces {
  int64_t N, D, per_sample, samples, count;  // either pieces of a sample or samples of a piece are 1

  explicit Pieces(const ReparameterizeKl& p) : N(p.N), D(p.D) {
    per_sample = (D + PIECE - 1) / PIECE;
    samples = is_run() ? RUN / D : 1;
    count = (N + samples - 1) / samples * per_sample;
  }

  bool is_run() const { return D < kShortSample; }

  Piece operator[](int64_t index) const {
    if (is_run()) {
      const int64_t first = index * samples, rest = N - first;
      return {first, 0, (rest < samples ? rest : samples) * D};
    }
    const int64_t begin = index % per_sample * PIECE;
    return {index / per_sample, begin, D - begin < PIECE ? D - begin : PIECE};
  }
};

// work(index) for every index in [0, count), neighbours on the same thread.
template <typename F>
void for_each_piece(int64_t count, int threads, F&& work) {
#pragma omp parallel num_threads(threads)
  {
    const Range mine = share(count, omp_get_thread_num(), omp_get_num_threads());
    for (int64_t index = mine.begin; index < mine.end; ++index) work(index);
  }
}

// Writes the piece's codes; take(i, twice the divergence of the elements from i on) is called for each vector of them.
template <typename scalar_t, typename Take>
ARTKERNELS_INLINE void encode(const ReparameterizeKlParams& p, const Piece& piece, Take&& take) {
  const auto *mean = piece.of<scalar_t>(p.mean), *logvar = piece.of<scalar_t>(p.logvar),
             *noise = piece.of<scalar_t>(p.noise);
  auto* codes = piece.of<scalar_t>(p.codes, p.D);
  for (int64_t i = 0; i < piece.count; i += VL) {
    const int64_t lanes = piece.count - i;
    const vfloat m = load_up_to(mean + i, lanes);
    const LogNormal spread = log_normal(load_up_to(logvar + i, lanes));
    take(i, m * m + spread.excess);
    store_up_to(codes + i, m + load_up_to(noise + i, lanes) * spread.sigma, lanes);
  }
}

// Returns twice the divergence of the piece.
template <typename scalar_t>
double encode_sample(const ReparameterizeKlParams& p, const Piece& piece) {
  vfloat block{}, blocks{};
  encode<scalar_t>(p, piece, [&](int64_t i, vfloat divergence) ARTKERNELS_LAMBDA {
    if (i % BLOCK == 0) blocks += block, block = divergence;
    else block += divergence;
  });
  blocks += block;
  double total = 0;
  for (int lane = 0; lane < VL; ++lane) total += blocks[lane];
  return total;
}

template <typename scalar_t>
void encode_run(const ReparameterizeKlParams& p, const Piece& piece) {
  alignas(64) float divergences[RUN + VL];
  encode<scalar_t>(p, piece,
                   [&](int64_t i, vfloat divergence) ARTKERNELS_LAMBDA { store(divergences + i, divergence); });
  const float* next = divergences;
  for (int64_t sample = 0; sample < piece.count / p.D; ++sample) {
    float total = 0;
    for (int64_t i = 0; i < p.D; ++i) total += *next++;
    p.kl[piece.sample + sample] = 0.5f * total;
  }
}

// grad_kl(i) is that of the elements from i on.
template <typename scalar_t, typename GradKl>
ARTKERNELS_INLINE void gradients(const ReparameterizeKlBackwardParams& p, const Piece& piece, GradKl&& grad_kl) {
  const auto *mean = piece.of<scalar_t>(p.mean), *logvar = piece.of<scalar_t>(p.logvar),
             *noise = piece.of<scalar_t>(p.noise), *grad_codes = piece.of<scalar_t>(p.grad_codes);
  auto *grad_mean = piece.of<scalar_t>(p.grad_mean, p.D), *grad_logvar = piece.of<scalar_t>(p.grad_logvar, p.D),
       *grad_noise = piece.of<scalar_t>(p.grad_noise, p.D);
  for (int64_t i = 0; i < piece.count; i += VL) {
    const int64_t lanes = piece.count - i;
    const LogNormal spread = log_normal(load_up_to(logvar + i, lanes));
    const vfloat g = grad_codes ? load_up_to(grad_codes + i, lanes) : vfloat{};
    vfloat of_mean = g, twice_of_logvar{};
    if (grad_codes) twice_of_logvar = g * load_up_to(noise + i, lanes) * spread.sigma;
    if (p.grad_kl) {  // where there is no gradient, an infinite variance leaves none
      of_mean += grad_kl(i) * load_up_to(mean + i, lanes);
      twice_of_logvar += grad_kl(i) * spread.variance_less_one;
    }
    if (grad_mean) store_up_to(grad_mean + i, of_mean, lanes);
    if (grad_logvar) store_up_to(grad_logvar + i, twice_of_logvar * 0.5f, lanes);
    if (grad_noise) store_up_to(grad_noise + i, g * spread.sigma, lanes);
  }
}

template <typename scalar_t>
void gradients_of_sample(const ReparameterizeKlBackwardParams& p, const Piece& piece) {
  const vfloat grad_kl = broadcast(p.grad_kl ? p.grad_kl[piece.sample] : 0.f);
  gradients<scalar_t>(p, piece, [&](int64_t) ARTKERNELS_LAMBDA { return grad_kl; });
}

template <typename scalar_t>
void gradients_of_run(const ReparameterizeKlBackwardParams& p, const Piece& piece) {
  alignas(64) float grad_kl[RUN + VL];
  if (p.grad_kl) {
    float* next = grad_kl;
    for (int64_t sample = 0; sample < piece.count / p.D; ++sample)
      for (int64_t i = 0; i < p.D; ++i) *next++ = p.grad_kl[piece.sample + sample];
  }
  gradients<scalar_t>(p, piece, [&](int64_t i) ARTKERNELS_LAMBDA { return load(grad_kl + i); });
}

}  // namespace

void reparameterize_kl(const ReparameterizeKlParams& p, int threads) {
  const Pieces pieces(p);
  with_scalar_type(p.dtype, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    if (pieces.is_run())
      return for_each_piece(pieces.count, threads, [&](int64_t i) { encode_run<scalar_t>(p, pieces[i]); });
    double* const sums = static_cast<double*>(thread_scratch(pieces.count * sizeof(double)));
    for_each_piece(pieces.count, threads, [&](int64_t i) { sums[i] = encode_sample<scalar_t>(p, pieces[i]); });
    for (int64_t sample = 0; sample < p.N; ++sample) {
      double total = 0;
      for (int64_t i = 0; i < pieces.per_sample; ++i) total += sums[sample * pieces.per_sample + i];
      p.kl[sample] = float(0.5 * total);
    }
  });
}

void reparameterize_kl_backward(const ReparameterizeKlBackwardParams& p, int threads) {
  const Pieces pieces(p);
  with_scalar_type(p.dtype, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    for_each_piece(pieces.count, threads, [&](int64_t i) {
      if (pieces.is_run()) gradients_of_run<scalar_t>(p, pieces[i]);
      else gradients_of_sample<scalar_t>(p, pieces[i]);
    });
  });
}

}  // namespace ARTKERNELS_ISA
}  // namespace artkernels::cpu
