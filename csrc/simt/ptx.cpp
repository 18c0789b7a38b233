#include "simt/ptx.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "simt/arithmetic.h"
#include "simt/memory.h"
#include "simt/numbers.h"

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

// Element `half` of a 32-bit register of two elements.
template <class T>
double narrow(uint32_t word, int half) {
  T value;
  value.bits = static_cast<uint16_t>(word >> (16 * half));
  return static_cast<double>(static_cast<float>(value));
}

// The device ignores the 13 low bits of a float32.
double tf32(uint32_t word) {
  return static_cast<double>(std::bit_cast<float>(word & 0xffffe000u));
}

template <int kDepth>
struct Operands {
  double a[16][kDepth], b[kDepth][8];
};

// Tensor cores align their summands to the largest one and truncate the rest (Fasi, Higham, Mikaitis,
// Pranesh: Numerical behavior of NVIDIA tensor cores, 2021, which found two or three bits more than here).
template <int kCount>
float truncated_sum(const double (&terms)[kCount]) {
  double largest = 0.0;
  for (const double term : terms) {
    if (!std::isfinite(term)) return static_cast<float>(std::accumulate(terms, terms + kCount, 0.0));
    largest = std::max(largest, std::abs(term));
  }
  if (largest == 0.0) return 0.0f;
  const int last_bit = std::max(std::ilogb(largest) - 23, -149);
  double sum = 0.0;
  for (const double term : terms) sum += std::trunc(std::ldexp(term, -last_bit));
  // Rounds an integer of at most 2^24 · 17 to float32, toward zero.
  const float rounded = static_cast<float>(std::ldexp(sum, last_bit));
  const bool too_large = std::abs(static_cast<double>(rounded)) > std::abs(std::ldexp(sum, last_bit));
  return too_large ? std::nextafterf(rounded, 0.0f) : rounded;
}

template <int kDepth>
float sum_of_products(float d, const Operands<kDepth>& operands, int row, int column) {
  double terms[kDepth + 1] = {static_cast<double>(d)};
  for (int k = 0; k < kDepth; ++k) terms[k + 1] = operands.a[row][k] * operands.b[k][column];
  if (arithmetic() == Arithmetic::pessimistic) return truncated_sum(terms);
  return static_cast<float>(std::accumulate(terms, terms + kDepth + 1, 0.0));
}

template <int kDepth>
void multiply(void* const* payloads, const Operands<kDepth>& operands) {
  for (int lane = 0; lane < kLanes; ++lane) {
    float* d = static_cast<const Product*>(payloads[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
      d[i] = sum_of_products(d[i], operands, row, column);
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
