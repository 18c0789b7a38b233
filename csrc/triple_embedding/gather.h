// How the columns of a problem are served, and the rows of tables as operands of a product.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/cpu/element.h"
#include "common/cpu/simd.h"
#include "triple_embedding/triple_embedding.h"

namespace argus::triple_embedding {

// A column, and its offsets among the columns that are served the same way.
struct Part {
  const Table* table;
  const int64_t* ids;
  int64_t offset;  // of the weight's rows
  int64_t place;   // gathered: in a row of the tile; projected: first row of its stack
  int table_index;
  int64_t reader;  // number of earlier columns that read the same table
};

struct Layout {
  std::vector<Part> gathered, projected;
  int64_t depth = 0;   // of a tile: the gathered widths together
  int64_t height = 0;  // of the stack: the rows of the projected columns' tables together
};

inline Layout lay_out(const Problem& problem) {
  Layout layout;
  std::vector<int64_t> readers(problem.tables.size());
  for (const Column& column : problem.columns) {
    const Table& table = problem.tables[static_cast<size_t>(column.table)];
    int64_t& extent = table.projected ? layout.height : layout.depth;
    std::vector<Part>& parts = table.projected ? layout.projected : layout.gathered;
    parts.push_back({&table, column.ids, column.offset, extent, column.table,
                     readers[static_cast<size_t>(column.table)]++});
    extent += table.projected ? table.rows : table.width;
  }
  return layout;
}

// Events that are gathered, multiplied and finished together: their tile and its product stay in L2.
inline int64_t tile_events(const Problem& problem) {
  return problem.width <= 512 ? 192 : 96;
}

// An element as an operand of the product: rounded to the weight's type first.
template <class Operand, class Weight, class Stored>
ARGUS_INLINE void as_operand(Operand& to, Stored from) {
  if constexpr (std::is_same_v<Operand, Stored>) {
    if constexpr (std::is_same_v<Weight, Stored>) {
      to = from;
    } else {
      Weight rounded;
      store(rounded, load(from));
      to = load(rounded);
    }
  } else if constexpr (std::is_same_v<Weight, Stored>) {
    to = load(from);
  } else {
    store(to, load(from));
  }
}

constexpr int64_t kLineBytes = 64;
// Rows lie at random addresses: they are prefetched this many events ahead.
constexpr int64_t kRowsAhead = 12;

template <bool kWrite>
ARGUS_INLINE void prefetch(const void* from, int64_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (int64_t offset = 0; offset < bytes; offset += kLineBytes)
    __builtin_prefetch(line + offset, kWrite ? 1 : 0);
}

// Copies rows ids[0, count) of `table` to rows to_stride apart; prefetches ids[count, known).
template <class Operand, class Weight, class Stored>
ARGUS_INLINE void gather_rows(const Table* table, const int64_t* ids, int64_t count, int64_t known,
                              Operand* to, int64_t to_stride) {
  const Stored* data = static_cast<const Stored*>(table->data);
  const int64_t width = table->width, step = table->column_stride;
  for (int64_t i = 0; i < count; ++i, to += to_stride) {
    if (i + kRowsAhead < known && ids[i + kRowsAhead] >= 0)
      prefetch<false>(data + ids[i + kRowsAhead] * table->row_stride, width * sizeof(Stored));
    if (ids[i] < 0) {
      for (int64_t j = 0; j < width; ++j) to[j] = Operand{};
      continue;
    }
    const Stored* row = data + ids[i] * table->row_stride;
    if (step == 1) {
      for (int64_t j = 0; j < width; ++j) as_operand<Operand, Weight>(to[j], row[j]);
    } else {
      for (int64_t j = 0; j < width; ++j) as_operand<Operand, Weight>(to[j], row[j * step]);
    }
  }
}

// The tile of `count` events from `first` on: the gathered columns side by side, rows to_stride apart.
template <class Operand, class Weight, class Stored>
void gather_tile(const Problem& problem, const Layout& layout, int64_t first, int64_t count, Operand* to,
                 int64_t to_stride) {
  for (const Part& part : layout.gathered) {
    ForEachIsa<&gather_rows<Operand, Weight, Stored>>::call(
        part.table, part.ids + first, count, problem.events - first, to + part.place, to_stride);
  }
}

}  // namespace argus::triple_embedding
