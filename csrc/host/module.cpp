// argus_kernels._host: the compiled half of argus_kernels.host. Its functions carry the names and the
// arguments of argus_kernels.host_reference. They check every value that they use as an index;
// argus_kernels.host has checked weights and seeds.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "host/checks.h"
#include "host/hash.h"
#include "host/pack.h"
#include "host/sketch.h"

namespace argus::host {
namespace {

constexpr int64_t kMaxSlots = (int64_t{1} << 32) - 1;

// Gives the vector's memory to numpy without a copy.
Array<int64_t> to_numpy(std::vector<int64_t>&& values) {
  auto owned = std::make_unique<std::vector<int64_t>>(std::move(values));
  const py::ssize_t size = static_cast<py::ssize_t>(owned->size());
  const int64_t* data = owned->data();
  py::capsule owner(owned.get(), [](void* pointer) { delete static_cast<std::vector<int64_t>*>(pointer); });
  owned.release();
  return Array<int64_t>({size}, {static_cast<py::ssize_t>(sizeof(int64_t))}, data, owner);
}

Array<int64_t> py_hash_ids(const Array<int64_t>& ids, const Array<uint64_t>& keys, int64_t slots) {
  check_vector("hash_ids", "ids", ids);
  check_vector("hash_ids", "keys", keys);
  check_range("hash_ids", "slots", slots, 1, kMaxSlots);
  Array<int64_t> out({keys.size(), ids.size()});
  int64_t* to = out.mutable_data();
  py::gil_scoped_release released;
  hash_ids(ids.data(), ids.size(), keys.data(), keys.size(), static_cast<uint64_t>(slots), to);
  return out;
}

void check_sketch(const char* function, const Array<double>& table, const Array<uint64_t>& keys,
                  const Array<int64_t>& ids) {
  if (table.ndim() != 2) refuse(function, "table has shape ", shape_text(table), ", expected [depth, width]");
  check_range(function, "the table's depth", table.shape(0), 1, kMaxDepth);
  check_range(function, "the table's width", table.shape(1), 1, kMaxSlots);
  check_vector(function, "keys", keys, table.shape(0));
  check_vector(function, "ids", ids);
}

Sketch sketch_of(double* table, const Array<double>& array, const Array<uint64_t>& keys) {
  return Sketch{.table = table, .keys = keys.data(), .depth = array.shape(0), .width = array.shape(1)};
}

double py_sketch_update(Array<double>& table, const Array<uint64_t>& keys, const Array<int64_t>& ids,
                        const std::optional<Array<double>>& weights, double total) {
  check_sketch("sketch_update", table, keys, ids);
  if (weights.has_value()) check_vector("sketch_update", "weights", *weights, ids.size());
  if (!table.writeable()) refuse("sketch_update", "table is read-only, expected one that can be written");
  const Sketch sketch = sketch_of(table.mutable_data(), table, keys);
  const double* weight = weights.has_value() ? weights->data() : nullptr;
  py::gil_scoped_release released;
  return sketch_update(sketch, ids.data(), weight, ids.size(), total);
}

Array<double> py_sketch_estimate(const Array<double>& table, const Array<uint64_t>& keys,
                                 const Array<int64_t>& ids) {
  check_sketch("sketch_estimate", table, keys, ids);
  Array<double> out(ids.size());
  double* to = out.mutable_data();
  // sketch_estimate only reads the counters.
  const Sketch sketch = sketch_of(const_cast<double*>(table.data()), table, keys);
  py::gil_scoped_release released;
  sketch_estimate(sketch, ids.data(), ids.size(), to);
  return out;
}

void check_plan(const Array<int64_t>& offsets, const Array<int64_t>& order, const PackOptions& options) {
  constexpr const char* kFunction = "plan_batches";
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  check_vector(kFunction, "offsets", offsets);
  check_vector(kFunction, "order", order);
  if (offsets.size() < 1) refuse(kFunction, "offsets is empty, expected at least 1 value");
  check_range(kFunction, "window", options.window, 1, kMax);
  check_range(kFunction, "token_budget", options.token_budget, options.window, kMax);
  check_range(kFunction, "stride", options.stride, 1, options.window);
  check_range(kFunction, "max_users", options.max_users, 1, kMax);
  check_range(kFunction, "min_events", options.min_events, 0, kMax);
  const int64_t* offset = offsets.data();
  check_range(kFunction, "offsets[0]", offset[0], 0, kMax);
  for (int64_t i = 1; i < offsets.size(); ++i) {
    if (offset[i] < offset[i - 1])
      refuse(kFunction, "offsets[", i, "] is ", offset[i], " after ", offset[i - 1], ", expected no fall");
  }
  for (int64_t i = 0; i < order.size(); ++i) {
    if (order.data()[i] < 0 || order.data()[i] >= offsets.size() - 1)
      refuse(kFunction, "order[", i, "] is ", order.data()[i], ", expected 0 to ", offsets.size() - 2);
  }
  const int64_t windows = count_windows(offset, order.data(), order.size(), options);
  if (windows > most_windows())
    refuse(kFunction, "the histories have ", windows, " windows, expected at most ", most_windows());
}

py::tuple py_plan_batches(const Array<int64_t>& offsets, const Array<int64_t>& order, int64_t token_budget,
                          int64_t window, int64_t stride, int64_t max_users, int64_t min_events,
                          bool last_only) {
  const PackOptions options{.token_budget = token_budget,
                            .window = window,
                            .stride = stride,
                            .max_users = max_users,
                            .min_events = min_events,
                            .last_only = last_only};
  check_plan(offsets, order, options);
  Plan plan;
  {
    py::gil_scoped_release released;
    plan = plan_batches(offsets.data(), order.data(), order.size(), options);
  }
  return py::make_tuple(to_numpy(std::move(plan.batch_offsets)), to_numpy(std::move(plan.users)),
                        to_numpy(std::move(plan.starts)), to_numpy(std::move(plan.ends)),
                        to_numpy(std::move(plan.contexts)));
}

// The total number of rows of all entries.
int64_t checked_rows(const py::array& column, const Array<int64_t>& starts, const Array<int64_t>& ends) {
  constexpr const char* kFunction = "gather_rows";
  if (column.ndim() < 1) refuse(kFunction, "column has shape [], expected [N, ...]");
  if ((column.flags() & py::array::c_style) == 0)
    refuse(kFunction, "column is not contiguous, expected a C-contiguous array");
  if (column.dtype().attr("hasobject").cast<bool>())
    refuse(kFunction, "column holds Python objects, expected plain numbers");
  check_vector(kFunction, "starts", starts);
  check_vector(kFunction, "ends", ends, starts.size());
  int64_t rows = 0;
  for (int64_t entry = 0; entry < starts.size(); ++entry) {
    const int64_t start = starts.data()[entry], end = ends.data()[entry], most = column.shape(0);
    if (end < 0 || end > most) refuse(kFunction, "ends[", entry, "] is ", end, ", expected 0 to ", most);
    if (start < 0 || start > end)
      refuse(kFunction, "starts[", entry, "] is ", start, ", expected 0 to ends[", entry, "] = ", end);
    if (__builtin_add_overflow(rows, end - start, &rows))
      refuse(kFunction, "the entries have 2^63 rows or more, expected fewer");
  }
  return rows;
}

py::array py_gather_rows(const py::array& column, const Array<int64_t>& starts, const Array<int64_t>& ends) {
  const int64_t rows = checked_rows(column, starts, ends);
  std::vector<py::ssize_t> shape(column.shape(), column.shape() + column.ndim());
  shape[0] = rows;
  py::array out(column.dtype(), shape);
  int64_t row_bytes = column.itemsize();
  for (py::ssize_t dim = 1; dim < column.ndim(); ++dim) row_bytes *= column.shape(dim);
  const char* from = static_cast<const char*>(column.data());
  char* to = static_cast<char*>(out.mutable_data());
  py::gil_scoped_release released;
  gather_rows(from, row_bytes, starts.data(), ends.data(), starts.size(), to);
  return out;
}

}  // namespace
}  // namespace argus::host

PYBIND11_MODULE(_host, m) {
  using namespace argus::host;
  m.doc() = "Compiled half of argus_kernels.host, which checks the arguments; use that module.";
  m.def("hash_ids", &py_hash_ids, py::arg("ids").noconvert(), py::arg("keys").noconvert(), py::arg("slots"));
  m.def("sketch_update", &py_sketch_update, py::arg("table").noconvert(), py::arg("keys").noconvert(),
        py::arg("ids").noconvert(), py::arg("weights").none(true).noconvert(), py::arg("total"));
  m.def("sketch_estimate", &py_sketch_estimate, py::arg("table").noconvert(), py::arg("keys").noconvert(),
        py::arg("ids").noconvert());
  m.def("plan_batches", &py_plan_batches, py::arg("offsets").noconvert(), py::arg("order").noconvert(),
        py::arg("token_budget"), py::arg("window"), py::arg("stride"), py::arg("max_users"),
        py::arg("min_events"), py::arg("last_only"));
  m.def("gather_rows", &py_gather_rows, py::arg("column").noconvert(), py::arg("starts").noconvert(),
        py::arg("ends").noconvert());
}
