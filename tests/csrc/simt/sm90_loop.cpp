// The persistent product loop of sm_90 on the executor: ragged tiles on several blocks, and real numbers.
#include "cases.h"
#include "sm90_kernels.cuh"
#include "sm90_matrices.h"

namespace {

using argus::launch;
using argus::LaunchShape;
using argus::ptx::Major;
using cases::Buffer;
using cases::expect;
using matrices::drawn;
using matrices::matrix;

template <class T, Major kA, Major kB, int kColumns>
std::vector<float> run_product(const std::vector<T>& a, const std::vector<T>& b, int rows, int columns,
                               int depth, unsigned blocks, int splits = 1, unsigned cluster = 1) {
  using Loop = argus::sm90::ProductLoop<T, kA, kB, kColumns>;
  Buffer<T> device_a("a", a), device_b("b", b);
  Buffer<float> d("d", static_cast<size_t>(splits * rows * columns));
  const auto pitch = [&](Major major, int lines) {
    return static_cast<uint64_t>(major == Major::k ? depth : lines);
  };
  const auto map_a = Loop::TileA::map(device_a.get(), rows, depth, pitch(kA, rows));
  const typename Loop::Shape shape{rows, columns, depth, splits, static_cast<int>(cluster)};
  const auto map_b = Loop::map_b(device_b.get(), shape, pitch(kB, columns));
  launch("product", sm90_kernels::product<T, kA, kB, kColumns>,
         LaunchShape{dim3(blocks), dim3(Loop::kThreads), Loop::kShared, cluster}, nullptr, map_a, map_b,
         shape, d.get());
  return d.result();
}

template <class T, Major kA, Major kB, int kColumns>
void run_integer_product(int rows, int columns, int depth, unsigned blocks, int splits = 1,
                         unsigned cluster = 1) {
  const auto a = matrix<T>(rows, depth, kA, 0), b = matrix<T>(columns, depth, kB, 1000);
  const auto d = run_product<T, kA, kB, kColumns>(a, b, rows, columns, depth, blocks, splits, cluster);
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      int sum = 0;
      for (int k = 0; k < depth; ++k) sum += drawn(row, k) * drawn(1000 + column, k);
      const auto index = static_cast<size_t>(row * columns + column);
      float found = 0.0f;
      for (int split = 0; split < splits; ++split)
        found += d[index + static_cast<size_t>(split * rows * columns)];
      expect("d", index, found, static_cast<float>(sum));
    }
  }
}
ARGUS_CASE(persistent_product_of_bfloat16) {
  run_integer_product<__nv_bfloat16, Major::k, Major::k, 128>(136, 136, 264, 2);
}
ARGUS_CASE(persistent_product_of_half) {
  run_integer_product<__half, Major::k, Major::mn, 128>(192, 128, 136, 1);
}
ARGUS_CASE(persistent_product_of_wide_tiles) {
  run_integer_product<__nv_bfloat16, Major::mn, Major::mn, 256>(136, 296, 72, 3);
}
ARGUS_CASE(persistent_product_in_splits) {
  run_integer_product<__half, Major::k, Major::mn, 128>(136, 128, 328, 3, 4);
}

// Clusters of two blocks: an odd number of row tiles, deep and shallow tiles, several for each cluster.
ARGUS_CASE(persistent_product_in_clusters) {
  run_integer_product<__nv_bfloat16, Major::k, Major::k, 128>(264, 136, 264, 2, 1, 2);
}
ARGUS_CASE(persistent_product_of_wide_tiles_in_clusters) {
  run_integer_product<__nv_bfloat16, Major::k, Major::k, 256>(136, 296, 72, 4, 1, 2);
}
ARGUS_CASE(persistent_product_in_splits_in_clusters) {
  run_integer_product<__half, Major::k, Major::mn, 128>(136, 128, 328, 4, 3, 2);
}
ARGUS_CASE(persistent_product_of_one_tile_in_clusters) {
  run_integer_product<__half, Major::mn, Major::mn, 256>(8, 136, 72, 2, 1, 2);
}

// Within what truncated sums may lose, and the same bits under another order of threads and copies, and in
// clusters.
template <class T>
void run_real_product() {
  constexpr int kLines = 128, kTestDepth = 256;
  std::vector<T> a(kLines * kTestDepth), b(a.size());
  for (size_t i = 0; i < a.size(); ++i) {
    a[i] = std::sin(static_cast<float>(i));
    b[i] = std::cos(static_cast<float>(3 * i)) + 0.25f;
  }
  const auto d = run_product<T, Major::k, Major::k, 128>(a, b, kLines, kLines, kTestDepth, 1);
  for (int row = 0; row < kLines; ++row) {
    for (int column = 0; column < kLines; ++column) {
      double sum = 0.0, size = 0.0;
      for (int k = 0; k < kTestDepth; ++k) {
        const double term = static_cast<double>(float(a[static_cast<size_t>(row * kTestDepth + k)])) *
                            static_cast<double>(float(b[static_cast<size_t>(column * kTestDepth + k)]));
        sum += term, size += std::abs(term);
      }
      const auto index = static_cast<size_t>(row * kLines + column);
      const double allowed = kTestDepth / 16 * 17 * 0x1p-23 * size;
      if (!(std::abs(static_cast<double>(d[index]) - sum) <= allowed))
        expect("d", index, static_cast<double>(d[index]), sum);
    }
  }
  const auto again = run_product<T, Major::k, Major::k, 128>(a, b, kLines, kLines, kTestDepth, 1);
  for (size_t i = 0; i < d.size(); ++i) expect("d", i, again[i], d[i]);
  const auto shared = run_product<T, Major::k, Major::k, 128>(a, b, kLines, kLines, kTestDepth, 2, 1, 2);
  for (size_t i = 0; i < d.size(); ++i) expect("d in clusters", i, shared[i], d[i]);
}
ARGUS_CASE(real_product_of_bfloat16) {
  run_real_product<__nv_bfloat16>();
}
ARGUS_CASE(real_product_of_half) {
  run_real_product<__half>();
}

}  // namespace
