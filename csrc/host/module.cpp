// argus_kernels._host: what faces numpy, not torch.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_host, m) {
  m.doc() = "Compiled half of argus_kernels.host; use that module.";
}
