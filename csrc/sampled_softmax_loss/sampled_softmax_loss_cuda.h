// The CUDA kernels' plan, workspace and launchers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "sampled_softmax_loss/sampled_softmax_loss.h"

namespace argus::sampled_softmax_loss {

// How rows and candidates are cut. The cut depends on the sizes and on `loop` alone, so that results depend
// on nothing else of the GPU. Score gradients dS are stored for one strip of rows at a time.
struct CudaPlan {
  int64_t tile = 128;
  int64_t slots = 264;               // concurrent blocks: two per multiprocessor of a large GPU
  int64_t strip_elements = 1 << 26;  // of dS
  static constexpr int64_t kLoopColumns = 256;
  bool loop;  // the products run on the product loop of sm_90 (uses_product_loop)
  int64_t forward_chunks, strip_rows, strips, chunks, splits, score_stride;

  CudaPlan(int64_t rows, int64_t drawn, int64_t width, bool on_loop) : loop(on_loop) {
    cut(rows, drawn, width);
  }
  CudaPlan(int64_t rows, int64_t drawn, int64_t width, bool on_loop, int64_t blocks, int64_t elements)
      : slots(blocks), strip_elements(elements), loop(on_loop) {
    cut(rows, drawn, width);
  }

 private:
  static int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }
  // The number of pieces that `whole` tiles are cut into, if `others` blocks work on each piece. Blocks run
  // in waves of `slots`; a wave lasts as long as one block's tiles. 288 blocks on 264 slots would leave half
  // of two waves idle. Returns the fewest pieces within a twentieth of the shortest time, because each piece
  // costs a pass over partial results.
  int64_t pieces(int64_t others, int64_t whole) const { return pieces(others, whole, slots); }
  static int64_t pieces(int64_t others, int64_t whole, int64_t slots) {
    others = std::max<int64_t>(others, 1);
    const auto time = [&](int64_t count) { return up(others * count, slots) * up(whole, count); };
    const int64_t most = std::clamp(4 * up(slots, others), int64_t{1}, std::max<int64_t>(whole, 1));
    int64_t shortest = time(1), found = 1;
    for (int64_t count = 2; count <= most; ++count) shortest = std::min(shortest, time(count));
    while (20 * time(found) > 21 * shortest) ++found;
    return found;
  }
  void cut(int64_t rows, int64_t drawn, int64_t width) {
    const int64_t row_tiles = up(rows, tile), candidate_tiles = up(drawn, tile);
    score_stride = up(drawn, 8) * 8;
    forward_chunks = loop ? up(drawn, kLoopColumns) : pieces(row_tiles, candidate_tiles);
    const int64_t fitting = strip_elements / std::max<int64_t>(score_stride, 1) / tile;
    strip_rows = std::clamp(fitting, int64_t{1}, std::max<int64_t>(row_tiles, 1)) * tile;
    strips = up(rows, strip_rows);
    chunks = pieces(strip_rows / tile, candidate_tiles);
    splits = pieces(strip_rows / tile * up(width, tile), candidate_tiles);
    if (loop) {
      chunks = forward_chunks;
      // One block per multiprocessor, in clusters that take two tiles of rows unless there is one, and 64
      // candidates a step of their products.
      const int64_t tiles = strip_rows / tile, taken = tiles == 1 ? 1 : up(tiles, 2) * 2;
      splits = pieces(taken * up(width, kLoopColumns), up(drawn, 64), std::max<int64_t>(slots / 2, 1));
    }
  }
};

// Memory for the kernels; counts in elements are those of the functions below.
struct Workspace {
  float* product;       // [rows]: ⟨query, positive⟩
  float* peak;          // [forward_chunks, rows]
  float* total;         // [forward_chunks, rows]
  int32_t* kept;        // [forward_chunks, rows]: number of candidates that remain
  float* whole;         // [rows]: log of the shares' denominator, +∞ if there is none
  float* row_scale;     // [rows]: gradient of the row's log-sum-exp; finally its part of d_scale
  float* amplify;       // a power of two that keeps 16-bit dS in range, and its inverse
  void* d_scores;       // [strip_rows, score_stride], dtype
  float* sums;          // [chunks, 3, strip_rows]: Σ share, Σ share · product, Σ dS as stored
  float* d_query;       // [splits, strip_rows, width]
  float* d_candidates;  // [drawn, width]
  void* queries;        // [strip_rows, width], dtype; only on the product loop with row_weight, or null
};

// Whether TMA can load the queries and candidates: 16 bits, rows at multiples of 16 bytes, none of them
// empty.
bool fits_product_loop(const Inputs& inputs);
// And whether the current GPU is of compute capability 9.0, for which the library has code.
bool uses_product_loop(const Inputs& inputs);

// Enqueue on `stream`, a cudaStream_t, without synchronising. Rows and drawn may be 0.
void forward_cuda(const Inputs& inputs, const Outputs& outputs, const CudaPlan& plan,
                  const Workspace& workspace, void* stream);
void backward_cuda(const Inputs& inputs, const Gradients& gradients, const CudaPlan& plan,
                   const Workspace& workspace, void* stream);

}  // namespace argus::sampled_softmax_loss
