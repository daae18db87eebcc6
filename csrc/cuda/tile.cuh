// Operand tiles in shared memory, and the product of two of them by a warp. Both Gram kernels are made of these.
//
// A product A B^T has rows (of A), columns (rows of B) and a depth that is summed over. A tile is 64 rows of one
// operand by 128 bytes of depth: 8 KB. It is kept as global memory has it, so that neither layout is transposed by a
// copy:
//   depth contiguous: lines are rows, 128 bytes each           -> ldmatrix, floats too (8x4 floats are an 8x8 block)
//   rows contiguous:  lines are steps of depth, 64 rows each   -> ldmatrix.trans, for floats 4-byte loads
// 16-byte chunks are XOR-swizzled within a line, so that copies and fragment loads meet no bank conflict.
#pragma once

#include "mma.cuh"

namespace artkernels::cuda {

// A matrix in global memory, the contiguous direction first: element (row, depth) is data[row * pitch + depth] when
// depth is contiguous, else data[depth * pitch + row]. Beyond rows and depth a tile is filled with zeros.
template <typename scalar_t>
struct Operand {
  const scalar_t* data;
  int64_t pitch;
  uint32_t rows, depth;  // up to 2^31 - 1: unsigned, so that the end of the last tile does not overflow
  bool aligned;          // data and pitch are multiples of 16 bytes
};

template <typename scalar_t, bool kDepthContiguous>
struct Tile {
  using scalar_type = scalar_t;
  static constexpr int kRows = 64, kBytes = 8192;
  static constexpr int kDepth = 128 / sizeof(scalar_t);
  static constexpr int kSlices = 4;  // of 32 bytes of depth: what one matrix instruction takes
  static constexpr int kSliceDepth = kDepth / kSlices;
  static constexpr int kChunk = 16 / sizeof(scalar_t);
  static constexpr int kLine = kDepthContiguous ? kDepth : kRows;
  static constexpr int kLineChunks = kLine / kChunk;  // 8, or 16: floats with contiguous rows
  static_assert(kLineChunks == 8 || kLineChunks == 16);

  __device__ static __forceinline__ int offset(int line, int chunk) {
    if constexpr (kLineChunks == 8) return line * 128 + ((chunk ^ (line & 7)) << 4);
    else return line * 256 + ((chunk ^ ((line & 3) << 1)) << 4);
  }

  // Fills the tile from (row, depth) on; all kThreads threads of the block take part.
  template <int kThreads>
  __device__ static __forceinline__ void copy(unsigned char* tile, const Operand<scalar_t>& from, uint32_t row,
                                              uint32_t depth) {
    constexpr int kPassLines = kThreads / kLineChunks, kLines = kBytes / 16 / kLineChunks;
    const int line = threadIdx.x / kLineChunks, chunk = threadIdx.x % kLineChunks;
    const uint32_t first_line = (kDepthContiguous ? row : depth) + line,
                   lines = kDepthContiguous ? from.rows : from.depth;
    const uint32_t at = (kDepthContiguous ? depth : row) + chunk * kChunk,
                   end = kDepthContiguous ? from.depth : from.rows;
    const scalar_t* source = from.data + first_line * from.pitch + at;
    if (from.aligned) {
#pragma unroll
      for (int pass = 0; pass < kLines; pass += kPassLines) {
        copy_async_16(tile + offset(line + pass, chunk), source, first_line + pass < lines && at < end);
        source += kPassLines * from.pitch;
      }
    } else {
#pragma unroll 1
      for (int pass = 0; pass < kLines; pass += kPassLines) {
        __align__(16) scalar_t values[kChunk];
#pragma unroll
        for (int e = 0; e < kChunk; ++e)
          values[e] = first_line + pass < lines && at + e < end ? source[e] : from_float<scalar_t>(0.f);
        *reinterpret_cast<uint4*>(tile + offset(line + pass, chunk)) = *reinterpret_cast<uint4*>(values);
        source += kPassLines * from.pitch;
      }
    }
  }

  // Rows row .. row + 15 of one slice, as the A operand of mma, or as two B operands (fragment[0 .. 1], fragment[2 ..
  // 3]). Both consist of four blocks of 8 rows by half a slice; A runs through the rows first, B through the depth.
  template <bool kIsA>
  __device__ static __forceinline__ void load_fragment(uint32_t (&fragment)[4], const unsigned char* tile, int row,
                                                       int slice) {
    const int lane = threadIdx.x % 32;
    if constexpr (kDepthContiguous || sizeof(scalar_t) == 2) {
      const int block = lane / 8, row_half = kIsA ? block % 2 : block / 2, depth_half = kIsA ? block / 2 : block % 2;
      const int along_rows = row + row_half * 8, along_depth = slice * kSliceDepth + depth_half * (kSliceDepth / 2);
      if constexpr (kDepthContiguous)
        load_matrix<false>(fragment, shared_address(tile + offset(along_rows + lane % 8, along_depth / kChunk)));
      else load_matrix<true>(fragment, shared_address(tile + offset(along_depth + lane % 8, along_rows / kChunk)));
    } else {
#pragma unroll
      for (int block = 0; block < 4; ++block) {
        const int row_half = kIsA ? block % 2 : block / 2, depth_half = kIsA ? block / 2 : block % 2;
        fragment[block] = __float_as_uint(
            value(tile, row + row_half * 8 + lane / 4, slice * kSliceDepth + depth_half * 4 + lane % 4));
      }
    }
  }

