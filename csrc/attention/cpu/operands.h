// The operands of attention's products: keys and values of one user and head, packed once for all blocks of
// queries. Also writes the sums back to the packed tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "attention/cpu/bias.h"
#include "attention/cpu/problem.h"
#include "common/cpu/matmul.h"
#include "common/cpu/scratch.h"
#include "common/cpu/simd.h"

namespace argus::attention {

// A left operand of a product: rows of padded depth, `stride` apart.
template <class P>
struct LeftOperand {
  const P* data;
  int64_t stride;
};

// Keys [begin, end) of one user and head as the left operand of a product. Read in place if the product
// accepts the tensor's layout, unless heads lie between its rows and many queries read them: a product over
// rows 1 KiB apart is 1.06 times as slow as over adjacent ones.
template <class T, class P>
class KeyRows {
 public:
  // `from` is the user's first key, `readers` the number of queries.
  void set(const T* from, int64_t row_stride, int64_t begin, int64_t end, int64_t width, int64_t readers) {
    stride_ = matmul::padded_depth<P>(width);
    if constexpr (std::is_same_v<T, P>) {
      const bool near = row_stride * int64_t{sizeof(T)} < kFarRows;
      if (stride_ == width && (near || readers < kManyReaders)) {
        begin_ = 0;
        data_ = from;
        stride_ = row_stride;
        return;
      }
    }
    begin_ = begin;
    P* to = packed_.at_least((end - begin) * stride_);
    matmul::pack_left(to, from + begin * row_stride, end - begin, width, row_stride, 1);
    data_ = to;
  }

  LeftOperand<P> from(int64_t event) const { return {data_ + (event - begin_) * stride_, stride_}; }

 private:
  static constexpr int64_t kFarRows = 1024, kManyReaders = 512;

  Scratch<P> packed_;
  const P* data_ = nullptr;
  int64_t begin_ = 0, stride_ = 0;
};

// The same events transposed: a left operand with a row for each element of the head and events along its
// depth, in blocks of kKeys events; `begin` is a multiple of that.
template <class T, class P>
class KeyColumns {
 public:
  void set(const T* from, int64_t row_stride, int64_t begin, int64_t end, int64_t width) {
    begin_ = begin;
    block_ = width * kKeys;
    last_event_ = (end - 1) / kKeys * kKeys;
    last_stride_ = matmul::padded_depth<P>(end - last_event_);
    P* to = packed_.at_least(((last_event_ - begin) / kKeys + 1) * block_);
    for (int64_t first = begin; first < end; first += kKeys, to += block_) {
      const int64_t count = std::min(kKeys, end - first);
      matmul::pack_left(to, from + first * row_stride, width, count, 1, row_stride);
    }
  }

  LeftOperand<P> from(int64_t event) const {
    return {packed_.get() + (event - begin_) / kKeys * block_ + event % kKeys,
            event >= last_event_ ? last_stride_ : kKeys};
  }

 private:
  Scratch<P> packed_;
  int64_t begin_ = 0, block_ = 0, last_event_ = 0, last_stride_ = 0;
};

// A tile of sums, kQueries apart, as the left operand of a product along its columns.
template <class P>
class TileRows {
 public:
  LeftOperand<P> set(const matmul::Sum<P>* tile, int64_t rows, int64_t columns) {
    if constexpr (std::is_same_v<P, matmul::Sum<P>>) {
      return {tile, kQueries};
    } else {
      P* to = packed_.at_least(kKeys * kQueries);
      matmul::pack_left(to, tile, rows, columns, kQueries, 1);
      return {to, matmul::padded_depth<P>(columns)};
    }
  }

 private:
  Scratch<P> packed_;
};

template <class A>
ARGUS_INLINE void find_nan_body(const A* x, int64_t count, bool* found) {
  int any = 0;
  for (int64_t i = 0; i < count; ++i) any |= x[i] != x[i] ? 1 : 0;
  *found = any != 0;
}

template <class A>
bool has_nan(const A* x, int64_t count) {
  bool found = false;
  ForEachIsa<&find_nan_body<A>>::call(x, count, &found);
  return found;
}

// to[row, element] = factor[row] · sums[row, element].
template <class T, class A>
ARGUS_INLINE void put_scaled_rows_body(T* to, int64_t row_stride, const A* sums, const A* factor,
                                       int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row) {
    const A* line = sums + row * width;
    for (int64_t d = 0; d < width; ++d) store(to[row * row_stride + d], line[d] * factor[row]);
  }
}

// Writes sums [width, kQueries], transposed, with each column multiplied by its factor; `transposed` is a
// buffer of that size.
template <class T, class A>
void store_transposed(T* to, int64_t row_stride, const A* sums, const A* factor, int64_t rows, int64_t width,
                      A* transposed) {
  matmul::pack_left(transposed, sums, rows, width, 1, kQueries);
  ForEachIsa<&put_scaled_rows_body<T, A>>::call(to, row_stride, static_cast<const A*>(transposed), factor,
                                                rows, width);
}

// to[row, element] = factor · sums[row, element].
template <class T, class A>
ARGUS_INLINE void put_rows_body(T* to, int64_t row_stride, const A* sums, A factor, int64_t rows,
                                int64_t width) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t d = 0; d < width; ++d) store(to[row * row_stride + d], sums[row * width + d] * factor);
  }
}

// scores = factor · scores where the mask shows the pair, else `hidden`; the tile's first key is `begin`.
template <class A>
ARGUS_INLINE void hide_causal_body(A* scores, const Block* block, int64_t begin, int64_t keys, A factor,
                                   A hidden) {
  for (int64_t j = 0; j < keys; ++j) {
    const int32_t key = static_cast<int32_t>(begin + j);
    A* line = scores + j * kQueries;
    for (int64_t c = 0; c < block->columns; ++c) {
      const bool seen = ((key < block->limit[c]) | (key == block->own_begin[c])) & (key >= block->oldest[c]);
      line[c] = seen ? line[c] * factor : hidden;
    }
  }
}

// The same for any block.
template <class A>
ARGUS_INLINE void hide_body(A* scores, const Block* block, int64_t begin, int64_t keys, A factor, A hidden) {
  for (int64_t j = 0; j < keys; ++j) {
    const int32_t key = static_cast<int32_t>(begin + j);
    // Keys of the prefix count as ones after every query's oldest.
    const int32_t reach = key < block->prefix ? std::numeric_limits<int32_t>::max() : key;
    A* line = scores + j * kQueries;
    for (int64_t c = 0; c < block->columns; ++c) {
      const bool seen = ((key < block->limit[c]) & (reach >= block->oldest[c])) |
                        ((key >= block->own_begin[c]) & (key < block->own_end[c]));
      line[c] = seen ? line[c] * factor : hidden;
    }
  }
}

// Adds the biases to a tile of products and applies the mask; returns the factor that the caller must still
// apply.
template <class A>
A make_scores(A* products, const TileBias<A>& bias, const Block& block, const KeyTile& tile, A scale,
              A hidden) {
  A factor = scale;
  if (bias.present()) {
    bias.add(products, tile, block.columns, factor);
    factor = A{1};
  }
  if (!tile.masked) return factor;
  if (block.causal) {
    ForEachIsa<&hide_causal_body<A>>::call(products, &block, tile.begin, tile.size(), factor, hidden);
  } else {
    ForEachIsa<&hide_body<A>>::call(products, &block, tile.begin, tile.size(), factor, hidden);
  }
  return A{1};
}

}  // namespace argus::attention
