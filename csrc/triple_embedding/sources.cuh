// The sources of triple_embedding's products besides plain matrices: gathered rows, and the weight. Each
// copies one 16-byte chunk to shared memory, with zeros for missing elements.
#pragma once

#include "common/cuda/tile_product.cuh"
#include "triple_embedding/triple_embedding_cuda.h"

namespace argus::triple_embedding {

using tile::Matrix;
using tile::Operand;
using tile::Sums;

ARGUS_DEVICE int column_of(const CudaProblem& problem, int chunk) {
  int k = 0;
  while (k + 1 < problem.count && chunk >= problem.columns[k + 1].first_chunk) ++k;
  return k;
}

// Rows: events. Chunks: depth.
template <class T, class Stored>
struct GatheredRows {
  const CudaProblem& problem;
  int64_t end;  // events past it count as missing

  ARGUS_DEVICE void copy(void* to, int64_t event, int chunk) const {
    if (event >= end || chunk >= problem.chunks) return tile::clear_chunk(to);
    const int k = column_of(problem, chunk);
    copy_row(to, k, chunk, problem.ids[k * problem.events + event]);
  }

  // The same of row `id` of column k's table, which the chunk belongs to.
  ARGUS_DEVICE void copy_row(void* to, int k, int chunk, int64_t id) const {
    const CudaColumn& column = problem.columns[k];
    if (id < 0 || id >= column.rows) return tile::clear_chunk(to);
    const int first = (chunk - column.first_chunk) * kChunk<T>, left = column.width - first;
    const Stored* row = static_cast<const Stored*>(column.table) + id * column.row_stride;
    tile::copy_chunk<T>(to, row + first * column.column_stride, column.column_stride,
                        left < kChunk<T> ? left : kChunk<T>, column.aligned);
  }
};

// The row of the weight for an element of depth, or -1.
template <class T>
ARGUS_DEVICE int weight_row(const CudaProblem& problem, int64_t element) {
  const int chunk = static_cast<int>(element / kChunk<T>);
  if (chunk >= problem.chunks) return -1;
  const CudaColumn& column = problem.columns[column_of(problem, chunk)];
  const int place = static_cast<int>(element) - column.first_chunk * kChunk<T>;
  return place < column.width ? column.offset + place : -1;
}

// Rows: depth. Chunks: those of the weight's columns.
template <class T>
struct Weight {
  const CudaProblem& problem;
  Matrix<T> matrix;

  ARGUS_DEVICE void copy(void* to, int64_t element, int chunk) const {
    const int row = weight_row<T>(problem, element);
    if (row < 0) return tile::clear_chunk(to);
    matrix.copy(to, row, chunk);
  }
};

template <class T>
ARGUS_DEVICE Matrix<T> matrix_of(const void* data, int64_t rows, int width) {
  const int64_t row_bytes = width * static_cast<int64_t>(sizeof(T));
  return {static_cast<const T*>(data), rows, width, width, tile::lies_on_chunks(data, row_bytes)};
}

template <class T>
ARGUS_DEVICE Weight<T> weight_of(const CudaProblem& problem) {
  int64_t rows = 0;
  for (int k = 0; k < problem.count; ++k) rows += problem.columns[k].width;
  return {problem, matrix_of<T>(problem.weight, rows, problem.width)};
}

}  // namespace argus::triple_embedding
