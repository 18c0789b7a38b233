// The biases of a (query, key) pair on the GPU: position_bias[min(i − j, P − 1)] + time_bias[bucket(Δt)].
// Both tables of a head lie in shared memory, scaled by the same factor as the scores. If all pairs of a tile
// share their entries, a warp looks them up once per tile. That is the common case far from the diagonal,
// because buckets grow with the distance.
#pragma once

#include "attention/cuda/tiles.cuh"
#include "attention/time_edges.h"
#include "common/cuda/device.cuh"

namespace argus::attention {

// Constants of the device code: a table passed as an argument would first have to be copied to the GPU, and
// the host would wait for the copy.
static __constant__ uint64_t kTimeEdges[kTimeBuckets] = {ARGUS_TIME_EDGES};
constexpr int kLastEdge = kTimeBuckets;

struct Bias {
  const float* position;
  const float* time;
  const uint64_t* edges;  // [kTimeBuckets + 1]
  int last_position;      // −1 without a table
  int last_time;          // −1 without a table
};

// Buckets that no difference reaches need no shared memory.
ARGUS_HOST_DEVICE int used_times(const Arguments& given) {
  return given.time_bias == nullptr ? 0 : given.times < kTimeBuckets ? given.times : kTimeBuckets;
}
ARGUS_HOST_DEVICE int used_positions(const Arguments& given) {
  return given.position_bias == nullptr ? 0 : given.positions;
}

// Shared memory of the tables, in bytes, each part a multiple of 16.
struct BiasSmem {
  int position, time, edges, bytes;

  ARGUS_HOST_DEVICE explicit BiasSmem(const Arguments& given) {
    position = 0;
    time = position + (used_positions(given) * 4 + 15) / 16 * 16;
    edges = time + (used_times(given) * 4 + 15) / 16 * 16;
    bytes = edges + (given.time_bias == nullptr ? 0 : ((kTimeBuckets + 1) * 8 + 15) / 16 * 16);
  }
};

ARGUS_DEVICE Bias bias_in(const Arguments& given, unsigned char* room) {
  const BiasSmem places(given);
  return {reinterpret_cast<const float*>(room + places.position),
          reinterpret_cast<const float*>(room + places.time),
          reinterpret_cast<const uint64_t*>(room + places.edges), used_positions(given) - 1,
          used_times(given) - 1};
}

// Fills the shared memory with head's tables times `factor`; a barrier must follow.
template <int kThreads>
ARGUS_DEVICE Bias load_bias(const Arguments& given, int head, float factor, unsigned char* room) {
  const BiasSmem places(given);
  float* position = reinterpret_cast<float*>(room + places.position);
  float* time = reinterpret_cast<float*>(room + places.time);
  uint64_t* edges = reinterpret_cast<uint64_t*>(room + places.edges);
  const int thread = static_cast<int>(threadIdx.x);
  const int positions = used_positions(given), times = used_times(given);
  for (int i = thread; i < positions; i += kThreads)
    position[i] = floats(given.position_bias)[static_cast<int64_t>(head) * given.positions + i] * factor;
  for (int i = thread; i < times; i += kThreads)
    time[i] = floats(given.time_bias)[static_cast<int64_t>(head) * given.times + i] * factor;
  if (times > 0) {
    for (int i = thread; i < kTimeBuckets; i += kThreads) edges[i] = kTimeEdges[i];
    if (thread == 0) edges[kLastEdge] = ~uint64_t{0};
  }
  return bias_in(given, room);
}

ARGUS_DEVICE uint64_t time_distance(int64_t a, int64_t b) {
  const uint64_t x = static_cast<uint64_t>(a), y = static_cast<uint64_t>(b);
  return a > b ? x - y : y - x;
}

// A float32 logarithm, lowered a little, gives the bucket or the one below it; comparing with the integer
// edge decides.
ARGUS_DEVICE int time_bucket(const Bias& bias, uint64_t distance) {
  constexpr float kPerLogarithm = 1.0f / kTimeLogStep, kMargin = 1e-3f;
  const float logarithm = __logf(fmaxf(static_cast<float>(distance), 1.0f));
  // The estimate of a distance beyond int64 would pass the last edge.
  const int estimate = min(static_cast<int>(fmaxf(logarithm * kPerLogarithm - kMargin, 0.0f)), kLastEdge - 1);
  return min(estimate + (distance >= bias.edges[estimate + 1] ? 1 : 0), bias.last_time);
}

// The earliest and the latest time of the rows or of the columns.
struct TimeSpan {
  int64_t earliest, latest;
};

ARGUS_DEVICE int64_t shuffle_xor(int64_t x, int lanes) {
  return __shfl_xor_sync(kFullWarp, static_cast<long long>(x), lanes);
}

// The span of time[0 … count); every lane of the warp must call it.
ARGUS_DEVICE TimeSpan warp_time_span(const int64_t* time, int count) {
  TimeSpan span{time[0], time[0]};
  for (int i = lane_index(); i < count; i += kWarpSize) {
    span.earliest = min(span.earliest, time[i]);
    span.latest = max(span.latest, time[i]);
  }
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    span.earliest = min(span.earliest, shuffle_xor(span.earliest, lanes));
    span.latest = max(span.latest, shuffle_xor(span.latest, lanes));
  }
  return span;
}

// The bucket that every pair of `span` and time[0 … kCount) shares, or −1; every lane of the warp calls it.
template <int kCount>
ARGUS_DEVICE int shared_bucket(const Bias& bias, const TimeSpan& span, const int64_t* time) {
  int bucket = -1;
  bool same = true;
#pragma unroll
  for (int i = 0; i < kCount; i += kWarpSize) {
    if (kCount % kWarpSize > 0 && i + lane_index() >= kCount) break;
    const int64_t one = time[i + lane_index()];
    const uint64_t to_earliest = time_distance(one, span.earliest),
                   to_latest = time_distance(one, span.latest);
    const bool between = one >= span.earliest && one <= span.latest;
    const int nearest = time_bucket(bias, between ? 0 : min(to_earliest, to_latest));
    const int farthest = time_bucket(bias, max(to_earliest, to_latest));
    same = same && nearest == farthest && (i == 0 || nearest == bucket);
    bucket = nearest;
  }
  const int first = __shfl_sync(kFullWarp, bucket, 0);
  return __all_sync(kFullWarp, same && (bucket == first || bucket == -1)) ? first : -1;
}

}  // namespace argus::attention
