// The register tile of every matrix product here: rows x (2 VL) outputs stay in registers while k runs.
#pragma once

#include "cpu/vec.h"

namespace artkernels::cpu {
namespace {

// Operands are packed into panels [k][PANEL], PANEL = two vectors: a tile reads both of its operands front to back,
// from neighbouring cache lines whatever the tensor's strides were.
constexpr int PANEL = 2 * VL;

// Rows of a tile: as many as leave registers for two vectors of B (32 vector registers with AVX-512, 16 otherwise).
constexpr int TILE_ROWS = VL == 16 ? 12 : 6;

constexpr int64_t panels_of(int64_t n) { return (n + PANEL - 1) / PANEL; }

template <int rows, int vectors = 2>
struct Tile {
  vfloat acc[rows][vectors];

  // acc[i][:] = sum over k < K of A(i, k) * B[k][:]. A is a panel, A(i, k) = A[k * PANEL + i], or, with a_stride, rows
  // of a matrix, A(i, k) = A[i * a_stride + k].
  ARTKERNELS_INLINE void multiply(const float* A, const float* B, int64_t K) {
    clear();
    for (int64_t k = 0; k < K; ++k, A += PANEL, B += PANEL) {
      vfloat b[vectors];
      ARTKERNELS_UNROLL
      for (int v = 0; v < vectors; ++v) b[v] = load(B + v * VL);
      ARTKERNELS_UNROLL
      for (int i = 0; i < rows; ++i) {
        const vfloat a = broadcast(A[i]);
        ARTKERNELS_UNROLL
        for (int v = 0; v < vectors; ++v) acc[i][v] += a * b[v];
      }
    }
  }
  ARTKERNELS_INLINE void multiply(const float* A, int64_t a_stride, const float* B, int64_t K) {
    clear();
    for (int64_t k = 0; k < K; ++k, ++A, B += PANEL) {
      vfloat b[vectors];
      ARTKERNELS_UNROLL
      for (int v = 0; v < vectors; ++v) b[v] = load(B + v * VL);
      ARTKERNELS_UNROLL
      for (int i = 0; i < rows; ++i) {
        const vfloat a = broadcast(A[i * a_stride]);
        ARTKERNELS_UNROLL
        for (int v = 0; v < vectors; ++v) acc[i][v] += a * b[v];
      }
    }
  }

 private:
  ARTKERNELS_INLINE void clear() {
    ARTKERNELS_UNROLL
    for (int i = 0; i < rows; ++i) {
      ARTKERNELS_UNROLL
      for (int v = 0; v < vectors; ++v) acc[i][v] = vfloat{};
    }
  }
};

template <int n>
struct Constant {
  static constexpr int value = n;
  constexpr operator int() const { return n; }
};

// Calls body(first row, Constant<rows>) for the tiles that cover the rows of a panel.
template <int row = 0, typename Body>
ARTKERNELS_INLINE void for_panel_rows(Body body) {
  constexpr int rows = PANEL - row < TILE_ROWS ? PANEL - row : TILE_ROWS;
  body(row, Constant<rows>{});
  if constexpr (row + rows < PANEL) for_panel_rows<row + rows>(body);
}

}  // namespace
}  // namespace artkernels::cpu
