// argus_kernels._host: the compiled half of argus_kernels.host. Its functions carry the names and the
// arguments of argus_kernels.host_reference; argus_kernels.host has checked dtypes, shapes and values before
// it calls them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "host/hash.h"
#include "host/pack.h"
#include "host/sketch.h"

namespace py = pybind11;

namespace argus::host {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// Hands the vector's memory to numpy without a copy.
Array<int64_t> to_numpy(std::vector<int64_t>&& values) {
  auto owned = std::make_unique<std::vector<int64_t>>(std::move(values));
  const py::ssize_t size = static_cast<py::ssize_t>(owned->size());
  const int64_t* data = owned->data();
  py::capsule owner(owned.get(), [](void* pointer) { delete static_cast<std::vector<int64_t>*>(pointer); });
  owned.release();
  return Array<int64_t>({size}, {static_cast<py::ssize_t>(sizeof(int64_t))}, data, owner);
}

Array<int64_t> py_hash_ids(const Array<int64_t>& ids, const Array<uint64_t>& keys, int64_t slots) {
  Array<int64_t> out({keys.size(), ids.size()});
  int64_t* to = out.mutable_data();
  py::gil_scoped_release released;
  hash_ids(ids.data(), ids.size(), keys.data(), keys.size(), static_cast<uint64_t>(slots), to);
  return out;
}

Sketch sketch_of(double* table, const Array<double>& array, const Array<uint64_t>& keys) {
  return Sketch{.table = table, .keys = keys.data(), .depth = array.shape(0), .width = array.shape(1)};
}

double py_sketch_update(Array<double>& table, const Array<uint64_t>& keys, const Array<int64_t>& ids,
                        const std::optional<Array<double>>& weights, double total) {
  const Sketch sketch = sketch_of(table.mutable_data(), table, keys);
  const double* weight = weights.has_value() ? weights->data() : nullptr;
  py::gil_scoped_release released;
  return sketch_update(sketch, ids.data(), weight, ids.size(), total);
}

Array<double> py_sketch_estimate(const Array<double>& table, const Array<uint64_t>& keys,
                                 const Array<int64_t>& ids) {
  Array<double> out(ids.size());
  double* to = out.mutable_data();
  // sketch_estimate only reads the counters.
  const Sketch sketch = sketch_of(const_cast<double*>(table.data()), table, keys);
  py::gil_scoped_release released;
  sketch_estimate(sketch, ids.data(), ids.size(), to);
  return out;
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
  Plan plan;
  {
    py::gil_scoped_release released;
    plan = plan_batches(offsets.data(), order.data(), order.size(), options);
  }
  return py::make_tuple(to_numpy(std::move(plan.batch_offsets)), to_numpy(std::move(plan.users)),
                        to_numpy(std::move(plan.starts)), to_numpy(std::move(plan.ends)),
                        to_numpy(std::move(plan.contexts)));
}

py::array py_gather_rows(const py::array& column, const Array<int64_t>& starts, const Array<int64_t>& ends) {
  int64_t rows = 0;
  for (py::ssize_t entry = 0; entry < starts.size(); ++entry)
    rows += ends.data()[entry] - starts.data()[entry];
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
