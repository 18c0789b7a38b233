// The language: indices, barriers with votes, shuffles, votes, reductions, atomics, narrow numbers.
#include "cases.h"
#include "common/cuda/reduce.cuh"

namespace {

using argus::kFullWarp;
using argus::launch;
using argus::LaunchShape;
using cases::Buffer;
using cases::expect;

__global__ void indices(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] = static_cast<int>(100 * blockIdx.z + 10 * threadIdx.y + threadIdx.z);
}

ARGUS_CASE(indices_in_three_dimensions) {
  Buffer<int> out("out", 24 * 30, -1);
  launch("indices", indices, LaunchShape{dim3(2, 3, 4), dim3(5, 3, 2)}, nullptr, out.get());
  const auto& result = out.result();
  for (int i = 0; i < 24 * 30; ++i) {
    expect("out", static_cast<size_t>(i), result[static_cast<size_t>(i)],
           100 * (i / 30 / 6) + 10 * (i % 30 / 5 % 3) + i % 30 / 15);
  }
}

__global__ void barrier_votes(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  const int count = __syncthreads_count(t % 3 == 0);
  const int all = __syncthreads_and(t < 70) + 2 * __syncthreads_and(t < 69);
  const int some = __syncthreads_or(t == 69) + 2 * __syncthreads_or(t == 70);
  out[t] = count + 100 * all + 1000 * some;
}

ARGUS_CASE(votes_of_a_block) {
  Buffer<int> out("out", 70);
  launch("barrier_votes", barrier_votes, LaunchShape{dim3(1), dim3(70)}, nullptr, out.get());
  for (size_t i = 0; i < 70; ++i) expect("out", i, out.result()[i], 24 + 100 + 1000);
}

template <class T>
__global__ void shuffles(T* out, int width) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T own = static_cast<T>(static_cast<float>(lane));
  T* row = out + 4 * threadIdx.x;
  row[0] = __shfl_sync(kFullWarp, own, 5, width);
  row[1] = __shfl_up_sync(kFullWarp, own, 3u, width);
  row[2] = __shfl_down_sync(kFullWarp, own, 3u, width);
  row[3] = __shfl_xor_sync(kFullWarp, own, 6, width);
}

template <class T>
void run_shuffles() {
  for (const int width : {4, 8, 16, 32}) {
    Buffer<T> out("out", 4 * 64);
    launch("shuffles", shuffles<T>, LaunchShape{dim3(1), dim3(64)}, nullptr, out.get(), width);
    const auto& result = out.result();
    for (size_t i = 0; i < 64; ++i) {
      const int lane = static_cast<int>(i) % 32, begin = lane / width * width, end = begin + width;
      const int flipped = lane ^ 6;
      const int expected[4] = {begin + 5 % width, lane - 3 >= begin ? lane - 3 : lane,
                               lane + 3 < end ? lane + 3 : lane, flipped < end ? flipped : lane};
      for (size_t kind = 0; kind < 4; ++kind) {
        expect("out", 4 * i + kind, static_cast<float>(result[4 * i + kind]),
               static_cast<float>(expected[kind]));
      }
    }
  }
}
ARGUS_CASE(shuffles_of_float) {
  run_shuffles<float>();
}
ARGUS_CASE(shuffles_of_double) {
  run_shuffles<double>();
}
ARGUS_CASE(shuffles_of_int64) {
  run_shuffles<long long>();
}
ARGUS_CASE(shuffles_of_bfloat16) {
  run_shuffles<__nv_bfloat16>();
}
ARGUS_CASE(shuffles_of_half) {
  run_shuffles<__half>();
}

__global__ void votes(unsigned* out) {
  const int lane = static_cast<int>(threadIdx.x);
  unsigned* row = out + 8 * threadIdx.x;
  row[0] = __ballot_sync(kFullWarp, lane % 5 == 0);
  row[1] = static_cast<unsigned>(__any_sync(kFullWarp, lane == 31) + 2 * __any_sync(kFullWarp, lane == 32));
  row[2] = static_cast<unsigned>(__all_sync(kFullWarp, lane < 32) + 2 * __all_sync(kFullWarp, lane < 31));
  row[3] = __match_any_sync(kFullWarp, lane / 16);
  row[4] = __reduce_add_sync(kFullWarp, static_cast<unsigned>(lane));
  row[5] = static_cast<unsigned>(__reduce_min_sync(kFullWarp, 7 - lane) + 100);
  row[6] = static_cast<unsigned>(__reduce_max_sync(kFullWarp, lane - 40) + 100);
  if (lane % 2 == 1) {
    row[7] = __ballot_sync(0xaaaaaaaau, lane < 8);
  } else {
    row[7] = __ballot_sync(0x55555555u, lane < 4);
  }
}

ARGUS_CASE(votes_of_a_warp) {
  Buffer<unsigned> out("out", 8 * 32);
  launch("votes", votes, LaunchShape{dim3(1), dim3(32)}, nullptr, out.get());
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned expected[8] = {0x42108421u, 1u,  1u,  lane < 16 ? 0xffffu : 0xffff0000u,
                                  496u,        76u, 91u, lane % 2 == 1 ? 0xaau : 0x5u};
    for (size_t i = 0; i < 8; ++i) expect("out", 8 * lane + i, out.result()[8 * lane + i], expected[i]);
  }
}

