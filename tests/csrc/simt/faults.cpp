// Kernels with a planted fault each, beside the same kernel without it.
#include "cases.h"
#include "common/cuda/ptx.cuh"

namespace {

using argus::launch;
using argus::LaunchShape;
using cases::Buffer;
using cases::counted;
using cases::expect;

template <bool kBarrier>
__global__ void reverse(const float* in, float* out) {
  ARGUS_SHARED(float, tile, [64]);
  const int t = static_cast<int>(threadIdx.x), base = static_cast<int>(blockIdx.x) * 64;
  tile[t] = in[base + t];
  if constexpr (kBarrier) __syncthreads();
  out[base + t] = tile[63 - t];
}

template <bool kBarrier>
void run_reverse() {
  Buffer<float> in("in", counted(128)), out("out", 128);
  launch("reverse", reverse<kBarrier>, LaunchShape{dim3(2), dim3(64)}, nullptr, in.get(), out.get());
  const auto& result = out.result();
  for (size_t i = 0; i < 128; ++i) expect("out", i, result[i], in.host[i / 64 * 64 + 63 - i % 64]);
}
ARGUS_CASE(barrier) {
  run_reverse<true>();
}
ARGUS_CASE(fault_missing_barrier) {
  run_reverse<false>();
}

__global__ void shift(const float* in, float* out, int distance) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  out[i] = in[i + distance];
}

void run_shift(int distance, size_t outputs = 64) {
  Buffer<float> in("in", counted(64)), out("out", outputs);
  launch("shift", shift, LaunchShape{dim3(2), dim3(32)}, nullptr, in.get(), out.get(), distance);
}
ARGUS_CASE(global_read) {
  run_shift(0);
}
ARGUS_CASE(fault_global_read_past_the_end) {
  run_shift(1);
}
ARGUS_CASE(fault_global_read_before_the_beginning) {
  run_shift(-1);
}
ARGUS_CASE(fault_global_read_far_away) {
  run_shift(1 << 26);
}
ARGUS_CASE(fault_global_write_past_the_end) {
  run_shift(0, 63);
}

__global__ void dereference(float* out, const float* host) {
  out[threadIdx.x] = host[0];
}

ARGUS_CASE(fault_host_pointer) {
  const std::vector<float> host(1);
  Buffer<float> out("out", 32);
  launch("dereference", dereference, LaunchShape{dim3(1), dim3(32)}, nullptr, out.get(), host.data());
}

ARGUS_CASE(fault_write_to_constant_input) {
  const std::vector<float> host = counted(64);
  const argus::simt::DeviceBuffer in("in", host.data(), host.size() * sizeof(float));
  launch("shift", shift, LaunchShape{dim3(2), dim3(32)}, nullptr, in.as<float>(), in.as<float>(), 0);
}

template <int kReach>
__global__ void neighbour(float* out) {
  ARGUS_SHARED(float, tile, [32]);
  ARGUS_SHARED(float, other, [32]);
  const int t = static_cast<int>(threadIdx.x);
  float* const all = tile;
  all[t] = static_cast<float>(t);
  other[t] = 0.0f;
  __syncthreads();
  out[t] = all[t + kReach - 1] + other[t];
}

template <int kReach>
void run_neighbour() {
  Buffer<float> out("out", 32);
  launch("neighbour", neighbour<kReach>, LaunchShape{dim3(1), dim3(32)}, nullptr, out.get());
}
ARGUS_CASE(shared_read) {
  run_neighbour<1>();
}
ARGUS_CASE(fault_shared_read_past_the_end) {
  run_neighbour<2>();
}
ARGUS_CASE(fault_shared_read_before_the_beginning) {
  run_neighbour<0>();
}

template <int kLimit>
__global__ void early_exit(float* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (blockIdx.x == 1 && t >= kLimit) return;
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = 1.0f;
}

template <int kLimit>
void run_early_exit() {
  Buffer<float> out("out", 128);
  launch("early_exit", early_exit<kLimit>, LaunchShape{dim3(2), dim3(64)}, nullptr, out.get());
}
ARGUS_CASE(barrier_of_all) {
  run_early_exit<64>();
}
ARGUS_CASE(fault_barrier_without_exited_threads) {
  run_early_exit<48>();
}

