#include "simt/ptx.h"

#include <cstring>

#include "simt/memory.h"
#include "simt/numbers.h"
#include "simt/tensor_core.h"

namespace argus::simt {
namespace {

constexpr unsigned kAll = 0xffffffffu;

struct Matrices {
  uint32_t* result;
  const unsigned char* row;
  int count;
  bool transposed;
};

const Matrices& matrices_of(void* const* payloads, int lane) {
  return *static_cast<const Matrices*>(payloads[lane]);
}

// Each access is checked on behalf of the lane that receives the data.
uint16_t element(void* const* payloads, int first_thread, int lane, int matrix, int row, int column) {
  const unsigned char* address = matrices_of(payloads, 8 * matrix + row).row + 2 * column;
  access_by(first_thread + lane, address, 2, Kind::read);
  uint16_t bits;
  std::memcpy(&bits, address, 2);
  return bits;
}

void combine_matrices(void* const* payloads, unsigned) {
  const int first_thread = current_thread() / kLanes * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Matrices& own = matrices_of(payloads, lane);
    if (lane < 8 * own.count) require_shared("ldmatrix", own.row, 16);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const Matrices& own = matrices_of(payloads, lane);
    for (int matrix = 0; matrix < own.count; ++matrix) {
      const int major = lane / 4, minor = lane % 4 * 2;
      uint32_t word = 0;
      for (int half = 0; half < 2; ++half) {
        const int row = own.transposed ? minor + half : major, column = own.transposed ? major : minor + half;
        word |= static_cast<uint32_t>(element(payloads, first_thread, lane, matrix, row, column))
                << (16 * half);
      }
      own.result[matrix] = word;
    }
  }
}

struct Product {
  float* d;
  const uint32_t *a, *b;
};

template <int kDepth>
struct Operands {
  double a[16][kDepth], b[kDepth][8];
};

template <int kDepth>
void multiply(void* const* payloads, const Operands<kDepth>& operands) {
  for (int lane = 0; lane < kLanes; ++lane) {
    float* d = static_cast<const Product*>(payloads[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
      d[i] = sum_of_products<kDepth>(d[i], operands.a[row], &operands.b[0][column], 8);
    }
  }
}

template <class T>
void combine_m16n8k16(void* const* payloads, unsigned) {
  Operands<16> operands;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Product& own = *static_cast<const Product*>(payloads[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      operands.a[group][pair + half] = narrow<T>(own.a[0], half);
      operands.a[group + 8][pair + half] = narrow<T>(own.a[1], half);
      operands.a[group][pair + 8 + half] = narrow<T>(own.a[2], half);
      operands.a[group + 8][pair + 8 + half] = narrow<T>(own.a[3], half);
      operands.b[pair + half][group] = narrow<T>(own.b[0], half);
      operands.b[pair + 8 + half][group] = narrow<T>(own.b[1], half);
    }
  }
  multiply(payloads, operands);
}

void combine_m16n8k8_tf32(void* const* payloads, unsigned) {
  Operands<8> operands;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Product& own = *static_cast<const Product*>(payloads[lane]);
    const int group = lane / 4, column = lane % 4;
    operands.a[group][column] = tf32(own.a[0]);
    operands.a[group + 8][column] = tf32(own.a[1]);
    operands.a[group][column + 4] = tf32(own.a[2]);
    operands.a[group + 8][column + 4] = tf32(own.a[3]);
    operands.b[column][group] = tf32(own.b[0]);
    operands.b[column + 4][group] = tf32(own.b[1]);
  }
  multiply(payloads, operands);
}

}  // namespace

void load_matrices(const char* name, uint32_t* result, int matrices, const void* row, bool transposed,
                   Site site) {
  Matrices own{result, static_cast<const unsigned char*>(row), matrices, transposed};
  warp_collective(name, kAll, &own, combine_matrices, false, site);
}

void multiply_f16(float* d, const uint32_t* a, const uint32_t* b, Site site) {
  Product own{d, a, b};
  warp_collective("mma.m16n8k16.f16", kAll, &own, combine_m16n8k16<__half>, false, site);
}

void multiply_bf16(float* d, const uint32_t* a, const uint32_t* b, Site site) {
  Product own{d, a, b};
  warp_collective("mma.m16n8k16.bf16", kAll, &own, combine_m16n8k16<__nv_bfloat16>, false, site);
}

void multiply_tf32(float* d, const uint32_t* a, const uint32_t* b, Site site) {
  Product own{d, a, b};
  warp_collective("mma.m16n8k8.tf32", kAll, &own, combine_m16n8k8_tf32, false, site);
}

}  // namespace argus::simt
