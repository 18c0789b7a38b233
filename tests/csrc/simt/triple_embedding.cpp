// The launchers of triple_embedding on host memory, for ctypes.
#include "triple_embedding/triple_embedding_cuda.h"

#include "on_host.h"

namespace {

using argus::Dtype;
using namespace argus::triple_embedding;

size_t bytes_of(Dtype dtype) {
  return dtype == Dtype::float32 ? 4 : 2;
}

size_t product(int64_t left, int64_t right) {
  return static_cast<size_t>(left) * static_cast<size_t>(right);
}

void take_problem(on_host::Device& device, CudaProblem& problem) {
  int64_t height = 0;
  for (int k = 0; k < problem.count; ++k) {
    CudaColumn& column = problem.columns[k];
    height += column.width;
    if (column.rows == 0 || column.width == 0) continue;
    const int64_t span =
        (column.rows - 1) * column.row_stride + (column.width - 1) * column.column_stride + 1;
    device.input("table", column.table, product(span, static_cast<int64_t>(bytes_of(problem.table_dtype))));
  }
  device.input("ids", problem.ids, product(problem.count, problem.events) * 8);
  device.input("weight", problem.weight, product(height, problem.width) * bytes_of(problem.dtype));
  lay_out_chunks(problem);
}

void forward(CudaForward given) {
  on_host::Device device;
  take_problem(device, given.problem);
  const size_t element = bytes_of(given.problem.dtype);
  device.input("bias", given.bias, product(given.problem.width, 1) * element);
  device.output("output", given.output, product(given.problem.events, given.problem.width) * element);
  if (!fits_product_loop(given)) given.loop_blocks = 0;
  launch_forward(given, nullptr);
  device.copy_back();
}

void backward(CudaBackward given) {
  on_host::Device device;
  const CudaProblem& problem = given.problem;
  take_problem(device, given.problem);
  const size_t element = bytes_of(problem.dtype);
  const int64_t elements = depth(problem), width = problem.width;
  int64_t height = 0;
  for (int k = 0; k < problem.count; ++k) height += problem.columns[k].width;
  device.input("gradient", given.gradient, product(problem.events, width) * element);
  device.output("gathered_gradient", given.gathered_gradient, product(problem.events, elements) * 4);
  device.output("weight_parts", given.weight_parts,
                product(weight_parts(problem.events) * elements, width) * 4);
  device.output("bias_parts", given.bias_parts, product(bias_parts(problem.events), width) * 4);
  device.output("d_weight", given.d_weight, product(height, width) * element);
  device.output("d_bias", given.d_bias, product(width, 1) * element);
  launch_backward(given, nullptr);
  device.copy_back();
}

// `result_rows` is the number of rows of `values`.
void row_sums(CudaRowSums given, int64_t result_rows) {
  on_host::Device device;
  const int64_t windows = (given.count + kWindow - 1) / kWindow;
  device.input("gathered_gradient", given.gathered_gradient, product(given.events, given.depth) * 4);
  device.input("keys", given.keys, product(given.count, 4));
  device.input("positions", given.positions, product(given.count, 8));
  device.input("slots", given.slots, product(given.count, 8));
  device.output("unique_rows", given.unique_rows, product(result_rows, 8));
  device.output("heads", given.heads, product(windows, given.width) * 4);
  device.output("tails", given.tails, product(windows, given.width) * 4);
  device.changed("values", given.values, product(result_rows, given.width) * bytes_of(given.dtype));
  launch_row_sums(given, nullptr);
  device.copy_back();
}

void keys(CudaKeys given, int64_t columns) {
  on_host::Device device;
  device.input("ids", given.ids, product(columns, given.events) * 8);
  device.output("keys", given.keys, product(given.count, given.events) * 4);
  launch_keys(given, nullptr);
  device.copy_back();
}

void counts(CudaCounts given, int64_t columns) {
  on_host::Device device;
  lay_out_counts(given);
  device.input("ids", given.keys.ids, product(columns, given.keys.events) * 8);
  device.output("counts", given.counts, product(given.lines_in_all, counted_chunks(given.keys.events)) * 4);
  launch_counts(given, nullptr);
  device.copy_back();
}

void places(CudaCounts given, int64_t columns) {
  on_host::Device device;
  lay_out_counts(given);
  const size_t entries = product(given.keys.count, given.keys.events);
  device.input("ids", given.keys.ids, product(columns, given.keys.events) * 8);
  device.input("sums", given.sums, product(given.lines_in_all, counted_chunks(given.keys.events)) * 8);
  device.output("keys", given.keys.keys, entries * 4);
  device.output("positions", given.positions, entries * 8);
  launch_places(given, nullptr);
  device.copy_back();
}

struct Leaders {
  const int32_t* keys;
  int64_t* leaders;
  int64_t count;
  int32_t first_key;
};

void leaders(Leaders given) {
  on_host::Device device;
  device.input("keys", given.keys, product(given.count, 4));
  device.output("leaders", given.leaders, product(given.count, 8));
  launch_leaders(given.keys, given.count, given.first_key, given.leaders, nullptr);
  device.copy_back();
}

}  // namespace

ARGUS_EXPORT int triple_embedding_depth(CudaProblem* problem) {
  lay_out_chunks(*problem);
  return depth(*problem);
}

ARGUS_EXPORT int triple_embedding_weight_parts(int64_t events) {
  return weight_parts(events);
}

ARGUS_EXPORT int triple_embedding_bias_parts(int64_t events) {
  return bias_parts(events);
}

ARGUS_EXPORT int triple_embedding_fits_loop(CudaForward* given) {
  lay_out_chunks(given->problem);
  return fits_product_loop(*given) ? 1 : 0;
}

ARGUS_EXPORT void triple_embedding_forward(const CudaForward* given, uint64_t seed, char* report,
                                           size_t bytes) {
  on_host::run(seed, report, bytes, [&] { forward(*given); });
}

ARGUS_EXPORT void triple_embedding_backward(const CudaBackward* given, uint64_t seed, char* report,
                                            size_t bytes) {
  on_host::run(seed, report, bytes, [&] { backward(*given); });
}

ARGUS_EXPORT void triple_embedding_keys(const CudaKeys* given, const int64_t* columns, uint64_t seed,
                                        char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { keys(*given, *columns); });
}

ARGUS_EXPORT void triple_embedding_counts(const CudaCounts* given, const int64_t* columns, uint64_t seed,
                                          char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { counts(*given, *columns); });
}

ARGUS_EXPORT void triple_embedding_places(const CudaCounts* given, const int64_t* columns, uint64_t seed,
                                          char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { places(*given, *columns); });
}

ARGUS_EXPORT int64_t triple_embedding_count_elements(CudaCounts* given) {
  lay_out_counts(*given);
  return given->lines_in_all * counted_chunks(given->keys.events);
}

ARGUS_EXPORT void triple_embedding_leaders(const Leaders* given, uint64_t seed, char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { leaders(*given); });
}

ARGUS_EXPORT void triple_embedding_row_sums(const CudaRowSums* given, const int64_t* result_rows,
                                            uint64_t seed, char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { row_sums(*given, *result_rows); });
}