  __device__ static __forceinline__ float value(const unsigned char* tile, int row, int depth) {
    const int line = kDepthContiguous ? row : depth, at = kDepthContiguous ? depth : row;
    return to_float(reinterpret_cast<const scalar_t*>(tile + offset(line, at / kChunk))[at % kChunk]);
  }
};

// acc += A B^T over one slice of depth, for kM x kColumns / 2 blocks of 16 x 16: acc[m][n] are the accumulators of
// columns 8 n .. of rows 16 m .. . An operand of kPlanes tiles, kPlaneBytes apart, is the sum of its planes, the
// smallest last. float: 3xTF32, or one TF32 product when kTf32; see kTensorCores for where it is plain FMA.
template <bool kTf32, typename TileA, int kPlanesA, typename TileB, int kPlanesB, int kPlaneBytes, int kM, int kColumns>
__device__ __forceinline__ void multiply_slice(float (&acc)[kM][kColumns][4], const unsigned char* a, int row_a,
                                               const unsigned char* b, int row_b, int slice,
                                               bool lower_triangle = false) {
  using scalar_t = typename TileA::scalar_type;
  constexpr int kN = kColumns / 2;
  if constexpr (!kTensorCores<scalar_t, kTf32>) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int depth = slice * TileA::kSliceDepth; depth < (slice + 1) * TileA::kSliceDepth; ++depth) {
      float row[2 * kM];
#pragma unroll
      for (int i = 0; i < 2 * kM; ++i) {
        row[i] = 0.f;
#pragma unroll
        for (int plane = kPlanesA - 1; plane >= 0; --plane)
          row[i] += TileA::value(a + plane * kPlaneBytes, row_a + 8 * i + lane / 4, depth);
      }
#pragma unroll
      for (int n = 0; n < 2 * kN; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float column = 0.f;
#pragma unroll
          for (int plane = kPlanesB - 1; plane >= 0; --plane)
            column += TileB::value(b + plane * kPlaneBytes, row_b + 8 * n + lane % 4 * 2 + e, depth);
#pragma unroll
          for (int i = 0; i < 2 * kM; ++i) acc[i / 2][n][i % 2 * 2 + e] += row[i] * column;
        }
    }
  } else {
    constexpr bool kSplit = std::is_same_v<scalar_t, float> && !kTf32;
    constexpr bool kRound = std::is_same_v<scalar_t, float> && kTf32;
    // Parts of an operand: its planes, or of a split float the high and the low part.
    constexpr int kPartsA = kSplit ? 2 : kPlanesA, kPartsB = kSplit ? 2 : kPlanesB;
    uint32_t parts_a[kPartsA][kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int plane = 0; plane < kPlanesA; ++plane)
        TileA::template load_fragment<true>(parts_a[plane][m], a + plane * kPlaneBytes, row_a + 16 * m, slice);
      if constexpr (kSplit) split_tf32(parts_a[0][m], parts_a[1][m]);
      if constexpr (kRound) round_tf32(parts_a[0][m]);
    }
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      uint32_t parts_b[kPartsB][4];
#pragma unroll
      for (int plane = 0; plane < kPlanesB; ++plane)
        TileB::template load_fragment<false>(parts_b[plane], b + plane * kPlaneBytes, row_b + 16 * n, slice);
      if constexpr (kSplit) split_tf32(parts_b[0], parts_b[1]);
      if constexpr (kRound) round_tf32(parts_b[0]);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        if (lower_triangle && m < n) continue;  // the same for the whole warp
#pragma unroll
        for (int i = kPartsA - 1; i >= 0; --i)
#pragma unroll
          for (int j = kPartsB - 1; j >= 0; --j) {
            if (i + j > 1) continue;  // low x low is below the last bit
#pragma unroll
            for (int half = 0; half < 2; ++half)
              mma<scalar_t>(acc[m][2 * n + half], parts_a[i][m], parts_b[j][2 * half], parts_b[j][2 * half + 1]);
          }
      }
    }
  }
}

}  // namespace artkernels::cuda
