// Launches over blocks of queries in the backward pass, which its kernels on mma.sync and its loop on TMA and
// wgmma share.
#pragma once

#include "attention/cuda/query_gradient.cuh"

namespace argus::attention {

template <int kRows>
LaunchShape shape_of(const Packed& packed, int heads, Shape shape, size_t shared_bytes, int parts) {
  return {dim3(static_cast<unsigned>(block_count<kRows>(packed)), static_cast<unsigned>(heads),
               static_cast<unsigned>(parts)),
          dim3(static_cast<unsigned>(shape.threads)), shared_bytes};
}

// Of query_gradient_kernel.
template <class Mask, class T, int kWidth>
LaunchShape query_launch(const Backward& call) {
  using Query = QuerySmem<Mask, T, kWidth>;
  return shape_of<Query::kShape.rows>(queries_in(call.given), call.given.heads, Query::kShape,
                                      Query::bytes(call), kWidth / Query::kPart);
}

// After query_gradient_kernel.
template <class Weights, class Mask, class T, int kWidth>
void launch_table_sums(const char* op, const Backward& call, void* stream) {
  const Arguments& given = call.given;
  const unsigned pieces = static_cast<unsigned>((given.positions + given.times + kWarpSize - 1) / kWarpSize);
  const LaunchShape shape{dim3(pieces, static_cast<unsigned>(given.heads)), dim3(kSumWarps * kWarpSize)};
  launch(op, sum_tables_kernel<Weights>, shape, stream, call,
         block_count<QuerySmem<Mask, T, kWidth>::kShape.rows>(queries_in(given)));
}

}  // namespace argus::attention
