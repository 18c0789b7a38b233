// What the twins make of matrix descriptors and tensor maps, for the tests that compute the same another way.
#include <algorithm>
#include <array>
#include <cstring>
#include <exception>

#include "simt/tma.h"
#include "simt/wgmma.h"

#define ARGUS_EXPORT extern "C" __attribute__((visibility("default")))

namespace simt = argus::simt;

// start, leading, stride, base offset and swizzle, in bytes.
ARGUS_EXPORT void sm90_descriptor(uint64_t bits, uint32_t* fields) {
  const simt::MatrixDescriptor made = simt::decode_descriptor(bits);
  const uint32_t all[] = {made.start, made.leading, made.stride, made.base_offset,
                          static_cast<uint32_t>(made.swizzle_bytes)};
  std::copy(std::begin(all), std::end(all), fields);
}

// The shared offset of each element of an operand [rows, depth].
ARGUS_EXPORT void sm90_operand(uint64_t bits, int mn_major, int element_bytes, int rows, int depth,
                               uint32_t* offsets) {
  const simt::MatrixDescriptor descriptor = simt::decode_descriptor(bits);
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < depth; ++k)
      *offsets++ = simt::operand_offset(descriptor, mn_major != 0, element_bytes, row, k);
  }
}

struct Map {
  uint64_t base;
  int32_t element_bytes, rank, swizzle_bytes;
  uint64_t extents[5], strides[4];
  uint32_t box[5], element_strides[5];
};

// For each byte of the box's shared memory the global address that it comes from, 0 outside the tensor; the
// driver's refusal, if it is one, in `report`.
ARGUS_EXPORT void sm90_box(const Map* asked, const int32_t* coordinates, uint32_t shared, uint64_t* sources,
                           char* report, size_t report_bytes) {
  simt::TensorMapRequest request{};
  request.base = reinterpret_cast<const void*>(asked->base);
  request.element_bytes = asked->element_bytes;
  request.rank = asked->rank;
  request.swizzle_bytes = asked->swizzle_bytes;
  std::copy_n(asked->extents, 5, request.extents.begin());
  std::copy_n(asked->strides, 4, request.strides.begin());
  std::copy_n(asked->box, 5, request.box.begin());
  std::copy_n(asked->element_strides, 5, request.element_strides.begin());
  report[0] = '\0';
  try {
    for (const simt::TileRun& run : simt::tile_runs(simt::encode_tensor_map(request), coordinates, shared)) {
      for (uint32_t i = 0; i < run.bytes; ++i)
        sources[run.shared + i - shared] = run.inside ? run.global + i : 0;
    }
  } catch (const std::exception& error) {
    std::strncpy(report, error.what(), report_bytes - 1);
    report[report_bytes - 1] = '\0';
  }
}
