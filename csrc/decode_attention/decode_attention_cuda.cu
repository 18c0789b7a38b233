// Launches the decode_attention kernels.
#include <algorithm>

#include "common/cuda/stored_type.cuh"
#include "decode_attention/decode_attention.h"
#include "decode_attention/decode_attention_kernels.cuh"

namespace argus::decode_attention {
namespace {

constexpr const char* kOp = "decode_attention";

bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Whether every row is aligned to 16 bytes.
bool rows_are_aligned(const Params& params, int64_t element_bytes) {
  const auto whole = [&](int64_t elements) { return elements * element_bytes % 16 == 0; };
  return aligned(params.q) && aligned(params.k) && aligned(params.v) && aligned(params.key_pages) &&
         aligned(params.value_pages) && whole(params.width) && whole(params.key_page_stride) &&
         whole(params.key_slot_stride) && whole(params.value_page_stride) && whole(params.value_slot_stride);
}

template <class R>
void launch_rows(const Params& params, void* stream) {
  const int64_t chunks = cuda_chunks(params);
  const int64_t step = cuda_rows_at_once(params);
  for (int64_t first = 0; first < params.rows; first += step) {
    const int64_t pairs = std::min(step, params.rows - first) * params.heads;
    const dim3 block(kThreads);
    if (chunks > 0) {
      const dim3 grid(static_cast<unsigned>(pairs), static_cast<unsigned>(chunks));
      launch(kOp, chunk_kernel<R>, LaunchShape{grid, block}, stream, params, first);
    }
    launch(kOp, combine_kernel<Vectors<typename R::Element>>,
           LaunchShape{dim3(static_cast<unsigned>(pairs)), block}, stream, params, first, chunks);
  }
}

// Other widths, and rows that are not aligned, are padded to 64 or to kWidest.
template <class T>
void launch_typed(const Params& params, void* stream) {
  if (rows_are_aligned(params, sizeof(T))) {
    switch (params.width) {
      case 32:
        return launch_rows<Row<T, 32, true>>(params, stream);
      case 64:
        return launch_rows<Row<T, 64, true>>(params, stream);
      case 128:
        return launch_rows<Row<T, 128, true>>(params, stream);
      case 256:
        return launch_rows<Row<T, 256, true>>(params, stream);
      default:
        break;
    }
  }
  if (params.width <= 64) return launch_rows<Row<T, 64, false>>(params, stream);
  launch_rows<Row<T, kWidest, false>>(params, stream);
}

// The new events are written first: other rows are to read their codes.
void launch_int8(Params params, void* stream) {
  const int64_t blocks = params.rows * params.kv_heads;
  if (params.k != nullptr)
    launch(kOp, append_int8_kernel, LaunchShape{dim3(static_cast<unsigned>(blocks)), dim3(kWarpSize)}, stream,
           params);
  params.k = params.v = nullptr;
  if (rows_are_aligned(params, 1)) {
    switch (params.width) {
      case 64:
        return launch_rows<Row<int8_t, 64, true>>(params, stream);
      case 128:
        return launch_rows<Row<int8_t, 128, true>>(params, stream);
      case 256:
        return launch_rows<Row<int8_t, 256, true>>(params, stream);
      default:
        break;
    }
  }
  if (params.width <= 64) return launch_rows<Row<int8_t, 64, false>>(params, stream);
  launch_rows<Row<int8_t, kWidest, false>>(params, stream);
}

}  // namespace

void launch_cuda(const Params& params, void* stream) {
  if (params.key_scales != nullptr) return launch_int8(params, stream);
  with_device_type(params.dtype, [&]<class T>() { launch_typed<T>(params, stream); });
}

}  // namespace argus::decode_attention