__global__ void two_barriers(int limit) {
  if (static_cast<int>(threadIdx.x) < limit) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

ARGUS_CASE(one_barrier) {
  launch("two_barriers", two_barriers, LaunchShape{dim3(1), dim3(64)}, nullptr, 64);
}
ARGUS_CASE(fault_two_barriers) {
  launch("two_barriers", two_barriers, LaunchShape{dim3(1), dim3(64)}, nullptr, 16);
}

template <unsigned kMask>
__global__ void half_warp_sum(int* out) {
  int sum = static_cast<int>(threadIdx.x);
  if (threadIdx.x < 16) {
    for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(kMask, sum, distance);
  }
  out[threadIdx.x] = sum;
}

template <unsigned kMask>
void run_half_warp_sum() {
  Buffer<int> out("out", 32);
  launch("half_warp_sum", half_warp_sum<kMask>, LaunchShape{dim3(1), dim3(32)}, nullptr, out.get());
  expect("out", 3, out.result()[3], 120);
}
ARGUS_CASE(shuffle_of_half_a_warp) {
  run_half_warp_sum<0xffffu>();
}
ARGUS_CASE(fault_shuffle_without_half_the_warp) {
  run_half_warp_sum<0xffffffffu>();
}
ARGUS_CASE(fault_shuffle_without_itself) {
  run_half_warp_sum<0xff00u>();
}

template <bool kAtomic>
__global__ void histogram(const int* bins, int* counts) {
  ARGUS_SHARED(int, local, [4]);
  const int t = static_cast<int>(threadIdx.x);
  if (t < 4) local[t] = 0;
  __syncthreads();
  if constexpr (kAtomic) {
    atomicAdd(&local[bins[t]], 1);
  } else {
    local[bins[t]] += 1;
  }
  __syncthreads();
  if (t < 4) atomicAdd(&counts[t], local[t]);
}

template <bool kAtomic>
void run_histogram() {
  std::vector<int> drawn(64);
  for (size_t i = 0; i < drawn.size(); ++i) drawn[i] = static_cast<int>(i * i % 3);
  Buffer<int> bins("bins", drawn), counts("counts", 4);
  launch("histogram", histogram<kAtomic>, LaunchShape{dim3(3), dim3(64)}, nullptr, bins.get(), counts.get());
  const auto& result = counts.result();
  expect("counts", 0, result[0], 3 * 22);
  expect("counts", 1, result[1], 3 * 42);
}
ARGUS_CASE(shared_atomics) {
  run_histogram<true>();
}
ARGUS_CASE(fault_shared_race) {
  run_histogram<false>();
}

template <bool kOwn>
__global__ void mark(int* out) {
  out[kOwn ? blockIdx.x * blockDim.x + threadIdx.x : threadIdx.x] = 1;
}

template <bool kOwn>
void run_mark() {
  Buffer<int> out("out", 64);
  launch("mark", mark<kOwn>, LaunchShape{dim3(2), dim3(32)}, nullptr, out.get());
}
ARGUS_CASE(blocks_apart) {
  run_mark<true>();
}
ARGUS_CASE(fault_race_between_blocks) {
  run_mark<false>();
}

template <bool kSet>
__global__ void wait_for_flag(unsigned* flag) {
  if (kSet && threadIdx.x == 0) atomicExch(flag, 1u);
  __syncthreads();
  while (atomicAdd(flag, 0u) == 0u) {
  }
}

template <bool kSet>
void run_wait_for_flag() {
  Buffer<unsigned> flag("flag", 1);
  launch("wait_for_flag", wait_for_flag<kSet>, LaunchShape{dim3(1), dim3(32)}, nullptr, flag.get());
}
ARGUS_CASE(flag) {
  run_wait_for_flag<true>();
}
ARGUS_CASE(fault_spinning) {
  run_wait_for_flag<false>();
}

template <bool kOrdered>
__global__ void through_shared(float* out) {
  ARGUS_SHARED(float, tile, [64]);
  const int t = static_cast<int>(threadIdx.x);
  tile[t] = static_cast<float>(t);
  if constexpr (kOrdered) __syncwarp();
  out[t] = tile[t ^ 1];
}

template <bool kOrdered>
void run_through_shared() {
  Buffer<float> out("out", 64);
  launch("through_shared", through_shared<kOrdered>, LaunchShape{dim3(1), dim3(64)}, nullptr, out.get());
  expect("out", 6, out.result()[6], 7.0f);
}
ARGUS_CASE(warp_barrier) {
  run_through_shared<true>();
}
ARGUS_CASE(fault_missing_warp_barrier) {
  run_through_shared<false>();
}

enum class Copy { right, no_wait, no_barrier, too_short_wait, misaligned };

template <Copy kCopy>
__global__ void staged(const float* in, float* out) {
  ARGUS_SHARED(float, stages, [2][128]);
  const int t = static_cast<int>(threadIdx.x), offset = kCopy == Copy::misaligned ? 1 : 0;
  argus::ptx::cp_async<16>(&stages[0][4 * t], in + 4 * t + offset);
  argus::ptx::cp_async_commit();
  for (int stage = 0; stage < 2; ++stage) {
    if (stage == 0) argus::ptx::cp_async<16>(&stages[1][4 * t], in + 128 + 4 * t, t < 31 ? 16 : 0);
    argus::ptx::cp_async_commit();
    if constexpr (kCopy == Copy::too_short_wait) {
      argus::ptx::cp_async_wait<2>();
    } else if constexpr (kCopy != Copy::no_wait) {
      argus::ptx::cp_async_wait<1>();
    }
    if constexpr (kCopy != Copy::no_barrier) __syncthreads();
    for (int i = 0; i < 4; ++i) out[128 * stage + 32 * i + t] = stages[stage][127 - (32 * i + t)];
  }
}

template <Copy kCopy>
void run_staged() {
  Buffer<float> in("in", counted(256)), out("out", 256);
  launch("staged", staged<kCopy>, LaunchShape{dim3(1), dim3(32)}, nullptr, in.get(), out.get());
  const auto& result = out.result();
  for (size_t i = 0; i < 128; ++i) {
    expect("out", i, result[i], static_cast<float>(127 - i));
    expect("out", 128 + i, result[128 + i], i < 4 ? 0.0f : static_cast<float>(255 - i));
  }
}
ARGUS_CASE(async_copy) {
  run_staged<Copy::right>();
}
ARGUS_CASE(fault_async_copy_without_wait) {
  run_staged<Copy::no_wait>();
}
ARGUS_CASE(fault_async_copy_with_too_short_a_wait) {
  run_staged<Copy::too_short_wait>();
}
ARGUS_CASE(fault_async_copy_without_barrier) {
  run_staged<Copy::no_barrier>();
}
ARGUS_CASE(fault_async_copy_misaligned) {
  run_staged<Copy::misaligned>();
}

__global__ void load_four(const float* in, float* out, int offset) {
  const float4 four = *reinterpret_cast<const float4*>(in + 4 * threadIdx.x + offset);
  out[threadIdx.x] = four.x + four.y + four.z + four.w;
}

void run_load_four(int offset) {
  Buffer<float> in("in", counted(132)), out("out", 32);
  launch("load_four", load_four, LaunchShape{dim3(1), dim3(32)}, nullptr, in.get(), out.get(), offset);
  expect("out", 1, out.result()[1], 22.0f + 4.0f * static_cast<float>(offset));
}
ARGUS_CASE(vector_load) {
  run_load_four(4);
}
ARGUS_CASE(fault_misaligned_vector_load) {
  run_load_four(1);
}

__global__ void in_registers(float* out, int last) {
  float held[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  float sum = 0.0f;
  for (int i = 0; i <= last; ++i) sum += held[i];
  out[threadIdx.x] = sum;
}

ARGUS_CASE(index_in_registers) {
  Buffer<float> out("out", 32);
  launch("in_registers", in_registers, LaunchShape{dim3(1), dim3(32)}, nullptr, out.get(), 3);
}
ARGUS_CASE(fault_index_in_registers) {
  Buffer<float> out("out", 32);
  launch("in_registers", in_registers, LaunchShape{dim3(1), dim3(32)}, nullptr, out.get(), 4);
}

__global__ void multiply_ints(int* out, int factor) {
  out[threadIdx.x] = static_cast<int>(threadIdx.x) * factor;
}

ARGUS_CASE(fault_integer_overflow) {
  Buffer<int> out("out", 32);
  launch("multiply_ints", multiply_ints, LaunchShape{dim3(1), dim3(32)}, nullptr, out.get(), 1 << 27);
}

template <bool kWritten>
__global__ void take_shared(float* out) {
  ARGUS_DYNAMIC_SHARED(float, buffer);
  const int t = static_cast<int>(threadIdx.x);
  if (kWritten || t != 9) buffer[t] = static_cast<float>(t);
  out[t] = buffer[t];
}

template <bool kWritten = true>
void run_take_shared(size_t bytes) {
  Buffer<float> out("out", 32);
  launch("take_shared", take_shared<kWritten>, LaunchShape{dim3(1), dim3(32), bytes}, nullptr, out.get());
}
ARGUS_CASE(dynamic_shared_memory) {
  run_take_shared(128);
}
ARGUS_CASE(fault_shared_memory_that_nothing_wrote) {
  run_take_shared<false>(128);
}
ARGUS_CASE(fault_too_little_dynamic_shared_memory) {
  run_take_shared(124);
}
ARGUS_CASE(fault_no_dynamic_shared_memory) {
  run_take_shared(0);
}
ARGUS_CASE(fault_too_much_shared_memory) {
  run_take_shared((227 << 10) + 4);
}

__global__ void accumulate(float* sums) {
  sums[threadIdx.x] += 1.0f;
}

void run_accumulate(argus::simt::Contents contents) {
  std::vector<float> host(32, 2.0f);
  const argus::simt::DeviceBuffer sums("sums", host.data(), 128, contents);
  launch("accumulate", accumulate, LaunchShape{dim3(1), dim3(32)}, nullptr, sums.as<float>());
  sums.copy_back();
  for (size_t i = 0; i < 32; ++i) expect("sums", i, host[i], 3.0f);
}
ARGUS_CASE(memory_changed_in_place) {
  run_accumulate(argus::simt::Contents::given);
}
ARGUS_CASE(fault_fresh_memory_added_to) {
  run_accumulate(argus::simt::Contents::fresh);
}

}  // namespace
