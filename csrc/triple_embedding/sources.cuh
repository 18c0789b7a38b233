// What the tiles of triple_embedding's products are filled from: gathered rows, the weight, the gradient.
// Each copies one 16-byte chunk of itself into shared memory, with zeros for what is not there.
#pragma once

#include "triple_embedding/tile_product.cuh"
#include "triple_embedding/triple_embedding_cuda.h"

namespace argus::triple_embedding {

ARGUS_DEVICE void clear_chunk(void* to) {
  *static_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
}

// Elements 0, step, … of `from`, `valid` of them (at least 1), as elements of T.
template <class T, class Stored>
ARGUS_DEVICE void copy_chunk(void* to, const Stored* from, int64_t step, int valid, bool aligned) {
  if constexpr (std::is_same_v<T, Stored>) {
    if (aligned) {
      ptx::cp_async<kChunkBytes>(to, from, valid * static_cast<int>(sizeof(T)));
      return;
    }
  }
  T* chunk = static_cast<T*>(to);
  if (sizeof(Stored) > sizeof(T) && aligned && valid == kChunk<T>) {
    // Wide rows under a narrow weight: whole accesses, rounded on the way.
    const float4* four = reinterpret_cast<const float4*>(from);
#pragma unroll
    for (int i = 0; i < kChunk<T>; i += 4) {
      const float4 x = four[i / 4];
      from_float(chunk[i], x.x), from_float(chunk[i + 1], x.y);
      from_float(chunk[i + 2], x.z), from_float(chunk[i + 3], x.w);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kChunk<T>; ++i) from_float(chunk[i], i < valid ? to_float(from[i * step]) : 0.0f);
}

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
    if (event >= end || chunk >= problem.chunks) return clear_chunk(to);
    const int k = column_of(problem, chunk);
    const CudaColumn& column = problem.columns[k];
    const int64_t id = problem.ids[k * problem.events + event];
    if (id < 0 || id >= column.rows) return clear_chunk(to);
    const int first = (chunk - column.first_chunk) * kChunk<T>, left = column.width - first;
    const Stored* row = static_cast<const Stored*>(column.table) + id * column.row_stride;
    copy_chunk<T>(to, row + first * column.column_stride, column.column_stride,
                  left < kChunk<T> ? left : kChunk<T>, column.aligned);
  }
};

// A dense matrix. Rows and chunks are its own.
template <class T>
struct Matrix {
  const T* data;
  int64_t rows;
  int width;
  bool aligned;

  ARGUS_DEVICE void copy(void* to, int64_t row, int chunk) const {
    const int left = width - chunk * kChunk<T>;
    if (row >= rows || left <= 0) return clear_chunk(to);
    copy_chunk<T>(to, data + row * width + chunk * kChunk<T>, 1, left < kChunk<T> ? left : kChunk<T>,
                  aligned);
  }
};

// The weight's row of an element of depth, or -1.
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
    if (row < 0) return clear_chunk(to);
    matrix.copy(to, row, chunk);
  }
};

ARGUS_DEVICE bool lies_on_chunks(const void* data, int64_t row_bytes) {
  return (reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(row_bytes)) % kChunkBytes == 0;
}

template <class T>
ARGUS_DEVICE Matrix<T> matrix_of(const void* data, int64_t rows, int width) {
  return {static_cast<const T*>(data), rows, width,
          lies_on_chunks(data, width * static_cast<int64_t>(sizeof(T)))};
}

template <class T>
ARGUS_DEVICE Weight<T> weight_of(const CudaProblem& problem) {
  int64_t rows = 0;
  for (int k = 0; k < problem.count; ++k) rows += problem.columns[k].width;
  return {problem, matrix_of<T>(problem.weight, rows, problem.width)};
}

}  // namespace argus::triple_embedding