__global__ void sums(const float* in, float* out) {
  const float first = argus::block_sum(in[threadIdx.x]);
  const float second = argus::block_sum(1.0f);
  out[threadIdx.x] = first + second / 1024.0f + argus::warp_max(static_cast<float>(threadIdx.x));
}

ARGUS_CASE(sums_of_a_block) {
  Buffer<float> in("in", cases::counted(96)), out("out", 96);
  launch("sums", sums, LaunchShape{dim3(1), dim3(96)}, nullptr, in.get(), out.get());
  for (size_t i = 0; i < 96; ++i) {
    const float greatest = static_cast<float>(i / 32 * 32 + 31);
    expect("out", i, out.result()[i], 4560.0f + 96.0f / 1024.0f + greatest);
  }
}

struct Totals {
  int sum;
  unsigned greatest, least, bits;
  unsigned long long wide;
  float real;
  double precise;
  unsigned last, swapped;
};

__global__ void atomics(Totals* totals) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&totals->sum, static_cast<int>(i) - 10);
  atomicMax(&totals->greatest, i);
  atomicMin(&totals->least, i + 5);
  atomicOr(&totals->bits, 1u << (i % 32));
  atomicAdd(&totals->wide, (1ull << 33) + i);
  atomicAdd(&totals->real, 0.5f);
  atomicAdd(&totals->precise, 0.25);
  atomicExch(&totals->last, i);
  unsigned seen = atomicAdd(&totals->swapped, 0u), before;
  do {
    before = seen;
    seen = atomicCAS(&totals->swapped, before, before + 2);
  } while (seen != before);
}

ARGUS_CASE(atomics_of_every_type) {
  Buffer<Totals> out("totals", 1, Totals{0, 0, 1000, 0, 0, 0.0f, 0.0, 1000, 0});
  launch("atomics", atomics, LaunchShape{dim3(3), dim3(64)}, nullptr, out.get());
  const Totals& result = out.result()[0];
  expect("sum", 0, result.sum, 191 * 96 - 1920);
  expect("greatest", 0, result.greatest, 191u);
  expect("least", 0, result.least, 5u);
  expect("bits", 0, result.bits, 0xffffffffu);
  expect("wide", 0, result.wide, 192ull * (1ull << 33) + 191 * 96);
  expect("real", 0, result.real, 96.0f);
  expect("precise", 0, result.precise, 48.0);
  expect("last", 0, result.last < 192u, true);
  expect("swapped", 0, result.swapped, 384u);
}

__constant__ float kWeights[4] = {1.0f, 10.0f, 100.0f, 1000.0f};

__global__ void weigh(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x] * kWeights[threadIdx.x % 4];
}

ARGUS_CASE(constants) {
  Buffer<float> in("in", cases::counted(32)), out("out", 32);
  launch("weigh", weigh, LaunchShape{dim3(1), dim3(32)}, nullptr, in.get(), out.get());
  expect("out", 7, out.result()[7], 7000.0f);
}

__global__ void arrivals(unsigned* next, unsigned* order) {
  order[atomicAdd(next, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
}

ARGUS_CASE(order_is_drawn_from_the_seed) {
  std::vector<std::vector<unsigned>> seen;
  for (const uint64_t seed : {1, 2, 1}) {
    Buffer<unsigned> next("next", 1), order("order", 128);
    argus::simt::set_seed(seed);
    launch("arrivals", arrivals, LaunchShape{dim3(4), dim3(32)}, nullptr, next.get(), order.get());
    seen.push_back(order.result());
  }
  expect("same order for the same seed", 0, seen[0] == seen[2], true);
  expect("same order for another seed", 0, seen[0] == seen[1], false);
  size_t in_place = 0;
  for (unsigned i = 0; i < 128; ++i) in_place += seen[0][i] == i ? 1 : 0;
  expect("an order close to 0, 1, 2 …", 0, in_place < 16, true);
}

__global__ void narrow(const float* in, unsigned short* bfloat16, unsigned short* half, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    __nv_bfloat16 b;
    __half h;
    argus::from_float(b, in[i]);
    argus::from_float(h, in[i]);
    bfloat16[i] = b.bits;
    half[i] = h.bits;
  }
}

}  // namespace

// Rounds `count` numbers to bfloat16 and half in a kernel, for a comparison in Python.
extern "C" __attribute__((visibility("default"))) void round_numbers(const float* in, uint16_t* bfloat16,
                                                                     uint16_t* half, int count) {
  const size_t n = static_cast<size_t>(count);
  const argus::simt::DeviceBuffer from("in", in, n * 4);
  const argus::simt::DeviceBuffer b("bfloat16", static_cast<void*>(bfloat16), n * 2);
  const argus::simt::DeviceBuffer h("half", static_cast<void*>(half), n * 2);
  launch("narrow", narrow, LaunchShape{dim3(1), dim3(128)}, nullptr, from.as<float>(), b.as<unsigned short>(),
         h.as<unsigned short>(), count);
  b.copy_back();
  h.copy_back();
}
